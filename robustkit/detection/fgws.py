"""Frequency-guided word substitutions: attacks put rare words in place of frequent ones; put them back.

Mozes, Stenetorp, Kleinberg and Griffin, EACL 2021; code maximilianmozes/fgws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustkit.classifiers.features import Features, Text

from .base import logits_of
from .variants import ClassifierDetector, Words, cased_like, softmax, variant_logits

if TYPE_CHECKING:
    from robustkit.attacks.words.resources import Neighbours, WordNet
    from robustkit.classifiers.text import TextClassifier

__all__ = ["FGWSDetector"]

# Letters and digits, with apostrophes and hyphens inside.
_WORD = r"\w+(?:['’\-]\w+)*"
_PERCENTILES = tuple(range(0, 101, 10))


class FGWSDetector(ClassifierDetector):
    r"""Drop of the prediction's probability when rare words give way to frequent synonyms.

    With :math:`\phi(w) = \log(1 + \mathrm{count}(w))` in the training texts, every word below the
    ``percentile`` of :math:`\phi` over the vocabulary is replaced by the candidate of the highest
    :math:`\phi` (of equal ones the last in the alphabet), if that is higher than its own. The score is
    :math:`\max(0, p_{\hat y}(x) - p_{\hat y}(x'))`; 0 without a replacement. Words are compared in lower
    case, and a replacement takes over the capitals; everything else in the text stays. (The published code
    makes texts lower-case and takes punctuation away, so its figures are not comparable digit by digit.)
    Cost: one forward pass, none for a text without rare words.

    Args:
        classifier: The classifier that is defended; not saved.
        lexicon: Gives synonyms; not saved.
        neighbours: Gives the nearest words by word vectors, the published ones are GloVe's; not saved.
        percentile: Of the words' frequency, 0 to 100. The paper tunes it on attacked validation texts, see
            `tune`; the default is our choice.
        n_neighbours: How many neighbours are candidates; by default the mean number of synonyms of the words
            of the training texts, rounded up (the paper: of the validation texts).

    Raises:
        ValueError: A parameter is out of range, or there is neither a lexicon nor neighbours.

    Example:
        >>> lexicon = WordNet.from_files("oewn_entries.json.gz", "oewn_synsets.jsonl.gz")
        >>> detector = FGWSDetector(classifier, lexicon).fit(train_features, train_labels)
        >>> detector.save_pretrained("fgws")
        >>> Detector.from_pretrained("fgws", classifier, parts={"lexicon": lexicon})
    """

    extra_forwards = "at most 1"
    not_saved = ("classifier", "lexicon", "neighbours")

    def __init__(
        self,
        classifier: TextClassifier,
        lexicon: WordNet | None = None,
        neighbours: Neighbours | None = None,
        percentile: float = 90,
        n_neighbours: int | None = None,
    ) -> None:
        self.classifier = classifier
        self.lexicon = lexicon
        self.neighbours = neighbours
        self.percentile = percentile
        self.n_neighbours = n_neighbours
        self._check_params()

    def _check_params(self) -> None:
        if self.lexicon is None and self.neighbours is None:
            raise ValueError("FGWS needs candidates: give a lexicon, neighbours, or both")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; expected 0 to 100")
        if self.n_neighbours is not None and self.n_neighbours < 0:
            raise ValueError(f"n_neighbours is {self.n_neighbours}; expected at least 0")

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        texts = self._texts(clean)
        self._counts = Counter(word.lower() for text in texts for word in Words(text, _WORD).words)
        if not self._counts:
            raise ValueError("the texts hold no words to count")
        self._n_neighbours = self.n_neighbours or 0
        if self.n_neighbours is None and self.lexicon is not None:
            found = [len(self._synonyms(word)) for word in self._counts]
            self._n_neighbours = math.ceil(sum(found) / len(found))

    def tune(self, clean: Features, adversarial: Features, fpr: float = 0.10) -> float:
        """Choose ``percentile`` among 0, 10 ... 100 as the paper does, on attacked validation texts.

        Args:
            clean: Features of clean validation texts.
            adversarial: Features of their attacked versions.
            fpr: Share of clean texts that may be flagged.

        Returns:
            The percentile, the lowest of those with the largest share of attacked texts flagged; calibrate
            afterwards.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: As `calibrate`.
        """
        flagged = {}
        for percentile in _PERCENTILES:
            self.set_params(percentile=percentile)
            self.calibrate(clean, fpr)
            flagged[percentile] = self.predict(adversarial).mean()
        best = max(_PERCENTILES, key=lambda percentile: flagged[percentile])
        self.set_params(percentile=best)
        for name in ("clean_scores_", "threshold_", "fpr_"):
            delattr(self, name)
        return best

    def substituted(self, text: Text) -> Text:
        """A text with its rare words replaced; the same text if there is nothing to replace.

        Raises:
            NotFittedError: `fit` was not called.
        """
        self._check_fitted()
        return self._substituted(text, self._rare_below())

    def _rare_below(self) -> float:
        return float(np.percentile(np.log1p(list(self._counts.values())), self.percentile))

    def _substituted(self, text: Text, below: float) -> Text:
        words = Words(text, _WORD)
        changes = {}
        for index, word in enumerate(words.words):
            rare = word.lower()
            if math.log1p(self._counts[rare]) >= below:
                continue
            best = max(self._candidates(rare), key=lambda w: (self._counts[w], w), default=rare)
            if self._counts[best] > self._counts[rare]:
                changes[index] = cased_like(word, best)
        return words.replaced(changes)

    def _candidates(self, word: str) -> Iterable[str]:
        near = () if self.neighbours is None else self.neighbours.of(word)[: self._n_neighbours]
        return {*self._synonyms(word), *near} - {word}

    def _synonyms(self, word: str) -> set[str]:
        if self.lexicon is None:
            return set()
        return {synonym.lower() for synonym in self.lexicon.synonyms(word)} - {word}

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        texts, below = self._texts(inputs), self._rare_below()
        changed = [self._substituted(text, below) for text in texts]
        copies = ([new] if new != text else [] for text, new in zip(texts, changed, strict=True))
        before = softmax(logits_of(inputs))
        scores = np.zeros(len(inputs))
        for i, logits in enumerate(variant_logits(self.classifier, copies)):
            if len(logits):
                own = inputs.predictions[i]
                scores[i] = max(0.0, before[i, own] - softmax(logits)[0, own])
        return scores

    def _state(self) -> dict[str, Any]:
        return {
            "counts": dict(self._counts),
            "n_neighbours": self._n_neighbours,
            "resources": self._resources(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["resources"] != self._resources():
            raise ValueError("this FGWSDetector was fitted with another lexicon or other neighbours")
        self._counts = Counter(state["counts"])
        self._n_neighbours = state["n_neighbours"]

    def _resources(self) -> list[str | None]:
        parts = (self.lexicon, self.neighbours)
        return [None if part is None else part.fingerprint for part in parts]
