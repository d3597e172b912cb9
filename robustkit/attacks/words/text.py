"""Texts as word attacks see them: a sequence of words that can be replaced while all else stays in place.

What counts as a word, how a deletion treats the blanks around it and how indices move is that of TextAttack
0.3.11's ``AttackedText``, so that an attack makes the same choices; the tests compare the two.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["WordText", "split_words"]

_TRIMMED = "'-_*@"  # may stand inside a word, not at its ends
_RUN = re.compile(r"[\w˗`×'\-_*@]+")
_CHINESE = re.compile("[\u4e00-\u9fff]")


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text, in order.

    A word is a run of letters, digits and three look-alikes (``˗``, a backtick, ``×``). The characters
    ``' - _ * @`` may stand inside it (``don't``, ``well-made``) and are trimmed from its ends. Everything
    else separates words.

    A text with Chinese characters is cut by jieba where that is installed, as TextAttack does. Without jieba
    a run of such characters is one word, which is warned about once.

    Args:
        text: Any text.

    Returns:
        The words; none for an empty text or one of punctuation only.
    """
    if _CHINESE.search(text):
        text = _cut_chinese(text)
    runs = (run for piece in text.split() for run in _RUN.findall(piece.strip(_TRIMMED)))
    return tuple(word for run in runs if (word := run.strip(_TRIMMED)))


def _cut_chinese(text: str) -> str:
    if not _has_jieba():
        return text
    return " ".join(importlib.import_module("jieba").cut(text))


@lru_cache(maxsize=1)
def _has_jieba() -> bool:
    if importlib.util.find_spec("jieba") is not None:
        return True
    warnings.warn(
        "a text holds Chinese characters and jieba is not installed: a run of them counts as one word "
        "(pip install jieba to cut it into words as TextAttack does)",
        stacklevel=4,
    )
    return False


_split_short = lru_cache(maxsize=2**16)(split_words)  # for single words, which come again and again


