"""Which methods run on which problem, with which steps, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robustkit.training.minimax import (
    FiniteSum,
    Point,
    Saddle,
    alternating_gda,
    alternating_sgda,
    extragradient,
    gda,
    ogda,
    pgd_sgd,
    residuals,
    si_hg_average,
    si_hg_full,
    si_hg_table,
)
from robustkit.training.problems import EPSILON, bilinear, forsaken, quadratic, toy_adversarial, weak_minty

__all__ = ["SECTIONS", "Curve", "Run", "Section", "measure"]


@dataclass(frozen=True)
class Run:
    """One method with its steps.

    Attributes:
        name: What tables call it.
        make: Iterates for a seed.
        cost: Gradients of the whole sum in one iteration; a block's gradient is 1/n of one.
        filling: Gradients of the whole sum before the first iteration.
    """

    name: str
    make: Callable[[int], Iterator[Point]]
    cost: float
    filling: float = 0.0


@dataclass(frozen=True)
class Section:
    """One problem and the methods run on it.

    Attributes:
        key: Short name.
        title: What it shows.
        problem: The residual is this problem's.
        runs: The methods.
        columns: Iterations (or gradients, see ``by_gradients``) that the table shows.
        seeds: Draws of blocks; residuals are combined as geometric means.
        every: Iterations between residuals, for methods that see one block a step.
        by_gradients: The columns count gradients of one block and show the best residual until then, and the
            table ends with the last one.
    """

    key: str
    title: str
    problem: Saddle
    runs: Sequence[Run]
    columns: Sequence[int]
    seeds: Sequence[int] = (0,)
    every: int = 1
    by_gradients: bool = False


@dataclass(frozen=True)
class Curve:
    """What came of a run.

    Attributes:
        name: Of the run.
        passes: Gradients of the whole sum at each residual.
        values: Residuals (the best so far in a section by gradients), geometric means over seeds.
        row: The numbers of the table.
    """

    name: str
    passes: list[float]
    values: list[float]
    row: list[float]


def _blocks(n: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(n))


def _full(problem: Saddle, h: float, h_other: float | None = None) -> list[Run]:
    """The full-batch methods; ``h`` for those that are stable with long steps."""
    short = h if h_other is None else h_other
    return [
        Run("GDA", lambda _: gda(problem, short, short), 1),
        Run("alternating GDA", lambda _: alternating_gda(problem, h, h), 2),
        Run("extragradient", lambda _: extragradient(problem, short, short), 2),
        Run("EG+", lambda _: extragradient(problem, short, short, update=0.5), 2),
        Run("OGDA", lambda _: ogda(problem, short, short), 1),
        Run("SI-HG R2, η=1", lambda _: si_hg_full(problem, h, h, eta=1.0), 2),
    ]


def _stochastic_bilinear() -> Section:
    """Steps of R1 with tau s L^2 = 0.25; plain stochastic steps as the specification's."""
    problem = bilinear()
    mean, n = problem.mean(), len(problem.delta)
    step = 0.5 / float(problem.norms().max())

    def table(eta: float) -> Run:
        return Run(
            f"SI-HG R1, η={eta:g}",
            lambda seed: si_hg_table(mean, step, step, eta, _blocks(n, seed)),
            2 / n,
            1,
        )

    def plain(h: float) -> Run:
        return Run(
            f"alternating SGDA, {h:g}/√k",
            lambda seed: alternating_sgda(mean, h, h, lambda k: (k + 1) ** -0.5, _blocks(n, seed)),
            2 / n,
        )

    return Section(
        "b",
        "Bilinear, one random block a step (mean-scaled, τsL² = 0.25)",
        mean.whole(),
        [*(table(eta) for eta in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)), plain(0.02), plain(0.1)],
        (100, 1000, 8000),
        every=20,
    )


