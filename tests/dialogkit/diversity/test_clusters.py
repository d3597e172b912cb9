"""Semantic clusters: fitted as the specification says, the same after saving, plain about bad input."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.diversity import DifferentClustersError, SemanticClusters, SemEnt, principal_components
from trainkit.hub import ArtefactError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")

BACKENDS = ("faiss", "sklearn")


class ByLetters:
    """Counts letters: a deterministic encoder whose vectors are easy to foresee; empty texts are zero."""

    name = "letters"
    fingerprint = "letters 1"

    def __init__(self) -> None:
        self.largest = 0

    def encode(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        self.largest = max(self.largest, len(texts))
        return np.array([[text.count(letter) for letter in "abcdef"] for text in texts], np.float32)


def cloud(n: int = 300, d: int = 12, seed: int = 0) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, d)) * np.geomspace(3, 0.1, d) + 0.5).astype(np.float32)


RESPONSES = [letter * (1 + i % 3) + "ab"[i % 2] for letter in "abcdef" for i in range(6)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_s5_assigning_the_training_vectors_gives_the_training_labels(backend: Any) -> None:
    vectors = cloud()
    clusters = SemanticClusters.fit(vectors, k=7, backend=backend, n_iter=20)
    assert clusters.assign(vectors).tolist() == clusters.train_labels.tolist()
    parts = [clusters.assign(vectors[i : i + 1])[0] for i in range(0, 300, 7)]
    assert parts == clusters.train_labels[::7].tolist()
    assert clusters.train_histogram.sum() == pytest.approx(1.0)
    assert sorted(set(clusters.train_labels)) == list(range(7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_are_those_of_the_nearest_centroid(backend: Any) -> None:
    vectors = cloud()
    clusters = SemanticClusters.fit(vectors, k=5, backend=backend, n_iter=20)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    points = (unit - unit.mean(axis=0)) @ clusters.components.T.astype(np.float64)
    squared = ((points[:, None] - clusters.centroids) ** 2).sum(axis=2)
    assert clusters.train_labels.tolist() == squared.argmin(axis=1).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_s6_two_tight_blobs_are_split(backend: Any) -> None:
    random = np.random.default_rng(3)
    blobs = np.concatenate([[1.0, 0, 0] + 0.01 * random.normal(size=(50, 3)),
                            [0, 1.0, 0] + 0.01 * random.normal(size=(30, 3))])  # fmt: skip
    labels = SemanticClusters.fit(blobs, k=2, backend=backend).train_labels
    assert len(set(labels[:50])) == len(set(labels[50:])) == 1 and labels[0] != labels[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_s6_same_seed_same_clusters(backend: Any) -> None:
    vectors = cloud()
    fits = [
        SemanticClusters.fit(vectors, k=6, backend=backend, seed=seed, n_iter=30, max_points_per_centroid=20)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(fits[0].centroids, fits[1].centroids)
    assert fits[0].fingerprint == fits[1].fingerprint != fits[2].fingerprint


def test_s6_save_and_load_are_identical(tmp_path: Path) -> None:
    clusters = SemanticClusters.fit(RESPONSES, ByLetters(), k=5)
    clusters.save_pretrained(tmp_path / "clusters")
    loaded = SemanticClusters.from_pretrained(tmp_path / "clusters")
    assert loaded.fingerprint == clusters.fingerprint
    assert loaded.train_labels.tolist() == clusters.train_labels.tolist()
    assert loaded.settings == clusters.settings
    assert loaded.encoder is None and loaded.encoder_name == "letters"
    vectors = ByLetters().encode(RESPONSES)
    assert loaded.assign(vectors).tolist() == clusters.train_labels.tolist()
    with pytest.raises(ValueError, match="texts need an encoder"):
        loaded.assign(RESPONSES)
    assert loaded.attach(ByLetters()).assign(RESPONSES).tolist() == clusters.train_labels.tolist()
    assert [loaded.examples(j, 3) for j in range(5)] == [clusters.examples(j, 3) for j in range(5)]
    assert not list(tmp_path.rglob("*.pkl"))
    assert "Sem-Ent" in (tmp_path / "clusters" / "README.md").read_text()


def test_s7_width_is_the_least_that_explains_the_share() -> None:
    vectors = cloud().astype(np.float64)
    reference = decomposition.PCA().fit(vectors)
    cumulative = np.cumsum(reference.explained_variance_ratio_)
    for share in (0.3, 0.9, 0.99):
        mean, components, explained = principal_components(vectors, share)
        width = int((cumulative < share).sum()) + 1
        assert len(components) == width
        assert explained == pytest.approx(cumulative[width - 1], abs=1e-9)
        np.testing.assert_allclose(mean, vectors.mean(axis=0), atol=1e-6)
        same = np.abs((components * reference.components_[:width]).sum(axis=1))
        np.testing.assert_allclose(same, 1.0, atol=1e-5)
        np.testing.assert_allclose(components @ components.T, np.eye(width), atol=1e-5)
    assert principal_components(vectors, 1.0)[1].shape == (12, 12)
    # Fewer vectors than dimensions: the rest of the directions hold no variance.
    assert len(principal_components(vectors[:4], 1.0)[1]) <= 4
    assert SemanticClusters.fit(cloud(), k=3, pca_variance=0.3).components.shape[0] < 12


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e4))
def test_s7_scaling_vectors_changes_nothing(factor: float) -> None:
    vectors = cloud(120)
    plain = SemanticClusters.fit(vectors, k=4, n_iter=20)
    scaled = SemanticClusters.fit((vectors.astype(np.float64) * factor), k=4, n_iter=20)
    assert scaled.train_labels.tolist() == plain.train_labels.tolist()
    raw = SemanticClusters.fit(vectors, k=4, n_iter=20, normalize=False)
    assert plain.assign(vectors * 3).tolist() == plain.train_labels.tolist()
    assert raw.assign(vectors * 3).tolist() != raw.train_labels.tolist()


def test_faiss_settings_are_those_of_the_specification() -> None:
    vectors = cloud(400, 5)
    plain: dict[str, Any] = {"k": 4, "normalize": False, "pca_variance": 1.0}
    clusters = SemanticClusters.fit(vectors, **plain, max_points_per_centroid=50)
    points = (vectors - clusters.mean) @ clusters.components.T
    kmeans = faiss.Kmeans(5, 4, niter=500, nredo=5, seed=27, max_points_per_centroid=50)
    kmeans.train(points.astype(np.float32))
    np.testing.assert_allclose(clusters.centroids, kmeans.centroids, atol=1e-4)
    every = SemanticClusters.fit(vectors, **plain, max_points_per_centroid=None)
    assert not np.allclose(every.centroids, clusters.centroids, atol=1e-4)


def test_learning_from_many_vectors_is_as_good_as_whole_runs() -> None:
    from sklearn.cluster import KMeans

    vectors = cloud(5000, 6)
    plain: dict[str, Any] = {"k": 4, "normalize": False, "pca_variance": 1.0}  # 4 * 1024 < 5000

    def inertia(**arguments: Any) -> float:
        clusters = SemanticClusters.fit(vectors, **plain, **arguments)
        points = (vectors - clusters.mean) @ clusters.components.T
        return float(((points - clusters.centroids[clusters.train_labels]) ** 2).sum())

    every = inertia(max_points_per_centroid=None)
    best = KMeans(4, n_init=10, random_state=0).fit(vectors).inertia_
    assert 0.999 * best < every < 1.02 * best
    assert every < inertia(max_points_per_centroid=10)
    assert every == pytest.approx(inertia(max_points_per_centroid=None), rel=1e-6)


def test_examples_are_distinct_central_and_few() -> None:
    texts = ["aaaa", "aaaa", "aaab", "cccc", "ccce", "cccc"]
    clusters = SemanticClusters.fit(texts, ByLetters(), k=2)
    first, other = int(clusters.train_labels[0]), int(clusters.train_labels[3])
    assert sorted(clusters.examples(first)) == ["aaaa", "aaab"]
    assert clusters.examples(first, 1) == ["aaaa"]
    assert clusters.examples(other)[0] == "cccc"
    with pytest.raises(IndexError, match="clusters 0 to 1, got 2"):
        clusters.examples(2)
    bare = SemanticClusters.fit(ByLetters().encode(texts), k=2)
    with pytest.raises(ValueError, match="without texts"):
        bare.examples(0)
    given_texts = SemanticClusters.fit(ByLetters().encode(texts), k=2, texts=texts)
    assert given_texts.examples(int(given_texts.train_labels[3]))[0] == "cccc"


def test_texts_are_embedded_in_chunks() -> None:
    clusters = SemanticClusters.fit(RESPONSES, ByLetters(), k=3)
    encoder = ByLetters()
    clusters.attach(encoder)
    labels = clusters.assign(RESPONSES * 300)
    assert labels.tolist() == clusters.train_labels.tolist() * 300
    assert encoder.largest <= 8192 < len(labels)


def test_another_encoder_is_refused() -> None:
    class Other(ByLetters):
        fingerprint = "letters 2"

    clusters = SemanticClusters.fit(RESPONSES, ByLetters(), k=3)
    with pytest.raises(DifferentClustersError, match="letters"):
        clusters.attach(Other())
    assert SemanticClusters.fit(RESPONSES, Other(), k=3).fingerprint != clusters.fingerprint


def test_damage_is_noticed(tmp_path: Path) -> None:
    clusters = SemanticClusters.fit(cloud(50), k=3)
    clusters.save_pretrained(tmp_path / "a")
    facts = tmp_path / "a" / "clusters.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps({**content, "normalize": False}))
    with pytest.raises(ArtefactError, match="was changed"):
        SemanticClusters.from_pretrained(tmp_path / "a")
    facts.write_text(json.dumps({"k": 3}))
    with pytest.raises(ArtefactError, match="does not describe clusters"):
        SemanticClusters.from_pretrained(tmp_path / "a")
    arrays = tmp_path / "a" / "clusters.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4] + os.urandom(4))
    with pytest.raises(ArtefactError, match="damaged"):
        SemanticClusters.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_sets_of_responses(backend: Any) -> None:
    texts = ["", "", "aaa", "안녕", "😀😀", "bbb", "cab", "fed", "dad", "b"]
    clusters = SemanticClusters.fit(texts, ByLetters(), k=4, backend=backend)
    assert clusters.assign(["", "聲音", "😀"]).tolist() == [clusters.train_labels[0]] * 3
    same = SemEnt(clusters).compute(["aaa"] * 9)
    assert (same.sem_ent, same.n, same.empty) == (0.0, 9, 3)
    assert SemEnt(clusters).compute(["b"]).n == 1


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (["a", "b"], {"k": 3}, "k=3 clusters need at least 3 responses, got 2"),
        ([], {"k": 1}, "at least 1 responses, got 0"),
        (["a"] * 9, {"k": 3}, "all vectors are equal"),
        (["a", "b"] * 9, {"k": 3}, "got 2 distinct vectors"),
        (["a"] * 4, {"encoder": None}, "texts need an encoder"),
        (np.array([[0.0, np.nan]] * 25), {}, "vector 0 holds values that are not finite"),
        (np.array([[0.0, 1.0]] * 25 + [[0, np.inf]]), {}, "vector 25 holds"),
        (np.arange(60), {}, r"floats \[n, d\]"),
        (cloud(), {"k": 0}, "k must be at least 1"),
        (cloud(), {"n_redo": 0}, "n_redo must be at least 1"),
        (cloud(), {"pca_variance": 0.0}, "variance must be above 0"),
        (cloud(), {"backend": "scipy"}, "backend must be"),
        (cloud(), {"max_points_per_centroid": 0}, "max_points_per_centroid"),
        (cloud(), {"texts": ["a"]}, "texts must be 300"),
    ],
)
def test_bad_input(data: Any, arguments: dict[str, Any], message: str) -> None:
    arguments = {"encoder": ByLetters(), "k": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        SemanticClusters.fit(data, **arguments)


def test_bad_input_to_assign() -> None:
    clusters = SemanticClusters.fit(RESPONSES, ByLetters(), k=3)
    for data, message in (
        (np.zeros((2, 5), np.float32), r"\[n, 6\], got \[2, 5\]"),
        (np.full((2, 6), np.nan), "vector 0 holds"),
        (np.zeros(6), "floats"),
    ):
        with pytest.raises(ValueError, match=message):
            clusters.assign(data)
    with pytest.raises(TypeError, match="got one string"):
        clusters.assign("abc")
    with pytest.raises(TypeError, match="got one string"):
        SemanticClusters.fit("a" * 30, ByLetters())
    assert clusters.assign([]).shape == (0,)
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        clusters.histogram([3])
