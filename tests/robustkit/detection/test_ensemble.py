import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.classifiers import Features
from robustkit.detection import EnsembleDetector, KNNDetector, MahalanobisDetector, MSPDetector
from robustkit.detection.ensemble import decorrelated_weights, effective_number, surprise

METHODS = ("fisher", "stouffer", "min")


class Column(MSPDetector):
    """Scores a text by one number of its features."""

    def __init__(self, column: int = 0) -> None:
        self.column = column
        super().__init__()

    def _fit(self, clean, labels, adversarial):
        pass

    def _score(self, inputs):
        return inputs.values[:, self.column].astype(float)


def of(values, seed=0):
    values = np.asarray(values)
    logits = np.random.default_rng(seed).normal(size=(len(values), 2))
    return Features.of(values, logits=logits, source="model")


def normal(n, correlation, seed):
    matrix = np.asarray(correlation, float)
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(matrix)), matrix, size=n)


def ensemble(clean, m, **options):
    detector = EnsembleDetector([Column(i) for i in range(m)], **options)
    detector.calibrate(of(clean))
    return detector


def test_surprise_by_hand():
    clean = np.arange(1.0, 20.0)  # 19 scores; the 90 % quantile is 17.2
    # Above 10.5 there are 9, half a text for the text itself: (9 + .5) / 20.
    found = surprise(clean, [10.5, 0.0, 10.0, 17.2, 17.2 + 1.3, 100.0])
    mean_excess = (0.8 + 1.8) / 2
    expected = [9.5 / 20, 19.5 / 20, 10 / 20, 2.5 / 20, 0.1 * np.exp(-1.3 / mean_excess)]
    np.testing.assert_allclose(found[:5], -np.log(expected), rtol=1e-12)
    assert found[5] == pytest.approx(-np.log(0.1) + 82.8 / mean_excess)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.lists(st.integers(-90, 90), min_size=2))
def test_surprise_is_positive_finite_and_never_falls(clean, scores):
    found = surprise(np.sort(np.array(clean, float)), np.sort(np.array(scores, float)))
    assert (found > 0).all() and np.isfinite(found).all()
    assert (np.diff(found) >= -1e-12).all()


def test_one_member_orders_texts_as_it_does():
    clean, new = normal(500, [[1]], 0), normal(200, [[1]], 1) * 3
    for method in METHODS:
        scores = ensemble(clean, 1, method=method).score_samples(of(new))
        assert (np.diff(scores[np.argsort(new[:, 0])]) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_tail_p_values_equal_scipys_for_independent_members(method):
    from scipy.stats import combine_pvalues

    clean = normal(4000, np.eye(3), 2)
    detector = ensemble(clean, 3, method=method)
    new = of(normal(100, np.eye(3), 3) + 0.5)
    members = np.stack([surprise(np.sort(clean[:, i]), new.values[:, i]) for i in range(3)], axis=1)
    names = {"fisher": "fisher", "stouffer": "stouffer", "min": "tippett"}
    expected = [combine_pvalues(np.exp(-row), method=names[method]).pvalue for row in members]
    # The members' correlation is estimated: up to 0.03 instead of 0.
    np.testing.assert_allclose(np.log(detector.tail_p_values(new)), np.log(expected), rtol=0.06, atol=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.0), "decorrelated"])
def test_p_values_are_right_for_dependent_members(method, weights):
    """The share of clean texts below p is p, though two members say nearly the same."""
    matrix = [[1, 0.9, 0.2], [0.9, 1, 0.2], [0.2, 0.2, 1]]
    detector = ensemble(normal(3000, matrix, 4), 3, method=method, weights=weights)
    new = of(normal(3000, matrix, 5))
    for p in (0.05, 0.2):
        tolerance = 4 * np.sqrt(2 * p * (1 - p) / 3000)
        assert abs((detector.p_values(new) <= p).mean() - p) < tolerance
        # By formula, and so by approximation.
        assert abs((detector.tail_p_values(new) <= p).mean() - p) < tolerance + 0.15 * p


