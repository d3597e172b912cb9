"""What chatbots are asked: contexts, each with the human replies that are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dialogkit.dialogues import USER, DataError, Turn, single_line
from trainkit.datafiles import read_jsonl
from trainkit.hub import fingerprint

__all__ = ["EvaluationCase", "cases_fingerprint", "history_of", "read_cases"]

_REPLIES = ("responses", "positive_responses", "response")
"""Keys that human replies may stand under; the first that a record has is taken."""


@dataclass(frozen=True)
class EvaluationCase:
    """A context and human replies to it.

    Attributes:
        context: The turns so far, oldest first, the last one not blank.
        references: Human replies, none blank; may be none at all.

    Raises:
        TypeError: Something is not a string, or a sequence is one string.
        ValueError: There is no turn, the last one is blank, or a reply is blank.
    """

    context: tuple[str, ...]
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("context", "references"):
            texts: Any = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{name} must be a sequence of strings, got {texts!r:.80}")
            object.__setattr__(self, name, tuple(texts))
        if not self.context or not single_line(self.context[-1]):
            raise ValueError(f"context must end with a turn that says something, got {self.context!r:.80}")
        if not all(text.strip() for text in self.references):
            raise ValueError(f"references must not be blank, got {self.references!r:.80}")


def read_cases(
    source: str | Path | Iterable[Mapping[str, Any]], *, limit: int | None = None, seed: int = 0
) -> list[EvaluationCase]:
    """Reads contexts with their human replies.

    Args:
        source: A JSON-lines file (``.gz``: gzip) or an iterable of mappings, each with ``context`` (a list of
            turns) and human replies under ``responses`` or ``positive_responses`` (lists), or ``response``
            (one text, or a list), or none of these. Other keys are ignored.
        limit: Draw this many at random, in the order of the file; None takes all.
        seed: Of the draw.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: A record cannot be used; the message names it.
        ValueError: There are no contexts, or ``limit`` is below 1.
    """
    records = read_jsonl(source) if isinstance(source, str | Path) else source
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    cases = []
    for number, record in enumerate(records, start=1):
        key = next((key for key in _REPLIES if key in record), None)
        replies = [] if key is None else record[key]
        try:
            if "context" not in record:
                raise ValueError(f"lacks the key 'context', has {sorted(map(str, record))}")
            human: Any = (replies,) if isinstance(replies, str) else replies
            cases.append(EvaluationCase(record["context"], human))
        except (TypeError, ValueError) as error:
            raise DataError(f"{_name(source)}, record {number}: {error}") from error
    if not cases:
        raise ValueError(f"{_name(source)} holds no contexts")
    if limit is not None and limit < len(cases):
        rows = np.random.default_rng(seed).choice(len(cases), size=limit, replace=False)
        cases = [cases[row] for row in sorted(rows.tolist())]
    return cases


def history_of(context: Sequence[str], bot: str) -> tuple[Turn, ...]:
    """A context as turns of a user and a chatbot in alternation, the last one the user's.

    Args:
        context: The turns; blank ones are left out.
        bot: The chatbot's name.
    """
    turns = [line for line in map(single_line, context) if line]
    user = USER if bot.casefold() != USER.casefold() else f"Other {USER}"
    return tuple(Turn(user if (len(turns) - i) % 2 else bot, turn) for i, turn in enumerate(turns))


def cases_fingerprint(cases: Sequence[EvaluationCase]) -> str:
    """Identifies contexts and human replies, in their order."""
    return fingerprint(*(part for case in cases for part in (case.context, case.references)))


def _name(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else "the data"
