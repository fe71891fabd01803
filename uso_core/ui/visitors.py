"""Identifies visitors: only one on this machine alone; on an open server each has their own history."""

from __future__ import annotations

import hashlib
from typing import Any

COOKIE, VISITORS = "uso_visitor", "visitors"  # the folder for their files


def visitor_of(request: Any, separates: bool, program: bool = False) -> str:
    """What identifies a visitor: the login, else the cookie; empty if all count as one.

    Without either a program is its address, from which it may call many times, and a page its session: behind one
    address may be strangers, and a page shows what its visitor made.
    """
    if not separates or request is None:
        return ""
    if name := getattr(request, "username", None):
        return logged_in(name)
    cookies = getattr(request, "cookies", None) or {}
    if value := dict(cookies).get(COOKIE):
        return str(value)
    if not program:
        return f"session:{getattr(request, 'session_hash', '')}"
    client = getattr(request, "client", None)
    return f"address:{getattr(client, 'host', '')}"


def logged_in(name: str) -> str:
    """What identifies a visitor who has logged in, with whatever browser."""
    return f"login:{name}"


def folder_name(visitor: str) -> str:
    """The name of a visitor's folder, which does not reveal the visitor's secret."""
    return hashlib.sha256(f"uso:{visitor}".encode()).hexdigest()[:32]
