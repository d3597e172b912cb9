"""What all attacks share: checked arguments, samples still to be fooled, the worst point of each, passes."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import Loss
from robustkit.attacks.gradient.sets import PerturbationSet
from robustkit.attacks.gradient.standins import AT_ONCE, standing_in
from robustkit.attacks.gradient.victims import Model, Victim, judging

__all__ = ["Attack", "AttackResult", "MixedPrecision", "Rows", "Search"]

MixedPrecision = Literal["no", "bf16"]
"""How an attack's passes compute: as the model does, or under `torch.autocast`."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for n samples.

    Attributes:
        perturbed: ``(n, ...)`` in dtype and device of the inputs, detached: for each sample a point that
            fools the model where one was met, otherwise the point of the highest loss.
        success: bool ``(n,)``: the model is wrong there; for a targeted attack, gives the target.
        loss: ``(n,)``, the attack's own loss at that point, as the pass that looked at it computed it.
        forwards: int64 ``(n,)``, forward passes that each sample took.
        backwards: int64 ``(n,)``, backward passes, all by the inputs alone.
    """

    perturbed: Tensor
    success: Tensor
    loss: Tensor
    forwards: Tensor
    backwards: Tensor


class Attack(ABC):
    """An attack: `perturb` gives the perturbed inputs, `run` tells also what it took.

    The model is attacked in evaluation mode. Its modes, gradients, hooks and statistics, and the random
    state, are afterwards as they were.
    """

    threat: PerturbationSet
    targeted: bool = False

    def perturb(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        *,
        seed: int | torch.Generator = 0,
        mixed_precision: MixedPrecision = "no",
    ) -> Tensor:
        """Perturbs inputs so that the model gets them wrong.

        Args:
            model: An `ImageClassifier`, any module or function that gives logits or an object with
                ``logits``, or `EmbeddedTexts`.
            inputs: ``(n, ...)`` floats inside the box of the threat; pixels in [0, 1], without normalization.
            labels: The true classes, int ``(n,)``; the wanted ones where the attack is targeted.
            seed: Of all that is drawn, or the generator to draw from.
            mixed_precision: ``"bf16"`` searches under `torch.autocast`, which is faster on processors and
                GPUs with instructions for it. A sample counts as fooled only where the model is so in its own
                precision: points that seem to fool it are shown once more, until one does.

        Returns:
            ``(n, ...)``, detached, in dtype and device of the inputs.

        Raises:
            TypeError: Inputs, labels or model are of the wrong kind.
            ValueError: Inputs outside the box or empty, labels out of range, logits that are none, or bf16
                asked for inputs of 64 bits.
        """
        return self.run(model, inputs, labels, seed=seed, mixed_precision=mixed_precision).perturbed

    def run(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        *,
        seed: int | torch.Generator = 0,
        mixed_precision: MixedPrecision = "no",
    ) -> AttackResult:
        """Like `perturb`, but gives also success, loss and passes of each sample."""
        check_arguments(inputs, labels, self.threat)
        with judging(model):
            quicker = standing_in(model, inputs)
            at_once = len(inputs) if quicker is model else AT_ONCE
            search = Search(quicker, inputs, labels, self.threat, self.targeted, at_once, mixed_precision)
            self._search(search, _generator(seed, inputs))
            return search.result()

    @abstractmethod
    def _search(self, search: Search, generator: torch.Generator) -> None:
        """Shows the search points until it is done."""


@dataclass(frozen=True)
class Rows:
    """Some samples of a search.

    Attributes:
        index: int64 ``(m,)``, their places.
        inputs: Clean inputs, ``(m, ...)`` in at least 32 bits.
        labels: int64 ``(m,)``.
        threat: Their perturbations.
    """

    index: Tensor
    inputs: Tensor
    labels: Tensor
    threat: PerturbationSet

    def take(self, mask: Tensor) -> Self:
        """Those of them that a mask bool ``(m,)`` or an index int64 picks."""
        return dataclasses.replace(
            self,
            index=self.index[mask],
            inputs=self.inputs[mask],
            labels=self.labels[mask],
            threat=self.threat.take(mask),
        )


Objective = Callable[[Tensor, Rows], Tensor]
"""Logits ``(m, C)`` of rows to losses ``(m,)``."""


class Search:
    """Remembers for each sample the worst point that the model was shown, and counts passes.

    Args:
        model: See `Attack.perturb`, as for inputs and labels.
        inputs: ``(n, ...)``.
        labels: int ``(n,)``.
        threat: The perturbations that are allowed.
        targeted: Whether labels are what the model shall say.
        at_once: Samples of one pass at most; None for all.
        mixed_precision: See `Attack.perturb`.

    Attributes:
        fooled: bool ``(n,)``.

    Raises:
        ValueError: Another precision than there is, or bf16 asked for inputs of 64 bits.
    """

    def __init__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        threat: PerturbationSet,
        targeted: bool = False,
        at_once: int | None = None,
        mixed_precision: MixedPrecision = "no",
    ) -> None:
        check_precision(mixed_precision, inputs)
        # Cloned, because tensors made in inference mode cannot be used in a backward pass.
        labels = labels.detach().clone().to(inputs.device, torch.int64)
        self._victim = Victim(model, inputs, labels, threat.box)
        wide = inputs.detach().clone().to(torch.promote_types(inputs.dtype, torch.float32))
        self._all = Rows(torch.arange(len(inputs), device=inputs.device), wide, labels, threat)
        self.targeted = targeted
        self._at_once = at_once or len(inputs)
        self._half = mixed_precision == "bf16" and not self._victim.is_narrow
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self._worst = wide.clone()
        self._sure = wide.clone() if self._half else wide
        self._loss = torch.full_like(labels, -torch.inf, dtype=wide.dtype)
        self._sure_loss = self._loss.clone()
        self._forwards = torch.zeros_like(labels)
        self._backwards = torch.zeros_like(labels)

    def rows(self) -> Rows:
        """All samples."""
        return self._all

    def left(self) -> Rows:
        """The samples that do not fool the model yet."""
        return self._all.take(~self.fooled)

    def look(self, delta: Tensor, rows: Rows, objective: Objective) -> Tensor:
        """Shows the model perturbations ``(m, ...)`` of rows; gives their losses ``(m,)``."""
        point = rows.inputs + delta
        with torch.no_grad():
            logits = self._logits(point, rows)
            loss = objective(logits, rows)
        self._note(point, logits, loss, rows)
        return loss

    def gradient(self, delta: Tensor, rows: Rows, objective: Objective) -> tuple[Tensor, Tensor]:
        """Like `look`, and gives the gradient ``(m, ...)`` of the losses too, from the same forward pass.

        Raises:
            ValueError: The logits cannot be differentiated by the inputs.
        """
        point = rows.inputs + delta
        parts = [self._differentiated(*part, objective) for part in self._parts(point, rows)]
        logits, loss, gradient = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self._backwards[rows.index] += 1
        self._note(point, logits, loss, rows)
        return loss, gradient

    def logits(self, rows: Rows) -> Tensor:
        """Logits ``(m, C)`` of rows at their clean inputs, in the model's own precision."""
        self._forwards[rows.index] += 1
        with torch.no_grad():
            return self._logits(rows.inputs, rows, half=False)

    def classes_by_logit(self) -> Tensor:
        """The classes but the label, likeliest first at the clean inputs: int64 ``(n, C - 1)``.

        A forward pass for every sample.
        """
        likeliest = self.logits(self._all).scatter(1, self._all.labels[:, None], torch.inf)
        return likeliest.argsort(dim=1, descending=True, stable=True)[:, 1:]

    def result(self) -> AttackResult:
        """What was found."""
        if self._half:
            self._confirm()
        return AttackResult(
            self._victim.as_given(self._worst), self.fooled, self._loss, self._forwards, self._backwards
        )

    def _parts(self, point: Tensor, rows: Rows) -> Iterator[tuple[Tensor, Rows]]:
        """Points and rows of one pass each, about equally many, without copies of the inputs."""
        count = max(1, math.ceil(len(point) / self._at_once))
        places = torch.arange(len(point), device=point.device)
        tensors = (places, point, rows.index, rows.inputs, rows.labels)
        split = (tensor.chunk(count) for tensor in tensors)
        for place, part, index, inputs, labels in zip(*split, strict=True):
            yield part, Rows(index, inputs, labels, rows.threat.take(place))

    def _precision(self, half: bool) -> AbstractContextManager[object]:
        """Of a pass; where no search in half precision was asked for, whatever the caller has set."""
        if not self._half:
            return nullcontext()
        return torch.autocast(self.fooled.device.type, torch.bfloat16, enabled=half)

    def _logits(self, point: Tensor, rows: Rows, half: bool = True) -> Tensor:
        with self._precision(half):
            return torch.cat([self._victim(part, own.index) for part, own in self._parts(point, rows)])

    def _fooled(self, logits: Tensor, rows: Rows) -> Tensor:
        return (logits.argmax(dim=1) == rows.labels) == self.targeted

    def _confirm(self) -> None:
        """Asks in the model's own precision what is not known there yet.

        Points with a higher loss than the first one that fooled the model may not do so there, and points
        that do so there alone went unnoticed.
        """
        later = (self._worst != self._sure).flatten(1).any(dim=1)
        asked = self._all.take(later | ~self.fooled)
        at = asked.index
        if len(at) == 0:
            return
        fooled = self._fooled_in_full(self._worst[at], asked)
        back = at[self.fooled[at] & ~fooled]
        self._worst[back], self._loss[back] = self._sure[back], self._sure_loss[back]
        self.fooled[at] |= fooled

    def _fooled_in_full(self, point: Tensor, rows: Rows) -> Tensor:
        """Which points ``(m, ...)`` fool the model in its own precision: bool ``(m,)``; a forward pass."""
        self._forwards[rows.index] += 1
        with torch.no_grad():
            return self._fooled(self._logits(point, rows, half=False), rows)

    def _differentiated(self, point: Tensor, rows: Rows, objective: Objective) -> tuple[Tensor, ...]:
        """Logits, losses and gradients of at most so many rows as go at once."""
        point = point.detach().requires_grad_()
        with self._precision(half=True):
            logits = self._victim(point, rows.index)
        loss = objective(logits, rows)
        if not loss.requires_grad:
            raise ValueError("the model's logits cannot be differentiated by its inputs; take Square instead")
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        return logits.detach(), loss.detach(), gradient

    def _note(self, point: Tensor, logits: Tensor, loss: Tensor, rows: Rows) -> None:
        at = rows.index
        fooled, before, higher = self._fooled(logits, rows), self.fooled[at], loss > self._loss[at]
        if self._half and bool((first := fooled & ~before).any()):
            fooled[first] = self._fooled_in_full(point[first], rows.take(first))
            first &= fooled
            self._sure[at[first]] = point[first]
            self._sure_loss[at[first]] = loss[first].to(self._loss.dtype)
        worse = (fooled & ~before) | ((fooled == before) & higher)
        self._worst[at[worse]] = point[worse]
        self._loss[at[worse]] = loss[worse].to(self._loss.dtype)
        self.fooled[at] |= fooled
        self._forwards[at] += 1


