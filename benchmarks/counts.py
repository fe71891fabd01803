"""What an image costs at full size, counted on meta tensors: no weights, no GPU, a few seconds.

    python -m benchmarks.counts [--json FILE]

Counts the parameters of each group, matrix products and FLOP of every stage, live bytes of activations, and the memory
plan of every tier. Counts are exact for the modules as they are; a FLOP is one multiplication or one addition. Products
are counted where they are dispatched (mm, addmm, bmm, convolution), attention by its two products over all keys.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from uso_core.loaders.build import VAE_NORM_GROUPS, VAE_SCALE, VAE_SHIFT
from uso_core.memory.plan import MemoryPlan
from uso_core.memory.planner import Machine, PlanOptions, plan
from uso_core.memory.sizes import GB, Counts, Sizes, counts_of
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel

TEXT_TOKENS, STYLE_TOKENS, TARGET_TOKENS, CONTENT_TOKENS = 512, 192, 4096, 1024  # at 1024 x 1024, content at 512
STEPS = 25
# mode: (content tokens, style tokens)
MODES = {
    "text only": (0, 0),
    "content": (CONTENT_TOKENS, 0),
    "style": (0, STYLE_TOKENS),
    "content + style": (CONTENT_TOKENS, STYLE_TOKENS),
    "two styles": (0, 2 * STYLE_TOKENS),
}


@dataclass
class Tally:
    """What one forward did: calls of matrix products by kind, attentions, FLOP, and the maximum of live bytes."""

    products: Counter[str] = field(default_factory=Counter)
    attentions: int = 0
    flops: int = 0
    live_bytes: int = 0
    peak_bytes: int = 0

    @property
    def matrix_products(self) -> int:
        return sum(self.products.values())


class Counting:
    """A context that counts every product, and the lifetime of every tensor not among `known`.

    Gradients must be off, but not by inference mode, which hides the products inside `linear`.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        self.tally = Tally()
        self._modes = (_Attention(self.tally), _Products(self.tally, known))

    def __enter__(self) -> Tally:
        for mode in self._modes:
            mode.__enter__()
        return self.tally

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Attention(TorchFunctionMode):
    """Attention as one kernel that stores no weight matrix, as on a GPU; its meta version would store one."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = named["query"], named["key"], named["value"]  # (..., tokens, head size)
        rows = query.numel() // query.shape[-1]
        self._tally.attentions += 1
        self._tally.flops += 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


class _Products(TorchDispatchMode):
    def __init__(self, tally: Tally, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._tally = tally
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no id is given out twice
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet in flop_registry:
            self._tally.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self._tally.products[str(packet).removeprefix("aten.")] += 1
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self._follow(each.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        place, size, tally = storage._cdata, storage.nbytes(), self._tally
        if place in self._seen:
            return

        def gone(_: object) -> None:
            tally.live_bytes -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        tally.live_bytes += size
        tally.peak_bytes = max(tally.peak_bytes, tally.live_bytes)


@cache
def full_size(dtype: torch.dtype = torch.bfloat16) -> dict[str, nn.Module]:
    """FLUX.1-dev with USO's encoders at the published sizes, on the meta device: modules by role.

    Sizes: black-forest-labs/FLUX.1-dev (transformer, vae, text_encoder, text_encoder_2) and
    google/siglip-so400m-patch14-384. SigLIP and the projector are float32, as the pipeline computes them.
    """
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "transformer": USOTransformer2DModel(guidance_embeds=True),
            "t5": T5EncoderModel(
                T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                         feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
            ),
            "clip": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
            "siglip": SiglipVisionModel(
                SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                                   num_attention_heads=16, image_size=384, patch_size=14)
            ),
            "projector": StyleProjector(),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
                norm_num_groups=VAE_NORM_GROUPS, use_quant_conv=False, use_post_quant_conv=False,
                scaling_factor=VAE_SCALE, shift_factor=VAE_SHIFT,
            ),
        }  # fmt: skip
    for role in ("transformer", "t5", "clip", "vae"):
        for parameter in parts[role].parameters():  # `.to` warns about a list of exceptions that is empty
            parameter.data = parameter.data.to(dtype)
    for part in parts.values():
        part.eval().requires_grad_(False)
    return parts


@cache
def full_counts() -> Counts:
    """Parameters of each group of `full_size`."""
    return counts_of(full_size())


def count(module: nn.Module, call: Callable[[], Any], inputs: Iterable[Any] = ()) -> Tally:
    """One call of a module, counted; its weights and inputs do not count as live bytes."""
    known = _tensors([*module.parameters(), *module.buffers(), *inputs])
    with torch.no_grad(), torch.device("meta"), Counting(known) as tally:
        call()
    return tally


def forward(transformer: Any, content: int, style: int, target: int = TARGET_TOKENS) -> Tally:
    """One call of the transformer's forward, which recomputes everything: tokens of content, style and target."""
    inputs = _inputs(transformer, content + target, style)
    return count(transformer, lambda: transformer(**inputs), inputs.values())


