"""How parts of an attack ask models without waiting for them.

An attack on one text is a chain of small questions to slow models: a classifier, a sentence encoder, a masked
language model. Each part of an attack is therefore a generator that hands a question out and goes on with the
answers::

    vectors = yield Ask(encoder, texts)

Whoever drives the generators decides how the questions are merged: `run` answers each at once, the engine
collects the questions of many texts, drops duplicates and fills batches. The parts read the same either way.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

__all__ = ["Ask", "Service", "Steps", "run"]

T = TypeVar("T")


class Service(Protocol):
    """Anything that answers many questions at once, such as a model that works in batches."""

    def answer(self, payloads: Sequence[Any]) -> Sequence[Any]:
        """Answer questions.

        Args:
            payloads: Hashable questions; which type they have is the service's own.

        Returns:
            One answer for each, in order. An answer depends on its own payload only.
        """
        ...


@dataclass(frozen=True)
class Ask:
    """Questions to one service, handed out by a part of an attack.

    Attributes:
        service: Who is asked.
        payloads: The questions; may hold duplicates and may be empty.
    """

    service: Service
    payloads: tuple[Hashable, ...]


Steps: TypeAlias = Generator[Ask, Sequence[Any], T]
"""A computation that yields `Ask`, is sent one answer per payload, and returns ``T``."""


def run(steps: Steps[T]) -> T:
    """Drive one computation to its end, answering every question as it comes.

    Args:
        steps: The computation.

    Returns:
        What it returns.
    """
    try:
        question = next(steps)
        while True:
            question = steps.send(question.service.answer(question.payloads) if question.payloads else ())
    except StopIteration as end:
        result: T = end.value
        return result
