"""A visitor's character file: on its way to the server, and read there."""

# No `from __future__ import annotations`: FastAPI reads the annotations of `only_uploaded` below.

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.dialogues import single_line
from dialogkit.pdp import Character, read_character

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["MAX_LINES", "MAX_UPLOAD", "read_upload", "upload_check"]

MAX_UPLOAD = 16 * 2**20
"""Most bytes of an uploaded file."""

MAX_LINES = 1000
"""Most lines of a visitor's character: all of them are encoded before its first reply."""


def upload_check() -> Callable[["Request"], Awaitable[None]]:
    """Makes a dependency for FastAPI that refuses requests which name a file that was not uploaded.

    Gradio's page names an uploaded file by its path on the server. Gradio itself checks such paths on a page
    that it has launched, not on one that is mounted (6.31), and it fetches what is an address.

    Returns:
        A function of a request, which raises ``HTTPException`` with status 400.
    """
    from fastapi import HTTPException, Request
    from gradio.utils import get_upload_folder

    async def only_uploaded(request: Request) -> None:
        if request.method != "POST" or request.headers.get("content-type", "").startswith("multipart/"):
            return
        try:
            data = json.loads(await request.body())
        except (ValueError, RecursionError):
            return  # Gradio cannot read it either
        folder = Path(get_upload_folder()).resolve()
        for path in _paths(data):
            if not (isinstance(path, str) and Path(path).resolve().is_relative_to(folder)):
                raise HTTPException(400, "that file was not uploaded")

    return only_uploaded


def _paths(data: Any) -> Iterator[Any]:
    """Whatever a value calls a path."""
    rest = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += value.values()
            if "path" in value:
                yield value["path"]
        elif isinstance(value, list):
            rest += value


def read_upload(path: Path, name: str = "") -> Character:
    """Reads a visitor's character file.

    Args:
        path: Where it lies on this machine; its ending says what it is.
        name: Whose lines of a ``.tsv``, who says those of a ``.txt``.

    Raises:
        ValueError: It is gone, cannot be read, or has no lines or too many. The message names the file
            without its folder.
    """
    try:
        character = read_character(path, name=single_line(name) or None)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is not here any more; please choose it again") from error
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error
    if not character.utterances:
        raise ValueError(f"{path.name}: {character.name} says nothing in this file")
    if len(character.utterances) > MAX_LINES:
        raise ValueError(
            f"{path.name}: {len(character.utterances):,} lines, more than the {MAX_LINES:,} allowed here"
        )
    return character
