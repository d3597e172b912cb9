"""The response index against torch's top-k, and its life on disk (behaviour G13)."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.retrieval import IndexConfig, ResponseIndex, ResponseList, StaleIndexError
from dialogkit.retrieval.products import products_by_blas
from trainkit.hub import ArtefactError

KINDS = ("flat", "hnsw", "ivfpq")


class Cloud:
    """A retriever that gives every text a random vector of its own, of uneven length."""

    symmetric = False
    dim = 16

    def __init__(self, weights: str = "one") -> None:
        self.fingerprint = f"cloud-{weights}"

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.encode_response([f"context of {text}" for text in texts])

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        def vector(text: str) -> npt.NDArray[np.float32]:
            seed = int.from_bytes(hashlib.sha256((self.fingerprint + text).encode()).digest()[:4], "big")
            draw = np.random.default_rng(seed)
            return (draw.normal(size=self.dim) * draw.uniform(0.5, 1.5)).astype(np.float32)

        return np.stack([vector(text) for text in texts])


def responses(count: int = 600) -> list[str]:
    return [f"response {i}" for i in range(count)]


def queries(count: int = 20) -> npt.NDArray[np.float32]:
    return Cloud().encode_context([f"query {i}" for i in range(count)])


def built(kind: str = "flat", count: int = 600) -> ResponseIndex:
    # Few lists, all of them visited, and a wide second look: then even compressed vectors find everything.
    config = IndexConfig(kind=kind, lists=4, probes=4, refine=60, ef_search=600)  # type: ignore[arg-type]
    return ResponseIndex.build(Cloud(), responses(count), config=config, batch_size=100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7])
def test_g13_search_is_the_top_of_the_score_matrix(kind: str, k: int) -> None:
    index = built(kind)
    found = index.search(queries(), k)
    matrix = torch.from_numpy(queries() @ Cloud().encode_response(responses()).T)
    expected = matrix.topk(k)
    assert np.array_equal(found.ids, expected.indices.numpy())
    np.testing.assert_allclose(found.scores, expected.values.numpy(), rtol=1e-5)
    assert found.texts == [[responses()[i] for i in row] for row in expected.indices.tolist()]
    assert found.valid.all()


@pytest.mark.parametrize("kind", KINDS)
def test_g13_what_is_not_found_is_not_valid(kind: str) -> None:
    index = built(kind, count=256)
    found = index.search(queries(3), 300)
    assert found.ids.shape == found.scores.shape == found.valid.shape == (3, 300)
    assert found.valid[:, :200].all()
    assert not found.valid[:, 256:].any()
    assert (found.ids[~found.valid] == -1).all()
    assert (found.scores[~found.valid] == -np.inf).all()
    assert all(text == "" for row in found.texts for text in row[256:])


def test_g13_another_encoder_is_refused() -> None:
    index = built()
    index.check(Cloud())
    with pytest.raises(StaleIndexError, match="another encoder"):
        index.check(Cloud("two"))
    with pytest.raises(StaleIndexError, match="another encoder"):
        index.add(Cloud("two"), ["news"])


@pytest.mark.parametrize("kind", KINDS)
def test_g13_a_saved_index_answers_alike(kind: str, tmp_path: Path) -> None:
    index = built(kind)
    index.save_pretrained(tmp_path / "index")
    loaded = ResponseIndex.from_pretrained(tmp_path / "index")
    before, after = index.search(queries(), 5), loaded.search(queries(), 5)
    assert np.array_equal(before.ids, after.ids)
    assert np.array_equal(before.scores, after.scores)
    assert (loaded.config, dict(loaded.recall), loaded.fingerprint) == (
        index.config,
        dict(index.recall),
        index.fingerprint,
    )
    loaded.save_pretrained(tmp_path / "again")
    names = {"responses.txt", "embeddings.npy", "index.json"} | ({"index.faiss"} if kind != "flat" else set())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "index" / name).read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_responses_can_be_added_to_a_loaded_index(kind: str, tmp_path: Path) -> None:
    built(kind, count=500).save_pretrained(tmp_path / "index")
    index = ResponseIndex.from_pretrained(tmp_path / "index")
    assert index.add(Cloud(), responses()[450:], batch_size=33) == 100
    assert len(index) == 600
    assert list(index.responses) == responses()
    assert index.recall == {}
    expected = built("flat").search(queries(), 3)
    assert np.array_equal(index.search(queries(), 3).ids, expected.ids)
    assert index.add(Cloud(), responses()) == 0
    index.save_pretrained(tmp_path / "index")
    again = ResponseIndex.from_pretrained(tmp_path / "index")
    assert np.array_equal(again.search(queries(), 3).ids, expected.ids)


def test_recall_is_reported_and_honest() -> None:
    narrow = IndexConfig(kind="ivfpq", lists=32, probes=1, refine=1)
    asked = [f"query {i}" for i in range(50)]
    index = ResponseIndex.build(Cloud(), responses(), config=narrow, contexts=asked)
    vectors = Cloud().encode_context(asked)
    exact = built("flat").search(vectors, 10).ids
    found = index.search(vectors, 10).ids
    share = np.mean([len(set(f) & set(e)) for f, e in zip(found.tolist(), exact.tolist(), strict=True)]) / 10
    assert index.recall["recall@10"] == pytest.approx(share)
    assert index.recall["recall@10"] < 0.9
    assert built("hnsw").recall["recall@1"] == 1.0
    assert built("flat").recall == {}
    assert index.recall["recall@1"] == index.recall_against_exact(vectors, 1)


def test_embeddings_may_live_in_a_file(tmp_path: Path) -> None:
    index = ResponseIndex.build(Cloud(), responses(), scratch=tmp_path / "vectors.npy")
    assert np.array_equal(index.search(queries(), 4).ids, built().search(queries(), 4).ids)
    assert np.load(tmp_path / "vectors.npy", mmap_mode="r").shape == (600, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_may_be_made_before(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", Cloud().encode_response(responses()))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    # What half precision elsewhere may do to them.
    vectors = vectors.astype(np.float16).astype(np.float32) if kind == "flat" else vectors
    config = built(kind).config
    index = ResponseIndex.build(Cloud(), responses(), config=config, vectors=vectors)
    assert index._parts[0] is vectors
    expected = built("flat").search(queries(), 3)
    assert np.array_equal(index.search(queries(), 3).ids, expected.ids)
    index.save_pretrained(tmp_path / "index")
    loaded = ResponseIndex.from_pretrained(tmp_path / "index")
    assert np.array_equal(loaded.search(queries(), 3).ids, expected.ids)


def test_vectors_that_do_not_fit_are_refused() -> None:
    texts = responses(50)
    vectors = Cloud().encode_response(texts)
    with pytest.raises(StaleIndexError, match="row 0 of vectors is not the retriever's embedding"):
        ResponseIndex.build(Cloud("two"), texts, vectors=vectors)
    with pytest.raises(StaleIndexError, match="row 49 of vectors"):
        ResponseIndex.build(Cloud(), texts, vectors=np.concatenate([vectors[:49], vectors[:1]]))
    with pytest.raises(ValueError, match=r"must be float32 \[50, 16\], got float32 \[49, 16\]"):
        ResponseIndex.build(Cloud(), texts, vectors=vectors[:49])
    with pytest.raises(ValueError, match=r"got float64 \[50, 16\]"):
        ResponseIndex.build(Cloud(), texts, vectors=vectors.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        ResponseIndex.build(Cloud(), texts, vectors=vectors * np.float32(np.nan))
    with pytest.raises(ValueError, match="distinct responses, 1 of them"):
        ResponseIndex.build(Cloud(), [*texts, texts[0]], vectors=vectors)


def test_the_card_says_how_well_it_searches(tmp_path: Path) -> None:
    narrow = IndexConfig(kind="ivfpq", lists=32, probes=1, refine=1)
    index = ResponseIndex.build(Cloud(), responses(), config=narrow)
    index.save_pretrained(tmp_path / "index")
    card = (tmp_path / "index" / "README.md").read_text()
    assert "Index of 600 responses" in card
    assert f"{index.recall['recall@10']:.4g}" in card


def test_texts_are_held_once(tmp_path: Path) -> None:
    """Memory of a list of responses is its text and a digest for each, not a string for each."""
    count, width = 20_000, 400
    tracemalloc.start()
    made = ResponseList(f"{i:0{width}}" for i in range(count))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == count
    assert peak < 2.5 * count * width


def test_an_edited_list_of_responses_is_stale(tmp_path: Path) -> None:
    built().save_pretrained(tmp_path / "index")
    file = tmp_path / "index" / "responses.txt"
    file.write_text(file.read_text().replace("response 7\n", "something else\n"))
    with pytest.raises(StaleIndexError, match="not the list of responses"):
        ResponseIndex.from_pretrained(tmp_path / "index")
    file.write_text(file.read_text().rstrip("\n"))
    with pytest.raises(ValueError, match="cut off"):
        ResponseIndex.from_pretrained(tmp_path / "index")


def test_damaged_embeddings_are_refused(tmp_path: Path) -> None:
    built().save_pretrained(tmp_path / "index")
    file = tmp_path / "index" / "embeddings.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtefactError, match="damaged"):
        ResponseIndex.from_pretrained(tmp_path / "index")


class Broken(Cloud):
    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.vectors = vectors

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.vectors


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="responses is empty"):
        ResponseIndex.build(Cloud(), [])
    with pytest.raises(ValueError, match="response 1 is blank"):
        ResponseIndex.build(Cloud(), ["fine", " \n "])
    with pytest.raises(TypeError, match="one string"):
        ResponseIndex.build(Cloud(), "a reply")
    with pytest.raises(ValueError, match=r"must return \[1, 16\], got \[2, 16\]"):
        ResponseIndex.build(Broken(np.zeros((2, 16), np.float32)), ["one"])
    with pytest.raises(ValueError, match="not finite"):
        ResponseIndex.build(Broken(np.full((1, 16), np.nan, np.float32)), ["one"])
    with pytest.raises(ValueError, match="needs at least 256 responses, got 100; use kind='flat'"):
        ResponseIndex.build(Cloud(), responses(100), config=IndexConfig(kind="ivfpq"))
    with pytest.raises(ValueError, match="code_bytes must divide the dimension 16"):
        ResponseIndex.build(Cloud(), responses(), config=IndexConfig(kind="ivfpq", code_bytes=5))
    with pytest.raises(ValueError, match="kind must be"):
        IndexConfig(kind="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes must be at least 1"):
        IndexConfig(probes=0)
    index = built()
    with pytest.raises(ValueError, match=r"queries must be \[q, 16\]"):
        index.search(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.full((1, 16), np.inf, np.float32))
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(queries(), 0)
    assert index.search(np.empty((0, 16), np.float32), 3).ids.shape == (0, 3)


def test_repeated_responses_are_kept_once() -> None:
    index = ResponseIndex.build(Cloud(), ["Yes.", "No.", "Yes.", "Yes.\n"])
    assert list(index.responses) == ["Yes.", "No."]
    assert index.responses.dropped == 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip())), max_size=20))
def test_a_response_list_is_a_list_of_lines(texts: list[str]) -> None:
    try:
        kept = ResponseList(texts)
    except ValueError:  # control characters alone are blank, too
        return
    assert len(kept) + kept.dropped == len(texts)
    lines = list(kept)
    assert len(set(lines)) == len(lines)
    assert all("\n" not in line and line == line.strip() for line in lines)
    assert kept[-1:] == lines[-1:]
    longer, new = kept.extended(["entirely new", *texts])
    assert list(longer) == lines + new
    assert set(new) == {"entirely new"} - set(lines)


def test_exact_search_leaves_the_settings_of_faiss_as_they_were() -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.cvar.distance_compute_blas_threshold
    with products_by_blas(1):
        assert faiss.cvar.distance_compute_blas_threshold == before
    with pytest.raises(ZeroDivisionError), products_by_blas(64):
        assert faiss.cvar.distance_compute_blas_threshold == 1
        raise ZeroDivisionError
    assert faiss.cvar.distance_compute_blas_threshold == before
