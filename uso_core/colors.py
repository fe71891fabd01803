"""Makes RGB of an image's numbers as a viewer shows it: transparency, colour profiles, many bits. PIL in, PIL out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms, ImageOps

from uso_core.errors import RequestError

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}  # behind what is transparent
MAX_PROFILE_BYTES = 4 * 2**20
PROFILE_MODES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}  # by the profile's colour space
GREY_MODES = ("1", "L", "LA", "La")
WIDE_MODES = ("I", "F")  # 32-bit integers and floats
FULL_SCALES = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}  # the number that the brightest may have
LOWEST, HIGHEST = -0.25, 2.0  # of floats from 0 to 1: sharpened and rendered ones leave these, and are clipped
DARKEST = 1 / 8  # of a scale that an image's brightest must reach, else another scale may be meant
SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.01  # as a PNG notes it
SRGB_LEVELS = 2  # that a profile may move colours by and still be sRGB's
PROBE = [(level, level, level) for level in range(0, 256, 15)] + [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 180, 180)]
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and what the latter may say

Conversion = Callable[[Image.Image], Image.Image]


def as_shown(image: Image.Image, name: str, background: str = "white") -> Conversion:
    """What makes RGB of this image, or of any part of it, as viewers show it.

    Transparent pixels are composited onto the background, an embedded profile or a PNG's gamma is converted to sRGB, 12
    to 32 bits are scaled, and turned around where a TIFF says that 0 is white. An opaque RGB image without a profile,
    or with that of sRGB, keeps its pixels. A damaged profile is ignored, as viewers do. Raises `RequestError` for
    32-bit numbers that are not a grey scale.
    """
    level = _scale(image, name)
    tags = getattr(image, "tag_v2", {})
    negative = level is not None and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # PIL turns only 8 bits around
    mode = "L" if image.mode in GREY_MODES else "CMYK" if image.mode == "CMYK" else "RGB"
    transform = _to_srgb(image.info.get("icc_profile"), mode)
    curve = _from_gamma(image) if transform is None else None
    clear = image.info.get("transparency") if image.mode.startswith("I;16") else None  # a PNG's sample
    transparent = image.has_transparency_data and level is None

    def convert(part: Image.Image) -> Image.Image:
        alpha = None
        if level is not None:
            part = part.convert("I") if part.mode.startswith("I;16") else part
            if isinstance(clear, int):
                alpha = Image.fromarray(np.where(np.asarray(part) == clear, 0, 255).astype(np.uint8))
            part = part.point(lambda number: number * level).convert("L")
            part = ImageOps.invert(part) if negative else part
        alpha = part.convert("RGBA").getchannel("A") if transparent else alpha
        plain = part.convert("RGBA").convert("RGB") if alpha is not None and mode == "RGB" else part.convert(mode)
        shown = transform.apply(plain) if transform is not None else plain.convert("RGB")
        shown = shown.point(curve) if curve is not None else shown
        if alpha is None:
            return shown
        canvas = Image.new("RGB", shown.size, BACKGROUNDS[background])
        canvas.paste(shown, mask=alpha)
        return canvas

    return convert


def _scale(image: Image.Image, name: str) -> float | None:
    """The factor that makes 8 bits of an image of 12, 16 or 32; None if it has 8."""
    if image.mode.startswith("I;16"):  # PIL would clip them to white
        (bits,) = getattr(image, "tag_v2", {}).get(BITS, (16,))
        return 255 / (2**bits - 1)
    if image.mode not in WIDE_MODES:
        return None
    low, high = cast(tuple[float, float], image.getextrema())
    if image.mode == "F" and _has_nan(image):  # which extremes ignore, and 8 bits show as black
        raise RequestError("image_nan", hint="image_formats", name=name)
    if image.mode == "F" and low >= LOWEST and high <= HIGHEST:
        return 255.0
    if image.mode == "I" and image.format == "PPM":  # 16 bits, which PIL scales by the file's own bound
        return 255 / 65535
    for full in FULL_SCALES[image.mode]:
        if low >= 0 and full * DARKEST < high <= full:
            return 255 / full
    raise RequestError("image_number_range", hint="image_formats", name=name, low=f"{low:g}", high=f"{high:g}")


def _has_nan(image: Image.Image) -> bool:
    """Whether any of a float image's numbers is NaN: then their mean is."""
    return math.isnan(cast(float, image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))))


def _from_gamma(image: Image.Image) -> list[int] | None:
    """What a PNG's gAMA makes of each level, where neither a profile nor sRGB stands beside it; as browsers have it."""
    gamma = image.info.get("gamma")
    if image.format != "PNG" or not isinstance(gamma, float) or {"srgb", "icc_profile"} & image.info.keys():
        return None
    if not 0.1 <= gamma <= 10 or abs(gamma - SRGB_GAMMA) < GAMMA_TOLERANCE:
        return None
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return np.rint(255 * levels).astype(int).tolist() * 3


def _keeps_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a conversion to sRGB begins at sRGB, whatever the profile is called: linear ones are named after it."""
    probe = Image.new("RGB", (len(PROBE), 1))
    probe.putdata(PROBE)
    moved = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe).astype(int)
    return int(np.abs(moved).max()) <= SRGB_LEVELS


def _to_srgb(data: Any, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from an embedded profile for this mode; None if there is none, or nothing to convert."""
    if not isinstance(data, bytes) or not 0 < len(data) <= MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = PROFILE_MODES.get(source.profile.xcolor_space.strip())
        if space != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and _keeps_colours(transform) else transform
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
