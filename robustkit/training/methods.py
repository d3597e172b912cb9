"""Step methods for `trainkit.fit`: natural, PGD, FGSM-RS, Free, DAT and YOPO adversarial training.

The length of a step, ``alpha``, is always a share of epsilon. Batches are pairs of inputs and labels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from robustkit.attacks.gradient.sets import LInf, PerturbationSet
from trainkit.objectives import Loss, StepContext

from .game import Cost, DualMode, Game, dual_mode
from .growing import Growing
from .views import FlipCrop

__all__ = [
    "FGSMRS",
    "YOPO",
    "DynamicTraining",
    "FreeTraining",
    "Natural",
    "PGDTraining",
    "RobustMethod",
]


class RobustMethod(ABC):
    """What all methods share: batches, augmentation, the count of passes, state.

    Args:
        threat: The perturbations that are allowed; `Growing` for fewer in the beginning.
        mode: Mode of the passes that move perturbations, see `dual_mode`.
        label_smoothing: Share of the label that is spread over all classes, for both players.
        augmentation: Flips and crops of what the model sees.

    Attributes:
        threat: The perturbations that are allowed in the end.
        growth: Steps of the loop until then.
        cost: Passes so far, in this process.

    Raises:
        ValueError: Label smoothing outside [0, 1), or an unknown mode.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        *,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; expected a share in [0, 1)")
        if mode not in ("bn_eval", "train", "eval"):
            raise ValueError(f"mode is {mode!r}; expected bn_eval, train or eval")
        growing = threat if isinstance(threat, Growing) else Growing(threat, 0)
        self.threat, self.growth, self.mode = growing.threat, growing.steps, mode
        self.label_smoothing, self.augmentation = label_smoothing, augmentation
        self.cost = Cost()

    def threat_at(self, step: int) -> PerturbationSet:
        """The perturbations that are allowed after a number of the loop's steps."""
        return Growing(self.threat, self.growth).at(step)

    def collate(self, examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Inputs ``(n, ...)`` and labels of pairs, or of mappings as the image data sets of the Hub give.

        Raises:
            TypeError: Neither.
        """
        first = examples[0]
        if isinstance(first, Mapping):
            label = "labels" if "labels" in first else "label"
            examples = [(example["pixel_values"], example[label]) for example in examples]
        elif not (isinstance(first, Sequence) and len(first) == 2):
            raise TypeError(f"an example is a {type(first).__name__}; expected a pair of input and label")
        inputs, labels = default_collate(list(examples))
        return inputs, labels.long()

    def step(self, model: nn.Module, batch: tuple[Tensor, Tensor], context: StepContext) -> Loss:
        """Plays one batch."""
        inputs, labels = batch
        views = None if self.augmentation is None else self.augmentation.draw(inputs, context.generator)
        game = Game(
            model,
            inputs,
            labels,
            self.threat_at(context.step),
            context,
            self.cost,
            self.mode,
            self.label_smoothing,
            views,
        )
        return self.play(game, context)

    @abstractmethod
    def play(self, game: Game, context: StepContext) -> Loss:
        """Moves perturbations and weights; the method itself."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold."""
        return {"cost": self.cost.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.cost = Cost(**state["cost"])


class Natural(RobustMethod):
    """Training on inputs as they are, for comparison; 3 units of cost.

    Args:
        label_smoothing: See `RobustMethod`.
        augmentation: See `RobustMethod`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, augmentation: FlipCrop | None = None) -> None:
        super().__init__(LInf(0.0, box=None), label_smoothing=label_smoothing, augmentation=augmentation)

    def play(self, game: Game, context: StepContext) -> Loss:
        """One step of the weights."""
        losses, logits = game.losses(None)
        game.descend(losses)
        return game.report(losses, logits, {})


class PGDTraining(RobustMethod):
    """Adversarial training of Madry et al. 2018: k signed steps from a random start, then the weights'.

    Cost: ``2 k + 3`` units. The clean loss is not added.

    Args:
        threat: The perturbations that are allowed.
        steps: k; 10 in the authors' code, 7 in the paper's training.
        alpha: Length of a step as a share of epsilon; 2/255 of 8/255.
        random_start: Whether perturbations start at a random point of the set, or at 0.
        mode: See `RobustMethod`, as for the rest.
        label_smoothing: See there.
        augmentation: See there.

    Raises:
        ValueError: A negative number of steps, an alpha that is not positive.

    Example:
        >>> fit(model, PGDTraining(LInf(8 / 255)), train, config=FitConfig(epochs=15))
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        steps: int = 10,
        alpha: float = 0.25,
        *,
        random_start: bool = True,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(threat, mode=mode, label_smoothing=label_smoothing, augmentation=augmentation)
        self.steps, self.alpha, self.random_start = at_least("steps", steps, 0), positive(alpha), random_start

    def play(self, game: Game, context: StepContext) -> Loss:
        """Climb, then descend."""
        delta = self.climb(game, self.start(game, context))
        losses, logits = game.losses(delta)
        game.descend(losses)
        return game.report(losses, logits, {})

    def start(self, game: Game, context: StepContext) -> Tensor:
        """Where perturbations start."""
        if self.random_start:
            return game.threat.random(game.inputs, context.generator)
        return torch.zeros_like(game.inputs)

    def climb(self, game: Game, delta: Tensor) -> Tensor:
        """The steps of the perturbation."""
        return game.climb(delta, self.steps, self.alpha)


class FGSMRS(PGDTraining):
    """Fast adversarial training of Wong, Rice and Kolter 2020: one long step from a random start; 5 units.

    Args:
        threat: The perturbations that are allowed.
        alpha: Length of the step as a share of epsilon; 10/255 of 8/255.
        mode: See `RobustMethod`, as for the rest.
        label_smoothing: See there.
        augmentation: See there.

    It may overfit catastrophically; see `OverfittingWatch`.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        alpha: float = 1.25,
        *,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(
            threat, 1, alpha, mode=mode, label_smoothing=label_smoothing, augmentation=augmentation
        )


class DynamicTraining(PGDTraining):
    """Dynamic adversarial training of Wang et al. 2019: a sample climbs until it is near enough to a maximum.

    A sample stops when its gap of first-order stationarity (FOSC) falls to
    ``c = c_max * max(1 - t / horizon, 0)``; the first step is always taken. Where the published code departs
    from the paper we follow the paper: the gap is measured from the clean input, and the loss is not
    weighted. A sample that stopped leaves the batch for good, so its passes are saved. Cost: at most
    ``2 k + 3`` units, since the gap comes from the gradient of the next step.

    Args:
        threat: The perturbations that are allowed.
        steps: k, the most steps.
        alpha: Length of a step as a share of epsilon.
        c_max: First threshold, in units of the loss.
        horizon: Steps of the loop until the threshold is 0 (in the paper 100 of 120 epochs).
        random_start: See `PGDTraining`.
        mode: See `RobustMethod`, as for the rest.
        label_smoothing: See there.
        augmentation: See there.

    Raises:
        ValueError: A negative threshold, a horizon below 1, or as `PGDTraining`.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        steps: int = 10,
        alpha: float = 0.25,
        *,
        c_max: float = 0.5,
        horizon: int,
        random_start: bool = True,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(
            threat,
            steps,
            alpha,
            random_start=random_start,
            mode=mode,
            label_smoothing=label_smoothing,
            augmentation=augmentation,
        )
        if not c_max >= 0:
            raise ValueError(f"c_max is {c_max}; expected at least 0")
        self.c_max, self.horizon = c_max, at_least("horizon", horizon, 1)

    def threshold(self, step: int) -> float:
        """The gap that is near enough after a number of the loop's steps; infinity stays infinity."""
        share = max(1 - step / self.horizon, 0.0)
        return self.c_max * share if share else 0.0

    def climb(self, game: Game, delta: Tensor) -> Tensor:
        """Steps of those samples whose gap is above the threshold."""
        threshold = self.threshold(game.context.step)
        delta = delta.clone()
        rows = torch.arange(len(delta), device=delta.device)
        for taken in range(self.steps):
            gradient = game.gradient(delta[rows], rows)
            if taken:
                gap = game.threat.take(rows).fosc(delta[rows], gradient, game.inputs[rows])
                going = gap > threshold
                rows, gradient = rows[going], gradient[going]
            if len(rows) == 0:
                break
            delta[rows] = game.move(delta[rows], gradient, self.alpha, rows)
        return delta


class FreeTraining(RobustMethod):
    """Free adversarial training of Shafahi et al. 2019: one backward pass moves both players, m times.

    The perturbation is carried over to the next batch, row by row, and projected for its new sample. Cost:
    ``3 m`` units; divide the number of epochs by m.

    Args:
        threat: The perturbations that are allowed.
        replays: m.
        alpha: Length of a step as a share of epsilon.
        label_smoothing: See `RobustMethod`.
        augmentation: See `RobustMethod`.

    Raises:
        ValueError: Fewer than one replay, an alpha that is not positive.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        replays: int = 8,
        alpha: float = 1.0,
        *,
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(threat, label_smoothing=label_smoothing, augmentation=augmentation)
        self.replays, self.alpha = at_least("replays", replays, 1), positive(alpha)
        self.carried: Tensor | None = None

    def play(self, game: Game, context: StepContext) -> Loss:
        """Both players move along the gradients of the same pass."""
        delta = game.threat.project(carried_over(self.carried, game.inputs), game.inputs)
        for _ in range(self.replays):
            delta = delta.detach().requires_grad_()
            losses, logits = game.losses(delta)
            game.backward(losses)
            assert delta.grad is not None
            delta = game.move(delta, delta.grad, self.alpha)
            context.optimizer_step()
        if context.real:
            self.carried = delta
        return game.report(losses, logits, {})

    def state_dict(self) -> Mapping[str, Any]:
        """With the perturbation that is carried over."""
        return {**super().state_dict(), "carried": self.carried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.carried = state["carried"]


class YOPO(RobustMethod):
    """YOPO of Zhang et al. 2019 ("you only propagate once"): most steps pass the first layer alone.

    m times a whole pass gives the weights' gradient and the slope p of the loss in the first layer's output;
    n steps then raise ``<p, first layer(x + delta)>``. The weights' gradients of the m passes are averaged
    (the authors' code sums them and divides the learning rate by m), and the first layer gets its ordinary
    gradient. Cost: about ``3 m`` units; passes through the first layer alone are not counted.

    Args:
        threat: The perturbations that are allowed.
        rounds: m.
        inner: n; the last round needs none and makes none.
        alpha: Length of a step as a share of epsilon; 2/255 of 8/255.
        first: Name of the first layer, as in ``model.named_modules()``; None for the first module that has
            weights and no children.
        random_start: Whether perturbations start at a random point of the set, or at 0.
        label_smoothing: See `RobustMethod`.
        augmentation: See `RobustMethod`.

    Raises:
        ValueError: Fewer than one round, fewer than 0 inner steps, an alpha that is not positive, or a model
            without a module of that name.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        rounds: int = 5,
        inner: int = 3,
        alpha: float = 0.25,
        *,
        first: str | None = None,
        random_start: bool = True,
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(threat, label_smoothing=label_smoothing, augmentation=augmentation)
        self.rounds, self.inner = at_least("rounds", rounds, 1), at_least("inner", inner, 0)
        self.alpha, self.first, self.random_start = positive(alpha), first, random_start

    def play(self, game: Game, context: StepContext) -> Loss:
        """Whole passes, steps through the first layer between them, one step of the weights."""
        layer = self.layer(game.bare)
        delta = torch.zeros_like(game.inputs)
        if self.random_start:
            delta = game.threat.random(game.inputs, context.generator)
        for turn in range(self.rounds):
            last = turn == self.rounds - 1
            with nullcontext() if last else context.without_communication(), _watched(layer) as outputs:
                losses, logits = game.losses(delta)
                game.backward(losses)
            slope = outputs[0].grad
            assert slope is not None
            for _ in range(0 if last else self.inner):
                gradient = self._through_first(game, layer, delta, slope)
                delta = game.move(delta, gradient, self.alpha)
        context.optimizer_step()
        return game.report(losses, logits, {})

    def layer(self, model: nn.Module) -> nn.Module:
        """The first layer.

        Raises:
            ValueError: There is none of that name.
        """
        modules: dict[str, nn.Module] = dict(model.named_modules())
        for name, module in modules.items():
            if name == self.first:
                return module
            if self.first is None and not list(module.children()) and list(module.parameters()):
                return module
        raise ValueError(f"first is {self.first!r}; {type(model).__name__} has no such module with weights")

    def _through_first(self, game: Game, layer: nn.Module, delta: Tensor, slope: Tensor) -> Tensor:
        """Gradient of ``<slope, first layer(inputs + delta)>`` by delta."""
        delta = delta.detach().requires_grad_()
        with dual_mode(game.bare, self.mode), torch.enable_grad():
            output = _until(layer, game.bare, game.inputs + delta)
            (gradient,) = torch.autograd.grad((output * slope).sum(), delta)
        return gradient


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer, which keep their gradients."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        outputs.append(output)
        return output.clone()  # an activation in place after it would change what was kept

    handle = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


class _Reached(Exception):
    """The first layer has its output; the rest of the model is not needed."""


def _until(layer: nn.Module, model: nn.Module, inputs: Tensor) -> Tensor:
    """The output of a layer, without running what comes after it."""
    found: list[Tensor] = []

    def stop(module: nn.Module, given: Any, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    handle = layer.register_forward_hook(stop)
    try:
        model(inputs)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise ValueError("the first layer takes no part in the model's forward pass")


def carried_over(carried: Tensor | None, inputs: Tensor) -> Tensor:
    """The perturbation of the last batch for the rows of this one; 0 for rows that it did not have.

    Raises:
        ValueError: Inputs have another shape than those of the last batch.
    """
    delta = torch.zeros_like(inputs)
    if carried is not None:
        if carried.shape[1:] != inputs.shape[1:]:
            raise ValueError(
                f"perturbations {tuple(carried.shape[1:])} cannot be carried over to inputs "
                f"{tuple(inputs.shape[1:])}; take a method with a bank, or one that starts anew"
            )
        rows = min(len(carried), len(inputs))
        delta[:rows] = carried[:rows].to(delta)
    return delta


def at_least(name: str, value: int, lowest: int) -> int:
    """The value, if it is not below the lowest.

    Raises:
        ValueError: It is.
    """
    if value < lowest:
        raise ValueError(f"{name} is {value}; expected at least {lowest}")
    return value


def positive(alpha: float) -> float:
    """The value, if it is a positive length.

    Raises:
        ValueError: It is not.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}; expected a positive share of epsilon")
    return alpha
