"""Every detector's score for every text that the study needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robustkit.attacks.logs import AttackLog, strip_marks
from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import Detector
from trainkit import fingerprint

from .attacks import AttackPlan, attacked_rows, read_logs
from .data import StudyData
from .detectors import Entry
from .measure import Scores, remembered_scores

__all__ = ["Material", "score_all"]

logger = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
CALIBRATION = 400
"""Clean validation texts, none of them attacked, that thresholds and p-values come from."""


@dataclass
class Material:
    """What detectors of one victim are fitted on and asked about.

    Attributes:
        data: The data set.
        classifier: The victim, with a cache on disk.
        folder: Where the attack logs are.
        plan: Which texts were attacked.
    """

    data: StudyData
    classifier: TextClassifier
    folder: Path
    plan: AttackPlan

    @cached_property
    def logs(self) -> Mapping[str, Mapping[tuple[str, str], AttackLog]]:
        """Logs by part, then by attack and distance."""
        return {part: read_logs(self.folder, part) for part in ("test", "validation", "train")}

    @cached_property
    def calibration(self) -> list[str]:
        """Clean validation texts that no log holds."""
        attacked = {text for text, _ in attacked_rows(self.data, "validation", self.plan)}
        return [text for text, _ in sorted(self.data.validation) if text not in attacked][:CALIBRATION]

    @cached_property
    def texts(self) -> list[str]:
        """All texts to score, each once."""
        records = [r for part in ("test", "validation") for log in self.logs[part].values() for r in log]
        logged = [strip_marks(text) for r in records for text in (r.original_text, r.perturbed_text)]
        return list(dict.fromkeys([*self.calibration, *logged]))

    @cached_property
    def train(self) -> tuple[Features, np.ndarray]:
        """Features and gold labels of the training texts."""
        texts, labels = zip(*self.data.train, strict=True)
        return self.classifier.extract(texts), np.array(labels)

    @cached_property
    def attacked_fingerprint(self) -> str:
        """Changes with the attacked training texts."""
        return fingerprint([record.perturbed_text for record in self.logs["train"][self.plan.for_training]])

    def fit(self, detector: Detector) -> Detector:
        """Fits a detector on training texts; one that needs adversarial texts on the attacked ones."""
        features, labels = self.train
        if not detector.needs_adversarial:
            return detector.fit(features, labels)
        records = list(self.logs["train"][self.plan.for_training])
        clean = [strip_marks(record.original_text) for record in records]
        altered = [strip_marks(r.perturbed_text) for r in records if r.outcome == "Successful"]
        return detector.fit(
            self.classifier.extract(clean),
            np.array([record.ground_truth_output for record in records]),
            adversarial=self.classifier.extract(altered),
        )


def score_all(material: Material, detectors: Sequence[Entry], folder: Path) -> dict[str, dict[int, Scores]]:
    """Scores by detector and seed; what ``folder`` holds already is not computed again."""
    classifier = material.classifier
    inputs = dict(zip(material.texts, range(len(material.texts)), strict=True))
    features = classifier.extract(material.texts)
    found: dict[str, dict[int, Scores]] = {}
    for entry in detectors:
        for seed in SEEDS if entry.seeds else SEEDS[:1]:
            detector = entry.make(seed)

            def prepare(detector: Detector = detector) -> Callable[[Sequence[str]], np.ndarray]:
                if detector.needs_fit:
                    material.fit(detector)
                return lambda texts: detector.score_samples(features[[inputs[text] for text in texts]])

            path = folder / f"{entry.name}-{seed}.json"
            identity = f"{detector!r} {classifier.fingerprint}"
            if detector.needs_adversarial:
                identity += f" {material.attacked_fingerprint}"
            scores, milliseconds = remembered_scores(path, identity, material.texts, prepare)
            clean = np.array([scores[text] for text in material.calibration])
            found.setdefault(entry.name, {})[seed] = Scores(scores, clean, milliseconds)
            logger.info("%s %s seed %d: %.2f ms a text", material.data.name, entry.name, seed, milliseconds)
    return found
