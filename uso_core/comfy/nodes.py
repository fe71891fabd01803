"""ComfyUI's node classes as data: their inputs in order, and the role of each here.

Facts from Comfy-Org/ComfyUI (nodes.py, comfy_extras/nodes_flux.py, nodes_model_patch.py, nodes_custom_sampler.py,
nodes_images.py); names and order determine what a saved list of widget values means.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
CONTROL = "control_after_generate"  # the widget that the frontend adds after a seed; not an input of the node
CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize"})

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
    "PrimitiveString": "value:STRING -> STRING",
    "PrimitiveStringMultiline": "value:STRING -> STRING",
    "StringConcatenate": "string_a:STRING string_b:STRING delimiter:STRING -> STRING",
    "PrimitiveNode": "value:INT+ -> *",  # the frontend's own, of whatever type it feeds
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

    @property
    def widgets(self) -> tuple[str, ...]:
        """The names that a saved list of widget values belongs to."""
        return tuple(
            name for one in self.inputs if one.widget for name in ((one.name, CONTROL) if one.control else (one.name,))
        )


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

PASS_THROUGH = frozenset({"Reroute", "Reroute (rgthree)", "SetNode", "ReroutePrimitive|pysssss"})
GET_NODE, SET_NODE = "GetNode", "SetNode"  # KJNodes: a link by name, without a wire
SAVERS = ("SaveImage", "SaveImageWebsocket", "SaveAnimatedWEBP", "SaveAnimatedPNG", "PreviewImage")  # best first
SAMPLERS = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"})
QUIET_AFTER_SAMPLING = frozenset({"VAEDecode", "VAEDecodeTiled", "MaskToImage"})
LORAS = frozenset({"LoraLoaderModelOnly", "LoraLoader"})
USO_LORA_NAMES = ("uso", "dit_lora")  # ComfyUI's repackaged name, and the original one
ENCODERS = {"CLIPTextEncode": "text", "CLIPTextEncodeFlux": "t5xxl"}  # class: the input that holds the prompt
IMAGE_LOADERS = frozenset({"LoadImage", "LoadImageOutput", "LoadImageMask"})
LONG_SIDE = {  # classes that scale an image: the inputs of which the larger becomes the long side
    "ImageScaleToMaxDimension": ("largest_size",),
    "ResizeImagesByLongerEdge": ("longer_edge",),
    "ImageScale": ("width", "height"),
    "ImageResizeKJ": ("width", "height"),
    "ImageResizeKJv2": ("width", "height"),
    "ImageResize+": ("width", "height"),
}
OTHER_SCALERS = frozenset({"ImageScaleBy", "ImageScaleToTotalPixels", "FluxKontextImageScale"})
ONWARD = {  # the input along which a chain of this type continues through a node, likeliest name first
    "MODEL": ("model",),
    "CONDITIONING": ("conditioning", "positive", "conditioning_1", "conditioning_to", "cond"),
    "IMAGE": ("image", "images", "pixels", "image1", "image_1", "input_image"),
    "LATENT": ("latent", "samples", "latent_image", "samples1"),
    "SIGMAS": ("sigmas",),
    "CLIP_VISION_OUTPUT": ("clip_vision_output",),
}
CONSTANTS = ("value", "text", "string", "prompt", "seed", "int", "float", "number", "Text", "Number")  # what a node
# that only holds a value calls it
