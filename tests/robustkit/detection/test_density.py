"""Gaussians over features: RDE and its plain relatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import clone
from sklearn.covariance import MinCovDet as PeerMCD
from sklearn.decomposition import KernelPCA as PeerPCA
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from robustkit.classifiers.features import Features
from robustkit.detection import (
    Detector,
    KernelPCA,
    MahalanobisDetector,
    MinCovDet,
    MLEDetector,
    RDEDetector,
)
from robustkit.detection.covariance import ledoit_wolf

Array = NDArray[np.float64]


def two_classes(n: int = 600, d: int = 6, seed: int = 0, source: str = "") -> tuple[Features, Array]:
    """Overlapping Gaussians with different means and covariances, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, d)) * np.where(labels[:, None] == 1, 1.0, 0.5) * np.arange(1, d + 1) ** -0.5
    rows[:, 0] += 2 * labels
    return Features.of(rows, labels, source=source), labels


def relabelled(inputs: Features, label: int) -> Features:
    return Features.of(inputs.values, np.full(len(inputs), label))


def values_of(inputs: Features) -> Array:
    return inputs.values.astype(np.float64)


# RDE --------------------------------------------------------------------------------------------------------


def test_behaviour_1_linear_full_rank_empirical_is_the_normal_density() -> None:
    train, labels = two_classes()
    test, classes = two_classes(80, seed=1)
    detector = RDEDetector(6, kernel="linear", covariance="empirical", score="log_density").fit(train, labels)
    expected = np.empty(len(test))
    for c in (0, 1):
        rows = values_of(train)[labels == c]
        normal = stats.multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True))
        expected[classes == c] = -normal.logpdf(values_of(test)[classes == c])
    np.testing.assert_allclose(detector.score_samples(test), expected, atol=1e-8)
    plain = MLEDetector(score="log_density").fit(train, labels)
    np.testing.assert_allclose(plain.score_samples(test), expected, atol=1e-8)


def test_equals_scikit_learns_parts() -> None:
    train, labels = two_classes(800, 20)
    test, classes = two_classes(200, 20, seed=1)
    detector = RDEDetector(8, solver="exact", algorithm="fast").fit(train, labels)
    pca = PeerPCA(8, kernel="rbf", gamma=1 / 20)
    coordinates = pca.fit_transform(values_of(train))
    expected = np.empty(len(test))
    with threadpool_limits(1):
        for c in (0, 1):
            robust = PeerMCD(random_state=0).fit(coordinates[labels == c])
            expected[classes == c] = robust.mahalanobis(pca.transform(values_of(test)[classes == c]))
    scores = detector.score_samples(test)
    assert stats.spearmanr(scores, expected).statistic > 0.999
    np.testing.assert_allclose(np.median(scores), np.median(expected), rtol=0.05)
    fast = RDEDetector(8, n_landmarks=300).fit(train, labels).score_samples(test)
    assert stats.spearmanr(fast, expected).statistic > 0.995


def test_is_kernel_pca_and_one_robust_gaussian_per_gold_class() -> None:
    train, labels = two_classes(500)
    test, _ = two_classes(50, seed=1)
    detector = RDEDetector(4, max_samples=300, gamma="median", support_fraction=0.8, consistency="median")
    detector.fit(train, labels)
    chosen = np.random.default_rng(0).choice(500, 300, replace=False)
    pca = KernelPCA(4, gamma="median")
    coordinates = pca.fit_transform(train.values[chosen])
    for c in (0, 1):
        robust = MinCovDet(0.8, consistency="median").fit(coordinates[labels[chosen] == c])
        expected = robust.mahalanobis(pca.transform(test.values))
        np.testing.assert_allclose(detector.score_samples(relabelled(test, c)), expected, rtol=1e-8)


@pytest.mark.parametrize("solver", ["exact", "nystrom"])
def test_behaviour_4_rbf_scores_do_not_see_rotation_and_shift(solver: Any) -> None:
    train, labels = two_classes()
    test, classes = two_classes(80, seed=1)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    before = RDEDetector(4, solver=solver, n_landmarks=200).fit(train, labels).score_samples(test)
    moved = [Features.of(values_of(f) @ rotation + 3, c) for f, c in ((train, labels), (test, classes))]
    after = RDEDetector(4, solver=solver, n_landmarks=200).fit(moved[0], labels).score_samples(moved[1])
    np.testing.assert_allclose(after, before, rtol=2e-3)


