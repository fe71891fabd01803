"""ComfyUI's node classes as its server describes them at /object_info (a125cd84, October 2025): facts to judge by.

One line a class: "input:TYPE ... -> OUTPUT ...". After a type come its range, [low..high], and "+" where the frontend
adds a control after it; (a|b) lists a combo's choices, with "..." where any file may stand; "?" ends an optional input.
Written down apart from `uso_core/comfy/nodes.py`, which is judged by it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

SEEDS = "[0..18446744073709551615]+"
SAMPLERS = "(euler|euler_ancestral|heun|dpm_2|lms|dpmpp_2m|ipndm|deis|res_multistep|ddim|uni_pc)"
SCHEDULES = "(simple|sgm_uniform|karras|exponential|ddim_uniform|beta|normal|linear_quadratic|kl_optimal)"
SCALERS = "(nearest-exact|bilinear|area|bicubic|lanczos)"
SIDES = "width:INT[16..16384] height:INT[16..16384]"
_TABLE = {
    "CheckpointLoaderSimple": "ckpt_name:(...) -> MODEL CLIP VAE",
    "UNETLoader": "unet_name:(...) weight_dtype:(default|fp8_e4m3fn|fp8_e4m3fn_fast|fp8_e5m2) -> MODEL",
    "DualCLIPLoader": "clip_name1:(...) clip_name2:(...) type:(sdxl|sd3|flux|hunyuan_video|hidream) "
    "device:(default|cpu)? -> CLIP",
    "VAELoader": "vae_name:(...) -> VAE",
    "LoraLoaderModelOnly": "model:MODEL lora_name:(...) strength_model:FLOAT[-100..100] -> MODEL",
    "ModelPatchLoader": "name:(...) -> MODEL_PATCH",
    "CLIPVisionLoader": "clip_name:(...) -> CLIP_VISION",
    "CLIPVisionEncode": "clip_vision:CLIP_VISION image:IMAGE crop:(center|none) -> CLIP_VISION_OUTPUT",
    "USOStyleReference": "model:MODEL model_patch:MODEL_PATCH clip_vision_output:CLIP_VISION_OUTPUT -> MODEL",
    "StyleModelLoader": "style_model_name:(...) -> STYLE_MODEL",
    "StyleModelApply": "conditioning:CONDITIONING style_model:STYLE_MODEL clip_vision_output:CLIP_VISION_OUTPUT "
    "strength:FLOAT[0..10] strength_type:(multiply|attn_bias) -> CONDITIONING",
    "EasyCache": "model:MODEL reuse_threshold:FLOAT[0..3] start_percent:FLOAT[0..1] end_percent:FLOAT[0..1] "
    "verbose:BOOLEAN -> MODEL",
    "ModelSamplingFlux": f"model:MODEL max_shift:FLOAT[0..100] base_shift:FLOAT[0..100] {SIDES} -> MODEL",
    "LoadImage": "image:(...)^ -> IMAGE MASK",
    "ImageScaleToMaxDimension": "image:IMAGE upscale_method:(area|lanczos|bilinear|nearest-exact|bicubic) "
    "largest_size:INT[0..16384] -> IMAGE",
    "ImageStitch": "image1:IMAGE direction:(right|down|left|up) match_image_size:BOOLEAN spacing_width:INT[0..1024] "
    "spacing_color:(white|black|red|green|blue) image2:IMAGE? -> IMAGE",
    "FluxKontextImageScale": "image:IMAGE -> IMAGE",
    "GetImageSize": "image:IMAGE -> width:INT height:INT batch_size:INT",
    "VAEEncode": "pixels:IMAGE vae:VAE -> LATENT",
    "VAEDecode": "samples:LATENT vae:VAE -> IMAGE",
    "T5TokenizerOptions": "clip:CLIP min_padding:INT[0..10000] min_length:INT[0..10000] -> CLIP",
    "CLIPTextEncode": "text:STRING* clip:CLIP -> CONDITIONING",
    "CLIPTextEncodeFlux": "clip:CLIP clip_l:STRING* t5xxl:STRING* guidance:FLOAT[0..100] -> CONDITIONING",
    "FluxGuidance": "conditioning:CONDITIONING guidance:FLOAT[0..100] -> CONDITIONING",
    "ConditioningZeroOut": "conditioning:CONDITIONING -> CONDITIONING",
    "ReferenceLatent": "conditioning:CONDITIONING latent:LATENT? -> CONDITIONING",
    "FluxKontextMultiReferenceLatentMethod": "conditioning:CONDITIONING "
    "reference_latents_method:(offset|index|uxo/uno) -> CONDITIONING",
    "EmptyLatentImage": f"{SIDES} batch_size:INT[1..4096] -> LATENT",
    "EmptySD3LatentImage": f"{SIDES} batch_size:INT[1..4096] -> LATENT",
    "KSampler": f"model:MODEL seed:INT{SEEDS} steps:INT[1..10000] cfg:FLOAT[0..100] sampler_name:{SAMPLERS} "
    f"scheduler:{SCHEDULES} positive:CONDITIONING negative:CONDITIONING latent_image:LATENT denoise:FLOAT[0..1] "
    "-> LATENT",
    "KSamplerAdvanced": f"model:MODEL add_noise:(enable|disable) noise_seed:INT{SEEDS} steps:INT[1..10000] "
    f"cfg:FLOAT[0..100] sampler_name:{SAMPLERS} scheduler:{SCHEDULES} positive:CONDITIONING negative:CONDITIONING "
    "latent_image:LATENT start_at_step:INT[0..10000] end_at_step:INT[0..10000] "
    "return_with_leftover_noise:(disable|enable) -> LATENT",
    "SamplerCustomAdvanced": "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT "
    "-> output:LATENT denoised_output:LATENT",
    "RandomNoise": f"noise_seed:INT{SEEDS} -> NOISE",
    "BasicGuider": "model:MODEL conditioning:CONDITIONING -> GUIDER",
    "KSamplerSelect": f"sampler_name:{SAMPLERS} -> SAMPLER",
    "BasicScheduler": f"model:MODEL scheduler:{SCHEDULES} steps:INT[1..10000] denoise:FLOAT[0..1] -> SIGMAS",
    "SaveImage": "images:IMAGE filename_prefix:STRING ->",
    "PreviewImage": "images:IMAGE ->",
    "PrimitiveInt": "value:INT[-9223372036854775807..9223372036854775807]+ -> INT",
    "PrimitiveStringMultiline": "value:STRING -> STRING",
    "StringConcatenate": "string_a:STRING string_b:STRING delimiter:STRING -> STRING",
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_INPUT = re.compile(
    r"(?P<name>\w+):(?P<type>[A-Z_]+)?(\((?P<choices>[^)]*)\))?(\[(?P<low>[^.\]]+)\.\.(?P<high>[^\]]+)\])?"
    r"(?P<marks>[+*^?]*)"
)


class Input(NamedTuple):
    """An input of a class; `choices` are empty if any file may stand there. `marks`: see above; "*" a dynamic text."""

    type: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    marks: str


class Definition(NamedTuple):
    """A class: its inputs by name, in the server's order, and the types of its outputs."""

    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]


