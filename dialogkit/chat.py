"""Chatbots, their replies, and a session that keeps the conversation."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dialogkit.dialogues import USER, Turn, single_line
from dialogkit.generation.types import Candidate
from trainkit.hub import write_bytes

__all__ = ["MAX_MESSAGE", "ChatSession", "Chatbot", "Latency", "Reply", "measure_latency"]

MAX_MESSAGE = 8000
"""Most characters of one message in a session; of a longer one the end is kept, with a warning."""


@dataclass(frozen=True)
class Reply:
    """What a chatbot answers.

    Attributes:
        text: The answer.
        candidates: What it was chosen from. Where a reply was streamed, it alone, or nothing if its language
            model does not tell more than the text.
        evidence: Where the words came from (matched dialogues, retrieved responses, the prompt ...), made of
            what JSON knows.
        timing: Seconds by stage; ``"total"`` is the whole.
    """

    text: str
    candidates: tuple[Candidate, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Chatbot(Protocol):
    """Anything that answers a conversation.

    Attributes:
        name: Its display name, the speaker of its turns.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - documented in the class

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answer the last turn.

        Args:
            history: Turns, oldest first, or the text of a single turn of the user.
            seed: Any integer for the same answer each time.
        """
        ...

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Iterator[str]:
        """Answer piece by piece.

        An implementation that is a generator may return a `Reply` at its end (the value of its
        ``StopIteration``): a session then keeps its evidence.
        """
        ...

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answer several conversations at once, in their order."""
        ...


@dataclass(frozen=True)
class Latency:
    """Seconds that a reply takes.

    Attributes:
        mean: Mean over the replies.
        p50: Median.
        p95: 95th percentile, linearly interpolated.
        replies: How many were measured.
    """

    mean: float
    p50: float
    p95: float
    replies: int


def measure_latency(
    bot: Chatbot, histories: Sequence[Sequence[Turn] | str], *, warmup: int = 3, seed: int = 0
) -> Latency:
    """Measures how long a chatbot takes for each of some conversations, answered one at a time.

    Args:
        bot: Who answers.
        histories: The conversations, at least one.
        warmup: The first conversations are answered this often before the clock runs.
        seed: Of the replies.

    Raises:
        ValueError: There are no conversations.
    """
    import numpy as np

    if not histories:
        raise ValueError("histories is empty: there is nothing to measure")
    for i in range(warmup):
        bot.reply(histories[i % len(histories)], seed=seed)
    seconds = []
    for history in histories:
        # A chatbot returns text, so work on a GPU has ended when it does.
        begin = time.perf_counter()
        bot.reply(history, seed=seed)
        seconds.append(time.perf_counter() - begin)
    return Latency(
        float(np.mean(seconds)),
        float(np.percentile(seconds, 50)),
        float(np.percentile(seconds, 95)),
        len(seconds),
    )


