"""Kernel principal component analysis: exact, randomized, Nystrom, random Fourier features.

All solvers end in the same form. A map sends a row x to numbers k(x): its kernel values at m landmarks, or
its own (linear kernel), or random Fourier features. A coordinate is then a product: ``(k(x) - mean) @ dual``.
Fitting finds ``mean`` (q,) and ``dual`` (q, P), whose columns add up to zero for kernel values, so that
centring in feature space costs nothing at use.

Kernel values are computed in the dtype of the rows (in float64 by the exact solver), chunk by chunk;
eigenproblems of the small matrices always in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .base import Estimator, as_rows, not_fitted

__all__ = ["KernelPCA", "sample_rows"]

Kernel = Literal["rbf", "linear", "cosine", "poly"]
Solver = Literal["auto", "exact", "randomized", "nystrom", "rff"]

# Numbers in a chunk: 4 MB of float32, which stay in the processor's cache.
_CHUNK = 1 << 20


def sample_rows(n: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of at most ``limit`` of n rows, drawn uniformly without replacement.

    Args:
        n: How many rows there are.
        limit: How many to draw; None, or at least n, takes all in their order.
        seed: Seed of the draw.
    """
    if limit is None or n <= limit:
        return np.arange(n)
    return np.random.default_rng(seed).choice(n, limit, replace=False)


