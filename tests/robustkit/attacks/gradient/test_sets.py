"""Perturbation sets: projections against independent solvers, steps and gaps by their definitions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from robustkit.attacks.gradient import L1, L2, EmbeddingBall, LInf

BALLS = (LInf, L2, L1)
BOXES = (None, (0.0, 1.0))


def problem(seed: int, n: int = 3, d: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs in [0, 1], perturbations, gradients, and a radius for each sample; some numbers are special."""
    chance = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, d, generator=chance, dtype=torch.float64)  # noqa: E731
    inputs = draw().mul(0.4).add(0.5).clamp(0, 1)  # some lie on the edge of the box
    gradient = draw()
    gradient[:, 0] = 0
    return inputs, draw(), gradient, torch.rand(n, generator=chance, dtype=torch.float64) + 0.05


def bounds(inputs: Tensor, box: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    far = np.full(len(inputs), np.inf)
    return (-far, far) if box is None else (box[0] - inputs.numpy(), box[1] - inputs.numpy())


def solve(ball: type, epsilon: float, low: np.ndarray, high: np.ndarray, goal: Any, slope: Any) -> np.ndarray:
    """Minimizes a function over ball and box with scipy; l1 by splitting into positive and negative parts."""
    d = len(low)
    if ball is L1:
        limits = [(0, min(h, 100)) for h in high] + [(0, min(-lo, 100)) for lo in low]
        found = minimize(
            lambda z: goal(z[:d] - z[d:]),
            np.zeros(2 * d),
            jac=lambda z: np.concatenate([slope(z[:d] - z[d:]), -slope(z[:d] - z[d:])]),
            bounds=limits,
            constraints=[
                {"type": "ineq", "fun": lambda z: epsilon - z.sum(), "jac": lambda z: -np.ones(2 * d)}
            ],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )  # fmt: skip
        return np.asarray(found.x[:d] - found.x[d:])
    limits = list(zip(low, high, strict=True))
    constraints = []
    if ball is LInf:
        limits = [(max(lo, -epsilon), min(h, epsilon)) for lo, h in limits]
    else:
        constraints = [{"type": "ineq", "fun": lambda z: epsilon**2 - z @ z, "jac": lambda z: -2 * z}]
    found = minimize(
        goal, np.zeros(d), jac=slope, bounds=limits, constraints=constraints, method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )  # fmt: skip
    return np.asarray(found.x)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("ball", BALLS)
def test_projection_is_scipys_nearest_point_of_ball_and_box(ball: Any, box: Any) -> None:
    for seed in range(4):
        inputs, delta, _, epsilon = problem(seed)
        found = ball(epsilon, box).project(delta, inputs)
        for i in range(len(inputs)):
            point = delta[i].numpy()
            low, high = bounds(inputs[i], box)
            want = solve(
                ball, float(epsilon[i]), low, high,
                lambda z, p=point: 0.5 * ((z - p) ** 2).sum(), lambda z, p=point: z - p,
            )  # fmt: skip
            np.testing.assert_allclose(found[i].numpy(), want, atol=3e-6)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("ball", BALLS)
def test_linear_max_reaches_scipys_maximum_over_ball_and_box(ball: Any, box: Any) -> None:
    for seed in range(4):
        inputs, _, gradient, epsilon = problem(seed)
        found = ball(epsilon, box).linear_max(gradient, inputs)
        for i in range(len(inputs)):
            g = gradient[i].numpy()
            low, high = bounds(inputs[i], box)
            if ball is L2:
                want = g @ solve(ball, float(epsilon[i]), low, high, lambda z, g=g: -g @ z, lambda z, g=g: -g)
            else:
                want = -linear_program(ball, float(epsilon[i]), low, high, g)
            assert float(found[i].numpy() @ g) == pytest.approx(want, abs=1e-7)


def linear_program(ball: type, epsilon: float, low: np.ndarray, high: np.ndarray, g: np.ndarray) -> float:
    """Min <-g, d> over l-inf or l1 ball and box."""
    d = len(g)
    if ball is LInf:
        limits = list(zip(np.maximum(low, -epsilon), np.minimum(high, epsilon), strict=True))
        return float(linprog(-g, bounds=limits).fun)
    limits = [(0, h) for h in high] + [(0, -lo) for lo in low]
    found = linprog(np.concatenate([-g, g]), A_ub=np.ones((1, 2 * d)), b_ub=[epsilon], bounds=limits)
    return float(found.fun)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Tensor, Tensor, Tensor]:
    n, d = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    numbers = st.floats(-3, 3, allow_nan=False, allow_subnormal=False)
    table = lambda one: torch.tensor(draw(st.lists(st.lists(one, min_size=d, max_size=d), min_size=n, max_size=n)), dtype=torch.float64)  # noqa: E501, E731  # fmt: skip
    ball = draw(st.sampled_from(BALLS))
    epsilon = torch.tensor(draw(st.lists(st.floats(0, 2), min_size=n, max_size=n)), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ball(epsilon, draw(st.sampled_from(BOXES)))
    return made, table(st.floats(0, 1)), table(numbers), table(numbers)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_projections_lie_inside_stay_where_they_are_and_shrink_distances(case: Any) -> None:
    ball, inputs, delta, other = case
    found, second = ball.project(delta, inputs), ball.project(other, inputs)
    assert (ball.norm(found) <= ball.epsilon + 1e-12).all()
    if ball.box is not None:
        assert ((inputs + found >= -1e-12) & (inputs + found <= 1 + 1e-12)).all()
    torch.testing.assert_close(ball.project(found, inputs), found, atol=1e-10, rtol=0)
    assert ((found - second).norm(dim=1) <= (delta - other).norm(dim=1) + 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_point_of_the_set_beats_linear_max_and_the_gap_is_what_is_missing(case: Any) -> None:
    ball, inputs, delta, gradient = case
    best = ball.linear_max(gradient, inputs)
    inside = ball.project(delta, inputs)
    value = lambda point: (point * gradient).sum(dim=1)  # noqa: E731
    assert (ball.norm(best) <= ball.epsilon + 1e-12).all()
    assert (value(best) >= value(inside) - 1e-9).all()
    gap = ball.fosc(inside, gradient, inputs)
    assert (gap >= 0).all()
    torch.testing.assert_close(gap, value(best) - value(inside), atol=1e-9, rtol=0)
    torch.testing.assert_close(ball.fosc(best, gradient, inputs), torch.zeros_like(gap), atol=1e-9, rtol=0)


def by_halving(vector: np.ndarray, low: np.ndarray, high: np.ndarray, epsilon: float, most: float) -> Any:
    """clip(t * vector) with the largest t up to ``most`` of a norm of at most epsilon, by halving."""
    clip = lambda t: np.clip(t * vector, low, high)  # noqa: E731
    if np.linalg.norm(clip(most)) <= epsilon:
        return clip(most)
    below, above = 0.0, most
    for _ in range(200):
        middle = (below + above) / 2
        below, above = (below, middle) if np.linalg.norm(clip(middle)) > epsilon else (middle, above)
    return clip(below)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Vectors over many orders of size, with equal numbers and zeros, and inputs at the edges of the box."""
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, d = draw(st.integers(1, 4)), draw(st.integers(1, 200))
    drawn = lambda: torch.rand(n, d, generator=chance, dtype=torch.float64)  # noqa: E731
    vector = (2 * drawn() - 1).sign() * 10 ** (-draw(st.sampled_from([0, 1, 8])) * drawn())
    vector = vector * (drawn() > draw(st.sampled_from([0, 0.5]))) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    inputs = ((drawn() - 0.5) * draw(st.sampled_from([0.5, 1.5, 20.0])) + 0.5).clamp(0, 1)
    return vector, inputs, draw(st.just(0.0) | st.floats(1e-6, 1.2)) * math.sqrt(d)


@settings(max_examples=150, deadline=None)
@given(crowded())
def test_l2_projection_meets_the_conditions_of_karush_kuhn_and_tucker(case: Any) -> None:
    """The nearest point p of v: v - p = l p + m, l > 0 only on the sphere, m outwards and only at the box."""
    vector, inputs, epsilon = case
    found = L2(epsilon).project(vector, inputs)
    low, high = -inputs, 1 - inputs
    for v, p, lo, hi in zip(vector.numpy(), found.numpy(), low.numpy(), high.numpy(), strict=True):
        norm = np.linalg.norm(p)
        assert norm <= epsilon * (1 + 1e-12) and (p >= lo).all() and (p <= hi).all()
        inner = (p > lo + 1e-14) & (p < hi - 1e-14) & (v != 0)
        at_rest = (v != 0) & ~inner & (p != 0)
        if norm < epsilon * (1 - 1e-10):  # the ball does not hold it: l = 0
            np.testing.assert_allclose(p[inner], v[inner], rtol=1e-12)
            assert (np.abs(p[at_rest]) <= np.abs(v[at_rest]) * (1 + 1e-12)).all()
        elif epsilon and inner.any():
            stretch = v[inner] / p[inner]  # 1 + l, the same for all that are free
            np.testing.assert_allclose(stretch, stretch.mean(), rtol=1e-9)
            assert stretch.min() >= 1 - 1e-9
            assert (v[at_rest] / p[at_rest] >= stretch.mean() * (1 - 1e-9)).all()
        want = by_halving(v, lo, hi, epsilon, 1.0)
        np.testing.assert_allclose(p, want, atol=1e-11 * max(1, epsilon))


@settings(max_examples=100, deadline=None)
@given(crowded())
def test_l2_linear_max_is_found_by_halving(case: Any) -> None:
    vector, inputs, epsilon = case
    found = L2(epsilon).linear_max(vector, inputs)
    for v, p, x in zip(vector.numpy(), found.numpy(), inputs.numpy(), strict=True):
        want = by_halving(v / max(np.abs(v).max(), 1e-300), -x, 1 - x, epsilon, 1e10)
        np.testing.assert_allclose(p, want, atol=1e-9)


@pytest.mark.parametrize("once", [False, True])
def test_l2_with_a_box_needs_few_newton_steps(once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with most pixels at an edge, numbers over ten orders of size, every radius: at most 40 steps.

    The bound: missing norm times slope falls at least fourfold with each step.
    """
    chance = torch.Generator().manual_seed(0)
    inputs = (4 * torch.rand(30, 784, generator=chance) - 1.5).clamp(0, 1)
    vector = torch.randn(30, 784, generator=chance).sign() * 10 ** (
        -10 * torch.rand(30, 784, generator=chance)
    )
    steps, real = [], torch.addcmul
    monkeypatch.setattr(torch, "addcmul", lambda *args, **more: steps.append(1) or real(*args, **more))
    ball = L2(torch.linspace(0.01, 25, 30))
    found = ball.project(10 * vector, inputs) if once else ball.linear_max(vector, inputs)
    assert 1 <= len(steps) <= 40
    assert (ball.norm(found) <= ball.epsilon * (1 + 1e-6)).all()


def test_points_inside_ball_and_box_stay_exactly_as_they_are() -> None:
    inputs = torch.rand(5, 3, 4, 4)
    delta = 0.01 * torch.randn(5, 3, 4, 4)
    boxed = (inputs + delta).clamp(0, 1) - inputs
    torch.testing.assert_close(L2(3.0).project(delta, inputs), boxed, rtol=0, atol=1e-7)
    one_outside = torch.cat([delta, torch.ones(1, 3, 4, 4)])
    both = L2(3.0).project(one_outside, torch.cat([inputs, torch.zeros(1, 3, 4, 4)]))
    torch.testing.assert_close(both[:5], boxed, rtol=0, atol=1e-7)
    torch.testing.assert_close(both[5], torch.full((3, 4, 4), 3 / 48**0.5))


@pytest.mark.parametrize("tiny", [1e-150, 1e-155, 1e-162, 1e-233, 0.0])
def test_a_vanishing_number_takes_nothing_from_the_others(tiny: float) -> None:
    inputs = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    gradient = torch.tensor([[2.0, -0.25, -tiny]], dtype=torch.float64)
    best = L2(1.5).linear_max(gradient, inputs)
    torch.testing.assert_close(best[:, :2], torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    assert float(L2(1.5).norm(best)) <= 1.5 + 1e-12
    wide = L2(1e3, box=(0.0, 255.0)).linear_max(gradient, 255 * inputs)
    torch.testing.assert_close(wide[:, :2], torch.tensor([[255.0, -255.0]], dtype=torch.float64))


def test_gaps_are_the_specified_formulas() -> None:
    """si_hg.md section 2: l-inf and l2 balls, and the l-inf ball with the image box."""
    inputs, delta, g, _ = problem(1)
    delta = LInf(0.3, None).project(delta)
    inner = (delta * g).sum(1)
    torch.testing.assert_close(LInf(0.3, None).fosc(delta, g), 0.3 * g.abs().sum(1) - inner)
    torch.testing.assert_close(L2(0.9, None).fosc(delta, g), 0.9 * g.norm(dim=1) - inner)
    low, high = torch.maximum(-inputs, torch.tensor(-0.3)), torch.minimum(1 - inputs, torch.tensor(0.3))
    boxed = LInf(0.3).project(delta, inputs)
    want = torch.maximum(low * g, high * g).sum(1) - (boxed * g).sum(1)
    torch.testing.assert_close(LInf(0.3).fosc(boxed, g, inputs), want)


@pytest.mark.parametrize("ball", BALLS)
def test_steepest_has_norm_one_and_the_dual_norm_as_product(ball: Any) -> None:
    gradient = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    step = ball(0.1).steepest(gradient)
    torch.testing.assert_close(ball(0.1).norm(step), torch.ones(5, dtype=torch.float64))
    dual = {LInf: 1, L2: 2, L1: math.inf}[ball]
    torch.testing.assert_close(
        (step * gradient).flatten(1).sum(1), torch.linalg.vector_norm(gradient.flatten(1), dual, dim=1)
    )


@pytest.mark.parametrize("ball", BALLS)
def test_gradients_too_small_to_be_squared_still_point_somewhere(ball: Any) -> None:
    """A sure model's gradients are around 1e-30, whose squares are 0 in 32 bits."""
    gradient = torch.randn(4, 10) * 1e-30
    inputs = torch.rand(4, 10)
    threat = ball(0.1)
    torch.testing.assert_close(threat.steepest(gradient), threat.steepest(gradient * 1e30))
    torch.testing.assert_close(
        threat.linear_max(gradient, inputs), threat.linear_max(gradient * 1e30, inputs)
    )
    assert (threat.steepest(torch.zeros(2, 3)) == 0).all()
    assert (threat.linear_max(torch.zeros(2, 3), torch.rand(2, 3)) == 0).all()


@pytest.mark.parametrize("ball", BALLS)
def test_random_points_are_inside_seeded_and_spread_as_a_uniform_ball_is(ball: Any) -> None:
    n, d = 4000, 3
    threat = ball(0.5, None)
    draw = lambda seed: threat.random(torch.zeros(n, d), torch.Generator().manual_seed(seed))  # noqa: E731
    found = draw(0)
    assert torch.equal(found, draw(0)) and not torch.equal(found, draw(1))
    sizes = threat.norm(found)
    assert (sizes <= 0.5 + 1e-6).all()
    # In a uniform ball the share within half the radius is 1/2^d, and no direction is preferred.
    assert (sizes < 0.25).double().mean().item() == pytest.approx(1 / 8, abs=0.02)
    assert found.mean(dim=0).abs().max() < 0.02
    boxed = ball(0.5).random(torch.rand(50, d), torch.Generator().manual_seed(2))
    assert (ball(0.5).norm(boxed) <= 0.5 + 1e-6).all()
    inputs = torch.rand(50, d)
    inside = inputs + ball(0.9).random(inputs, torch.Generator().manual_seed(2))
    assert inside.min() >= -1e-6 and inside.max() <= 1 + 1e-6


def test_random_without_a_generator_draws_from_the_global_one() -> None:
    torch.manual_seed(3)
    first = LInf(0.1).random(torch.rand(2, 3))
    torch.manual_seed(3)
    assert torch.equal(first, LInf(0.1).random(torch.rand(2, 3)))


@pytest.mark.parametrize("ball", BALLS)
def test_any_trailing_shape_any_layout_and_bfloat16(ball: Any) -> None:
    inputs = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    delta, threat = torch.randn(4, 3, 8, 8), ball(0.4)
    flat = threat.project(delta.flatten(1), inputs.flatten(1)).view_as(delta)
    torch.testing.assert_close(threat.project(delta.to(memory_format=torch.channels_last), inputs), flat)
    torch.testing.assert_close(
        threat.linear_max(delta.to(memory_format=torch.channels_last), inputs),
        threat.linear_max(delta.flatten(1), inputs.flatten(1)).view_as(delta),
    )
    short = threat.project(delta.bfloat16(), inputs.bfloat16())
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), flat, atol=0.02, rtol=0.02)
    assert threat.random(inputs.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("ball", BALLS)
def test_no_samples_are_no_problem_and_epsilon_zero_allows_nothing(ball: Any) -> None:
    none = torch.zeros(0, 3, 2)
    assert ball(0.1).project(none, none).shape == ball(0.1).linear_max(none, none).shape == none.shape
    inputs, delta, gradient, _ = problem(0)
    for found in (
        ball(0).project(delta, inputs),
        ball(0.0).linear_max(gradient, inputs),
        ball(0).random(inputs),
    ):
        assert (found == 0).all()


def test_take_gives_the_radii_of_the_rows() -> None:
    inputs, delta, _, epsilon = problem(2, n=5)
    rows = torch.tensor([True, False, True, True, False])
    all_at_once = L2(epsilon).project(delta, inputs)
    torch.testing.assert_close(L2(epsilon).take(rows).project(delta[rows], inputs[rows]), all_at_once[rows])
    assert L2(0.5).take(rows) == L2(0.5)
    with pytest.raises(ValueError, match="for 5 samples, there are 3"):
        L2(epsilon).project(delta[rows], inputs[rows])


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), torch.tensor([0.1, -0.1]), torch.ones(2, 2)])
def test_a_radius_that_is_none_is_refused(ball: Any, epsilon: Any) -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        ball(epsilon)


