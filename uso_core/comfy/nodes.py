"""ComfyUI's node classes as data: their inputs in order, and the role of each here.

Facts from Comfy-Org/ComfyUI (nodes.py, comfy_extras/nodes_flux.py, nodes_model_patch.py, nodes_custom_sampler.py,
nodes_images.py, nodes_cond.py, nodes_logic.py) and from the packs that the classes name; names and order determine what
a saved list of widget values means. What nodes that hold or compute a value give is in `computed.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "ANY"})  # ANY: a widget of whatever type
CONTROL = "control_after_generate"  # the widget that the frontend adds after a seed; not an input of the node
CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize"})


def _numbered(inputs: str, count: int, outputs: str) -> str:
    return f"{' '.join(inputs.format(number) for number in range(1, count + 1))} {outputs}"


# class: "input:TYPE ... -> OUTPUT ...". An input of a widget type is a widget; "+" marks one followed by CONTROL,
# "=word" one that only the frontend has. An output is named after its type unless stated otherwise.
_SIGNATURES = {
    "CheckpointLoaderSimple": "ckpt_name:COMBO -> MODEL CLIP VAE",
    "UNETLoader": "unet_name:COMBO weight_dtype:COMBO -> MODEL",
    "DualCLIPLoader": "clip_name1:COMBO clip_name2:COMBO type:COMBO device:COMBO -> CLIP",
    "LoraLoaderModelOnly": "model:MODEL lora_name:COMBO strength_model:FLOAT -> MODEL",
    "LoraLoader": "model:MODEL clip:CLIP lora_name:COMBO strength_model:FLOAT strength_clip:FLOAT -> MODEL CLIP",
    "ModelPatchLoader": "name:COMBO -> MODEL_PATCH",
    "CLIPVisionLoader": "clip_name:COMBO -> CLIP_VISION",
    "CLIPVisionEncode": "clip_vision:CLIP_VISION image:IMAGE crop:COMBO -> CLIP_VISION_OUTPUT",
    "USOStyleReference": "model:MODEL model_patch:MODEL_PATCH clip_vision_output:CLIP_VISION_OUTPUT -> MODEL",
    "LazyCache": "model:MODEL reuse_threshold:FLOAT start_percent:FLOAT end_percent:FLOAT verbose:BOOLEAN -> MODEL",
    "EasyCache": "model:MODEL reuse_threshold:FLOAT start_percent:FLOAT end_percent:FLOAT verbose:BOOLEAN -> MODEL",
    "ModelSamplingFlux": "model:MODEL max_shift:FLOAT base_shift:FLOAT width:INT height:INT -> MODEL",
    "LoadImage": "image:COMBO upload:COMBO=image -> IMAGE MASK",
    "LoadImageOutput": "image:COMBO -> IMAGE MASK",
    "ImageScaleToMaxDimension": "image:IMAGE upscale_method:COMBO largest_size:INT -> IMAGE",
    "ImageScale": "image:IMAGE upscale_method:COMBO width:INT height:INT crop:COMBO -> IMAGE",
    "ImageScaleBy": "image:IMAGE upscale_method:COMBO scale_by:FLOAT -> IMAGE",
    "ImageScaleToTotalPixels": "image:IMAGE upscale_method:COMBO megapixels:FLOAT -> IMAGE",
    "ResizeImagesByLongerEdge": "images:IMAGE longer_edge:INT -> IMAGE",
    "FluxKontextImageScale": "image:IMAGE -> IMAGE",
    "GetImageSize": "image:IMAGE -> width:INT height:INT batch_size:INT",
    "VAEEncode": "pixels:IMAGE vae:VAE -> LATENT",
    "ReferenceLatent": "conditioning:CONDITIONING latent:LATENT -> CONDITIONING",
    "FluxKontextMultiReferenceLatentMethod": (
        "conditioning:CONDITIONING reference_latents_method:COMBO -> CONDITIONING"
    ),
    "FluxGuidance": "conditioning:CONDITIONING guidance:FLOAT -> CONDITIONING",
    "ConditioningZeroOut": "conditioning:CONDITIONING -> CONDITIONING",
    "T5TokenizerOptions": "clip:CLIP min_padding:INT min_length:INT -> CLIP",
    "CLIPTextEncode": "clip:CLIP text:STRING -> CONDITIONING",
    "CLIPTextEncodeFlux": "clip:CLIP clip_l:STRING t5xxl:STRING guidance:FLOAT -> CONDITIONING",
    "EmptyLatentImage": "width:INT height:INT batch_size:INT -> LATENT",
    "EmptySD3LatentImage": "width:INT height:INT batch_size:INT -> LATENT",
    "LatentUpscale": "samples:LATENT upscale_method:COMBO width:INT height:INT crop:COMBO -> LATENT",
    "RepeatLatentBatch": "samples:LATENT amount:INT -> LATENT",
    "KSampler": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "seed:INT+ steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO denoise:FLOAT -> LATENT"
    ),
    "KSamplerAdvanced": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT add_noise:COMBO noise_seed:INT+ "
        "steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO start_at_step:INT end_at_step:INT "
        "return_with_leftover_noise:COMBO -> LATENT"
    ),
    "SamplerCustom": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT "
        "add_noise:BOOLEAN noise_seed:INT+ cfg:FLOAT -> output:LATENT denoised_output:LATENT"
    ),
    "SamplerCustomAdvanced": (
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT "
        "-> output:LATENT denoised_output:LATENT"
    ),
    "KSampler (Efficient)": (
        "model:MODEL seed:INT+ steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO denoise:FLOAT "
        "preview_method:COMBO vae_decode:COMBO positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "-> MODEL CONDITIONING+:CONDITIONING CONDITIONING-:CONDITIONING LATENT VAE IMAGE"
    ),
    "KSampler Adv. (Efficient)": (
        "model:MODEL add_noise:COMBO noise_seed:INT+ steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO "
        "start_at_step:INT end_at_step:INT return_with_leftover_noise:COMBO preview_method:COMBO vae_decode:COMBO "
        "positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "-> MODEL CONDITIONING+:CONDITIONING CONDITIONING-:CONDITIONING LATENT VAE IMAGE"
    ),
    "Efficient Loader": (
        "ckpt_name:COMBO vae_name:COMBO clip_skip:INT lora_name:COMBO lora_model_strength:FLOAT "
        "lora_clip_strength:FLOAT positive:STRING negative:STRING token_normalization:COMBO "
        "weight_interpretation:COMBO empty_latent_width:INT empty_latent_height:INT batch_size:INT "
        "lora_stack:LORA_STACK -> MODEL CONDITIONING+:CONDITIONING CONDITIONING-:CONDITIONING LATENT VAE CLIP"
    ),
    "KSampler //Inspire": (
        "model:MODEL seed:INT+ steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO denoise:FLOAT noise_mode:COMBO "
        "batch_seed_mode:COMBO variation_seed:INT variation_strength:FLOAT "
        "positive:CONDITIONING negative:CONDITIONING latent_image:LATENT -> LATENT"
    ),
    "KSamplerAdvanced //Inspire": (
        "model:MODEL add_noise:BOOLEAN noise_seed:INT+ steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO "
        "start_at_step:INT end_at_step:INT noise_mode:COMBO return_with_leftover_noise:BOOLEAN batch_seed_mode:COMBO "
        "variation_seed:INT variation_strength:FLOAT positive:CONDITIONING negative:CONDITIONING latent_image:LATENT "
        "-> LATENT"
    ),
    "XlabsSampler": (
        "model:MODEL conditioning:CONDITIONING neg_conditioning:CONDITIONING noise_seed:INT+ steps:INT "
        "timestep_to_start_cfg:INT true_gs:FLOAT image_to_image_strength:FLOAT denoise_strength:FLOAT "
        "latent_image:LATENT controlnet_condition:ControlNetCondition -> latent:LATENT"
    ),
    "SharkSampler_Beta": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT "
        "scheduler:COMBO steps:INT steps_to_run:INT denoise:FLOAT cfg:FLOAT seed:INT+ sampler_mode:COMBO "
        "-> output:LATENT denoised:LATENT"
    ),
    "ClownsharKSampler_Beta": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING sigmas:SIGMAS latent_image:LATENT eta:FLOAT "
        "sampler_name:COMBO scheduler:COMBO steps:INT steps_to_run:INT denoise:FLOAT cfg:FLOAT seed:INT+ "
        "sampler_mode:COMBO bongmath:BOOLEAN -> output:LATENT denoised:LATENT"
    ),
    "FluxSamplerParams+": (
        "model:MODEL conditioning:CONDITIONING latent_image:LATENT seed:STRING sampler:STRING scheduler:STRING "
        "steps:STRING guidance:STRING max_shift:STRING base_shift:STRING denoise:STRING loras:LORA_PARAMS "
        "-> latent:LATENT params:SAMPLER_PARAMS"
    ),
    "RandomNoise": "noise_seed:INT+ -> NOISE",
    "BasicGuider": "model:MODEL conditioning:CONDITIONING -> GUIDER",
    "CFGGuider": "model:MODEL positive:CONDITIONING negative:CONDITIONING cfg:FLOAT -> GUIDER",
    "KSamplerSelect": "sampler_name:COMBO -> SAMPLER",
    "BasicScheduler": "model:MODEL scheduler:COMBO steps:INT denoise:FLOAT -> SIGMAS",
    "VAEDecode": "samples:LATENT vae:VAE -> IMAGE",
    "SaveImage": "images:IMAGE filename_prefix:STRING ->",
    "PreviewImage": "images:IMAGE ->",
    "PrimitiveInt": "value:INT+ -> INT",
    "PrimitiveFloat": "value:FLOAT -> FLOAT",
    "PrimitiveBoolean": "value:BOOLEAN -> BOOLEAN",
    "PrimitiveString": "value:STRING -> STRING",
    "PrimitiveStringMultiline": "value:STRING -> STRING",
    "StringConcatenate": "string_a:STRING string_b:STRING delimiter:STRING -> STRING",
    "StringReplace": "string:STRING find:STRING replace:STRING -> STRING",
    "StringSubstring": "string:STRING start:INT end:INT -> STRING",
    "StringTrim": "string:STRING mode:COMBO -> STRING",
    "PrimitiveNode": "value:ANY+ -> *",  # the frontend's own, of whatever type it feeds
    "GetNode": "name:STRING -> *",
    "SetNode": "name:STRING -> *",
    "easy getNode": "name:STRING -> *",
    "easy setNode": "name:STRING -> *",
    "ComfySwitchNode": "switch:BOOLEAN -> *",
    "ImpactSwitch": "select:INT sel_mode:BOOLEAN -> *",
    "ImpactWildcardProcessor": "wildcard_text:STRING populated_text:STRING mode:COMBO seed:INT+ -> STRING",
    "Text Find and Replace": "text:STRING find:STRING replace:STRING -> STRING",
    "JoinStrings": "string1:STRING string2:STRING delimiter:STRING -> STRING",
    "Seed (rgthree)": "seed:INT -> INT",
    "NunchakuFluxLoraLoader": "model:MODEL lora_name:COMBO lora_strength:FLOAT -> MODEL",
    "CR LoRA Stack": _numbered(
        "switch_{0}:COMBO lora_name_{0}:COMBO model_weight_{0}:FLOAT clip_weight_{0}:FLOAT", 3, "-> LORA_STACK"
    ),
    "LoRA Stacker": "input_mode:COMBO lora_count:INT "
    + _numbered("lora_name_{0}:COMBO lora_wt_{0}:FLOAT model_str_{0}:FLOAT clip_str_{0}:FLOAT", 49, "-> LORA_STACK"),
    "Lora Loader Stack (rgthree)": _numbered("lora_0{0}:COMBO strength_0{0}:FLOAT", 4, "-> MODEL CLIP"),
    "easy loraStack": "toggle:BOOLEAN mode:COMBO num_loras:INT "
    + _numbered(
        "lora_{0}_name:COMBO lora_{0}_strength:FLOAT lora_{0}_model_strength:FLOAT lora_{0}_clip_strength:FLOAT",
        10,
        "-> LORA_STACK",
    ),
}


@dataclass(frozen=True)
class Input:
    """One input of a node class. `extra` is a widget that only the frontend has, with its constant value."""

    name: str
    type: str
    control: bool = False
    extra: str | None = None

    @property
    def widget(self) -> bool:
        return self.type in WIDGET_TYPES


@dataclass(frozen=True)
class Signature:
    """A node class: its inputs and its outputs (name, type), in ComfyUI's order."""

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]


