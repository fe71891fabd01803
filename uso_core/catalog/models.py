"""Models and weight files as tables: each model's parts, the source of its files, its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uso_core.errors import SettingsError
from uso_core.messages import Message, message

TOKENIZER_ROLES = ("clip_tokenizer", "t5_tokenizer")  # needed beside encoders that are single files
ROLES = ("transformer", "lora", "projector", "vae", "t5", "clip", "siglip")


@dataclass(frozen=True)
class WeightFile:
    """One file or folder of weights that a model needs.

    `setting` is the field of `Settings` that may point elsewhere; `local` is where the downloader puts it, relative to
    the weights folder; `repo` and `patterns` say where it comes from (several patterns make a folder); `bytes` is about
    the download size, exact if `sha256` is given.
    """

    role: str
    setting: str
    local: str
    repo: str
    patterns: tuple[str, ...]
    bytes: int
    licence: str
    sha256: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Turbo:
    """A step-distilled LoRA: good images in few steps, at its strength and guidance."""

    file: WeightFile
    steps: int
    strength: float
    guidance: float

    @property
    def name(self) -> str:
        """The name of the LoRA in requests."""
        folder = Path(self.file.local).parent.name
        return folder if folder != "Hyper-SD" else Path(self.file.local).stem

    @property
    def values(self) -> dict[str, float | str]:
        """What of a request it sets: distilled steps are Euler's."""
        return {"steps": self.steps, "guidance": self.guidance, "sampler": "euler"}


@dataclass(frozen=True)
class Model:
    """One available model: its weight files and the sizes, steps and guidance that suit it."""

    name: str
    title: str
    files: tuple[WeightFile, ...] = ()
    folder: str | None = None  # an embedded model: the original layout in one folder under weights/
    size: int = 1024  # default width and height, pixels
    keeps_height: bool = False  # wide formats are `size` high; otherwise all have about the area of the square
    sides: tuple[int, int] = (256, 2048)  # smallest and largest side, pixels
    steps: int = 25
    sampler: str = "euler"  # what suits a distilled model too; see `request.SAMPLERS`
    guidance: float = 4.0
    guidances: tuple[float, float] = (0.0, 100.0)  # the range it was trained for; beyond it, it makes noise
    content_size: int = 512
    guided: bool = True  # whether guidance has an effect
    variant: str = "dev"  # of FLUX.1
    quantize: str = ""  # "fp8": the transformer's large matrices in one byte per number
    note: Message | None = None
    turbos: tuple[Turbo, ...] = ()  # the first that is on this disk is used


DEV, SCHNELL, KREA = (f"black-forest-labs/FLUX.1-{name}" for name in ("dev", "schnell", "Krea-dev"))
NON_COMMERCIAL, APACHE = "FLUX.1 [dev] Non-Commercial", "Apache 2.0"


def _transformer(setting: str, repo: str, name: str, size: int, licence: str, sha256: str | None = None) -> WeightFile:
    folder = repo.split("/")[1]
    return WeightFile("transformer", setting, f"{folder}/{name}", repo, (name,), size, licence, sha256, gated=True)


DEV_SHA256 = "4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7"
SCHNELL_SHA256 = "9403429e0052277ac2a87ad800adece5481eecefd9ed334e1f348723621d2a0a"
AE_SHA256 = "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38"

FLUX_DEV = _transformer("flux_dev", DEV, "flux1-dev.safetensors", 23_802_932_552, NON_COMMERCIAL, DEV_SHA256)
FLUX_DEV_FP8 = _transformer("flux_dev_fp8", DEV, "flux1-dev.safetensors", 23_802_932_552, NON_COMMERCIAL, DEV_SHA256)
FLUX_SCHNELL = _transformer(
    "flux_schnell", SCHNELL, "flux1-schnell.safetensors", 23_782_506_688, APACHE, SCHNELL_SHA256
)
FLUX_KREA_DEV = _transformer("flux_krea_dev", KREA, "flux1-krea-dev.safetensors", 23_802_932_552, NON_COMMERCIAL)

