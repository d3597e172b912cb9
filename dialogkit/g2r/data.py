"""What a G2R student learns from: contexts with candidate responses and a teacher's scores of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialogkit.dialogues import DataError, single_line

__all__ = ["ORIGINAL", "ScoredContext", "group_by_context", "response_set"]

ORIGINAL = "original"
"""The ``source`` of a response that a person wrote."""


@dataclass(frozen=True)
class ScoredContext:
    """A context with its candidate responses.

    Attributes:
        context: The turns so far, oldest first; at least one.
        responses: Candidate responses, distinct, at least one.
        scores: The teacher's score of each.
        sources: Where each comes from, :data:`ORIGINAL` for a person.

    Raises:
        ValueError: Lengths differ, something is empty or repeated, or a score is not finite.
    """

    context: tuple[str, ...]
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.context or not self.responses:
            raise ValueError("context and responses must hold at least one text each")
        if not len(self.responses) == len(self.scores) == len(self.sources):
            raise ValueError(
                f"responses, scores and sources must have one length, got {len(self.responses)}, "
                f"{len(self.scores)} and {len(self.sources)}"
            )
        if len(set(self.responses)) < len(self.responses):
            raise ValueError(f"responses of a context must be distinct, got {self.responses}")
        for response, score in zip(self.responses, self.scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(f"the score of {response[:60]!r} is {score}")


def group_by_context(records: Iterable[Mapping[str, Any]], score: str = "ll") -> list[ScoredContext]:
    """Gathers the responses of equal contexts.

    Line breaks and tabs become spaces. Of equal responses to one context the first is kept, but a person's
    before a generated one.

    Args:
        records: ``{"context": [str, ...], "response": str, "source": str, "score_infos": {score: float}}``.
        score: Which of the scores to take.

    Returns:
        One row per distinct context, in the order of their first appearance.

    Raises:
        DataError: A record lacks a field or holds a wrong one; the message counts records from 0.
    """
    groups: dict[tuple[str, ...], dict[str, tuple[float, str]]] = {}
    for number, record in enumerate(records):
        try:
            context = tuple(single_line(turn) for turn in record["context"])
            response = single_line(record["response"])
            value = float(record["score_infos"][score])
            source = str(record["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"record {number}: not a scored response with {score!r}: {error!r}") from error
        if isinstance(record["context"], str) or not context or not response or not math.isfinite(value):
            raise DataError(f"record {number}: needs a list of turns, a response and a finite score")
        known = groups.setdefault(context, {})
        if response not in known or (source == ORIGINAL and known[response][1] != ORIGINAL):
            known[response] = (value, source)
    return [
        ScoredContext(
            context,
            tuple(known),
            tuple(value for value, _ in known.values()),
            tuple(source for _, source in known.values()),
        )
        for context, known in groups.items()
    ]


def response_set(examples: Sequence[ScoredContext], *, generated: bool = True) -> list[str]:
    """The distinct responses of some contexts: what the student will retrieve from.

    Args:
        examples: The contexts.
        generated: False leaves only what persons wrote (the vanilla baseline's set).
    """
    return list(
        dict.fromkeys(
            response
            for example in examples
            for response, source in zip(example.responses, example.sources, strict=True)
            if generated or source == ORIGINAL
        )
    )
