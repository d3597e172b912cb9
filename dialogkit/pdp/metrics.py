"""How much replies sound like a character, by a classifier's judgement.

The paper's measure is StyleProb: the probability that a classifier over all characters gives to the right
one, seeing the reply alone. A judge trained on the same characters rewards replies that copy the prompt's
phrases; read it beside a measure of coherence or diversity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["classify_responses", "style_accuracy", "style_prob"]


def style_prob(probabilities: npt.ArrayLike, label: int | Sequence[int]) -> float:
    """StyleProb: ``(1/N) sum_n p(target | response_n)``.

    Args:
        probabilities: Class probabilities of N responses over L characters, ``[N, L]``, rows summing to 1.
        label: The target character's column, or one column for each response.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: The array is not such a table, it is empty, or a label is out of range.
    """
    table, labels = _checked(probabilities, label)
    return float(table[np.arange(len(table)), labels].mean())


def style_accuracy(probabilities: npt.ArrayLike, label: int | Sequence[int]) -> float:
    """Share of responses whose most probable character is the target.

    Args:
        probabilities: As for :func:`style_prob`.
        label: As for :func:`style_prob`.

    Returns:
        A number in [0, 1]. Of equal probabilities the first column wins.

    Raises:
        ValueError: As for :func:`style_prob`.
    """
    table, labels = _checked(probabilities, label)
    return float((table.argmax(axis=1) == labels).mean())


def _checked(
    probabilities: npt.ArrayLike, label: int | Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"probabilities must be [N, L] with N, L > 0, got shape {list(table.shape)}")
    if not (np.isfinite(table).all() and (table >= 0).all() and np.allclose(table.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("probabilities must be non-negative and sum to 1 in each row")
    labels = np.broadcast_to(np.asarray(label), (len(table),)) if np.ndim(label) == 0 else np.asarray(label)
    if labels.shape != (len(table),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"label must be a column or one column for each of the {len(table)} responses")
    if labels.min() < 0 or labels.max() >= table.shape[1]:
        raise ValueError(f"label must be in 0..{table.shape[1] - 1}, got {sorted(set(labels.tolist()))}")
    return table, labels.astype(np.int64)


def classify_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[str],
    *,
    max_length: int = 256,
    batch_size: int = 32,
) -> npt.NDArray[np.float64]:
    """Class probabilities by any transformers sequence classifier, seeing the responses alone.

    Args:
        model: A sequence classification model; its training mode is left as it was.
        tokenizer: Its tokenizer, with a padding token.
        responses: N texts, at least one.
        max_length: Tokens read of a response; 256 in the paper.
        batch_size: Responses in one forward pass.

    Returns:
        ``[N, L]``.

    Raises:
        ValueError: There are no responses.
    """
    import torch

    if not len(responses):
        raise ValueError("responses must not be empty")
    rows: list[npt.NDArray[np.float64]] = []
    training = model.training
    model.eval()
    try:
        for start in range(0, len(responses), batch_size):
            batch: Any = tokenizer(
                list(responses[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**batch).logits
            rows.append(logits.double().softmax(dim=-1).cpu().numpy())
    finally:
        model.train(training)
    return np.concatenate(rows)
