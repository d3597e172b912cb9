"""Intervals and tests, against hand values, exact enumeration and textbook formulas."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.evaluation.resampling import CorpusFigure, RatioFigure, holm


def mean(values: list[float]) -> RatioFigure:
    return RatioFigure(np.array(values), np.ones(len(values)))


def corpus_mean(values: list[float]) -> CorpusFigure:
    return CorpusFigure(lambda rows: float(np.array(values)[rows].mean()))


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04, times 4 3 2 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_keeps_the_order_and_is_at_most_bonferroni(values: list[float]) -> None:
    corrected = holm(values)
    for p, q in zip(values, corrected, strict=True):
        assert p <= q <= min(1.0, p * len(values)) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_a_ratio_is_of_sums_and_leaves_out_what_is_not_defined() -> None:
    figure = RatioFigure(np.array([1.0, 2.0, math.nan, 9.0]), np.array([2.0, 4.0, 7.0, 3.0]))
    assert figure.value(np.array([0, 1, 2])) == pytest.approx(3 / 6)
    assert figure.value(np.array([3])) == 3.0
    assert math.isnan(figure.value(np.array([2])))
    assert math.isnan(figure.value(np.array([], dtype=np.int64)))
    perplexity = RatioFigure(np.array([2.0, 4.0]), np.array([1.0, 2.0]), np.exp)
    assert perplexity.value(np.arange(2)) == pytest.approx(math.exp(2))


def test_the_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = mean(values.tolist()).interval(np.arange(400), 4000, 1) or (0, 0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("count", [100, 101])
def test_the_interval_of_halves_has_the_right_width_for_a_mean(count: int) -> None:
    values = np.random.default_rng(1).normal(5, 2, size=count)
    low, high = corpus_mean(values.tolist()).interval(np.arange(count), 4000, 1) or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(count), rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1)


def test_an_interval_stays_within_the_bounds_and_around_the_figure() -> None:
    rows = np.arange(40)
    distinct = CorpusFigure(lambda rows: len(np.unique(rows % 38)) / len(rows), bound=1.0)
    low, high = distinct.interval(rows, 500, 0) or (0, 0)
    assert low <= distinct.value(rows) <= high <= 1.0


def test_too_few_replies_have_no_interval() -> None:
    assert mean([1.0]).interval(np.arange(1), 10, 0) is None
    assert corpus_mean([1.0, 2.0, 3.0]).interval(np.arange(3), 10, 0) is None
    pairs = CorpusFigure(lambda rows: 1.0, least=3)
    assert pairs.interval(np.arange(5), 10, 0) is None and math.isnan(pairs.value(np.arange(2)))


def test_the_same_seed_gives_the_same_interval() -> None:
    figure = mean([1.0, 5.0, 2.0, 8.0])
    assert figure.interval(np.arange(4), 100, 3) == figure.interval(np.arange(4), 100, 3)
    assert figure.interval(np.arange(4), 100, 3) != figure.interval(np.arange(4), 100, 4)


@pytest.mark.parametrize("kind", [mean, corpus_mean])
def test_the_p_value_is_that_of_all_swappings(kind) -> None:  # type: ignore[no-untyped-def]
    one, other = [3.0, 5.0, 2.5, 4.0, 6.0, 3.5, 1.0], [2.0, 3.5, 2.0, 4.5, 4.0, 3.0, 0.5]
    differences = np.subtract(one, other)
    signs = np.array(list(product([1, -1], repeat=7)))
    exact = float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())
    p = kind(one + other).p_value(np.arange(7), np.arange(7, 14), 20000, 0)
    assert p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("kind", [mean, corpus_mean])
def test_equal_replies_do_not_differ_and_order_does_not_matter(kind) -> None:  # type: ignore[no-untyped-def]
    figure = kind([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    assert figure.p_value(np.arange(3), np.arange(3, 6), 100, 0) == 1.0
    figure = kind([1.0, 2.0, 3.0, 4.0, 1.0, 0.0])
    one, other = np.arange(3), np.arange(3, 6)
    assert figure.p_value(one, other, 500, 0) == figure.p_value(other, one, 500, 0)


def test_a_test_without_pairs_says_nothing() -> None:
    nothing = np.array([], dtype=np.int64)
    assert math.isnan(mean([1.0]).p_value(nothing, nothing, 10, 0))
    assert math.isnan(corpus_mean([1.0]).p_value(nothing, nothing, 10, 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 200))
def test_chunks_change_neither_number_nor_range(count: int, draws: int) -> None:
    figure = mean(list(map(float, range(2 * count))))
    p = figure.p_value(np.arange(count), np.arange(count, 2 * count), draws, 0)
    assert 1 / (draws + 1) <= p <= 1
