"""Reading what strangers wrote: files of a limited size, and JSON that means one thing only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["MAX_FILE", "MAX_JSON", "parse_json", "read_limited"]

MAX_FILE = 64 * 2**20
"""Most bytes of a picture with a card in it."""

MAX_JSON = 8 * 2**20
"""Most bytes of any other character file, and of the card in a picture."""


def read_limited(path: str | Path, limit: int) -> bytes:
    """Reads a file, if it is small enough.

    Args:
        path: The file.
        limit: Most bytes; no more than that are ever read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is larger.
    """
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes, the most that is read")
    return data


def parse_json(data: bytes) -> Any:
    """Decodes JSON (UTF-8, with or without a byte-order mark) by the letter of its standard.

    Args:
        data: The text.

    Raises:
        ValueError: It is not UTF-8 or not JSON, has an object with one key twice (programs disagree which
            one counts), NaN or an infinity, or is nested too deeply.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {data[error.start]:#x}") from error
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r:.80} stands twice in one object")
        made[key] = value
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
