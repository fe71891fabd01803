"""Every English text of the page."""

from __future__ import annotations

TITLE = "USO"
TAGLINE = "Any content image, any style images, a prompt: one picture."
PROMPT_HINT = "What happens in the picture, as a sentence: The woman gave a speech on the podium."
HOW_TO = """
| you give | you get |
|---|---|
| prompt | a picture of what it says |
| prompt + content | the subject of the content image in the scene of the prompt |
| prompt + style | what the prompt says, in the style of the style images |
| prompt + content + style | the subject, in that style, in the scene of the prompt |
| content + style, no prompt | the content image redrawn in that style, its layout kept |

Write natural sentences ("The man gave a speech") rather than instructions, except for pure style edits
("Transform the image into Ghibli style"). Content size 512 suits most pictures, 1024 close portraits.
"""
IDLE = "Ready."
NOTHING_TO_STOP = "Nothing is running."
STOPPING = "Stopping after this step."
STOPPED = "Stopped. Nothing was lost: change what you like and generate again."


def model_line(title: str, reason: str, note: str) -> str:
    """One line that says which model is at work and why."""
    line = f"Model: **{title}** ({reason})."
    return f"{line} Note: {note}." if note else line


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.31 s, 6 s, 2 min 5 s."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
