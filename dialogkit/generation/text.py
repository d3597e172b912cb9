"""From tokens to the text of a reply: incremental decoding, stop strings, what may be streamed already."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from dialogkit.generation.types import Candidate, FinishReason

__all__ = ["IncrementalDecoder", "ReplyText", "collected", "held_back"]

# What decoders write for bytes that are not (yet) a character.
_INCOMPLETE = "\ufffd"


class IncrementalDecoder:
    """Decodes tokens as they come, without ever taking a piece of text back.

    Many decoders look at a token's neighbours (the space before a word, bytes of one character in several
    tokens), so a new token is decoded together with the few before it, and text that ends in an unfinished
    character waits for the next token. Cost per token does not grow with the length.

    Args:
        decode: From token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # first token of the window that gives the newest ones their context
        self._read = 0  # first token whose text is not out yet

    def push(self, token: int) -> str:
        """Take the next token and return the text that is now certain, often empty."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """Text still waiting when no token follows; bytes that never became a character are dropped."""
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :]).rstrip(_INCOMPLETE)
        self._start = self._read = len(self._ids)
        return now[len(before) :]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that could be the beginning of a stop string.

    Args:
        text: Text so far, which contains no stop string.
        stop: Stop strings.

    Returns:
        Number of characters, 0 if no stop string can have begun.
    """
    longest = 0
    for string in stop:
        for size in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:size]):
                longest = size
                break
    return longest


class ReplyText:
    """The text of one reply while it is being generated; the same rules serve whole and streamed replies.

    Args:
        stop: Stop strings.
        special_ids: Tokens that are no text and count for nothing.
    """

    def __init__(self, stop: Sequence[str], special_ids: Collection[int] = ()) -> None:
        self._stop = tuple(stop)
        self._longest = max((len(string) for string in self._stop), default=0)
        self._special = special_ids
        self._text = ""
        self._end: int | None = None  # where the first stop string begins
        self._scores: list[tuple[int, float]] = []  # where a token begins, its log-probability
        self._taken = 0
        self.finish_reason: FinishReason | None = None

    def push(self, piece: str, token: int | None = None, logprob: float | None = None) -> bool:
        """Add a piece of text and the token it came with.

        Args:
            piece: Text, possibly empty.
            token: Id of the token.
            logprob: Its log-probability; None leaves it out of the score.

        Returns:
            Whether the text now contains a stop string, so that nothing more is needed.
        """
        if logprob is not None and token not in self._special:
            self._scores.append((len(self._text), logprob))
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += piece
        found = [at for string in self._stop if (at := self._text.find(string, searched)) >= 0]
        if found:
            self._end = min(found)
            self.finish_reason = "stop"
        return bool(found)

    @property
    def text(self) -> str:
        """The reply so far: cut at the stop string, stripped at both ends."""
        return self._text[: self._end].strip()

    def take(self) -> str:
        """What can be shown and was not yet: nothing that a stop string or the final strip could remove."""
        end = self._end
        if end is None and self.finish_reason is None:
            end = len(self._text) - held_back(self._text, self._stop)
        ready = self._text[:end].strip()
        piece, self._taken = ready[self._taken :], len(ready)
        return piece

    def candidate(self) -> Candidate:
        """The finished reply with its score."""
        if self.finish_reason is None:
            raise RuntimeError("the reply is not finished")
        end = len(self._text[: self._end].rstrip())
        counted = [logprob for at, logprob in self._scores if at < end]
        total = math.fsum(counted)
        return Candidate(
            text=self.text,
            logprob=total / len(counted) if counted else float("-inf"),
            sum_logprob=total,
            num_tokens=len(counted),
            finish_reason=self.finish_reason,
        )


def collected(pieces: Iterator[str]) -> Generator[str, None, tuple[str, tuple[Candidate, ...]]]:
    """Hands on what a language model streams.

    Args:
        pieces: What `LanguageModel.stream` returned.

    Yields:
        The pieces.

    Returns:
        Their text, and the candidate if the model tells of it.
    """
    said: list[str] = []

    def told() -> Generator[str, None, Any]:
        # `yield from` hands on the value that a generator returns.
        return (yield from pieces)

    with closing(told()) as stream:
        while True:
            try:
                piece = next(stream)
            except StopIteration as stop:
                return "".join(said), (stop.value,) if isinstance(stop.value, Candidate) else ()
            said.append(piece)
            yield piece
