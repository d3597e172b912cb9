"""Covariance of contaminated samples: the minimum covariance determinant (MCD), and shrinkage estimators.

MCD looks for the h of n rows whose covariance has the smallest determinant (Rousseeuw, 1985); mean and
covariance of these rows are not moved by outliers among the others. A *C-step* takes the h rows nearest to a
mean and covariance and gives theirs, which never raises the determinant; so the methods differ in where they
start: FastMCD (Rousseeuw and Van Driessen, 1999) at random, DetMCD (Hubert, Rousseeuw and Verdonck, 2012) at
a handful of robust estimates that need no luck.

All covariances divide by n. Everything is computed in float64, on one thread: these are many small products,
which a thread pool slows down, up to fifty-fold on a busy machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .base import Estimator, as_rows, not_fitted

__all__ = ["MinCovDet", "c_step", "empirical_covariance", "ledoit_wolf", "oas", "whitening"]

Algorithm = Literal["deterministic", "fast"]
Consistency = Literal["gaussian", "median"]

# Numbers in a batch of starts: 32 MB.
_BATCH = 1 << 22
# The share of a Gaussian's rows that reweighting keeps.
_KEPT = 0.975


# Equations --------------------------------------------------------------------------------------------------


def empirical_covariance(rows: torch.Tensor) -> torch.Tensor:
    """The covariance (P, P) of rows (..., n, P), divided by n."""
    centred = rows - rows.mean(dim=-2, keepdim=True)
    return centred.mT @ centred / rows.shape[-2]


def ledoit_wolf(rows: torch.Tensor) -> torch.Tensor:
    """Covariance (P, P) of rows (n, P) shrunk towards a multiple of the identity.

    The share of the identity is the one that Ledoit and Wolf (2004) show to be the best in the limit of large
    n and P. Positive definite for any n >= 2 with rows that differ.
    """
    n, p = rows.shape
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / n
    mean = covariance.trace() / p
    distance = covariance.square().sum() - p * mean**2
    noise = (centred.square().sum(dim=1).square().sum() / n - covariance.square().sum()) / n
    return _shrunk(covariance, float((noise.clamp(min=0) / distance).clamp(max=1)) if distance > 0 else 1.0)


def oas(rows: torch.Tensor) -> torch.Tensor:
    """Covariance (P, P) of rows (n, P) shrunk towards a multiple of the identity, for Gaussian rows.

    Oracle approximating shrinkage: equation (23) of Chen, Wiesel, Eldar and Hero (2010).
    """
    n, p = rows.shape
    covariance = empirical_covariance(rows)
    square, trace = covariance.square().sum(), covariance.trace() ** 2
    share = ((1 - 2 / p) * square + trace) / ((n + 1 - 2 / p) * (square - trace / p))
    return _shrunk(covariance, float(share.clamp(max=1)) if square > trace / p else 1.0)


def _shrunk(covariance: torch.Tensor, share: float) -> torch.Tensor:
    shrunk = (1 - share) * covariance
    shrunk.diagonal().add_(share * covariance.trace() / len(covariance))
    return shrunk


def whitening(covariance: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A matrix W (P, P) with W W^T = covariance^-1, and the logarithm of the covariance's determinant.

    Directions without variance, up to rounding, count in neither: the inverse is the pseudo-inverse.
    """
    values, vectors = torch.linalg.eigh(covariance)
    tiny = values <= values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    safe = values.masked_fill(tiny, 1)
    return (vectors / safe.sqrt()).masked_fill(tiny, 0), float(safe.log().sum())


