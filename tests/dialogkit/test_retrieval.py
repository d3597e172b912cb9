"""Pools of contexts, exact search, cached embeddings, retrievers by name."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.dialogues import Dialogue, Turn
from dialogkit.retrieval import (
    BiEncoder,
    ContextIndex,
    ContextPool,
    Retriever,
    SentenceTransformerRetriever,
    StaleIndexError,
    build_biencoder,
    default_retriever,
    load_retriever,
    save_biencoder,
)
from dialogkit.retrieval import index as index_module
from dialogkit.retrieval import retriever as retriever_module
from tests.dialogkit.pdp.helpers import CONTEXTS, HashRetriever
from tests.dialogkit.tiny import byte_tokenizer

POOL = ContextPool(CONTEXTS)


def queries(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


# Pools ------------------------------------------------------------------------------------------------------


@given(texts=st.lists(st.text(), max_size=8))
@settings(deadline=None)
def test_a_pool_on_disk_is_the_pool(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        pool = ContextPool(texts)
    except ValueError as error:
        assert "blank" in str(error)
        return
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    pool.to_lines(path)
    again = ContextPool.from_lines(path)
    assert again == pool and again.fingerprint == pool.fingerprint and len(pool) == len(texts)
    assert len(path.read_bytes().split(b"\n")) == len(pool) + 1


def test_pools_know_their_texts() -> None:
    pool = ContextPool(["a b", "c", "a\nb"])
    assert pool.texts == ("a b", "c", "a b") and pool[1] == "c" and pool[1:] == ("c", "a b")
    assert pool.ids_of("a\tb ") == (0, 2) and pool.ids_of("d") == ()
    assert repr(pool) == "ContextPool(3 contexts)"
    assert pool.fingerprint != ContextPool(["a b", "a b", "c"]).fingerprint
    with pytest.raises(ValueError, match="context 1 of the pool is blank"):
        ContextPool(["a", " \n"])
    with pytest.raises(TypeError, match="one string"):
        ContextPool("abc")


def test_lines_are_read_without_blanks_marks_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n  \none\n")
    assert ContextPool.from_lines(path).texts == ("one", "two", "one")
    assert ContextPool.from_lines(path, dedupe=True).texts == ("one", "two")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"ok\nfine\nb\xe4d\n", "line 3, byte 9"),
        (b"\xef\xbb\xbf\xff", "line 1, byte 3"),
        (b"\xc3", "line 1, byte 0"),
    ],
)
def test_bad_encoding_is_named_with_line_and_byte(tmp_path: Path, data: bytes, place: str) -> None:
    path = tmp_path / "pool.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"pool\.txt is not UTF-8: {place}"):
        ContextPool.from_lines(path)


def test_dialogues_become_contexts_by_the_recipe(tmp_path: Path) -> None:
    turns = [
        "Too short.",
        "Just long enough.",
        " Just long enough. ",
        "word " * 31,
        "two\nlines are here",
        "a b c d",
    ]
    dialogue = Dialogue("d", tuple(Turn("A", text) for text in turns))
    assert ContextPool.from_dialogues([dialogue]).texts == ("Just long enough.", "a b c d")
    assert len(ContextPool.from_dialogues([dialogue], dedupe=False)) == 3
    assert len(ContextPool.from_dialogues([dialogue], min_words=1, max_words=40)) == 4
    path = tmp_path / "dialogues.jsonl"
    path.write_text('{"id": "1", "turns": [{"speaker": "A", "text": "How are you today?"}]}\n')
    assert ContextPool.from_dialogues(path).texts == ("How are you today?",)
    with pytest.raises(ValueError, match="min_words"):
        ContextPool.from_dialogues([dialogue], min_words=5, max_words=4)


# Search -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 40), st.sets(st.integers(-2, 30)), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_search_is_brute_force_whatever_the_chunks(n: int, k: int, exclude: set[int], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_POOL_CHUNK", 5)
        patch.setattr(index_module, "_QUERY_CHUNK", 2)
        index = ContextIndex(HashRetriever(), POOL)
        scores, ids = index.search(queries(n, seed), k, exclude=exclude)
    table = queries(n, seed) @ index.embeddings.T
    allowed = [i for i in range(len(POOL)) if i not in exclude]
    for row in range(n):
        expected = sorted(allowed, key=lambda i: -table[row, i])[:k]
        assert ids[row].tolist() == expected
        np.testing.assert_allclose(scores[row], table[row, expected], atol=1e-5)


@given(st.integers(1, 40), st.sets(st.integers(0, 27)))
@settings(max_examples=25, deadline=None)
def test_faiss_finds_what_numpy_finds(k: int, exclude: set[int]) -> None:
    pytest.importorskip("faiss")
    plain = ContextIndex(HashRetriever(), POOL).search(queries(4), k, exclude=exclude)
    other = ContextIndex(HashRetriever(), POOL, backend="faiss").search(queries(4), k, exclude=exclude)
    np.testing.assert_array_equal(plain[1], other[1])
    np.testing.assert_allclose(plain[0], other[0], atol=1e-5)


def test_equal_scores_go_to_the_lower_id() -> None:
    index = ContextIndex(HashRetriever(), ContextPool(["same", "other", "same", "same"]))
    query = index.embeddings[:1]
    assert index.search(query, 3)[1].tolist() == [[0, 2, 3]]
    assert index.search(query)[1].tolist() == [[0]]


def test_an_empty_index_finds_nothing() -> None:
    for backend in ("numpy", "faiss"):
        scores, ids = ContextIndex(HashRetriever(), ContextPool([]), backend=backend).search(queries(3))  # type: ignore[arg-type]
        assert scores.shape == ids.shape == (3, 0)


def test_the_pool_is_encoded_in_batches() -> None:
    retriever = HashRetriever()
    index = ContextIndex(retriever, POOL, batch_size=10)
    assert [len(texts) for _, texts in retriever.calls] == [10, 10, 8]
    np.testing.assert_array_equal(index.embeddings, HashRetriever().encode_context(CONTEXTS))


def test_bad_queries_and_encoders_are_refused() -> None:
    index = ContextIndex(HashRetriever(), POOL)
    with pytest.raises(ValueError, match=r"queries must be \[q, 16\]"):
        index.search(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(queries(1), 0)
    with pytest.raises(ValueError, match="backend"):
        ContextIndex(HashRetriever(), POOL, backend="hnsw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        ContextIndex(HashRetriever(), POOL, batch_size=0)

    class Wrong(HashRetriever):
        def encode_context(self, texts: Sequence[str]) -> np.ndarray:
            return np.zeros((len(texts), 3), np.float32)

    class Broken(HashRetriever):
        def encode_context(self, texts: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), 16), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"must return \[28, 16\], got \[28, 3\]"):
        ContextIndex(Wrong(), POOL)
    with pytest.raises(ValueError, match="not finite"):
        ContextIndex(Broken(), POOL)


# Saved embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_embeddings_survive_a_round_trip(tmp_path: Path, half: bool) -> None:
    index = ContextIndex(HashRetriever(), POOL)
    index.save(tmp_path / "index", half=half)
    index.save(tmp_path / "index", half=half)
    retriever = HashRetriever()
    again = ContextIndex.load(tmp_path / "index", retriever, POOL)
    assert retriever.calls == [] and again.embeddings.dtype == np.float32
    np.testing.assert_allclose(again.embeddings, index.embeddings, rtol=1e-3 if half else 0)


def test_a_stale_index_is_rejected(tmp_path: Path) -> None:
    ContextIndex(HashRetriever(), POOL).save(tmp_path)
    with pytest.raises(StaleIndexError, match="another retriever"):
        ContextIndex.load(tmp_path, HashRetriever(salt="other"), POOL)
    with pytest.raises(StaleIndexError, match="another pool"):
        ContextIndex.load(tmp_path, HashRetriever(), ContextPool(CONTEXTS[::-1]))


def test_damaged_indexes_are_named(tmp_path: Path) -> None:
    index = ContextIndex(HashRetriever(), POOL)
    index.save(tmp_path)
    vectors, meta = tmp_path / "index.safetensors", tmp_path / "index.json"
    vectors.write_bytes(vectors.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"index\.safetensors is corrupt"):
        ContextIndex.load(tmp_path, HashRetriever(), POOL)
    vectors.unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.safetensors"):
        ContextIndex.load(tmp_path, HashRetriever(), POOL)
    index.save(tmp_path)
    for text in ("[]", "{}", "{"):
        meta.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json"):
            ContextIndex.load(tmp_path, HashRetriever(), POOL)


def test_saving_never_replaces_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError):
        ContextIndex(HashRetriever(), POOL).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_cache_is_keyed_by_retriever_and_pool(tmp_path: Path) -> None:
    first = ContextIndex.cached(HashRetriever(), POOL, tmp_path)
    retriever = HashRetriever()
    again = ContextIndex.cached(retriever, POOL, tmp_path)
    assert retriever.calls == []
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    other = ContextIndex.cached(HashRetriever(salt="other"), POOL, tmp_path)
    shorter = ContextIndex.cached(HashRetriever(), ContextPool(CONTEXTS[:3]), tmp_path)
    assert not np.array_equal(other.embeddings, first.embeddings) and len(shorter) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_or_unwritable_cache_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ContextIndex.cached(HashRetriever(), POOL, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "index.safetensors").write_bytes(b"rubbish")
    again = ContextIndex.cached(HashRetriever(), POOL, tmp_path)
    assert "built anew" in caplog.text
    np.testing.assert_array_equal(again.embeddings, ContextIndex(HashRetriever(), POOL).embeddings)
    assert (folder / "index.safetensors").stat().st_size > 100
    file = tmp_path / "file"
    file.write_text("not a folder")
    with caplog.at_level(logging.INFO):
        assert len(ContextIndex.cached(HashRetriever(), POOL, file / "cache")) == len(POOL)
    assert "cannot be cached" in caplog.text


# Retrievers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "biencoder"
    model = build_biencoder(
        byte_tokenizer(pad=True),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_length=32,
    )
    save_biencoder(model, path)
    return path


def test_the_sentence_transformers_retriever_takes_roles_from_the_model(folder: Path) -> None:
    texts = ["Hello.", "And what is your name?"]
    light, full = BiEncoder(folder), SentenceTransformerRetriever(folder)
    assert isinstance(light, Retriever) and isinstance(full, Retriever) and full.dim == light.dim == 16
    np.testing.assert_allclose(full.encode_context(texts), light.encode_context(texts), atol=1e-5)
    np.testing.assert_allclose(full.encode_response(texts), light.encode_response(texts), atol=1e-5)
    swapped = SentenceTransformerRetriever(full.model, context_role="document", response_role="query")
    np.testing.assert_allclose(swapped.encode_context(texts), light.encode_response(texts), atol=1e-5)
    same = SentenceTransformerRetriever(full.model, response_role="query")
    unit = SentenceTransformerRetriever(full.model, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit.encode_context(texts), axis=1), 1, atol=1e-5)
    assert [r.symmetric for r in (full, swapped, same)] == [False, False, True]
    assert SentenceTransformerRetriever(full.model, symmetric=True).symmetric
    assert full.encode_context([]).shape == (0, 16)
    assert len({r.fingerprint for r in (full, swapped, same, unit)}) == 4
    assert SentenceTransformerRetriever(folder).fingerprint == full.fingerprint
    with pytest.raises(TypeError, match="one string"):
        full.encode_context("Hello.")
    with pytest.raises(ValueError, match="context_role"):
        SentenceTransformerRetriever(full.model, context_role="question")  # type: ignore[arg-type]


def test_retrievers_are_loaded_by_folder_lightly_where_possible(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    assert isinstance(load_retriever(folder), BiEncoder)
    encoder = Transformer(str(folder / "query_0_Transformer"))
    projected = SentenceTransformer(modules=[encoder, Pooling(16), Dense(16, 8)], device="cpu")
    projected.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    retriever = load_retriever(tmp_path / "dense")
    assert isinstance(retriever, SentenceTransformerRetriever) and retriever.dim == 8 and retriever.symmetric
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_retriever(tmp_path / "nowhere")


def test_the_default_is_minilm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(retriever_module, "_minilm", lambda device: loaded.append("minilm"))
    monkeypatch.setattr(retriever_module, "_embedded", lambda device: loaded.append("embedded"))
    monkeypatch.setattr(retriever_module.importlib.util, "find_spec", lambda name: object())
    default_retriever()
    monkeypatch.setattr(retriever_module.importlib.util, "find_spec", lambda name: None)
    default_retriever()
    assert loaded == ["minilm", "embedded"]


def test_importing_and_searching_needs_no_optional_package() -> None:
    code = (
        "import sys, numpy as np\n"
        "from dialogkit.retrieval import ContextIndex, ContextPool\n"
        "import dialogkit.pdp.matching\n"
        "class R:\n"
        "    dim, fingerprint, symmetric = 2, 'r', False\n"
        "    def encode_context(self, texts): return np.ones((len(texts), 2), np.float32)\n"
        "ContextIndex(R(), ContextPool(['a'])).search(np.ones((1, 2), np.float32))\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'datasets'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
