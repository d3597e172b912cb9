"""Kernel PCA against scikit-learn, against the singular value decomposition, and on its own terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.decomposition import KernelPCA as Peer
from sklearn.exceptions import NotFittedError

from robustkit.detection import kernel_pca
from robustkit.detection.kernel_pca import KernelPCA, sample_rows

Array = NDArray[np.float64]


def cloud(n: int = 200, d: int = 12, seed: int = 0) -> Array:
    """Rows with a falling spectrum and a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.7 + 3


def same_up_to_sign(ours: Array, theirs: Array) -> float:
    """Largest difference after the sign of each column is aligned."""
    signs = np.sign((ours * theirs).sum(axis=0))
    return float(np.abs(ours * signs - theirs).max())


def distances(coordinates: Array) -> Array:
    return np.linalg.norm(coordinates[:, None] - coordinates[None], axis=2)


@pytest.mark.parametrize(
    ("kernel", "gamma"), [("rbf", None), ("rbf", 0.3), ("linear", None), ("cosine", None), ("poly", 0.2)]
)
def test_behaviour_2_exact_equals_scikit_learn(kernel: str, gamma: float | None) -> None:
    train, test = cloud(), cloud(50, seed=1)
    ours = KernelPCA(5, kernel=kernel, gamma=gamma, solver="exact").fit(train)
    theirs = Peer(5, kernel=kernel, gamma=gamma).fit(train)
    assert same_up_to_sign(ours.transform(train), theirs.transform(train)) < 1e-8
    assert same_up_to_sign(ours.transform(test), theirs.transform(test)) < 1e-8
    np.testing.assert_allclose(ours.eigenvalues_, theirs.eigenvalues_, rtol=1e-9)
    assert ours.gamma_ == (1 / 12 if gamma is None else gamma)


def test_exact_solver_with_more_features_than_rows() -> None:
    train, test = cloud(30, 80), cloud(10, 80, seed=1)
    ours, theirs = KernelPCA(4, kernel="linear").fit(train), Peer(4).fit(train)
    assert same_up_to_sign(ours.transform(test), theirs.transform(test)) < 1e-8


@pytest.mark.parametrize(
    ("solver", "kernel"),
    [
        *((solver, kernel) for solver in ("exact", "randomized", "nystrom") for kernel in ("rbf", "linear")),
        ("rff", "rbf"),
    ],
)
def test_behaviour_2_coordinates_are_centred_and_uncorrelated(solver: str, kernel: str) -> None:
    train = cloud()
    pca = KernelPCA(5, kernel=kernel, solver=solver, n_landmarks=60)
    coordinates = pca.fit_transform(train)
    variances = coordinates.T @ coordinates / len(train)
    np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(variances, np.diag(np.diag(variances)), atol=1e-10)
    np.testing.assert_allclose(np.diag(variances), pca.explained_variance_, rtol=1e-8)
    # Both ways to the coordinates of the fitted rows.
    np.testing.assert_allclose(coordinates, pca.transform(train), atol=1e-8)


def test_behaviour_3_linear_equals_singular_value_decomposition() -> None:
    train = cloud()
    centred = train - train.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    ours = KernelPCA(4, kernel="linear").fit_transform(train)
    assert same_up_to_sign(ours, left[:, :4] * values[:4]) < 1e-9


@pytest.mark.parametrize("kernel", ["rbf", "linear", "poly"])
def test_behaviour_3_nystrom_with_all_landmarks_is_exact(kernel: str) -> None:
    train, test = cloud(), cloud(50, seed=1)
    exact = KernelPCA(4, kernel=kernel, solver="exact").fit(train)
    all_landmarks = KernelPCA(4, kernel=kernel, solver="nystrom", n_landmarks=len(train)).fit(train)
    scale = np.abs(exact.transform(test)).max()
    assert same_up_to_sign(all_landmarks.transform(test), exact.transform(test)) < 1e-7 * scale