SHARED = (
    WeightFile("lora", "lora", "USO/uso_flux_v1.0/dit_lora.safetensors", "bytedance-research/USO",
               ("uso_flux_v1.0/dit_lora.safetensors",), 478_000_000, APACHE),
    WeightFile("projector", "projection_model", "USO/uso_flux_v1.0/projector.safetensors", "bytedance-research/USO",
               ("uso_flux_v1.0/projector.safetensors",), 21_700_000, APACHE),
    WeightFile("vae", "ae", "FLUX.1-dev/ae.safetensors", DEV, ("ae.safetensors",), 335_304_388, NON_COMMERCIAL,
               AE_SHA256, gated=True),
    WeightFile("t5", "t5", "FLUX.1-dev/text_encoder_2", DEV, ("text_encoder_2/*", "tokenizer_2/*"), 9_527_908_502,
               APACHE, gated=True),
    WeightFile("clip", "clip", "FLUX.1-dev/text_encoder", DEV, ("text_encoder/*", "tokenizer/*"), 247_730_839,
               "MIT", gated=True),
    WeightFile("siglip", "siglip_path", "siglip-so400m-patch14-384", "google/siglip-so400m-patch14-384",
               ("config.json", "preprocessor_config.json", "model.safetensors"), 3_511_951_568, APACHE),
)  # fmt: skip

# Small, and not gated. CLIP's and T5's tokenizers are the same for every model that uses these encoders.
TOKENIZERS = (
    WeightFile("clip_tokenizer", "clip", "clip-vit-large-patch14", "openai/clip-vit-large-patch14",
               ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"), 1_500_000, "MIT"),
    WeightFile("t5_tokenizer", "t5", "t5-v1_1-xxl", "google/t5-v1_1-xxl", ("spiece.model", "*.json"), 800_000, APACHE),
)  # fmt: skip

TURBOS = (
    Turbo(WeightFile("turbo", "turbo_lora", "FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors",
                     "alimama-creative/FLUX.1-Turbo-Alpha", ("diffusion_pytorch_model.safetensors",), 694_000_000,
                     NON_COMMERCIAL), steps=8, strength=1.0, guidance=3.5),
    Turbo(WeightFile("hyper", "turbo_lora", "Hyper-SD/Hyper-FLUX.1-dev-8steps-lora.safetensors", "ByteDance/Hyper-SD",
                     ("Hyper-FLUX.1-dev-8steps-lora.safetensors",), 1_390_000_000, NON_COMMERCIAL),
          steps=8, strength=0.125, guidance=3.5),
)  # fmt: skip

MODELS = {
    model.name: model
    for model in (
        Model("flux-dev", "USO on FLUX.1-dev", (FLUX_DEV, *SHARED), turbos=TURBOS),
        Model("flux-dev-fp8", "USO on FLUX.1-dev, fp8", (FLUX_DEV_FP8, *SHARED), quantize="fp8", turbos=TURBOS),
        Model("flux-schnell", "USO on FLUX.1-schnell", (FLUX_SCHNELL, *SHARED), steps=4, guidance=0.0,
              guided=False, variant="schnell", note=message("note_schnell")),
        Model("flux-krea-dev", "USO on FLUX.1-Krea-dev", (FLUX_KREA_DEV, *SHARED), variant="krea"),
        Model("uso-tiny", "uso-tiny, embedded", folder="uso-tiny", size=128, keeps_height=True,
              sides=(64, 256), steps=8, sampler="ab2", guidances=(1.0, 7.0), content_size=128,
              note=message("note_uso_tiny")),
    )
}  # fmt: skip

EMBEDDED = "uso-tiny"
EMBEDDED_FILES = {  # the original layout, as in the folder of an embedded model
    "transformer": "flux.safetensors",
    "lora": "dit_lora.safetensors",
    "projector": "projector.safetensors",
    "vae": "ae.safetensors",
    "t5": "t5",
    "clip": "clip",
    "siglip": "siglip",
}


def get_model(name: str) -> Model:
    """The model of this name; raises `SettingsError` listing the existing ones."""
    if name not in MODELS:
        raise SettingsError("no_such_model", hint="choose_one_of", name=name, choices=", ".join(MODELS))
    return MODELS[name]
