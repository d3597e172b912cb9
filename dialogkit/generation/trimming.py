"""Making a conversation fit into a context window without losing what was asked last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from dialogkit.dialogues import Turn
from dialogkit.generation.types import PromptError

__all__ = ["trim_history"]


def trim_history(history: Sequence[Turn], fits: Callable[[tuple[Turn, ...]], bool]) -> tuple[Turn, ...]:
    """Drop the oldest turns until the rest fits; the last turn always stays.

    If the last turn alone does not fit, it loses white space at its ends, then its beginning, with a warning.
    Both the number of turns and the length of the last one are found by bisection: about
    ``log2(len(history)) + log2(len(text))`` calls.

    Example:
        >>> room = model.max_length - config.max_new_tokens
        >>> trim_history(turns, lambda kept: model.count_tokens(build(kept)) <= room)

    Args:
        history: Turns, oldest first, at least one.
        fits: Whether a conversation of these turns fits; if some turns fit, then so do fewer of them.

    Returns:
        The newest turns that fit, as many as possible.

    Raises:
        ValueError: If there is no turn.
        PromptError: If not even the last character of the last turn fits.
    """
    turns = tuple(history)
    if not turns:
        raise ValueError("history must hold at least one turn, got none")
    if fits(turns):
        return turns
    last = turns[-1]
    if fits((last,)):
        return turns[_first_true(1, len(turns) - 1, lambda begin: fits(turns[begin:])) :]

    text = last.text.strip()

    def shortened(begin: int) -> Turn:
        return Turn(last.speaker, text[begin:].lstrip())

    end = len(text) - 1
    if end < 0 or not fits((shortened(end),)):
        raise PromptError("the context window is too small for the prompt without any of the conversation")
    begin = _first_true(0, end, lambda begin: fits((shortened(begin),)))
    if begin:
        warnings.warn(
            "the last turn does not fit into the context window and loses its beginning", stacklevel=2
        )
    return (shortened(begin),)


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Smallest number in [low, high] for which `holds`, which is true at `high` and stays true once it is."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
