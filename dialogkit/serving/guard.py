"""Who may ask: a key, or only this machine."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import ApiError
from .settings import ServerSettings

__all__ = ["Guard"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key."""


class Guard:
    """Lets requests with the right key through; without a key, those that call the server by a local name.

    The key comes as ``Authorization: Bearer KEY``. Outside ``/v1`` a browser may send it as the password of
    basic authentication, so that a page mounted on the server can be opened; under ``/v1`` it may not, since
    browsers add a known password to requests that another site's page makes. Such requests are refused
    altogether, except for links that a person follows. Without a key nobody on another machine is answered,
    whatever address the server listens on.

    Args:
        app: The ASGI application behind it.
        settings: With the key.
    """

    def __init__(
        self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], settings: ServerSettings
    ) -> None:
        self.app = app
        self.key = None if settings.api_key is None else settings.api_key.encode()
        self.hosts = frozenset(settings.allowed_hosts)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answers with 401 or 403, or calls the application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        error = self._refusal(scope)
        if error is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(error, send)

    def _refusal(self, scope: _Scope) -> ApiError | None:
        path = scope["path"]
        headers = {name: value for name, value in reversed(scope["headers"])}
        if path in OPEN:
            return None
        if _from_elsewhere(headers):
            return ApiError(403, "pages of other sites are not answered", code="wrong_origin")
        if self.key is None:
            host = _without_port(headers.get(b"host", b"").decode("latin-1"))
            if host in self.hosts and _is_local(scope):
                return None
            return ApiError(
                403, "a server without an API key answers only to its local names", code="wrong_host"
            )
        given = _credentials(headers.get(b"authorization", b""), basic=not path.startswith("/v1"))
        if given is not None and hmac.compare_digest(given, self.key):
            return None
        scheme = "Bearer" if path.startswith("/v1") else "Basic"
        return ApiError(
            401,
            "give the server's API key as bearer token",
            code="invalid_api_key",
            headers={"WWW-Authenticate": f'{scheme} realm="dialogkit"'},
        )


def _from_elsewhere(headers: MutableMapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another site makes the request."""
    origin = headers.get(b"origin")
    if origin is not None:
        return origin.lower().partition(b"://")[2] != headers.get(b"host", b"").lower()
    follows = headers.get(b"sec-fetch-mode") == b"navigate"
    return headers.get(b"sec-fetch-site") == b"cross-site" and not follows


def _is_local(scope: _Scope) -> bool:
    """Whether the client is on this machine; one without an address came through a local socket."""
    client = scope.get("client")
    if not client:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _credentials(header: bytes, *, basic: bool) -> bytes | None:
    scheme, _, value = header.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if basic and scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None


def _without_port(host: str) -> str:
    """``localhost`` of ``localhost:8000``, ``[::1]`` of ``[::1]:8000``."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


async def _answer(error: ApiError, send: _Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