def test_behaviour_3_nystrom_error_falls_with_landmarks() -> None:
    train, test = cloud(400), cloud(60, seed=1)
    exact = distances(KernelPCA(6, solver="exact", gamma=0.2).fit(train).transform(test))
    errors = []
    for landmarks in (10, 40, 160, 400):
        pca = KernelPCA(6, solver="nystrom", gamma=0.2, n_landmarks=landmarks).fit(train)
        errors.append(np.abs(distances(pca.transform(test)) - exact).mean())
    assert errors == sorted(errors, reverse=True) and errors[0] > 100 * errors[3]


def test_random_fourier_features_come_close() -> None:
    train, test = cloud(300, 4), cloud(50, 4, seed=1)
    exact = distances(KernelPCA(3, solver="exact").fit(train).transform(test))
    rough = distances(KernelPCA(3, solver="rff", n_landmarks=20).fit(train).transform(test))
    fine = distances(KernelPCA(3, solver="rff", n_landmarks=2000).fit(train).transform(test))
    assert np.abs(fine - exact).mean() < 0.1 * exact.mean()
    assert np.abs(fine - exact).mean() < np.abs(rough - exact).mean()


def test_randomized_finds_separated_components() -> None:
    train, test = cloud(300), cloud(50, seed=1)
    exact = KernelPCA(3, solver="exact").fit(train)
    ours = KernelPCA(3, solver="randomized").fit(train)
    assert same_up_to_sign(ours.transform(test), exact.transform(test)) < 1e-6


def test_single_precision_rows_agree_with_double() -> None:
    train, test = cloud(), cloud(50, seed=1)
    double = KernelPCA(4, solver="nystrom", n_landmarks=100).fit(train).transform(test)
    single = KernelPCA(4, solver="nystrom", n_landmarks=100).fit(train.astype(np.float32))
    assert single.transform(test.astype(np.float32)).dtype == np.float64
    assert same_up_to_sign(single.transform(test.astype(np.float32)), double) < 1e-4


def test_rbf_does_not_see_where_the_rows_are() -> None:
    train = cloud().astype(np.float32)
    here = distances(KernelPCA(4, solver="nystrom", n_landmarks=100).fit_transform(train))
    there = distances(KernelPCA(4, solver="nystrom", n_landmarks=100).fit_transform(train + 100))
    np.testing.assert_allclose(here, there, atol=2e-4)


def test_gammas() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    # Squared distances 25, 1 and 18; the median is 18. Variance of the six numbers: 26/6 - (8/6)^2.
    assert KernelPCA(1, gamma="median").fit(rows).gamma_ == pytest.approx(1 / 18)
    assert KernelPCA(1, gamma="scale").fit(rows).gamma_ == pytest.approx(1 / (2 * (26 / 6 - (8 / 6) ** 2)))
    with pytest.raises(ValueError, match="all the same"):
        KernelPCA(1, gamma="median").fit(np.ones((5, 2)))


def test_auto_takes_the_exact_solver_for_few_rows() -> None:
    train, test = cloud(300), cloud(20, seed=1)
    few, exact = KernelPCA(4).fit(train), KernelPCA(4, solver="exact").fit(train)
    np.testing.assert_array_equal(few.transform(test), exact.transform(test))
    many = KernelPCA(4, n_landmarks=100).fit(train)
    nystrom = KernelPCA(4, n_landmarks=100, solver="nystrom").fit(train)
    np.testing.assert_array_equal(many.transform(test), nystrom.transform(test))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = cloud(), cloud(50, seed=1)
    whole = KernelPCA(4, solver="nystrom", n_landmarks=50).fit(train).transform(test)
    monkeypatch.setattr(kernel_pca, "_CHUNK", 7 * 50)
    parts = KernelPCA(4, solver="nystrom", n_landmarks=50).fit(train)
    assert len(parts._chunks(torch.from_numpy(test))) == 8
    assert same_up_to_sign(parts.transform(test), whole) < 1e-9


