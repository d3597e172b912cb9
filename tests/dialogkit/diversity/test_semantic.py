"""Sem-Ent, its interval, quantised MAUVE and the Vendi score against the specification's golden values."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dialogkit.diversity import (
    DifferentClustersError,
    SemanticClusters,
    SemEnt,
    bootstrap_interval,
    quantized_mauve,
    sem_ent,
    vendi_score,
)

K = 6
LABELS = st.lists(st.integers(0, K - 1), min_size=1, max_size=40)
SHARES = arrays.arrays(
    np.float64, st.integers(1, 8), elements=st.floats(0.0, 1.0).map(lambda x: round(x, 3))
).filter(lambda x: x.sum() > 0.1)


def shares(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values / values.sum()


def test_s1_goldens() -> None:
    assert sem_ent([3, 3, 3], 5) == 0.0
    assert sem_ent([1.0]) == 0.0
    assert sem_ent(np.full(20, 0.05)) == pytest.approx(2.995732, abs=1e-6)
    assert sem_ent(list(range(20)) * 3) == pytest.approx(math.log(20))
    assert sem_ent(list(range(8)), base=2) == pytest.approx(3.0)
    assert sem_ent([0.7, 0.1, 0.1, 0.1]) == pytest.approx(0.940448, abs=1e-6)
    assert sem_ent([0] * 7 + [1, 2, 3]) == pytest.approx(0.940448, abs=1e-6)
    assert sem_ent(range(5), 5, normalize=True) == pytest.approx(1.0)
    assert sem_ent([0, 1], 4, normalize=True) == pytest.approx(0.5)


@given(LABELS, st.integers(1, 4), st.permutations(range(K)), st.randoms())
def test_s2_invariances(labels: list[int], m: int, names: list[int], random: Any) -> None:
    value = sem_ent(labels, K)
    shuffled = random.sample(labels, len(labels))
    for other in (shuffled, labels * m, [names[label] for label in labels]):
        assert sem_ent(other, K) == pytest.approx(value, abs=1e-12)
    assert sem_ent(labels, K + 3) == pytest.approx(value)
    assert -1e-12 <= value <= math.log(min(len(labels), K)) + 1e-12
    assert 0.0 <= sem_ent(labels, K, normalize=True) <= 1.0 + 1e-12


@given(SHARES.filter(lambda x: len(x) >= 2))
def test_s2_merging_two_clusters_never_raises_it(values: np.ndarray[Any, Any]) -> None:
    p = shares(values)
    merged = np.concatenate([[p[0] + p[1]], p[2:]])
    assert sem_ent(merged) <= sem_ent(p) + 1e-12


@given(SHARES, st.integers(0, 2**8 - 1))
def test_s3_chain_rule(values: np.ndarray[Any, Any], bits: int) -> None:
    p = shares(values)
    side = np.array([bits >> i & 1 for i in range(len(p))])
    groups = [p[side == s] for s in (0, 1) if p[side == s].sum() > 0]
    between = sem_ent(np.array([group.sum() for group in groups]))
    within = sum(group.sum() * sem_ent(shares(group)) for group in groups)
    assert sem_ent(p) == pytest.approx(between + within, abs=1e-9)


def test_s4_one_cluster_and_no_response() -> None:
    assert sem_ent([0, 0, 0], 1) == 0.0
    assert sem_ent([0], 1, normalize=True) == 0.0
    assert sem_ent([2], 5) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        sem_ent([], 5)


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        ([0, 5], {"k": 5}, "labels must be 0 to 4, got 0 to 5"),
        ([-1, 0], {"k": 5}, "labels must be 0 to 4"),
        ([0, 1], {"normalize": True}, "normalize needs k"),
        ([0.5, 0.4], {}, "sum to 1"),
        ([1.5, -0.5], {}, "shares >= 0"),
        ([float("nan"), 1.0], {}, "shares >= 0"),
        ([0.5, 0.5], {"k": 3}, "k=3 entries, got 2"),
        ([0, 1], {"base": 1.0}, "base must be above 1"),
        ([[0, 1]], {"k": 2}, r"shape \[1, 2\]"),
        (["a"], {"k": 2}, "whole numbers"),
    ],
)
def test_bad_labels_and_histograms(values: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sem_ent(values, **arguments)


def test_s9_goldens() -> None:
    halves, other, uniform = [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.25] * 4
    assert quantized_mauve(halves, other) == pytest.approx(0.004072, abs=1e-6)
    assert quantized_mauve(halves, uniform) == pytest.approx(0.278114, abs=1e-6)
    assert quantized_mauve(uniform, uniform) == pytest.approx(1.0)


@given(st.integers(2, 6), st.integers(0, 10_000))
@example(2, 1297)  # nearly equal: the divergence of one end rounds below zero
def test_s9_symmetric_and_one_for_equal(k: int, seed: int) -> None:
    p, q = np.random.default_rng(seed).dirichlet(np.full(k, 0.5), size=2)
    assert quantized_mauve(p, p) == pytest.approx(1.0)
    assert quantized_mauve(p, q) == pytest.approx(quantized_mauve(q, p), abs=1e-9)
    assert 0.0 < quantized_mauve(p, q) <= 1.0 + 1e-12


def test_mauve_equals_a_direct_sum() -> None:
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
    points = [(1.0, 0.0), (0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 25):
        r = weight * p + (1 - weight) * q
        points.append((math.exp(-5 * sum(q * np.log(q / r))), math.exp(-5 * sum(p * np.log(p / r)))))

    def area(curve: list[tuple[float, float]]) -> float:
        curve = sorted(curve, key=lambda point: (point[0], -point[1]))
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))

    expected = (area(points) + area([(y, x) for x, y in points])) / 2
    assert quantized_mauve(p, q) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="same length, got 3 and 1"):
        quantized_mauve(p, [1.0])
    with pytest.raises(ValueError, match="c must be positive"):
        quantized_mauve(p, q, 0.0)
    with pytest.raises(ValueError, match="q must be shares"):
        quantized_mauve(p, [0.2, 0.2, 0.2])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
    covered = 0
    for trial in range(300):
        low, high = bootstrap_interval(random.choice(K, size=150, p=truth), K, resamples=300, seed=trial)
        covered += low <= sem_ent(truth) <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_the_interval_is_repeatable_and_bounded() -> None:
    labels = [0, 0, 1, 2, 2, 5] * 9
    assert bootstrap_interval(labels, K, seed=3) == bootstrap_interval(labels, K, seed=3)
    assert bootstrap_interval(labels, K, seed=3) != bootstrap_interval(labels, K, seed=4)
    assert bootstrap_interval([1], K) == (0.0, 0.0)
    low, high = bootstrap_interval(list(range(K)) * 2, K)
    assert 0.0 <= low <= high <= math.log(K)
    narrow = bootstrap_interval(labels, K, confidence=0.5)
    wide = bootstrap_interval(labels, K, confidence=0.95)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    for arguments, message in (({"confidence": 1.0}, "confidence"), ({"resamples": 0}, "resamples")):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(labels, K, **arguments)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
def test_vendi_score_equals_the_kernel_form(n: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / n)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi_score(vectors) == pytest.approx(math.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def test_vendi_score_of_known_sets() -> None:
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.ones((7, 3))) == pytest.approx(1.0)
    assert vendi_score(np.repeat(np.eye(2), 3, axis=0) * 4.0) == pytest.approx(2.0)
    for vectors in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.empty((0, 2)), np.ones(3)):
        with pytest.raises(ValueError, match="vector"):
            vendi_score(vectors)


def clusters(seed: int = 25) -> SemanticClusters:
    random = np.random.default_rng(seed)
    blobs = np.concatenate([10 * np.eye(4)[i] + 0.1 * random.normal(size=(20, 4)) for i in range(4)])
    return SemanticClusters.fit(blobs, k=4, normalize=False, seed=seed)


def test_a_score_holds_what_it_says() -> None:
    found = clusters()
    points = 10 * np.eye(4)
    score = SemEnt(found).compute(points[[0, 0, 1, 1]], points[[0, 1, 2, 3]])
    assert (score.n, score.k, score.empty) == (4, 4, 2)
    assert score.sem_ent == pytest.approx(math.log(2))
    assert score.normalized == pytest.approx(0.5)
    assert score.reference_sem_ent == pytest.approx(math.log(4))
    assert sorted(score.histogram) == [0.0, 0.0, 0.5, 0.5]
    assert score.mauve == pytest.approx(quantized_mauve(score.histogram, [0.25] * 4))
    assert score.interval[0] <= score.sem_ent <= score.interval[1]
    assert score.clusters == found.fingerprint
    alone = SemEnt(found).compute(points[:1])
    assert (alone.sem_ent, alone.interval, alone.mauve, alone.reference_sem_ent) == (
        0.0,
        (0.0, 0.0),
        None,
        None,
    )


def test_scores_of_different_clusters_are_not_compared() -> None:
    points = 10 * np.eye(4)
    one, other = SemEnt(clusters(1)), SemEnt(clusters(2))
    low, high = one.compute(points[[0, 0]]), one.compute(points[[0, 1]])
    assert high.difference(low) == pytest.approx(math.log(2))
    assert low < high and max([low, high]) is high
    with pytest.raises(DifferentClustersError, match="different clusters"):
        high.difference(other.compute(points))
    with pytest.raises(DifferentClustersError):
        sorted([high, replace(low, clusters="0" * 64)])
    with pytest.raises(ValueError, match="at least one"):
        one.compute(points[:0])
