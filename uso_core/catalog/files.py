"""Identifies a file by its first bytes and its tensors' names, never by its own name, from its header alone.

Reads safetensors and GGUF, whatever prefixes programs give to the parts of a checkpoint; recognises other formats,
other models and foreign quantizations in order to refuse them by name. No torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO

from uso_core.catalog import gguf_header
from uso_core.errors import WeightsError
from uso_core.messages import Bytes, Message, message

MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

Rows = tuple[tuple[str, tuple[str, ...]], ...]

# What a whole file is, by its tensors' names; the first row whose patterns all occur wins. Other models come first,
# because many of them contain parts that look like ours.
WHOLE: Rows = (
    ("projector", (r"^feature_embedder\.",)),
    ("lora", (r"\.processor\.(qkv|proj)_lora1?\.(down|up)\.weight$",)),
    ("LoKr adapter", (r"\.lokr_(w|t)\d",)),
    ("LoHa adapter", (r"\.hada_w\d",)),
    ("DoRA adapter", (r"\.dora_scale$|lora_magnitude_vector",)),
    ("BOFT or OFT adapter", (r"\.(oft_(blocks|diag|R)|boft_R)\b",)),
    ("GLoRA adapter", (r"\.a[12]\.weight$", r"\.b[12]\.weight$")),
    ("foreign lora", (r"(lora_(A|B|up|down)|lora\.(up|down))\b",)),
    ("FLUX.1-Redux adapter", (r"^(image_embedder\.)?redux_(up|down)\.",)),
    ("FLUX ControlNet", (r"(^|\.)controlnet_(x_embedder|blocks|single_blocks|cond_embedding)\.",)),
    ("FLUX IP-Adapter", (r"\.ip_adapter_(double_stream|proj_model|k_proj|v_proj)|^ip_adapter(_proj_model)?\.",)),
    ("Chroma transformer", (r"(^|\.)distilled_guidance_layer\.",)),
    ("FLUX.2 transformer", (r"(^|\.)double_stream_modulation_img\.",)),
    ("HunyuanVideo transformer", (r"individual_token_refiner\.",)),
    ("Qwen-Image transformer", (r"transformer_blocks\.\d+\.img_mod\.1\.", r"(^|\.)txt_norm\.weight$")),
    ("Z-Image or Lumina transformer", (r"(^|\.)cap_embedder\.", r"noise_refiner\.\d+\.")),
    ("Wan transformer", (r"(^|\.)blocks\.\d+\.cross_attn\.norm_k\.",)),
    ("Wan or Qwen-Image VAE", (r"decoder\.(middle\.\d+\.residual|mid_block\.resnets\.\d+\.norm1)\.(\d+\.)?gamma$",)),
    ("SDXL checkpoint", (r"^conditioner\.embedders\.",)),
    ("Stable Diffusion checkpoint", (r"input_blocks\.\d+\.", r"output_blocks\.\d+\.")),
    ("Stable Diffusion U-Net", (r"^down_blocks\.\d+\.attentions\.",)),
    ("Stable Diffusion 3 checkpoint", (r"joint_blocks\.\d+\.",)),
    ("Stable Diffusion 3 transformer", (r"^pos_embed\.proj\.", r"^transformer_blocks\.\d+\.attn\.add_q_proj\.")),
    ("Nunchaku (SVDQuant) transformer", (r"\.qweight$", r"\.(wscales|smooth|smooth_factor)$")),
    ("GPTQ or AWQ quantization", (r"\.qweight$", r"\.(qzeros|scales)$")),
    ("UMT5 text encoder", (r"block\.1\.layer\.0\.SelfAttention\.relative_attention_bias|^enc\.blk\.1\.attn_rel_b\.",)),
    ("language model", (r"^(model\.)?layers\.\d+\.self_attn\.|^blk\.\d+\.attn_q\.",)),
)
# What the tensors below one prefix are; a checkpoint's main part is the first that it holds.
PARTS: Rows = (
    ("transformer", (r"^double_blocks\.\d+\.img_attn\.", r"^single_blocks\.\d+\.linear1\.")),
    ("diffusers transformer", (r"^transformer_blocks\.\d+\.attn\.add_q_proj\.", r"^single_transformer_blocks\.\d+\.")),
    ("vae", (r"^encoder\.down\.\d+\.block\.", r"^decoder\.up\.\d+\.block\.")),
    ("diffusers vae", (r"^encoder\.down_blocks\.\d+\.resnets\.", r"^decoder\.up_blocks\.\d+\.resnets\.")),
    ("T5 text encoder", (r"^encoder\.block\.\d+\.layer\.0\.SelfAttention\.|^enc\.blk\.\d+\.attn_q\.",)),
    ("SigLIP vision tower", (r"^(vision_model\.)?encoder\.layers\.\d+\.", r"patch_embedding\.bias$")),
    ("CLIP text encoder", (r"^(text_model\.)?encoder\.layers\.\d+\.", r"token_embedding\.weight$")),
    ("CLIP vision tower", (r"^(vision_model\.)?encoder\.layers\.\d+\.", r"patch_embedding\.weight$")),
)
# What programs put before the names of a part: ComfyUI, Forge and those that write one file for everything.
PREFIXES = (
    "model.diffusion_model.", "diffusion_model.", "transformer.",
    "vae.", "first_stage_model.",
    "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "text_encoder_2.",
    "text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "text_encoder.",
)  # fmt: skip
SPOKEN = ("projector", "lora", "foreign lora", "transformer", "diffusers transformer", "vae", "diffusers vae")
TRANSFORMERS, VAES = ("transformer", "diffusers transformer"), ("vae", "diffusers vae")
BETTER_HINTS = {  # for what people put in the transformer's place, by role: what to use instead
    "Chroma transformer": "flux_relative", "FLUX.2 transformer": "flux_relative",
    "FLUX.1-Redux adapter": "flux_relative", "FLUX ControlNet": "flux_relative", "FLUX IP-Adapter": "flux_relative",
    "Nunchaku (SVDQuant) transformer": "quantization_foreign", "GPTQ or AWQ quantization": "quantization_foreign",
}  # fmt: skip

# Quantizations that cannot be read, by the tensors that only they have.
QUANTIZATIONS = (
    ("bitsandbytes nf4", r"\.quant_state\.bitsandbytes__nf4$"),
    ("bitsandbytes fp4", r"\.quant_state\.bitsandbytes__fp4$"),
    ("bitsandbytes, four bits", r"\.absmax$"),
    ("bitsandbytes int8", r"\.SCB$"),
    ("optimum-quanto", r"\.weight\._(data|scale)$"),
    ("NVFP4", r"\.weight_scale_2$"),
)
SIGLIP2_WORDS = 256_000
FP8 = ("F8_E4M3", "F8_E5M2")
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT itself saves them, side by side
LIBRARY_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # of a folder's one file
FP8_SCALES = (".scale_weight", ".weight_scale")  # ComfyUI's older and newer name
MARKS = (".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")  # beside fp8 weights, of no use here

# Members of the FLUX.1 family that take more channels than they give: an image and a mask, or an image, beside.
USABLE_VARIANTS = ("dev", "schnell", "krea")
KONTEXT = "FLUX.1-Kontext"
MORE_CHANNELS = {6: "FLUX.1-Fill", 2: "FLUX.1-Canny or FLUX.1-Depth"}


@dataclass(frozen=True)
class TensorInfo:
    """`offset` of the tensor's first byte in the file; `bytes` from there on, all within the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """One file, or one part of it, as its header describes it.

    `role` is a row's name in `WHOLE` or `PARTS`, or "unknown"; `tensors` are named without the part's prefix; `others`
    are the further parts of an all-in-one checkpoint.
    """

    path: Path
    role: str
    tensors: dict[str, TensorInfo] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    others: tuple[Checkpoint, ...] = field(default=(), repr=False)

    @property
    def kind(self) -> Message:
        """What the file appears to be."""
        if self.role == "unknown":
            first = next(iter(self.tensors), None)
            return message("kind_empty") if first is None else message("kind_unknown", tensor=first)
        return kind_of(self.role)

    @property
    def variant(self) -> str:
        """Which FLUX.1 a transformer is: "dev", "schnell", "krea", or the name of a member that USO does not work with.

        The tensors tell schnell, which has no guidance embedding, and members with more channels. Krea and Kontext
        have exactly dev's tensors: only the file's metadata, or else its name, tells them.
        """
        given, taken = (_side(self.tensors, names, side) for names, side in ((_OUT, 0), (_IN, 1)))
        if given and taken and given != taken:
            return MORE_CHANNELS.get(taken // given, f"a FLUX with {taken} channels for {given}")
        if "kontext" in self.called:
            return KONTEXT
        if not any(name in self.tensors for name in _GUIDANCE):
            return "schnell"
        return "krea" if "krea" in self.called else "dev"

    @property
    def called(self) -> str:
        """What metadata and names call the model, in small letters; for what tensors cannot tell."""
        return " ".join((*(self.metadata.get(key, "") for key in NAMING), *_named(self.path))).lower()

    @property
    def quantization(self) -> str:
        """The name of a quantization that cannot be read here, or ""."""
        names = "\n".join(self.tensors)
        for spoken, pattern in QUANTIZATIONS:
            if re.search(pattern, names, re.MULTILINE):
                return spoken
        marked = re.findall(r'"format": *"(\w+)"', self.metadata.get("_quantization_metadata", ""))
        if foreign := next((each for each in marked if not each.startswith("float8")), ""):
            return foreign
        for name, info in self.tensors.items():
            if name.endswith(FP8_SCALES):
                weight = self.tensors.get(f"{name.rpartition('.')[0]}.weight")
                if info.dtype in ("U8", "F8_E8M0"):
                    return "MXFP8"
                if weight is not None and math.prod(info.shape) not in (1, *weight.shape[:1]):
                    return "fp8 in blocks"
            elif name.endswith(".weight") and info.dtype in ("I8", "U8"):
                return "int8" if info.dtype == "I8" else "packed integers"
        return ""

    @property
    def precision(self) -> str:
        """The number format of most bytes, as people call it: bf16, fp8, Q4_K."""
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += info.bytes
        most = max(counts, key=lambda dtype: counts[dtype], default="")
        scaled = most in FP8 and any(name.endswith(FP8_SCALES) for name in self.tensors)
        return {"F8_E4M3": "fp8", "F8_E5M2": "fp8 (e5m2)"}.get(most, most.lower() if most[:1] in "BF" else most) + (
            ", scaled" if scaled else ""
        )

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """A tensor's shape; raises `WeightsError` if the file lacks it, or its number of dimensions is wrong or 0."""
        if name not in self.tensors:
            raise WeightsError("tensor_missing", hint="download_again", path=self.path, name=name)
        shape = self.tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise WeightsError(
                "tensor_dimensions",
                hint="download_again",
                path=self.path,
                name=name,
                shape=list(shape),
                dimensions=dimensions,
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers, counting from 0, the pattern's group matches in the tensors' names.

        Raises `WeightsError` if one is missing: an untrusted number sizes nothing.
        """
        matches = {int(match[1]): match[0] for name in self.tensors if (match := re.match(pattern, name))}
        last = max(matches, default=-1)
        if last + 1 != len(matches):
            raise WeightsError(
                "tensors_not_consecutive",
                hint="download_again",
                path=self.path,
                tensor=matches[last],
                count=len(matches),
            )
        return len(matches)


NAMING = ("modelspec.title", "general.name", "general.basename")  # metadata with a model's name
_IN, _OUT = ("img_in.weight", "x_embedder.weight"), ("final_layer.linear.weight", "proj_out.weight")
_GUIDANCE = ("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")


def variant_called(name: str) -> str:
    """Which FLUX.1 a file is by its name, as `Checkpoint.variant` has it; "" if the name tells none that USO takes."""
    name = name.lower()
    if any(other in name for other in ("kontext", "fill", "canny", "depth", "redux")):
        return ""
    return next((variant for variant in ("krea", "schnell", "dev") if variant in name), "") if "flux" in name else ""


def _side(tensors: dict[str, TensorInfo], names: tuple[str, ...], side: int) -> int:
    shape = next((tensors[name].shape for name in names if name in tensors), ())
    return shape[side] if len(shape) == 2 else 0


def _named(path: Path) -> tuple[str, ...]:
    """The names that may say which model it is: the file's, or those of a diffusers folder and its repository."""
    if path.suffix:
        return (path.name,)
    return (path.name, path.parent.name, *(part for part in path.parts if part.startswith("models--")))


def inspect(path: Path) -> Checkpoint:
    """Reads the header of a safetensors or GGUF file; otherwise raises `WeightsError` saying what the file is.

    Nothing in the file is trusted: sizes are checked against the file's own before anything is allocated.
    """
    return divided(path, *header_of(path))


def inspect_shards(path: Path, files: Sequence[Path]) -> tuple[Checkpoint, list[Checkpoint]]:
    """Several files of one folder as one checkpoint, and what each file holds of its main part.

    Raises `WeightsError` as `inspect`, and where two files hold a tensor of one name: they are no parts of one model.
    """
    headers = [header_of(file) for file in files]
    names: dict[str, TensorInfo] = {}
    places: dict[str, Path] = {}
    for file, (tensors, _) in zip(files, headers, strict=True):
        if twice := next((name for name in tensors if name in names), None):
            raise WeightsError("tensor_twice", path=path, name=twice, one=places[twice].name, other=file.name)
        names |= tensors
        places |= dict.fromkeys(tensors, file)
    whole = divided(path, names, headers[0][1])
    shards = []
    for file, (tensors, metadata) in zip(files, headers, strict=True):
        own = {id(info) for info in tensors.values()}
        held = {name: info for name, info in whole.tensors.items() if id(info) in own}
        shards.append(Checkpoint(file, whole.role, held, metadata))
    return whole, shards


Header = tuple[dict[str, TensorInfo], dict[str, str]]  # tensors by their full names, metadata


def header_of(path: Path, most: int = MAX_HEADER_BYTES) -> Header:
    """A file's header if it takes at most `most` bytes; raises `WeightsError` as `inspect` does."""
    if path.is_dir():
        raise WeightsError("folder_not_file", path=path)
    if not path.is_file():
        raise WeightsError("weights_missing", path=path)
    try:
        found = path.stat()
        return _header(path, found.st_size, found.st_mtime_ns, most)
    except OSError as error:
        raise WeightsError("file_unreadable", hint="check_permissions", path=path, reason=error.strerror) from None


@lru_cache(maxsize=16)  # one loading asks several times for the same header, which can be megabytes
def _header(path: Path, size: int, modified_ns: int, most: int) -> Header:
    try:
        with path.open("rb") as file:
            start = file.read(512)
            if start.startswith(gguf_header.MAGIC):
                return _read_gguf(path, file, size, most)
            _refuse_other_formats(path, start, size)
            header_bytes = int.from_bytes(start[:8], "little")
            if header_bytes > size - 8:
                raise WeightsError(
                    "header_cut_off", hint="download_again", path=path, header_bytes=header_bytes, size=size
                )
            if header_bytes > most:
                raise WeightsError("header_too_large", path=path, size=Bytes(header_bytes), most=Bytes(most))
            file.seek(8)
            header = json.loads(file.read(header_bytes))
        return _read_header(path, header, 8 + header_bytes, size)
    except (ValueError, RecursionError):
        raise WeightsError("header_unreadable", hint="download_again", path=path) from None


def divided(path: Path, tensors: dict[str, TensorInfo], metadata: dict[str, str]) -> Checkpoint:
    """The checkpoint of these tensors: a whole model, or parts by their prefixes."""
    if role := role_of(tensors, WHOLE):
        return Checkpoint(path, role, tensors, metadata)
    below: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        below.setdefault(prefix, {})[name.removeprefix(prefix)] = info
    parts: dict[str, Checkpoint] = {}
    for prefix in sorted(below, key=lambda each: ("", *PREFIXES).index(each)):
        if role := role_of(below[prefix], PARTS):
            parts.setdefault(role, Checkpoint(path, role, below[prefix], metadata))
    if not parts:
        return Checkpoint(path, "unknown", tensors, metadata)
    main, *others = sorted(parts.values(), key=lambda part: [row[0] for row in PARTS].index(part.role))
    return Checkpoint(path, main.role, main.tensors, metadata, tuple(others))


_LATER = re.compile(r"(?<=\.)(?:[2-9]|\d\d+)(?=\.)")  # numbers of blocks that say no more than those before them


def role_of(names: Iterable[str], rows: Rows) -> str:
    """The first row whose patterns all occur in the names, or ""."""
    lines = "\n".join(dict.fromkeys(_LATER.sub("2", "\n".join(names)).split("\n")))
    for role, patterns in rows:
        if all(re.search(pattern, lines, re.MULTILINE) for pattern in patterns):
            return role
    return ""


def expect(checkpoint: Checkpoint, *roles: str) -> Checkpoint:
    """The checkpoint's part that has one of the roles, if it can be read.

    Raises `WeightsError` saying what the file appears to be, which other FLUX.1, or how it is quantized.
    """
    part = next((part for part in (checkpoint, *checkpoint.others) if part.role in roles), None)
    if part is None:
        hint = "wanted_kind_of_two" if checkpoint.role in ("lora", "projector") else "wanted_kind"
        hint = BETTER_HINTS.get(checkpoint.role, hint) if roles == TRANSFORMERS else hint
        wanted = kind_of(roles[0])
        raise WeightsError("wrong_kind", hint=hint, path=checkpoint.path, wanted=wanted, found=checkpoint.kind)
    if problem := problem_of(part):
        raise problem
    return part


def problem_of(part: Checkpoint) -> WeightsError | None:
    """Why a part of the right kind cannot be used: another member of the family, a foreign quantization."""
    if part.role in TRANSFORMERS and part.variant not in USABLE_VARIANTS:
        hint = "flux_by_name" if part.variant == KONTEXT else "flux_relative"
        return WeightsError("flux_relative", hint=hint, path=part.path, found=part.variant)
    if part.role in VAES and re.search(r"\bsd3|stable-diffusion-3", part.called):  # FLUX.1's shapes, other numbers
        return WeightsError("vae_relative", path=part.path)
    if part.role == "SigLIP vision tower" and _is_siglip2(part):  # SigLIP's shapes, other numbers
        return WeightsError("siglip_relative", path=part.path)
    if part.quantization:
        return WeightsError("quantization_foreign", path=part.path, quantization=part.quantization)
    return None


def _is_siglip2(part: Checkpoint) -> bool:
    """Whether names say SigLIP 2, or the text half's vocabulary, which is Gemma's."""
    words = part.tensors.get("text_model.embeddings.token_embedding.weight")
    return "siglip2" in part.called or (words is not None and words.shape[:1] == (SIGLIP2_WORDS,))


def kind_of(role: str) -> Message:
    """Names a role of `ROLES` in a sentence."""
    return message(f"kind_{role.replace(' ', '_')}") if role in SPOKEN else message("kind_other", role=role)


def misfit(path: Path, what: str, missing: list[str], unknown: list[str], misshapen: list[str]) -> WeightsError:
    """An error that says how many tensors of a file do not fit, giving the first of each kind.

    `what` is the key of what they should fit.
    """
    parts = tuple(
        message(f"tensors_{kind}", count=len(names), first=names[0])
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    )
    return WeightsError("misfit", hint="right_file", path=path, what=message(what), parts=parts)


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= header_bytes <= MAX_HEADER_BYTES:
        return
    text = start.lstrip().lower()
    if size == 0:
        key, hint = "file_empty", "download_again"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        key, hint = "web_page", ""
    elif start.startswith(b"version https://git-lfs"):
        key, hint = "lfs_pointer", ""
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        key, hint = "pickle", ""
    elif text.startswith((b"{", b"[")):
        key, hint = "json_file", ""
    elif size < 8:
        key, hint = "cut_off_early", "download_again"
    else:
        key, hint = "no_safetensors_file", ""
    raise WeightsError(key, hint=hint, path=path, size=size)


def _cut_off(path: Path, name: str, end: int, size: int) -> WeightsError:
    return WeightsError("tensor_cut_off", hint="download_again", path=path, name=name, end=end, size=size)


def _read_gguf(path: Path, file: IO[bytes], size: int, most: int) -> Header:
    entries, metadata = gguf_header.read_header(file, min(size, most))
    tensors = {name: TensorInfo(*entry) for name, entry in entries.items()}
    end = 0
    for name, info in sorted(tensors.items(), key=lambda each: each[1].offset):
        if info.offset < end:  # two tensors in one place
            raise ValueError(name)
        end = info.offset + info.bytes
        if end > size:
            raise _cut_off(path, name, end, size)
    return tensors, metadata


def _read_header(path: Path, header: object, data_begin: int, size: int) -> Header:
    data_bytes = size - data_begin
    damaged = WeightsError("header_invalid", hint="download_again", path=path)
    if not isinstance(header, dict):
        raise damaged
    metadata = header.pop("__metadata__", None) or {}
    tensors: dict[str, TensorInfo] = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            right = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and isinstance(dtype, str)
        except (TypeError, KeyError, ValueError):
            raise damaged from None
        if not right or (dtype in DTYPE_BYTES and end - begin != math.prod(shape) * DTYPE_BYTES[dtype]):
            raise damaged
        spans.append((begin, end))
        if end > data_bytes:
            raise _cut_off(path, name, data_begin + end, size)
        tensors[name] = TensorInfo(dtype, shape, data_begin + begin, end - begin)
    edges = [0, *(edge for span in sorted(spans) for edge in span), data_bytes]
    if edges[::2] != edges[1::2]:  # the format allows no overlap, no gap and nothing after the last tensor
        raise damaged
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged
    return tensors, metadata
