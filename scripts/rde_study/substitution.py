"""A detector that has learned what replaced words look like inside the classifier, without any attack.

Words of clean training texts are replaced at random by words that a lexicon offers, and letters are mistyped;
whether the classifier changes its mind plays no part. A linear probe on the classifier's hidden states then
tells changed from unchanged texts. Density and uncertainty say whether a text is near the boundary or far
from the data; this says whether it was edited, also where the classifier is confidently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.classifiers.features import Features
from robustkit.detection.replaced_edits import Source, edited, offers_of
from robustkit.detection.variants import ClassifierDetector
from trainkit.seeding import derive_seed

if TYPE_CHECKING:
    from robustkit.classifiers import TextClassifier

__all__ = ["SubstitutionDetector", "hidden_states"]

_BATCH = 32


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
        offers: Where replacements come from; texts take turns. Not saved.
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
        offers: Sequence[Source],
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
            offer = offers_of(self.offers[number % len(self.offers)])
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
