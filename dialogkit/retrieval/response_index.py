"""Search in millions of responses: exact, by an HNSW graph, or by inverted lists of compressed vectors."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from dialogkit.dialogues import single_line
from trainkit.hub import ArtefactError, HubMixin, fingerprint, read_json, write_bytes, write_json

from .index import StaleIndexError
from .products import products_by_blas

if TYPE_CHECKING:
    from trainkit.cards import Metric, ModelCard

    from .retriever import Retriever

__all__ = ["IndexConfig", "ResponseIndex", "ResponseList", "SearchResult"]

_log = logging.getLogger(__name__)

Kind = Literal["flat", "hnsw", "ivfpq"]
_Vectors = npt.NDArray[np.float32]

_VECTORS = "embeddings.npy"
_TEXTS = "responses.txt"
_GRAPH = "index.faiss"
_FACTS = "index.json"
_QUERY_CHUNK = 256
_ROW_CHUNK = 65_536
# Half precision on another machine moves a vector by less than a hundredth of its length.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class IndexConfig:
    """How responses are searched.

    Attributes:
        kind: ``"flat"`` is exact and right up to some 100,000 responses. ``"hnsw"`` and ``"ivfpq"`` are
            approximate; an index says its own recall against exact search.
        hnsw_links: Links of a node of the HNSW graph (M); 32 in the released runs of G2R.
        ef_construction: Beam width while the graph is built; 40 in the released runs.
        ef_search: Beam width of a search (at least k is used); 256 in the released runs.
        lists: Cells of the inverted file; None takes ``4 sqrt(n)``, but at least 39 responses to a cell.
        probes: Cells visited by a search.
        code_bytes: Bytes of a compressed vector, a divisor of the dimension; None takes the largest divisor
            up to a byte for eight dimensions.
        refine: The best ``refine * k`` responses by compressed vectors are ranked again by their exact
            vectors; compressed vectors alone find little more than half of the best.

    Raises:
        ValueError: A value is out of its range.
    """

    kind: Kind = "flat"
    hnsw_links: int = 32
    ef_construction: int = 40
    ef_search: int = 256
    lists: int | None = None
    probes: int = 32
    code_bytes: int | None = None
    refine: int = 10

    def __post_init__(self) -> None:
        if self.kind not in ("flat", "hnsw", "ivfpq"):
            raise ValueError(f"kind must be 'flat', 'hnsw' or 'ivfpq', got {self.kind!r}")
        for name in ("hnsw_links", "ef_construction", "ef_search", "lists", "probes", "code_bytes", "refine"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best responses for q queries, best first.

    Attributes:
        ids: ``int64 [q, k]``; -1 where there was nothing more to find.
        scores: Raw inner products ``float32 [q, k]``; ``-inf`` there.
        texts: The responses; empty strings there.
        valid: Boolean ``[q, k]``; false there.
    """

    ids: npt.NDArray[np.int64]
    scores: _Vectors
    texts: list[list[str]]
    valid: npt.NDArray[np.bool_]


