"""Metrics of detection: hand values, agreement with scikit-learn, thresholds, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from robustkit.detection.metrics import detection_report, roc_curve, threshold_from_clean

CLEAN = [1.0, 2.0, 3.0, 4.0]
ADVERSARIAL = [2.5, 3.5, 5.0, 6.0]
SCORES = np.array(CLEAN + ADVERSARIAL)
IS_ADV = np.array([False] * 4 + [True] * 4)


@pytest.mark.parametrize(
    ("fpr", "tpr", "f1", "threshold"), [(0.25, 0.75, 0.75, 3.5), (0.10, 0.5, 2 / 3, 5.0)]
)
def test_behaviour_13_hand_values(fpr: float, tpr: float, f1: float, threshold: float) -> None:
    report = detection_report(SCORES, IS_ADV, fpr=fpr)
    assert report.auc == 0.8125
    assert (report.tpr_at_fpr, report.recall, report.threshold) == (tpr, tpr, threshold)
    assert report.f1 == pytest.approx(f1, abs=1e-15)
    assert report.ci == {}


def test_behaviour_14_ties_perfect_split_and_swapped_labels() -> None:
    ties = detection_report(np.ones(8), IS_ADV)
    assert (ties.auc, ties.tpr_at_fpr, ties.f1, ties.threshold) == (0.5, 0.0, 0.0, math.inf)
    perfect = detection_report(IS_ADV.astype(float), IS_ADV)
    assert (perfect.auc, perfect.aupr, perfect.tpr_at_fpr, perfect.f1, perfect.fpr) == (1, 1, 1, 1, 0)
    assert detection_report(SCORES, ~IS_ADV).auc == 1 - 0.8125


def test_behaviour_14_negative_scores_give_what_shifted_positive_ones_give() -> None:
    positive, negative = detection_report(SCORES, IS_ADV), detection_report(SCORES - 100, IS_ADV)
    assert negative.threshold == positive.threshold - 100
    for name in ("auc", "aupr", "tpr_at_fpr", "fpr", "f1", "precision", "recall"):
        assert getattr(negative, name) == getattr(positive, name)


@st.composite
def scored(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    n = draw(st.integers(2, 60))
    scores = draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda x: 0 < sum(x) < len(x)))
    return np.array(scores, dtype=float), np.array(labels)


@given(scored(), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]))
@settings(max_examples=150, deadline=None)
def test_figures_agree_with_scikit_learn(
    case: tuple[NDArray[np.float64], NDArray[np.bool_]], fpr: float
) -> None:
    scores, labels = case
    curve, report = roc_curve(scores, labels), detection_report(scores, labels, fpr=fpr)
    expected = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip((curve.fpr, curve.tpr, curve.thresholds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert report.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert report.aupr == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    allowed = expected[0] <= fpr
    assert report.tpr_at_fpr == pytest.approx(expected[1][allowed].max(), abs=1e-12)
    flagged = scores >= expected[2][allowed].min()
    assert report.f1 == pytest.approx(f1_score(labels, flagged, zero_division=0), abs=1e-12)
    assert report.precision == pytest.approx(precision_score(labels, flagged, zero_division=0), abs=1e-12)
    assert report.recall == pytest.approx(recall_score(labels, flagged), abs=1e-12)
    assert report.fpr == pytest.approx(flagged[~labels].mean(), abs=1e-12)


@given(scored(), st.integers(-10, 10).map(lambda x: x / 2))
@settings(max_examples=100, deadline=None)
def test_a_given_threshold_flags_what_exceeds_it(
    case: tuple[NDArray[np.float64], NDArray[np.bool_]], threshold: float
) -> None:
    scores, labels = case
    report = detection_report(scores, labels, threshold=threshold)
    flagged = scores > threshold
    assert report.threshold == threshold
    assert report.recall == pytest.approx(recall_score(labels, flagged), abs=1e-12)
    assert report.fpr == pytest.approx(flagged[~labels].mean(), abs=1e-12)
    assert report.f1 == pytest.approx(f1_score(labels, flagged, zero_division=0), abs=1e-12)
    assert report.precision == pytest.approx(precision_score(labels, flagged, zero_division=0), abs=1e-12)


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.29])
@pytest.mark.parametrize("n", [99, 100, 1000])
def test_behaviour_15_the_calibrated_threshold_keeps_its_rate(fpr: float, n: int) -> None:
    generator = np.random.default_rng(n)
    clean, fresh = generator.normal(size=n), generator.normal(size=20_000)
    threshold = threshold_from_clean(clean, fpr)
    assert np.mean(clean > threshold) <= fpr
    # A random threshold and fresh texts: two binomial errors, taken four times.
    error = 4 * math.sqrt(fpr * (1 - fpr) * (1 / n + 1 / 20_000))
    assert fpr - error - 1 / n < np.mean(fresh > threshold) < fpr + error


def test_the_threshold_is_the_kth_largest_clean_score() -> None:
    assert threshold_from_clean(range(1, 100), 0.10) == 90.0  # k = floor(0.1 * 100) = 10
    assert threshold_from_clean(range(1, 100), 0.29) == 71.0  # 0.29 * 100 is 28.999999999999996 in floats
    with pytest.raises(ValueError, match="give at least 9"):
        threshold_from_clean(range(8), 0.10)
    assert threshold_from_clean(range(9), 0.10) == 8.0


def test_intervals_hold_the_figures_and_shrink_with_more_texts() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for n in (50, 800):
        labels = np.arange(2 * n) >= n
        scores = generator.normal(size=2 * n) + 1.5 * labels
        report = detection_report(scores, labels, n_boot=200)
        assert set(report.ci) == {"auc", "aupr", "tpr_at_fpr", "fpr", "f1", "precision", "recall"}
        for name, (low, high) in report.ci.items():
            assert low <= getattr(report, name) <= high or name == "fpr", name
        widths.append(report.ci["auc"][1] - report.ci["auc"][0])
    # Hanley and McNeil: the standard error at AUC .856 and 800 + 800 texts is about .0095.
    assert widths[1] == pytest.approx(2 * 1.96 * 0.0095, rel=0.25)
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.4)


def test_pairs_of_one_source_are_drawn_together() -> None:
    """Each pair is ordered rightly, so precision within a resample varies only if pairs are torn apart."""
    generator = np.random.default_rng(1)
    base = np.repeat(generator.normal(size=60) * 10, 2)
    labels = np.tile([False, True], 60)
    paired = detection_report(base + labels, labels, n_boot=300, source_id=np.repeat(np.arange(60), 2))
    torn = detection_report(base + labels, labels, n_boot=300)
    assert paired.auc == torn.auc
    width = {name: r.ci["auc"][1] - r.ci["auc"][0] for name, r in (("paired", paired), ("torn", torn))}
    assert width["paired"] < 0.4 * width["torn"]


def test_the_bootstrap_repeats_with_its_seed_and_ignores_the_names_of_sources() -> None:
    labels, ids = np.tile([False, True], 30), np.repeat(np.arange(30)[::-1], 2)
    scores = np.random.default_rng(5).normal(size=60) + labels
    one = detection_report(scores, labels, n_boot=50, source_id=ids, seed=3)
    assert detection_report(scores, labels, n_boot=50, source_id=ids * 2, seed=3) == one
    assert detection_report(scores, labels, n_boot=50, source_id=ids, seed=4).ci != one.ci


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        (SCORES[:3], IS_ADV, {}, "shape"),
        ([1.0, math.nan], [True, False], {}, "score 1 is nan"),
        (SCORES, np.ones(8), {}, "all 8 texts are adversarial"),
        (SCORES, np.zeros(8), {}, "all 8 texts are clean"),
        (SCORES, np.arange(8), {}, "booleans"),
        ([], [], {}, "n >= 1"),
        (SCORES, IS_ADV, {"fpr": 0.0}, "fpr is 0.0"),
        (SCORES, IS_ADV, {"threshold": math.inf}, "threshold is inf"),
        (SCORES, IS_ADV, {"n_boot": -1}, "n_boot is -1"),
        (SCORES, IS_ADV, {"n_boot": 1, "source_id": [1, 2]}, "source_id has shape"),
    ],
)
def test_bad_input_is_refused(
    scores: object, labels: object, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detection_report(scores, labels, **options)  # type: ignore[arg-type]
