"""Word-level differential reaction: how the classifier reacts to each word's absence, read by a classifier.

Mosca, Agarwal, Rando-Ramirez and Groh, ACL 2022; code javirandor/wdr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.classifiers.features import Features

from .kernel_pca import sample_rows
from .variants import ClassifierDetector, Words, variant_logits

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["WDRDetector", "wdr_vector"]


def wdr_vector(
    logits: NDArray[np.floating], without: NDArray[np.floating], length: int
) -> NDArray[np.float64]:
    r"""The reactions of one text's classification to the absence of each word.

    With :math:`\hat y` the prediction for x, word i gives :math:`z_{\hat y}(x_{\setminus i}) -
    \max_{y \ne \hat y} z_y(x_{\setminus i})`. Words are ordered by :math:`z_{\hat y}(x) -
    z_{\hat y}(x_{\setminus i})`, largest first; equal ones keep their order in the text.

    Args:
        logits: ``(C,)`` of the text, C at least 2.
        without: ``(k, C)`` of the text without each of k words, k at most ``length``.
        length: Of the result; what is missing is 0.

    Returns:
        float64 ``(length,)``.
    """
    predicted = int(logits.argmax())
    own = without[:, predicted]
    margins = own - np.delete(without, predicted, axis=1).max(axis=1, initial=-np.inf)
    order = np.argsort(own - logits[predicted], kind="stable")
    vector = np.zeros(length)
    vector[: len(order)] = margins[order]
    return vector


class WDRDetector(ClassifierDetector):
    """Word-level differential reaction, with gradient-boosted trees on top.

    The defaults are the published ones for the best of the published classifiers (XGBoost: depth 3, 29 trees,
    learning rate 0.343); the trees are scikit-learn's, kept as arrays. Cost: a forward pass for each word.

    Args:
        classifier: The classifier that is defended; not saved.
        max_words: Only the first so many words are taken away.
        mask: What stands for a word that is taken away; by default the tokenizer's unknown token. The
            published code writes ``"[UNK]"``, which is a plain string to models other than BERT's kin.
        n_trees: Number of trees.
        depth: Depth of a tree.
        learning_rate: Weight of a tree.
        max_samples: At most so many clean and so many adversarial texts are learned from, drawn uniformly.
        random_state: Seed of the draw and of the trees.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> detector = WDRDetector(classifier)
        >>> detector.fit(classifier.extract(clean), labels, adversarial=classifier.extract(attacked))
    """

    needs_adversarial = True
    extra_forwards = "1 per word"

    def __init__(
        self,
        classifier: TextClassifier,
        max_words: int = 512,
        mask: str | None = None,
        n_trees: int = 29,
        depth: int = 3,
        learning_rate: float = 0.343,
        max_samples: int = 1500,
        random_state: int = 0,
    ) -> None:
        self.classifier = classifier
        self.max_words = max_words
        self.mask = mask
        self.n_trees = n_trees
        self.depth = depth
        self.learning_rate = learning_rate
        self.max_samples = max_samples
        self.random_state = random_state
        self._check_params()

    def _check_params(self) -> None:
        for name in ("max_words", "n_trees", "depth", "max_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if not self._mask():
            raise ValueError("the tokenizer has no unknown token; pass mask=, such as '[UNK]'")

    def _mask(self) -> str:
        return str(self.mask or self.classifier.tokenizer.unk_token or "")

    def vectors(self, inputs: Features) -> NDArray[np.float64]:
        """The reactions (n, max_words) of texts; see `wdr_vector`.

        Raises:
            ValueError: The features come from another classifier, or carry no texts.
        """
        texts = self._texts(inputs)
        whole = self.classifier.logits(texts) if inputs.logits is None else inputs.logits
        copies = variant_logits(self.classifier, map(self._without_each_word, texts))
        pairs = zip(whole, copies, strict=True)
        return np.stack([wdr_vector(logits, without, self.max_words) for logits, without in pairs])

    def _without_each_word(self, text: Any) -> list[Any]:
        words, mask = Words(text), self._mask()
        return [words.replaced({i: mask}) for i in range(min(len(words), self.max_words))]

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        from sklearn.ensemble import GradientBoostingClassifier

        assert adversarial is not None
        rows = [
            self.vectors(side[sample_rows(len(side), self.max_samples, self.random_state)])
            for side in (clean, adversarial)
        ]
        model = GradientBoostingClassifier(
            n_estimators=self.n_trees,
            max_depth=self.depth,
            learning_rate=self.learning_rate,
            random_state=self.random_state,
        )
        model.fit(np.concatenate(rows), np.repeat([0, 1], [len(side) for side in rows]))
        self._trees = _Trees.of(model)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        return self._trees.log_odds(self.vectors(inputs))

    def _state(self) -> dict[str, Any]:
        return dict(vars(self._trees))

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._trees = _Trees(**{field.name: state[field.name] for field in fields(_Trees)})


@dataclass(frozen=True)
class _Trees:
    """Regression trees of depth D whose values are summed; kept as arrays.

    Attributes:
        features: int64 (trees, nodes): the number that a node looks at, -1 at a leaf.
        thresholds: float64 (trees, nodes): what is at most this goes left.
        children: int64 (trees, nodes, 2): left and right.
        values: float64 (trees, nodes): of the leaves, in log-odds.
        start: float64 (): log-odds without trees.
    """

    features: torch.Tensor
    thresholds: torch.Tensor
    children: torch.Tensor
    values: torch.Tensor
    start: torch.Tensor

    @classmethod
    def of(cls, model: Any) -> _Trees:
        """The trees of a fitted scikit-learn ``GradientBoostingClassifier`` of two classes."""
        trees = [estimator.tree_ for estimator in model.estimators_[:, 0]]
        nodes = max(tree.node_count for tree in trees)

        def padded(arrays: list[NDArray[Any]], dtype: type) -> torch.Tensor:
            rows = np.zeros((len(arrays), nodes, *arrays[0].shape[1:]), dtype)
            for row, array in zip(rows, arrays, strict=True):
                row[: len(array)] = array
            return torch.from_numpy(rows)

        odds = model.init_.class_prior_
        return cls(
            features=padded([np.where(t.children_left < 0, -1, t.feature) for t in trees], np.int64),
            thresholds=padded([t.threshold for t in trees], np.float64),
            children=padded([np.stack([t.children_left, t.children_right], 1) for t in trees], np.int64),
            values=padded([model.learning_rate * t.value[:, 0, 0] for t in trees], np.float64),
            start=torch.tensor(float(np.log(odds[1] / odds[0])), dtype=torch.float64),
        )

    def log_odds(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds (n,) of vectors (n, length)."""
        # The trees were grown on float32.
        rows = torch.from_numpy(vectors.astype(np.float32))
        totals = self.start.expand(len(rows)).clone()
        for feature, threshold, children, value in zip(
            self.features, self.thresholds, self.children, self.values, strict=True
        ):
            node = torch.zeros(len(rows), dtype=torch.int64)
            while (inner := feature[node] >= 0).any():
                looked = rows.gather(1, feature[node].clamp(min=0)[:, None])[:, 0]
                side = (looked > threshold[node]).long()
                node = torch.where(inner, children[node, side], node)
            totals += value[node]
        return totals.numpy()
