"""What the engine reports about a request, in order of occurrence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from uso_core.errors import UsoError
from uso_core.messages import Message, message
from uso_core.request import Result

if TYPE_CHECKING:
    import numpy as np

SHOWN_CHARACTERS, SHOWN_WORDS = 80, 8  # of what a model did not read


@dataclass(frozen=True)
class Queued:
    """Waiting; `ahead` requests come first (including the running one)."""

    ahead: int


@dataclass(frozen=True)
class Loading:
    """The model is being read; `fraction` in [0, 1] of its bytes, `message` says what is happening."""

    fraction: float
    message: Message


@dataclass(frozen=True)
class Encoding:
    """Prompt and images are being encoded."""


@dataclass(frozen=True)
class Step:
    """Step `step` of `steps` of image `image` of `images`, all from 1, is done; `preview` has an eighth of its size."""

    step: int
    steps: int
    image: int
    images: int
    seconds_per_step: float
    preview: Image.Image | None = field(default=None, compare=False, repr=False)

    @property
    def seconds_left(self) -> float:
        steps_left = self.steps - self.step + (self.images - self.image) * self.steps
        return steps_left * self.seconds_per_step


@dataclass(frozen=True)
class Unread:
    """What of a request had no part in the image.

    Words of the prompt that the tokenizer does not know, the end of it that did not fit, and the names of LoRAs that
    change the text encoders as well, which is left out.
    """

    words: tuple[str, ...] = ()
    end: str = ""
    loras: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.words or self.end or self.loras)

    @property
    def told(self) -> tuple[Message, ...]:
        """A sentence for each of them."""
        sentences = []
        if self.words:
            more = "…" if len(self.words) > SHOWN_WORDS else ""
            words = " ".join(shortened(word) for word in self.words[:SHOWN_WORDS])
            sentences.append(message("unknown_words", words=words + more))
        if self.end:
            sentences.append(message("unread", words=shortened(" ".join(self.end.split()))))
        sentences += [message("lora_text_left_out", name=shortened(name)) for name in self.loras]
        return tuple(sentences)


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


@dataclass(frozen=True)
class ImageReady:
    """Image `index` (from 0) is finished; `unread` is what of the request had no part in it."""

    index: int
    image: Image.Image
    result: Result
    unread: Unread = Unread()


@dataclass(frozen=True)
class Skipped:
    """Image `index` (from 0) was abandoned; the request's next image follows."""

    index: int


@dataclass(frozen=True)
class StylesReady:
    """The request's styles in the model's form: an array (K, D) float32 and a strength for each image."""

    tokens: tuple[np.ndarray, ...]
    strengths: tuple[float, ...]
    model: str
    fingerprint: str


@dataclass(frozen=True)
class Done:
    """The last event of a completed request."""


@dataclass(frozen=True)
class Failed:
    """The last event of a failed request."""

    error: UsoError


@dataclass(frozen=True)
class Cancelled:
    """The last event of a stopped request."""


Event = Queued | Loading | Encoding | Step | ImageReady | Skipped | StylesReady | Done | Failed | Cancelled
LAST = (Done, Failed, Cancelled)
