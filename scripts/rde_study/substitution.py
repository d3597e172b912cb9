"""A detector that has learned what replaced words look like inside the classifier, without any attack.

Words of clean training texts are replaced at random by words that a lexicon offers, and letters are mistyped;
whether the classifier changes its mind plays no part. A linear probe on the classifier's hidden states then
tells changed from unchanged texts. Density and uncertainty say whether a text is near the boundary or far
from the data; this says whether it was edited, also where the classifier is confidently wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.classifiers.features import Features
from robustkit.detection.variants import ClassifierDetector
from trainkit.seeding import derive_seed

if TYPE_CHECKING:
    from robustkit.classifiers import TextClassifier

__all__ = ["Edited", "SubstitutionDetector", "edited", "hidden_states", "mistyped"]

RATES = (0.1, 0.2, 0.35)
"""Shares of a text's words that are replaced, one drawn for each text; attacks replace 5 to 40 %."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_BATCH = 32


def mistyped(word: str, rng: Random) -> str:
    """A word with two letters swapped, or one replaced, deleted or added."""
    i, letter = rng.randrange(len(word) - 1), rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice(
        (
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + letter + word[i + 1 :],
            word[:i] + word[i + 1 :],
            word[:i] + letter + word[i:],
        )
    )


@dataclass(frozen=True)
class Edited:
    """A text with some words replaced.

    Attributes:
        text: The new text.
        places: First character of each new word, and the one after its last.
    """

    text: str
    places: tuple[tuple[int, int], ...]


def edited(text: str, offers: Callable[[str], Sequence[str]], spared: frozenset[str], rng: Random) -> Edited:
    """Replaces some words of a text at random.

    Args:
        text: The text.
        offers: Replacements for a lower-case word, maybe none.
        spared: Lower-case words that stay.
        rng: Draws the number of words, the words and their replacements.
    """
    words = [match for match in _WORD.finditer(text) if match[0].lower() not in spared]
    wanted = max(1, round(rng.choice(RATES) * len(text.split())))
    changes: dict[int, tuple[int, str]] = {}
    for match in rng.sample(words, len(words)):
        options = offers(match[0].lower())
        if options and len(changes) < wanted:
            changes[match.start()] = (match.end(), rng.choice(options))
    new, places, place = "", [], 0
    for start, (end, word) in sorted(changes.items()):
        new += text[place:start]
        if word != text[start:end].lower():
            places.append((len(new), len(new) + len(word)))
        new += word
        place = end
    return Edited(new + text[place:], tuple(places))


@torch.no_grad()
def hidden_states(classifier: TextClassifier, texts: Sequence[str]) -> NDArray[np.float32]:
    """First and mean token of every hidden state.

    Args:
        classifier: The classifier; its model must be in evaluation mode.
        texts: n texts.

    Returns:
        float32 ``(n, 2 (layers + 1) d)``.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = classifier.encode([texts[i] for i in part])
        states = torch.stack(classifier.model(**batch, output_hidden_states=True).hidden_states, dim=1)
        mask = batch["attention_mask"][:, None, :, None]
        mean = (states * mask).sum(2) / mask.sum(2)
        found = torch.cat([states[:, :, 0].flatten(1), mean.flatten(1)], dim=1).float().cpu().numpy()
        for i, row in zip(part, found, strict=True):
            rows[i] = row
    return np.stack(rows)


class SubstitutionDetector(ClassifierDetector):
    """Linear probe for replaced words on the classifier's hidden states.

    Training texts are used once as they are and once `edited`; no attack and no adversarial text is needed.
    Cost: one forward pass, the classifier's own where its hidden states are kept.

    Args:
        classifier: The classifier that is defended; not saved.
        offers: For each kind of edit the replacements of a lower-case word; texts take turns. Not saved.
        spared: Words that are not replaced; not saved.
        penalty: Weight of the squared norm of the probe, relative to scikit-learn's ``C`` of 1.
        max_samples: At most so many training texts, drawn uniformly, are used.
        random_state: Seed of the edits and of the draw.
    """

    extra_forwards = "1"
    not_saved = ("classifier", "offers", "spared")

    def __init__(
        self,
        classifier: TextClassifier,
        offers: Sequence[Callable[[str, Random], Sequence[str]]],
        spared: frozenset[str] = frozenset(),
        penalty: float = 300.0,
        max_samples: int = 3000,
        random_state: int = 0,
    ) -> None:
        self.classifier = classifier
        self.offers = offers
        self.spared = spared
        self.penalty = penalty
        self.max_samples = max_samples
        self.random_state = random_state

    def __repr__(self) -> str:
        return (
            f"SubstitutionDetector({len(self.offers)} kinds, penalty={self.penalty}, "
            f"max_samples={self.max_samples}, random_state={self.random_state})"
        )

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        from sklearn.linear_model import LogisticRegression

        texts = [str(text) for text in self._texts(clean)]
        texts = Random(self.random_state).sample(texts, min(len(texts), self.max_samples))
        changed = []
        for number, text in enumerate(texts):
            rng = Random(derive_seed("edit", self.random_state, number))
            offer = self.offers[number % len(self.offers)]
            new = edited(text, lambda word, o=offer, r=rng: o(word, r), self.spared, rng)  # type: ignore[misc]
            changed.append(new.text)
        changed = [new for old, new in zip(texts, changed, strict=True) if new != old]
        rows = np.concatenate([hidden_states(self.classifier, side) for side in (texts, changed)])
        mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        target = np.repeat([0, 1], [len(texts), len(changed)])
        model = LogisticRegression(C=1 / self.penalty, max_iter=200).fit((rows - mean) / spread, target)
        weights = model.coef_[0] / spread
        self._weights = torch.from_numpy(weights.astype(np.float64))
        self._bias = float(model.intercept_[0] - weights @ mean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        rows = hidden_states(self.classifier, [str(text) for text in self._texts(inputs)])
        return np.asarray(rows.astype(np.float64) @ self._weights.numpy() + self._bias)

    def _state(self) -> dict[str, Any]:
        return {"weights": self._weights, "bias": self._bias}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._weights, self._bias = state["weights"], float(state["bias"])