def hoisted(transformer: Any, content: int, style: int, target: int = TARGET_TOKENS) -> tuple[Tally, Tally]:
    """The same as the pipeline does it: what is computed once for all `STEPS` steps, and one step."""
    inputs = _inputs(transformer, target, style, content)
    times = torch.empty(STEPS, device="meta")
    kept: list[Any] = []

    def before() -> None:
        given = [inputs[name] for name in ("encoder_hidden_states", "style_tokens", "references", "img_ids", "txt_ids")]
        kept.append(transformer.fix(*given))
        pooled, latents = inputs["pooled_projections"], inputs["hidden_states"]
        kept.append(transformer.modulation(times, inputs["guidance"], pooled, latents.dtype))

    first = count(transformer, before, [times, *_tensors(inputs.values())])
    fixed, table = kept
    rows = tuple(each[:1] for each in table)
    known = [*_tensors(inputs.values()), *_tensors(tree_leaves(vars(fixed))), *table]
    return first, count(transformer, lambda: transformer.step(inputs["hidden_states"], fixed, rows), known)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _inputs(transformer: Any, image: int, style: int, references: int | None = None) -> dict[str, Any]:
    """Arguments of the transformer on the meta device; with `references` (0: none) also those of its hoisted halves."""
    config, dtype = transformer.config, transformer.dtype
    width = config.num_attention_heads * config.attention_head_dim
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, image, config.in_channels, dtype=dtype),
            "encoder_hidden_states": torch.empty(1, TEXT_TOKENS, config.joint_attention_dim, dtype=dtype),
            "pooled_projections": torch.empty(1, config.pooled_projection_dim, dtype=dtype),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
            "img_ids": torch.empty(image + (references or 0), 3),
            "txt_ids": torch.empty(TEXT_TOKENS + style, 3),
            "style_tokens": torch.empty(1, style, width, dtype=dtype) if style else None,
        }
        if references is not None:
            shape = (1, references, config.in_channels)
            inputs["references"] = torch.empty(shape, dtype=dtype) if references else None
    return inputs


