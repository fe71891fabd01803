"""How ComfyUI reads a prompt: its encoder takes parentheses as weights, its page draws choices and drops comments.

Facts from Comfy-Org/ComfyUI (comfy/sd1_clip.py, token_weights) and Comfy-Org/ComfyUI_frontend (src/utils/formatUtil.ts,
processDynamicPrompt).
"""

from __future__ import annotations

import re

COMMENT = re.compile(r"/\*|//")
DYNAMIC = re.compile(r"[{}|]|//|/\*")  # what the page may rewrite in a prompt's text field
ESCAPED_PARENTHESIS = re.compile(r"\\([()])")
ESCAPED_BRACE = re.compile(r"\\([{}|])")


def escaped(prompt: str) -> str:
    """A text whose parentheses ComfyUI's encoder takes as they are."""
    return re.sub(r"([()])", r"\\\1", prompt)


def unescaped(text: str) -> str:
    """The text that ComfyUI's encoder reads; weights stay as they stand."""
    return ESCAPED_PARENTHESIS.sub(r"\1", text)


def has_weights(text: str) -> bool:
    """Whether the encoder takes a part of the text as weighted: a pair of parentheses without backslashes."""
    bare = ESCAPED_PARENTHESIS.sub("", text)
    return "(" in bare and ")" in bare[bare.index("(") :]


def as_sent(text: str) -> str | None:
    """A text field of the page as it is sent; None if it holds {a|b}, of which one is drawn each time."""
    text = _without_comments(text)
    parts: list[str] = []
    escape = False
    depth = 0
    for character in text:
        if escape or character == "\\":
            escape = not escape
        elif character == "{":
            depth += 1
            continue
        elif depth and character == "}":
            depth -= 1
            continue
        elif depth and character == "|":
            return None
        parts.append(character)
    return ESCAPED_BRACE.sub(r"\1", "".join(parts))


def _without_comments(text: str) -> str:
    """The text without /* ... */ and // ..., in time linear in its length."""
    kept: list[str] = []
    place = start = 0
    blocks = True  # as long as one can still end
    while (match := COMMENT.search(text, place)) is not None:
        place = match.end()
        end = text.find("\n", place) if match[0] == "//" else text.find("*/", place) if blocks else -1
        if match[0] == "/*" and end < 0:
            blocks = False
            place = match.start() + 1
            continue
        kept.append(text[start : match.start()])
        place = start = len(text) if end < 0 else end + 2 * (match[0] == "/*")
    return "".join([*kept, text[start:]])
