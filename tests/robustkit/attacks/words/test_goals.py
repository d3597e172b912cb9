from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.attacks.words.goals import (
    Gradients,
    Probabilities,
    TargetedClassification,
    UntargetedClassification,
)
from tests.robustkit.attacks.words.toys import ToyClassifier


def p(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_untargeted_score_is_one_minus_the_true_class_in_32_bits() -> None:
    score = UntargetedClassification().score(p(0.7, 0.2, 0.1), 1)
    assert isinstance(score, np.float32)
    assert score == np.float32(1) - np.float32(0.2)


@pytest.mark.parametrize(
    ("goal_score", "probabilities", "reached"),
    [
        (None, (0.49, 0.51), True),
        (None, (0.51, 0.49), False),
        (None, (0.5, 0.5), False),  # the first of equal classes is predicted
        (0.9, (0.11, 0.89), False),
        (0.9, (0.09, 0.91), True),
        (0.5, (0.5, 0.5), False),
        # Three classes: p(true) is below 0.1, but no wrong class has 0.9.
        (0.9, (0.05, 0.5, 0.45), False),
        (0.9, (0.05, 0.92, 0.03), True),
        (0.4, (0.35, 0.42, 0.23), True),
        (0.2, (0.4, 0.3, 0.3), False),  # still predicted right
    ],
)
def test_untargeted_goal(goal_score: float | None, probabilities: tuple[float, ...], reached: bool) -> None:
    assert UntargetedClassification(goal_score).reached(p(*probabilities), 0) is reached


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_goal_score_is_never_easier(weights: list[float], one: float, other: float) -> None:
    probabilities = p(*weights) / np.float32(sum(weights))
    low, high = sorted((one, other))
    if UntargetedClassification(high).reached(probabilities, 0):
        assert UntargetedClassification(low).reached(probabilities, 0)
        assert UntargetedClassification().reached(probabilities, 0)


def test_misclassified_originals_are_pointless_whatever_the_goal_score() -> None:
    for goal in (UntargetedClassification(), UntargetedClassification(0.9)):
        assert goal.pointless(p(0.3, 0.7), 0)
        assert not goal.pointless(p(0.6, 0.4), 0)


def test_targeted_goal() -> None:
    goal = TargetedClassification(2, goal_score=0.6)
    assert goal.score(p(0.1, 0.2, 0.7), 0) == np.float32(0.7)
    assert goal.reached(p(0.1, 0.2, 0.7), 0)
    assert not goal.reached(p(0.1, 0.35, 0.55), 0)
    assert not goal.reached(p(0.7, 0.2, 0.1), 0)
    assert goal.pointless(p(0.9, 0.05, 0.05), 2), "the true class is the target"
    assert goal.pointless(p(0.1, 0.2, 0.7), 0), "taken for the target already"
    assert not goal.pointless(p(0.3, 0.4, 0.3), 0), "misclassified, but not as the target"


def test_goals_refuse_what_makes_no_sense() -> None:
    for goal_score in (-0.1, 1.1):
        with pytest.raises(ValueError, match="goal_score"):
            UntargetedClassification(goal_score)
        with pytest.raises(ValueError, match="goal_score"):
            TargetedClassification(0, goal_score)
    with pytest.raises(ValueError, match="0 to 1"):
        TargetedClassification(2).check(2)
    with pytest.raises(ValueError, match="at least 2"):
        UntargetedClassification().check(1)


def test_services_answer_in_order() -> None:
    classifier = ToyClassifier(3)
    texts = ["bal ben", "kol", ""]
    answers = Probabilities(classifier).answer(texts)
    logits = classifier.logits(texts).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack(list(answers)), expected, rtol=1e-5)
    assert answers[0].dtype == np.float32

    ((tokens, gradient), _) = Gradients(classifier).answer([("bal ben", 1), ("kol", 0)])
    assert tokens == ["[CLS]", "bal", "ben", "[SEP]"]
    assert gradient.shape == (4, 6)
