"""SI-HG and the methods beside it on minimax problems in float64, one equation after the other.

The problem is ``min over theta, max over delta of r(theta) + (1/n) * sum_i f_i(theta, delta_i)``, where
``r = decay / 2 * |theta|^2`` and every ``delta_i`` stays in a set that one can project on.

"Hybrid" is descent on theta with ascent on delta. "Semi-implicit": the step of delta sees the new theta; the
step of theta cannot see the new delta and extrapolates its gradient instead.

Source: a reconstruction of SI-HG from the published description of `Kim and Seo 2022
<https://arxiv.org/abs/2202.10523>`_, whose algorithm listing was not available; it generalises SPDHG
(`Chambolle, Ehrhardt, Richtárik, Schönlieb 2018 <https://arxiv.org/abs/1706.04957>`_). Nothing here is the
authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "FiniteSum",
    "Saddle",
    "alternating_gda",
    "alternating_sgda",
    "conservative_steps",
    "decayed",
    "extragradient",
    "extrapolated",
    "gda",
    "obeys_step_rule",
    "ogda",
    "pgd_sgd",
    "quasi_hyperbolic",
    "residuals",
    "si_hg_average",
    "si_hg_full",
    "si_hg_table",
    "spdhg",
]

Array = NDArray[np.float64]
Point = tuple[Array, Array]
Rate = Callable[[int], float]
A = TypeVar("A", Array, Tensor)


# Equations --------------------------------------------------------------------------------------------------


def extrapolated(new: A, old: A, eta: float) -> A:
    """``(1 + eta) * new - eta * old``: what stands for the gradient that theta's step cannot see."""
    return new + eta * (new - old)


def decayed(theta: A, tau: float, decay: float) -> A:
    """The proximal map of weight decay, ``theta / (1 + tau * decay)``."""
    return theta / (1 + tau * decay)


def quasi_hyperbolic(average: A, gradient: A, beta: float, eta: float) -> tuple[A, A]:
    """The table of R1 replaced by an exponential average, which is quasi-hyperbolic momentum.

    Args:
        average: Average ``m`` of earlier gradients.
        gradient: New gradient ``g``.
        beta: Weight of the old average in the new one, in (0, 1).
        eta: Extrapolation.

    Returns:
        The new average ``m' = m + (1 - beta) (g - m)`` and the direction ``m' + eta (g - m)``, which equals
        ``(1 - eta / beta) m' + (eta / beta) g``.
    """
    new = average + (1 - beta) * (gradient - average)
    return new, new + eta * (gradient - average)


def obeys_step_rule(tau: float, s: float, coupling: float) -> bool:
    """The step rule of SPDHG in the scaling of a mean: ``tau * s * L^2 < 1``, whatever the number of blocks.

    Args:
        tau: Step of theta.
        s: Step of delta.
        coupling: Largest norm of a block's coupling: ``max_i |A_i|``, or the Lipschitz constant of one
            player's gradient in the other.
    """
    return tau * s * coupling**2 < 1


def conservative_steps(theta: float, coupling: float, delta: float) -> tuple[float, float]:
    """Steps that suit convex-concave smooth problems (reconstructed).

    Args:
        theta: Lipschitz constant of the gradient by theta, in theta.
        coupling: Lipschitz constant of one player's gradient in the other.
        delta: Lipschitz constant of the gradient by delta, in delta.

    Returns:
        ``tau = 1 / (2 (theta + coupling))`` and ``s = 1 / (2 (delta + coupling))``.
    """
    return 1 / (2 * (theta + coupling)), 1 / (2 * (delta + coupling))


# Problems ---------------------------------------------------------------------------------------------------


def _anywhere(point: Array) -> Array:
    return point