class ChatSession:
    r"""A conversation between one user and one chatbot.

    Every answered message adds two turns; a message that is not answered (an error, a stream that is not read
    to its end) adds none. Messages are cleaned before anything else: line breaks become spaces, so no message
    can forge a turn such as ``"\nUser: ..."``, control characters are removed, and of more than 8,000
    characters the last 8,000 are kept, with a warning.

    Args:
        bot: Who answers.
        history: Turns that were spoken already.
        user: Speaker name of the user's turns.

    Attributes:
        bot: Who answers.
        user: Speaker name of the user's turns.
        history: The turns so far.
        last_reply: The last answer with its evidence, None before the first one and after `reset`.
    """

    def __init__(self, bot: Chatbot, *, history: Sequence[Turn] = (), user: str = USER) -> None:
        for turn in history:
            if not isinstance(turn, Turn):
                raise TypeError(f"history must hold Turn objects, got {type(turn).__name__}")
        self.bot = bot
        self.user = user
        self.history: list[Turn] = list(history)
        self.last_reply: Reply | None = None

    def reply(self, text: str, *, seed: int | None = None) -> Reply:
        """Answer a message.

        Args:
            text: What the user says.
            seed: Any integer for the same answer each time.

        Returns:
            The answer; both turns are in `history` then.

        Raises:
            TypeError: If `text` is not a string.
            ValueError: If nothing is left of `text` once it is cleaned.
        """
        message = Turn(self.user, _clean(text))
        reply = self.bot.reply((*self.history, message), seed=seed)
        self._record(message, reply)
        return reply

    def stream(self, text: str, *, seed: int | None = None) -> Iterator[str]:
        """Answer a message piece by piece; the turns are in `history` once all pieces were read.

        Args:
            text: What the user says; checked at once, before the first piece is asked for.
            seed: Any integer for the same answer each time.

        Returns:
            Iterator over the pieces of the answer.

        Raises:
            TypeError: If `text` is not a string.
            ValueError: If nothing is left of `text` once it is cleaned.
        """
        message = Turn(self.user, _clean(text))
        return self._stream(message, seed)

    def _stream(self, message: Turn, seed: int | None) -> Generator[str, None, None]:
        begin = time.perf_counter()
        said: list[str] = []

        def told(pieces: Iterator[str]) -> Generator[str, None, Any]:
            # `yield from` hands on the value that a generator returns.
            return (yield from pieces)

        end: Any = None
        with closing(told(self.bot.stream((*self.history, message), seed=seed))) as stream:
            while True:
                try:
                    piece = next(stream)
                except StopIteration as stop:
                    end = stop.value
                    break
                said.append(piece)
                yield piece
        if not isinstance(end, Reply):
            end = Reply("".join(said), timing={"total": time.perf_counter() - begin})
        self._record(message, end)

    def _record(self, message: Turn, reply: Reply) -> None:
        self.history += [message, Turn(self.bot.name, reply.text)]
        self.last_reply = reply

    def reset(self) -> None:
        """Forget the conversation."""
        self.history.clear()
        self.last_reply = None

    def to_json(self) -> str:
        """The conversation as JSON: the bot's name, the user's name and the turns (not the evidence)."""
        turns = [{"speaker": turn.speaker, "text": turn.text} for turn in self.history]
        return json.dumps(
            {"bot": self.bot.name, "user": self.user, "turns": turns}, ensure_ascii=False, indent=2
        )

    @classmethod
    def from_json(cls, text: str, bot: Chatbot) -> ChatSession:
        """Go on with a conversation that `to_json` wrote.

        Args:
            text: The JSON.
            bot: Who answers from now on; its name need not be the one in the JSON.

        Returns:
            The session.

        Raises:
            ValueError: If `text` is not such JSON.
        """
        try:
            data = json.loads(text)
            turns = [Turn(turn["speaker"], turn["text"]) for turn in data["turns"]]
            return cls(bot, history=turns, user=Turn(data["user"], "").speaker)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a saved chat session: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, whole or not at all.

        Args:
            path: The file; its folder must exist, an existing file is replaced.
        """
        write_bytes(path, f"{self.to_json()}\n".encode())

    @classmethod
    def load(cls, path: str | Path, bot: Chatbot) -> ChatSession:
        """Read a conversation from a file.

        Args:
            path: A file that `save` wrote.
            bot: Who answers from now on.

        Returns:
            The session.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else; the message names it.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), bot)
        except ValueError as error:  # includes bad encoding
            raise ValueError(f"{path}: {error}") from error


def _clean(text: str) -> str:
    message = single_line(text)
    if not message:
        raise ValueError(f"text must say something, got {text[:60]!r}")
    if len(message) > MAX_MESSAGE:
        warnings.warn(
            f"a message of more than {MAX_MESSAGE:,} characters is shortened to its last {MAX_MESSAGE:,}",
            stacklevel=3,
        )
        message = message[-MAX_MESSAGE:].lstrip()
    return message
