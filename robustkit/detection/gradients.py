"""Detectors that follow the loss's gradient: masking of the words it points at, sharpness of the loss.

Of both papers only the abstract was at hand. What is not in it is our choice and said so.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.classifiers.features import Features, Text

from .variants import ClassifierDetector

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["GradMaskDetector", "SharpnessDetector"]

# Padded tokens in one batch; a backward pass keeps some kilobytes for each and layer.
_TOKENS = {"cpu": 2048, "cuda": 16_384}


class _GradientDetector(ClassifierDetector):
    """What both detectors share: batches of similar length, no reference statistics."""

    needs_fit = False

    @abstractmethod
    def _score_batch(self, batch: dict[str, Tensor], predicted: Tensor) -> Tensor:
        """float64 (n,) of one batch and its predicted classes."""

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        self._texts(clean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        texts = self._texts(inputs)
        scores = np.empty(len(texts))
        for rows, batch in self._batches(texts):
            predicted = torch.from_numpy(inputs.predictions[rows])
            scores[rows] = self._score_batch(batch, predicted).numpy()
        return scores

    def _batches(self, texts: tuple[Text, ...]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        # Characters stand for tokens here: they only decide which texts go together.
        order = sorted(range(len(texts)), key=lambda i: -sum(map(len, texts[i])))
        limit = _TOKENS.get(self.classifier.device.type, _TOKENS["cuda"])
        while order:
            length = self.classifier.encode([texts[order[0]]])["input_ids"].shape[1]
            size = 1 if self.classifier.model.config.pad_token_id is None else max(1, limit // length)
            rows, order = order[:size], order[size:]
            yield rows, self.classifier.encode([texts[row] for row in rows])

    def _losses(self, embedded: Tensor, batch: dict[str, Tensor], predicted: Tensor) -> Tensor:
        """Cross-entropies (n,) of the predicted classes; in float64, where sure predictions have a slope."""
        logits = self.classifier.logits_from_embeddings(embedded, **batch).cpu().double()
        return torch.nn.functional.cross_entropy(logits, predicted, reduction="none")


class GradMaskDetector(_GradientDetector):
    """Drop of the prediction's probability when the tokens with the largest gradients are masked.

    After GradMask (Moon et al., KDD 2022; abstract only). Tokens are ranked by the Euclidean norm of the
    gradient of the predicted class's cross-entropy by their embedding; the embedding of the mask token (or
    else the unknown one) takes the place of the first of them. It needs no `fit`, only `calibrate`. Cost: two
    forward passes and a backward one.

    Args:
        classifier: The classifier that is defended; not saved.
        share: Share of a text's tokens that are masked, rounded up; our choice.

    Raises:
        ValueError: ``share`` is out of range, or the tokenizer has neither token.
    """

    extra_forwards = "2, 1 backward"

    def __init__(self, classifier: TextClassifier, share: float = 0.15) -> None:
        self.classifier = classifier
        self.share = share
        self._check_params()

    def _check_params(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected more than 0, at most 1")
        self._mask_id()

    def _mask_id(self) -> int:
        tokenizer = self.classifier.tokenizer
        for found in (tokenizer.mask_token_id, tokenizer.unk_token_id):
            if found is not None:
                return int(found)
        raise ValueError(f"the tokenizer of {self.classifier.name} has neither a mask nor an unknown token")

    def _score_batch(self, batch: dict[str, Tensor], predicted: Tensor) -> Tensor:
        ids = batch["input_ids"]
        embedded = self.classifier.embeddings(ids).requires_grad_()
        before = self._losses(embedded, batch, predicted)
        (gradient,) = torch.autograd.grad(before.sum(), embedded)
        masked = self._largest(gradient.norm(dim=2), ids, batch["attention_mask"])
        mask = self.classifier.embeddings(torch.tensor([[self._mask_id()]], device=ids.device))
        with torch.no_grad():
            after = self._losses(torch.where(masked[:, :, None], mask, embedded), batch, predicted)
        return (-before.detach()).exp() - (-after).exp()

    def _largest(self, norms: Tensor, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Which tokens (n, T) are masked: a share of those that are neither padding nor frame."""
        tokenizer = self.classifier.tokenizer
        frame = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id,
                 tokenizer.bos_token_id, tokenizer.eos_token_id)  # fmt: skip
        framing = torch.tensor([token for token in frame if token is not None], device=ids.device)
        words = attention_mask.bool() & ~torch.isin(ids, framing)
        order = torch.where(words, norms, -1.0).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        return words & (rank < (words.sum(dim=1, keepdim=True) * self.share).ceil())


class SharpnessDetector(_GradientDetector):
    r"""Increase of the loss when the input embeddings are moved against the prediction, within a small ball.

    After Zheng et al., Findings of ACL 2023 (abstract only): adversarial texts lie where the loss is sharp.
    :math:`L(e + \delta) - L(e)` with L the predicted class's cross-entropy and e the tokens' embeddings.
    :math:`\delta` starts at 0 and takes ``steps`` steps of equal length along the normalized gradient;
    together they are ``radius`` times the Euclidean norm of e long, so it stays in the ball. Norm, radius and
    steps are our choice. It needs no `fit`, only `calibrate`. Cost: ``steps`` forward and backward passes,
    and a forward one.

    Args:
        classifier: The classifier that is defended; not saved.
        radius: Radius of the ball by the norm of the text's embeddings.
        steps: Number of steps.

    Raises:
        ValueError: A parameter is out of range.
    """

    extra_forwards = "4, 3 backward"

    def __init__(self, classifier: TextClassifier, radius: float = 0.05, steps: int = 3) -> None:
        self.classifier = classifier
        self.radius = radius
        self.steps = steps
        self._check_params()

    def _check_params(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius is {self.radius}; expected more than 0")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")

    def _score_batch(self, batch: dict[str, Tensor], predicted: Tensor) -> Tensor:
        real = batch["attention_mask"][:, :, None]
        start = self.classifier.embeddings(batch["input_ids"])
        length = self.radius / self.steps * _norms(start * real)
        moved, first = start, None
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_()
            losses = self._losses(moved, batch, predicted)
            first = losses.detach() if first is None else first
            (gradient,) = torch.autograd.grad(losses.sum(), moved)
            direction = gradient * real
            moved = moved + length * direction / _norms(direction).clamp(min=torch.finfo(start.dtype).tiny)
        with torch.no_grad():
            last = self._losses(moved.detach(), batch, predicted)
        assert first is not None
        return last - first


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms (n, 1, 1) of (n, T, d)."""
    norms: Tensor = rows.flatten(1).norm(dim=1)
    return norms[:, None, None]