def _definition(line: str) -> Definition:
    left, _, right = line.partition("->")
    inputs = {}
    for word in left.split():
        match = _INPUT.fullmatch(word)
        assert match, word
        choices = tuple(filter(lambda each: each != "...", (match["choices"] or "").split("|")))
        low, high = (None if match[end] is None else float(match[end]) for end in ("low", "high"))
        inputs[match["name"]] = Input(match["type"] or "COMBO", low, high, tuple(filter(None, choices)), match["marks"])
    outputs = [word.rpartition(":") for word in right.split()]
    names = tuple(name or kind for name, _, kind in outputs)
    return Definition(inputs, tuple(kind for *_, kind in outputs), names)


DEFINITIONS = {kind: _definition(line) for kind, line in _TABLE.items()}


def object_info(files: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table as ComfyUI's server tells it; every combo of files offers `files`."""
    return {kind: _described(kind, one, files) for kind, one in DEFINITIONS.items()}


def _described(kind: str, one: Definition, files: tuple[str, ...]) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for name, each in one.inputs.items():
        more: dict[str, Any] = {}
        if each.low is not None and each.high is not None:
            more |= {"min": _number(each, each.low), "max": _number(each, each.high)}
        if each.type == "FLOAT":
            more["step"] = 0.01
        more |= {"control_after_generate": True} if "+" in each.marks else {}
        more |= {"image_upload": True} if "^" in each.marks else {}
        if each.type == "STRING":
            more |= {"multiline": True, "dynamicPrompts": "*" in each.marks}
        kind_of = [*(each.choices or files)] if each.type == "COMBO" else each.type
        parts["optional" if "?" in each.marks else "required"][name] = [kind_of, more]
    return {
        "input": parts,
        "input_order": {part: list(names) for part, names in parts.items()},
        "output": list(one.outputs),
        "output_name": list(one.output_names),
        "output_is_list": [False] * len(one.outputs),
        "output_node": not one.outputs,
        "name": kind,
        "display_name": kind,
        "description": "",
        "category": "test",
        "python_module": "nodes",
    }


def _number(each: Input, value: float) -> float:
    return int(value) if each.type == "INT" else value
