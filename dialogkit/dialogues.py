"""Dialogues as data: turns, dialogues, examples, their readers, and the cleaning of one line of text.

Two file formats, both JSON lines (UTF-8, one object a line, ``.gz`` read as gzip):

* dialogues: ``{"id": "d1", "turns": [{"speaker": "User", "text": "Hello."}, ...]}``
* examples: ``{"context": ["Hello.", "Hi, who is it?"], "response": "Only me."}``

A ``datasets.Dataset`` with the same columns, or any iterable of mappings, is read in the same way.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

__all__ = [
    "DataError",
    "Dialogue",
    "Example",
    "Turn",
    "as_history",
    "read_dialogues",
    "read_examples",
    "single_line",
]

_T = TypeVar("_T")

USER = "User"
"""Speaker name of a turn that was given as plain text."""

# Everything that a reader, a terminal or `str.splitlines` may take for the end of a line, and tabs.
_BREAKS = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029"
_BREAK_RUN = re.compile(f" *[{_BREAKS}][ {_BREAKS}]*")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """A record that cannot be read; the message begins with the file and line (or row) it came from."""


@dataclass(frozen=True)
class Turn:
    """What one speaker said at once.

    Attributes:
        speaker: Name of the speaker, not blank.
        text: The words; may be empty.

    Raises:
        TypeError: If an attribute is not a string.
        ValueError: If the speaker is blank.
    """

    speaker: str
    text: str

    def __post_init__(self) -> None:
        _expect_text("speaker", self.speaker)
        _expect_text("text", self.text)
        if not self.speaker.strip():
            raise ValueError(f"speaker must not be blank, got {self.speaker!r}")


@dataclass(frozen=True)
class Dialogue:
    """A conversation.

    Attributes:
        id: Name of the dialogue, unique in its file by convention (not checked).
        turns: Its turns in order, at least one.

    Raises:
        TypeError: If `id` is not a string or a turn is not a `Turn`.
        ValueError: If there is no turn.
    """

    id: str
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        _expect_text("id", self.id)
        object.__setattr__(self, "turns", tuple(self.turns))
        for turn in self.turns:
            if not isinstance(turn, Turn):
                raise TypeError(f"turns must hold Turn objects, got {type(turn).__name__}: {_short(turn)}")
        if not self.turns:
            raise ValueError("turns must hold at least one turn, got none")


@dataclass(frozen=True)
class Example:
    """A context and the response that followed it.

    Attributes:
        context: The turns before the response, oldest first, at least one.
        response: The response, not blank.

    Raises:
        TypeError: If something is not a string.
        ValueError: If the context holds no turn or the response is blank.
    """

    context: tuple[str, ...]
    response: str

    def __post_init__(self) -> None:
        given: object = self.context  # a single string is an easy mistake
        if isinstance(given, str):
            raise TypeError(f"context must be a sequence of strings, got a string: {_short(given)}")
        object.__setattr__(self, "context", tuple(self.context))
        for text in self.context:
            _expect_text("context", text)
        _expect_text("response", self.response)
        if not self.context:
            raise ValueError("context must hold at least one turn, got none")
        if not self.response.strip():
            raise ValueError(f"response must not be blank, got {self.response!r}")


def single_line(text: str) -> str:
    r"""Make `text` safe to stand on one line of a prompt or a file.

    Runs of line breaks (``\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029``) and tabs become one space together
    with the spaces around them; other control characters (Unicode category Cc) are removed; lone surrogates,
    which no encoding can write, become U+FFFD; the ends are stripped. All else is kept as it is, joined
    emojis and combining characters included. Applying it twice changes nothing more.

    Args:
        text: Any string.

    Returns:
        The text on one line, possibly empty.

    Raises:
        TypeError: If `text` is not a string.
    """
    _expect_text("text", text)
    text = _SURROGATE.sub("\ufffd", text)
    text = _CONTROL.sub("", text)
    return _BREAK_RUN.sub(" ", text).strip()


def as_history(history: Sequence[Turn] | str) -> tuple[Turn, ...]:
    """Turn what a chatbot was given into a tuple of turns.

    Args:
        history: The conversation so far, oldest turn first, or the text of a single turn of the user.

    Returns:
        The turns, at least one; a text becomes ``(Turn("User", text),)`` with the text as it is.

    Raises:
        TypeError: If `history` is neither a string nor a sequence of `Turn`.
        ValueError: If there is no turn or the last one says nothing once control characters are removed.
    """
    if not isinstance(history, Sequence):
        raise TypeError(f"history must be a string or a sequence of Turn, got {type(history).__name__}")
    turns = (Turn(USER, history),) if isinstance(history, str) else tuple(history)
    for turn in turns:
        if not isinstance(turn, Turn):
            raise TypeError(f"history must hold Turn objects, got {type(turn).__name__}: {_short(turn)}")
    if not turns:
        raise ValueError("history must hold at least one turn, got none")
    if not single_line(turns[-1].text):
        raise ValueError(f"the last turn of the history must say something, got {_short(turns[-1].text)}")
    return turns


def read_dialogues(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Dialogue]:
    """Read dialogues one at a time; memory is bounded by one record.

    Args:
        source: Path to a JSON-lines file (``.gz``: gzip), a ``datasets.Dataset`` with the columns ``id`` and
            ``turns``, or an iterable of such mappings. Blank lines and a byte-order mark are passed over,
            keys other than these are ignored.

    Yields:
        The dialogues in their order.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: At the first record that is not valid JSON, not UTF-8, or lacks a key or has a wrong type
            in it; the message names file and line (row for anything but a file).
    """
    for place, record in _records(source):
        turns = _value(place, record, "turns")
        if isinstance(turns, Mapping):  # the columnar form in which `datasets` returns a sequence of structs
            turns = _rows_of_columns(place, turns)
        if not isinstance(turns, list | tuple):
            raise DataError(f"{place}: 'turns' must be a list, got {type(turns).__name__}")
        spoken = []
        for number, turn in enumerate(turns, start=1):
            where = f"{place}, turn {number}"
            if not isinstance(turn, Mapping):
                raise DataError(f"{where}: must be an object with 'speaker' and 'text', got {_short(turn)}")
            spoken.append(
                _build(where, Turn, _value(where, turn, "speaker"), _value(where, turn, "text")),
            )
        yield _build(place, Dialogue, _value(place, record, "id"), tuple(spoken))


def read_examples(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Example]:
    """Read context-response examples one at a time; memory is bounded by one record.

    Args:
        source: As for `read_dialogues`, with the keys ``context`` (a list of strings) and ``response``.

    Yields:
        The examples in their order.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: As for `read_dialogues`.
    """
    for place, record in _records(source):
        context = _value(place, record, "context")
        if not isinstance(context, list | tuple):
            raise DataError(f"{place}: 'context' must be a list of strings, got {type(context).__name__}")
        yield _build(place, Example, tuple(context), _value(place, record, "response"))


def _records(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pairs of the place a record came from and the record."""
    if isinstance(source, str | Path):
        yield from _json_lines(Path(source))
        return
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise TypeError(
            "source must be a path, a datasets.Dataset or an iterable of mappings, "
            f"got {type(source).__name__}"
        )
    for number, record in enumerate(source):
        if not isinstance(record, Mapping):
            raise DataError(f"row {number}: must be a mapping, got {type(record).__name__}")
        yield f"row {number}", record


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such dialogue file: {path}")
    number = 0
    with _opened(path) as lines:
        while True:
            number += 1
            place = f"{path}, line {number}"
            try:
                line = lines.readline()
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{place}: the gzip file is damaged ({error})") from error
            if not line:
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: not UTF-8 at byte {error.start + 1} of the line ({error.reason})"
                ) from error
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{place}: not valid JSON ({error})") from error
            if not isinstance(record, dict):
                raise DataError(f"{place}: must be a JSON object, got {_short(record)}")
            yield place, record


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _value(place: str, record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise DataError(f"{place}: lacks the key {key!r}, has {sorted(map(str, record))}")
    return record[key]


def _rows_of_columns(place: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    speakers, texts = _value(place, columns, "speaker"), _value(place, columns, "text")
    for key, column in (("speaker", speakers), ("text", texts)):
        if not isinstance(column, list | tuple):
            raise DataError(f"{place}: column {key!r} of 'turns' must be a list, got {type(column).__name__}")
    if len(speakers) != len(texts):
        raise DataError(f"{place}: 'turns' has {len(speakers)} speakers but {len(texts)} texts")
    return [{"speaker": s, "text": t} for s, t in zip(speakers, texts, strict=True)]


def _build(place: str, kind: type[_T], *values: Any) -> _T:
    try:
        return kind(*values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: {error}") from error


def _expect_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}: {_short(value)}")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