class ResponseList(Sequence[str]):
    """Distinct responses in a fixed order, held as one block of UTF-8 that may lie in a mapped file.

    Line breaks and tabs inside a response become spaces, so a response is a line of the file.

    Memory while it is made: the text and about a hundred bytes a response.

    Args:
        texts: The responses, read once, one after the other; of equal ones the first is kept.

    Attributes:
        dropped: How many equal ones were left out.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: A response is blank.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._set(*_distinct_lines(texts, set()))

    def _set(self, block: npt.NDArray[np.uint8], dropped: int = 0) -> None:
        self._block = block
        self.dropped = dropped
        ends = [
            np.flatnonzero(block[start : start + (1 << 24)] == 10) + start
            for start in range(0, len(block), 1 << 24)
        ]
        self._ends = np.concatenate(ends) if ends else np.empty(0, dtype=np.int64)

    @classmethod
    def mapped(cls, path: str | Path) -> ResponseList:
        """Opens a file of one response a line without reading it into memory.

        Raises:
            ValueError: The file does not end with a line break.
        """
        file = Path(path)
        responses = cls()
        if file.stat().st_size:
            responses._set(np.memmap(file, dtype=np.uint8, mode="r"))
            if responses._block[-1] != 10:
                raise ValueError(f"{file} is cut off: it does not end with a line break")
        return responses

    def write(self, path: str | Path) -> None:
        """Writes one response a line, atomically."""
        write_bytes(path, self._block.tobytes())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the responses and their order."""
        return fingerprint(np.asarray(self._block))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        start = self._ends[row - 1] + 1 if row else 0
        return self._block[start : self._ends[row]].tobytes().decode()

    def extended(self, texts: Iterable[str]) -> tuple[ResponseList, list[str]]:
        """A longer list, and the responses that were new; those that stand here already are left out."""
        known = {_digest(f"{text}\n".encode()) for text in self}
        added, longer = ResponseList(), ResponseList()
        added._set(*_distinct_lines(texts, known))
        longer._set(np.concatenate([self._block, added._block]))
        return longer, list(added)


def _distinct_lines(texts: Iterable[str], known: set[bytes]) -> tuple[npt.NDArray[np.uint8], int]:
    """The lines whose digests are not known yet, as one block, and how many were left out."""
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, got one string")
    block = bytearray()
    dropped = 0
    for number, text in enumerate(texts):
        line = single_line(text)
        if not line:
            raise ValueError(f"response {number} is blank")
        data = f"{line}\n".encode()
        # Digests, not lines: of millions of lines the text is held once.
        digest = _digest(data)
        if digest in known:
            dropped += 1
        else:
            known.add(digest)
            block += data
    return np.frombuffer(block, dtype=np.uint8), dropped


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


@dataclass(frozen=True)
class _Facts:
    encoder: str
    responses: str
    dim: int
    config: IndexConfig
    recall: Mapping[str, float] = field(default_factory=dict)