class WordText:
    """A text, its words, and which of them differ from the text that an attack began with.

    Immutable but for `similarity`. Two texts are equal if they read the same, whatever their history.

    Args:
        text: The text, or the named parts of a model's input such as ``{"premise": ..., "hypothesis": ...}``;
            an attack sees the parts as one text, joined by line breaks.

    Attributes:
        columns: Names of the parts; ``("text",)`` for a plain string.
        inputs: The parts.
        text: The parts joined by line breaks.
        previous: The text that this one was made from, None for the one that an attack began with.
        modified: Indices of words that differ from those of the original, by the history of replacements.
        newly_modified: Those that the last replacement changed, in this text's indices.
        similarity: What the last sentence constraint measured between this text and its reference, None if
            none did. Set by the constraint.

    Raises:
        TypeError: ``text`` is neither a string nor a mapping to strings.
    """

    __slots__ = (
        "_ends",
        "_growths",
        "_index_map",
        "_word_starts",
        "_words",
        "columns",
        "inputs",
        "modified",
        "newly_modified",
        "previous",
        "similarity",
        "text",
    )

    def __init__(self, text: str | Mapping[str, str]) -> None:
        parts = {"text": text} if isinstance(text, str) else text
        if not isinstance(parts, Mapping) or not all(isinstance(part, str) for part in parts.values()):
            raise TypeError(f"text is {text!r:.80}; expected a string or a mapping from names to strings")
        self.columns: tuple[str, ...] = tuple(parts)
        self.inputs: tuple[str, ...] = tuple(parts.values())
        self.text = "\n".join(self.inputs)
        self.previous: WordText | None = None
        self._words: tuple[str, ...] | None = None
        self._word_starts: list[int] | None = None
        self._ends: list[int] | None = None
        self.modified: frozenset[int] = frozenset()
        self.newly_modified: frozenset[int] = frozenset()
        self._index_map: tuple[int, ...] | None = tuple(range(len(self.words)))
        self._growths: list[tuple[int, int, bool]] = []
        self.similarity: float | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `text`, see `split_words`."""
        if self._words is None:
            self._words = split_words(self.text)
        return self._words

    @property
    def words_per_input(self) -> tuple[tuple[str, ...], ...]:
        """The words of each part."""
        return tuple(split_words(part) for part in self.inputs)

    @property
    def model_input(self) -> str | tuple[str, ...]:
        """What a classifier reads: the text, or the tuple of parts if there are several."""
        return self.inputs[0] if len(self.inputs) == 1 else self.inputs

    @property
    def original(self) -> WordText:
        """The text that the chain of replacements began with, this one if there were none."""
        text = self
        while text.previous is not None:
            text = text.previous
        return text

    @property
    def original_index_map(self) -> tuple[int, ...]:
        """For each word of the original its index in this text, -1 where it was deleted."""
        if self._index_map is None:
            assert self.previous is not None
            places = self.previous.original_index_map
            for index, growth, in_front in self._growths:
                here = -1 if growth == -1 else index + growth * in_front
                places = tuple(
                    here if place == index else place + growth * (place > index) for place in places
                )
            self._index_map = places
        return self._index_map

    @property
    def _starts(self) -> list[int]:
        """Where each word begins in `text`."""
        if self._word_starts is None:
            self._word_starts, end = [], 0
            for word in self.words:
                start = self.text.index(word, end)
                self._word_starts.append(start)
                end = start + len(word)
        return self._word_starts

    def deleted(self, index: int) -> WordText:
        """The text without one word, and without one of the blanks around it.

        Args:
            index: Which word.

        Returns:
            A new text.

        Raises:
            IndexError: There is no such word.
        """
        return self.replaced(index, "")

    def replaced(self, where: int | Mapping[int, str], word: str = "") -> WordText:
        """The text with other words in place of some.

        Args:
            where: Index of the word to replace, or a mapping from indices to new words.
            word: The new word if ``where`` is an index. An empty one deletes, several insert.

        Returns:
            A new text. Punctuation and blanks stay, but for one blank beside a deleted word.

        Raises:
            IndexError: There is no such word.
        """
        changes = dict(sorted(where.items())) if isinstance(where, Mapping) else {int(where): word}
        for index in changes:
            if not 0 <= index < len(self.words):
                raise IndexError(f"no word {index} in a text of {len(self.words)} words: {self.text!r:.80}")
        new = WordText.__new__(WordText)
        new.columns, new.previous, new.similarity = self.columns, self, None
        new._word_starts, new._ends = None, None
        new.inputs = self._edited(changes)
        new.text = "\n".join(new.inputs)
        new._words = self._replaced_words(changes)
        if new._words is not None and len(changes) == 1:
            (index,) = changes
            growth = len(new._words[index]) - len(self.words[index])
            starts = self._starts
            new._word_starts = starts[: index + 1] + [start + growth for start in starts[index + 1 :]]
        self._track(changes, new)
        return new

    def _edited(self, changes: Mapping[int, str]) -> tuple[str, ...]:
        """The parts with the changes made."""
        edits = []  # start and end in `text`, what replaces it
        done = 0
        for index, new in changes.items():
            start = self._starts[index]
            end = start + len(self.words[index])
            if not _split_short(new) and end < len(self.text):
                if index == 0:
                    end += self.text[end] == " "
                elif start > done and self.text[start - 1] == " ":
                    start -= 1
            edits.append((start, end, new))
            done = end
        parts = []
        offset = 0
        for part in self.inputs:
            pieces, at = [], 0
            for start, end, new in edits:
                if offset <= start < offset + len(part):
                    pieces += [part[at : start - offset], new]
                    at = end - offset
            parts.append("".join([*pieces, part[at:]]))
            offset += len(part) + 1
        return tuple(parts)

    def _replaced_words(self, changes: Mapping[int, str]) -> tuple[str, ...] | None:
        """The words after the changes if they can be told without splitting the whole text again.

        They can if each new word is one word: what surrounds it still separates it from its neighbours.
        """
        if any(_split_short(new) != (new,) for new in changes.values()) or _CHINESE.search(
            "".join([self.text, *changes.values()])
        ):
            return None
        words = list(self.words)
        for index, new in changes.items():
            words[index] = new
        return tuple(words)

    def _track(self, changes: Mapping[int, str], new: WordText) -> None:
        """Fill in which words of the new text are modified, and what moves the original's words."""
        modified = set(self.modified)
        newly: list[int] = []
        new._growths = []  # where, by how many words, and whether they come in front of the old one
        shift = 0  # how far the words behind the changes so far have moved
        for index, word in changes.items():
            old, words = self.words[index], _split_short(word)
            growth = len(words) - len(_split_short(old))
            if growth:
                modified = {i + growth * (i > index) for i in modified if i != index}
                new._growths.append((index, growth, growth > 0 and old != words[0]))
            if word != old:
                places = range(index + shift, index + shift + len(words))
                modified.update(places)
                newly += places
            shift += growth
        new.modified = frozenset(modified)
        new.newly_modified = frozenset(newly)
        # Worked out when asked for: most texts with a word more or less only rank the words.
        new._index_map = None if new._growths else self.original_index_map

    def window(self, index: int, size: float) -> str:
        """The text from the first to the last of some words around one.

        Args:
            index: The word in the middle; near an end of the text the window keeps to the text.
            size: Number of words; ``math.inf`` means all.

        Returns:
            A piece of `text`, without what stands before the first and behind the last word.

        Raises:
            ValueError: The text has no words.
        """
        count = len(self.words)
        if not count:
            raise ValueError(f"a text without words has no window: {self.text!r:.80}")
        half = (size - 1) / 2
        if index - half < 0:
            first, last = 0, int(min(size - 1, count - 1))
        elif index + half >= count:
            first, last = int(max(0, count - size)), count - 1
        else:
            first, last = index - math.ceil(half), index + math.floor(half)
        if self._ends is None:
            self._ends = self._word_ends()
        return self.text[self._ends[first] - len(self.words[first]) : self._ends[last]]

    def _word_ends(self) -> list[int]:
        """Where each word ends, as TextAttack's windows have it.

        It looks in the text's small letters, whose offsets differ where a capital has a longer small form.
        """
        if self.text.isascii():
            return [start + len(word) for start, word in zip(self._starts, self.words, strict=True)]
        lower, end, ends = self.text.lower(), 0, []
        for word in self.words:
            end = lower.find(word.lower(), end) + len(word)
            ends.append(end)
        return ends

    def marked(self) -> tuple[str, str]:
        """The original and this text with ``[[ ]]`` around each word that has no equal in the other.

        Returns:
            Original and perturbed text as TextAttack's logs have them. The names of several parts stand
            before them as ``[[[[Premise]]]]: ``.
        """
        original = self.original
        ours = dict(enumerate(self.words))
        theirs = {}
        for index, (old, now) in enumerate(zip(original.words, self.original_index_map, strict=True)):
            if now >= 0 and self.words[now] == old:
                ours.pop(now, None)
            else:
                theirs[index] = old
        return original._with_marks(theirs), self._with_marks(ours)

    def _with_marks(self, words: Mapping[int, str]) -> str:
        parts = self._edited({index: f"[[{word}]]" for index, word in words.items()})
        if len(parts) == 1:
            return parts[0]
        return "\n".join(
            f"[[[[{name.capitalize()}]]]]: {part}" for name, part in zip(self.columns, parts, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordText) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"WordText({self.text!r})"
