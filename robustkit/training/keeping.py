"""What keeps a training run honest: averaged weights, and a watch for catastrophic overfitting."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import PGD
from robustkit.attacks.gradient.sets import PerturbationSet
from trainkit.loop import Callback, FitState
from trainkit.objectives import Loss, StepContext, StepMethod

__all__ = ["Averaged", "OverfittingWatch"]

logger = logging.getLogger(__name__)


class Averaged:
    """Any step method, with an average of the weights kept beside it.

    Exponential (EMA): ``average = decay * average + (1 - decay) * weights`` after every step of the loop,
    with ``min(decay, (1 + t) / (10 + t))`` for the t-th, so that the random start is soon forgotten. Plain
    (SWA, ``decay=None``): the mean over all steps from ``start`` on. Statistics of batch norm are averaged
    alike, counters copied. The average is in checkpoints.

    Args:
        method: Any `trainkit.StepMethod`.
        decay: Decay of the exponential average, in (0, 1); None for the plain mean.
        start: Steps of the loop before the average begins.

    Attributes:
        steps: Steps that went into the average.

    Raises:
        ValueError: A decay outside (0, 1), or a negative start.

    Example:
        >>> method = Averaged(PGDTraining(LInf(8 / 255)), decay=0.999)
        >>> fit(model, method, train, config=config)
        >>> with method.applied(model):
        ...     accuracy = evaluate(model)
    """

    def __init__(self, method: StepMethod, decay: float | None = 0.999, start: int = 0) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; expected a number in (0, 1), or None for the plain mean")
        if start < 0:
            raise ValueError(f"start is {start}; expected at least 0")
        self.method, self.decay, self.start = method, decay, start
        self.steps = 0
        self.average: dict[str, Tensor] = {}

    def collate(self, examples: Any) -> Any:
        """As the method does it."""
        return self.method.collate(examples)  # type: ignore[attr-defined]

    def step(self, model: nn.Module, batch: Any, context: StepContext) -> Loss:
        """The method's step, then the average's."""
        loss = self.method.step(model, batch, context)
        if context.step >= self.start:
            self._take(context.accelerator.unwrap_model(model))
        return loss

    @torch.no_grad()
    def _take(self, model: nn.Module) -> None:
        self.steps += 1
        kept = 1 - 1 / self.steps
        if self.decay is not None and self.steps > 1:
            kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if name not in self.average or not value.is_floating_point():
                self.average[name] = value.detach().clone()
            else:
                self.average[name] = self.average[name].to(value.device).lerp(value, 1 - kept)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the average for a while; its own weights come back afterwards.

        Raises:
            ValueError: Nothing has been averaged yet.
        """
        if not self.average:
            raise ValueError("there is no average before step start")
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.average)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> Mapping[str, Any]:
        """The method's state and the average."""
        return {"method": self.method.state_dict(), "average": self.average, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.method.load_state_dict(state["method"])
        self.average, self.steps = dict(state["average"]), state["steps"]


class OverfittingWatch(Callback):
    """Stops a run whose robust accuracy collapses, and gives the model its last good weights back.

    Catastrophic overfitting: within a few hundred steps the model learns to fool single-step attacks, and its
    accuracy under several steps falls to nothing. Every so often a PGD attack with 5 steps is run on the same
    few inputs; if accuracy has fallen by more than `drop` since the last time, the weights of the last time
    are restored and the run ends (Wong, Rice and Kolter 2020 do so once an epoch on a training batch). After
    a resume the first look is only compared with later ones.

    Args:
        inputs: Some inputs, ``(n, ...)``, on any device.
        labels: Their labels, int64 ``(n,)``.
        threat: The perturbations that are allowed.
        every: Steps of the loop between looks, such as an epoch's.
        drop: Loss of accuracy that is too much.
        steps: Steps of the attack.
        seed: Of the attack's random starts.

    Attributes:
        accuracies: Pairs of step and robust accuracy, in order.
        stopped_at: Step at which the run was ended, None if it was not.

    Raises:
        ValueError: ``every`` below 1, or a drop outside (0, 1].
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        threat: PerturbationSet,
        every: int,
        *,
        drop: float = 0.2,
        steps: int = 5,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; expected at least 1")
        if not 0 < drop <= 1:
            raise ValueError(f"drop is {drop}; expected a share in (0, 1]")
        self.inputs, self.labels, self.every, self.drop, self.seed = inputs, labels, every, drop, seed
        self.attack = PGD(threat, steps=steps)
        self.accuracies: list[tuple[int, float]] = []
        self.stopped_at: int | None = None
        self._good: dict[str, Tensor] = {}

    def on_step_end(self, state: FitState) -> None:
        """Looks, and keeps the weights or brings them back."""
        if state.step % self.every:
            return
        model = state.model
        device = next(model.parameters()).device
        inputs, labels = self.inputs.to(device), self.labels.to(device)
        result = self.attack.run(model, inputs, labels, seed=self.seed)
        accuracy = 1 - float(result.success.float().mean())
        before = self.accuracies[-1][1] if self.accuracies else 0.0
        self.accuracies.append((state.step, accuracy))
        if self._good and before - accuracy > self.drop:
            logger.warning(
                "robust accuracy fell from %.3f to %.3f at step %d (catastrophic overfitting): "
                "the weights of %d steps before are restored and the run ends",
                before,
                accuracy,
                state.step,
                self.every,
            )
            model.load_state_dict(self._good)
            self.stopped_at = state.step
            state.stop()
            return
        self._good = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