@pytest.mark.parametrize(
    "detector",
    [
        RDEDetector(6, kernel="linear", covariance="empirical"),
        MLEDetector(),
        MahalanobisDetector(),
        MahalanobisDetector(relative=True),
    ],
    ids=repr,
)
def test_behaviour_4_linear_distances_do_not_see_affine_maps(detector: Detector) -> None:
    train, labels = two_classes()
    test, classes = two_classes(80, seed=1)
    matrix = np.random.default_rng(5).normal(size=(6, 6)) + 3 * np.eye(6)
    before = detector.fit(train, labels).score_samples(test)
    moved = [Features.of(values_of(f) @ matrix - 1, c) for f, c in ((train, labels), (test, classes))]
    after = detector.fit(moved[0], labels).score_samples(moved[1])
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_behaviour_10_the_density_counts_how_wide_a_class_is() -> None:
    train, labels = two_classes()
    settings: dict[str, Any] = {"n_components": 4, "kernel": "linear", "covariance": "empirical"}
    distance = RDEDetector(**settings).fit(train, labels)
    density = RDEDetector(**settings, score="log_density").fit(train, labels)
    coordinates = KernelPCA(4, kernel="linear").fit_transform(train.values)
    volumes = [np.linalg.slogdet(np.cov(coordinates[labels == c].T, bias=True))[1] for c in (0, 1)]
    by_distance = [distance.score_samples(relabelled(train, c)) for c in (0, 1)]
    by_density = [density.score_samples(relabelled(train, c)) for c in (0, 1)]
    np.testing.assert_allclose(
        (by_density[0] - by_density[1]) - (by_distance[0] - by_distance[1]) / 2,
        (volumes[0] - volumes[1]) / 2,
        atol=1e-8,
    )
    # Some text lies nearer to one class and is likelier in the other.
    assert ((by_distance[0] < by_distance[1]) & (by_density[0] > by_density[1])).any() or (
        (by_distance[0] > by_distance[1]) & (by_density[0] < by_density[1])
    ).any()


def test_behaviour_11_conditioning() -> None:
    train, labels = two_classes()
    test, classes = two_classes(90, seed=1)
    detector = RDEDetector(4).fit(train, labels)
    per_class = np.stack([detector.score_samples(relabelled(test, c)) for c in (0, 1)])
    rows = np.arange(90)
    np.testing.assert_array_equal(detector.score_samples(test), per_class[classes, rows])
    swapped = Features.of(test.values, 1 - classes)
    np.testing.assert_array_equal(detector.score_samples(swapped), per_class[1 - classes, rows])
    nearest = RDEDetector(4, condition="min").fit(train, labels)
    np.testing.assert_allclose(nearest.score_samples(test), per_class.min(axis=0), rtol=1e-10)
    with pytest.raises(ValueError, match=r"text 7 is predicted as class 2, .* classes \[0, 1\] only"):
        detector.score_samples(Features.of(test.values, np.where(rows == 7, 2, 0)))
    assert np.isfinite(nearest.score_samples(relabelled(test, 2))).all()


def test_mixture_of_all_classes() -> None:
    train, labels = two_classes()
    test, _ = two_classes(50, seed=1)
    shares = np.bincount(labels) / len(labels)
    settings: dict[str, Any] = {"n_components": 4, "score": "log_density"}
    single = RDEDetector(**settings).fit(train, labels)
    densities = np.stack([np.exp(-single.score_samples(relabelled(test, c))) for c in (0, 1)])
    mixed = RDEDetector(**settings, condition="mixture").fit(train, labels)
    np.testing.assert_allclose(mixed.score_samples(test), -np.log(shares @ densities), rtol=1e-9)
    # Without determinants, and on the scale of a squared distance.
    single, mixed = (
        RDEDetector(4, condition=condition).fit(train, labels) for condition in ("predicted", "mixture")
    )
    halves = np.stack([np.exp(-single.score_samples(relabelled(test, c)) / 2) for c in (0, 1)])
    np.testing.assert_allclose(mixed.score_samples(test), -2 * np.log(shares @ halves), rtol=1e-9)


