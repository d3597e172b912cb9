"""A visitor's conversation as a value, and what a visitor is told of errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from dialogkit.chat import MAX_MESSAGE, Reply
from dialogkit.dialogues import USER, Turn, single_line
from dialogkit.generation import EndpointError
from dialogkit.pdp import Character
from dialogkit.serving import Busy, FailedError

__all__ = ["MAX_EXCHANGES", "SHOWN", "Conversation", "friendly"]

MAX_EXCHANGES = 200
"""Most messages that are answered in one conversation: all of them stay in memory."""

SHOWN = (ValueError, TypeError, OSError, EndpointError, Busy, FailedError)
"""Errors that a visitor is told of; anything else is a defect of the program."""

_MAX_TOLD = 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """What was said in one browser tab.

    Attributes:
        who: The bot that answers; see :class:`~dialogkit.web.cast.Cast`.
        character: The visitor's own character, if there is one.
        turns: The user's and the bot's turns in alternation.
        replies: For each answered message the reply with its evidence.
    """

    who: str
    character: Character | None = None
    turns: tuple[Turn, ...] = ()
    replies: tuple[Reply, ...] = ()

    def anew(self, who: str | None = None, character: Character | None = None) -> Conversation:
        """A new one, with the same bot or another, and with the visitor's own character if there is one."""
        return Conversation(who or self.who, character or self.character)

    def asked(self, text: str) -> tuple[Turn, ...]:
        """The turns with another message, for a bot to answer.

        Raises:
            ValueError: The message is blank or has more than 8,000 characters, or the conversation is full.
        """
        message = single_line(text)
        if not message:
            raise ValueError("the message is empty")
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"a message may have {MAX_MESSAGE:,} characters, this one has {len(message):,}")
        if len(self.replies) >= MAX_EXCHANGES:
            raise ValueError(f"{MAX_EXCHANGES} messages are the most; save the conversation and begin anew")
        return (*self.turns, Turn(USER, message))

    def answered(self, asked: tuple[Turn, ...], name: str, reply: Reply) -> Conversation:
        """The conversation with a message and its answer.

        Args:
            asked: What :meth:`asked` returned.
            name: The bot's.
            reply: Its reply.
        """
        turns = (*asked, Turn(name, reply.text))
        return replace(self, turns=turns, replies=(*self.replies, replace(reply, candidates=())))


def friendly(error: BaseException) -> str:
    """What a visitor is told of an error: a sentence or two, without addresses on this machine.

    The whole error is in the log.
    """
    if isinstance(error, FailedError):  # which the engine has logged
        return "Something went wrong on the machine that runs this page. Its log says more."
    logger.warning("shown to a visitor: %s", error, exc_info=error)
    if isinstance(error, TimeoutError):
        return "The reply took too long and was given up. Please try again, or ask for something shorter."
    if isinstance(error, Busy):
        return "Too many people are talking just now. Please try again in a moment."
    if isinstance(error, EndpointError):
        return "The language model's server did not answer as it should. Please try again."
    if isinstance(error, OSError):
        return "Something could not be read on the machine that runs this page. Its log says more."
    told = single_line(str(error)) or type(error).__name__
    told = told if len(told) <= _MAX_TOLD else f"{told[:_MAX_TOLD]}…"
    return f"That did not work: {told}{'' if told[-1] in '.!?…' else '.'}"