class ResponseIndex(HubMixin):
    """Responses with their embeddings, searched by raw inner product.

    Made by :meth:`build`; saved, loaded and pushed as a folder of ``responses.txt`` (one a line),
    ``embeddings.npy`` (float32, mapped on loading, not read), ``index.json`` and, for approximate kinds,
    ``index.faiss``. Loading compares checksums in one pass over the files. Needs the extra ``faiss``.

    Cost: a search reads all ``n d`` numbers when exact. Memory beyond the embeddings is bounded by chunks.

    Attributes:
        responses: The responses, in the order of their ids.
        config: How they are searched.
        recall: For approximate kinds, the share of the exact best k found on a sample of queries
            (``"recall@1"``, ``"recall@10"``), measured by :meth:`build`.
    """

    def __init__(
        self,
        responses: ResponseList,
        parts: Sequence[_Vectors],
        facts: _Facts,
        graph: Any = None,
        mapped: bool = False,
    ) -> None:
        self.responses = responses
        self._parts = list(parts)
        self._facts = facts
        self._graph = graph
        self._mapped = mapped

    @classmethod
    def build(
        cls,
        retriever: Retriever,
        responses: Iterable[str],
        *,
        config: IndexConfig | None = None,
        contexts: Sequence[str] | None = None,
        batch_size: int = 1024,
        scratch: str | os.PathLike[str] | None = None,
        vectors: _Vectors | None = None,
    ) -> ResponseIndex:
        """Encodes responses and makes them searchable.

        Args:
            retriever: Encodes them by its response side.
            responses: The response set; repeated responses are dropped, which is logged.
            config: How to search; exact by default.
            contexts: Queries on which an approximate index measures its recall; the first 1,000 are used.
                Without them the responses themselves are the queries, which flatters the index.
            batch_size: Responses encoded at once.
            scratch: File to hold the embeddings while the index lives, for sets larger than memory.
            vectors: Embeddings made before, ``float32 [n, d]``, row i of response i; the responses must then
                be distinct. They may be mapped from a file, are not copied and must not change.
                A few responses are encoded to see that the vectors are the retriever's.

        Raises:
            ValueError: There are no responses, one is blank, or there are too few for inverted lists; the
                retriever returns, or ``vectors`` are, of a wrong shape or not finite.
            StaleIndexError: ``vectors`` are not the retriever's.
        """
        config = config or IndexConfig()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        texts = ResponseList(responses)
        if not len(texts):
            raise ValueError("responses is empty: an index needs at least one response")
        if texts.dropped:
            _log.info("%d repeated responses were dropped, %d are left", texts.dropped, len(texts))
        if vectors is not None:
            _check_vectors(retriever, texts, vectors)
        else:
            shape = (len(texts), retriever.dim)
            vectors = (
                np.empty(shape, dtype=np.float32)
                if scratch is None
                else np.lib.format.open_memmap(os.fspath(scratch), mode="w+", dtype=np.float32, shape=shape)
            )
            for start in range(0, len(texts), batch_size):
                chunk = texts[start : start + batch_size]
                vectors[start : start + batch_size] = _encoded(retriever, chunk)
        facts = _Facts(retriever.fingerprint, texts.fingerprint, retriever.dim, config)
        index = cls(texts, [vectors], facts, _new_graph(config, vectors))
        index._fill(vectors)
        index._measure(retriever, contexts)
        return index

    def _fill(self, vectors: _Vectors) -> None:
        if self._graph is not None:
            if self._mapped:
                import faiss

                # FAISS aborts the process on adding to an index in a mapped file.
                self._graph = faiss.deserialize_index(faiss.serialize_index(self._graph))
                self._mapped = False
            for start in range(0, len(vectors), _ROW_CHUNK):
                self._graph.add(np.ascontiguousarray(vectors[start : start + _ROW_CHUNK]))

    def _measure(self, retriever: Retriever, contexts: Sequence[str] | None) -> None:
        if self._graph is None:
            return
        if contexts is not None and len(contexts):
            queries = np.asarray(retriever.encode_context(list(contexts[:1000])), dtype=np.float32)
        else:
            rows = np.random.default_rng(0).choice(len(self), size=min(1000, len(self)), replace=False)
            queries = self.vectors(np.sort(rows))
        recall = self._recall(queries, [k for k in (1, 10) if k <= len(self)])
        self._facts = replace(self._facts, recall={f"recall@{k}": value for k, value in recall.items()})
        _log.info("recall of the approximate index against exact search: %s", recall)

    @property
    def config(self) -> IndexConfig:
        """How the responses are searched."""
        return self._facts.config

    @property
    def recall(self) -> Mapping[str, float]:
        """Recall against exact search when the index was built; empty for an exact index."""
        return self._facts.recall

    @property
    def dim(self) -> int:
        """Size of the embeddings."""
        return self._facts.dim

    @property
    def fingerprint(self) -> str:
        """Changes with the encoder, the responses and the kind of search."""
        return fingerprint(self._facts.encoder, self._facts.responses, repr(self.config))

    def __len__(self) -> int:
        return len(self.responses)

    def __repr__(self) -> str:
        return f"ResponseIndex({len(self)} responses, {self.dim} dimensions, {self.config.kind})"

    def check(self, retriever: Retriever) -> None:
        """Makes sure that queries of a retriever may be searched here.

        Raises:
            StaleIndexError: The index was built with another encoder, or with other weights of it.
        """
        if retriever.fingerprint != self._facts.encoder:
            raise StaleIndexError(
                f"the index was built with another encoder (fingerprint {self._facts.encoder[:12]}, "
                f"now {retriever.fingerprint[:12]}); build it anew"
            )

    def vectors(self, ids: npt.NDArray[np.integer[Any]]) -> _Vectors:
        """The embeddings of some responses: ``float32 [..., d]`` for ids of any shape."""
        first = np.cumsum([0, *(len(part) for part in self._parts)])
        flat = np.asarray(ids).ravel()
        found = np.empty((len(flat), self.dim), dtype=np.float32)
        for start, part in zip(first, self._parts, strict=False):
            here = (flat >= start) & (flat < start + len(part))
            found[here] = part[flat[here] - start]
        return found.reshape(*np.shape(ids), self.dim)

    def search(self, queries: _Vectors, k: int = 1) -> SearchResult:
        """Finds the k responses with the largest raw inner product for each query.

        Args:
            queries: Context embeddings ``[q, d]``.
            k: How many; where fewer are found, the rest of the row is not ``valid``.

        Raises:
            ValueError: The queries are not ``[q, d]`` or not finite, or k is below 1.
        """
        scores, ids = self._found(self._checked(queries, k), k)
        missing = k - ids.shape[1]
        if missing > 0:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)))
        ids, scores = ids[:, :k].astype(np.int64), scores[:, :k].astype(np.float32)
        valid = ids >= 0
        scores = np.where(valid, scores, np.float32(-np.inf))
        texts = [[self.responses[int(i)] if i >= 0 else "" for i in row] for row in ids]
        return SearchResult(ids, scores, texts, valid)

    def _found(self, queries: _Vectors, k: int) -> tuple[_Vectors, npt.NDArray[np.int64]]:
        """Scores and ids of at most k responses a query; -1 for what a graph did not find."""
        if self._graph is None:
            return self._exact(queries, k)
        wide = k if self.config.kind != "ivfpq" else k * self.config.refine
        self._tune(wide)
        scores, ids = self._graph.search(queries, min(wide, len(self)))
        return self._refined(queries, ids, k) if self.config.kind == "ivfpq" else (scores, ids)

    def recall_against_exact(self, queries: _Vectors, k: int = 1) -> float:
        """Share of the exact best k responses that :meth:`search` finds, averaged over the queries.

        Raises:
            ValueError: As :meth:`search`; there are no queries; k is above the number of responses.
        """
        queries = self._checked(queries, k)
        if not len(queries) or k > len(self):
            raise ValueError(f"recall needs queries and k up to {len(self)}, got {len(queries)} and k={k}")
        return self._recall(queries, [k])[k]

    def _recall(self, queries: _Vectors, sizes: Sequence[int]) -> dict[int, float]:
        _, exact = self._exact(queries, max(sizes))
        recall = {}
        for k in sizes:
            _, found = self._found(queries, k)
            hits = [len(np.intersect1d(f, e[:k])) for f, e in zip(found, exact, strict=True)]
            recall[k] = float(np.mean(hits)) / k
        return recall

    def add(self, retriever: Retriever, responses: Iterable[str], *, batch_size: int = 1024) -> int:
        """Adds responses behind the present ones, whose ids stay; known ones are left out.

        The recall that :meth:`build` measured is forgotten.

        Returns:
            How many were new.

        Raises:
            StaleIndexError: The retriever is not the one the index was built with.
            ValueError: As :meth:`build`.
        """
        self.check(retriever)
        longer, new = self.responses.extended(responses)
        if not new:
            return 0
        vectors = np.concatenate(
            [_encoded(retriever, new[i : i + batch_size]) for i in range(0, len(new), batch_size)]
        )
        self._fill(vectors)
        self._parts.append(vectors)
        self.responses = longer
        self._facts = replace(self._facts, responses=longer.fingerprint, recall={})
        return len(new)

    def _checked(self, queries: _Vectors, k: int) -> _Vectors:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be [q, {self.dim}], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold values that are not finite")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return queries

    def _exact(self, queries: _Vectors, k: int) -> tuple[_Vectors, npt.NDArray[np.int64]]:
        import faiss

        k = min(k, len(self))
        scores = np.empty((len(queries), 0), dtype=np.float32)
        ids = np.empty((len(queries), 0), dtype=np.int64)
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        for first, rows in self._blocks():
            with products_by_blas(len(queries)):
                best, where = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            scores = np.concatenate([scores, best], axis=1)
            ids = np.concatenate([ids, where + first], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores = np.take_along_axis(scores, order, axis=1)
            ids = np.take_along_axis(ids, order, axis=1)
        return scores, ids

    def _blocks(self) -> Iterator[tuple[int, _Vectors]]:
        first = 0
        for part in self._parts:
            # A block of a mapped file is paged in and out by the system; one large block is fastest.
            yield first, np.ascontiguousarray(part)
            first += len(part)

    def _tune(self, k: int) -> None:
        if self.config.kind == "hnsw":
            # Recent FAISS does not widen the beam to k by itself.
            self._graph.hnsw.efSearch = max(self.config.ef_search, k)
        else:
            self._graph.nprobe = min(self.config.probes, self._graph.nlist)

    def _refined(
        self, queries: _Vectors, ids: npt.NDArray[np.int64], k: int
    ) -> tuple[_Vectors, npt.NDArray[np.int64]]:
        """Ranks the rough neighbours again by their exact vectors."""
        k = min(k, ids.shape[1])
        scores = np.empty((len(queries), k), dtype=np.float32)
        best = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), _QUERY_CHUNK):
            rows = slice(start, start + _QUERY_CHUNK)
            exact = np.einsum("qd,qkd->qk", queries[rows], self.vectors(np.maximum(ids[rows], 0)))
            exact[ids[rows] < 0] = -np.inf
            order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            scores[rows] = np.take_along_axis(exact, order, axis=1)
            best[rows] = np.take_along_axis(ids[rows], order, axis=1)
        return scores, best

    def metrics(self) -> tuple[Metric, ...]:
        """The recall, as a model card shows it."""
        from trainkit.cards import Metric

        return tuple(
            Metric(name, value, "queries of the build", "against exact search")
            for name, value in self.recall.items()
        )

    def _card(self) -> ModelCard:
        from trainkit.cards import ModelCard

        search = {"flat": "exact search", "hnsw": "HNSW graph", "ivfpq": "inverted lists, product codes"}
        return ModelCard(
            title=f"Index of {len(self):,} responses",
            method=f"FAISS, raw inner product, {search[self.config.kind]}",
            summary=(
                f"{len(self):,} responses with embeddings of {self.dim} dimensions, made by the encoder with "
                f"the fingerprint {self._facts.encoder[:12]}; another encoder is refused."
            ),
            licence="not stated",
            metrics=self.metrics(),
            limits=("Whatever stands in the list can be found, also what is wrong or unsafe.",),
            task="sentence-similarity",
            languages=(),
            tags=("response-index", "faiss"),
        )

    def _save(self, directory: Path) -> None:
        self.responses.write(directory / _TEXTS)
        target = np.lib.format.open_memmap(
            directory / _VECTORS, mode="w+", dtype=np.float32, shape=(len(self), self.dim)
        )
        first = 0
        for part in self._parts:
            for start in range(0, len(part), _ROW_CHUNK):
                block = part[start : start + _ROW_CHUNK]
                target[first + start : first + start + len(block)] = block
            first += len(part)
        target.flush()
        if self._graph is not None:
            import faiss

            faiss.write_index(self._graph, os.fspath(directory / _GRAPH))
        write_json(directory / _FACTS, asdict(self._facts))

    @classmethod
    def _load(cls, directory: Path) -> ResponseIndex:
        written = read_json(directory / _FACTS)
        try:
            facts = _Facts(**{**written, "config": IndexConfig(**written["config"])})
        except (TypeError, KeyError) as error:
            raise ArtefactError(f"{directory / _FACTS} does not describe an index: {error}") from error
        responses = ResponseList.mapped(directory / _TEXTS)
        if responses.fingerprint != facts.responses:
            raise StaleIndexError(
                f"{directory / _TEXTS} is not the list of responses the index was built from; build it anew"
            )
        vectors = np.load(directory / _VECTORS, mmap_mode="r", allow_pickle=False)
        if vectors.shape != (len(responses), facts.dim) or vectors.dtype != np.float32:
            raise ArtefactError(
                f"{directory / _VECTORS} is {vectors.dtype} {list(vectors.shape)}, "
                f"expected float32 [{len(responses)}, {facts.dim}]"
            )
        graph = None
        if facts.config.kind != "flat":
            import faiss

            graph = faiss.read_index(os.fspath(directory / _GRAPH), faiss.IO_FLAG_MMAP_IFC)
            if graph.ntotal != len(responses) or graph.d != facts.dim:
                raise ArtefactError(
                    f"{directory / _GRAPH} holds {graph.ntotal} vectors of {graph.d} dimensions"
                )
        return cls(responses, [vectors], facts, graph, mapped=True)


