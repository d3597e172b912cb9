"""ADDMU: how unsure the data and the model are around a text.

Yin, Li, Hsieh and Chang, EMNLP 2022; code uclanlp/AdvExDetection-ADDMU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustkit.classifiers.features import Features, Text
from trainkit.seeding import derive_seed, preserved_rng

from .kernel_pca import sample_rows
from .variants import ClassifierDetector, Words, mask_word, softmax, variant_logits

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["ADDMUDetector", "data_uncertainty", "model_uncertainty"]

# Padded tokens in one batch of passes. A constant: what is drawn must not depend on the machine.
_TOKENS = 8192


def data_uncertainty(probabilities: NDArray[np.floating], predicted: int) -> float:
    r"""Mean of :math:`1 - p_{\hat y}` over masked copies of a text.

    Args:
        probabilities: ``(copies, C)``.
        predicted: The class predicted for the text itself.
    """
    return float(1 - probabilities[:, predicted].mean())


def model_uncertainty(probabilities: NDArray[np.floating]) -> float:
    r"""Mean over copies of :math:`E\lVert p\rVert - \lVert E p\rVert`, E over passes with dropout; 0 or more.

    Args:
        probabilities: ``(copies, passes, C)``.
    """
    mean_norm = np.linalg.norm(probabilities, axis=2).mean(axis=1)
    norm_of_mean = np.linalg.norm(probabilities.mean(axis=1), axis=1)
    return float((mean_norm - norm_of_mean).mean())


class ADDMUDetector(ClassifierDetector):
    """Data and model uncertainty, as p-values against clean training texts that Fisher's method combines.

    Data uncertainty looks at copies of a text in which every word is masked with probability ``rate``; model
    uncertainty passes some of these copies through the classifier with dropout. The score is the negative sum
    of the two p-values' logarithms.

    Texts of the reference are masked as the others are, so that p-values of clean texts are uniform; the
    authors' code masks those at rates up to 0.4, and never masks a text's first word. Only dropout modules
    drop; attention weights, which are dropped inside a function, do not. The model's mode, dropout rates and
    the random state are left as they were. What is drawn for a text depends on text and seed alone. Cost: 200
    forward passes for a text, and as many for each text of the reference.

    Args:
        classifier: The classifier that is defended; not saved.
        copies: Masked copies for the data uncertainty.
        dropout_copies: How many of them are passed with dropout, at most ``copies``.
        passes: Passes with dropout for each of these.
        rate: Probability that a word is masked.
        dropout: Probability that a number is dropped.
        mask: What stands for a masked word; by default the tokenizer's mask token, else its unknown token.
        max_samples: Size of the reference: at most so many training texts, drawn uniformly.
        random_state: Seed.

    Raises:
        ValueError: A parameter is out of range, or the model has no dropout modules.
    """

    extra_forwards = "200"

    def __init__(
        self,
        classifier: TextClassifier,
        copies: int = 100,
        dropout_copies: int = 10,
        passes: int = 10,
        rate: float = 0.1,
        dropout: float = 0.2,
        mask: str | None = None,
        max_samples: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.classifier = classifier
        self.copies = copies
        self.dropout_copies = dropout_copies
        self.passes = passes
        self.rate = rate
        self.dropout = dropout
        self.mask = mask
        self.max_samples = max_samples
        self.random_state = random_state
        self._check_params()

    def _check_params(self) -> None:
        for name in ("copies", "dropout_copies", "passes", "max_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.dropout_copies > self.copies:
            raise ValueError(
                f"dropout_copies is {self.dropout_copies}; expected at most copies, {self.copies}"
            )
        for name in ("rate", "dropout"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability between 0 and 1")
        mask_word(self.classifier, self.mask)
        if not _dropouts(self.classifier.model):
            raise ValueError(
                f"{self.classifier.name} has no dropout, so no model uncertainty can be measured"
            )

    def uncertainties(self, inputs: Features) -> NDArray[np.float64]:
        """Data and model uncertainty (n, 2) of texts.

        Raises:
            ValueError: The features come from another classifier, or carry no texts.
        """
        texts = self._texts(inputs)
        found = np.empty((len(texts), 2))
        answers = variant_logits(self.classifier, map(self._masked, texts))
        for row, predicted, logits in zip(found, inputs.predictions, answers, strict=True):
            row[0] = data_uncertainty(softmax(logits), predicted)
        with preserved_rng(), _dropping(self.classifier.model, self.dropout), torch.no_grad():
            for row, text in zip(found, texts, strict=True):
                row[1] = model_uncertainty(self._passed(text))
        return found

    def part_p_values(self, inputs: Features) -> NDArray[np.float64]:
        """p-values (n, 2) of data and model uncertainty against the reference: uniform for clean texts.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: The features come from another classifier, or carry no texts.
        """
        self._check_fitted()
        n = len(self._reference)
        below = [
            np.searchsorted(known, values, side="left")
            for known, values in zip(self._reference.T, self.uncertainties(inputs).T, strict=True)
        ]
        return np.asarray((1 + n - np.stack(below, axis=1)) / (1 + n), dtype=np.float64)

    def _masked(self, text: Text) -> list[Text]:
        words, mask = Words(text), mask_word(self.classifier, self.mask)
        draws = np.random.default_rng(self._seed("mask", text)).random((self.copies, len(words)))
        return [words.replaced(dict.fromkeys(np.flatnonzero(row < self.rate), mask)) for row in draws]

    def _passed(self, text: Text) -> NDArray[np.float64]:
        """Probabilities (copies, passes, C) with dropout."""
        copies = self._masked(text)[: self.dropout_copies]
        # Without a padding token models refuse more than one row.
        padded = self.classifier.model.config.pad_token_id is not None
        torch.manual_seed(self._seed("dropout", text))
        logits = []
        for group in [copies] if padded else [[copy] for copy in copies]:
            batch = self.classifier.encode(group)
            rows = torch.arange(len(group)).repeat_interleave(self.passes)
            for part in rows.split(max(1, _TOKENS // batch["input_ids"].shape[1]) if padded else 1):
                arguments = {name: tensor[part] for name, tensor in batch.items()}
                logits.append(self.classifier.model(**arguments).logits.float().cpu().numpy())
        return softmax(np.concatenate(logits)).reshape(len(copies), self.passes, -1)

    def _seed(self, what: str, text: Text) -> int:
        return derive_seed("addmu", what, self.random_state, *((text,) if isinstance(text, str) else text))

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        sample = sample_rows(len(clean), self.max_samples, self.random_state)
        self._reference = np.sort(self.uncertainties(clean[sample]), axis=0)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        return np.asarray(-np.log(self.part_p_values(inputs)).sum(axis=1))

    def _state(self) -> dict[str, Any]:
        return {"reference": torch.from_numpy(self._reference)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._reference = state["reference"].numpy()


def _dropouts(model: nn.Module) -> list[nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


@contextmanager
def _dropping(model: nn.Module, probability: float) -> Iterator[None]:
    """Evaluation mode, but dropout modules drop; modes and rates are restored."""
    modes = [(module, module.training) for module in model.modules()]
    rates = [(module, module.p) for module in _dropouts(model)]
    try:
        model.eval()
        for dropout, _ in rates:
            dropout.p, dropout.training = probability, True
        yield
    finally:
        for module, training in modes:
            module.training = training
        for dropout, rate in rates:
            dropout.p = rate