class KernelPCA(Estimator):
    r"""Coordinates along the directions in which a kernel's feature space varies most.

    With the kernel matrix K of n rows and its centred form :math:`\tilde K` (eigenvalues :math:`\lambda_i`,
    unit eigenvectors :math:`a_i`), row j has the coordinates :math:`\sqrt{\lambda_i}\, a_{ij}` and a new x
    has :math:`\tilde k(x)^T a_i / \sqrt{\lambda_i}` (Schoelkopf, Smola and Mueller, 1998). Coordinates are
    not divided by their standard deviation. The sign of a component is arbitrary.

    | solver | computes | operations | agreement with exact |
    | --- | --- | --- | --- |
    | ``exact`` | dense eigenproblem in float64 | n^2 d + 4/3 n^3 | |
    | ``exact``, linear or cosine | d x d eigenproblem in float64 | n d^2 + d^3 | the same |
    | ``randomized`` | seven subspace iterations | n^2 d + 16 n^2 P | close for separated eigenvalues |
    | ``nystrom`` | projection on m random rows | n m d + m^3 | score rank correlation above .999 |
    | ``rff`` | m random Fourier features (``rbf`` only) | n m (d + m) + m^3 | rough |

    Memory of ``exact`` and ``randomized`` is n^2 numbers; of ``nystrom`` m^2, and 4 P for each row; of the
    others d^2 or m^2, and P for each row.

    Args:
        n_components: Number P of components; None takes all that vary.
        kernel: ``"rbf"`` is exp(-gamma \|a - b\|^2), ``"cosine"`` the linear kernel of unit rows, ``"poly"``
            (gamma a^T b + coef0)^degree.
        gamma: None is 1 / d, ``"scale"`` 1 / (d Var(X)), ``"median"`` one over the median squared distance.
        solver: ``"auto"`` takes ``exact`` for linear and cosine kernels and for at most ``n_landmarks`` rows,
            ``nystrom`` otherwise.
        n_landmarks: Number m of random rows, or of random Fourier features.
        max_samples: At most so many rows, drawn uniformly, are fitted; None takes all.
        degree: Exponent of ``"poly"``.
        coef0: Constant of ``"poly"``.
        random_state: Seed of every draw.

    Attributes:
        n_components_: How many components there are: P or, with a warning, fewer.
        eigenvalues_: float64 (P,), eigenvalues of the centred kernel matrix, descending.
        explained_variance_: Variances of the coordinates over the fitted rows.
        gamma_: The number in use.
        n_features_in_: Dimension d of a row.

    Raises:
        ValueError: A parameter is out of range, or ``"rff"`` is asked for another kernel than ``"rbf"``.

    Example:
        >>> coordinates = KernelPCA(n_components=50).fit(train).transform(test)
    """

    n_components_: int
    eigenvalues_: NDArray[np.float64]
    explained_variance_: NDArray[np.float64]
    gamma_: float
    n_features_in_: int

    def __init__(
        self,
        n_components: int | None = 100,
        kernel: Kernel = "rbf",
        gamma: float | Literal["scale", "median"] | None = None,
        solver: Solver = "auto",
        n_landmarks: int = 1000,
        max_samples: int | None = 8000,
        degree: float = 3,
        coef0: float = 1,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.gamma = gamma
        self.solver = solver
        self.n_landmarks = n_landmarks
        self.max_samples = max_samples
        self.degree = degree
        self.coef0 = coef0
        self.random_state = random_state
        self._check_params()

    def _check_params(self) -> None:
        for name in ("n_components", "n_landmarks", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"kernel is {self.kernel!r}; expected one of {get_args(Kernel)}")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver is {self.solver!r}; expected one of {get_args(Solver)}")
        if self.solver == "rff" and self.kernel != "rbf":
            raise ValueError(f"solver 'rff' approximates the rbf kernel only, not {self.kernel!r}")
        if isinstance(self.gamma, str) and self.gamma not in ("scale", "median"):
            raise ValueError(f"gamma is {self.gamma!r}; expected 'scale', 'median', a number or None")
        if isinstance(self.gamma, int | float) and not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}; expected a positive number")

    def fit(self, X: ArrayLike | torch.Tensor) -> Self:
        """Find the components.

        Args:
            X: Rows (n, d). A tensor is worked on where it is, on a GPU too.

        Returns:
            The estimator.

        Raises:
            ValueError: NaN, fewer than two rows, or rows that are all the same.
        """
        self._fit(as_rows(X))
        return self

    def fit_transform(self, X: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
        """`fit`, then `transform` of the same rows, float64 (n, P), at little more than the cost of `fit`."""
        rows = as_rows(X)
        coordinates = self._fit(rows)
        if len(coordinates) < len(rows):
            return self.transform(rows)
        return np.asarray(coordinates.double().cpu())

    def _fit(self, rows: torch.Tensor) -> torch.Tensor:
        """Find the components; returns the coordinates of the rows in the sample."""
        self._check_params()
        if len(rows) < 2:
            raise ValueError("X has one row; components need at least two")
        if self.max_samples is not None and len(rows) > self.max_samples:
            rows = rows[torch.from_numpy(sample_rows(len(rows), self.max_samples, self.random_state))]
        n, d = rows.shape
        self.n_features_in_ = d
        # Inner products lose fewer digits around the mean; these two kernels, once centred, do not see it.
        shifted = self.kernel in ("rbf", "linear")
        self._shift = rows.double().mean(dim=0) if shifted else rows.new_zeros(d, dtype=torch.float64)
        self.gamma_ = self._bandwidth(rows)
        solver = self._chosen_solver(n, d)
        self._dtype = torch.float64 if solver in ("exact", "linear") else rows.dtype
        self._landmarks: torch.Tensor | None = None
        self._phases: torch.Tensor | None = None
        if solver in ("exact", "randomized"):
            self._landmarks = rows
            values, dual, coordinates = self._fit_dense(rows, exact=solver == "exact")
        else:
            values, dual, coordinates = self._fit_projected(rows, solver)
        wanted = n if self.n_components is None else self.n_components
        if len(values) < wanted and self.n_components is not None:
            warnings.warn(
                f"n_components is {self.n_components}, but {n} rows of {d} numbers vary in {len(values)} "
                f"directions only; {len(values)} components are used",
                stacklevel=2,
            )
        self._dual = dual.to(self._dtype)
        self.n_components_ = len(values)
        self.eigenvalues_ = values.cpu().numpy()
        self.explained_variance_ = self.eigenvalues_ / n
        return coordinates

    def transform(self, X: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
        """Coordinates of rows.

        Args:
            X: Rows (n, d).

        Returns:
            float64 (n, P).

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: NaN, or rows of another length.
        """
        if not hasattr(self, "_dual"):
            raise not_fitted("this KernelPCA is not fitted; call fit(X) first")
        rows = as_rows(X)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {rows.shape[1]} columns, the components {self.n_features_in_}")
        parts = [(self._map(part) - self._mean) @ self._dual for part in self._chunks(rows)]
        return torch.cat(parts).double().cpu().numpy()

    # What is saved with a detector --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `fit` found, as tensors and plain values for `restore`."""
        found = {"shift": self._shift, "mean": self._mean, "dual": self._dual}
        found |= {"landmarks": self._landmarks} if self._landmarks is not None else {}
        found |= {"phases": self._phases} if self._phases is not None else {}
        return {**found, "eigenvalues": torch.from_numpy(self.eigenvalues_), "gamma": self.gamma_} | {
            "variances": torch.from_numpy(self.explained_variance_)
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self._shift, self._mean, self._dual = state["shift"], state["mean"], state["dual"]
        self._landmarks, self._phases = state.get("landmarks"), state.get("phases")
        self._dtype = self._dual.dtype
        self.gamma_ = state["gamma"]
        self.eigenvalues_ = state["eigenvalues"].numpy()
        self.explained_variance_ = state["variances"].numpy()
        self.n_components_, self.n_features_in_ = len(self.eigenvalues_), len(self._shift)

    # The map k(x) -------------------------------------------------------------------------------------------

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        """The numbers (n, q) that rows (n, d) are sent to, in the working dtype."""
        return self._kernel_or_features(self._place(rows))

    def _place(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows around the shift, or of unit length, in the working dtype on the fitted rows' device."""
        rows = rows.to(self._shift.device, self._dtype)
        if self.kernel == "cosine":
            return torch.nn.functional.normalize(rows, dim=1)
        return rows - self._shift.to(self._dtype) if self.kernel in ("rbf", "linear") else rows

    def _kernel_or_features(self, rows: torch.Tensor) -> torch.Tensor:
        if self._landmarks is None:
            return rows
        if self._phases is not None:
            # Random Fourier features (Rahimi and Recht, 2007).
            waves = rows @ self._landmarks.T + self._phases
            return waves.cos_().mul_((2 / len(self._phases)) ** 0.5)
        landmarks = self._place(self._landmarks)
        if self.kernel == "rbf":
            outer = landmarks.square().sum(dim=1).mul_(-self.gamma_)
            values = torch.addmm(outer, rows, landmarks.T, alpha=2 * self.gamma_)
            values.sub_(rows.square().sum(dim=1, keepdim=True).mul_(self.gamma_))
            # exp(.) - 1 has more digits where the kernel is near 1, and centring takes the constant out.
            return values.clamp_(max=0).expm1_()
        values = rows @ landmarks.T
        if self.kernel == "poly":
            return values.mul_(self.gamma_).add_(self.coef0).pow_(self.degree)
        return values

    def _chunks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        width = rows.shape[1] if self._landmarks is None else max(self._landmarks.shape)
        parts: tuple[torch.Tensor, ...] = rows.split(max(1, _CHUNK // width))
        return parts

    # Solvers ------------------------------------------------------------------------------------------------

    def _chosen_solver(self, n: int, d: int) -> str:
        solver: str = self.solver
        if self.kernel in ("linear", "cosine") and solver in ("auto", "exact"):
            return "linear" if d <= n else "exact"
        if solver == "auto":
            return "exact" if n <= self.n_landmarks else "nystrom"
        return solver

    def _bandwidth(self, rows: torch.Tensor) -> float:
        d = rows.shape[1]
        if isinstance(self.gamma, int | float):
            return float(self.gamma)
        if self.gamma is None:
            return 1 / d
        if self.gamma == "scale":
            spread = d * float(rows.double().var(correction=0))
        else:
            some = rows[torch.from_numpy(sample_rows(len(rows), 1000, self.random_state))]
            spread = float(torch.pdist(some.double()).square().median())
        if spread == 0:
            raise ValueError(f"gamma {self.gamma!r} needs rows that differ; these are all the same")
        return 1 / spread

    def _fit_dense(self, rows: torch.Tensor, exact: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Eigenpairs of the centred kernel matrix: values (P,), dual (n, P) and coordinates (n, P)."""
        centred = torch.cat([self._map(part) for part in self._chunks(rows)])
        self._mean = centred.mean(dim=0)
        centred.sub_(self._mean).sub_(self._mean[:, None]).add_(self._mean.mean())
        values, vectors = self._dense(centred) if exact else self._subspace(centred)
        values, vectors = self._leading(values, vectors, len(rows))
        return values, vectors / values.sqrt(), vectors * values.sqrt()

    def _dense(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(matrix)
        if matrix.device.type != "cpu" or self.n_components is None or self.n_components > n // 3:
            values, vectors = torch.linalg.eigh(matrix)
            return values, vectors
        # LAPACK can leave out most eigenvectors; torch does not offer it.
        from scipy.linalg import eigh

        leading = (n - self.n_components, n - 1)
        found = eigh(matrix.numpy(), subset_by_index=leading, overwrite_a=True, check_finite=False)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def _subspace(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest eigenpairs of a positive semi-definite matrix (Halko, Martinsson and Tropp, 2011)."""
        n = len(matrix)
        width = n if self.n_components is None else min(n, self.n_components + 20)
        generator = np.random.default_rng(self.random_state)
        basis = torch.from_numpy(generator.standard_normal((n, width))).to(matrix)
        for _ in range(7):
            basis = torch.linalg.qr(matrix @ basis).Q
        values, inner = torch.linalg.eigh((basis.T @ (matrix @ basis)).double())
        return values, basis.double() @ inner

    def _fit_projected(
        self, rows: torch.Tensor, solver: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Principal components of explicit features: values (P,), dual (q, P) and coordinates (n, P)."""
        n, d = rows.shape
        generator = np.random.default_rng(self.random_state)
        project: torch.Tensor | None = None
        if solver == "rff":
            waves = generator.standard_normal((self.n_landmarks, d)) * (2 * self.gamma_) ** 0.5
            self._landmarks = torch.from_numpy(waves).to(rows)
            self._phases = torch.from_numpy(generator.uniform(0, 2 * np.pi, self.n_landmarks)).to(rows)
        elif solver == "nystrom":
            chosen = generator.choice(n, min(self.n_landmarks, n), replace=False)
            self._landmarks = rows[torch.from_numpy(chosen)]
            project = self._landmark_directions(self._landmarks)
        # Moments around the first row's image, so that a large mean costs no digits.
        origin = self._map(rows[:1])
        features = origin if project is None else project[:1]
        total = torch.zeros(features.shape[1], dtype=torch.float64, device=rows.device)
        square = torch.zeros((len(total), len(total)), dtype=torch.float64, device=rows.device)
        mean = torch.zeros(origin.shape[1], dtype=torch.float64, device=rows.device)
        kept = []
        for part in self._chunks(rows):
            values = self._map(part).sub_(origin)
            mean += values.sum(dim=0)
            if project is not None:
                values = values @ project
                kept.append(values)
            features = values.double()
            total += features.sum(dim=0)
            square += features.T @ features
        self._mean = (mean / n + origin[0]).to(self._dtype)
        found, vectors = torch.linalg.eigh(square - torch.outer(total, total) / n)
        found, dual = self._leading(found, vectors, n)
        multipliers = dual.to(self._dtype)
        if project is None:
            parts = [(self._map(part) - self._mean) @ multipliers for part in self._chunks(rows)]
            return found, dual, torch.cat(parts)
        coordinates = (torch.cat(kept) - (total / n).to(self._dtype)) @ multipliers
        return found, project.double() @ dual, coordinates

    def _landmark_directions(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Orthonormal directions of the landmarks' span: (m, r) multipliers of centred kernel values.

        Only the leading r = 4 P are kept: the wanted components hardly lean on the rest, whose kernel values
        are mostly rounding.
        """
        dtype, self._dtype = self._dtype, torch.float64
        kernel = self._map(landmarks)
        self._dtype = dtype
        mean = kernel.mean(dim=0)
        centred = kernel.sub_(mean).sub_(mean[:, None]).add_(mean.mean())
        values, vectors = torch.linalg.eigh(centred)
        keep = values > values[-1] * torch.finfo(dtype).eps
        if self.n_components is not None:
            keep[: -4 * self.n_components] = False
        directions: torch.Tensor = vectors[:, keep] / values[keep].sqrt()
        return directions.to(dtype)

    def _leading(
        self, values: torch.Tensor, vectors: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The wanted eigenpairs, largest first, without those that are zero up to rounding."""
        limit = values[-1] * n * torch.finfo(values.dtype).eps
        if not values[-1] > 0:
            raise ValueError("the rows are all the same, up to rounding; there is nothing to tell apart")
        order = torch.arange(len(values) - 1, -1, -1, device=values.device)[: self.n_components]
        order = order[values[order] > limit]
        return values[order].double(), vectors[:, order]
