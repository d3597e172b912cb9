"""How near an attack comes to a maximum, step by step: loss, gap and residual against passes.

Source: the gap is that of Wang et al., "On the Convergence and Robustness of Adversarial Training", ICML
2019; the residual is that of a step of projected gradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import Loss, cross_entropy
from robustkit.attacks.gradient.search import Search, check_arguments, check_count, objective_of
from robustkit.attacks.gradient.sets import PerturbationSet
from robustkit.attacks.gradient.victims import Model, judging

__all__ = ["Stationarity", "stationarity"]


@dataclass(frozen=True)
class Stationarity:
    """What steps of PGD did for n samples; entry k is before step k + 1.

    Attributes:
        passes: Forward and backward passes that a sample has taken, int64 ``(steps + 1,)``.
        loss: ``(n, steps + 1)``.
        fosc: ``(n, steps + 1)``: the gap of first-order stationarity, 0 exactly at a stationary point.
        residual: ``(n, steps + 1)``: ``||delta - P(delta + gradient)||``, Euclidean; also 0 exactly there.
    """

    passes: Tensor
    loss: Tensor
    fosc: Tensor
    residual: Tensor


def stationarity(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    threat: PerturbationSet,
    steps: int = 50,
    *,
    alpha: float | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Stationarity:
    """Follows PGD from a random start; no sample stops early, whatever the model says of it.

    Args:
        model: See `Attack.perturb`, as for inputs and labels.
        inputs: ``(n, ...)``.
        labels: int ``(n,)``.
        threat: The perturbations that are allowed.
        steps: Steps of the attack.
        alpha: Length of a step as a share of epsilon; None for ``2.5 / steps``, at most 1, as in `PGD`.
        loss: What is raised.
        seed: Of the start.

    Raises:
        TypeError: Inputs, labels or model are of the wrong kind.
        ValueError: Inputs outside the box or empty, labels out of range, steps below 1.
    """
    check_count("steps", steps)
    check_arguments(inputs, labels, threat)
    share = min(1.0, 2.5 / steps) if alpha is None else alpha
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with judging(model):
        search = Search(model, inputs, labels, threat)
        rows, objective = search.rows(), objective_of(loss, targeted=False)
        delta = threat.random(rows.inputs, torch.Generator(device=inputs.device).manual_seed(seed))
        for _ in range(steps + 1):
            losses, gradient = search.gradient(delta, rows, objective)
            ahead = threat.project(delta + gradient, rows.inputs)
            residual = (ahead - delta).flatten(1).norm(dim=1)
            found.append((losses, threat.fosc(delta, gradient, rows.inputs), residual))
            step = share * threat.radius(gradient) * threat.steepest(gradient)
            delta = threat.project(delta + step, rows.inputs)
    return Stationarity(
        2 * torch.arange(1, steps + 2), *(torch.stack(each, dim=1) for each in zip(*found, strict=True))
    )