def test_eight_instead_of_eight_of_255_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="8/255, not 8"):
        LInf(8)
    with pytest.warns(UserWarning, match="8/255, not 8"):
        LInf(torch.tensor([0.1, 8.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LInf(8 / 255)
        LInf(8, box=None)
        LInf(8, box=(0, 255))
        L2(3.0)


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(ValueError, match="box is"):
        LInf(0.1, box=(1.0, 0.0))


# Embeddings -------------------------------------------------------------------------------------------------

MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0]])


def vectors(seed: int = 0) -> Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("per", ["token", "sentence"])
def test_masked_tokens_are_never_changed(per: Any) -> None:
    ball = EmbeddingBall(0.3, per).for_mask(MASK)
    for found in (
        ball.project(vectors()), ball.steepest(vectors()), ball.linear_max(vectors()), ball.random(vectors()),
    ):  # fmt: skip
        assert (found[MASK == 0] == 0).all() and (found[MASK == 1] != 0).any(dim=1).all()


def test_token_balls_hold_for_each_token_and_sentence_balls_for_the_whole() -> None:
    delta = vectors()
    token = EmbeddingBall(0.3).for_mask(MASK)
    lengths = token.project(delta).norm(dim=-1)
    torch.testing.assert_close(lengths[MASK == 1], torch.full((6,), 0.3, dtype=torch.float64))
    sentence = EmbeddingBall(0.3, "sentence").for_mask(MASK)
    whole = sentence.project(delta).flatten(1).norm(dim=1)
    torch.testing.assert_close(whole, torch.full((3,), 0.3, dtype=torch.float64))
    small = delta * 1e-3
    torch.testing.assert_close(sentence.project(small), small * MASK[..., None])


