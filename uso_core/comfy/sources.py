"""The images behind an input, and what scales them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from uso_core.comfy.graph import Node
from uso_core.comfy.image_names import file_name
from uso_core.comfy.nodes import FITTING, IMAGE_LOADERS, LONG_SIDE, OTHER_SCALERS, RESHAPED
from uso_core.comfy.values import Values, as_number, label
from uso_core.messages import message

IMAGE_FILE = re.compile(r".+\.(png|jpe?g|webp|gif|bmp|tiff?|avif)(\s*\[\w+\])?", re.IGNORECASE)
FILE_INPUTS = ("image", "filename", "file", "image_path", "path", "url")


@dataclass
class ImageSource:
    """An input image as the graph names it, and what scales it, nearest to the file first.

    `sha256` is "" unless our own export noted it.
    """

    name: str | None = None
    sha256: str = ""
    scalers: list[Node] = field(default_factory=list)


class Sources(Values):
    """Follows images back to their files."""

    def image(self, node: Node, name: str, what: str) -> ImageSource | None:
        """The image behind an input; None if nothing is connected. Its name is None if a node makes it."""
        image = ImageSource()
        for found in self.graph.chain(node, name, "IMAGE"):
            here = found.node
            if here.kind in LONG_SIDE or here.kind in OTHER_SCALERS:
                image.scalers.insert(0, here)
            elif here.kind not in IMAGE_LOADERS and self.graph.onward(found, "IMAGE") is not None:
                self.note("image_node_ignored", node=label(here), what=message(f"what_{what}"))
            else:
                self._name(image, here)
                if image.name is None:
                    self.note("image_unnamed", what=message(f"what_{what}"), node=label(here))
                return image
        return None

    def _name(self, image: ImageSource, node: Node) -> None:
        texts = [value for name in FILE_INPUTS if isinstance(value := self.graph.value(node, name), str)]
        if node.kind not in IMAGE_LOADERS:  # another class's text may be a folder, or what to look for
            texts = [text for text in texts if IMAGE_FILE.fullmatch(text[-4096:].strip())]
        image.name = next((name for text in texts if (name := file_name(text)) is not None), None)
        if node.hash is not None and image.name is not None and file_name(node.hash[0]) == image.name:
            image.sha256 = node.hash[1]

    def long_side(self, scaler: Node, before: float | None) -> float | None:
        """The long side after a scaler, in pixels; None if it depends on the image itself."""
        if scaler.kind in LONG_SIDE:
            sides = [self.number(scaler, name, "content_size", 0, 1e9) for name in LONG_SIDE[scaler.kind]]
            known = [side for side in sides if side]
            way = self._way(scaler)
            by_image = way == "area" or (way == "within" and len(set(known)) > 1)
            if by_image or len(known) < len(sides) or self.word(scaler, "condition") not in ("", "always"):
                return None
            return max(known)
        if scaler.kind == "ImageScaleBy" and before is not None:
            factor = self.number(scaler, "scale_by", "scale", 0, 100)
            return None if factor is None else before * factor
        return None

    def fitted(self, scaler: Node) -> tuple[str, int, int] | None:
        """How a node changes an image's shape, one of `RESHAPED`, and to which sides; None if it does not."""
        way = self._way(scaler)
        if way not in RESHAPED:
            return None
        width, height = (as_number(self.graph.value(scaler, side)) for side in ("width", "height"))
        return (way, round(width), round(height)) if width and height else None

    def _way(self, scaler: Node) -> str:
        name, ways = FITTING.get(scaler.kind, ("", {}))
        given = self.graph.value(scaler, name)
        return ways.get(given, "") if isinstance(given, bool | str) else ""

    # --- images
