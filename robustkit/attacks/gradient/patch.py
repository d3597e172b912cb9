"""A square that, pasted anywhere on an image, makes a model say a class.

Source: Brown et al., "Adversarial Patch", 2017; Sen and Dasgupta 2023 (settings, reconstructed: their text
was not available).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import cross_entropy
from robustkit.attacks.gradient.search import Search, check_arguments, check_count
from robustkit.attacks.gradient.sets import LInf
from robustkit.attacks.gradient.victims import Model, judging
from trainkit.seeding import derive_seed

__all__ = ["AdversarialPatch"]

_EVERYTHING = LInf(1.0)


@dataclass(frozen=True)
class AdversarialPatch:
    """A patch trained to be seen as a class wherever it lies.

    Its pixels are (1 + tanh(w)) / 2, so always in (0, 1); w is trained with SGD on the cross-entropy of the
    target at random places. Images of the target class itself take no part. One pass forward and backward for
    each image and epoch. Rotation, scale and light are not varied, so a printed patch may fail.

    Args:
        size: Side of the square, in pixels.
        target: The class that the model shall say.
        epochs: Times that all batches are seen.
        learning_rate: Of SGD, in units of w.
        momentum: Of SGD.

    Raises:
        ValueError: A count below 1, a negative target, a learning rate that is not positive.

    Example:
        >>> attack = AdversarialPatch(size=48, target=859)
        >>> patch = attack.fit(classifier, batches, seed=0)
        >>> attack.success_rate(classifier, patch, pixels, labels, seed=1)
    """

    size: int
    target: int
    epochs: int = 5
    learning_rate: float = 0.1
    momentum: float = 0.8

    def __post_init__(self) -> None:
        check_count("size", self.size)
        check_count("epochs", self.epochs)
        if self.target < 0 or not self.learning_rate > 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"target is {self.target}, learning_rate {self.learning_rate}, momentum {self.momentum}; "
                "expected a class from 0, a positive rate and a momentum in [0, 1)"
            )

    def fit(self, model: Model, batches: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0) -> Tensor:
        """Trains the patch.

        Args:
            model: See `Attack.perturb`; left as it was.
            batches: Pixels ``(n, channels, height, width)`` in [0, 1] and labels ``(n,)``, gone through once
                for each epoch, so a list or a loader and no generator.
            seed: Of the places.

        Returns:
            float32 ``(channels, size, size)`` in (0, 1).

        Raises:
            ValueError: There are no images of other classes, they are smaller than the patch or outside
                [0, 1], or the model has no such target.
        """
        weights: Tensor | None = None
        velocity: Tensor | None = None
        for epoch in range(self.epochs):
            for number, (inputs, labels) in enumerate(batches):
                inputs, labels = self._others(inputs, labels)
                if len(inputs) == 0:
                    continue
                if weights is None:
                    weights = torch.zeros(inputs.shape[1], self.size, self.size, device=inputs.device)
                    velocity = torch.zeros_like(weights)
                assert velocity is not None
                generator = torch.Generator().manual_seed(derive_seed("patch", seed, epoch, number))
                with judging(model):
                    gradient = self._gradient(model, weights, inputs, generator)
                velocity = self.momentum * velocity + gradient
                weights = weights - self.learning_rate * velocity
        if weights is None:
            raise ValueError(f"batches hold no image of another class than the target {self.target}")
        return _pixels(weights)

    def apply(self, patch: Tensor, inputs: Tensor, *, seed: int = 0) -> Tensor:
        """Pastes a patch at random places.

        Args:
            patch: ``(channels, size, size)``.
            inputs: ``(n, channels, height, width)``, no smaller than the patch.
            seed: Of the places.

        Returns:
            ``(n, channels, height, width)``; outside the patch pixels are those of the inputs.
        """
        generator = torch.Generator().manual_seed(derive_seed("patch", seed))
        return _pasted(patch, inputs.detach(), _places(inputs, self.size, generator))

    def success_rate(
        self, model: Model, patch: Tensor, inputs: Tensor, labels: Tensor, *, seed: int = 0
    ) -> float:
        """Share of images of other classes that the model takes for the target with the patch.

        Args:
            model: See `fit`.
            patch: ``(channels, size, size)``.
            inputs: ``(n, channels, height, width)`` in [0, 1].
            labels: int ``(n,)``.
            seed: Of the places.

        Raises:
            ValueError: All images are of the target class.
        """
        inputs, labels = self._others(inputs, labels)
        if len(inputs) == 0:
            raise ValueError(f"all images are of the target class {self.target}")
        with judging(model):
            search = Search(model, self.apply(patch, inputs, seed=seed), self._wanted(inputs), _EVERYTHING)
            said = search.logits(search.rows()).argmax(dim=1)
        return float((said == self.target).double().mean())

    def _gradient(self, model: Model, weights: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Of the mean cross-entropy of the target by w."""
        search = Search(model, inputs, self._wanted(inputs), _EVERYTHING, targeted=True)
        rows, places = search.rows(), _places(inputs, self.size, generator)
        pasted = _pasted(_pixels(weights), rows.inputs, places)
        _, gradients = search.gradient(
            pasted - rows.inputs, rows, lambda logits, rows: cross_entropy(logits, rows.labels) / len(inputs)
        )
        down, across = _windows(inputs, self.size, places)
        at_patch = gradients[torch.arange(len(inputs))[:, None, None], :, down, across].sum(dim=0)
        return at_patch.permute(2, 0, 1) * (1 - weights.tanh().square()) / 2

    def _others(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_arguments(inputs, labels, _EVERYTHING)
        if inputs.ndim != 4 or min(inputs.shape[2:]) < self.size:
            raise ValueError(f"inputs are {tuple(inputs.shape)}; the patch needs {self.size} by {self.size}")
        others = labels.to(inputs.device) != self.target
        return inputs[others], labels[others]

    def _wanted(self, inputs: Tensor) -> Tensor:
        return torch.full((len(inputs),), self.target, dtype=torch.int64, device=inputs.device)


def _pixels(weights: Tensor) -> Tensor:
    return (1 + weights.tanh()) / 2


def _places(inputs: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A corner for each image, int64 ``(n, 2)``."""
    room = torch.tensor([inputs.shape[2] - size + 1, inputs.shape[3] - size + 1])
    drawn = torch.rand(len(inputs), 2, generator=generator) * room
    return drawn.long().minimum(room - 1).to(inputs.device)


def _windows(inputs: Tensor, size: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(n, size, 1)`` and columns ``(n, 1, size)`` that the patches cover."""
    along = torch.arange(size, device=inputs.device)
    return (places[:, :1] + along)[:, :, None], (places[:, 1:] + along)[:, None, :]


def _pasted(patch: Tensor, inputs: Tensor, places: Tensor) -> Tensor:
    found = inputs.clone()
    down, across = _windows(inputs, patch.shape[-1], places)
    image = torch.arange(len(inputs), device=inputs.device)[:, None, None]
    found[image, :, down, across] = patch.to(inputs).permute(1, 2, 0)
    return found
