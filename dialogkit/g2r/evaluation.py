"""How often a retriever finds the human response among others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dialogkit.dialogues import Example, single_line
from dialogkit.retrieval import Retriever

__all__ = ["context_text", "draw_distractors", "evaluate_hits", "hits_at_1"]


def context_text(turns: Sequence[str], max_turns: int = 20) -> str:
    """A context as the student reads it: its last turns, one a line."""
    lines = [single_line(turn) for turn in turns]
    return "\n".join([line for line in lines if line][-max_turns:])


def hits_at_1(
    scores_of_true: np.ndarray[tuple[int], np.dtype[np.float32]],
    scores_of_others: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> float:
    """The share of rows whose true response scores above all others; a tie is no hit.

    Args:
        scores_of_true: ``[n]``.
        scores_of_others: ``[n, m]``; ``-inf`` for an entry that does not count.
    """
    return float((scores_of_true > scores_of_others.max(axis=1)).mean())


def draw_distractors(count: int, size: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Numbers of ``size`` other examples for each of ``count``, without replacement: ``[count, size]``."""
    draw = np.random.default_rng(seed)
    others = np.stack([draw.choice(count - 1, size=size, replace=False) for _ in range(count)])
    return others + (others >= np.arange(count)[:, None])


def evaluate_hits(
    retriever: Retriever,
    examples: Sequence[Example],
    *,
    candidates: Sequence[int] = (10, 100),
    max_turns: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Hits@1: each context ranks its human response among responses to other contexts.

    Distractors are drawn without replacement from the other examples; texts equal to the true response do
    not count. The same seed draws the same distractors, for whatever retriever.

    Args:
        retriever: Encodes contexts and responses.
        examples: At least as many as the largest number of candidates.
        candidates: Sizes k of the set to choose from, the true response included.
        max_turns: Turns of a context that are read.
        seed: Of the distractors.

    Returns:
        ``{"hits@1/10": ..., "hits@1/100": ...}``, shares in [0, 1].

    Raises:
        ValueError: There are fewer examples than candidates, or a k is below 2.
    """
    if min(candidates) < 2 or max(candidates) > len(examples):
        raise ValueError(
            f"candidates must be 2 to {len(examples)} (the number of examples), got {list(candidates)}"
        )
    responses = [single_line(example.response) for example in examples]
    queries = retriever.encode_context([context_text(example.context, max_turns) for example in examples])
    vectors = retriever.encode_response(responses)
    others = draw_distractors(len(examples), max(candidates) - 1, seed)
    _, text = np.unique(responses, return_inverse=True)
    scores = np.einsum("nd,nmd->nm", queries, vectors[others])
    scores[text[others] == text[:, None]] = -np.inf
    true = np.einsum("nd,nd->n", queries, vectors)
    return {f"hits@1/{k}": hits_at_1(true, scores[:, : k - 1]) for k in candidates}