@pytest.mark.parametrize("detector", [RDEDetector(4, kernel="linear"), MLEDetector()], ids=repr)
def test_behaviour_12_a_class_mean_scores_zero(detector: Detector) -> None:
    train, labels = two_classes()
    detector.fit(train, labels)
    rows = values_of(train)
    if isinstance(detector, MLEDetector):
        mean = rows[labels == 1].mean(axis=0)
    else:
        # The robust mean in coordinates, taken back to features.
        pca = KernelPCA(4, kernel="linear")
        coordinates = pca.fit_transform(train.values)
        axes = np.linalg.lstsq(coordinates, rows - rows.mean(axis=0), rcond=None)[0]
        mean = rows.mean(axis=0) + MinCovDet().fit(coordinates[labels == 1]).location_ @ axes
    score = detector.score_samples(Features.of(mean[None], [1]))[0]
    assert score == pytest.approx(0, abs=1e-6)
    assert score < detector.score_samples(relabelled(train, 1)).min()


@pytest.mark.parametrize("covariance", ["empirical", "ledoit_wolf", "oas", "shared"])
def test_other_covariances(covariance: Any) -> None:
    train, labels = two_classes()
    test, classes = two_classes(60, seed=1)
    detector = RDEDetector(4, covariance=covariance).fit(train, labels)
    pca = KernelPCA(4)
    coordinates, queries = pca.fit_transform(train.values), pca.transform(test.values)
    means = np.stack([coordinates[labels == c].mean(axis=0) for c in (0, 1)])
    if covariance == "shared":
        matrices = [np.cov((coordinates - means[labels]).T, bias=True)] * 2
    else:
        import sklearn.covariance

        estimate = {
            "empirical": lambda rows: np.cov(rows.T, bias=True),
            "ledoit_wolf": lambda rows: sklearn.covariance.ledoit_wolf(rows)[0],
            "oas": lambda rows: sklearn.covariance.oas(rows)[0],
        }[covariance]
        matrices = [estimate(coordinates[labels == c]) for c in (0, 1)]
    expected = [
        (q - means[c]) @ np.linalg.inv(matrices[c]) @ (q - means[c])
        for q, c in zip(queries, classes, strict=True)
    ]
    # scikit-learn's OAS leaves out a small term.
    np.testing.assert_allclose(
        detector.score_samples(test), expected, rtol=2e-2 if covariance == "oas" else 1e-6
    )


def test_standardize() -> None:
    train, labels = two_classes()
    test, classes = two_classes(60, seed=1)
    rows = values_of(train)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    by_hand = [Features.of((values_of(f) - mean) / scale, c) for f, c in ((train, labels), (test, classes))]
    expected = RDEDetector(4).fit(by_hand[0], labels).score_samples(by_hand[1])
    ours = RDEDetector(4, standardize=True).fit(train, labels).score_samples(test)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_odd_texts_in_the_training_data_do_little_harm() -> None:
    train, labels = two_classes(1000)
    test, classes = two_classes(300, seed=1)
    rows = values_of(train)
    rows[::12] += 4
    spoilt = Features.of(rows, labels)
    odd = Features.of(values_of(test) + 4, classes)
    ranks = []
    for covariance in ("mcd", "empirical"):
        detector = RDEDetector(5, kernel="linear", covariance=covariance).fit(spoilt, labels)
        clean, strange = detector.score_samples(test), detector.score_samples(odd)
        ranks.append((strange[:, None] > clean).mean())
    assert ranks[0] > 0.99 and ranks[0] > ranks[1]


# Other detectors --------------------------------------------------------------------------------------------


def test_mahalanobis_by_hand() -> None:
    # Within-class deviations are all (+-1, +-1): the shared covariance is the identity.
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    rows = np.concatenate([corners, corners + np.array([4, 0]), corners + np.array([0, 4])])
    labels = np.repeat([0, 1, 2], 4)
    train, test = Features.of(rows, labels), Features.of([[0, 0], [2, 0], [3, 1]], [2, 2, 2])
    assert MahalanobisDetector().fit(train, labels).score_samples(test) == pytest.approx([0, 4, 2])
    predicted = MahalanobisDetector(condition="predicted").fit(train, labels)
    assert predicted.score_samples(test) == pytest.approx([16, 20, 18])
    centred = rows - rows.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred / 12)
    background = [(x - rows.mean(axis=0)) @ inverse @ (x - rows.mean(axis=0)) for x in values_of(test)]
    relative = MahalanobisDetector(relative=True).fit(train, labels).score_samples(test)
    assert relative == pytest.approx(np.array([0, 4, 2]) - background)


