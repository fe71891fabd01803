"""The language chosen on the page: kept in a cookie, it counts instead of the browser's own, for both of them.

Gradio translates labels in the browser by `navigator.language`; our sentences are made here by Accept-Language.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uso_core.messages import languages

COOKIE = "uso_language"  # page.js sets it
HEAD = b"<head>"
SCRIPT = (
    f"""<head><script>
((chosen) => {{
  if (chosen) Object.defineProperty(navigator, "language", {{ get: () => chosen[1] }});
  document.documentElement.lang = navigator.language;
}})(document.cookie.match(/(?:^|; ){COOKIE}=([a-z]+)/));
</script>"""
).encode()


class ChoiceOfLanguage:
    """Replaces Accept-Language by the cookie, if it names one of our languages, and tells the page before it starts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        found = re.search(rf"(?:^|;\s*){COOKIE}=([a-z]+)", headers.get("cookie", ""))
        if found and found[1] in languages():
            headers["accept-language"] = found[1]
        started: list[Message] = []

        async def pass_on(message: Message) -> None:
            """Holds a page's head back until its first bytes are there."""
            if message["type"] == "http.response.start" and _is_page(message):
                started.append(message)
                return
            if started and message["type"] == "http.response.body":
                body = message.get("body", b"").replace(HEAD, SCRIPT, 1)
                start: Any = started.pop()
                fields = MutableHeaders(raw=start["headers"])
                if not message.get("more_body"):
                    fields["content-length"] = str(len(body))
                await send(start)
                message = {**message, "body": body}
            await send(message)

        await self.app(scope, receive, pass_on)


def _is_page(start: Message) -> bool:
    headers = MutableHeaders(raw=start["headers"])
    whole = "content-encoding" not in headers
    return whole and "content-length" in headers and headers.get("content-type", "").startswith("text/html")