@dataclass(frozen=True)
class Saddle:
    """A minimax problem with gradients of the whole.

    Attributes:
        theta: Where theta starts.
        delta: Where delta starts.
        primal: Gradient by theta at (theta, delta).
        dual: Gradient by delta, in the scaling in which delta steps.
        decay: Weight decay of theta.
        constrain: Projection of theta.
        project: Projection of delta.
        dual_weight: Weight of delta's part in the residual, ``1/n`` for a mean over n blocks.
    """

    theta: Array
    delta: Array
    primal: Callable[[Array, Array], Array]
    dual: Callable[[Array, Array], Array]
    decay: float = 0.0
    constrain: Callable[[Array], Array] = _anywhere
    project: Callable[[Array], Array] = _anywhere
    dual_weight: float = 1.0

    def descend(self, theta: Array, gradient: Array, tau: float) -> Array:
        """Theta after a proximal step against a gradient."""
        return self.constrain(decayed(theta - tau * gradient, tau, self.decay))

    def ascend(self, delta: Array, gradient: Array, s: float) -> Array:
        """Delta after a projected step along a gradient."""
        return self.project(delta + s * gradient)

    def residual(self, point: Point) -> float:
        """Squared distance from stationarity, with steps of 1: 0 exactly at first-order stationary points."""
        theta, delta = point
        gradient = self.primal(theta, delta) + self.decay * theta
        primal = theta - self.constrain(theta - gradient)
        dual = delta - self.project(delta + self.dual(theta, delta))
        return float(np.sum(primal**2) + self.dual_weight * np.sum(dual**2))


@dataclass(frozen=True)
class FiniteSum:
    """A mean over n blocks, whose gradients come one block or several at a time.

    Attributes:
        theta: Where theta starts, of any shape.
        delta: Where the perturbations start, ``(n, ...)``.
        primal: Gradients by theta of some blocks: (slice of blocks, theta, their deltas) to
            ``(blocks, ...)``.
        dual: Gradients by their own deltas of some blocks, ``(blocks, ...)``.
        decay: Weight decay of theta.
        project: Projection of deltas.
    """

    theta: Array
    delta: Array
    primal: Callable[[slice, Array, Array], Array]
    dual: Callable[[slice, Array, Array], Array]
    decay: float = 0.0
    project: Callable[[Array], Array] = _anywhere

    def whole(self) -> Saddle:
        """The problem with gradients over all blocks; deltas step by their own block's gradient."""
        every = slice(None)
        return Saddle(
            theta=self.theta,
            delta=self.delta,
            primal=lambda theta, delta: self.primal(every, theta, delta).mean(axis=0),
            dual=lambda theta, delta: self.dual(every, theta, delta),
            decay=self.decay,
            project=self.project,
            dual_weight=1 / len(self.delta),
        )


def residuals(
    iterates: Iterator[Point], problem: Saddle, steps: int, every: int = 1
) -> list[tuple[int, float]]:
    """Numbers of iterations and residuals there; a run that overflows ends with an infinite one."""
    found = []
    with np.errstate(over="ignore", invalid="ignore"):
        for k, point in zip(range(1, steps + 1), iterates, strict=False):
            if k % every:
                continue
            value = problem.residual(point)
            found.append((k, value if np.isfinite(value) else np.inf))
            if not np.isfinite(value):
                break
    return found


# SI-HG ------------------------------------------------------------------------------------------------------


def si_hg_table(
    problem: FiniteSum, tau: float, s: float | Array, eta: float, blocks: Iterator[int]
) -> Iterator[Point]:
    """SI-HG R1: one random block per step and a table of every block's last gradient; generalises SPDHG.

    ``z`` is the table's mean. A step moves theta against ``z_bar``, then the block's delta at the new theta,
    then takes the block's new gradient G into the table: with ``D = G - Z_i``, ``z += D / n`` and
    ``z_bar = z + eta * D``.

    Args:
        problem: The sum.
        tau: Step of theta.
        s: Step of the deltas, one number or ``(n,)``.
        eta: Extrapolation; 1 is the extrapolation 1 of SPDHG.
        blocks: Which block is next, drawn uniformly.

    Yields:
        Theta and all deltas after each step, at a cost of n block gradients once and 2 a step. The array of
        deltas is the same one every time.
    """
    theta, delta = problem.theta, problem.delta.copy()
    n = len(delta)
    steps = np.broadcast_to(np.asarray(s, dtype=np.float64), n)
    table = problem.primal(slice(None), theta, delta).copy()
    z = table.mean(axis=0)
    z_bar = z
    for i in blocks:
        own = slice(i, i + 1)
        theta = decayed(theta - tau * z_bar, tau, problem.decay)
        delta[own] = problem.project(delta[own] + steps[i] * problem.dual(own, theta, delta[own]))
        gradient = problem.primal(own, theta, delta[own])[0]
        change = gradient - table[i]
        table[i] = gradient
        z = z + change / n
        z_bar = z + eta * change
        yield theta, delta


