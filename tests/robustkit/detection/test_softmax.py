import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robustkit.classifiers import Features
from robustkit.detection import MSPDetector
from robustkit.detection.softmax import softmax_scores

KINDS = ("max", "margin", "entropy", "energy")


def of(logits):
    logits = np.asarray(logits, np.float32)
    return Features.of(np.zeros((len(logits), 0)), logits=logits)


def test_hand_values_behaviour_23():
    sigmoid = 1 / (1 + math.exp(-2))
    assert MSPDetector().score_samples(of([[2, 0]]))[0] == pytest.approx(1 - sigmoid, rel=1e-14)
    assert softmax_scores(np.array([[2.0, 0.0]]), "margin")[0] == pytest.approx(2 * (1 - sigmoid), rel=1e-14)
    entropy = -sigmoid * math.log(sigmoid) - (1 - sigmoid) * math.log(1 - sigmoid)
    assert softmax_scores(np.array([[0.0, 2.0]]), "entropy")[0] == pytest.approx(entropy, rel=1e-14)
    energy = -math.log(math.exp(2) + 1)
    assert softmax_scores(np.array([[2.0, 0.0]]), "energy")[0] == pytest.approx(energy, rel=1e-14)
    # p = 1/2, 1/4, 1/4
    logits = np.log([[2.0, 1.0, 1.0]])
    expected = {"max": 0.5, "margin": 0.75, "entropy": 1.5 * math.log(2), "energy": -math.log(4)}
    for kind in KINDS:
        assert softmax_scores(logits, kind)[0] == pytest.approx(expected[kind], rel=1e-14)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float64, (4, 3), elements=st.floats(-30, 30)))
def test_equals_scipy(logits):
    from scipy.special import logsumexp, softmax
    from scipy.stats import entropy

    p = np.sort(softmax(logits, axis=1), axis=1)
    np.testing.assert_allclose(softmax_scores(logits, "max"), 1 - p[:, -1], atol=1e-12)
    np.testing.assert_allclose(softmax_scores(logits, "margin"), 1 - (p[:, -1] - p[:, -2]), atol=1e-12)
    np.testing.assert_allclose(softmax_scores(logits, "entropy"), entropy(p, axis=1), atol=1e-12)
    np.testing.assert_allclose(softmax_scores(logits, "energy"), -logsumexp(logits, axis=1), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_very_sure_predictions_keep_their_order(kind):
    scores = softmax_scores(np.array([[50.0, 0.0], [60.0, 0.0], [300.0, 0.0]]), kind)
    assert (np.diff(scores) < 0).all()
    assert np.isfinite(softmax_scores(np.array([[3e38, -3e38]]), kind)).all()


def test_needs_no_fit_and_no_vectors():
    detector = MSPDetector()
    clean = of(np.c_[np.linspace(1, 3, 50), np.zeros(50)])
    threshold = detector.calibrate(clean, fpr=0.1)
    assert detector.predict(clean).mean() <= 0.1
    assert threshold == np.sort(detector.score_samples(clean))[-5]
    assert len(detector.score_samples(clean[:0])) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="kind is 'least'"):
        MSPDetector("least")
    with pytest.raises(ValueError, match="reads logits"):
        MSPDetector().score_samples(Features.of([[1.0]], [0]))
    with pytest.raises(ValueError, match="two classes"):
        MSPDetector().score_samples(of([[1.0]]))
