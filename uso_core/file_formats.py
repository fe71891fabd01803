"""What a file is that holds no image this program reads, so that its owner knows what to export."""

from __future__ import annotations

import re
from typing import Any

CAMERA_RAW = "camera raw"
_ISO_MEDIA = re.compile(rb"....ftyp(crx )?", re.DOTALL)  # what MP4, MOV and Canon's CR3 begin with
_MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<\?xml|<!--|<!doctype|<svg|<html)", re.IGNORECASE)
_SIGNATURES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\0\0\1\0", "ICO"),
    (b"\x1aE\xdf\xa3", "WebM"),
    (b"PK\x03\x04", "ZIP"),
    (b"FUJIFILMCCD-RAW", CAMERA_RAW),
    (b"IIRO", CAMERA_RAW),
    (b"IIRS", CAMERA_RAW),
    (b"IIU\0", CAMERA_RAW),
)
_SUBFILE, _REDUCED, _DNG_VERSION = 254, 1, 50706  # TIFF's tags, and the bit that says: a smaller copy of another image
_CR2 = b"CR\x02"  # at byte 8


def name_format(data: bytes) -> str | None:
    """What the field calls a file with these bytes; None where they tell nothing."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if media := _ISO_MEDIA.match(data):
        return CAMERA_RAW if media[1] else "MP4"
    if _MARKUP.match(data):
        return "SVG" if b"<svg" in data[:4096].lower() else "HTML"
    return None


def is_camera_raw(data: bytes, tags: Any) -> bool:
    """Whether a TIFF is a camera's raw photo: its first image is a thumbnail, which would pass for the photo.

    tags: the first directory's.
    """
    return _DNG_VERSION in tags or bool(int(tags.get(_SUBFILE, 0)) & _REDUCED) or data[8:11] == _CR2