def _signature(text: str) -> Signature:
    left, _, right = text.partition("->")
    inputs = []
    for word in left.split():
        name, _, kind = word.partition(":")
        kind, _, extra = kind.partition("=")
        inputs.append(Input(name, kind.rstrip("+"), kind.endswith("+"), extra or None))
    outputs = [(name, kind or name) for name, _, kind in (word.partition(":") for word in right.split())]
    return Signature(tuple(inputs), tuple(outputs))


SIGNATURES = {kind: _signature(text) for kind, text in _SIGNATURES.items()}

PASS_THROUGH = frozenset({
    "Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss", "SetNode", "easy setNode", "ShowText|pysssss",
    "easy showAnything", "PreviewAny",
})  # fmt: skip
CONTEXTS = frozenset({"Context (rgthree)", "Context Big (rgthree)"})  # bundle inputs; each output repeats its input
CONTEXT = ("base_ctx", "model", "clip", "vae", "positive", "negative", "latent", "images", "seed")  # by output
GET_NODES, SET_NODES = ("GetNode", "easy getNode"), ("SetNode", "easy setNode")  # a link by name, without a wire
BROADCASTS = frozenset({"Anything Everywhere", "Anything Everywhere3", "Prompts Everywhere"})  # to inputs left open
PICKY_BROADCASTS = frozenset({"Anything Everywhere?", "Seed Everywhere", "GlobalSeed //Inspire"})  # by a pattern


