"""Accuracy against interpretability: scores of ROAR and KAR by network and map, and what follows from them.

A series is a norm of training, a map and a test. The robust network is better in a series if the network
trained with the largest radius has a higher score than the standard network of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from robustkit.interpret.retraining import RANDOM, RetrainingResult
from trainkit.hub import read_json

from .networks import Recipe, Study

__all__ = ["GIVEN", "PUBLISHED", "correlations", "records", "series"]

GIVEN = "given"
MODES = {"remove": "ROAR", "keep": "KAR"}

PUBLISHED = {
    ("L2", "gradient × input", "ROAR"): 0.9488,
    ("L∞", "gradient × input", "ROAR"): 0.9505,
    ("L2", "gradient", "ROAR"): 0.9457,
    ("L∞", "gradient", "ROAR"): 0.9114,
    ("L2", "gradient × input", "KAR"): 0.6284,
    ("L∞", "gradient × input", "KAR"): 0.8911,
    ("L2", "gradient", "KAR"): -0.5294,
    ("L∞", "gradient", "KAR"): 0.5578,
}
"""Linear correlations of score and radius printed in the paper's figures: CIFAR-10, cross-entropy."""


def records(study: Study, folder: Path) -> list[dict[str, Any]]:
    """A row for each network, map, test and repeat: radius, accuracy and score; of groups with both tests."""
    recipes = {recipe.name: recipe for recipe in study.recipes()}
    rows: list[dict[str, Any]] = []
    for own in sorted(folder.iterdir()) if folder.exists() else ():
        if not all((own / f"{mode}.json").exists() for mode in MODES):
            continue
        clean = {name: found["clean"] for name, found in read_json(own / "accuracies.json").items()}
        first = next(iter(clean))
        for mode, test in MODES.items():
            result = _result(read_json(own / f"{mode}.json"))
            sign = 1 if mode == "remove" else -1
            for method in result.accuracies:
                if method == RANDOM:
                    continue
                name, _, map_name = method.rpartition("/")
                # A network of others: its radius is not asked for, only whether it is the clean one.
                recipe = recipes.get(name, Recipe("" if name == first else GIVEN, float(name != first)))
                pairs = zip(result.areas(RANDOM), result.areas(method), strict=True)
                rows += [
                    {
                        "group": own.name, "repeat": repeat, "network": name, "norm": recipe.norm,
                        "radius": recipe.radius, "map": map_name, "test": test, "accuracy": clean[name],
                        "score": sign * (chance - area),
                    }
                    for repeat, (chance, area) in enumerate(pairs)
                ]  # fmt: skip
    return rows


def _result(document: Mapping[str, Any]) -> RetrainingResult:
    curves = {
        name: tuple(tuple(runs) for runs in found["accuracies"])
        for name, found in document["methods"].items()
    }
    return RetrainingResult(
        document["mode"], tuple(document["fractions"]), document["clean"], document["chance"], curves
    )


def series(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each series says.

    Args:
        rows: What `records` gives.

    Returns:
        For each norm, map and test ``standard`` and ``strongest``: mean scores; ``gain``: of the strongest
        over the standard network of the same seed (of networks of others: of the same repeat), with ``sd``
        over ``n`` of them, None for a single one; ``correlations``, None for networks of others.
    """
    found = []
    keys = dict.fromkeys((row["norm"], row["map"], row["test"]) for row in rows if row["norm"])
    for norm, map_name, test in keys:
        given = norm == GIVEN
        own = [
            row
            for row in rows
            if (row["map"], row["test"]) == (map_name, test)
            and row["norm"] in ("", norm)
            and (row["group"] == GIVEN) == given
        ]
        most = max(row["radius"] for row in own)
        units = dict.fromkeys(row["repeat"] if given else row["group"] for row in own)
        pairs = []
        for unit in units:
            mine = [row for row in own if unit == (row["repeat"] if given else row["group"])]
            pairs.append([fmean(row["score"] for row in mine if row["radius"] == r) for r in (0.0, most)])
        gains = [strongest - standard for standard, strongest in pairs]
        found.append(
            {
                "norm": norm,
                "map": map_name,
                "test": test,
                "standard": fmean(pair[0] for pair in pairs),
                "strongest": fmean(pair[1] for pair in pairs),
                "gain": fmean(gains),
                "sd": stdev(gains) if len(gains) > 1 else None,
                "n": len(gains),
                "correlations": None if given else correlations(own),
            }
        )
    return found


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Linear and rank correlation of the score with radius and with accuracy over the networks of a series.

    None where one of the three is the same for all networks.
    """
    from scipy.stats import pearsonr, spearmanr

    columns = {key: [row[key] for row in rows] for key in ("score", "radius", "accuracy")}
    if any(len(set(column)) == 1 for column in columns.values()):
        return None
    return {
        f"{kind} {key}": float(measure(columns[key], columns["score"]).statistic)
        for kind, measure in (("linear", pearsonr), ("rank", spearmanr))
        for key in ("radius", "accuracy")
    }
