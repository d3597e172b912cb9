"""Combinations of the study's detectors as further detectors, chosen on validation texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from robustkit.detection.ensemble import surprise
from robustkit.detection.scenarios import DetectionSet

from .combine import Judged, Stack, bars, best_sum, leads, out_of_fold
from .measure import Scores, Setting, at_seed

__all__ = ["FIXED", "combined", "judged"]

FIXED = ("max-softmax", "RDE", "FGWS", "replaced words", "sharpness")
"""One detector for each kind of evidence: boundary, density, rare words, edited words, a steep loss."""

ByDetector = Mapping[str, Mapping[int, Scores]]


def judged(setting: Setting, drawn: DetectionSet, scores: ByDetector) -> Judged:
    """A detection set as all detectors see it, in the order of ``scores``."""
    name = f"{setting.data} {setting.attack} {setting.distance}"
    found = surprises(scores, setting.seed, drawn.texts)
    return Judged(name, drawn.is_adversarial, drawn.source_id, found)


def surprises(scores: ByDetector, seed: int, texts: Sequence[str] | None) -> NDArray[np.float64]:
    """Surprises of texts, or, for None, of the calibration texts: float (n, members)."""
    members = [at_seed(by_seed, seed) for by_seed in scores.values()]
    columns = [surprise(np.sort(m.clean), m.clean if texts is None else m.at(texts)) for m in members]
    return np.stack(columns, axis=1)


def stacked(scores: ByDetector, stack: Stack) -> dict[int, Scores]:
    """A fitted stack as a detector."""
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    cost = sum(by_seed[0].milliseconds for by_seed in scores.values())
    texts = list(next(iter(scores.values()))[0].of)
    found = {}
    for seed in seeds:
        of = dict(zip(texts, map(float, stack.score(surprises(scores, seed, texts))), strict=True))
        found[seed] = Scores(of, stack.score(surprises(scores, seed, None)), cost)
    return found


def weighted(scores: ByDetector, weights: Mapping[str, float]) -> dict[int, Scores]:
    """The weighted sum of surprises as a detector: Fisher's method, see `EnsembleDetector`."""
    seeds = sorted({seed for name in weights for seed in scores[name]})
    found = {}
    for seed in seeds:
        members = [(weight, at_seed(scores[name], seed)) for name, weight in weights.items()]
        texts = list(members[0][1].of)
        known = [(weight, member, np.sort(member.clean)) for weight, member in members]
        total = sum(weight * surprise(clean, member.at(texts)) for weight, member, clean in known)
        of = dict(zip(texts, map(float, np.asarray(total)), strict=True))
        clean = sum(weight * surprise(clean, member.clean) for weight, member, clean in known)
        cost = sum(member.milliseconds for _, member in members)
        found[seed] = Scores(of, np.asarray(clean), cost)
    return found


def combined(
    validation: Sequence[tuple[Setting, DetectionSet]], scores: Mapping[str, ByDetector]
) -> tuple[dict[str, object], dict[str, dict[str, Mapping[int, Scores]]]]:
    """Adds combinations to the detectors of every victim.

    ``sum of kinds`` needs no adversarial text: `FIXED`, unweighted. ``sum, chosen`` is the unweighted sum of
    at most four detectors with the largest worst lead over all validation sets, the same for all victims.
    ``stacked`` is one `Stack` that learned from the validation sets of all victims; its lead is measured on
    sources that it had not learned from.

    Args:
        validation: Detection sets of attacked validation texts; those of scenario 2 and seed 0 are used.
        scores: Scores by victim, detector and seed.

    Returns:
        What was chosen, with leads over the best single detector on validation sets, and the scores with
        those of the combinations.
    """
    names = list(next(iter(scores.values())))
    everything = [
        judged(setting, drawn, scores[setting.victim])
        for setting, drawn in validation
        if (setting.scenario, setting.seed) == ("s2", 0)
    ]
    bar = bars(everything)
    fixed = [one.surprises[:, [names.index(name) for name in FIXED]].sum(axis=1) for one in everything]
    chosen = best_sum(everything, names)
    choices: dict[str, object] = {
        "sum of kinds": described(", ".join(FIXED), leads(fixed, everything, bar)),
        "sum, chosen": described(", ".join(chosen.weights), chosen.leads),
        "stacked": described("all detectors", leads(out_of_fold(everything), everything, bar)),
    }
    stack = Stack().fit(everything)
    extended = {
        victim: {
            **of_victim,
            "sum of kinds": weighted(of_victim, dict.fromkeys(FIXED, 1.0)),
            "sum, chosen": weighted(of_victim, chosen.weights),
            "stacked": stacked(of_victim, stack),
        }
        for victim, of_victim in scores.items()
    }
    return choices, extended


def described(members: str, lead: Sequence[float]) -> dict[str, object]:
    """A combination and its leads on validation sets, for a table."""
    reached = f"{sum(one >= 0 for one in lead)} of {len(lead)}"
    worst, mean = min(lead), float(np.mean(lead))
    return {"members": members, "worst lead": worst, "mean lead": mean, "at least equal": reached}
