"""Steps along the gradient: FGSM and projected gradient descent.

Source: Goodfellow et al. 2015 (FGSM); Madry et al. 2018 (PGD); Dong et al. 2018 (momentum); Carlini and
Wagner 2017 (`margin`, the loss of CW-PGD).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import Loss, cross_entropy
from robustkit.attacks.gradient.search import Attack, Search, check_count, objective_of
from robustkit.attacks.gradient.sets import PerturbationSet

__all__ = ["FGSM", "PGD"]


@dataclass(frozen=True)
class FGSM(Attack):
    """One step to the point of the set that the gradient at the clean input calls worst.

    For `LInf` that is x + epsilon sign(gradient), cut at the box; for a linear model no point is worse. It
    takes two forward passes and one backward pass.

    Args:
        threat: The perturbations that are allowed.
        loss: What is raised; `cross_entropy`, `margin` or any function of logits and labels.
        targeted: Whether labels are classes that the model shall say; its loss is then lowered.

    Shape:
        inputs ``(n, ...)`` and labels ``(n,)`` to perturbed inputs ``(n, ...)``.

    Example:
        >>> attack = FGSM(LInf(8 / 255))
        >>> perturbed = attack.perturb(classifier, pixels, labels)
    """

    threat: PerturbationSet
    loss: Loss = cross_entropy
    targeted: bool = False

    def _search(self, search: Search, generator: torch.Generator) -> None:
        rows, objective = search.rows(), objective_of(self.loss, self.targeted)
        _, gradient = search.gradient(torch.zeros_like(rows.inputs), rows, objective)
        search.look(self.threat.linear_max(gradient, rows.inputs), rows, objective)


@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the steepest direction of the set's norm, each followed by a projection on the set.

    A pass forward and backward for each step and a last pass forward; every step is looked at, and the worst
    point met is returned. Samples that fool the model leave the batch, so a weak model costs little. With
    ``loss=margin`` this is CW-PGD, with ``momentum=1`` MI-FGSM.

    Args:
        threat: The perturbations that are allowed.
        steps: Steps of one run.
        step_size: Length of a step in the threat's norm and unit; by default 2.5 epsilon / steps, at most
            epsilon.
        loss: What is raised; `cross_entropy`, `margin`, `dlr` or any function of logits and labels.
        targeted: Whether labels are classes that the model shall say; its loss is then lowered.
        restarts: Runs; each begins elsewhere and goes on with what does not fool the model yet.
        random_start: Whether a run begins at a random point of the set, or at the clean input.
        momentum: How much of the sum of former gradients, each divided by its l1 norm, is kept; 0 for none.
        early_stop: Whether samples that fool the model leave the batch. Without, all steps are taken and the
            point of the highest loss among those that fool it is returned.

    Shape:
        inputs ``(n, ...)`` and labels ``(n,)`` to perturbed inputs ``(n, ...)``.

    Raises:
        ValueError: Steps or restarts below 1, a step size that is not positive, a negative momentum, or
            restarts without random start.

    Example:
        >>> attack = PGD(LInf(8 / 255), steps=50, step_size=2 / 255, restarts=10)
        >>> result = attack.run(classifier, pixels, labels, seed=0)
        >>> robust_accuracy = 1 - result.success.float().mean()
    """

    threat: PerturbationSet
    steps: int = 10
    step_size: float | None = None
    loss: Loss = cross_entropy
    targeted: bool = False
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    early_stop: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; expected a positive length")
        if not self.momentum >= 0:
            raise ValueError(f"momentum is {self.momentum}; expected at least 0")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts is {self.restarts}; without random start every run is the same")

    def _search(self, search: Search, generator: torch.Generator) -> None:
        for _ in range(self.restarts):
            start = torch.zeros_like(search.rows().inputs)
            if self.random_start:
                # For all samples, so that none's start depends on what became of the others.
                start = self.threat.random(search.rows().inputs, generator)
            self._run(search, start)
            if self.early_stop and search.fooled.all():
                return

    def _run(self, search: Search, start: Tensor) -> None:
        objective = objective_of(self.loss, self.targeted)
        rows = search.left() if self.early_stop else search.rows()
        delta = start[rows.index]
        velocity = torch.zeros_like(delta)
        for _ in range(self.steps):
            _, gradient = search.gradient(delta, rows, objective)
            if self.early_stop:
                on = ~search.fooled[rows.index]
                if not on.all():
                    rows, delta, velocity, gradient = rows.take(on), delta[on], velocity[on], gradient[on]
                if len(delta) == 0:
                    return
            if self.momentum:
                velocity = self.momentum * velocity + _by_l1_norm(gradient)
                gradient = velocity
            delta = rows.threat.project(delta + self._step(rows.threat, gradient), rows.inputs)
        search.look(delta, rows, objective)

    def _step(self, threat: PerturbationSet, gradient: Tensor) -> Tensor:
        length = self.step_size
        if length is not None:
            return length * threat.steepest(gradient)
        return min(1.0, 2.5 / self.steps) * threat.radius(gradient) * threat.steepest(gradient)


def _by_l1_norm(gradient: Tensor) -> Tensor:
    size = gradient.abs().sum(dim=tuple(range(1, gradient.ndim)), keepdim=True)
    return gradient / size.where(size > 0, 1)
