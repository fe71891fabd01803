"""Maps the original files' tensor names to those of diffusers: renames as data.

A row maps one original name to one or more diffusers names; `{n}`, `{m}` stand for numbers, `{p}` for the leaf
(weight, bias, scale). Several targets mean that the original stacks them by rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rename:
    """`halves_swapped`: the two halves of the rows trade places (shift, scale <-> scale, shift).
    `reversed_levels`: {n} counts from the other end (the VAE's decoder).
    """

    source: str
    targets: tuple[str, ...]
    halves_swapped: bool = False
    reversed_levels: bool = False

    def match(self, name: str) -> dict[str, str] | None:
        """The placeholders' values if the original name fits this row."""
        found = re.fullmatch(_pattern(self.source), name)
        return found.groupdict() if found else None

    def target_names(self, values: dict[str, str], levels: int = 0) -> tuple[str, ...]:
        if self.reversed_levels:
            values = {**values, "n": str(levels - 1 - int(values["n"]))}
        return tuple(target.format(**values) for target in self.targets)

    def source_name(self, target: str, levels: int = 0) -> str | None:
        """The original name that maps to this diffusers name, or to part of it, if this row holds it."""
        for template in self.targets:
            found = re.fullmatch(_pattern(template), target)
            if found:
                values = found.groupdict()
                if self.reversed_levels:
                    values["n"] = str(levels - 1 - int(values["n"]))
                return self.source.format(**values)
        return None


def original_name(target: str, table: Iterable[Rename], levels: int = 0) -> str:
    """The original file's name for the tensor that holds a diffusers tensor; the name itself if no row matches."""
    names = (row.source_name(target, levels) for row in table)
    return next((name for name in names if name is not None), target)


def row_of(name: str, table: Iterable[Rename]) -> tuple[Rename, dict[str, str]] | None:
    """The table's row that matches an original name, with the placeholders' values."""
    for row in table:
        values = row.match(name)
        if values is not None:
            return row, values
    return None


def _pattern(template: str) -> str:
    groups = {r"\{n\}": r"(?P<n>\d+)", r"\{m\}": r"(?P<m>\d+)", r"\{p\}": r"(?P<p>\w+)"}
    pattern = re.escape(template)
    for placeholder, group in groups.items():
        pattern = pattern.replace(placeholder, group)
    return pattern


def _rows(*pairs: tuple[str, str]) -> tuple[Rename, ...]:
    return tuple(Rename(source, (target,)) for source, target in pairs)


_DOUBLE, _SINGLE = "double_blocks.{n}", "single_blocks.{n}"
_TO_DOUBLE, _TO_SINGLE = "transformer_blocks.{n}", "single_transformer_blocks.{n}"
_IMG_QKV = tuple(f"{_TO_DOUBLE}.attn.to_{x}.{{p}}" for x in "qkv")
_TXT_QKV = tuple(f"{_TO_DOUBLE}.attn.add_{x}_proj.{{p}}" for x in "qkv")
_QKV = tuple(f"{_TO_SINGLE}.attn.to_{x}.{{p}}" for x in "qkv")

TRANSFORMER = (
    *_rows(
        ("img_in.{p}", "x_embedder.{p}"),
        ("txt_in.{p}", "context_embedder.{p}"),
        ("time_in.in_layer.{p}", "time_text_embed.timestep_embedder.linear_1.{p}"),
        ("time_in.out_layer.{p}", "time_text_embed.timestep_embedder.linear_2.{p}"),
        ("guidance_in.in_layer.{p}", "time_text_embed.guidance_embedder.linear_1.{p}"),
        ("guidance_in.out_layer.{p}", "time_text_embed.guidance_embedder.linear_2.{p}"),
        ("vector_in.in_layer.{p}", "time_text_embed.text_embedder.linear_1.{p}"),
        ("vector_in.out_layer.{p}", "time_text_embed.text_embedder.linear_2.{p}"),
        ("final_layer.linear.{p}", "proj_out.{p}"),
        (f"{_DOUBLE}.img_mod.lin.{{p}}", f"{_TO_DOUBLE}.norm1.linear.{{p}}"),
        (f"{_DOUBLE}.txt_mod.lin.{{p}}", f"{_TO_DOUBLE}.norm1_context.linear.{{p}}"),
        (f"{_DOUBLE}.img_attn.norm.query_norm.scale", f"{_TO_DOUBLE}.attn.norm_q.weight"),
        (f"{_DOUBLE}.img_attn.norm.key_norm.scale", f"{_TO_DOUBLE}.attn.norm_k.weight"),
        (f"{_DOUBLE}.txt_attn.norm.query_norm.scale", f"{_TO_DOUBLE}.attn.norm_added_q.weight"),
        (f"{_DOUBLE}.txt_attn.norm.key_norm.scale", f"{_TO_DOUBLE}.attn.norm_added_k.weight"),
        (f"{_DOUBLE}.img_attn.proj.{{p}}", f"{_TO_DOUBLE}.attn.to_out.0.{{p}}"),
        (f"{_DOUBLE}.txt_attn.proj.{{p}}", f"{_TO_DOUBLE}.attn.to_add_out.{{p}}"),
        (f"{_DOUBLE}.img_mlp.0.{{p}}", f"{_TO_DOUBLE}.ff.net.0.proj.{{p}}"),
        (f"{_DOUBLE}.img_mlp.2.{{p}}", f"{_TO_DOUBLE}.ff.net.2.{{p}}"),
        (f"{_DOUBLE}.txt_mlp.0.{{p}}", f"{_TO_DOUBLE}.ff_context.net.0.proj.{{p}}"),
        (f"{_DOUBLE}.txt_mlp.2.{{p}}", f"{_TO_DOUBLE}.ff_context.net.2.{{p}}"),
        (f"{_SINGLE}.modulation.lin.{{p}}", f"{_TO_SINGLE}.norm.linear.{{p}}"),
        (f"{_SINGLE}.norm.query_norm.scale", f"{_TO_SINGLE}.attn.norm_q.weight"),
        (f"{_SINGLE}.norm.key_norm.scale", f"{_TO_SINGLE}.attn.norm_k.weight"),
        (f"{_SINGLE}.linear2.{{p}}", f"{_TO_SINGLE}.proj_out.{{p}}"),
    ),
    Rename("final_layer.adaLN_modulation.1.{p}", ("norm_out.linear.{p}",), halves_swapped=True),
    Rename(f"{_DOUBLE}.img_attn.qkv.{{p}}", _IMG_QKV),
    Rename(f"{_DOUBLE}.txt_attn.qkv.{{p}}", _TXT_QKV),
    Rename(f"{_SINGLE}.linear1.{{p}}", (*_QKV, f"{_TO_SINGLE}.proj_mlp.{{p}}")),
)

# The LoRA's pairs, NAME.down.weight and NAME.up.weight, by the matrices they add to: the rows of `up` stack like the
# targets. lora1 is the image stream, lora2 the text stream. In single blocks the qkv pair does not touch the MLP's rows
# of linear1.
LORA = (
    Rename(f"{_DOUBLE}.processor.qkv_lora1", tuple(f"{_TO_DOUBLE}.attn.to_{x}.weight" for x in "qkv")),
    Rename(f"{_DOUBLE}.processor.qkv_lora2", tuple(f"{_TO_DOUBLE}.attn.add_{x}_proj.weight" for x in "qkv")),
    Rename(f"{_DOUBLE}.processor.proj_lora1", (f"{_TO_DOUBLE}.attn.to_out.0.weight",)),
    Rename(f"{_DOUBLE}.processor.proj_lora2", (f"{_TO_DOUBLE}.attn.to_add_out.weight",)),
    Rename(f"{_SINGLE}.processor.qkv_lora", tuple(f"{_TO_SINGLE}.attn.to_{x}.weight" for x in "qkv")),
    Rename(f"{_SINGLE}.processor.proj_lora", (f"{_TO_SINGLE}.proj_out.weight",)),
)

_RESNET = ("norm1", "conv1", "norm2", "conv2")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _vae_levels(source: str, target: str, sample: str, to_sample: str, flip: bool) -> tuple[Rename, ...]:
    pairs = [(f"block.{{m}}.{layer}.{{p}}", f"resnets.{{m}}.{layer}.{{p}}") for layer in _RESNET]
    pairs.append(("block.{m}.nin_shortcut.{p}", "resnets.{m}.conv_shortcut.{p}"))
    pairs.append((f"{sample}.conv.{{p}}", f"{to_sample}.0.conv.{{p}}"))
    return tuple(Rename(f"{source}.{{n}}.{a}", (f"{target}.{{n}}.{b}",), reversed_levels=flip) for a, b in pairs)


def _vae_ends(side: str) -> tuple[Rename, ...]:
    pairs = [("conv_in", "conv_in"), ("conv_out", "conv_out"), ("norm_out", "conv_norm_out")]
    for i in (0, 1):
        pairs += [(f"mid.block_{i + 1}.{layer}", f"mid_block.resnets.{i}.{layer}") for layer in _RESNET]
    pairs += [(f"mid.attn_1.{layer}", f"mid_block.attentions.0.{target}") for layer, target in _ATTENTION.items()]
    return _rows(*((f"{side}.{a}.{{p}}", f"{side}.{b}.{{p}}") for a, b in pairs))


VAE = (
    *_vae_levels("encoder.down", "encoder.down_blocks", "downsample", "downsamplers", flip=False),
    *_vae_levels("decoder.up", "decoder.up_blocks", "upsample", "upsamplers", flip=True),
    *_vae_ends("encoder"),
    *_vae_ends("decoder"),
)

_T5_BLOCK = "encoder.block.{n}.layer"
T5_GGUF = _rows(
    ("token_embd.{p}", "shared.{p}"),
    ("enc.output_norm.{p}", "encoder.final_layer_norm.{p}"),
    ("enc.blk.{n}.attn_norm.{p}", f"{_T5_BLOCK}.0.layer_norm.{{p}}"),
    ("enc.blk.{n}.attn_rel_b.{p}", f"{_T5_BLOCK}.0.SelfAttention.relative_attention_bias.{{p}}"),
    *((f"enc.blk.{{n}}.attn_{x}.{{p}}", f"{_T5_BLOCK}.0.SelfAttention.{x}.{{p}}") for x in "qkvo"),
    ("enc.blk.{n}.ffn_norm.{p}", f"{_T5_BLOCK}.1.layer_norm.{{p}}"),
    ("enc.blk.{n}.ffn_gate.{p}", f"{_T5_BLOCK}.1.DenseReluDense.wi_0.{{p}}"),
    ("enc.blk.{n}.ffn_up.{p}", f"{_T5_BLOCK}.1.DenseReluDense.wi_1.{{p}}"),
    ("enc.blk.{n}.ffn_down.{p}", f"{_T5_BLOCK}.1.DenseReluDense.wo.{{p}}"),
)
