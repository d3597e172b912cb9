"""Running a server on an address."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["check_address", "run_app"]

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. Clients must be the first to give one up (OpenAI's: 5 seconds):
else some send their next request just when the server closes it, and get no answer."""

STARTUP_FAILURE = 3
"""Exit status of a server that could not start, such as on a port that is taken; uvicorn's own."""


def check_address(host: str, api_key: str | None) -> None:
    """Refuses to be reachable from other machines without a key.

    Args:
        host: Name or address to listen on.
        api_key: The key, if there is one.

    Raises:
        ValueError: There is no key, and the address is not of this machine alone.
    """
    if api_key is None and not _is_loopback(host):
        raise ValueError(
            f"an API key is needed to listen on {host}, which other machines may reach; "
            "set DIALOGKIT_API_KEY, or listen on 127.0.0.1"
        )


def run_app(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, drain_seconds: int = 60) -> None:
    """Serves until SIGTERM or SIGINT, then refuses new connections and finishes the replies that run.

    Args:
        app: What `create_app` made.
        host: Name or address to listen on.
        port: TCP port; 0 takes a free one, which the log names.
        drain_seconds: Seconds that running replies get at the end.

    Raises:
        SystemExit: It could not start.
        ValueError: The address is not of this machine alone, and the app asks for no key.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for end in app.state.on_shutdown:
                end()
            await super().shutdown(sockets)

    check_address(host, app.state.settings.api_key)
    server = Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=drain_seconds,
            server_header=False,
        )
    )
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # any other name may point anywhere
