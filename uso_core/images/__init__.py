"""Images: opens untrusted files safely; the reference's resize and crop. PIL in, PIL out."""

from uso_core.images.aside import brought_back, set_aside
from uso_core.images.chunks import png_of_words, webp_texts
from uso_core.images.content import beside_each_other, content_crop, content_size, kept_size, prepare_content
from uso_core.images.opening import MAX_FILE_BYTES, MAX_REFERENCE_SIDE, open_image

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_REFERENCE_SIDE",
    "beside_each_other",
    "brought_back",
    "content_crop",
    "content_size",
    "kept_size",
    "open_image",
    "png_of_words",
    "prepare_content",
    "set_aside",
    "webp_texts",
]
