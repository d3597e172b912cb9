import math

import numpy as np
import pytest
import torch

from robustkit.classifiers import Features
from robustkit.detection import KNNDetector, LIDDetector, neighbours
from robustkit.detection.neighbours import nearest_distances

GENERATOR = np.random.default_rng(0)
TRAIN = GENERATOR.normal(3, 1, size=(300, 6)).astype(np.float32)
LABELS = np.arange(300) % 2
QUERIES = GENERATOR.normal(3, 2, size=(40, 6)).astype(np.float32)


def of(values, predictions=None):
    return Features.of(values, np.zeros(len(values), int) if predictions is None else predictions)


def test_distances_equal_scikit_learn(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=7).fit(TRAIN.astype(float))
    expected = model.kneighbors(QUERIES.astype(float))[0]
    found = nearest_distances(torch.from_numpy(QUERIES), torch.from_numpy(TRAIN), 7)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    monkeypatch.setattr(neighbours, "_SLICE", 900)  # three queries at a time
    in_slices = nearest_distances(torch.from_numpy(QUERIES), torch.from_numpy(TRAIN), 7)
    np.testing.assert_allclose(in_slices, expected, rtol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_knn_equals_scikit_learn(normalize):
    from sklearn.neighbors import NearestNeighbors

    def rows(values):
        lengths = np.linalg.norm(values.astype(float), axis=1, keepdims=True)
        return values / lengths if normalize else values.astype(float)

    detector = KNNDetector(k=4, normalize=normalize).fit(of(TRAIN), LABELS)
    expected = NearestNeighbors(n_neighbors=4).fit(rows(TRAIN)).kneighbors(rows(QUERIES))[0][:, -1]
    np.testing.assert_allclose(detector.score_samples(of(QUERIES)), expected, rtol=1e-5)


def test_condition_takes_texts_of_the_predicted_class():
    predictions = np.arange(40) % 2
    detector = KNNDetector(k=3, condition="predicted").fit(of(TRAIN), LABELS)
    found = detector.score_samples(of(QUERIES, predictions))
    for label in (0, 1):
        only = KNNDetector(k=3).fit(of(TRAIN[label == LABELS]), LABELS[label == LABELS])
        mine = predictions == label
        np.testing.assert_array_equal(found[mine], only.score_samples(of(QUERIES[mine])))
    with pytest.raises(ValueError, match="text 1 is predicted as class 5"):
        detector.score_samples(of(QUERIES[:2], [0, 5]))


def test_lid_by_hand():
    # Distances 1, 2, 4 from the origin: -1 / mean(log(1/4), log(2/4), log 1) = 1 / log 2.
    train = np.array([[1.0, 0], [0, 2], [-4, 0], [9, 9]])
    detector = LIDDetector(k=3).fit(of(train), [0, 0, 1, 1])
    assert detector.score_samples(of([[0.0, 0.0]]))[0] == pytest.approx(1 / math.log(2), rel=1e-6)


def test_lid_estimates_the_dimension():
    """On uniform points of a d-dimensional cube the estimate is near d."""
    for dimension in (2, 5):
        points = np.zeros((4000, 10))
        points[:, :dimension] = np.random.default_rng(1).uniform(size=(4000, dimension))
        middle = np.full((50, 10), 0.0)
        middle[:, :dimension] = np.random.default_rng(2).uniform(0.4, 0.6, size=(50, dimension))
        scores = LIDDetector(k=100).fit(of(points), np.zeros(4000, int)).score_samples(of(middle))
        assert scores.mean() == pytest.approx(dimension, rel=0.15)


def test_lid_of_copies_and_of_equal_distances():
    train = np.array([[0.0, 1], [1, 0], [0, -1], [-1, 0]])
    detector = LIDDetector(k=4).fit(of(train), [0, 1, 0, 1])
    assert detector.score_samples(of([[0.0, 0.0]]))[0] == 1e6
    copies = LIDDetector(k=2).fit(of(np.ones((3, 2))), [0, 0, 0])
    assert copies.score_samples(of([[1.0, 1.0]]))[0] == 0
    one_copy = LIDDetector(k=2).fit(of([[1.0, 1], [2, 2]]), [0, 0])
    assert one_copy.score_samples(of([[1.0, 1.0]]))[0] == 0


def test_sample_is_seeded_and_bounded():
    first, again, other = (
        KNNDetector(max_samples=50, random_state=seed).fit(of(TRAIN), LABELS).score_samples(of(QUERIES))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bad_input():
    with pytest.raises(ValueError, match="k is 0"):
        KNNDetector(k=0)
    with pytest.raises(ValueError, match="needs at least 2"):
        LIDDetector(k=1)
    with pytest.raises(ValueError, match="condition is 'near'"):
        KNNDetector(condition="near")
    with pytest.raises(ValueError, match="max_samples is 5"):
        KNNDetector(max_samples=5)
    with pytest.raises(ValueError, match="there are 9 texts in all"):
        KNNDetector(k=10).fit(of(TRAIN[:9]), LABELS[:9])
    with pytest.raises(ValueError, match="9 texts in the smallest class"):
        KNNDetector(k=10, condition="predicted").fit(of(TRAIN[:19]), LABELS[:19])