def _encoded(retriever: Retriever, texts: list[str]) -> _Vectors:
    vectors = np.asarray(retriever.encode_response(texts), dtype=np.float32)
    if vectors.shape != (len(texts), retriever.dim):
        raise ValueError(
            f"encode_response must return [{len(texts)}, {retriever.dim}], got {list(vectors.shape)}"
        )
    _check_finite(vectors)
    return vectors


def _check_finite(vectors: _Vectors) -> None:
    if not np.isfinite(vectors).all():
        raise ValueError("the embeddings of the responses hold values that are not finite")


def _check_vectors(retriever: Retriever, texts: ResponseList, vectors: _Vectors) -> None:
    """Makes sure that given embeddings are the retriever's, as far as a sample of them shows."""
    if texts.dropped:
        raise ValueError(f"vectors need distinct responses, {texts.dropped} of them are repeated")
    if vectors.shape != (len(texts), retriever.dim) or vectors.dtype != np.float32:
        raise ValueError(
            f"vectors must be float32 [{len(texts)}, {retriever.dim}], "
            f"got {vectors.dtype} {list(vectors.shape)}"
        )
    for start in range(0, len(vectors), _ROW_CHUNK):
        _check_finite(vectors[start : start + _ROW_CHUNK])
    sample = np.unique(np.linspace(0, len(texts) - 1, 16).astype(int))
    expected = _encoded(retriever, [texts[int(i)] for i in sample])
    off = np.linalg.norm(vectors[sample] - expected, axis=1)
    wrong = np.flatnonzero(off > _TOLERANCE * np.linalg.norm(expected, axis=1))
    if len(wrong):
        i = int(sample[wrong[0]])
        raise StaleIndexError(f"row {i} of vectors is not the retriever's embedding of {texts[i][:60]!r}")


def _new_graph(config: IndexConfig, vectors: _Vectors) -> Any:
    """An empty FAISS index of an approximate kind, trained; None for exact search."""
    if config.kind == "flat":
        return None
    import faiss

    size, dim = vectors.shape
    if config.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = config.ef_construction
        return graph
    # FAISS asks for 39 vectors to learn the centre of a cell.
    lists = config.lists or max(1, min(round(4 * math.sqrt(size)), size // 39))
    code_bytes = config.code_bytes or max(b for b in range(1, dim // 8 + 2) if dim % b == 0)
    if dim % code_bytes:
        raise ValueError(f"code_bytes must divide the dimension {dim}, got {code_bytes}")
    needed = max(lists, 256)
    if size < needed:
        raise ValueError(
            f"kind='ivfpq' with {lists} lists needs at least {needed} responses, got {size}; use kind='flat'"
        )
    ivf = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    # The 256 centres of each compressed byte can do with fewer than it asks for.
    ivf.cp.min_points_per_centroid = ivf.pq.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(0).choice(size, size=min(size, max(64 * lists, 25_600)), replace=False)
    ivf.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    return ivf
