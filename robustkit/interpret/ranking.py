"""Which pixels or words a map puts first, and how alike two maps rank them."""

from __future__ import annotations

import torch
from torch import Tensor

from trainkit.seeding import derive_seed

__all__ = ["first_share", "positions", "rank_correlation", "top_share"]


def positions(maps: Tensor, seed: int = 0, valid: Tensor | None = None) -> Tensor:
    """The place of each entry in its map's order, from the largest at 0; ties fall at random.

    Random maps with added noise, as the authors of RectGrad break ties, change the order of entries that
    differ by less than the noise; here only entries that are equal change places.

    Args:
        maps: ``(n, ...)``.
        seed: Of the order of ties.
        valid: bool, of the same shape: entries that count; the others come last. None for all.

    Returns:
        int64, of the same shape.
    """
    flat = maps.detach().flatten(1).double().cpu()
    if valid is not None:
        flat = flat.masked_fill(~valid.flatten(1).cpu(), -torch.inf)
    generator = torch.Generator().manual_seed(derive_seed("ties", seed))
    shuffled = torch.rand(flat.shape, generator=generator).argsort(dim=1)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(flat.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def top_share(maps: Tensor, fraction: float, seed: int = 0, valid: Tensor | None = None) -> Tensor:
    """The share of each map's entries that it puts first: ``round(fraction · N)`` of N.

    Args:
        maps: ``(n, ...)``.
        fraction: From 0 to 1.
        seed: See `positions`.
        valid: See `positions`; N counts these.

    Returns:
        bool, of the same shape.

    Raises:
        ValueError: The fraction lies outside.
    """
    return first_share(positions(maps, seed, valid), fraction, valid)


def first_share(places: Tensor, fraction: float, valid: Tensor | None = None) -> Tensor:
    """What `top_share` gives, of places that are known: sorting is dear, and one order serves all fractions.

    Args:
        places: What `positions` gives, ``(n, ...)``.
        fraction: From 0 to 1.
        valid: What `positions` was given.

    Returns:
        bool, of the same shape.

    Raises:
        ValueError: The fraction lies outside.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected 0 to 1")
    if valid is None:
        return places < round(fraction * places[0].numel())
    count = valid.flatten(1).sum(dim=1).cpu().double() * fraction
    return places < count.round().view(len(places), *[1] * (places.ndim - 1))


def rank_correlation(first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of two maps each, equal values sharing their mean rank.

    Args:
        first: ``(n, N)``.
        second: ``(n, N)``.
        valid: bool ``(n, N)``: entries that count; None for all.

    Returns:
        float64 ``(n,)``; NaN where a map is constant.
    """
    from scipy.stats import rankdata

    if valid is not None and len(valid):
        rows = zip(first, second, valid, strict=True)
        return torch.cat([rank_correlation(one[some][None], other[some][None]) for one, other, some in rows])
    ranks = [torch.from_numpy(rankdata(maps.detach().cpu().numpy(), axis=1)) for maps in (first, second)]
    one, other = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    correlation: Tensor = (one * other).sum(dim=1) / (one.norm(dim=1) * other.norm(dim=1))
    return correlation
