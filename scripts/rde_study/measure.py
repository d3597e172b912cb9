"""Scores of detectors on every text of the study, and the table that is made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustkit.attacks.logs import AttackLog, strip_marks
from robustkit.detection.metrics import detection_report, threshold_from_clean
from robustkit.detection.scenarios import DetectionSet, make_scenario
from trainkit import write_json
from trainkit.hub import read_json

__all__ = [
    "FIGURES",
    "Row",
    "Scores",
    "Setting",
    "at_seed",
    "figures",
    "remembered_scores",
    "settings_of",
    "summary",
]

FPR = 0.10
FIGURES = ("auc", "tpr_oracle", "tpr", "fpr", "f1")
"""What a row of the table holds: AUC, TPR at the best cut with FPR 10 %, and TPR, FPR, F1 at the threshold
that clean validation texts gave."""


@dataclass(frozen=True)
class Scores:
    """One detector's scores.

    Attributes:
        of: Score of each text; higher is more adversarial.
        clean: Scores of the clean validation texts that calibrate.
        milliseconds: CPU time for scoring one text whose features are known.
    """

    of: Mapping[str, float]
    clean: NDArray[np.float64]
    milliseconds: float

    def at(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Scores of some texts."""
        return np.array([self.of[text] for text in texts])


@dataclass(frozen=True)
class Setting:
    """Where a detection set comes from.

    Attributes:
        data: Data set.
        victim: Name of the attacked classifier.
        attack: Attack.
        distance: ``near`` (the attack stops at the flip) or ``far`` (it goes on to a probability of 0.9).
        scenario: ``s1`` or ``s2``.
        seed: Seed of the draw.
    """

    data: str
    victim: str
    attack: str
    distance: str
    scenario: str
    seed: int


Row = dict[str, str | float]


def remembered_scores(
    path: Path,
    identity: str,
    texts: Sequence[str],
    prepare: Callable[[], Callable[[Sequence[str]], Sequence[float]]],
) -> tuple[dict[str, float], float]:
    """Scores of texts, of which only those not yet in the file are computed.

    Args:
        path: JSON file with what is known.
        identity: What made the scores; a file made by something else is started anew.
        texts: The texts.
        prepare: Gives the function that scores texts; its own time, such as fitting, does not count.

    Returns:
        Score of each text, and the mean CPU milliseconds for one.
    """
    known = read_json(path) if path.is_file() else {}
    if known.get("identity") != identity:
        known = {"identity": identity, "scores": {}, "seconds": 0.0}
    new = sorted(set(texts) - set(known["scores"]))
    if new:
        score = prepare()
        started = time.process_time()
        found = score(new)
        known["seconds"] += time.process_time() - started
        known["scores"].update(zip(new, map(float, found), strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    scores = known["scores"]
    return {text: scores[text] for text in texts}, 1e3 * known["seconds"] / max(len(scores), 1)


def settings_of(
    data: str,
    victim: str,
    logs: Mapping[tuple[str, str], AttackLog],
    seeds: Sequence[int],
    *,
    least: int,
) -> Iterator[tuple[Setting, DetectionSet]]:
    """The detection sets of both scenarios from the logs of one victim and part.

    A source has the same number in all of them.

    Args:
        data: Name of the data set.
        victim: Name of the attacked classifier.
        logs: Log by attack and distance.
        seeds: Seeds of the draws.
        least: Sets with fewer adversarial texts are left out: their figures would say nothing.
    """
    for (attack, distance), log in logs.items():
        # By its text: rows stand in the order in which examples ended, which differs from log to log.
        number = np.array(
            [int(sha256(strip_marks(r.original_text).encode()).hexdigest()[:15], 16) for r in log]
        )
        for scenario, seed in product(("s1", "s2"), seeds):
            try:
                drawn = make_scenario(
                    log,
                    scenario,  # type: ignore[arg-type]
                    seed=seed,
                    val_ratio=0.0,
                    min_confidence=0.9 if distance == "far" else None,
                )
            except ValueError:
                continue
            if drawn.is_adversarial.sum() >= least:
                drawn = replace(drawn, source_id=number[drawn.source_id])
                yield Setting(data, victim, attack, distance, scenario, seed), drawn


def at_seed(by_seed: Mapping[int, Scores], seed: int) -> Scores:
    """Scores of a seed; detectors without randomness have one entry."""
    return by_seed.get(seed, by_seed[0])


def figures(scores: Scores, drawn: DetectionSet) -> dict[str, float]:
    """The `FIGURES` of one detector on one detection set."""
    values = scores.at(drawn.texts)
    threshold = threshold_from_clean(scores.clean, FPR)
    oracle = detection_report(values, drawn.is_adversarial, FPR)
    calibrated = detection_report(values, drawn.is_adversarial, FPR, threshold=threshold)
    return {
        "auc": oracle.auc,
        "tpr_oracle": oracle.tpr_at_fpr,
        "tpr": calibrated.recall,
        "fpr": calibrated.fpr,
        "f1": calibrated.f1,
    }


def summary(
    sets: Sequence[tuple[Setting, DetectionSet]], detectors: Mapping[str, Mapping[str, Mapping[int, Scores]]]
) -> list[Row]:
    """Mean and standard deviation over victims and seeds, a row for each detector and kind of set.

    Args:
        sets: Detection sets of any victims.
        detectors: Scores by victim, detector and seed, the same detectors for every victim; a detector
            without randomness has seed 0 alone.
    """
    groups: dict[tuple[str, str, str, str], list[tuple[Setting, DetectionSet]]] = {}
    for setting, drawn in sets:
        key = (setting.data, setting.attack, setting.distance, setting.scenario)
        groups.setdefault(key, []).append((setting, drawn))
    rows: list[Row] = []
    for (data, attack, distance, scenario), draws in groups.items():
        for name in detectors[draws[0][0].victim]:
            by_draw = [(detectors[setting.victim][name], setting, drawn) for setting, drawn in draws]
            found = [figures(at_seed(of, setting.seed), drawn) for of, setting, drawn in by_draw]
            row: Row = {"data": data, "attack": attack, "distance": distance, "scenario": scenario}
            row |= {
                "detector": name,
                "victims": float(len({setting.victim for setting, _ in draws})),
                "adversarial": float(np.mean([d.is_adversarial.sum() for _, d in draws])),
            }
            for figure in FIGURES:
                values = [one[figure] for one in found]
                row[figure] = float(np.mean(values))
                row[f"{figure}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            row["ms"] = float(np.mean([s.milliseconds for of, _, _ in by_draw for s in of.values()]))
            rows.append(row)
    return rows