def objective_of(loss: Loss, targeted: bool) -> Objective:
    """A loss that an attack raises: of the true labels, or that of the wanted ones with its sign changed."""
    if targeted:
        return lambda logits, rows: -loss(logits, rows.labels)
    return lambda logits, rows: loss(logits, rows.labels)


def check_count(name: str, value: int) -> None:
    """Raises `ValueError` unless a setting is a whole number from 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number from 1")


def check_precision(mixed_precision: str, inputs: Tensor) -> None:
    """Raises `ValueError` unless inputs can be attacked so."""
    if mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed_precision is {mixed_precision!r}; expected 'no' or 'bf16'")
    if mixed_precision == "bf16" and inputs.dtype == torch.float64:
        raise ValueError("mixed_precision is 'bf16', which does nothing for inputs of float64")


def check_arguments(inputs: Tensor, labels: Tensor, threat: PerturbationSet) -> None:
    """Raises `TypeError` or `ValueError` unless inputs and labels can be attacked."""
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"inputs are a {type(inputs).__name__} and labels a {type(labels).__name__}; expected tensors"
        )
    if not inputs.is_floating_point() or inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"inputs are {inputs.dtype} {tuple(inputs.shape)}; expected floats (n, ...), n >= 1")
    if labels.shape != inputs.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; expected whole numbers ({len(inputs)},)"
        )
    if labels.min() < 0:
        raise ValueError(f"labels go from {labels.min()}; expected classes from 0")
    low, high = (float(bound) for bound in inputs.detach().aminmax())
    at_least, at_most = threat.box or (-torch.inf, torch.inf)
    # Written so that NaN is refused too.
    if not (low >= at_least and high <= at_most and high < torch.inf and low > -torch.inf):
        raise ValueError(
            f"inputs go from {low:.4g} to {high:.4g}; expected [{at_least:g}, {at_most:g}]: pixels without "
            "normalization, which ImageClassifier does by itself"
        )


def _generator(seed: int | torch.Generator, inputs: Tensor) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator(device=inputs.device).manual_seed(seed)
