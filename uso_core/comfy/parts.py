"""Parts of untrusted JSON: whatever is not of the wanted type counts as absent."""

from __future__ import annotations

from typing import Any


def dict_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def id_of(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def type_of(value: object) -> str:
    return value if isinstance(value, str) else "COMBO" if isinstance(value, list) else "*" if value == 0 else ""


def whole_of(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
