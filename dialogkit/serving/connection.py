"""A client's connection: reading a body within its limit, noticing that the client went away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ApiError

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["CLIENT_GONE", "read_body", "unless_gone"]

_T = TypeVar("_T")

CLIENT_GONE = 499
"""Status of a request whose client did not wait; nobody sees it but the log and the metrics."""

# So much of a body that is too large is read and thrown away: a client that is still sending would see a
# broken connection instead of the answer.
_DRAINED = 1 << 24


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Args:
        request: The request.
        limit: Most bytes.

    Raises:
        ApiError: With status 413 if it is larger.
    """
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > _DRAINED:
            break
    if size > limit:
        raise ApiError(413, f"the body may hold at most {limit:,} bytes", code="request_too_large")
    return bytes(body)


async def unless_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], work: Awaitable[_T]) -> _T:
    """The result of some work, which is cancelled when the client goes first.

    Args:
        receive: Of a request whose body was read.
        work: What the client waits for.

    Raises:
        ApiError: With the status `CLIENT_GONE`.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_GONE, "the client went away")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _until_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
