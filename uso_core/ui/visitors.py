"""Who asks: on this machine alone everybody is one; on an open server each visitor has a history of their own."""

from __future__ import annotations

import hashlib
from typing import Any

COOKIE, VISITORS = "uso_visitor", "visitors"  # the folder in which theirs lie


def visitor_of(request: Any, separates: bool) -> str:
    """What tells a visitor from others: the login, else the cookie, else the address; empty where all are one."""
    if not separates or request is None:
        return ""
    if name := getattr(request, "username", None):
        return f"login:{name}"
    cookies = getattr(request, "cookies", None) or {}
    if value := dict(cookies).get(COOKIE):
        return str(value)
    client = getattr(request, "client", None)
    return f"address:{getattr(client, 'host', '')}"


def folder_name(visitor: str) -> str:
    """The name of a visitor's folder, from which the visitor's secret cannot be told."""
    return hashlib.sha256(f"uso:{visitor}".encode()).hexdigest()[:32]