def si_hg_full(problem: Saddle, tau: float, s: float, eta: float) -> Iterator[Point]:
    """SI-HG R2: the whole sum at once.

    ``theta' = prox(theta - tau ((1 + eta) g - eta g_before))``, then
    ``delta' = P(delta + s grad(theta', delta))``; the first step does not extrapolate.
    With eta 0 it is alternating gradient descent and ascent.

    Yields:
        Both players after each step, at a cost of 2 gradients.
    """
    theta, delta = problem.theta, problem.delta
    before = problem.primal(theta, delta)
    while True:
        gradient = problem.primal(theta, delta)
        theta = problem.descend(theta, extrapolated(gradient, before, eta), tau)
        delta = problem.ascend(delta, problem.dual(theta, delta), s)
        before = gradient
        yield theta, delta


def si_hg_average(
    problem: FiniteSum, tau: float, s: float, eta: float, beta: float, blocks: Iterator[int]
) -> Iterator[Point]:
    """The average form of R3: R1 whose table is an exponential average of gradients; no table to store.

    Yields:
        Theta and all deltas (one and the same array) after each step, at a cost of 2 block gradients.
    """
    theta, delta = problem.theta, problem.delta.copy()
    average = np.zeros_like(theta)
    direction = average
    for i in blocks:
        own = slice(i, i + 1)
        theta = decayed(theta - tau * direction, tau, problem.decay)
        delta[own] = problem.project(delta[own] + s * problem.dual(own, theta, delta[own]))
        gradient = problem.primal(own, theta, delta[own])[0]
        average, direction = quasi_hyperbolic(average, gradient, beta, eta)
        yield theta, delta


def spdhg(
    couplings: Array, theta: Array, delta: Array, tau: float, sigma: Array, eta: float, blocks: Iterator[int]
) -> Iterator[Point]:
    """SPDHG for ``min max sum_i <A_i theta, delta_i>``, written from its own paper; R1 must equal it.

    Args:
        couplings: The matrices ``A_i``, ``(n, rows, columns)``.
        theta: Start ``(columns,)``.
        delta: Start ``(n, rows)``.
        tau: Primal step.
        sigma: Dual steps ``(n,)``; converges for ``tau * sigma_i * |A_i|^2 < 1 / n``.
        eta: Extrapolation.
        blocks: Which block is next, drawn uniformly.

    Yields:
        Both players after each step (one and the same array of deltas).
    """
    delta = delta.copy()
    n = len(delta)
    z = np.einsum("nrc,nr->c", couplings, delta)
    z_bar = z
    for i in blocks:
        theta = theta - tau * z_bar
        new = delta[i] + sigma[i] * (couplings[i] @ theta)
        change = couplings[i].T @ (new - delta[i])
        delta[i] = new
        z = z + change
        z_bar = z + eta * n * change
        yield theta, delta


# Others -----------------------------------------------------------------------------------------------------


def gda(problem: Saddle, tau: float, s: float) -> Iterator[Point]:
    """Gradient descent and ascent at the same time: one gradient of both players a step."""
    theta, delta = problem.theta, problem.delta
    while True:
        primal, dual = problem.primal(theta, delta), problem.dual(theta, delta)
        theta, delta = problem.descend(theta, primal, tau), problem.ascend(delta, dual, s)
        yield theta, delta


