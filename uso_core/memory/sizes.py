"""Computes how large a model is: counts the parameters of each group, derives bytes of weights and activations. No
torch.

1 GB is 10^9 bytes here and wherever the project names gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from uso_core.quantization.matrices import T5_MATRICES, TRANSFORMER_MATRICES

GB = 10**9
PIXELS_PER_TOKEN = 16
SCALE_BYTES = 4  # one float32 scale for each output channel of a quantized matrix

# Activations, counted as live tensors of one forward on the meta device (benchmarks/counts.py; a test checks that these
# bounds are not below the counts). At the end of a single-stream block, one transformer step keeps at most 13 tensors
# of (tokens, width) in the model's dtype, the embedded text for the next step (a third of one if the image is small),
# and 8.4 bytes of float32 RoPE for each of their elements.
STEP_TENSORS, STEP_FLOAT32_BYTES = 13.4, 9
FP8_INPUT_WIDTHS = 5  # the widest quantized product reads 5 x width; its fp8 copy (and the scaling) lies beside it
# The VAE peaks at full resolution: encoder 5 tensors of its first width, decoder 3 of its second. Convolutions take
# workspace on top, which counts on meta tensors do not show.
VAE_ENCODE_TENSORS, VAE_DECODE_TENSORS, CONVOLUTION_WORKSPACE = 5, 3, 1.5
TILE_PIXELS = 512  # side of a tile of the tiled decoder
IMAGE_BYTES = 48  # per pixel: decoded tiles, their rows and the whole image in float32
ENCODER_ACTIVATION_BYTES = 150 * 10**6  # T5 at 512 tokens keeps 101 MB, SigLIP with all its hidden states 123 MB
WORKSPACE_BYTES = 150 * 10**6  # cuBLAS workspaces, embedded prompts, one request's caches; at most the weights' size


class Parameter(Protocol):
    @property
    def shape(self) -> Any: ...


class Module(Protocol):
    """What counting needs from a module of any framework, loaded or not."""

    def named_parameters(self) -> Iterable[tuple[str, Any]]: ...


@dataclass(frozen=True)
class Piece:
    """One block: elements of the matrices that fp8 quantizes, their output channels, and all other elements."""

    matrices: int
    channels: int
    rest: int

    def bytes(self, dtype_bytes: int, fp8: bool) -> int:
        if not fp8:
            return (self.matrices + self.rest) * dtype_bytes
        return self.matrices + self.channels * SCALE_BYTES + self.rest * dtype_bytes


@dataclass(frozen=True)
class Counts:
    """Parameters of each group of a model, and the widths that determine its activations.

    `blocks` are the transformer's in the order of computation, without their modulation; `modulation` holds the adaLN
    matrices (with biases) one by one; `ends` the embedders and the output; `t5_rest` T5's token embedding and norm;
    `siglip_rest` SigLIP's embeddings, last norm and head.
    """

    blocks: tuple[Piece, ...]
    modulation: tuple[int, ...]
    ends: int
    t5_blocks: tuple[Piece, ...]
    t5_rest: int
    clip: int
    siglip_layers: tuple[int, ...]
    siglip_rest: int
    projector: int
    vae_encoder: int
    vae_decoder: int
    width: int
    largest_matrix: int
    encoder_width: int
    decoder_width: int

    @property
    def transformer(self) -> int:
        return sum(piece.matrices + piece.rest for piece in self.blocks) + sum(self.modulation) + self.ends


def counts_of(parts: Mapping[str, Module]) -> Counts:
    """Counts a model's modules by role: transformer, t5, clip, siglip, projector, vae. Meta tensors suffice.

    Names are those of diffusers' FluxTransformer2DModel and AutoencoderKL and of transformers' T5EncoderModel.
    """
    transformer = _shapes(parts["transformer"])
    modulation = {name: shape for name, shape in transformer.items() if _MODULATION.search(name)}
    blocks = _pieces(transformer.items() - modulation.items(), _BLOCK, TRANSFORMER_MATRICES)
    in_blocks = {name for name in transformer if _BLOCK.match(name)}
    ends = [shape for name, shape in transformer.items() if name not in in_blocks and name not in modulation]
    t5 = _shapes(parts["t5"])
    t5_rest = [shape for name, shape in t5.items() if not _T5_BLOCK.match(name)]
    siglip = _pieces(_shapes(parts["siglip"]).items(), _SIGLIP_LAYER)
    vae = _shapes(parts["vae"])
    last = max((name for name in vae if _DECODER_LAST.match(name)), key=lambda name: int(name.split(".")[2]))
    matrices = [shape for name, shape in transformer.items() if name in in_blocks and name not in modulation]
    return Counts(
        blocks=blocks,
        modulation=_by_stem(modulation),
        ends=sum(map(_elements, ends)),
        t5_blocks=_pieces(t5.items(), _T5_BLOCK, T5_MATRICES),
        t5_rest=sum(map(_elements, t5_rest)),
        clip=_total(parts["clip"]),
        siglip_layers=tuple(piece.matrices + piece.rest for piece in siglip),
        siglip_rest=_total(parts["siglip"]) - sum(piece.matrices + piece.rest for piece in siglip),
        projector=_total(parts["projector"]),
        vae_encoder=sum(_elements(shape) for name, shape in vae.items() if name.startswith("encoder.")),
        vae_decoder=sum(_elements(shape) for name, shape in vae.items() if name.startswith("decoder.")),
        width=transformer["x_embedder.weight"][0],
        largest_matrix=max(map(_elements, matrices)),
        encoder_width=vae["encoder.conv_in.weight"][0],
        decoder_width=vae[last][1],
    )


# FLUX.1-dev with USO's encoders; a test checks that these are the parameters of the modules.
FLUX_COUNTS = Counts(
    blocks=(Piece(226_492_416, 55_296, 55_808),) * 19 + (Piece(113_246_208, 24_576, 24_832),) * 38,
    modulation=(56_641_536,) * 38 + (28_320_768,) * 38 + (18_880_512,),
    ends=45_244_480,
    t5_blocks=(Piece(150_994_944, 36_864, 41_953_280),) + (Piece(150_994_944, 36_864, 41_951_232),) * 23,
    t5_rest=131_600_384,
    clip=123_060_480,
    siglip_layers=(15_239_504,) * 27,
    siglip_rest=16_758_992,
    projector=10_773_120,
    vae_encoder=34_274_208,
    vae_decoder=49_545_475,
    width=3072,
    largest_matrix=47_185_920,
    encoder_width=128,
    decoder_width=256,
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of each group in the number format that it is computed in.

    `dtype_bytes` is that of the transformer, the text encoders and the VAE, `vision_bytes` that of SigLIP and the
    projector (4: they are computed in float32, as the reference does).
    """

    counts: Counts
    dtype_bytes: int = 2
    vision_bytes: int = 4

    def blocks(self, fp8: bool) -> tuple[int, ...]:
        return self._blocks[fp8]

    def t5_blocks(self, fp8: bool) -> tuple[int, ...]:
        return self._t5_blocks[fp8]

    @cached_property
    def _blocks(self) -> dict[bool, tuple[int, ...]]:
        return self._formats(self.counts.blocks)

    @cached_property
    def _t5_blocks(self) -> dict[bool, tuple[int, ...]]:
        return self._formats(self.counts.t5_blocks)

    def _formats(self, pieces: tuple[Piece, ...]) -> dict[bool, tuple[int, ...]]:
        return {fp8: tuple(piece.bytes(self.dtype_bytes, fp8) for piece in pieces) for fp8 in (False, True)}

    @property
    def t5_rest(self) -> int:
        return self.counts.t5_rest * self.dtype_bytes

    @cached_property
    def modulation(self) -> tuple[int, ...]:
        return tuple(count * self.dtype_bytes for count in self.counts.modulation)

    @property
    def ends(self) -> int:
        return self.counts.ends * self.dtype_bytes

    @cached_property
    def light(self) -> dict[str, int]:
        """The groups too small to be split up."""
        counts, dtype = self.counts, self.dtype_bytes
        return {
            "clip": counts.clip * dtype,
            "projector": counts.projector * self.vision_bytes,
            "vae_encoder": counts.vae_encoder * dtype,
            "vae_decoder": counts.vae_decoder * dtype,
        }

    @cached_property
    def siglip_layers(self) -> tuple[int, ...]:
        return tuple(count * self.vision_bytes for count in self.counts.siglip_layers)

    @property
    def siglip_rest(self) -> int:
        return self.counts.siglip_rest * self.vision_bytes

    def total(self, fp8: bool = False, t5_fp8: bool = False) -> int:
        heavy = sum(self.blocks(fp8)) + sum(self.modulation) + self.ends + sum(self.t5_blocks(t5_fp8)) + self.t5_rest
        return heavy + sum(self.siglip_layers) + self.siglip_rest + sum(self.light.values())

    def modulation_table(self, steps: int) -> int:
        """All modulation vectors of all steps: what remains of the modulation once it is computed."""
        outputs = sum(count // (self.counts.width + 1) for count in self.counts.modulation)  # weights and bias
        return outputs * steps * self.dtype_bytes

    def step(self, tokens: int, fp8: bool) -> int:
        """Maximum activations of one transformer step for this many tokens of text, style, target and references."""
        elements = tokens * self.counts.width
        plain = int(elements * (STEP_TENSORS * self.dtype_bytes + STEP_FLOAT32_BYTES))
        if not fp8:
            return plain
        copied = elements * FP8_INPUT_WIDTHS * (1 + self.dtype_bytes)  # the scaled input, and its fp8 copy
        dequantized = 2 * self.counts.largest_matrix * self.dtype_bytes  # for GPUs that cannot multiply fp8
        return plain + max(copied, dequantized)

    def encode(self, pixels: int) -> int:
        """Activations of the VAE's encoder."""
        tensors = VAE_ENCODE_TENSORS * self.counts.encoder_width * self.dtype_bytes
        return int(pixels * tensors * CONVOLUTION_WORKSPACE)

    def decode(self, pixels: int, tiled: bool) -> int:
        """Activations of the VAE's decoder, for the whole image or per tile."""
        at_once = min(pixels, TILE_PIXELS**2) if tiled else pixels
        tensors = VAE_DECODE_TENSORS * self.counts.decoder_width * self.dtype_bytes
        return int(at_once * tensors * CONVOLUTION_WORKSPACE) + pixels * IMAGE_BYTES

    @cached_property
    def workspace(self) -> int:
        return min(WORKSPACE_BYTES, self.total())

    def encoder(self, group_bytes: int) -> int:
        """Activations of a text or vision encoder with this many bytes of weights."""
        return min(ENCODER_ACTIVATION_BYTES, 2 * group_bytes)


_BLOCK = re.compile(r"((?:single_)?transformer_blocks\.\d+)\.")
_MODULATION = re.compile(r"(^|\.)norm(1|1_context|_out)?\.linear\.(weight|bias)$")
_T5_BLOCK = re.compile(r"(encoder\.block\.\d+)\.")
_SIGLIP_LAYER = re.compile(r"((?:vision_model\.)?encoder\.layers\.\d+)\.")
_DECODER_LAST = re.compile(r"decoder\.up_blocks\.\d+\.resnets\.0\.conv1\.weight$")


def _shapes(module: Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _total(module: Module) -> int:
    return sum(map(_elements, _shapes(module).values()))


def _pieces(
    shapes: Iterable[tuple[str, tuple[int, ...]]], pattern: re.Pattern[str], matrices: re.Pattern[str] | None = None
) -> tuple[Piece, ...]:
    """One piece for each block, in the order of computation: double-stream blocks before single-stream ones.

    `matrices` matches those that fp8 quantizes.
    """
    blocks: dict[str, list[int]] = {}
    for name, shape in shapes:
        found = pattern.match(name)
        if not found:
            continue
        tally = blocks.setdefault(found[1], [0, 0, 0])
        if matrices is not None and name.endswith(".weight") and matrices.fullmatch(name.removesuffix(".weight")):
            tally[0] += _elements(shape)
            tally[1] += shape[0]
        else:
            tally[2] += _elements(shape)
    order = sorted(blocks, key=lambda stem: (stem.startswith("single_"), int(stem.rsplit(".", 1)[1])))
    return tuple(Piece(*blocks[stem]) for stem in order)


def _by_stem(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    stems: dict[str, int] = {}
    for name, shape in shapes.items():
        stem = name.rsplit(".", 1)[0]
        stems[stem] = stems.get(stem, 0) + _elements(shape)
    return tuple(stems.values())
