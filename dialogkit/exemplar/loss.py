"""The marginal likelihood of CORGE, and its neighbours, as functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .policy import Mode

__all__ = ["ExemplarLoss", "exemplar_loss", "relevance_log_weights", "relevance_scores"]


@dataclass(frozen=True)
class ExemplarLoss:
    """What :func:`exemplar_loss` returns; every field but the last two is differentiable.

    Attributes:
        loss: Mean over the batch, a scalar.
        per_example: ``[B]``.
        weights: ``P_R(z_j | c)``, ``[B, k]``; 0 where masked. A row without exemplars has weight 1 in the
            first column.
        posterior: ``pi_j = P_R(z_j | c) exp(ell_j) / sum``, ``[B, k]``.
        nll: ``-ell_j``, ``[B, k]``; 0 where masked.
    """

    loss: Tensor
    per_example: Tensor
    weights: Tensor
    posterior: Tensor
    nll: Tensor


def relevance_scores(context_vectors: Tensor, exemplar_vectors: Tensor) -> Tensor:
    """``s_j = u(c) . stopgrad(v(z_j))``: ``[B, d]`` and ``[B, k, d]`` give ``[B, k]``."""
    return torch.einsum("bd,bkd->bk", context_vectors, exemplar_vectors.detach().to(context_vectors.dtype))


def relevance_log_weights(scores: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """``log P_R(z_j | c) = log softmax_j(s_j / T)`` over the exemplars that are there.

    Args:
        scores: ``[B, k]``.
        temperature: T.
        mask: Boolean ``[B, k]``, true where there is an exemplar, at least once in a row.

    Returns:
        ``[B, k]``; ``-inf`` where masked.
    """
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    return (scores / temperature).log_softmax(dim=1)


def exemplar_loss(
    log_likelihoods: Tensor,
    relevance: Tensor | None = None,
    *,
    mode: Mode = "marginal",
    temperature: float = 1.0,
    mask: Tensor | None = None,
    alone: Tensor | None = None,
) -> ExemplarLoss:
    r"""The loss of responses that were each read with k exemplars.

    .. math::
        L_{marginal} = -\log \sum_j P_R(z_j|c) \exp(\ell_j), \quad
        L_{nll} = -\sum_j P_R(z_j|c) \ell_j, \quad
        L_{nll\_sum} = k L_{nll}

    The marginal is that of RAG-Sequence over the k exemplars. Its gradients are
    ``dL/d ell_j = -pi_j`` and ``dL/d s_j = (P_R - pi_j) / T``: the generator is trained on an exemplar with
    the weight of its posterior, and relevance rises where an exemplar explains the response better than the
    average. With one exemplar (k = 1) relevance gets no gradient.

    Args:
        log_likelihoods: ``ell_j = sum_t log P(y_t | y_<t, c, z_j)``, ``[B, k]``; k may be 0.
        relevance: Scores ``s_j``, ``[B, k]``; None weights exemplars alike.
        mode: Which of the three.
        temperature: T > 0, divides the scores.
        mask: Boolean ``[B, k]``, true where there is an exemplar; None: everywhere.
        alone: Log-likelihood without an exemplar ``[B]``, which takes the place of a row that has none.

    Returns:
        In float32 (float64 stays float64).

    Raises:
        ValueError: Shapes do not fit, ``mode`` or ``temperature`` is wrong, or a row has neither an exemplar
            nor ``alone``.
    """
    _check(log_likelihoods, relevance, mode, temperature, mask)
    with torch.autocast(log_likelihoods.device.type, enabled=False):
        ell = log_likelihoods if log_likelihoods.dtype == torch.float64 else log_likelihoods.float()
        there = torch.ones_like(ell, dtype=torch.bool) if mask is None else mask
        scores = torch.zeros_like(ell) if relevance is None else relevance.to(ell.dtype)
        empty = ~there.any(dim=1)
        if bool(empty.any()):
            if alone is None:
                rows = empty.nonzero().flatten().tolist()
                raise ValueError(f"rows {rows[:8]} have no exemplar: give alone, the NLL without one")
            if ell.shape[1] == 0:
                ell = scores = ell.new_zeros(len(ell), 1)
                there = torch.zeros_like(ell, dtype=torch.bool)
            first = torch.zeros_like(there)
            first[:, 0] = empty
            ell = torch.where(first, alone.to(ell.dtype)[:, None], ell)
            scores = torch.where(first, 0.0, scores)
            there = there | first
        # What stands in a masked place may be anything, NaN included.
        ell = torch.where(there, ell, 0.0)
        log_weights = relevance_log_weights(torch.where(there, scores, 0.0), temperature, there)
        joint = log_weights + ell
        weights = log_weights.exp()
        if mode == "marginal":
            per_example = -joint.logsumexp(dim=1)
        else:
            per_example = -(weights * ell).sum(dim=1)
            if mode == "nll_sum":
                per_example = per_example * there.sum(dim=1)
        return ExemplarLoss(
            per_example.mean(), per_example, weights, joint.softmax(dim=1).detach(), (-ell).detach()
        )


def _check(
    log_likelihoods: Tensor, relevance: Tensor | None, mode: str, temperature: float, mask: Tensor | None
) -> None:
    if log_likelihoods.ndim != 2:
        raise ValueError(f"log_likelihoods must be [B, k], got {list(log_likelihoods.shape)}")
    for name, given in (("relevance", relevance), ("mask", mask)):
        if given is not None and given.shape != log_likelihoods.shape:
            raise ValueError(
                f"{name} must be {list(log_likelihoods.shape)} as log_likelihoods, got {list(given.shape)}"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    if mode not in ("marginal", "nll", "nll_sum"):
        raise ValueError(f"mode must be 'marginal', 'nll' or 'nll_sum', got {mode!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
