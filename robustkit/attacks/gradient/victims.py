"""What gradient attacks attack: any module that gives logits, or a text classifier by its embeddings."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.classifiers.features import Text
from robustkit.classifiers.images import ImageClassifier
from robustkit.classifiers.text import TextClassifier
from trainkit.seeding import preserved_rng

__all__ = ["EmbeddedTexts", "Model", "Victim", "changeable_tokens", "judging"]

Model = Callable[[Tensor], Any]
"""Inputs to logits ``(n, C)``, or to an object with such ``logits``, differentiably."""


class EmbeddedTexts:
    """Texts as embeddings that an attack may change: the model and the inputs for `perturb`.

    Positions, token types and padding stay those of the texts. The model runs in evaluation mode.

    Args:
        classifier: The classifier.
        texts: n texts or pairs.

    Attributes:
        embeddings: ``(n, T, d)``, the inputs of an attack.
        mask: bool ``(n, T)``: tokens that may be changed, so neither padding nor special tokens.

    Example:
        >>> texts = EmbeddedTexts(classifier, ["a fine film", "a waste of time"])
        >>> ball = EmbeddingBall(0.5).for_mask(texts.mask)
        >>> PGD(ball).perturb(texts, texts.embeddings, labels)
    """

    def __init__(self, classifier: TextClassifier, texts: Sequence[Text]) -> None:
        self.classifier = classifier
        self._batch = classifier.encode(texts)
        self.embeddings = classifier.embeddings(self._batch["input_ids"])
        self.mask = changeable_tokens(classifier, self._batch["input_ids"], self._batch["attention_mask"])

    def __call__(self, embeddings: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits of the texts with other embeddings.

        Args:
            embeddings: ``(m, T, d)``.
            rows: Which texts they belong to, int64 ``(m,)``; None for all in order.

        Returns:
            ``(m, C)``.
        """
        batch = self._batch
        if rows is not None:
            batch = {name: tensor[rows] for name, tensor in batch.items()}
        return self.classifier.logits_from_embeddings(
            embeddings,
            batch["attention_mask"],
            input_ids=batch["input_ids"],
            token_type_ids=batch.get("token_type_ids"),
        )

    def take(self, rows: Tensor) -> EmbeddedTexts:
        """Some of the texts, those of an index int64 ``(m,)``."""
        some = copy.copy(self)
        some._batch = {name: tensor[rows] for name, tensor in self._batch.items()}
        some.embeddings, some.mask = self.embeddings[rows], self.mask[rows]
        return some


def changeable_tokens(classifier: TextClassifier, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Which tokens carry the text: neither padding nor special tokens, but unknown words do.

    Args:
        classifier: Whose tokenizer made the ids.
        input_ids: int64 ``(n, T)``.
        attention_mask: ``(n, T)``.

    Returns:
        bool ``(n, T)``.
    """
    tokenizer = classifier.tokenizer
    special = set(tokenizer.all_special_ids)
    ends = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id", "mask_token_id")
    if tokenizer.unk_token_id not in {getattr(tokenizer, name) for name in ends}:
        special.discard(tokenizer.unk_token_id)
    return attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(sorted(special)).to(input_ids))


class Victim:
    """A model as an attack sees it: wide logits, checked once, in the dtype that the model takes.

    Args:
        model: See `Model`.
        inputs: The clean inputs as they were given, ``(n, ...)``.
        labels: int64 ``(n,)``; must be classes of the model.
        box: The box of the inputs.

    Raises:
        TypeError: A text classifier without texts, or something that cannot be called.

    Warns:
        UserWarning: A transformers image model without its processor gets pixels in [0, 1].
    """

    def __init__(self, model: Model, inputs: Tensor, labels: Tensor, box: tuple[float, float] | None) -> None:
        if isinstance(model, TextClassifier):
            raise TypeError("model is a TextClassifier; give EmbeddedTexts(classifier, texts) instead")
        if not callable(model):
            raise TypeError(f"model is a {type(model).__name__}; expected a module or a function")
        if box is not None and _is_bare_transformer(model):
            warnings.warn(
                f"{type(model).__name__} has no processor here and gets values from {box[0]:g} to {box[1]:g} "
                "without normalization; give ImageClassifier(model, processor) instead",
                stacklevel=6,
            )
        self.model = model
        self._inputs = inputs.detach()
        self._labels = labels
        self._narrow = inputs.dtype if inputs.dtype.itemsize < 4 else _narrow_weights(model)
        self._checked = False

    @property
    def is_narrow(self) -> bool:
        """Whether the model computes in 16 bits by itself."""
        return self._narrow is not None

    def __call__(self, perturbed: Tensor, rows: Tensor) -> Tensor:
        """Logits ``(m, C)`` of perturbed inputs ``(m, ...)`` of some rows, in at least 32 bits.

        Raises:
            ValueError: The model gives something else than finite numbers for two classes or more, or a label
                is none of its classes.
        """
        given = perturbed if self._narrow is None else perturbed.to(self._narrow)
        if self._inputs.dtype.itemsize < 4:
            # The value is what `as_given` will return, the gradient that of the plain conversion.
            given = given - given.detach() + _towards(perturbed.detach(), self._inputs[rows])
        output = self.model(given, rows) if isinstance(self.model, EmbeddedTexts) else self.model(given)
        logits = getattr(output, "logits", output)
        if not self._checked:
            self._check(logits, len(perturbed))
        assert isinstance(logits, Tensor)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def as_given(self, perturbed: Tensor) -> Tensor:
        """Perturbed inputs of all rows in the dtype and memory format of the clean ones.

        Numbers of 16 bits are rounded towards the clean ones, so that no norm grows.
        """
        if self._inputs.dtype.itemsize < 4:
            perturbed = _towards(perturbed, self._inputs)
        return torch.empty_like(self._inputs).copy_(perturbed)

    def _check(self, logits: object, n: int) -> None:
        name = type(self.model).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{name} gives {shown} for {n} inputs; expected logits ({n}, classes)")
        if not torch.isfinite(logits).all():
            raise ValueError(f"{name} gives logits that are NaN or infinite")
        if self._labels.max() >= logits.shape[1]:
            raise ValueError(f"labels go to {self._labels.max()}; the model has {logits.shape[1]} classes")
        self._checked = True


@contextmanager
def judging(model: Model) -> Iterator[None]:
    """Evaluation mode with gradients; modes, random state and whether gradients are on come back afterwards.

    Each module's flag is set and restored by itself: a model that keeps some parts in evaluation mode keeps
    them there, and statistics of batch normalization do not move.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        with preserved_rng(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _towards(perturbed: Tensor, clean: Tensor) -> Tensor:
    """Rounds to the dtype of the clean inputs, never away from them."""
    given, wide = perturbed.to(clean.dtype), clean.to(perturbed.dtype)
    longer = (given.to(perturbed.dtype) - wide).abs() > (perturbed - wide).abs()
    return torch.where(longer, torch.nextafter(given, clean), given)


def _is_bare_transformer(model: Model) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _narrow_weights(model: Model) -> torch.dtype | None:
    """The weights' dtype where it has fewer than 32 bits, and so takes no wider inputs."""
    if not isinstance(model, nn.Module):
        return None
    inner = model.model if isinstance(model, ImageClassifier) else model
    found = next((weight.dtype for weight in inner.parameters() if weight.is_floating_point()), torch.float32)
    return found if found.itemsize < 4 else None
