"""Equations and identities of SI-HG (si_hg.md, section 5) against methods written on their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.training import minimax
from robustkit.training.problems import bilinear, quadratic, toy_adversarial, weak_minty

NUMBERS = st.floats(-10, 10)


def draws(n: int, seed: int = 0) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(n))


def test_extrapolation_and_decay_by_hand() -> None:
    """On arrays and on tensors."""
    new, old = np.array([3.0, -1.0]), np.array([1.0, 1.0])
    np.testing.assert_allclose(minimax.extrapolated(new, old, 0.5), [4.0, -2.0])
    torch.testing.assert_close(
        minimax.extrapolated(torch.from_numpy(new), torch.from_numpy(old), 1.0),
        torch.tensor([5.0, -3.0], dtype=torch.float64),
    )
    np.testing.assert_allclose(minimax.decayed(new, 0.5, 1.0), [2.0, -2 / 3])


@given(m=NUMBERS, g=NUMBERS, beta=st.floats(0.1, 0.99), eta=st.floats(0, 2))
def test_5_8_the_average_form_is_quasi_hyperbolic_momentum(
    m: float, g: float, beta: float, eta: float
) -> None:
    new, direction = minimax.quasi_hyperbolic(np.array([m]), np.array([g]), beta, eta)
    np.testing.assert_allclose(new, beta * m + (1 - beta) * g, atol=1e-12)
    np.testing.assert_allclose(direction, (1 - eta / beta) * new + eta / beta * g, atol=1e-9)


def test_5_1_r1_is_spdhg_to_1e_12() -> None:
    """With tau s L^2 = 0.5, 200 steps, every iterate; SPDHG's dual step is n times ours."""
    problem = bilinear()
    n, largest = len(problem.delta), problem.norms().max()
    step = np.sqrt(0.5) / largest
    ours = minimax.si_hg_table(problem.mean(), step, step, 1.0, draws(n))
    # SPDHG on the matrices A_i / n, whose sum is the mean.
    other = minimax.spdhg(
        problem.couplings / n, problem.theta, problem.delta, step, np.full(n, n * step), 1.0, draws(n)
    )
    for (theta, delta), (x, y) in islice(zip(ours, other, strict=False), 200):
        np.testing.assert_allclose(theta, x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(delta, y, rtol=0, atol=1e-12)


def test_5_1_another_extrapolation_is_another_method() -> None:
    problem = bilinear()
    first, second = (
        next(islice(minimax.si_hg_table(problem.mean(), 0.1, 0.1, eta, draws(10)), 20, None))[0]
        for eta in (1.0, 0.5)
    )
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("problem", [quadratic(), weak_minty(-0.1), toy_adversarial().whole()])
def test_5_2_r2_without_extrapolation_is_alternating_gda(problem: minimax.Saddle) -> None:
    ours = minimax.si_hg_full(problem, 0.1, 0.2, eta=0.0)
    other = minimax.alternating_gda(problem, 0.1, 0.2)
    for (theta, delta), (x, y) in islice(zip(ours, other, strict=False), 50):
        np.testing.assert_array_equal(theta, x)
        np.testing.assert_array_equal(delta, y)


def test_5_3_r2_on_a_bilinear_problem_is_chambolle_pock_with_dual_extrapolation() -> None:
    """Chambolle and Pock: x' = x - tau A^T y_bar, y' = y + s A x', y_bar' = 2 y' - y."""
    problem = bilinear()
    matrix = problem.couplings.reshape(50, 20)
    step = 0.9 / problem.norm()
    x, y = problem.theta, problem.delta.ravel()
    y_bar = y
    for theta, delta in islice(minimax.si_hg_full(problem.sum(), step, step, eta=1.0), 100):
        x = x - step * matrix.T @ y_bar
        new = y + step * matrix @ x
        y, y_bar = new, 2 * new - y
        np.testing.assert_allclose(theta, x, atol=1e-12)
        np.testing.assert_allclose(delta.ravel(), y, atol=1e-12)


def test_5_4_r2_is_apd_with_the_players_exchanged() -> None:
    """APD ascends first, with the extrapolated gradient of its maximizer, then descends at the new point.

    Exchanged: its maximizer is our theta, with the sign of the objective turned.
    """
    problem = toy_adversarial().whole()
    tau, s, eta = 0.3, 0.2, 0.7

    def coupling(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of Phi(x, y) = -f(y, x): x is delta (descends), y is theta (ascends)."""
        return -problem.dual(y, x), -problem.primal(y, x)

    x, y = problem.delta, problem.theta
    before = coupling(x, y)[1]
    for theta, delta in islice(minimax.si_hg_full(problem, tau, s, eta), 40):
        slope = coupling(x, y)[1]
        y = (y + tau * ((1 + eta) * slope - eta * before)) / (1 + tau * problem.decay)
        before = slope
        x = problem.project(x - s * coupling(x, y)[0])
        np.testing.assert_allclose(theta, y, atol=1e-12)
        np.testing.assert_allclose(delta, x, atol=1e-12)


def test_5_5_r2_with_delta_at_the_old_theta_and_extrapolated_is_ogda() -> None:
    problem, h = quadratic(), 0.15
    z, before = np.array([1.0, 1.0]), np.array([2.9, -2.0])
    for theta, delta in islice(minimax.ogda(problem, h, h), 30):
        operator = np.array([-0.1 * z[0] + 3 * z[1], -(3 * z[0] - z[1])])
        z = z - h * (2 * operator - before)
        before = operator
        np.testing.assert_allclose([theta[0], delta[0]], z, rtol=1e-10)


def test_5_7_without_table_and_extrapolation_it_is_alternating_sgd() -> None:
    """The average form with beta -> 0 keeps the last gradient alone: delta's step, then theta's."""
    problem = replace(toy_adversarial(), decay=0.0)
    ours = minimax.si_hg_average(problem, 0.1, 0.5, eta=0.0, beta=0.0, blocks=draws(50))
    other = minimax.alternating_sgda(problem, 0.1, 0.5, lambda k: 1.0, draws(50))
    # The average form moves theta at the start of the next step.
    next(ours)
    thetas = [theta for theta, _ in islice(ours, 30)]
    for theta, (x, _) in zip(thetas, other, strict=False):
        np.testing.assert_allclose(theta, x, atol=1e-13)


def test_the_toy_gradients_are_those_of_the_loss() -> None:
    """Against autograd, for the sum of all blocks and for one block."""
    problem = toy_adversarial()
    rng = np.random.default_rng(1)
    points, plane = rng.standard_normal((50, 8)), rng.standard_normal(8)
    signs = np.sign(points @ plane + 0.3 * rng.standard_normal(50))
    theta = torch.tensor(problem.theta, requires_grad=True)
    delta = torch.tensor(problem.delta, requires_grad=True)
    hidden = torch.tanh((torch.tensor(points) + delta) @ theta[:48].view(6, 8).T)
    loss = torch.nn.functional.softplus(-torch.tensor(signs) * (hidden @ theta[48:]))
    by_theta, by_delta = torch.autograd.grad(loss.sum(), (theta, delta), retain_graph=True)
    every = slice(None)
    np.testing.assert_allclose(
        problem.primal(every, problem.theta, problem.delta).sum(0), by_theta, atol=1e-12
    )
    np.testing.assert_allclose(problem.dual(every, problem.theta, problem.delta), by_delta, atol=1e-12)
    (one,) = torch.autograd.grad(loss[7], theta)
    seven = slice(7, 8)
    np.testing.assert_allclose(problem.primal(seven, problem.theta, problem.delta[seven])[0], one, atol=1e-12)
    assert np.abs(problem.delta).max() <= 0.15


def test_the_residual_is_the_distance_from_stationarity_by_hand() -> None:
    """At (1, 1): gradient (-0.1 + 3, 3 - 1); with a box of 1 around 0 ascent is blocked and counts as 0."""
    problem = quadratic()
    assert problem.residual((np.ones(1), np.ones(1))) == pytest.approx(2.9**2 + 2**2)
    boxed = minimax.Saddle(
        problem.theta, problem.delta, problem.primal, problem.dual, decay=0.1,
        project=lambda y: np.clip(y, -1, 1), dual_weight=0.5,
    )  # fmt: skip
    assert boxed.residual((np.ones(1), np.ones(1))) == pytest.approx(3.0**2)
    assert boxed.residual((np.ones(1), np.zeros(1))) == pytest.approx(0.0 + 0.5 * 1)


def test_steps() -> None:
    assert minimax.obeys_step_rule(0.5, 0.5, 1.9) and not minimax.obeys_step_rule(0.5, 0.5, 2.0)
    assert minimax.conservative_steps(1.0, 3.0, 2.0) == (1 / 8, 1 / 10)


def test_a_run_that_overflows_ends_with_infinity() -> None:
    found = minimax.residuals(minimax.gda(weak_minty(-0.3), 0.9, 0.9), weak_minty(-0.3), 5000, every=10)
    assert found[-1][1] == np.inf and found[-1][0] < 5000
    assert all(np.isfinite(value) for _, value in found[:-1])
    assert [k for k, _ in found[:3]] == [10, 20, 30]
