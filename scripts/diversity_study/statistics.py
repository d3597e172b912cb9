"""Rank correlation, partial rank correlation, area under the ROC curve, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["auc", "interval", "partial_spearman", "spearman"]

Floats = npt.NDArray[np.float64]


def spearman(x: Floats, y: Floats) -> float:
    """Correlation of average ranks; 0 where one side is constant."""
    return _pearson(_ranks(x), _ranks(y))


def partial_spearman(x: Floats, y: Floats, controls: Floats) -> float:
    """Correlation of what is left of the ranks after a linear fit on the ranks of the controls ``[n, c]``."""
    design = np.column_stack([np.ones(len(x)), *(_ranks(column) for column in controls.T)])
    left = [
        ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0] for ranks in (_ranks(x), _ranks(y))
    ]
    return _pearson(*left)


def auc(low: Floats, high: Floats) -> float:
    """The chance that a value of ``high`` is above one of ``low``; ties count half."""
    ranks = _ranks(np.concatenate([low, high]))[len(low) :]
    wins = ranks.sum() - len(high) * (len(high) + 1) / 2
    return float(wins / (len(low) * len(high)))


def interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of rows, over resampled rows."""
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(0, n, size=n)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _ranks(values: Floats) -> Floats:
    from scipy.stats import rankdata

    # Figures that differ by rounding only are ties.
    return np.asarray(rankdata(np.round(values, 9)), dtype=np.float64)


def _pearson(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 1e-9 else 0.0