def _toy() -> Section:
    problem = toy_adversarial()
    whole, n, features = problem.whole(), len(problem.delta), problem.delta.shape[1]

    def table(tau: float, eta: float) -> Run:
        return Run(
            f"SI-HG R1, τ={tau:g}, η={eta:g}",
            lambda seed: si_hg_table(problem, tau, 0.5, eta, _blocks(n, seed)),
            2 / n,
            1,
        )

    def constant(tau: float) -> Run:
        return Run(
            f"alternating SGDA, {tau:g}",
            lambda seed: alternating_sgda(problem, tau, 0.5, lambda k: 1.0, _blocks(n, seed)),
            2 / n,
        )

    def falling(k: int) -> float:
        return float((1 + k / n) ** -0.5)

    return Section(
        "e",
        "Finite sum like adversarial training (n = 50)",
        whole,
        [
            *(table(tau, eta) for tau in (0.1, 0.03, 0.3) for eta in (0.5, 0.0, 1.0)),
            Run(
                "SI-HG average form, τ=0.1, η=0.5",
                lambda seed: si_hg_average(problem, 0.1, 0.5, 0.5, 0.98, _blocks(n, seed)),
                2 / n,
            ),
            constant(0.1),
            constant(0.03),
            Run(
                "alternating SGDA, 1/√(1+k/n) from 0.3",
                lambda seed: alternating_sgda(problem, 0.3, 0.5, falling, _blocks(n, seed)),
                2 / n,
            ),
            Run(
                "PGD-10 + SGD, 1/√(1+k/n) from 0.3",
                lambda seed: _pgd(problem, features, falling, seed),
                11 / n,
            ),
            Run("SI-HG R2, τ=1, η=1", lambda _: si_hg_full(whole, 1.0, 0.5, 1.0), 2),
            Run("SI-HG R2, τ=1, η=0", lambda _: si_hg_full(whole, 1.0, 0.5, 0.0), 2),
            Run("SI-HG R2, τ=0.3, η=1", lambda _: si_hg_full(whole, 0.3, 0.5, 1.0), 2),
            Run("simultaneous GDA, τ=1", lambda _: gda(whole, 1.0, 0.5), 1),
        ],
        (1000, 4000, 10000, 20000, 40000),
        seeds=range(5),
        every=10,
        by_gradients=True,
    )  # fmt: skip


def _pgd(problem: FiniteSum, features: int, rate: Callable[[int], float], seed: int) -> Iterator[Point]:
    rng = np.random.default_rng([seed, 1])
    n = len(problem.delta)
    return pgd_sgd(
        problem,
        0.3,
        EPSILON / 4,
        10,
        lambda: rng.uniform(-EPSILON, EPSILON, features),
        rate,
        _blocks(n, seed),
    )


def _by_steps(key: str, title: str, problem: Saddle, h: float) -> Section:
    """All full-batch methods with one step size."""
    return Section(key, title, problem, _full(problem, h), (100, 1000))


def _sections() -> list[Section]:
    rotation = bilinear()
    whole, norm = rotation.sum(), rotation.norm()
    return [
        Section(
            "a",
            "Bilinear, full batch (h·L = 0.9; 0.5 for GDA, EG, EG+, OGDA)",
            whole,
            _full(whole, 0.9 / norm, 0.5 / norm),
            (100, 500, 1000, 2000),
        ),
        _stochastic_bilinear(),
        *(
            _by_steps(f"c, h={h}", f"Nonconvex / strongly concave, h = {h}", quadratic(), h)
            for h in (0.25, 0.15, 0.05)
        ),
        *(
            _by_steps(f"d, h={h}", f"Weak Minty, b = −0.1, h = {h}", weak_minty(-0.1), h)
            for h in (0.3, 0.6, 0.9)
        ),
        _by_steps("d, b=-0.3", "Negative control: b = −0.3, h = 0.6", weak_minty(-0.3), 0.6),
        _by_steps("d, forsaken", "Negative control: Forsaken, h = 0.1", forsaken(), 0.1),
        _toy(),
    ]  # fmt: skip


SECTIONS = _sections()


def measure(section: Section, run: Run) -> Curve:
    """Runs a method with every seed that matters to it."""
    stochastic = run.cost < 1
    every = section.every if stochastic else 1
    n = len(section.problem.delta)
    budget = max(section.columns)
    steps = int((budget / n - run.filling) / run.cost) if section.by_gradients else budget
    runs = [
        residuals(run.make(seed), section.problem, steps, every)
        for seed in (section.seeds if stochastic else section.seeds[:1])
    ]
    # A run that overflows is shorter; the mean ends where the first one does.
    together = list(zip(*runs, strict=False))
    iterations = [entries[0][0] for entries in together]
    with np.errstate(divide="ignore"):
        logs = np.log([[value for _, value in entries] for entries in together])
    if section.by_gradients:
        logs = np.minimum.accumulate(logs, axis=0)
    passes = [run.filling + run.cost * k for k in iterations]
    return Curve(run.name, passes, np.exp(logs.mean(axis=1)).tolist(), _row(section, run, runs))


def _row(section: Section, run: Run, runs: Sequence[Sequence[tuple[int, float]]]) -> list[float]:
    n = len(section.problem.delta)

    def cells(found: Sequence[tuple[int, float]]) -> list[float]:
        if not section.by_gradients:
            return [dict(found).get(column, np.inf) for column in section.columns]
        spent = [(n * (run.filling + run.cost * k), value) for k, value in found]
        best = [min(value for gradients, value in spent if gradients <= column) for column in section.columns]
        return [*best, found[-1][1]]

    with np.errstate(divide="ignore"):
        row: list[float] = np.exp(np.mean(np.log([cells(found) for found in runs]), axis=0)).tolist()
    return row