def alternating_gda(problem: Saddle, tau: float, s: float) -> Iterator[Point]:
    """Gradient descent, then ascent at the new theta: 2 gradients a step."""
    theta, delta = problem.theta, problem.delta
    while True:
        theta = problem.descend(theta, problem.primal(theta, delta), tau)
        delta = problem.ascend(delta, problem.dual(theta, delta), s)
        yield theta, delta


def extragradient(problem: Saddle, tau: float, s: float, update: float = 1.0) -> Iterator[Point]:
    """A trial step, then a step from the old point with the gradients found there: 2 gradients a step.

    Args:
        problem: The problem.
        tau: Step of theta.
        s: Step of delta.
        update: The second step as a share of the first: 1 is extragradient, 1/2 is EG+ (`Böhm 2022
            <https://arxiv.org/abs/2201.12247>`_).
    """
    theta, delta = problem.theta, problem.delta
    while True:
        primal, dual = problem.primal(theta, delta), problem.dual(theta, delta)
        trial = problem.descend(theta, primal, tau), problem.ascend(delta, dual, s)
        primal, dual = problem.primal(*trial), problem.dual(*trial)
        theta = problem.descend(theta, primal, update * tau)
        delta = problem.ascend(delta, dual, update * s)
        yield theta, delta


def ogda(problem: Saddle, tau: float, s: float, eta: float = 1.0) -> Iterator[Point]:
    """Optimistic gradient descent and ascent: both players extrapolate, one gradient a step."""
    theta, delta = problem.theta, problem.delta
    primal_before, dual_before = problem.primal(theta, delta), problem.dual(theta, delta)
    while True:
        primal, dual = problem.primal(theta, delta), problem.dual(theta, delta)
        theta = problem.descend(theta, extrapolated(primal, primal_before, eta), tau)
        delta = problem.ascend(delta, extrapolated(dual, dual_before, eta), s)
        primal_before, dual_before = primal, dual
        yield theta, delta


def alternating_sgda(
    problem: FiniteSum, tau: float, s: float, rate: Rate, blocks: Iterator[int]
) -> Iterator[Point]:
    """One random block per step: its delta ascends, theta descends along its gradient alone.

    Args:
        problem: The sum.
        tau: First step of theta.
        s: First step of the deltas.
        rate: Factor on both steps at step k, from 0.
        blocks: Which block is next.

    Yields:
        Theta and all deltas (one and the same array) after each step, at a cost of 2 block gradients.
    """
    theta, delta = problem.theta, problem.delta.copy()
    for k, i in zip(count(), blocks, strict=False):
        own, factor = slice(i, i + 1), rate(k)
        delta[own] = problem.project(delta[own] + factor * s * problem.dual(own, theta, delta[own]))
        gradient = problem.primal(own, theta, delta[own])[0]
        theta = decayed(theta - factor * tau * gradient, factor * tau, problem.decay)
        yield theta, delta


def pgd_sgd(
    problem: FiniteSum,
    tau: float,
    step: float,
    steps: int,
    start: Callable[[], Array],
    rate: Rate,
    blocks: Iterator[int],
) -> Iterator[Point]:
    """Adversarial training as Madry et al.: signed ascent from a new start, then a step of theta.

    Args:
        problem: The sum.
        tau: First step of theta.
        step: Size of a signed step of delta.
        steps: Signed steps.
        start: Draws a delta, the shape of one block's.
        rate: Factor on theta's step at step k, from 0.
        blocks: Which block is next.

    Yields:
        Theta and all deltas (one and the same array) after each step, at a cost of steps + 1 block gradients.
    """
    theta, delta = problem.theta, problem.delta.copy()
    for k, i in zip(count(), blocks, strict=False):
        own, factor = slice(i, i + 1), rate(k)
        found = start()[None]
        for _ in range(steps):
            found = problem.project(found + step * np.sign(problem.dual(own, theta, found)))
        delta[own] = found
        gradient = problem.primal(own, theta, found)[0]
        theta = decayed(theta - factor * tau * gradient, factor * tau, problem.decay)
        yield theta, delta
