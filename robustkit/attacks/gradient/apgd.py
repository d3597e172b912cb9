"""Auto-PGD: projected gradient descent that chooses its own steps.

Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import Loss, cross_entropy, targeted_dlr
from robustkit.attacks.gradient.search import (
    Attack,
    Objective,
    Rows,
    Search,
    check_count,
    objective_of,
)
from robustkit.attacks.gradient.sets import PerturbationSet

__all__ = ["APGD", "checkpoints"]

# Share of steps since the last checkpoint that must have raised the loss (rho of the paper), and the weight
# of a step against the momentum (alpha).
_RISING = 0.75
_WEIGHT = 0.75


def checkpoints(steps: int) -> list[int]:
    """The steps after which a step size may be halved.

    The first comes after 22 % of all steps; each further interval is 3 % of them shorter, down to 6 %.

    Args:
        steps: Steps of a run.

    Returns:
        Numbers of steps, rising, at most ``steps``.
    """
    interval, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, step = [], interval
    while step <= steps:
        found.append(step)
        interval = max(interval - shorter, least)
        step += interval
    return found


@dataclass(frozen=True)
class APGD(Attack):
    """PGD with momentum whose step size starts at 2 epsilon and is halved where the loss stops rising.

    At each checkpoint a sample goes back to its best point with half the step size if fewer than three
    quarters of the steps since the last one raised its loss, or if its best loss has not changed since a
    checkpoint that left the step size alone. A pass forward and backward for each step and one more of both
    at the start. Samples that fool the model leave the batch.

    ``APGD(threat, loss=cross_entropy)`` is APGD-CE, ``APGD(threat, loss=dlr)`` APGD-DLR, and
    ``APGD(threat, targets=9)`` the targeted APGD-T. With `L1` it moves along the steepest direction, a single
    number; the sparse variant for l1 of Croce and Hein 2021 is not part of it.

    Args:
        threat: The perturbations that are allowed.
        steps: Steps of one run.
        loss: What is raised; `cross_entropy`, `dlr`, `margin` or any function of logits and labels.
        targeted: Whether labels are classes that the model shall say; its loss is then lowered.
        restarts: Runs, or runs towards each target; each begins elsewhere and goes on with what does not fool
            the model yet.
        targets: 0, or how many of the classes next to the label each run tries to raise one after the other
            with the targeted ratio of logits instead of ``loss``; at most the classes less one are tried.

    Shape:
        inputs ``(n, ...)`` and labels ``(n,)`` to perturbed inputs ``(n, ...)``.

    Raises:
        ValueError: Steps or restarts below 1, negative targets, or targets together with ``targeted``.

    Example:
        >>> result = APGD(LInf(8 / 255), steps=100, targets=9).run(classifier, pixels, labels)
    """

    threat: PerturbationSet
    steps: int = 100
    loss: Loss = cross_entropy
    targeted: bool = False
    restarts: int = 1
    targets: int = 0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.targets < 0 or (self.targets and self.targeted):
            raise ValueError(f"targets is {self.targets}; expected at least 0, and 0 for a targeted attack")

    def _search(self, search: Search, generator: torch.Generator) -> None:
        for _ in range(self.restarts):
            for objective in self._objectives(search):
                start = self._start(search.rows(), generator)
                self._run(search, start, objective)
                if search.fooled.all():
                    return

    def _objectives(self, search: Search) -> Iterator[Objective]:
        if not self.targets:
            yield objective_of(self.loss, self.targeted)
            return
        order = search.classes_by_logit()
        for place in range(min(self.targets, order.shape[1])):
            yield _towards(order[:, place])

    def _start(self, rows: Rows, generator: torch.Generator) -> Tensor:
        """A random direction, as far as the ball allows."""
        delta = rows.threat.random(rows.inputs, generator)
        size = rows.threat.norm(delta).reshape(-1, *[1] * (delta.ndim - 1))
        return rows.threat.project(delta / size.where(size > 0, 1) * rows.threat.radius(delta), rows.inputs)

    def _run(self, search: Search, start: Tensor, objective: Objective) -> None:
        rows = search.left()
        delta = start[rows.index]
        loss, gradient = search.gradient(delta, rows, objective)
        state = _State.begin(delta, loss, gradient)
        checks = set(checkpoints(self.steps))
        since = 0
        for step in range(self.steps):
            on = ~search.fooled[rows.index]
            if not on.all():
                rows, state = rows.take(on), state.take(on)
                if len(rows.index) == 0:
                    return
            delta = state.step(rows, weight=_WEIGHT if step else 1.0)
            if step == self.steps - 1:
                search.look(delta, rows, objective)
                return
            loss, gradient = search.gradient(delta, rows, objective)
            state = state.moved(delta, loss, gradient)
            since += 1
            if step + 1 in checks:
                state, since = state.checked(since), 0


def _towards(targets: Tensor) -> Objective:
    return lambda logits, rows: targeted_dlr(logits, rows.labels, targets[rows.index])


@dataclass(frozen=True)
class _State:
    """Where the search stands for m samples, in the notation of the paper.

    Attributes:
        delta: x(k) less the clean input.
        before: x(k-1).
        loss: f(x(k)).
        gradient: At x(k).
        best: x_max; with its loss and gradient.
        size: The step size as a multiple of epsilon.
        rises: Steps that raised the loss since the last checkpoint.
        best_then: Best loss at the last checkpoint.
        halved: Whether the last checkpoint halved the step size.
    """

    delta: Tensor
    before: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    size: Tensor
    rises: Tensor
    best_then: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, delta: Tensor, loss: Tensor, gradient: Tensor) -> Self:
        none = torch.zeros_like(loss, dtype=torch.bool)
        # "Halved" at the start: the first checkpoint has no earlier best to compare with.
        return cls(delta, delta, loss, gradient, delta, loss, gradient, torch.full_like(loss, 2.0),
                   torch.zeros_like(loss), loss, ~none)  # fmt: skip

    def take(self, mask: Tensor) -> Self:
        parts = {field.name: getattr(self, field.name)[mask] for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **parts)

    def step(self, rows: Rows, weight: float) -> Tensor:
        """x(k+1): a step from x(k), mixed with the step before."""
        size = self._wide(self.size) * rows.threat.radius(self.delta)
        ahead = rows.threat.project(self.delta + size * rows.threat.steepest(self.gradient), rows.inputs)
        mixed = self.delta + weight * (ahead - self.delta) + (1 - weight) * (self.delta - self.before)
        return rows.threat.project(mixed, rows.inputs)

    def moved(self, delta: Tensor, loss: Tensor, gradient: Tensor) -> Self:
        better = loss > self.best_loss
        wide = self._wide(better)
        return dataclasses.replace(
            self,
            delta=delta,
            before=self.delta,
            loss=loss,
            gradient=gradient,
            best=torch.where(wide, delta, self.best),
            best_loss=torch.where(better, loss, self.best_loss),
            best_gradient=torch.where(wide, gradient, self.best_gradient),
            rises=self.rises + (loss > self.loss),
        )

    def checked(self, steps: int) -> Self:
        """Halves step sizes, and goes back to the best point, where one of the two conditions holds."""
        halve = (self.rises < _RISING * steps) | (~self.halved & (self.best_then >= self.best_loss))
        wide = self._wide(halve)
        return dataclasses.replace(
            self,
            delta=torch.where(wide, self.best, self.delta),
            loss=torch.where(halve, self.best_loss, self.loss),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            size=torch.where(halve, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            best_then=self.best_loss,
            halved=halve,
        )

    def _wide(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.delta.ndim - 1))
