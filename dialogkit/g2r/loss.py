"""The loss of G2R: candidates of a teacher as positives, its scores as soft targets.

Source: Kim, Seo, Han, Erdenee, Chang, "Distilling the Knowledge of Large-scale Generative Models into
Retrieval Models for Efficient Open-domain Conversation", Findings of EMNLP 2021, in the form of the released
loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["G2RLoss", "g2r_loss", "teacher_distribution"]


@dataclass(frozen=True)
class G2RLoss:
    """What :func:`g2r_loss` returns; every field is differentiable.

    Attributes:
        loss: ``(1 - alpha) * ce + alpha * kd``, a scalar.
        ce: Hard loss, mean over all candidates of the batch, a scalar.
        kd: Soft loss, mean over contexts, a scalar.
        kd_per_context: ``[B]``.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    kd_per_context: Tensor


def teacher_distribution(teacher_scores: Tensor, positive_mask: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The soft target, a softmax over a context's own candidates.

    .. math:: p_{ij} = \exp(s_{ij} / T) / \sum_{j'} \exp(s_{ij'} / T)

    Args:
        teacher_scores: ``[B, U]``; read only where ``positive_mask`` is true.
        positive_mask: Boolean ``[B, U]``; true where text u is a candidate of context b.
        temperature: T, positive. It divides the teacher's scores only.

    Returns:
        ``[B, U]``, zero outside the mask, without gradient.
    """
    scores = (_full_precision(teacher_scores.detach()) / temperature).masked_fill(~positive_mask, -torch.inf)
    return scores.softmax(dim=1)


def g2r_loss(
    scores: Tensor,
    positive_mask: Tensor,
    negative_mask: Tensor,
    teacher_scores: Tensor,
    *,
    alpha: float = 0.1,
    teacher_temperature: float = 1.0,
    in_batch_negatives: bool = False,
) -> G2RLoss:
    r"""Hard and soft loss of a batch of contexts against a list of U distinct texts.

    With :math:`A_i` the candidates of context i, N the negatives, f the student's scores, s the teacher's:

    .. math::

        CE_{ij} &= -\log \frac{\exp f(c_i, r_{ij})}{\exp f(c_i, r_{ij}) + \sum_{n \in N} \exp f(c_i, n)} \\
        KD_i &= -\sum_j p_{ij} \log \frac{\exp f(c_i, r_{ij})}{\sum_{x \in A_i \cup N} \exp f(c_i, x)} \\
        L &= (1 - \alpha) \, \overline{CE} + \alpha \, \overline{KD}

    CE is averaged over candidates, KD over contexts; p is :func:`teacher_distribution`. The soft loss is a
    cross-entropy, so it is bounded below by the entropy of p; there is no factor :math:`T^2`.

    The released code lets a negative fall out of CE for every candidate that two contexts of a batch share.
    Here every candidate meets all negatives.

    Cost: a few passes over ``[B, U]``, in float32 at least.

    Args:
        scores: Student scores f ``[B, U]``.
        positive_mask: Boolean ``[B, U]``; true where text u is a candidate of context b; each context has
            one or more.
        negative_mask: Boolean ``[U]`` or ``[B, U]``; true where text u is a negative. A text that is a
            candidate of any context of the batch must not be one.
        teacher_scores: ``[B, U]``; read only where ``positive_mask`` is true. No gradient flows
            back to them.
        alpha: Weight of the soft loss in [0, 1]; 0.1 in the released runs of G2R-DM, 0 in those of G2R-D.
        teacher_temperature: T > 0; 1 in the released runs.
        in_batch_negatives: Other contexts' candidates are negatives, too. Off in the released runs.

    Raises:
        ValueError: Shapes or values are not as above, or scores are not finite.
    """
    _check(scores, positive_mask, negative_mask, teacher_scores, alpha, teacher_temperature)
    negatives = negative_mask.expand_as(positive_mask)
    if in_batch_negatives:
        negatives = negatives | (positive_mask.any(dim=0) & ~positive_mask)
    # Half precision loses the tail of a softmax over hundreds of negatives, and masks could overflow in it.
    with torch.autocast(scores.device.type, enabled=False):
        scores = _full_precision(scores)
        p = teacher_distribution(teacher_scores, positive_mask, teacher_temperature).to(scores.dtype)
        against = scores.masked_fill(~negatives, -torch.inf).logsumexp(dim=1, keepdim=True)
        hard = torch.logaddexp(scores, against) - scores
        ce = hard.masked_fill(~positive_mask, 0.0).sum() / positive_mask.sum()
        support = scores.masked_fill(~(positive_mask | negatives), -torch.inf)
        surprise = support.logsumexp(dim=1, keepdim=True) - scores
        kd_per_context = (p * surprise).sum(dim=1)
        kd = kd_per_context.mean()
        return G2RLoss((1 - alpha) * ce + alpha * kd, ce, kd, kd_per_context)


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check(
    scores: Tensor,
    positive_mask: Tensor,
    negative_mask: Tensor,
    teacher_scores: Tensor,
    alpha: float,
    temperature: float,
) -> None:
    if scores.ndim != 2:
        raise ValueError(f"scores must be [contexts, texts], got {list(scores.shape)}")
    for name, mask in (("positive_mask", positive_mask), ("negative_mask", negative_mask)):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} must be boolean, got {mask.dtype}")
    if positive_mask.shape != scores.shape or teacher_scores.shape != scores.shape:
        raise ValueError(
            f"positive_mask and teacher_scores must be {list(scores.shape)} as scores, "
            f"got {list(positive_mask.shape)} and {list(teacher_scores.shape)}"
        )
    if negative_mask.shape not in (scores.shape, scores.shape[1:]):
        raise ValueError(
            f"negative_mask must be {list(scores.shape[1:])} or {list(scores.shape)}, "
            f"got {list(negative_mask.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"teacher_temperature must be positive, got {temperature}")
    lonely = (~positive_mask.any(dim=1)).nonzero().flatten().tolist()
    if lonely:
        raise ValueError(f"every context needs a candidate; contexts {lonely[:8]} have none")
    if (positive_mask.any(dim=0) & negative_mask).any():
        raise ValueError("negative_mask marks a text that is a candidate of a context in the batch")
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite")
    if not torch.isfinite(teacher_scores[positive_mask]).all():
        raise ValueError("teacher_scores of candidates hold values that are not finite")
