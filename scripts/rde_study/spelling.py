"""A detector that looks for words that the training texts do not have, and how odd their letters are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.classifiers.features import Features
from robustkit.detection import Detector
from robustkit.detection.base import texts_of

__all__ = ["SpellingDetector"]

_WORD = re.compile(r"[^\W\d_]+")


class SpellingDetector(Detector):
    """Surprise of a text's unseen words under the letters of the seen ones.

    A word of the training texts counts nothing. Any other counts the mean surprise of its letters, each given
    the two before it (counts of the training texts' vocabulary plus ``smoothing``); the score is the sum
    divided by the number of words. It finds typos, and rare synonyms a little. Cost: no forward pass.

    Args:
        smoothing: Added to every count of three letters.
    """

    extra_forwards = "0"

    def __init__(self, smoothing: float = 0.1) -> None:
        self.smoothing = smoothing

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        self._learn({word for text in texts_of(clean) for word in _WORD.findall(str(text).lower())})

    def _learn(self, words: set[str]) -> None:
        self._words = words
        self._letters = Counter(run for word in words for run in _runs(word))
        self._before = Counter[str]()
        for run, count in self._letters.items():
            self._before[run[:2]] += count
        self._symbols = len({run[2] for run in self._letters})

    def surprise(self, word: str) -> float:
        """Mean surprise of a word's letters and its end, in nats; 0 for a word of the training texts."""
        if word in self._words:
            return 0.0
        runs = _runs(word)
        total = sum(
            math.log(self._before[run[:2]] + self.smoothing * (self._symbols + 1))
            - math.log(self._letters[run] + self.smoothing)
            for run in runs
        )
        return total / len(runs)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        rows = [_WORD.findall(str(text).lower()) for text in texts_of(inputs)]
        return np.array([sum(map(self.surprise, words)) / max(1, len(words)) for words in rows])

    def _state(self) -> dict[str, Any]:
        return {"words": sorted(self._words)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._learn(set(state["words"]))


def _runs(word: str) -> list[str]:
    marked = f"^^{word}$"
    return [marked[i : i + 3] for i in range(len(marked) - 2)]
