"""Methods that weigh clean against perturbed inputs: TRADES and MART.

Sources: TRADES, `Zhang et al. 2019 <https://arxiv.org/abs/1901.08573>`_; MART, Wang et al. 2020, "Improving
Adversarial Robustness Requires Revisiting Misclassified Examples" (from its published equations,
unconfirmed).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.attacks.gradient.sets import PerturbationSet
from trainkit.objectives import Loss, StepContext

from .game import DualMode, Game
from .growing import Growing
from .methods import PGDTraining, RobustMethod, at_least, positive
from .views import FlipCrop

__all__ = ["MART", "TRADES", "boosted_cross_entropy", "divergence"]

_TINY = 1e-12


def divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(perturbed))`` of each row.

    Args:
        clean: Logits ``(n, C)``.
        perturbed: Logits ``(n, C)``.

    Returns:
        ``(n,)``, at least 0 up to rounding; both arguments get gradients.
    """
    first, second = clean.log_softmax(dim=1), perturbed.log_softmax(dim=1)
    return functional.kl_div(second, first, reduction="none", log_target=True).sum(dim=1)


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """MART's ``-log p_y - log(1 - max_{k != y} p_k)`` of each row.

    Args:
        logits: ``(n, C)``.
        labels: int64 ``(n,)``.

    Returns:
        ``(n,)``.
    """
    probabilities = logits.softmax(dim=1)
    rival = probabilities.scatter(1, labels[:, None], 0).amax(dim=1)
    return functional.cross_entropy(logits, labels, reduction="none") - (1 - rival).clamp(min=_TINY).log()


class TRADES(RobustMethod):
    """Clean cross-entropy plus beta times the divergence to the worst neighbour, which maximizes it.

    ``CE(f(x), y) + beta * KL(f(x) || f(x'))``; x' starts at a small normal perturbation. Clean logits for the
    attack are computed once. Gradients flow through both sides of the divergence. Cost: ``2 k + 7`` units.

    Args:
        threat: The perturbations that are allowed.
        steps: k.
        alpha: Length of a step as a share of epsilon; .007 of .031 in the authors' code.
        beta: Weight of the divergence; 6 in the authors' code. 0 is natural training.
        mode: See `RobustMethod`, as for the rest; the authors' code has ``"eval"``.
        label_smoothing: See there; of the clean loss.
        augmentation: See there.

    Raises:
        ValueError: A negative beta or number of steps, an alpha that is not positive.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        steps: int = 10,
        alpha: float = 0.25,
        beta: float = 6.0,
        *,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(threat, mode=mode, label_smoothing=label_smoothing, augmentation=augmentation)
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected at least 0")
        self.steps, self.alpha, self.beta = at_least("steps", steps, 0), positive(alpha), beta

    def play(self, game: Game, context: StepContext) -> Loss:
        """Raise the divergence, then lower the sum."""
        clean = game.clean_logits()

        def apart(logits: Tensor, rows: Tensor | None) -> Tensor:
            return divergence(clean, logits)

        noise = torch.randn(game.inputs.shape, generator=context.generator).to(game.inputs)
        delta = game.climb(game.threat.project(0.001 * noise, game.inputs), self.steps, self.alpha, apart)
        losses, perturbed, logits = game.clean_and_perturbed(delta)
        losses = losses + self.beta * divergence(logits, perturbed)
        game.descend(losses)
        return game.report(losses, perturbed, {})


class MART(PGDTraining):
    """Training that leans on samples which the model gets wrong without any perturbation.

    ``BCE(f(x'), y) + weight * KL(f(x) || f(x')) * (1 - p_y(x))`` with `boosted_cross_entropy`; x' maximizes
    the cross-entropy as in PGD training. Cost: ``2 k + 6`` units. Unconfirmed: written from the published
    equations.

    Args:
        threat: The perturbations that are allowed.
        steps: k.
        alpha: Length of a step as a share of epsilon.
        weight: Weight of the divergence; 5 in the paper.
        random_start: See `PGDTraining`.
        mode: See `RobustMethod`, as for the rest.
        augmentation: See there.

    Raises:
        ValueError: A negative weight, or as `PGDTraining`.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        steps: int = 10,
        alpha: float = 0.25,
        weight: float = 5.0,
        *,
        random_start: bool = True,
        mode: DualMode = "bn_eval",
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(
            threat, steps, alpha, random_start=random_start, mode=mode, augmentation=augmentation
        )
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; expected at least 0")
        self.weight = weight

    def play(self, game: Game, context: StepContext) -> Loss:
        """Climb, then lower both parts."""
        delta = self.climb(game, self.start(game, context))
        _, perturbed, clean = game.clean_and_perturbed(delta)
        wrong = 1 - clean.softmax(dim=1).gather(1, game.labels[:, None]).squeeze(1)
        losses = boosted_cross_entropy(perturbed, game.labels)
        losses = losses + self.weight * divergence(clean, perturbed) * wrong
        game.descend(losses)
        return game.report(losses, perturbed, {})