def test_behaviour_22_constant_features_are_accepted() -> None:
    train, labels = two_classes()
    test, classes = two_classes(60, seed=1)
    padded = [
        Features.of(np.concatenate([f.values, np.full((len(f), 2), 5.0)], axis=1), c)
        for f, c in ((train, labels), (test, classes))
    ]
    for detector in (
        MLEDetector(),
        MahalanobisDetector(relative=True),
        RDEDetector(4, gamma=0.1),
        RDEDetector(4, gamma=0.1, standardize=True),
        RDEDetector(4, kernel="linear"),
    ):
        plain = detector.fit(train, labels).score_samples(test)
        wide = detector.fit(padded[0], labels).score_samples(padded[1])
        np.testing.assert_allclose(wide, plain, rtol=1e-5)


# Small classes ----------------------------------------------------------------------------------------------


def uneven(small: int) -> tuple[Features, Array]:
    train, _ = two_classes(600)
    labels = np.zeros(600, dtype=np.int64)
    labels[:small] = 1
    return train, labels


@pytest.mark.parametrize("covariance", ["mcd", "empirical"])
def test_behaviour_22_a_class_of_at_most_p_texts_is_refused(covariance: Any) -> None:
    train, labels = uneven(4)
    with pytest.raises(ValueError, match="class 1 has 4 texts, too few for a covariance in 4 dimensions"):
        RDEDetector(4, covariance=covariance).fit(train, labels)
    with pytest.raises(ValueError, match="class 1 has 6 texts"):
        MLEDetector().fit(*uneven(6))


def test_behaviour_22_small_classes_are_shrunk_if_asked() -> None:
    train, labels = uneven(4)
    detector = RDEDetector(4, on_small_class="shrink")
    with pytest.warns(UserWarning, match="class 1 has 4 texts for 4 dimensions; .* ledoit_wolf"):
        detector.fit(train, labels)
    import torch

    pca = KernelPCA(4)
    rows = torch.from_numpy(pca.fit_transform(train.values))
    matrix, mean = ledoit_wolf(rows[:4]).numpy(), rows[:4].numpy().mean(axis=0)
    expected = [(t - mean) @ np.linalg.inv(matrix) @ (t - mean) for t in rows.numpy()[:20]]
    np.testing.assert_allclose(detector.score_samples(relabelled(train, 1))[:20], expected, rtol=1e-6)
    with pytest.warns(UserWarning, match="the sample has 9 texts for 6 dimensions; .* ledoit_wolf"):
        two, classes = two_classes(9)
        MLEDetector("shared", on_small_class="shrink").fit(two, classes)


def test_fewer_texts_than_twice_the_dimensions_are_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(
        UserWarning, match="class 1 has 7 texts for 4 dimensions, 8 are sensible for the empirical"
    ):
        RDEDetector(4, covariance="empirical").fit(*uneven(7))
    with pytest.warns(
        UserWarning, match="class 1 has 39 texts for 4 dimensions, 40 are sensible for the mcd"
    ):
        RDEDetector(4).fit(*uneven(39))
    recwarn.clear()
    RDEDetector(4).fit(*uneven(40))
    RDEDetector(4, covariance="ledoit_wolf").fit(*uneven(3))
    assert not recwarn.list


def test_one_text_and_one_class() -> None:
    train, labels = uneven(1)
    for covariance in ("mcd", "ledoit_wolf", "shared"):
        with pytest.raises(ValueError, match="class 1 has 1 texts in the sample"):
            RDEDetector(4, covariance=covariance).fit(train, labels)
    with pytest.raises(ValueError, match="class 1 has 0 texts in the sample"):
        RDEDetector(4, max_samples=300).fit(train, np.where(np.arange(600) == _not_sampled(), 1, 0))
    with pytest.warns(UserWarning, match="all texts have the label 0"):
        detector = RDEDetector(4).fit(train, np.zeros(600, dtype=int))
    assert detector.score_samples(relabelled(train, 0)).shape == (600,)
    with pytest.raises(ValueError, match="text 0 is predicted as class 1"):
        detector.score_samples(relabelled(train, 1))


