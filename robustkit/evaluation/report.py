"""What is particular to the report of a classifier: its name, texts before and after an attack, intervals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainkit.report import Estimate, Example, Report

__all__ = ["RobustnessReport", "attack_example", "bootstrap_mean", "interval_note"]


class RobustnessReport(Report):
    """What was measured on a classifier, section by section; see :class:`trainkit.report.Report`."""


def attack_example(caption: str, original: str, perturbed: str) -> Example:
    """A text before and after an attack.

    Args:
        caption: What happened to it, in a line.
        original: The text, with ``[[ ]]`` round the words that were changed.
        perturbed: The altered text, with ``[[ ]]`` round the new words.
    """
    return Example(caption, (("original", original), ("altered", perturbed)))


def bootstrap_mean(values: NDArray[np.float64], n_boot: int) -> Estimate:
    """The mean with its 95 % bootstrap interval, the same for the same values; of one value it has none.

    Args:
        values: ``(n,)``; NaN is left out.
        n_boot: Samples; 0 for no interval.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate(math.nan)
    mean = float(known.mean())
    if not n_boot or len(known) < 2:
        return Estimate(mean)
    drawn = np.random.default_rng(0).integers(len(known), size=(n_boot, len(known)))
    low, high = np.quantile(known[drawn].mean(axis=1), [0.025, 0.975])
    return Estimate(mean, low=float(low), high=float(high))


def interval_note(n_boot: int) -> str:
    """What a table says of its intervals."""
    return f"In brackets 95 % bootstrap intervals, {n_boot} samples." if n_boot else ""
