"""What gradient attacks raise: losses of logits and labels, one number for each sample, larger for worse.

Source: Carlini and Wagner 2017 (margin); Croce and Hein 2020, "Reliable evaluation of adversarial robustness
with an ensemble of diverse parameter-free attacks" (difference of logits ratio).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Loss", "cross_entropy", "dlr", "margin", "targeted_dlr"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(n, C)`` and labels ``(n,)`` to losses ``(n,)``."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label.

    Args:
        logits: ``(n, C)``.
        labels: int64 ``(n,)``.

    Returns:
        ``(n,)``, at least 0.
    """
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's: the sample is misclassified where it is positive.

    The loss of Carlini and Wagner without its cut at -kappa: each sample's gradient is its own, so that of a
    sample that is done disturbs no other.

    Args:
        logits: ``(n, C)``.
        labels: int64 ``(n,)``.

    Returns:
        ``(n,)``.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return _without(logits, labels).amax(dim=1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: `margin` divided by the largest logit minus the third largest.

    Neither a shift nor a factor of the logits changes it, so it does not vanish for sure models.

    Args:
        logits: ``(n, C)``, three classes or more.
        labels: int64 ``(n,)``.

    Returns:
        ``(n,)``, at most 1.

    Raises:
        ValueError: Fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the ratio needs 3 classes, the model has {logits.shape[1]}; take margin instead")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / _positive(top[:, 0] - top[:, 2])


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the label's, by the largest minus the mean of the third and fourth.

    Args:
        logits: ``(n, C)``, four classes or more.
        labels: The true classes, int64 ``(n,)``.
        targets: The classes to be raised, int64 ``(n,)``.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: Fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted ratio needs 4 classes, the model has {logits.shape[1]}")
    top = logits.topk(4, dim=1).values
    own = logits.gather(1, labels[:, None]).squeeze(1)
    wanted = logits.gather(1, targets[:, None]).squeeze(1)
    return (wanted - own) / _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits with -inf at the labels."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def _positive(differences: Tensor) -> Tensor:
    """Keeps equal logits from a division by 0."""
    return differences.clamp(min=torch.finfo(differences.dtype).tiny ** 0.5)
