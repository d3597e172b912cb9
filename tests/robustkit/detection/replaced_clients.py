"""What processes of their own do for `test_replaced_processes.py`: they talk to a Hub, or train together."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from robustkit.classifiers import Features
from robustkit.detection import (
    Detector,
    ReplacedWordsDetector,
    ReplacedWordsSettings,
    train_replaced_words,
    typos,
)
from tests.robustkit.tiny import tiny_classifier, tiny_reader, toy_sentiment

__all__ = ["load", "push", "train"]

TEXTS = toy_sentiment(90, seed=4)[0]


def _features() -> Features:
    return Features.of(np.zeros((90, 0)), np.zeros(90, int), texts=tuple(TEXTS))


def push(name: str) -> tuple[str, list[float]]:
    """Pushes a calibrated detector; the commit, and its scores."""
    detector = ReplacedWordsDetector(tiny_reader())
    detector.calibrate(_features(), fpr=0.1)
    return detector.push_to_hub(name), detector.score_samples(_features()).tolist()


def load(name: str, revision: str | None) -> tuple[float, list[float]]:
    """Threshold and scores of the pushed detector."""
    detector = Detector.from_pretrained(name, revision=revision)
    return detector.threshold_, detector.score_samples(_features()).tolist()


def train(processes: int) -> list[float]:
    """Scores of a detector that this process and its siblings trained on some 170 small batches."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = tiny_classifier(spread=0.05)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        detector = train_replaced_words(
            TEXTS[:57],
            folder,
            [typos],
            settings=ReplacedWordsSettings(
                max_length=32, copies=3, batch_size=2 * processes, learning_rate=3e-3, mixed_precision="no"
            ),
        )
    return detector.score_samples(_features()).tolist()


if __name__ == "__main__":
    import torch

    scores = train(2)
    rank = torch.distributed.get_rank()
    (Path(sys.argv[1]) / f"{rank}.txt").write_text("\n".join(map(repr, scores)))
    torch.distributed.destroy_process_group()
