"""The minimum covariance determinant and the shrinkage estimates, against scikit-learn and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import clone
from sklearn.covariance import MinCovDet as Peer
from sklearn.covariance import ledoit_wolf as peer_ledoit_wolf
from sklearn.covariance import oas as peer_oas
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from robustkit.detection.covariance import (
    MinCovDet,
    c_step,
    empirical_covariance,
    ledoit_wolf,
    oas,
    whitening,
)

Array = NDArray[np.float64]


def gaussian(n: int, p: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, p))


def scattered(n: int, p: int, seed: int = 0) -> Array:
    """A tenth of the rows, the first, is shifted by 6 on each axis."""
    rows = gaussian(n, p, seed)
    rows[: n // 10] += 6
    return rows


def clustered(n: int, p: int, seed: int = 0) -> Array:
    """A twentieth of the rows, the first, is a tight cluster: shifted by 6 on each axis, spread 0.3."""
    rows = gaussian(n, p, seed)
    rows[: n // 20] = 0.3 * rows[: n // 20] + 6
    return rows


def log_det(matrix: Array) -> float:
    return float(np.linalg.slogdet(matrix)[1])


def peer_raw_log_det(rows: Array) -> float:
    with threadpool_limits(1):
        peer = Peer(random_state=0).fit(rows)
    return log_det(np.cov(rows[peer.raw_support_].T, bias=True))


@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
@pytest.mark.parametrize("consistency", ["gaussian", "median"])
def test_behaviour_5_whole_support_is_the_plain_covariance(algorithm: str, consistency: str) -> None:
    rows = gaussian(60, 4) * [1, 10, 0.1, 3] + 5
    mcd = MinCovDet(support_fraction=1.0, algorithm=algorithm, reweight=False, consistency=consistency)
    mcd.fit(rows)
    plain = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(mcd.raw_covariance_, plain, rtol=1e-9)
    np.testing.assert_allclose(mcd.location_, rows.mean(axis=0), rtol=1e-9)
    assert mcd.support_.all() and mcd.logdet_ == pytest.approx(log_det(plain), abs=1e-9)
    if consistency == "gaussian":
        np.testing.assert_allclose(mcd.covariance_, plain, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), p=st.integers(1, 6), extra=st.integers(0, 40))
def test_behaviour_5_c_steps_never_raise_the_determinant(seed: int, p: int, extra: int) -> None:
    n = 2 * p + 10 + extra
    rows = torch.from_numpy(scattered(n, p, seed))
    h = (n + p + 2) // 2
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(n)[:h])
    mean, scatter = rows[chosen].mean(dim=0)[None], empirical_covariance(rows[chosen])[None]
    for _ in range(5):
        before = log_det(scatter[0].numpy())
        support, mean, scatter = c_step(rows, mean, scatter, h)
        assert log_det(scatter[0].numpy()) <= before + 1e-9
        np.testing.assert_allclose(mean[0], rows[support[0]].mean(dim=0))


def test_c_step_takes_the_nearest_rows_of_each_estimate() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]], dtype=torch.float64)
    support, mean, scatter = c_step(
        rows, torch.tensor([[0.0], [12.0]]).double(), torch.ones(2, 1, 1).double(), 3
    )
    assert [sorted(part.tolist()) for part in support] == [[0, 1, 2], [3, 4, 5]]
    assert mean.tolist() == [[1.0], [11.0]]
    np.testing.assert_allclose(scatter, np.full((2, 1, 1), 2 / 3))


@pytest.mark.parametrize(("n", "p"), [(10, 2), (11, 2), (101, 7), (500, 100), (5, 4)])
def test_behaviour_5_support_size(n: int, p: int) -> None:
    h = -(-(n + p + 1) // 2)
    assert MinCovDet().support_size(n, p) == h
    assert MinCovDet(support_fraction=0.73).support_size(n, p) == int(0.73 * n)
    assert MinCovDet().fit(gaussian(n, p)).raw_support_.sum() == h


def test_finds_the_true_minimum_where_all_subsets_can_be_tried() -> None:
    for seed in range(5):
        rows = np.concatenate([gaussian(9, 2, seed), gaussian(3, 2, seed + 50) * 4 + 8])
        best = min(
            log_det(np.cov(rows[list(chosen)].T, bias=True))
            for chosen in itertools.combinations(range(12), 8)
        )
        assert MinCovDet(algorithm="fast").fit(rows).logdet_ == pytest.approx(best, abs=1e-9)
        assert MinCovDet().fit(rows).logdet_ >= best - 1e-9


@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
def test_behaviour_6_clean_gaussian(algorithm: str) -> None:
    mcd = MinCovDet(algorithm=algorithm).fit(gaussian(5000, 5))
    assert np.abs(mcd.covariance_ - np.eye(5)).max() < 0.05
    assert mcd.support_.mean() == pytest.approx(0.97, abs=0.007)


@pytest.mark.parametrize("p", [5, 100])
def test_behaviour_7_scattered_outliers_stay_out(p: int) -> None:
    rows = scattered(4000, p)
    mcd = MinCovDet().fit(rows)
    assert not mcd.support_[:400].any() and not mcd.raw_support_[:400].any()
    assert np.abs(mcd.location_).max() < 0.1
    assert np.cov(rows.T).diagonal().mean() > 4
    if p == 5:
        assert mcd.covariance_.diagonal() == pytest.approx(1.01, abs=0.08)


@pytest.mark.parametrize("p", [5, 20])
@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
def test_behaviour_7_a_tight_cluster_is_rejected_in_few_dimensions(p: int, algorithm: str) -> None:
    mcd = MinCovDet(algorithm=algorithm).fit(clustered(2000, p))
    assert not mcd.support_[:100].any()


def test_behaviour_7_the_criterion_prefers_a_tight_cluster_in_many_dimensions() -> None:
    rows = clustered(2000, 100)
    random = MinCovDet(algorithm="fast", n_starts=10).fit(rows)
    assert random.support_[:100].all()
    # The robust starts end in the worse optimum, without the cluster.
    robust = MinCovDet(n_starts=5).fit(rows)
    assert not robust.support_[:100].any() and not MinCovDet().fit(rows).support_[:100].any()
    assert random.logdet_ < robust.logdet_


def test_behaviour_8_determinant_is_at_most_scikit_learns() -> None:
    rows = scattered(1000, 100)
    assert MinCovDet().fit(rows).logdet_ <= peer_raw_log_det(rows) + 1e-3


@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
def test_behaviour_8_in_few_dimensions_the_determinant_is_close(algorithm: str) -> None:
    rows = scattered(2000, 20)
    assert MinCovDet(algorithm=algorithm).fit(rows).logdet_ <= peer_raw_log_det(rows) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("make", [gaussian, scattered])
@pytest.mark.parametrize("n", [1000, 4000, 8000])
def test_behaviour_8_determinant_is_at_most_scikit_learns_large(n: int, make: Callable[..., Array]) -> None:
    rows = make(n, 100)
    lowest = peer_raw_log_det(rows)
    assert MinCovDet().fit(rows).logdet_ <= lowest + 1e-3
    # Random starts: with 1,000 Gaussian rows either side's result moves by 0.3 from seed to seed.
    assert MinCovDet(algorithm="fast").fit(rows).logdet_ <= lowest + 0.3


_LUCK = pytest.mark.xfail(reason="results of random starts move by 0.3 from seed to seed, on either side")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "make"),
    [
        pytest.param(1000, gaussian, marks=_LUCK),
        (1000, scattered),
        (4000, gaussian),
        (4000, scattered),
        (8000, gaussian),
        (8000, scattered),
    ],
)
def test_random_starts_are_not_far_behind_scikit_learns(n: int, make: Callable[..., Array]) -> None:
    rows = make(n, 100)
    assert MinCovDet(algorithm="fast").fit(rows).logdet_ <= peer_raw_log_det(rows) + 0.05


@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
def test_agrees_with_scikit_learn(algorithm: str) -> None:
    rows = scattered(600, 5) @ np.diag([1, 2, 3, 0.5, 10]) + 4
    with threadpool_limits(1):
        peer = Peer(random_state=0).fit(rows)
    ours = MinCovDet(algorithm=algorithm).fit(rows)
    assert ours.logdet_ == pytest.approx(log_det(np.cov(rows[peer.raw_support_].T, bias=True)), abs=5e-3)
    assert (ours.support_ == peer.support_).mean() > 0.99
    scale = np.sqrt(peer.covariance_.diagonal())
    np.testing.assert_allclose(ours.location_ / scale, peer.location_ / scale, atol=0.02)
    np.testing.assert_allclose(
        ours.covariance_ / np.outer(scale, scale), peer.covariance_ / np.outer(scale, scale), atol=0.03
    )
    ranks = stats.spearmanr(ours.mahalanobis(rows), peer.mahalanobis(rows)).statistic
    assert ranks > 0.999


@pytest.mark.parametrize("algorithm", ["deterministic", "fast"])
def test_behaviour_9_scale_and_shift_of_the_axes(algorithm: str) -> None:
    rows, scale = scattered(400, 6), np.array([1e-3, 1.0, 7.0, 1e4, 0.3, 50.0])
    before, after = (
        MinCovDet(algorithm=algorithm).fit(rows),
        MinCovDet(algorithm=algorithm).fit(rows * scale + 9),
    )
    np.testing.assert_array_equal(after.support_, before.support_)
    np.testing.assert_allclose(after.location_, before.location_ * scale + 9, rtol=1e-9)
    np.testing.assert_allclose(after.covariance_, before.covariance_ * np.outer(scale, scale), rtol=1e-6)
    assert after.logdet_ == pytest.approx(before.logdet_ + 2 * np.log(scale).sum(), abs=1e-6)
    np.testing.assert_allclose(after.mahalanobis(rows * scale + 9), before.mahalanobis(rows), rtol=1e-6)


def test_behaviour_9_rotation_roughly() -> None:
    rows = scattered(1000, 6)
    rotation = np.linalg.qr(gaussian(6, 6, seed=1))[0]
    before, after = MinCovDet().fit(rows), MinCovDet().fit(rows @ rotation)
    assert after.logdet_ == pytest.approx(before.logdet_, abs=0.02)
    np.testing.assert_allclose(after.location_, before.location_ @ rotation, atol=0.05)
    np.testing.assert_allclose(after.covariance_, rotation.T @ before.covariance_ @ rotation, atol=0.1)


def test_consistency_and_reweighting_by_their_equations() -> None:
    rows, p = scattered(300, 3), 3
    for consistency in ("gaussian", "median"):
        raw = MinCovDet(consistency=consistency, reweight=False).fit(rows)
        distances = np.einsum(
            "ij,jk,ik->i",
            rows - raw.raw_location_,
            np.linalg.inv(raw.raw_covariance_),
            rows - raw.raw_location_,
        )
        if consistency == "gaussian":
            alpha = raw.raw_support_.sum() / len(rows)
            factor = alpha / stats.chi2(p + 2).cdf(stats.chi2(p).ppf(alpha))
        else:
            factor = np.median(distances) / stats.chi2(p).ppf(0.5)
        np.testing.assert_allclose(raw.covariance_, raw.raw_covariance_ * factor, rtol=1e-9)
        np.testing.assert_array_equal(raw.support_, raw.raw_support_)
        full = MinCovDet(consistency=consistency).fit(rows)
        inside = distances / factor < stats.chi2(p).ppf(0.975)
        last = 0.975 / stats.chi2(p + 2).cdf(stats.chi2(p).ppf(0.975)) if consistency == "gaussian" else 1
        np.testing.assert_array_equal(full.support_, inside)
        np.testing.assert_allclose(full.location_, rows[inside].mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(full.covariance_, np.cov(rows[inside].T, bias=True) * last, rtol=1e-9)


def test_squared_distances() -> None:
    rows = gaussian(100, 3)
    mcd = MinCovDet().fit(torch.from_numpy(rows))
    expected = stats.multivariate_normal(mcd.location_, mcd.covariance_)
    constant = 3 * np.log(2 * np.pi) + log_det(mcd.covariance_)
    np.testing.assert_allclose(mcd.mahalanobis(rows), -2 * expected.logpdf(rows) - constant, rtol=1e-9)
    assert mcd.mahalanobis(mcd.location_[None])[0] == 0


def test_repeatable_and_leaves_the_thread_count_alone() -> None:
    rows, threads = scattered(700, 4), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one, other = (MinCovDet(algorithm="fast", random_state=5).fit(rows) for _ in range(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one.covariance_, other.covariance_)
    np.testing.assert_array_equal(MinCovDet().fit(rows).covariance_, MinCovDet().fit(rows).covariance_)


def test_an_outlier_beyond_single_precision() -> None:
    rows = gaussian(200, 3)
    rows[0] = 1e60
    mcd = MinCovDet().fit(rows)
    assert not mcd.support_[0] and np.abs(mcd.location_).max() < 0.5


def test_ledoit_wolf_equals_scikit_learn() -> None:
    for n, p in ((40, 5), (10, 30), (2, 3)):
        rows = gaussian(n, p) @ np.diag(np.arange(1, p + 1)) + 2
        np.testing.assert_allclose(ledoit_wolf(torch.from_numpy(rows)), peer_ledoit_wolf(rows)[0], rtol=1e-9)


def test_oas_by_its_equation_and_near_scikit_learn() -> None:
    rows = gaussian(40, 5) @ np.diag(np.arange(1, 6))
    matrix, n, p = np.cov(rows.T, bias=True), 40, 5
    square, trace = np.trace(matrix @ matrix), np.trace(matrix)
    share = min(((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * (square - trace**2 / p)), 1)
    expected = (1 - share) * matrix + share * trace / p * np.eye(p)
    np.testing.assert_allclose(oas(torch.from_numpy(rows)), expected, rtol=1e-9)
    # scikit-learn leaves out 2 / P, which vanishes for large P.
    rows = gaussian(100, 60) @ np.diag(np.linspace(1, 3, 60))
    np.testing.assert_allclose(oas(torch.from_numpy(rows)), peer_oas(rows)[0], atol=0.02)


def test_shrinkage_of_rows_without_spread_of_eigenvalues() -> None:
    square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    for estimate in (ledoit_wolf, oas):
        np.testing.assert_allclose(estimate(square), np.eye(2) / 2)


def test_whitening() -> None:
    rows = torch.from_numpy(gaussian(50, 4))
    covariance = empirical_covariance(rows)
    white, log_determinant = whitening(covariance)
    np.testing.assert_allclose(white @ white.T, np.linalg.inv(covariance), rtol=1e-9)
    assert log_determinant == pytest.approx(log_det(covariance.numpy()))
    flat = torch.zeros(5, 5, dtype=torch.float64)
    flat[:4, :4] = covariance
    white, log_determinant = whitening(flat)
    np.testing.assert_allclose(white @ white.T, np.linalg.pinv(flat), atol=1e-9)
    assert log_determinant == pytest.approx(log_det(covariance.numpy()))


def test_behaviour_21_clone_and_unfitted() -> None:
    mcd = MinCovDet(0.6, algorithm="fast", n_starts=20)
    assert clone(mcd).get_params() == mcd.get_params()
    with pytest.raises(NotFittedError, match="not fitted"):
        mcd.mahalanobis(np.ones((2, 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"support_fraction": 0.0}, "support_fraction is 0.0"),
        ({"support_fraction": 1.5}, "support_fraction is 1.5"),
        ({"algorithm": "slow"}, "algorithm is 'slow'"),
        ({"consistency": None}, "consistency is None"),
        ({"n_starts": 6}, "n_starts is 6; expected 1 to 5"),
        ({"n_starts": 0, "algorithm": "fast"}, "n_starts is 0"),
        ({"max_iter": 0}, "max_iter is 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinCovDet(**settings)


def test_bad_rows() -> None:
    rows = gaussian(40, 4)
    spoilt = rows.copy()
    spoilt[7, 0] = np.inf
    constant = rows.copy()
    constant[:, 2] = 1
    with pytest.raises(ValueError, match="row 7 holds NaN or infinite"):
        MinCovDet().fit(spoilt)
    with pytest.raises(ValueError, match="column 2 of X is constant"):
        MinCovDet().fit(constant)
    with pytest.raises(ValueError, match="4 rows of 4 numbers give a support of 4"):
        MinCovDet().fit(rows[:4])
    with pytest.raises(ValueError, match="support of 4 rows"):
        MinCovDet(support_fraction=0.1).fit(rows)
    for algorithm in ("deterministic", "fast"):
        plane = rows.copy()
        plane[:30, 3] = plane[:30, :3].sum(axis=1)
        with pytest.raises(ValueError, match="lie in a hyperplane"):
            MinCovDet(algorithm=algorithm).fit(plane)
    with pytest.raises(ValueError, match="X has 3 columns, the estimate has 4"):
        MinCovDet().fit(rows).mahalanobis(rows[:, :3])
