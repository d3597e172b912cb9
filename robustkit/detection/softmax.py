"""The detector that costs nothing: how sure the classifier is of its own prediction."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from robustkit.classifiers.features import Features

from .base import Detector, logits_of

__all__ = ["MSPDetector", "softmax_scores"]

Kind = Literal["max", "margin", "entropy", "energy"]


def softmax_scores(logits: NDArray[np.floating], kind: Kind = "max") -> NDArray[np.float64]:
    r"""Uncertainty of predictions, from logits.

    With the probabilities :math:`p_1 \ge p_2 \ge \dots` of the classes: ``"max"`` is :math:`1 - p_1`,
    ``"margin"`` :math:`1 - (p_1 - p_2)`, ``"entropy"`` :math:`-\sum_c p_c \log p_c`, ``"energy"``
    :math:`-\log \sum_c \exp(z_c)` of the logits z (Liu, Wang, Owens and Li, NeurIPS 2020). They are computed
    from the small probabilities, so that very sure predictions keep their order. For two classes the first
    three order texts alike.

    Args:
        logits: ``(n, C)``, C at least 2.
        kind: Which.

    Returns:
        float64 ``(n,)``, higher for less sure.
    """
    z = np.sort(np.asarray(logits, dtype=np.float64), axis=1)[:, ::-1]
    # Relative to the largest logit nothing overflows, and the rest's share of the sum is exact.
    weights = np.exp(z - z[:, :1])
    rest = weights[:, 1:].sum(axis=1)
    if kind == "max":
        return np.asarray(rest / (1 + rest))
    if kind == "margin":
        return np.asarray((rest + weights[:, 1]) / (1 + rest))
    if kind == "entropy":
        surprise = np.log1p(rest)[:, None] + z[:, :1] - z
        return np.asarray((weights * surprise).sum(axis=1) / (1 + rest))
    return np.asarray(-(z[:, 0] + np.log1p(rest)))


class MSPDetector(Detector):
    """Maximum softmax probability, and its relatives margin, entropy and energy.

    Most attacks stop as soon as the prediction flips, so that their texts lie near the decision boundary,
    where the classifier is unsure. It needs no `fit`, only `calibrate`. Cost: nothing beyond the logits.

    Args:
        kind: See `softmax_scores`. ``"max"`` is the baseline of Hendrycks and Gimpel (ICLR 2017).

    Raises:
        ValueError: ``kind`` is unknown.

    Example:
        >>> detector = MSPDetector()
        >>> detector.calibrate(validation_features, fpr=0.10)
    """

    needs_fit = False

    def __init__(self, kind: Kind = "max") -> None:
        self.kind = kind
        self._check_params()

    def _check_params(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; expected one of {get_args(Kind)}")

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        logits_of(clean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        logits = logits_of(inputs)
        if logits.shape[1] < 2:
            raise ValueError(f"logits has shape {logits.shape}; expected at least two classes")
        return softmax_scores(logits, self.kind)
