"""What of Gradio's own interface a visitor may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .uploads import MAX_UPLOAD

__all__ = ["MAX_REQUEST", "Confined"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_REQUEST = 2**20
"""Most bytes of a request that uploads nothing."""

_USED = frozenset(
    (
        "",
        "app_id",
        "assets",
        "cancel",
        "config",
        "favicon.ico",
        "heartbeat",
        "info",
        "manifest.json",
        "queue",
        "reset",
        "robots.txt",
        "run",
        "startup-events",
        "static",
        "svelte",
        "theme.css",
        "upload",
        "upload_progress",
    )
)
"""What the page asks for. The rest of Gradio's paths give away files, fetch addresses for a visitor and relay
what comes as this server's own, or run what the page does not have."""


class Confined:
    """Refuses requests of Gradio's that the chat page does not make, and bodies that are too large.

    Args:
        app: Gradio's application.
    """

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answers with 403 or 413, or calls the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
        if path.removeprefix("gradio_api").strip("/").partition("/")[0] not in _USED:
            await _refuse(send, 403, b"this page does not use that")
            return
        headers = dict(scope["headers"])
        uploads = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        room = MAX_UPLOAD + 2**16 if uploads else MAX_REQUEST
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > room:
            await _refuse(send, 413, b"too large")
            return
        begun = False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal room
            message = await receive()
            room -= len(message.get("body", b""))
            if room < 0:
                raise _TooLargeError
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLargeError:
            if begun:
                raise
            await _refuse(send, 413, b"too large")


class _TooLargeError(ValueError):
    """A body without a declared length went on for too long."""


async def _refuse(send: _Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