@pytest.mark.parametrize("per", ["token", "sentence"])
def test_embedding_gaps_are_zero_at_the_maximum_and_positive_elsewhere(per: Any) -> None:
    ball = EmbeddingBall(0.3, per).for_mask(MASK)
    gradient = vectors(1)
    inside = ball.random(vectors(), torch.Generator().manual_seed(0))
    assert (ball.fosc(inside, gradient) > 0).all()
    assert ball.fosc(ball.linear_max(gradient), gradient).abs().max() < 1e-12
    masked = gradient * MASK[..., None]
    size = masked.norm(dim=-1).sum(1) if per == "token" else masked.flatten(1).norm(dim=1)
    torch.testing.assert_close(ball.fosc(inside, gradient), 0.3 * size - (inside * gradient).sum((1, 2)))


def test_radii_relative_to_the_embeddings() -> None:
    embeddings = vectors(2)
    token = EmbeddingBall(0.2).relative_to(embeddings)
    torch.testing.assert_close(token.epsilon, 0.2 * embeddings.norm(dim=-1))
    sentence = EmbeddingBall(0.2, "sentence").for_mask(MASK).relative_to(embeddings)
    torch.testing.assert_close(sentence.epsilon, 0.2 * (embeddings * MASK[..., None]).flatten(1).norm(dim=1))
    some = sentence.take(torch.tensor([2, 0]))
    torch.testing.assert_close(some.epsilon, sentence.epsilon[[2, 0]])
    assert torch.equal(some.mask, MASK[[2, 0]].bool())


