"""Backward rules that replace the derivative of an activation: tensors in, tensors out.

In all of them, z is what an activation reads, a its output, R the relevance that arrives from above (at the
network's output 1 for the explained score), and the score of a unit is s = a R. The first axis is the sample:
thresholds are taken for each sample by itself, jointly over all other axes.

Source: Kim et al., "Why are Saliency Maps Noisy? Cause of and Solution to Noisy Saliency Maps", 2019
(arXiv 1902.04893), as its published code computes it. `gated_rule` is our extension, and no published method.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "deconvolution_rule",
    "gated_rule",
    "guided_rule",
    "kept_units",
    "percentile_nearest",
    "rectgrad_rule",
    "redistribute",
    "zero_border",
]

_TINY = 1e-10


def percentile_nearest(scores: Tensor, q: float, valid: Tensor | None = None) -> Tensor:
    """The q-th percentile of each row, an element of the row: the one of rank ``round(q / 100 (N - 1)) + 1``.

    Equal to ``torch.quantile(..., interpolation="nearest")``, faster, and without its limit of 2^24 elements.
    Ranks halfway between two are rounded to the even one.

    Args:
        scores: ``(n, N)``; narrow dtypes are compared in float32.
        q: From 0 to 100.
        valid: bool ``(n, N)``: elements that count; None for all. Each row needs one.

    Returns:
        ``(n,)``.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if valid is None:
        return wide.kthvalue(_rank(q, wide.shape[1]), dim=1).values
    rows = [row[counts] for row, counts in zip(wide, valid, strict=True)]
    return torch.stack([row.kthvalue(_rank(q, len(row))).values for row in rows])


def _rank(q: float, count: int) -> int:
    return round(q / 100 * (count - 1)) + 1


def kept_units(
    scores: Tensor,
    *,
    q: float = 98.0,
    tau: float | None = None,
    strict: bool = True,
    min_keep: int = 1,
    valid: Tensor | None = None,
) -> Tensor:
    """Which units pass their relevance on: those whose score lies above a threshold.

    Args:
        scores: ``(n, ...)``.
        q: The threshold as a percentile of each sample's scores.
        tau: A fixed threshold instead.
        strict: Whether a unit tied with the threshold is dropped, as the published rule does.
        min_keep: Where fewer pass, those with the largest scores do, as long as their score is positive: at
            q = 99 nothing of a layer with 32 units would pass. 0 is the published rule.
        valid: bool ``(n, ...)``, as for `percentile_nearest`.

    Returns:
        bool ``(n, ...)``.
    """
    flat = scores.flatten(1).to(torch.promote_types(scores.dtype, torch.float32))
    if tau is None:
        threshold = percentile_nearest(flat, q, None if valid is None else valid.flatten(1))[:, None]
    else:
        threshold = torch.full_like(flat[:, :1], tau)
    kept = flat > threshold if strict else flat >= threshold
    short = kept.sum(dim=1, keepdim=True) < min_keep
    if short.any():
        top = flat.topk(min(min_keep, flat.shape[1]), dim=1)
        kept |= short & torch.zeros_like(kept).scatter(1, top.indices, top.values > 0)
    return kept.view(scores.shape)


def rectgrad_rule(
    relevance: Tensor, output: Tensor, kept: Tensor | None = None, *, q: float = 98.0
) -> Tensor:
    """RectGrad, equation (1): R where ``a R`` is above the sample's percentile, else 0.

    It replaces the derivative of the ReLU. Where the threshold is negative, inactive units pass theirs on,
    too; so q = 0 is not the gradient.

    Args:
        relevance: R ``(n, ...)``.
        output: a, of the same shape.
        kept: What `kept_units` gives for ``a R``, if it was called with other settings than q.
        q: The percentile.

    Returns:
        Of the shape of ``relevance``.
    """
    if kept is None:
        kept = kept_units(output * relevance, q=q, min_keep=0)
    return torch.where(kept, relevance, 0)


def gated_rule(propagated: Tensor, kept: Tensor) -> Tensor:
    """RectGrad's gate on the gradient: ``act'(z) R`` where the score is at or above the threshold, else 0.

    Equal to `rectgrad_rule` for ReLU wherever the threshold is not negative; at q = 0 it is the gradient, for
    every activation. Our extension: nothing published supports it.

    Args:
        propagated: ``act'(z) R``, ``(n, ...)``.
        kept: What `kept_units` gives with ``strict=False``.

    Returns:
        Of the shape of ``propagated``.
    """
    return torch.where(kept, propagated, 0)


def guided_rule(relevance: Tensor, output: Tensor) -> Tensor:
    """Guided backpropagation (Springenberg et al. 2015): R where both a and R are positive, else 0.

    Args:
        relevance: R ``(n, ...)``.
        output: a, of the same shape.

    Returns:
        Of the shape of ``relevance``.
    """
    # Several times as fast as torch.where.
    found: Tensor = torch.ops.aten.threshold_backward(relevance.clamp(min=0), output, 0)
    return found


def deconvolution_rule(relevance: Tensor) -> Tensor:
    """Deconvolution (Zeiler and Fergus 2014): R where R is positive, else 0, whatever the unit's output."""
    return relevance.clamp(min=0)


def redistribute(
    relevance: Tensor,
    pooled: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """Proportional redistribution through a max-pool, (2): ``R_i = R h_i / (sum of h in the window)``.

    No gradient in any limit. The relevance of windows that do not overlap is conserved; where all of a window
    is 0, it gets none.

    Args:
        relevance: R of the pool's output, ``(n, C, y', x')``.
        pooled: h, what the pool reads, ``(n, C, y, x)``, not negative.
        kernel_size: As of the pool, like the rest.
        stride: Defaults to the kernel's size.
        padding: Cells outside the picture take no part.
        ceil_mode: See the pool.

    Returns:
        Of the shape of ``pooled``.
    """
    wide = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    with torch.enable_grad():
        leaf = wide.detach().requires_grad_()
        mean = F.avg_pool2d(leaf, kernel_size, stride, padding, ceil_mode, count_include_pad=False)
        (share,) = torch.autograd.grad(mean, leaf, relevance.to(wide.dtype) / (mean.detach() + _TINY))
    return (wide * share).to(relevance.dtype)


def zero_border(relevance: Tensor, width: int = 1) -> Tensor:
    """The padding trick: 0 on the outermost ring of ``(n, C, y, x)``, the rest as it was.

    Raises:
        ValueError: Nothing would be left.
    """
    if min(relevance.shape[-2:]) <= 2 * width:
        raise ValueError(f"a map of {tuple(relevance.shape[-2:])} has no inside without a ring of {width}")
    inside = torch.zeros_like(relevance)
    cut = (..., slice(width, -width), slice(width, -width))
    inside[cut] = relevance[cut]
    return inside
