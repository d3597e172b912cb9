"""Characters: a name and a handful of things it says."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dialogkit.dialogues import single_line
from trainkit.hub import fingerprint, write_json

from .strict import MAX_JSON, parse_json, read_limited

__all__ = ["FORMAT", "MAX_NAME", "Blend", "Character"]

FORMAT = "dialogkit-character/1"
"""What a character's JSON calls its format, with the version of the schema ``character.schema.json``."""

MAX_NAME = 100
"""Most characters of a name, and of a show: both stand in the first line of a prompt."""

# Colons and what looks like one at the end of a label.
_COLONS = (":", "\uff1a", "\ufe55", "\ufe13", "\u2236", "\ua789", "\u02d0", "\u05c3", "\u0589")
# Invisible characters that scripts and emojis are written with; all others of their kind disguise.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Character:
    """Who speaks: a display name and the utterances that show the voice.

    Texts are put on one line each (see :func:`~dialogkit.dialogues.single_line`), and one surrounding pair of
    double quotes is removed from an utterance, as the authors' code does.

    Attributes:
        name: Display name, as it stands before the colon in a prompt.
        utterances: What it says; 8 in the paper's experiments. May be empty, which only the zero-shot prompt
            accepts.
        gold_contexts: For each utterance the turn that it really answered, for gold match only.
        show: Where the character is from (a book, a play), used by the zero-shot and the chat prompt.
        id: Short name for files and commands; the name in lower case with dashes when empty.
        summary: One line about the character; never put into a prompt.
        licence: Licence of the utterances.

    Raises:
        TypeError: ``utterances`` or ``gold_contexts`` is one string.
        ValueError: The name is blank, has a line break, a control character or an invisible one, ends with a
            colon (all of which would break or disguise the prompt format); name or show has more than 100
            characters; an utterance or context is blank; or there are not as many gold contexts as
            utterances.
    """

    name: str
    utterances: tuple[str, ...] = ()
    gold_contexts: tuple[str, ...] | None = None
    show: str | None = None
    id: str = ""
    summary: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        utterances = _lines("utterances", self.utterances)
        object.__setattr__(self, "utterances", tuple(_unquote(text) for text in utterances))
        if self.gold_contexts is not None:
            object.__setattr__(self, "gold_contexts", _lines("gold_contexts", self.gold_contexts))
            if len(self.gold_contexts) != len(self.utterances):
                raise ValueError(
                    f"gold_contexts of {self.name!r} must be as many as the utterances "
                    f"({len(self.utterances)}), got {len(self.gold_contexts)}"
                )
        for attribute in ("show", "summary", "licence", "id"):
            value = getattr(self, attribute)
            if value is not None:
                object.__setattr__(self, attribute, single_line(value))
        if self.show is not None and len(self.show) > MAX_NAME:
            raise ValueError(f"show must have at most {MAX_NAME} characters, got {len(self.show)}")
        if not self.id:
            object.__setattr__(self, "id", "-".join(self.name.lower().split()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the name, the utterances and the gold contexts."""
        return fingerprint(json.dumps([self.name, self.utterances, self.gold_contexts]))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Character:
        """Makes a character of a JSON object.

        Args:
            record: Keys as the attributes, and ``format``; ``name`` and ``utterances`` are required, unknown
                keys refused. No format at all means the current one.

        Raises:
            ValueError: A key is missing or unknown, a value does not fit, or the format is another one.
        """
        if record.get("format", FORMAT) != FORMAT:
            raise ValueError(f"'format' must be {FORMAT!r}, got {record['format']!r:.80}")
        known = {"format", "name", "utterances", "gold_contexts", "show", "id", "summary", "licence"}
        if missing := {"name", "utterances"} - set(record):
            raise ValueError(f"a character needs {sorted(missing)}")
        if unknown := set(record) - known:
            raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(known)}")
        for key in known & set(record):
            many, value = key in ("utterances", "gold_contexts"), record[key]
            if value is None and key in ("gold_contexts", "show"):
                continue
            if many and not (
                isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
            ):
                raise ValueError(f"{key!r} must be a list of strings, got {value!r:.80}")
            if not many and not isinstance(value, str):
                raise ValueError(f"{key!r} must be a string, got {value!r:.80}")
        gold = record.get("gold_contexts")
        return cls(
            name=record["name"],
            utterances=tuple(record["utterances"]),
            gold_contexts=None if gold is None else tuple(gold),
            show=record.get("show"),
            id=record.get("id", ""),
            summary=record.get("summary", ""),
            licence=record.get("licence", ""),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object that :meth:`from_dict` reads; empty fields are left out."""
        record: dict[str, Any] = {"format": FORMAT, "id": self.id, "name": self.name}
        if self.show:
            record["show"] = self.show
        if self.summary:
            record["summary"] = self.summary
        record["utterances"] = list(self.utterances)
        if self.gold_contexts is not None:
            record["gold_contexts"] = list(self.gold_contexts)
        if self.licence:
            record["licence"] = self.licence
        return record

    @classmethod
    def from_json(cls, path: str | Path) -> Character:
        """Reads a character from a JSON file (UTF-8).

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is larger than 8 MiB or no valid character; the message names it.
        """
        data = read_limited(path, MAX_JSON)
        try:
            record = parse_json(data)
            if not isinstance(record, dict):
                raise ValueError(f"expected a JSON object, got {type(record).__name__}")
            return cls.from_dict(record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self, path: str | Path) -> None:
        """Writes the character as a JSON file, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def from_tsv(
        cls, path: str | Path, name: str | None = None, *, max_utterances: int | None = None
    ) -> Character:
        """Reads a character from tab-separated lines ``name <TAB> utterance [<TAB> context]`` (UTF-8).

        A first line that starts with ``name``, ``character`` or ``style`` and ``utterance`` is a header. Tabs
        and quotes inside a field are not supported; quotes are ordinary characters. Contexts become gold
        contexts when every line of the character has one.

        Args:
            path: The file.
            name: Whose lines to take; needed when the file has several names.
            max_utterances: Take only so many lines, in the order of the file (the authors' code takes 8).

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A line has no tab, the name is not there, or the file is not UTF-8 or larger than
                8 MiB.
        """
        if max_utterances is not None and max_utterances < 1:
            raise ValueError(f"max_utterances must be at least 1, got {max_utterances}")
        try:
            text = read_limited(path, MAX_JSON).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
        voices: dict[str, list[list[str]]] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            row = line.rstrip("\r").split("\t")
            if not any(field.strip() for field in row):
                continue
            header = row[0].strip().lower() in ("name", "character", "style")
            if number == 1 and header and row[1:2] and row[1].strip().lower() == "utterance":
                continue
            if len(row) not in (2, 3):
                raise ValueError(
                    f"{path}, line {number}: expected a name, an utterance and at most a context, "
                    f"got {len(row)} fields"
                )
            voices.setdefault(row[0].strip(), []).append(row[1:])
        if name is None:
            if len(voices) != 1:
                raise ValueError(f"{path} has {len(voices)} names, say which: {', '.join(voices) or 'none'}")
            name = next(iter(voices))
        if name not in voices:
            raise ValueError(f"{path} has no lines of {name!r}; there are {', '.join(voices) or 'none'}")
        lines = voices[name][:max_utterances]
        contexts = [line[1] for line in lines if len(line) > 1 and line[1].strip()]
        return cls(
            name=name,
            utterances=tuple(line[0] for line in lines),
            gold_contexts=tuple(contexts) if len(contexts) == len(lines) else None,
        )


@dataclass(frozen=True)
class Blend:
    """Several characters that speak as one.

    A prompt takes from each character its highest-ordered utterances up to that character's count and then
    sorts all of them together.

    Attributes:
        name: Display name of the blend.
        characters: At least one.
        max_dialogs: For each character how many pairs it may bring, all at least 1.

    Raises:
        ValueError: There is no character, the counts are not as many as the characters, or one is below 1.
    """

    name: str
    characters: tuple[Character, ...]
    max_dialogs: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "characters", tuple(self.characters))
        object.__setattr__(self, "max_dialogs", tuple(self.max_dialogs))
        if not self.characters:
            raise ValueError("characters of a blend must not be empty")
        # The authors' script zips the two lists, so that an empty list of counts silently drops everything.
        if len(self.max_dialogs) != len(self.characters):
            raise ValueError(
                f"max_dialogs must hold one count for each of the {len(self.characters)} characters, "
                f"got {len(self.max_dialogs)}"
            )
        for character, count in zip(self.characters, self.max_dialogs, strict=True):
            if count < 1:
                raise ValueError(f"max_dialogs of {character.name!r} must be at least 1, got {count}")

    @property
    def show(self) -> str | None:
        """A blend is from nowhere."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the name, the characters and the counts."""
        parts = [character.fingerprint for character in self.characters]
        return fingerprint(json.dumps([self.name, parts, self.max_dialogs]))


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if not name.strip():
        raise ValueError("name must not be blank")
    if single_line(name) != name:
        raise ValueError(
            f"name must be on one line, without control characters or outer spaces, got {name!r}"
        )
    if len(name) > MAX_NAME:
        raise ValueError(f"name must have at most {MAX_NAME} characters, got {len(name)}")
    if any(unicodedata.category(letter) == "Cf" and letter not in _JOINERS for letter in name):
        raise ValueError(f"name must not hold invisible characters, got {name!a}")
    if name.endswith(_COLONS):
        raise ValueError(f"name must not end with a colon, which the prompt adds, got {name!r}")


def _lines(argument: str, texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise TypeError(f"{argument} must be a sequence of strings, got one string")
    lines = tuple(single_line(text) for text in texts)
    for i, line in enumerate(lines):
        if not line:
            raise ValueError(f"{argument}[{i}] is blank")
    return lines


def _unquote(text: str) -> str:
    # Only a pair around the whole: '"A" and "B"' keeps its quotes.
    inner = text[1:-1].strip()
    return inner if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in inner and inner else text