@dataclass(frozen=True)
class Switch:
    """A class that passes one of its inputs on to output 0: `selector` names the input that chooses.

    `branches` maps its values to inputs, or is a pattern for its number. Without a selector the first one connected is
    passed on.
    """

    selector: str = ""
    branches: dict[object, str] | str = ""

    def branch(self, value: object) -> str | None:
        """The input that a selector's value chooses; None if it is none that the class knows."""
        if isinstance(self.branches, str):
            whole = isinstance(value, int) and not isinstance(value, bool)
            return self.branches.format(value) if whole else None
        return self.branches.get(value) if isinstance(value, bool | int | str) else None


def _yes_no(selector: str, yes: str = "on_true", no: str = "on_false") -> Switch:
    return Switch(selector, {True: yes, False: no})


SWITCHES = {
    "ComfySwitchNode": _yes_no("switch"),
    "LazySwitchKJ": _yes_no("switch"),
    "easy ifElse": _yes_no("boolean"),
    "Switch any [Crystools]": _yes_no("boolean"),
    "ImpactConditionalBranch": _yes_no("cond", "tt_value", "ff_value"),
    "ImpactSwitch": Switch("select", "input{}"),
    "LatentSwitch": Switch("select", "input{}"),
    "easy anythingIndexSwitch": Switch("index", "value{}"),
    **{f"CR {kind} Input Switch": Switch("Input", f"{kind.lower()}{{}}")
       for kind in ("Text", "Image", "Latent", "Conditioning", "Model")},
    "Any Switch (rgthree)": Switch(),
}  # fmt: skip

