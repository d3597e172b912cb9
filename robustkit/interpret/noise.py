"""Gradients under noise: SmoothGrad, SmoothGrad squared and VarGrad, all from one pass over the samples.

With G_j the gradient at x + eps_j, j = 1 .. n: SmoothGrad is the mean of G_j, SmoothGrad squared the mean of
G_j^2, VarGrad their population variance. Sources: Smilkov et al. 2017 (arXiv 1706.03825); Hooker et al. 2019
(arXiv 1806.10758); Adebayo et al. 2018 (arXiv 1810.03307); Seo et al. 2018 (arXiv 1806.03000) on what they
estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainkit.seeding import derive_seed

from .attribution import Maps
from .subjects import GradientField

__all__ = ["Moments", "SmoothGrad", "noise_sample", "noise_scale"]

Statistic = Literal["mean", "mean_abs", "square", "var"]


class Moments:
    """Mean, mean absolute value, mean square and variance of samples that come in chunks.

    Chunks are merged after Chan, Golub and LeVeque (1979), so that the variance is never negative and does
    not suffer from a large mean. Memory: three numbers for each entry of a sample.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._spread = self._size = torch.zeros(())

    def add(self, chunk: Tensor) -> None:
        """Take in c more samples ``(c, ...)``."""
        added = len(chunk)
        if self._count == 0:
            self._mean, self._spread, self._size = (torch.zeros_like(chunk[0]) for _ in range(3))
        self._count += added
        share = added / self._count
        center = chunk.mean(dim=0)
        shift = center - self._mean
        self._spread += (chunk - center).square().sum(dim=0) + shift.square() * (added * (1 - share))
        self._mean += shift * share
        self._size += (chunk.abs().mean(dim=0) - self._size) * share

    def statistics(self) -> dict[str, Tensor]:
        """``mean``, ``mean_abs``, ``square`` and ``var`` (divided by n), each of one sample's shape."""
        variance = self._spread / self._count
        return {
            "mean": self._mean,
            "mean_abs": self._size,
            "square": variance + self._mean.square(),
            "var": variance,
        }


def noise_scale(
    inputs: Tensor, sigma: float, sigma_of: Literal["range", "std", "absolute"], mask: Tensor | None = None
) -> Tensor:
    """Standard deviation of the noise for each input by itself.

    Args:
        inputs: ``(B, ...)``.
        sigma: A factor.
        sigma_of: What it multiplies: the input's largest less its smallest value, its standard deviation, or
            1.
        mask: bool ``(B, T)``: tokens that count; None for all.

    Returns:
        ``(B, 1, ...)``, to be broadcast to the inputs; 0 for tokens that do not count.
    """
    shape = (len(inputs), *[1] * (inputs.ndim - 1))
    rows = [one if mask is None else one[mask[i]] for i, one in enumerate(inputs)]
    if sigma_of == "range":
        scale = torch.stack([row.max() - row.min() for row in rows]) * sigma
    elif sigma_of == "std":
        scale = torch.stack([row.std(correction=0) for row in rows]) * sigma
    else:
        scale = torch.full((len(inputs),), sigma, dtype=inputs.dtype, device=inputs.device)
    wide = scale.view(shape)
    return wide if mask is None else wide * mask.view(*mask.shape, *[1] * (inputs.ndim - 2))


def noise_sample(shape: torch.Size, index: int, seed: int, antithetic: bool) -> Tensor:
    """The standard normal noise of one sample, float32, the same for every input of a batch.

    Args:
        shape: Of one input.
        index: Number of the sample, from 0. The noise depends on nothing else, so neither chunks nor the
            other inputs of the batch change a map.
        seed: Of the method.
        antithetic: Whether samples 2 i and 2 i + 1 are each other's opposite.
    """
    drawn, sign = (index // 2, 1 - 2 * (index % 2)) if antithetic else (index, 1)
    generator = torch.Generator().manual_seed(derive_seed(seed, drawn))
    return sign * torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class SmoothGrad:
    """A statistic of the gradients at noisy copies of the input.

    One pass gives all four statistics: the others are in `Attribution.statistics`. The estimate of the mean
    has variance VarGrad / n without antithetic noise. Cost: n + 1 forward passes, n backward ones; memory is
    bounded by the batch size, whatever n.

    Attributes:
        n: Samples; the original paper takes about 50 (our reading, not confirmed), 32 is our choice.
        sigma: Standard deviation of the noise, as a share of what ``sigma_of`` says.
        sigma_of: ``"range"``: each input's largest less its smallest value; ``"std"``: its standard
            deviation; ``"absolute"``: ``sigma`` itself.
        statistic: ``"mean"`` is SmoothGrad, ``"square"`` SmoothGrad squared, ``"var"`` VarGrad;
            ``"mean_abs"`` is the mean of absolute gradients.
        antithetic: Noise in opposite pairs: the same error of the mean with a half to a fifth of the samples
            on smooth networks, and none at all on quadratic scores. Our choice.
        seed: Of the noise.

    Raises:
        ValueError: A setting is out of range.
    """

    n: int = 32
    sigma: float = 0.15
    sigma_of: Literal["range", "std", "absolute"] = "range"
    statistic: Statistic = "mean"
    antithetic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or (self.antithetic and self.n % 2):
            raise ValueError(f"n is {self.n}; expected 1 or more, and with antithetic=True an even number")
        if not self.sigma >= 0:
            raise ValueError(f"sigma is {self.sigma}; expected 0 or more")
        if self.sigma_of not in ("range", "std", "absolute"):
            raise ValueError(f"sigma_of is {self.sigma_of!r}; expected range, std or absolute")
        if self.statistic not in ("mean", "mean_abs", "square", "var"):
            raise ValueError(f"statistic is {self.statistic!r}; expected mean, mean_abs, square or var")

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        inputs, rows = field.inputs, field.rows
        mask = None if field.subject.text is None else field.subject.text.mask.to(inputs.device)
        scale = noise_scale(inputs, self.sigma, self.sigma_of, mask)
        chunk = max(1, field.batch_size // len(inputs))
        moments = Moments()
        for start in range(0, self.n, chunk):
            samples = range(start, min(self.n, start + chunk))
            noise = [noise_sample(inputs.shape[1:], j, self.seed, self.antithetic) for j in samples]
            points = torch.cat([inputs + scale * eps.to(inputs) for eps in noise])

            moments.add(field.gradients(points, rows.repeat(len(samples))).view(-1, *inputs.shape))
        statistics = moments.statistics()
        return Maps(statistics[self.statistic], statistics=statistics)
