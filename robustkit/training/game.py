"""One batch as a game: the perturbation raises the loss, the weights lower it.

All step methods of this room are written with the moves of `Game`, and what the moves cost is counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient.sets import PerturbationSet
from trainkit.objectives import Loss, StepContext

from .views import Views

__all__ = ["Cost", "DualMode", "Game", "dual_mode", "logits_of"]

DualMode = Literal["bn_eval", "train", "eval"]
Objective = Callable[[Tensor, Tensor | None], Tensor]
"""Logits ``(m, C)`` and the rows they belong to (None for all) to losses ``(m,)``."""
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Cost:
    """Passes of examples through the model, in this process.

    Attributes:
        forwards: Forward passes.
        input_backwards: Backward passes to the inputs alone, which skip the weights' gradients.
        full_backwards: Backward passes to the weights.
    """

    forwards: int = 0
    input_backwards: int = 0
    full_backwards: int = 0

    @property
    def units(self) -> int:
        """Forward 1, backward to the inputs 1, backward to inputs and weights 2: natural training costs 3."""
        return self.forwards + self.input_backwards + 2 * self.full_backwards

    def state_dict(self) -> dict[str, int]:
        """The three counts."""
        return asdict(self)


@contextmanager
def dual_mode(model: nn.Module, mode: DualMode) -> Iterator[None]:
    """The mode of the passes that move perturbations; every module's own flag comes back afterwards.

    Args:
        model: The model.
        mode: ``"bn_eval"``: batch norm uses and keeps its running statistics, the rest is as it was;
            ``"eval"``: evaluation mode; ``"train"``: as it was.
    """
    changed = [
        module
        for module in model.modules()
        if module.training and (mode == "eval" or (mode == "bn_eval" and isinstance(module, _BATCH_NORM)))
    ]
    try:
        for module in changed:
            module.training = False
        yield
    finally:
        for module in changed:
            module.training = True


def logits_of(output: Any) -> Tensor:
    """Logits ``(n, C)`` in at least 32 bits, of a tensor or of a transformers output object.

    Raises:
        TypeError: There are none.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise TypeError(f"the model gives a {type(output).__name__}; expected logits (n, classes)")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Game:
    """The moves of both players on one batch of one process.

    Args:
        model: The model as the loop gives it, wrapped where there are several processes.
        originals: Inputs as the data set has them, ``(n, ...)``.
        labels: int64 ``(n,)``.
        threat: The perturbations that are allowed.
        context: The loop's.
        cost: Where passes are counted.
        mode: Mode of the passes that move perturbations.
        label_smoothing: Share of the label that is spread over all classes, for both players.
        views: How the model sees the originals; None for as they are.

    Attributes:
        inputs: What the model sees without perturbation, ``(n, ...)``.

    Raises:
        ValueError: Inputs outside the threat's box, labels that are no class of the model (at the first
            pass), or a run in fp16.
    """

    def __init__(
        self,
        model: nn.Module,
        originals: Tensor,
        labels: Tensor,
        threat: PerturbationSet,
        context: StepContext,
        cost: Cost,
        mode: DualMode,
        label_smoothing: float,
        views: Views | None = None,
    ) -> None:
        if context.accelerator.mixed_precision == "fp16":
            raise ValueError("gradients of inputs vanish in fp16: take mixed_precision='bf16'")
        low, high = originals.min(), originals.max()
        box = threat.box
        if box is not None and not (low >= box[0] - 1e-4 and high <= box[1] + 1e-4):
            raise ValueError(
                f"inputs go from {low.item():.3g} to {high.item():.3g}; expected the box {box}, without "
                "normalization"
            )
        self.model, self.labels, self.views = model, labels, views
        self.originals = originals.detach()
        self.inputs = self.originals if views is None else views.see(self.originals)
        self.threat, self.context, self.cost = threat, context, cost
        # Its passes go by the wrapper: no communication for gradients that nobody keeps.
        self.bare: nn.Module = context.accelerator.unwrap_model(model)
        self.mode, self.label_smoothing = mode, label_smoothing
        self._spent = cost.units
        self._checked = False

    # The perturbation's moves

    def gradient(
        self, delta: Tensor, rows: Tensor | None = None, objective: Objective | None = None
    ) -> Tensor:
        """Gradient of the sum of losses by the perturbation, and of nothing else: a row for each sample.

        Args:
            delta: ``(m, ...)``.
            rows: Which samples, int64 ``(m,)``; None for all.
            objective: What is raised; by default the loss of the labels.
        """
        delta = delta.detach().requires_grad_()
        with dual_mode(self.bare, self.mode), torch.enable_grad():
            logits = self._checked_logits(self._pass(self.bare, delta, rows))
            losses = (objective or self._label_losses)(logits, rows)
            (gradient,) = torch.autograd.grad(losses.sum(), delta)
        self.count(forwards=len(delta), input_backwards=len(delta))
        return gradient.detach()

    def move(self, delta: Tensor, gradient: Tensor, alpha: float, rows: Tensor | None = None) -> Tensor:
        """A step of ``alpha * epsilon`` in the steepest direction, projected on the set.

        Args:
            delta: ``(m, ...)``.
            gradient: ``(m, ...)``.
            alpha: Length of the step as a share of epsilon.
            rows: Which samples; None for all.
        """
        threat = self.threat if rows is None else self.threat.take(rows)
        inputs = self.inputs if rows is None else self.inputs[rows]
        step = alpha * threat.radius(delta) * threat.steepest(gradient)
        return threat.project(delta.detach() + step, inputs)

    def climb(self, delta: Tensor, steps: int, alpha: float, objective: Objective | None = None) -> Tensor:
        """Several steps, each at a new gradient."""
        for _ in range(steps):
            delta = self.move(delta, self.gradient(delta, objective=objective), alpha)
        return delta

    def clean_logits(self) -> Tensor:
        """Logits ``(n, C)`` without perturbation and without gradients, in the mode of perturbations."""
        with torch.no_grad(), dual_mode(self.bare, self.mode):
            logits = self._checked_logits(self._pass(self.bare, None, None))
        self.count(forwards=len(logits))
        return logits

    # The weights' moves

    def losses(self, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` and logits ``(n, C)`` with gradients for the weights, in the model's own mode."""
        logits = self._checked_logits(self._pass(self.model, delta, None))
        self.count(forwards=len(self.inputs))
        return self._label_losses(logits, None), logits

    def clean_and_perturbed(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean losses ``(n,)``, perturbed and clean logits ``(n, C)``, with gradients for the weights.

        One pass goes by the wrapper and one by the bare model: wrapped twice before a backward pass, batch
        norm would find its statistics overwritten. The backward pass goes through two graphs and counts so.
        """
        _, perturbed = self.losses(delta)
        clean = self._checked_logits(self._pass(self.bare, None, None))
        self.count(forwards=len(delta), full_backwards=len(delta))
        return self._label_losses(clean, None), perturbed, clean

    def single(self, delta: Tensor, row: slice) -> tuple[Tensor, Tensor]:
        """As `losses` for one sample, in the mode of perturbations and without talk between processes."""
        rows = torch.arange(row.start, row.stop, device=self.labels.device)
        with dual_mode(self.bare, self.mode):
            logits = self._checked_logits(self._pass(self.bare, delta[rows], rows))
        self.count(forwards=1)
        return self._label_losses(logits, rows), logits

    def backward(self, losses: Tensor) -> None:
        """Adds the gradient of the mean of losses ``(n,)`` to the weights'."""
        self.context.backward(losses.sum(), len(losses))
        self.count(full_backwards=len(losses))

    def descend(self, losses: Tensor) -> None:
        """Backward, then the optimizer's step."""
        self.backward(losses)
        self.context.optimizer_step()

    # Perturbations that outlive the batch

    def packed(self, delta: Tensor) -> Tensor:
        """Perturbations ``(n, ...)`` of the originals as a bank keeps them."""
        return delta

    def unpacked(self, kept: Tensor) -> Tensor:
        """Perturbations of the originals from what a bank has kept."""
        return kept.to(self.originals)

    # What is told

    def report(self, losses: Tensor, logits: Tensor, metrics: Mapping[str, tuple[Any, Any]]) -> Loss:
        """The loss for the loop, with accuracy under the perturbation and the cost in units per example."""
        n = len(self.labels)
        hits = (logits.argmax(dim=1) == self.labels).sum()
        spent = (self.cost.units - self._spent, n)
        return Loss(losses.detach().sum(), n, {"accuracy": (hits, n), "cost": spent, **metrics})

    def count(self, forwards: int = 0, input_backwards: int = 0, full_backwards: int = 0) -> None:
        """Counts passes of examples, those of a stand-in left out."""
        if self.context.real:
            self.cost.forwards += forwards
            self.cost.input_backwards += input_backwards
            self.cost.full_backwards += full_backwards

    def _pass(self, model: nn.Module, delta: Tensor | None, rows: Tensor | None) -> Any:
        """What the model says of some rows (None for all) with their perturbation (None for none)."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        return model(inputs if delta is None else inputs + delta)

    def _label_losses(self, logits: Tensor, rows: Tensor | None) -> Tensor:
        labels = self.labels if rows is None else self.labels[rows]
        return nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def _checked_logits(self, output: Any) -> Tensor:
        logits = logits_of(output)
        if not self._checked:
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(f"labels go from {low} to {high}; the model has {logits.shape[1]} classes")
            self._checked = True
        return logits
