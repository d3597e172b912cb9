"""Small minimax problems on which methods can be told apart, in numpy and float64.

Each is a known difficulty: rotation (`bilinear`), a nonconvex minimizer (`quadratic`), nonconvex-nonconcave
with and without a way to converge (`weak_minty`, `forsaken`), and a finite sum that looks like adversarial
training (`toy_adversarial`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .minimax import FiniteSum, Saddle

__all__ = ["Bilinear", "bilinear", "forsaken", "quadratic", "toy_adversarial", "weak_minty"]

Array = NDArray[np.float64]
EPSILON = 0.15
"""Radius of the perturbations of `toy_adversarial`, l-infinity."""


@dataclass(frozen=True)
class Bilinear:
    """``sum_i <A_i theta, delta_i>``, or its mean.

    Attributes:
        couplings: The matrices ``A_i``, ``(n, rows, columns)``.
        theta: Start ``(columns,)``.
        delta: Start ``(n, rows)``.
    """

    couplings: Array
    theta: Array
    delta: Array

    def norms(self) -> Array:
        """Spectral norm of each ``A_i``, ``(n,)``."""
        norms: Array = np.linalg.norm(self.couplings, ord=2, axis=(1, 2))
        return norms

    def norm(self) -> float:
        """Spectral norm of all matrices stacked."""
        return float(np.linalg.norm(self.couplings.reshape(-1, self.couplings.shape[2]), ord=2))

    def sum(self) -> Saddle:
        """The sum as a whole."""
        return Saddle(
            theta=self.theta,
            delta=self.delta,
            primal=lambda theta, delta: np.einsum("nrc,nr->c", self.couplings, delta),
            dual=lambda theta, delta: self.couplings @ theta,
        )

    def mean(self) -> FiniteSum:
        """The mean, block by block."""
        return FiniteSum(
            theta=self.theta,
            delta=self.delta,
            primal=lambda blocks, theta, delta: np.einsum("nrc,nr->nc", self.couplings[blocks], delta),
            dual=lambda blocks, theta, delta: self.couplings[blocks] @ theta,
        )


def bilinear(n: int = 10, rows: int = 5, columns: int = 20, seed: int = 0) -> Bilinear:
    """Random couplings ``N(0, 1 / columns)`` and standard normal starts; the only saddle has value 0."""
    rng = np.random.default_rng(seed)
    couplings = rng.standard_normal((n, rows, columns)) / np.sqrt(columns)
    return Bilinear(couplings, rng.standard_normal(columns), rng.standard_normal((n, rows)))


def quadratic() -> Saddle:
    """``-0.05 x^2 + 3 x y - 0.5 y^2`` from (1, 1): nonconvex in x, strongly concave in y."""
    return Saddle(
        theta=np.ones(1),
        delta=np.ones(1),
        primal=lambda x, y: -0.1 * x + 3 * y,
        dual=lambda x, y: 3 * x - y,
    )


def weak_minty(b: float) -> Saddle:
    """``x y + b/2 (x^2 - y^2)`` from (1, 1): for b < 0 neither convex nor concave.

    Zero is then a weak Minty solution with the constant ``b / (1 + b^2)``.
    """
    return Saddle(
        theta=np.ones(1),
        delta=np.ones(1),
        primal=lambda x, y: y + b * x,
        dual=lambda x, y: x - b * y,
    )


def forsaken() -> Saddle:
    """``x (y - 0.45) + phi(x) - phi(y)`` with ``phi' = z/2 - 2 z^3 + z^5`` in a box: methods cycle.

    The problem is that of `Hsieh, Mertikopoulos, Cevher 2021 <https://arxiv.org/abs/2006.09065>`_.
    """

    def slope(z: Array) -> Array:
        return z / 2 - 2 * z**3 + z**5

    def box(z: Array) -> Array:
        return np.clip(z, -1.5, 1.5)

    return Saddle(
        theta=np.ones(1),
        delta=np.ones(1),
        primal=lambda x, y: y - 0.45 + slope(x),
        dual=lambda x, y: x - slope(y),
        constrain=box,
        project=box,
    )


def toy_adversarial(n: int = 50, width: int = 6, features: int = 8, seed: int = 1) -> FiniteSum:
    """Adversarial training of ``v . tanh(W x)`` with the logistic loss on n points with noisy linear labels.

    Theta is W ``(width, features)`` over v as one more column, flat; weight decay 0.01; every point moves in
    an l-infinity ball of radius `EPSILON`.
    """
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, features))
    plane = rng.standard_normal(features)
    signs = np.sign(points @ plane + 0.3 * rng.standard_normal(n))
    theta = 0.5 * rng.standard_normal(width * features + width)
    delta = rng.uniform(-EPSILON, EPSILON, (n, features))

    def parts(theta: Array) -> tuple[Array, Array]:
        return theta[: width * features].reshape(width, features), theta[width * features :]

    def pull(blocks: slice, theta: Array, delta: Array) -> tuple[Array, Array, Array]:
        """Moved points, hidden units, and the slope of the loss in the output."""
        weights, head = parts(theta)
        moved = points[blocks] + delta
        hidden = np.tanh(moved @ weights.T)
        margin = signs[blocks] * (hidden @ head)
        return moved, hidden, -signs[blocks] / (1 + np.exp(margin))

    def primal(blocks: slice, theta: Array, delta: Array) -> Array:
        moved, hidden, slope = pull(blocks, theta, delta)
        inner = slope[:, None] * (1 - hidden**2) * parts(theta)[1]
        by_weights = inner[:, :, None] * moved[:, None, :]
        return np.concatenate([by_weights.reshape(len(moved), -1), slope[:, None] * hidden], axis=1)

    def dual(blocks: slice, theta: Array, delta: Array) -> Array:
        _, hidden, slope = pull(blocks, theta, delta)
        weights, head = parts(theta)
        found: Array = (slope[:, None] * (1 - hidden**2) * head) @ weights
        return found

    return FiniteSum(
        theta, delta, primal, dual, decay=0.01, project=lambda delta: np.clip(delta, -EPSILON, EPSILON)
    )
