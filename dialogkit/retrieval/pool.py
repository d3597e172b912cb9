"""The pool of single-turn contexts that pseudo-dialogues are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

from dialogkit.dialogues import Dialogue, read_dialogues, single_line
from trainkit.hub import fingerprint, write_bytes

__all__ = ["ContextPool"]


@dataclass(frozen=True)
class ContextPool(Sequence[str]):
    """Single-turn contexts in a fixed order; a context's id is its position.

    Line breaks and tabs inside a text become spaces, so that no context can forge a turn of a prompt.
    Repeated texts are kept: remove them with ``ContextPool(dict.fromkeys(texts))`` or when reading.

    Attributes:
        texts: The contexts. May be empty, which matchers refuse unless told otherwise.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: A text is blank.
    """

    texts: tuple[str, ...]

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, got one string")
        cleaned = tuple(single_line(text) for text in texts)
        for i, text in enumerate(cleaned):
            if not text:
                raise ValueError(f"context {i} of the pool is blank")
        object.__setattr__(self, "texts", cleaned)

    @classmethod
    def from_lines(cls, path: str | Path, *, dedupe: bool = False) -> ContextPool:
        """Reads one context per line of a UTF-8 file; blank lines are skipped.

        Args:
            path: Text file; a byte order mark is tolerated.
            dedupe: Keep only the first of equal lines.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not UTF-8; the message names file, line and byte.
        """
        data = Path(path).read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            # utf-8-sig counts from behind the mark, so the position is found in plain UTF-8.
            start = _first_bad_byte(data)
            line = data.count(b"\n", 0, start) + 1
            raise ValueError(
                f"{path} is not UTF-8: line {line}, byte {start} (0x{data[start]:02x}): {error.reason}"
            ) from error
        lines = (single_line(line) for line in text.split("\n"))
        kept: Iterable[str] = (line for line in lines if line)
        return cls(dict.fromkeys(kept) if dedupe else kept)

    @classmethod
    def from_dialogues(
        cls,
        dialogues: str | Path | Iterable[Dialogue],
        *,
        min_words: int = 3,
        max_words: int = 30,
        dedupe: bool = True,
    ) -> ContextPool:
        """Makes every fitting turn of some dialogues a context.

        Args:
            dialogues: Dialogues, or a JSON lines file of them.
            min_words: Shorter turns are dropped.
            max_words: Longer turns are dropped.
            dedupe: Keep only the first of equal turns.

        Raises:
            ValueError: The word limits exclude every turn, or the file is malformed.
        """
        if not 1 <= min_words <= max_words:
            raise ValueError(f"expected 1 <= min_words <= max_words, got {min_words} and {max_words}")
        read = read_dialogues(dialogues) if isinstance(dialogues, str | Path) else dialogues

        def fitting() -> Iterator[str]:
            for dialogue in read:
                for turn in dialogue.turns:
                    # A break inside a turn marks text that was laid out, not said.
                    if len(turn.text.strip().splitlines()) > 1:
                        continue
                    text = single_line(turn.text)
                    if min_words <= len(text.split()) <= max_words:
                        yield text

        return cls(dict.fromkeys(fitting()) if dedupe else fitting())

    def to_lines(self, path: str | Path) -> None:
        """Writes one context per line, UTF-8, atomically."""
        write_bytes(path, "".join(f"{text}\n" for text in self.texts).encode())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts and their order."""
        # No text holds a line break, so joining by one is unambiguous.
        return fingerprint("\n".join(self.texts))

    def ids_of(self, text: str) -> tuple[int, ...]:
        """Returns the ids of all contexts that equal ``text`` once it is put on one line."""
        return self._ids.get(single_line(text), ())

    @cached_property
    def _ids(self) -> dict[str, tuple[int, ...]]:
        ids: dict[str, tuple[int, ...]] = {}
        for i, text in enumerate(self.texts):
            ids[text] = (*ids.get(text, ()), i)
        return ids

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.texts[index]

    def __repr__(self) -> str:
        return f"ContextPool({len(self)} contexts)"


def _first_bad_byte(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    raise AssertionError("the data is valid UTF-8")