SAVERS = ("SaveImage", "SaveImageWebsocket", "SaveAnimatedWEBP", "SaveAnimatedPNG", "PreviewImage")  # best first
SAMPLERS = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"})
LATENTS = ("latent_image", "latent")  # a sampler's input for what it starts from
LISTING = {  # samplers that go through lists, written as texts, and patch the model's shift: by input, its default
    "FluxSamplerParams+": {
        "seed": "?", "sampler": "ipndm", "scheduler": "simple", "steps": "20", "guidance": "3.5", "max_shift": "1.15",
        "base_shift": "0.5", "denoise": "1.0",
    },
}  # fmt: skip
QUIET_AFTER_SAMPLING = frozenset({"VAEDecode", "VAEDecodeTiled", "MaskToImage"})
HIGHER_ORDER = frozenset({  # samplers that add no noise: with many steps they come to what Euler comes to
    "heun", "heunpp2", "dpm_2", "dpm_fast", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis", "res_multistep", "uni_pc",
    "uni_pc_bh2",
})  # fmt: skip
EXTRAS = {  # inputs of samplers that mean nothing here: the value at which they do nothing
    "denoise_strength": 1, "image_to_image_strength": 0, "true_gs": 1, "variation_strength": 0, "eta": 0,
    "sampler_mode": "standard",
}  # fmt: skip
CACHES = frozenset({"EasyCache", "LazyCache", "TeaCache", "ApplyFBCacheOnModel"})  # skip steps, as `fast` does here
ENCODERS = {  # class: by output, the input that holds the prompt
    "CLIPTextEncode": {0: "text"},
    "CLIPTextEncodeFlux": {0: "t5xxl"},
    "BNK_CLIPTextEncodeAdvanced": {0: "text"},
    "smZ CLIPTextEncode": {0: "text"},
    "ImpactWildcardEncode": {2: "populated_text"},
    "Efficient Loader": {1: "positive", 2: "negative"},
}
DRAWS = frozenset({"ImpactWildcardProcessor", "ImpactWildcardEncode"})  # hold the text that they last drew
IMAGE_LOADERS = frozenset({"LoadImage", "LoadImageOutput", "LoadImageMask", "Image Load", "VHS_LoadImagePath"})
LONG_SIDE = {  # classes that scale an image: the inputs of which the larger becomes the long side
    "ImageScaleToMaxDimension": ("largest_size",),
    "ResizeImagesByLongerEdge": ("longer_edge",),
    "ImageScale": ("width", "height"),
    "ImageResizeKJ": ("width", "height"),
    "ImageResizeKJv2": ("width", "height"),
    "ImageResize+": ("width", "height"),
}
_KEPT: dict[bool | str, str] = {
    False: "stretched", "stretch": "stretched", "crop": "cropped", True: "within", "resize": "within",
    "total_pixels": "area", **dict.fromkeys(("pad", "pad_edge", "pad_edge_pixel", "pillarbox_blur"), "padded"),
}  # fmt: skip
# How scalers bring an image to two sides: the input that says it, and what each of its values means.
FITTING: dict[str, tuple[str, dict[bool | str, str]]] = {
    "ImageScale": ("crop", {"disabled": "stretched", "center": "cropped"}),
    "ImageResizeKJ": ("keep_proportion", _KEPT),
    "ImageResizeKJv2": ("keep_proportion", _KEPT),
    "ImageResize+": (
        "method",
        {"stretch": "stretched", "fill / crop": "cropped", "pad": "padded", "keep proportion": "within"},
    ),
}
RESHAPED = ("stretched", "cropped", "padded")  # those that change an image's shape
OTHER_SCALERS = frozenset({"ImageScaleBy", "ImageScaleToTotalPixels", "FluxKontextImageScale", "ResizeImageMaskNode"})
SIZES = (("width", "height"), ("empty_latent_width", "empty_latent_height"))  # what an empty latent calls its sides
SIZED = frozenset({"EmptyLatentImage", "EmptySD3LatentImage", "LatentUpscale", "Efficient Loader"})
PLAIN_LATENT = frozenset({"width", "height", "batch_size"})  # any class with no other input makes that size
ONWARD = {  # the input along which a chain of this type continues through a node, likeliest name first
    "MODEL": ("model",),
    "CONDITIONING": ("conditioning", "positive", "conditioning_1", "conditioning_to", "cond"),
    "IMAGE": ("image", "images", "pixels", "image1", "image_1", "input_image", "input"),
    "LATENT": ("latent", "samples", "latent_image", "samples1"),
    "SIGMAS": ("sigmas",),
    "CLIP_VISION_OUTPUT": ("clip_vision_output",),
    "LORA_STACK": ("lora_stack", "optional_lora_stack"),
}