def once(parts: dict[str, nn.Module], side: int = 1024, content_size: int = 512) -> dict[str, Tally]:
    """What is computed once per request: each encoder, and the decoder for a square of `side` pixels."""
    t5, clip, siglip, vae = (parts[role] for role in ("t5", "clip", "siglip", "vae"))
    dtype = next(vae.parameters()).dtype
    with torch.device("meta"):
        words = torch.zeros(1, TEXT_TOKENS, dtype=torch.long)
        short = torch.zeros(1, 77, dtype=torch.long)
        image = torch.empty(1, 3, 384, 384)
        content = torch.empty(1, 3, content_size, content_size, dtype=dtype)
        latents = torch.empty(1, 16, side // 8, side // 8, dtype=dtype)
    return {
        "t5": count(t5, lambda: t5(words)),
        "clip": count(clip, lambda: clip(short)),
        "siglip": count(siglip, lambda: siglip(image, output_hidden_states=True), [image]),
        "vae encode": count(vae, lambda: vae.encode(content), [content]),  # type: ignore[operator]
        "vae decode": count(vae, lambda: vae.decode(latents), [latents]),  # type: ignore[operator]
    }


# The tiers: nominal size in GiB, GPU, options. About 3 % of a card is taken before anything is loaded.
LADDER = (
    (80, "NVIDIA H100 80GB HBM3", True, PlanOptions()),
    (80, "NVIDIA H100 80GB HBM3", True, PlanOptions(fp8=True)),
    (48, "NVIDIA RTX A6000", False, PlanOptions()),
    (24, "NVIDIA GeForce RTX 4090", True, PlanOptions()),
    (24, "NVIDIA GeForce RTX 4090", True, PlanOptions(fp8=True)),
    (16, "NVIDIA GeForce RTX 4080", True, PlanOptions(fp8=True)),
    (12, "NVIDIA GeForce RTX 4070", True, PlanOptions(fp8=True)),
    (24, "NVIDIA GeForce RTX 4090", True, PlanOptions(fp8=True, offload=True)),
    (8, "NVIDIA GeForce RTX 4060", True, PlanOptions(fp8=True)),
    (12, "NVIDIA GeForce RTX 4070", True, PlanOptions()),
)


def card(gibibytes: float, name: str = "GPU", multiplies_fp8: bool = True, ram: int = 64 * GB) -> Machine:
    """A machine with a card of this nominal size, 3 % of which is taken."""
    total = int(gibibytes * 2**30)
    return Machine("cuda", name, ram, total * 97 // 100, total, multiplies_fp8)


def ladder() -> list[tuple[str, MemoryPlan]]:
    """The plan of every tier at full size, each with its card and options."""
    rows = []
    for gibibytes, name, multiplies_fp8, options in LADDER:
        wish = " ".join([*(["fp8"] if options.fp8 else ["bf16"]), *(["offload"] if options.offload else [])])
        machine = card(gibibytes, name, multiplies_fp8)
        rows.append((f"{gibibytes} GB {wish}", plan(machine, Sizes(full_counts()), options)))
    return rows


def report() -> dict[str, Any]:
    """Everything counted, as plain values."""
    parts, counts = full_size(), full_counts()
    halves = {mode: hoisted(parts["transformer"], *tokens) for mode, tokens in MODES.items()}
    return {
        "versions": {"torch": torch.__version__},
        "parameters": {
            "transformer": counts.transformer,
            "blocks' matrices": sum(piece.matrices for piece in counts.blocks),
            "modulation": sum(counts.modulation),
            "ends": counts.ends,
            "t5": sum(piece.matrices + piece.rest for piece in counts.t5_blocks) + counts.t5_rest,
            "siglip": sum(counts.siglip_layers) + counts.siglip_rest,
            **{group: getattr(counts, group) for group in Sizes(counts).light},
        },
        "step": {mode: _values(tally) for mode, (_, tally) in halves.items()},
        "once": {
            **{stage: _values(tally) for stage, tally in once(parts).items()},
            f"table of {STEPS} steps": _values(halves["content + style"][0]),
        },
        "plans": {
            name: {"sentence": str(each.summary), "peak_bytes": each.peak_bytes, "peak_stage": each.peak_stage,
                   "host_bytes": each.host_bytes, "placements": [asdict(row) for row in each.placements]}
            for name, each in ladder()
        },
    }  # fmt: skip


def _values(tally: Tally) -> dict[str, Any]:
    return {
        "tflop": round(tally.flops / 1e12, 3),
        "matrix_products": tally.matrix_products,
        "attentions": tally.attentions,
        "peak_activation_bytes": tally.peak_bytes,
    }


def _print(values: dict[str, Any]) -> None:
    for group, number in values["parameters"].items():
        print(f"{group:24} {number / 1e6:10.1f} M parameters")
    for kind in ("step", "once"):
        print(f"\n{kind:24} {'TFLOP':>8} {'products':>9} {'attentions':>11} {'live MB':>8}")
        for name, row in values[kind].items():
            print(f"{name:24} {row['tflop']:8.2f} {row['matrix_products']:9} {row['attentions']:11} "
                  f"{row['peak_activation_bytes'] / 1e6:8.0f}")  # fmt: skip
    print()
    for name, row in values["plans"].items():
        print(f"{name:24} {row['sentence']}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts of the full-size model, on meta tensors.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything counted there")
    args = parser.parse_args()
    values = report()
    _print(values)
    if args.json is not None:
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