def _not_sampled() -> int:
    return min(set(range(600)) - set(np.random.default_rng(0).choice(600, 300, replace=False).tolist()))


def test_behaviour_22_too_many_components_are_lowered() -> None:
    train, labels = two_classes()
    with pytest.warns(UserWarning, match="vary in 6 directions only"):
        lowered = RDEDetector(50, kernel="linear").fit(train, labels).score_samples(train)
    np.testing.assert_allclose(
        lowered, RDEDetector(6, kernel="linear").fit(train, labels).score_samples(train)
    )


# Manners ----------------------------------------------------------------------------------------------------

EVERY = [
    RDEDetector(4),
    RDEDetector(4, solver="exact", condition="mixture", score="log_density"),
    RDEDetector(4, solver="nystrom", n_landmarks=50, standardize=True, covariance="oas"),
    RDEDetector(4, solver="randomized", algorithm="fast", reweight=False, covariance="mcd"),
    RDEDetector(4, solver="rff", n_landmarks=100, condition="min"),
    RDEDetector(4, kernel="cosine", covariance="shared"),
    RDEDetector(4, kernel="poly", gamma="scale", covariance="ledoit_wolf"),
    MLEDetector(),
    MLEDetector("shared", condition="min", score="log_density"),
    MahalanobisDetector(),
    MahalanobisDetector(relative=True, condition="predicted"),
]


@pytest.mark.parametrize("detector", EVERY, ids=repr)
def test_behaviour_21_manners(detector: Detector, tmp_path: Path) -> None:
    train, labels = two_classes(source="model-a")
    test, _ = two_classes(100, seed=1, source="model-a")
    fresh = clone(detector)
    assert fresh.get_params() == detector.get_params()
    with pytest.raises(NotFittedError):
        fresh.score_samples(test)
    scores = fresh.fit(train, labels).score_samples(test)
    assert scores.shape == (100,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    np.testing.assert_array_equal(clone(detector).fit(train, labels).score_samples(test), scores)
    spoilt = Features(np.where(np.eye(100, 6) > 0, np.nan, test.values), test.predictions)
    with pytest.raises(ValueError, match="row 0 holds NaN"):
        fresh.score_samples(spoilt)

    fresh.calibrate(test, fpr=0.05)
    fresh.save_pretrained(tmp_path / "d")
    again = Detector.from_pretrained(tmp_path / "d")
    assert type(again) is type(detector) and again.get_params() == detector.get_params()
    np.testing.assert_array_equal(again.score_samples(test), scores)
    np.testing.assert_array_equal(again.predict(test), fresh.predict(test))
    for path in (tmp_path / "d").iterdir():
        assert path.suffix in (".json", ".md", ".safetensors") and b"pickle" not in path.read_bytes()
    with pytest.raises(ValueError, match="another classifier"):
        again.score_samples(two_classes(100, source="model-b")[0])
    with pytest.raises(ValueError, match="has 7 features per text"):
        again.score_samples(two_classes(100, 7)[0])


def test_scoring_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkit.detection import density

    train, labels = two_classes()
    detector = RDEDetector(4).fit(train, labels)
    whole = detector.score_samples(train)
    monkeypatch.setattr(density, "_CHUNK", 7)
    np.testing.assert_allclose(detector.score_samples(train), whole, rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance": "plain"}, "covariance is 'plain'"),
        ({"condition": "gold"}, "condition is 'gold'"),
        ({"score": "likelihood"}, "score is 'likelihood'"),
        ({"on_small_class": "skip"}, "on_small_class is 'skip'"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"kernel": "sigmoid"}, "kernel is 'sigmoid'"),
        ({"support_fraction": 2.0}, "support_fraction is 2.0"),
        ({"n_components": -1}, "n_components is -1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDEDetector(**settings)
    with pytest.raises(ValueError, match=message):
        RDEDetector().set_params(**settings)


def test_bad_settings_of_the_others() -> None:
    mcd: Any = "mcd"
    with pytest.raises(ValueError, match="covariance is 'mcd'; expected one of \\('empirical'"):
        MLEDetector(mcd)
    with pytest.raises(ValueError, match="condition is 'mcd'"):
        MahalanobisDetector(condition=mcd)