def c_step(
    rows: torch.Tensor, location: torch.Tensor, covariance: torch.Tensor, h: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Concentration: the h rows nearest to each of B estimates, and their mean and covariance.

    Args:
        rows: (n, P), float64.
        location: (B, P).
        covariance: (B, P, P); where it is singular, the nearest rows are those by Euclidean distance.
        h: How many rows to take.

    Returns:
        Indices (B, h), their mean (B, P) and covariance (B, P, P). Its determinant is at most that of
        ``covariance`` if that came from h rows, too.
    """
    factor, _ = _factor(covariance)
    unit = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False).mT
    whitened = rows @ inverse - location.unsqueeze(-2) @ inverse
    nearest = whitened.square_().sum(dim=-1).topk(h, largest=False, sorted=False).indices
    chosen = rows[nearest]
    return nearest, chosen.mean(dim=-2), empirical_covariance(chosen)


def _factor(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cholesky factors (B, P, P) and log-determinants (B,); identity and infinity for singular ones."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    scale = covariance.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
    rounding = scale * covariance.shape[-1] * torch.finfo(covariance.dtype).eps
    # Written so that a factor with NaN is singular, too.
    regular = (failed == 0) & (pivots.amin(dim=-1) > rounding)
    unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor = torch.where(regular[:, None, None], factor, unit)
    log_determinant = pivots.log().sum(dim=-1)
    return factor, torch.where(regular, log_determinant, torch.inf)


def _chi2_quantile(p: int, share: float) -> float:
    from scipy.special import gammaincinv

    return 2 * float(gammaincinv(p / 2, share))


def _gaussian_factor(p: int, share: float) -> float:
    """What the covariance of the innermost share of a P-dimensional Gaussian must be multiplied by.

    ``share / F(q)``, q the chi-square quantile at ``share`` with P degrees of freedom, F the distribution
    function with P + 2 (Croux and Haesbroeck, 1999).
    """
    from scipy.special import gammainc

    return share / float(gammainc(p / 2 + 1, _chi2_quantile(p, share) / 2)) if share < 1 else 1.0


# Estimates to start from ------------------------------------------------------------------------------------


def _spread(centred: torch.Tensor) -> torch.Tensor:
    """Median absolute value of each column, 1 for a standard Gaussian."""
    return 1.4826 * centred.abs().median(dim=0).values


def _tanh(z: torch.Tensor) -> torch.Tensor:
    return empirical_covariance(z.tanh())


def _spatial_sign(z: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(z, dim=1)
    return unit.T @ unit


def _inner_half(z: torch.Tensor) -> torch.Tensor:
    nearest = z.square().sum(dim=1).topk((len(z) + 1) // 2, largest=False).indices
    return empirical_covariance(z[nearest])


def _normal_scores(z: torch.Tensor) -> torch.Tensor:
    n = len(z)
    scores = torch.special.ndtri(
        (torch.arange(1, n + 1, dtype=z.dtype, device=z.device) - 1 / 3) / (n + 1 / 3)
    )
    ranked = torch.empty_like(z).scatter_(0, z.argsort(dim=0, stable=True), scores[:, None].expand_as(z))
    return empirical_covariance(ranked)


_SHAPES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    _tanh,
    _spatial_sign,
    _inner_half,
    _normal_scores,
)


def _deterministic_starts(z: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Locations (B, P) and scatters (B, P, P) of rows whose columns have median 0 and spread 1.

    The first is the standard Gaussian; the others have the axes of a rough scatter matrix and robust spreads
    along them.
    """
    # Single precision is plenty for a start; beyond the limit, far is far.
    rough = z.clamp(-1e6, 1e6).float()
    p = z.shape[1]
    locations, scatters = [rough.new_zeros(p)], [torch.eye(p, device=z.device)]
    for shape in _SHAPES[: count - 1]:
        axes = torch.linalg.eigh(shape(rough)).eigenvectors
        projected = rough @ axes
        middle = projected.median(dim=0).values
        locations.append(axes @ middle)
        scatters.append((axes * _spread(projected - middle).square()) @ axes.T)
    return torch.stack(locations).double(), torch.stack(scatters).double()


# The estimator ----------------------------------------------------------------------------------------------


class MinCovDet(Estimator):
    """Minimum covariance determinant: mean and covariance that outliers do not move.

    ``"deterministic"`` starts from a few robust estimates in the manner of DetMCD (without its rank
    correlation, with median absolute deviations instead of Qn and the axes' medians instead of the OGK
    estimate). The log-determinant that it reaches is at most 0.02 above that of scikit-learn's FastMCD, on
    Gaussian data of a hundred dimensions below it. It is equivariant under shifts and scales of the axes,
    roughly so under rotations. ``"fast"`` is FastMCD: five hundred random starts on subsets of the rows, in
    batches.

    Cost: a C-step takes 2 n P^2 operations, fitting about 30 of them for ``"deterministic"``. Memory: a few
    copies of the rows.

    A *tight* cluster of many outliers in many dimensions makes the determinant smaller, so ``"fast"`` keeps
    it; ``"deterministic"`` usually ends in the worse optimum without it (see ``docs/rde.md``).

    Args:
        support_fraction: Share of rows h / n; None takes h = ceil((n + P + 1) / 2), the most robust choice.
        algorithm: Where the C-steps start.
        reweight: Whether mean and covariance are finally those of all rows within the 0.975 quantile, which
            is more efficient than the h rows alone.
        consistency: How the covariance is enlarged to be that of a Gaussian: ``"gaussian"`` by the factor
            that a Gaussian's innermost share needs, for the raw and for the reweighted estimate (as
            scikit-learn since 1.8), ``"median"`` so that the median distance is a Gaussian's, raw estimate
            only (as scikit-learn 0.24).
        n_starts: Number of starts; None takes 3 or 500. ``"deterministic"`` has at most 5, of which the first
            three reach the same determinants on nearly all data.
        max_iter: C-steps per start at most.
        random_state: Seed of ``"fast"``.

    Attributes:
        location_: Mean, float64 (P,).
        covariance_: Covariance, float64 (P, P).
        support_: The rows it is taken from, bool (n,).
        raw_location_: Mean of the h rows.
        raw_covariance_: Their covariance, without any correction.
        raw_support_: The h rows.
        logdet_: Log-determinant of ``raw_covariance_``, the criterion.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> mcd = MinCovDet().fit(rows)
        >>> suspicious = mcd.mahalanobis(rows) > 30
    """

    location_: NDArray[np.float64]
    covariance_: NDArray[np.float64]
    support_: NDArray[np.bool_]
    raw_location_: NDArray[np.float64]
    raw_covariance_: NDArray[np.float64]
    raw_support_: NDArray[np.bool_]
    logdet_: float

    def __init__(
        self,
        support_fraction: float | None = None,
        algorithm: Algorithm = "deterministic",
        reweight: bool = True,
        consistency: Consistency = "gaussian",
        n_starts: int | None = None,
        max_iter: int = 100,
        random_state: int = 0,
    ) -> None:
        self.support_fraction = support_fraction
        self.algorithm = algorithm
        self.reweight = reweight
        self.consistency = consistency
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.random_state = random_state
        self._check_params()

    def _check_params(self) -> None:
        if self.support_fraction is not None and not 0 < self.support_fraction <= 1:
            raise ValueError(
                f"support_fraction is {self.support_fraction}; expected a share up to 1, or None"
            )
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm is {self.algorithm!r}; expected one of {get_args(Algorithm)}")
        if self.consistency not in get_args(Consistency):
            raise ValueError(f"consistency is {self.consistency!r}; expected one of {get_args(Consistency)}")
        limit = 1 + len(_SHAPES) if self.algorithm == "deterministic" else None
        if self.n_starts is not None and not 1 <= self.n_starts <= (limit or self.n_starts):
            raise ValueError(f"n_starts is {self.n_starts}; expected 1 to {limit or 'any number'}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter is {self.max_iter}; expected at least 1")

    def support_size(self, n: int, p: int) -> int:
        """The number h of rows in the support, for n rows of P numbers."""
        if self.support_fraction is None:
            return min(n, math.ceil((n + p + 1) / 2))
        return int(self.support_fraction * n)

    def fit(self, X: ArrayLike | torch.Tensor) -> Self:
        """Estimate mean and covariance.

        Args:
            X: Rows (n, P).

        Returns:
            The estimator.

        Raises:
            ValueError: NaN, a support of at most P rows, a constant column, or rows of which h lie in a
                hyperplane, so that their covariance has no inverse.
        """
        self._check_params()
        rows = as_rows(X).double()
        n, p = rows.shape
        h = self.support_size(n, p)
        if n <= p or h <= p:
            raise ValueError(
                f"{n} rows of {p} numbers give a support of {min(h, n)} rows, which has no invertible "
                f"covariance; give more than {p} rows (ten times as many is sensible) or fewer dimensions"
            )
        with _one_thread():
            centre = rows.median(dim=0).values
            spread = _spread(rows - centre)
            if (spread == 0).any():
                spread = torch.where(spread > 0, spread, rows.std(dim=0, correction=0))
            if (spread == 0).any():
                column = int((spread == 0).nonzero()[0])
                raise ValueError(f"column {column} of X is constant, so no covariance is invertible")
            z = (rows - centre) / spread
            if self.algorithm == "deterministic":
                support, location, covariance, log_determinant = self._deterministic(z, h)
            else:
                support, location, covariance, log_determinant = self._fast(z, h)
            if math.isinf(log_determinant):
                raise ValueError(
                    f"{h} of the {n} rows lie in a hyperplane, so that their covariance has no inverse; "
                    "remove duplicate rows or use fewer dimensions"
                )
            self._finish(z, support, location, covariance)
        self.logdet_ = log_determinant + 2 * float(spread.log().sum())
        # Back to the units of X.
        shift, scale = centre.cpu().numpy(), spread.cpu().numpy()
        for name in ("location_", "raw_location_"):
            setattr(self, name, shift + scale * getattr(self, name))
        for name in ("covariance_", "raw_covariance_"):
            setattr(self, name, scale[:, None] * getattr(self, name) * scale)
        return self

    def mahalanobis(self, X: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
        """Squared Mahalanobis distances of rows (n, P) from ``location_``: float64 (n,).

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: NaN, or rows of another length.
        """
        if not hasattr(self, "location_"):
            raise not_fitted("this MinCovDet is not fitted; call fit(X) first")
        rows = as_rows(X).double().cpu()
        if rows.shape[1] != len(self.location_):
            raise ValueError(f"X has {rows.shape[1]} columns, the estimate has {len(self.location_)}")
        white, _ = whitening(torch.from_numpy(self.covariance_))
        return _squared(rows, torch.from_numpy(self.location_), white).numpy()

    def _deterministic(
        self, z: torch.Tensor, h: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        location, covariance = _deterministic_starts(z, self.n_starts or 3)
        # Most starts meet after a few steps; two are followed to the end.
        if len(location) > 2:
            location, covariance = self._best(z, location, covariance, h, steps=2, keep=2)
        return self._converged(z, location, covariance, h)

    def _fast(self, z: torch.Tensor, h: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        n, p = z.shape
        total = self.n_starts or 500
        generator = np.random.default_rng(self.random_state)
        order = torch.from_numpy(generator.permutation(n))
        # At least 3 P rows, of which more than P are in the support.
        size = max(300, 3 * p)
        subsets = n // size if n > 500 else 1
        size = size if subsets > 1 else n
        count = total if subsets == 1 else max(10, total // subsets)
        locations, covariances = [], []
        for i in range(subsets):
            part = z[order[i * size : (i + 1) * size]]
            inner = math.ceil(h / n * size)
            keys = torch.from_numpy(generator.random((count, size)))
            chosen = keys.topk(inner, largest=False, sorted=False).indices
            first = [
                (part[rows].mean(dim=-2), empirical_covariance(part[rows]))
                for rows in chosen.split(_batch(inner, p))
            ]
            location, covariance = (torch.cat(parts) for parts in zip(*first, strict=True))
            location, covariance = self._best(part, location, covariance, inner, steps=2, keep=10)
            locations.append(location)
            covariances.append(covariance)
        location, covariance = torch.cat(locations), torch.cat(covariances)
        if subsets > 1:
            pool = z[order[: min(1500, n)]]
            inner = math.ceil(h / n * len(pool))
            location, covariance = self._best(pool, location, covariance, inner, steps=2, keep=10)
        return self._converged(z, location, covariance, h)

    def _best(
        self, z: torch.Tensor, location: torch.Tensor, covariance: torch.Tensor, h: int, steps: int, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The estimates with the smallest determinants after some C-steps."""
        locations, covariances = [], []
        for mean, scatter in _batches(z, location, covariance):
            previous = torch.full((len(mean),), torch.inf, dtype=z.dtype, device=z.device)
            for _ in range(min(steps, self.max_iter)):
                _, mean, scatter = c_step(z, mean, scatter, h)
                current = _factor(scatter)[1]
                if torch.equal(current, previous):
                    break
                previous = current
            locations.append(mean)
            covariances.append(scatter)
        location, covariance = torch.cat(locations), torch.cat(covariances)
        order = _factor(covariance)[1].argsort(stable=True)[:keep]
        return location[order], covariance[order]

    def _converged(
        self, z: torch.Tensor, location: torch.Tensor, covariance: torch.Tensor, h: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """The best fixed point of the C-steps: support (h,), mean, covariance and log-determinant."""
        best: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float] | None = None
        for mean, scatter in zip(location.split(1), covariance.split(1), strict=True):
            lowest = math.inf
            for _ in range(self.max_iter):
                support, mean, scatter = c_step(z, mean, scatter, h)
                current = float(_factor(scatter)[1])
                if current >= lowest - 1e-12 * abs(lowest):
                    break
                lowest = current
            if best is None or current < best[3]:
                best = support[0], mean[0], scatter[0], current
        assert best is not None
        return best

    def _finish(
        self, z: torch.Tensor, support: torch.Tensor, location: torch.Tensor, covariance: torch.Tensor
    ) -> None:
        """Consistency correction and reweighting."""
        n, p = z.shape
        inside = torch.zeros(n, dtype=torch.bool, device=z.device)
        inside[support] = True
        self.raw_location_ = location.cpu().numpy()
        self.raw_covariance_ = covariance.cpu().numpy()
        self.raw_support_ = inside.cpu().numpy()
        distances = _squared(z, location, whitening(covariance)[0])
        if self.consistency == "gaussian":
            factor = _gaussian_factor(p, len(support) / n)
        else:
            factor = float(distances.quantile(0.5)) / _chi2_quantile(p, 0.5)
        covariance = covariance * factor
        if self.reweight:
            inside = distances / factor < _chi2_quantile(p, _KEPT)
            location, covariance = z[inside].mean(dim=0), empirical_covariance(z[inside])
            if self.consistency == "gaussian":
                covariance = covariance * _gaussian_factor(p, _KEPT)
        self.location_ = location.cpu().numpy()
        self.covariance_ = covariance.cpu().numpy()
        self.support_ = inside.cpu().numpy()


def _squared(rows: torch.Tensor, location: torch.Tensor, white: torch.Tensor) -> torch.Tensor:
    return ((rows - location) @ white).square().sum(dim=-1)


def _batch(n: int, p: int) -> int:
    return max(1, _BATCH // (n * p))


def _batches(
    z: torch.Tensor, location: torch.Tensor, covariance: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = _batch(*z.shape)
    return zip(location.split(size), covariance.split(size), strict=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