def test_samples_are_uniform_seeded_and_without_repeats() -> None:
    drawn = sample_rows(100, 30, seed=3)
    assert len(set(drawn.tolist())) == 30 and drawn.max() < 100
    np.testing.assert_array_equal(drawn, sample_rows(100, 30, seed=3))
    assert drawn.tolist() != sample_rows(100, 30, seed=4).tolist()
    assert sample_rows(5, None, 0).tolist() == sample_rows(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    counts = np.bincount(np.concatenate([sample_rows(20, 5, seed) for seed in range(400)]))
    assert counts.min() > 60 and counts.max() < 140
    rows = cloud(100)
    sampled = KernelPCA(3, max_samples=30, random_state=3).fit(rows)
    by_hand = KernelPCA(3, max_samples=None, random_state=3).fit(rows[drawn])
    np.testing.assert_array_equal(sampled.transform(rows), by_hand.transform(rows))
    assert KernelPCA(3, max_samples=30).fit_transform(rows).shape == (100, 3)


def test_behaviour_22_components_that_do_not_exist_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="n_components is 100, but 20 rows of 12 numbers vary in 19"):
        pca = KernelPCA(100).fit(cloud(20))
    assert pca.n_components_ == 19 and pca.transform(cloud(3)).shape == (3, 19)
    with pytest.warns(UserWarning, match="vary in 12"):
        assert KernelPCA(100, kernel="linear").fit(cloud()).n_components_ == 12
    assert KernelPCA(None, kernel="linear").fit(cloud()).n_components_ == 12


def test_behaviour_22_constant_columns_are_accepted() -> None:
    rows = cloud()
    padded = np.concatenate([rows, np.full((len(rows), 2), 7.0)], axis=1)
    ours, theirs = KernelPCA(4, gamma=0.1).fit_transform(padded), KernelPCA(4, gamma=0.1).fit_transform(rows)
    assert same_up_to_sign(ours, theirs) < 1e-9


def test_tensors_are_accepted_and_numpy_comes_out() -> None:
    rows = cloud()
    ours = KernelPCA(3).fit(torch.from_numpy(rows)).transform(torch.from_numpy(rows))
    assert isinstance(ours, np.ndarray)
    np.testing.assert_array_equal(ours, KernelPCA(3).fit(rows.tolist()).transform(rows.tolist()))


def test_state_is_all_that_transform_needs() -> None:
    rows = cloud().astype(np.float32)
    for solver in ("exact", "randomized", "nystrom", "rff"):
        pca = KernelPCA(3, solver=solver, n_landmarks=40).fit(rows)
        again = KernelPCA(3, solver=solver, n_landmarks=40)
        again.restore(pca.state())
        np.testing.assert_array_equal(again.transform(rows), pca.transform(rows))
        np.testing.assert_array_equal(again.eigenvalues_, pca.eigenvalues_)


def test_behaviour_21_clone_and_parameters() -> None:
    pca = KernelPCA(7, gamma="scale", solver="nystrom")
    assert clone(pca).get_params() == pca.get_params()
    assert repr(pca) == "KernelPCA(n_components=7, gamma='scale', solver='nystrom')"
    with pytest.raises(NotFittedError, match="not fitted"):
        pca.transform(cloud())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components is 0"),
        ({"kernel": "sigmoid"}, "kernel is 'sigmoid'"),
        ({"solver": "arpack"}, "solver is 'arpack'"),
        ({"solver": "rff", "kernel": "poly"}, "rbf kernel only"),
        ({"gamma": "auto"}, "gamma is 'auto'"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"max_samples": 0}, "max_samples is 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelPCA(**settings)


def test_bad_rows() -> None:
    rows = cloud()
    spoilt = rows.copy()
    spoilt[3, 1] = np.nan
    for bad, message in (
        (spoilt, "row 3 holds NaN"),
        (rows[0], r"shape \(12,\)"),
        (rows[:1], "one row"),
        (rows[:0], "n and d >= 1"),
        (np.ones((9, 3)), "all the same"),
    ):
        with pytest.raises(ValueError, match=message):
            KernelPCA(2).fit(bad)
    with pytest.raises(ValueError, match="X has 5 columns, the components 12"):
        KernelPCA(2).fit(rows).transform(rows[:, :5])
