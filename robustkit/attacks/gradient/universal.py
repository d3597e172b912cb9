"""One perturbation for all inputs, by stochastic gradient aggregation.

Source: Liu et al., "Enhancing Generalization of Universal Adversarial Perturbation through Gradient
Aggregation", ICCV 2023. Moosavi-Dezfooli et al. 2017 introduced universal perturbations.
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

__all__ = ["UniversalPerturbation"]


@dataclass(frozen=True)
class UniversalPerturbation:
    """A single perturbation that changes what a model says of most inputs.

    For each large batch an inner perturbation takes steps along the signs of gradients of small random parts;
    the outer one then takes one step along the sign of the gradients' mean, and the inner one is dropped.
    Small parts keep signs from cancelling, the mean keeps out of poor local optima. The loss is the
    cross-entropy of the model's own clean prediction, cut at 9, so labels are not needed. A pass forward and
    backward for ``rounds`` times each input and epoch, and one forward pass more.

    Args:
        threat: The largest change of a number, in units of the inputs, and the box; one radius for all.
        epochs: Times that all batches are seen.
        step_size: Length of inner and outer steps as a share of epsilon.
        part: Inputs in an inner step (b of the paper).
        rounds: Times that inner steps go through a large batch (K).
        momentum: How much of the sum of former mean gradients, each divided by its l1 norm, is kept.

    Raises:
        ValueError: A count below 1, a step size that is not positive, a negative momentum, or a radius for
            each sample.

    Example:
        >>> attack = UniversalPerturbation(LInf(10 / 255), epochs=20)
        >>> delta = attack.fit(classifier, batches_of_250_images, seed=0)
        >>> perturbed = attack.apply(delta, images)
    """

    threat: LInf
    epochs: int = 20
    step_size: float = 0.1
    part: int = 10
    rounds: int = 4
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "part", "rounds"):
            check_count(name, getattr(self, name))
        if not isinstance(self.threat, LInf) or isinstance(self.threat.epsilon, Tensor):
            raise ValueError(f"threat is {self.threat!r:.100}; expected LInf with one radius")
        if not self.step_size > 0 or not self.momentum >= 0:
            raise ValueError(
                f"step_size is {self.step_size}, momentum {self.momentum}; expected a positive number and "
                "one of at least 0"
            )

    def fit(self, model: Model, batches: Iterable[Tensor], *, seed: int = 0) -> Tensor:
        """Searches the perturbation.

        Args:
            model: See `Attack.perturb`; left as it was.
            batches: Large batches of inputs ``(n, ...)`` (250 in the paper), gone through once for each
                epoch, so a list or a loader and no generator.
            seed: Of the order of inputs.

        Returns:
            ``(1, ...)``, in the box only once `apply` has added it to an input.

        Raises:
            ValueError: There are no batches, or inputs outside the box.
        """
        delta: Tensor | None = None
        velocity: Tensor | None = None
        for epoch in range(self.epochs):
            for number, inputs in enumerate(batches):
                generator = torch.Generator().manual_seed(derive_seed("universal", seed, epoch, number))
                labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
                check_arguments(inputs, labels, self.threat)
                if delta is None:
                    wide = torch.promote_types(inputs.dtype, torch.float32)
                    delta = torch.zeros_like(inputs[:1], dtype=wide)
                    velocity = torch.zeros_like(delta)
                assert velocity is not None
                with judging(model):
                    gradient = self._aggregated(model, inputs, delta, generator)
                size = gradient.abs().sum()
                velocity = self.momentum * velocity + gradient / size.where(size > 0, 1)
                delta = self._stepped(delta, velocity)
        if delta is None:
            raise ValueError("batches is empty, or a generator that was used up")
        return delta

    def apply(self, delta: Tensor, inputs: Tensor) -> Tensor:
        """Inputs ``(n, ...)`` with the perturbation ``(1, ...)``, cut at the box."""
        added = self.threat.project(delta.to(inputs).expand_as(inputs), inputs.detach())
        return inputs.detach() + added

    def fooling_rate(self, model: Model, delta: Tensor, inputs: Tensor) -> float:
        """Share of inputs whose predicted class the perturbation changes.

        Args:
            model: See `fit`.
            delta: ``(1, ...)``.
            inputs: ``(n, ...)``.
        """
        with judging(model):
            search = self._search(model, inputs)
            before = search.logits(search.rows()).argmax(dim=1)
            other = self._search(model, self.apply(delta, inputs))
            return float((other.logits(other.rows()).argmax(dim=1) != before).double().mean())

    def _aggregated(self, model: Model, inputs: Tensor, delta: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of the gradients that the inner perturbation meets, ``(1, ...)``."""
        search = self._search(model, inputs)
        said = search.logits(search.rows()).argmax(dim=1)
        steps = max(self.rounds * len(inputs) // self.part, 1)
        inner, total = delta, torch.zeros_like(delta)
        for _ in range(steps):
            chosen = torch.randperm(len(inputs), generator=generator)[: self.part].to(inputs.device)
            rows = search.rows().take(chosen)
            moved = self.threat.project(inner.expand_as(rows.inputs), rows.inputs)
            _, gradients = search.gradient(
                moved, rows, lambda logits, rows: cross_entropy(logits, said[rows.index]).clamp(max=9)
            )
            gradient = gradients.mean(dim=0, keepdim=True)
            total = total + gradient / steps
            inner = self._stepped(inner, gradient)
        return total

    def _stepped(self, delta: Tensor, gradient: Tensor) -> Tensor:
        return self.threat.project(
            delta + self.step_size * self.threat.radius(delta) * self.threat.steepest(gradient)
        )

    def _search(self, model: Model, inputs: Tensor) -> Search:
        return Search(
            model, inputs, torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device), self.threat
        )
