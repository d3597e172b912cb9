"""Convergence behaviours with the reference values of si_hg.md, section 8 (a to e), within a factor of 10."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from robustkit.training.minimax import (
    Saddle,
    alternating_gda,
    alternating_sgda,
    extragradient,
    gda,
    ogda,
    residuals,
    si_hg_full,
    si_hg_table,
)
from robustkit.training.problems import bilinear, forsaken, quadratic, toy_adversarial, weak_minty

TINY = 1e-20


def draws(n: int, seed: int = 0) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(n))


def assert_reference(value: float, reference: float) -> None:
    """Within a factor of 10; what is below 1e-20 counts as zero."""
    ratio = max(value, TINY) / max(reference, TINY)
    assert 0.1 < ratio < 10, (value, reference)


def methods(problem: Saddle, h: float) -> dict[str, list[tuple[int, float]]]:
    runs = {
        "GDA": gda(problem, h, h),
        "AltGDA": alternating_gda(problem, h, h),
        "EG": extragradient(problem, h, h),
        "EG+": extragradient(problem, h, h, update=0.5),
        "OGDA": ogda(problem, h, h),
        "SI-HG": si_hg_full(problem, h, h, eta=1.0),
    }
    return {name: residuals(run, problem, 1000) for name, run in runs.items()}


def at(run: list[tuple[int, float]], k: int) -> float:
    return dict(run).get(k, np.inf)


@pytest.mark.parametrize(
    ("method", "step", "k", "reference"),
    [
        ("GDA", 0.5, 100, 3e10),
        ("GDA", 0.5, 500, 2e49),
        ("AltGDA", 0.9, 1000, 97),
        ("EG", 0.5, 100, 4e-1),
        ("EG", 0.5, 500, 2e-3),
        ("EG", 0.5, 1000, 1e-5),
        ("OGDA", 0.5, 500, 2e-3),
        ("OGDA", 0.5, 1000, 1e-5),
        ("SI-HG", 0.9, 100, 1e-2),
        ("SI-HG", 0.9, 500, 2e-8),
        ("SI-HG", 0.9, 1000, 3e-15),
    ],
)
def test_8a_bilinear_full_batch(method: str, step: float, k: int, reference: float) -> None:
    problem = bilinear()
    h = step / problem.norm()
    assert_reference(at(methods(problem.sum(), h)[method], k), reference)


def test_8b_one_random_block_a_step() -> None:
    """Sum-scaled SPDHG: sigma_i = .99 / |A_i|, tau = .99 min (1/n) / |A_i|."""
    problem = bilinear()
    norms = problem.norms()

    def run(eta: float, steps: int) -> list[tuple[int, float]]:
        iterates = si_hg_table(problem.mean(), 0.99 / norms.max(), 0.99 / norms, eta, draws(10))
        return residuals(iterates, problem.sum(), steps, every=100)

    found = run(1.0, 5000)
    assert_reference(at(found, 100), 0.56)
    assert_reference(at(found, 1000), 1.6e-6)
    assert at(found, 5000) < TINY
    assert_reference(at(run(0.0, 1000), 1000), 4e10)


def test_8b_plain_stochastic_steps_do_not_converge() -> None:
    problem = bilinear()
    run = alternating_sgda(problem.mean(), 0.1, 0.1, lambda k: (k + 1) ** -0.5, draws(10))
    assert residuals(run, problem.sum(), 20000, every=20000)[0][1] > 10


@pytest.mark.parametrize("c", [0.98, 1.3, 2.0])
def test_8b_the_step_rule_is_enough(c: float) -> None:
    """Tau s L^2 < 1 is enough, not needed: 1.3 and 2 converge as well."""
    problem = bilinear()
    step = np.sqrt(c) / problem.norms().max()
    run = si_hg_table(problem.mean(), step, step, 1.0, draws(10))
    value = residuals(run, problem.mean().whole(), 1000, every=1000)[0][1]
    assert value < 1e-5
    if c == 0.98:
        assert_reference(value, 3.9e-7)


def test_8b_steps_far_above_the_rule_diverge() -> None:
    problem = bilinear()
    step = np.sqrt(4.0) / problem.norms().max()
    run = si_hg_table(problem.mean(), step, step, 1.0, draws(10))
    assert residuals(run, problem.mean().whole(), 1000, every=1000)[0][1] > 1e20


def test_8b_more_extrapolation_converges_faster_on_a_rotation() -> None:
    problem = bilinear()
    step = 0.5 / problem.norms().max()
    values = []
    for eta in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5):
        run = si_hg_table(problem.mean(), step, step, eta, draws(10))
        values.append(residuals(run, problem.mean().whole(), 8000, every=8000)[0][1])
    assert values == sorted(values, reverse=True)
    assert values[0] > 1e10
    for value, reference in zip(values[1:5], (6e-4, 2e-7, 8e-10, 2e-12), strict=True):
        assert_reference(value, reference)


@pytest.mark.parametrize(
    ("h", "k", "references", "diverging"),
    [
        (0.25, 100, {"AltGDA": 3e-11, "EG": 7e-34, "EG+": 4e-26, "SI-HG": 3e-70}, {"GDA", "OGDA"}),
        (
            0.15,
            100,
            {"AltGDA": 4e-6, "EG": 3e-15, "EG+": 1e-9, "OGDA": 1e-21, "SI-HG": 2e-17},
            {"GDA"},
        ),
        (
            0.05,
            1000,
            {"GDA": 2e-9, "AltGDA": 1e-19, "EG": 5e-29, "EG+": 1e-16, "OGDA": 2e-29, "SI-HG": 5e-30},
            set[str](),
        ),
    ],
)
def test_8c_nonconvex_strongly_concave(
    h: float, k: int, references: dict[str, float], diverging: set[str]
) -> None:
    found = methods(quadratic(), h)
    assert references.keys() | diverging == found.keys()
    for name, reference in references.items():
        assert_reference(at(found[name], k), reference)
    for name in diverging:
        assert at(found[name], 1000) > 1e20


@pytest.mark.parametrize(
    ("h", "k", "references", "diverging"),
    [
        (0.3, 1000, {"EG": 2e-6, "EG+": 6e-15, "OGDA": 1e-12, "SI-HG": 1e-12}, {"GDA", "AltGDA"}),
        (0.6, 1000, {"EG": 3e-24, "EG+": 6e-77, "SI-HG": 2e-111}, {"GDA", "AltGDA", "OGDA"}),
        (0.9, 100, {"EG+": 4e-16, "SI-HG": 1e-32}, {"GDA", "AltGDA", "EG", "OGDA"}),
    ],
)
def test_8d_weak_minty(h: float, k: int, references: dict[str, float], diverging: set[str]) -> None:
    found = methods(weak_minty(-0.1), h)
    assert references.keys() | diverging == found.keys()
    for name, reference in references.items():
        assert_reference(at(found[name], k), reference)
    for name in diverging:
        assert at(found[name], 1000) > 1e20


@pytest.mark.parametrize("h", [0.3, 0.6, 0.9])
def test_8d_negative_control_beyond_weak_minty_every_method_diverges(h: float) -> None:
    for name, run in methods(weak_minty(-0.3), h).items():
        assert at(run, 1000) > 1e10, name


@pytest.mark.parametrize("h", [0.05, 0.1])
def test_8d_negative_control_forsaken_every_method_cycles(h: float) -> None:
    for name, run in methods(forsaken(), h).items():
        assert 0.15 < min(value for _, value in run) < 0.18, name


def test_8e_a_table_separates_from_plain_stochastic_steps() -> None:
    """Two seeds, 20,000 sample gradients; geometric means."""
    problem = toy_adversarial()
    whole = problem.whole()

    def best(make: object, steps: int) -> float:
        runs = [residuals(make(seed), whole, steps, every=10) for seed in (0, 1)]  # type: ignore[operator]
        return float(np.exp(np.mean([np.log(min(value for _, value in run)) for run in runs])))

    table = best(lambda seed: si_hg_table(problem, 0.1, 0.5, 0.5, draws(50, seed)), (20000 - 50) // 2)
    plain = best(lambda seed: alternating_sgda(problem, 0.1, 0.5, lambda k: 1.0, draws(50, seed)), 10000)
    assert_reference(table, 1.2e-5)
    assert_reference(plain, 4.6e-3)
    assert table < plain / 50


@pytest.mark.parametrize(("eta", "reference", "last"), [(1.0, 3.7e-4, 5.4e-3), (0.0, 1.1e-5, 1.1e-5)])
def test_8e_full_batch(eta: float, reference: float, last: float) -> None:
    """40,000 sample gradients at 2 n a step. Extrapolation does not help where rotation is weak."""
    whole = toy_adversarial().whole()
    run = residuals(si_hg_full(whole, 1.0, 0.5, eta), whole, 400)
    assert min(value for _, value in run) == pytest.approx(reference, rel=0.05)
    assert run[-1][1] == pytest.approx(last, rel=0.05)


def test_8e_simultaneous_gda_is_as_good_at_equal_gradients() -> None:
    whole = toy_adversarial().whole()
    run = residuals(gda(whole, 1.0, 0.5), whole, 800)
    assert min(value for _, value in run) == pytest.approx(8.6e-7, rel=0.05)
