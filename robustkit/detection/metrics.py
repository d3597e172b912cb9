"""How well scores tell adversarial from clean texts: ROC, precision and recall, F1 at a threshold, intervals.

A score is higher for a more suspicious text; its sign and scale do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DetectionReport", "RocCurve", "detection_report", "roc_curve", "threshold_from_clean"]

_LEVEL = 0.95  # of the intervals


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Points of a ROC curve, from nothing flagged to everything flagged.

    Attributes:
        fpr: float64 (k,), share of clean texts flagged; starts at 0, ends at 1.
        tpr: float64 (k,), share of adversarial texts flagged.
        thresholds: float64 (k,), texts with a score of at least this are flagged; starts at infinity.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True)
class DetectionReport:
    """Figures of one detector on one detection set; adversarial is the positive class.

    Attributes:
        auc: Area under the ROC curve; ties count one half.
        aupr: Average precision, the area under the precision-recall curve without interpolation.
        tpr_at_fpr: Largest TPR of a cut whose FPR on these same texts is at most the wanted one: an oracle's.
        fpr: FPR at the threshold.
        f1: F1 at the threshold; 0 if nothing adversarial is flagged.
        precision: Precision at the threshold; 0 if nothing is flagged.
        recall: TPR at the threshold.
        threshold: The threshold: the given one, or the oracle's.
        ci: 95 % bootstrap interval (low, high) of each figure above but the threshold; empty without
            bootstrap.
    """

    auc: float
    aupr: float
    tpr_at_fpr: float
    fpr: float
    f1: float
    precision: float
    recall: float
    threshold: float
    ci: Mapping[str, tuple[float, float]]


def roc_curve(scores: ArrayLike, is_adversarial: ArrayLike) -> RocCurve:
    """The ROC curve with one point for each distinct score; O(n log n).

    Args:
        scores: Finite scores (n,).
        is_adversarial: bool (n,), both values present.

    Raises:
        ValueError: Shapes differ, a score is not finite, or one class is missing.
    """
    ranked = _Ranked.of(scores, is_adversarial)
    true, false = ranked.counts(np.ones(len(ranked.positive)))
    return RocCurve(
        fpr=np.concatenate([[0.0], false / false[-1]]),
        tpr=np.concatenate([[0.0], true / true[-1]]),
        thresholds=np.concatenate([[math.inf], ranked.thresholds]),
    )


def threshold_from_clean(scores: ArrayLike, fpr: float = 0.10) -> float:
    """The threshold that a new clean text exceeds with probability ``fpr`` at most (split conformal).

    Of n scores it is the k-th largest, k = floor(fpr (n + 1)), so fewer than ``fpr`` n of the given ones
    exceed it. `robustkit.detection.Detector.calibrate` uses the same rule.

    Args:
        scores: Finite scores (n,) of held-out clean texts.
        fpr: Wanted false positive rate, between 0 and 1.

    Raises:
        ValueError: ``fpr`` is out of range, a score is not finite, or there are fewer than 1 / fpr - 1
            scores.
    """
    values = np.sort(_scores(scores))
    _check_fpr(fpr)
    k = math.floor(fpr * (len(values) + 1) + 1e-9)  # the sum repairs products such as 0.29 * 100
    if k == 0:
        raise ValueError(
            f"{len(values)} clean scores cannot show a false positive rate of {fpr}; "
            f"give at least {math.ceil(1 / fpr - 1e-9) - 1}"
        )
    return float(values[-k])


def detection_report(
    scores: ArrayLike,
    is_adv: ArrayLike,
    fpr: float = 0.10,
    threshold: float | None = None,
    n_boot: int = 0,
    source_id: ArrayLike | None = None,
    seed: int = 0,
) -> DetectionReport:
    """Figures of a detector's scores.

    With a threshold from clean validation text, as `threshold_from_clean` or a calibrated detector gives, a
    text is flagged if its score exceeds it. Without one, the benchmark's released rule picks the cut on the
    texts themselves: the smallest score whose FPR is at most ``fpr``, flagging scores equal to it; such
    figures are an oracle's, for comparison with published ones.

    Intervals resample sources with replacement, separately those with clean, adversarial and both kinds of
    text, so that a clean text and its adversarial version stay together and both classes keep their size.

    Args:
        scores: Finite scores (n,), higher for more adversarial.
        is_adv: bool (n,), both values present.
        fpr: Wanted false positive rate, between 0 and 1.
        threshold: Threshold chosen elsewhere; None for the oracle's.
        n_boot: Bootstrap samples for the intervals, 0 for none; each costs O(n).
        source_id: (n,), equal for texts from one source; None makes each text its own.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Shapes differ, a value is not finite or out of range, or one class is missing.
    """
    _check_fpr(fpr)
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}, expected a finite number")
    if n_boot < 0:
        raise ValueError(f"n_boot is {n_boot}, expected at least 0")
    ranked = _Ranked.of(scores, is_adv)
    n = len(ranked.positive)
    figures = _figures(ranked, np.ones(n), fpr, threshold)
    intervals: dict[str, tuple[float, float]] = {}
    if n_boot:
        groups = _strata(source_id, np.asarray(is_adv, dtype=bool))
        generator = np.random.default_rng(seed)
        samples: list[dict[str, float]] = []
        for _ in range(n_boot):
            weights = np.zeros(n)
            for sources, texts, which in groups:
                drawn = np.bincount(generator.integers(sources, size=sources), minlength=sources)
                weights[texts] = drawn[which]
            samples.append(_figures(ranked, weights[ranked.order], fpr, threshold))
        for name in figures:
            if name != "threshold":
                low, high = np.quantile([s[name] for s in samples], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
                intervals[name] = (float(low), float(high))
    return DetectionReport(**figures, ci=intervals)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Texts by falling score: order, which are adversarial, where each run of equal scores ends."""

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    last: NDArray[np.int64]
    thresholds: NDArray[np.float64]

    @classmethod
    def of(cls, scores: ArrayLike, is_adversarial: ArrayLike) -> _Ranked:
        values = _scores(scores)
        positive = np.asarray(is_adversarial)
        if positive.shape != values.shape:
            raise ValueError(f"is_adversarial has shape {positive.shape}, the scores have {values.shape}")
        if not np.isin(positive, (0, 1)).all():
            raise ValueError(f"is_adversarial must hold booleans, got {positive.dtype}")
        positive = positive.astype(bool)
        if positive.all() or not positive.any():
            raise ValueError(f"all {len(values)} texts are {'adversarial' if positive.any() else 'clean'}")
        order = np.argsort(-values, kind="stable")
        ranked = values[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        return cls(order, positive[order], last, ranked[last])

    def counts(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of adversarial and of clean texts at or above each distinct score, given weights by rank."""
        true = np.cumsum(weights * self.positive)[self.last]
        false = np.cumsum(weights * ~self.positive)[self.last]
        return true, false


def _figures(
    ranked: _Ranked, weights: NDArray[np.float64], fpr: float, threshold: float | None
) -> dict[str, float]:
    true, false = ranked.counts(weights)
    tpr, fall_out = true / true[-1], false / false[-1]
    steps = np.diff(tpr, prepend=0.0)
    flagged = true + false
    precisions = np.divide(true, flagged, out=np.zeros_like(true), where=flagged > 0)
    allowed = np.flatnonzero(fall_out <= fpr + 1e-12)
    if threshold is None:
        cut = int(allowed[-1]) if len(allowed) else -1
        level = float(ranked.thresholds[cut]) if cut >= 0 else math.inf
    else:
        cut, level = int(np.searchsorted(-ranked.thresholds, -threshold, side="left")) - 1, float(threshold)
    hits, alarms = (true[cut], false[cut]) if cut >= 0 else (0.0, 0.0)
    return {
        "auc": float(np.trapezoid(np.append(0.0, tpr), np.append(0.0, fall_out))),
        "aupr": float(np.sum(steps * precisions)),
        "tpr_at_fpr": float(tpr[allowed[-1]]) if len(allowed) else 0.0,
        "fpr": float(alarms / false[-1]),
        "f1": float(2 * hits / (true[-1] + hits + alarms)),
        "precision": float(hits / (hits + alarms)) if hits else 0.0,
        "recall": float(hits / true[-1]),
        "threshold": level,
    }


def _strata(
    source_id: ArrayLike | None, positive: NDArray[np.bool_]
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Sources by kind of text they have: how many, which texts, and each text's source counted from 0."""
    ids = np.arange(len(positive)) if source_id is None else np.asarray(source_id)
    if ids.shape != positive.shape:
        raise ValueError(f"source_id has shape {ids.shape}, the scores have {positive.shape}")
    _, source = np.unique(ids, return_inverse=True)
    kind = np.zeros(int(source.max()) + 1, dtype=np.int64)
    np.bitwise_or.at(kind, source, np.where(positive, 1, 2))
    strata = []
    for value in (1, 2, 3):
        texts = np.flatnonzero(kind[source] == value)
        if len(texts):
            names, which = np.unique(source[texts], return_inverse=True)
            strata.append((len(names), texts, which))
    return strata


def _scores(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"scores has shape {values.shape}, expected n >= 1 numbers")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"score {row} is {values[row]}, expected a finite number")
    return values


def _check_fpr(fpr: float) -> None:
    if not 0 < fpr < 1:
        raise ValueError(f"fpr is {fpr}, expected a share between 0 and 1")