def test_without_the_correction_they_would_be_wrong():
    from scipy.stats import combine_pvalues

    matrix = np.full((3, 3), 0.9) + 0.1 * np.eye(3)
    clean, new = normal(3000, matrix, 6), normal(1000, matrix, 7)
    members = np.stack([surprise(np.sort(clean[:, i]), new[:, i]) for i in range(3)], axis=1)
    naive = np.array([combine_pvalues(np.exp(-row), method="fisher").pvalue for row in members])
    assert (naive <= 0.05).mean() > 0.08
    corrected = ensemble(clean, 3, method="fisher").tail_p_values(of(new))
    assert abs((corrected <= 0.05).mean() - 0.05) < 0.025


def test_decorrelated_weights():
    np.testing.assert_allclose(decorrelated_weights(np.eye(3)), [1, 1, 1], rtol=1e-9)
    twins = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    weights = decorrelated_weights(twins)
    assert weights[0] + weights[1] == pytest.approx(weights[2], rel=1e-4)
    matrix = np.array([[1, 0.3, 0.1], [0.3, 1, 0.2], [0.1, 0.2, 1]])
    expected = np.linalg.solve(matrix, np.ones(3))
    np.testing.assert_allclose(decorrelated_weights(matrix), expected / expected.mean(), rtol=1e-9)
    # R^-1 1 would be negative for the first.
    assert decorrelated_weights(np.array([[1, 0.7, 0.7], [0.7, 1, 0.0], [0.7, 0.0, 1]])).min() == 0


def test_effective_number():
    assert effective_number(np.eye(4)) == pytest.approx(4)
    assert effective_number(np.ones((4, 4))) == pytest.approx(1)


def test_a_signal_in_one_of_many_members_is_for_min_a_shared_one_for_stouffer():
    clean = normal(2000, np.eye(6), 8)
    one, shared = normal(400, np.eye(6), 9), normal(400, np.eye(6), 9) + 0.8
    one[:, 2] += 3

    def power(method, shifted):
        return ensemble(clean, 6, method=method).predict(of(shifted)).mean()

    assert power("min", one) > power("stouffer", one)
    assert power("stouffer", shared) > power("min", shared)


def test_fit_fits_members_once_from_the_same_features(monkeypatch):
    values, labels = normal(300, np.eye(4), 10), np.arange(300) % 2
    members = [MahalanobisDetector(), KNNDetector(k=3), MSPDetector("energy")]
    seen = []
    for member in members:
        fit = member.fit
        monkeypatch.setattr(member, "fit", lambda *given, fit=fit: seen.append(given[0]) or fit(*given))
    train = of(values[:200])
    detector = EnsembleDetector(members).fit(train, labels[:200])
    assert len(seen) == 3 and all(features is train for features in seen)
    detector.calibrate(of(values[200:]))
    scores = detector.score_samples(of(values[:9] * 2))
    # Members that are fitted already need no fit.
    ready = EnsembleDetector(members)
    ready.calibrate(of(values[200:]))
    np.testing.assert_array_equal(ready.score_samples(of(values[:9] * 2)), scores)


def test_a_member_that_says_nothing_changes_nothing():
    clean, new = normal(300, np.eye(1), 11), normal(50, np.eye(1), 12)
    with_constant = ensemble(np.c_[clean, np.ones(300)], 2).score_samples(of(np.c_[new, np.ones(50)]))
    alone = ensemble(clean, 1).score_samples(of(new))
    np.testing.assert_array_equal(np.argsort(with_constant), np.argsort(alone))
    assert np.isfinite(with_constant).all()


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        EnsembleDetector([])
    with pytest.raises(ValueError, match="method is 'mean'"):
        EnsembleDetector([MSPDetector()], method="mean")
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="weights is"):
            EnsembleDetector([MSPDetector(), MSPDetector("energy")], weights=weights)
    with pytest.raises(ValueError, match="call calibrate"):
        EnsembleDetector([MSPDetector()]).score_samples(of([[1.0]]))
    with pytest.raises(ValueError, match="not fitted"):
        EnsembleDetector([KNNDetector()]).calibrate(of([[1.0]] * 20))
