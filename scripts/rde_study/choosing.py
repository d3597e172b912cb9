"""Combinations of the study's detectors as further detectors, chosen on validation texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from robustkit.detection.ensemble import surprise
from robustkit.detection.scenarios import DetectionSet

from .combine import Judged, bars, best_sum, fitted_weights, leads, out_of_fold
from .measure import Scores, Setting

__all__ = ["FIXED", "combined", "judged"]

FIXED = ("max-softmax", "RDE", "edit probe")
"""One detector for each kind of evidence in the victim's own pass: boundary, density, edited words."""

ByDetector = Mapping[str, Mapping[int, Scores]]


def at_seed(by_seed: Mapping[int, Scores], seed: int) -> Scores:
    """Scores of a seed; detectors without randomness have one entry."""
    return by_seed.get(seed, by_seed[0])


def judged(setting: Setting, drawn: DetectionSet, scores: ByDetector) -> Judged:
    """A detection set with the surprises of all detectors, in the order of ``scores``."""
    columns = []
    for by_seed in scores.values():
        member = at_seed(by_seed, setting.seed)
        columns.append(surprise(np.sort(member.clean), member.at(drawn.texts)))
    name = f"{setting.data} {setting.attack} {setting.distance}"
    return Judged(name, drawn.is_adversarial, drawn.source_id, np.stack(columns, axis=1))


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
    """Adds combinations to the detectors of every data set.

    ``sum of kinds`` needs no adversarial text: `FIXED`, unweighted. ``sum, chosen`` is the unweighted sum of
    at most four detectors with the largest worst lead over all validation sets, the same for all victims.
    ``weighted`` has weights by logistic regression on a victim's own validation sets; its lead is measured on
    sources that had no part in the weights.

    Args:
        validation: Detection sets of attacked validation texts; those of scenario 2 and seed 0 are used.
        scores: Scores by data set, detector and seed.

    Returns:
        What was chosen, with leads over the best single detector on validation sets, and the scores with
        those of the combinations.
    """
    names = list(next(iter(scores.values())))
    sets: dict[str, list[Judged]] = {}
    for setting, drawn in validation:
        if (setting.scenario, setting.seed) == ("s2", 0):
            sets.setdefault(setting.data, []).append(judged(setting, drawn, scores[setting.data]))
    everything = [one for of_data in sets.values() for one in of_data]
    bar = bars(everything)
    fixed = [one.surprises[:, [names.index(name) for name in FIXED]].sum(axis=1) for one in everything]
    chosen = best_sum(everything, names)
    held_out = [values for of_data in sets.values() for values in out_of_fold(of_data)]
    weights: dict[str, dict[str, float]] = {}
    for data, of_data in sets.items():
        fitted = zip(names, fitted_weights(of_data), strict=True)
        weights[data] = {name: float(weight) for name, weight in fitted if weight > 1e-6}
    choices: dict[str, object] = {
        "sum of kinds": described(dict.fromkeys(FIXED, 1.0), leads(fixed, everything, bar)),
        "sum, chosen": described(chosen.weights, chosen.leads),
        "weighted": described(
            {f"{data}: {name}": weight for data, found in weights.items() for name, weight in found.items()},
            leads(held_out, everything, bar),
        ),
    }
    extended = {
        data: {
            **of_data,
            "sum of kinds": weighted(of_data, dict.fromkeys(FIXED, 1.0)),
            "sum, chosen": weighted(of_data, chosen.weights),
            "weighted": weighted(of_data, weights[data]),
        }
        for data, of_data in scores.items()
    }
    return choices, extended


def described(weights: Mapping[str, float], lead: Sequence[float]) -> dict[str, object]:
    """A combination and its leads on validation sets, for a table."""
    members = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
    return {"weights": members, "worst lead": min(lead), "mean lead": float(np.mean(lead))}