def test_padding_does_not_shorten_what_is_drawn_for_a_sentence() -> None:
    """si_hg.md section 12: token grouping ignores padding. The draw fills the ball of the real tokens."""
    embeddings = torch.zeros(4000, 6, 1)
    mask = torch.zeros(4000, 6)
    mask[:, :2] = 1
    found = EmbeddingBall(1.0, "sentence").for_mask(mask).random(embeddings, torch.Generator().manual_seed(0))
    assert (found.flatten(1).norm(dim=1) < 0.5).double().mean().item() == pytest.approx(1 / 4, abs=0.02)


def test_bad_embedding_balls_are_refused() -> None:
    with pytest.raises(ValueError, match="per is"):
        EmbeddingBall(0.1, "word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon is"):
        EmbeddingBall(-1.0)
    with pytest.raises(ValueError, match="epsilon is"):
        EmbeddingBall(torch.ones(2, 3), "sentence")
    with pytest.raises(ValueError, match="mask is"):
        EmbeddingBall(0.1).for_mask(torch.ones(3))
    with pytest.raises(ValueError, match="the mask is"):
        EmbeddingBall(0.1).for_mask(MASK).project(torch.zeros(3, 4, 2))


@pytest.mark.parametrize("box", [(-math.inf, math.inf), (0.0, math.inf), (-math.inf, 3.0)])
def test_a_side_of_the_box_may_have_no_limit(box: tuple[float, float]) -> None:
    delta = torch.tensor([[3.0, 0.0, -4.0, 1.0], [0.0, 0.2, 0.0, 0.0]], dtype=torch.float64)
    inputs = torch.full_like(delta, 2.0)
    wide = tuple(side if math.isfinite(side) else math.copysign(1e6, side) for side in box)
    for epsilon in (1.0, 3.0):
        found, near = L2(epsilon, box=box), L2(epsilon, box=wide)
        assert torch.allclose(found.project(delta, inputs), near.project(delta, inputs), rtol=0, atol=1e-9)
        best = found.linear_max(delta, inputs)
        assert torch.allclose(best, near.linear_max(delta, inputs), rtol=0, atol=1e-6)
        assert torch.allclose(found.norm(best)[0], torch.tensor(epsilon, dtype=torch.float64))


def test_a_projection_does_not_depend_on_the_other_samples() -> None:
    delta = torch.tensor([[0.3, -0.1, 0.2], [3.0, 0.0, -4.0]])
    ball, inputs = L2(1.0, box=(0.0, 1.0)), torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.9, 0.7]])
    together = ball.project(delta, inputs)
    for row in range(2):
        assert torch.equal(together[row], ball.project(delta[row : row + 1], inputs[row : row + 1])[0])
