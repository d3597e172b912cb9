"""Exact inner-product search in a pool of contexts."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .pool import ContextPool
from .products import products_by_blas

if TYPE_CHECKING:
    from .retriever import Retriever

__all__ = ["ContextIndex", "StaleIndexError", "search_numpy"]

logger = logging.getLogger(__name__)

Backend = Literal["numpy", "faiss"]

_POOL_CHUNK = 65_536
_QUERY_CHUNK = 256


class StaleIndexError(ValueError):
    """Saved embeddings belong to another encoder or another pool than the ones at hand."""


def search_numpy(
    queries: npt.NDArray[np.float32],
    embeddings: npt.NDArray[np.float32],
    k: int = 1,
    *,
    exclude: Collection[int] = (),
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Finds the rows with the largest inner product, exactly.

    Cost: ``q n d`` multiplications; memory is bounded by one 256 x 65,536 block of scores.

    Args:
        queries: ``[q, d]``.
        embeddings: ``[n, d]``.
        k: How many rows to return for a query; capped at the rows there are.
        exclude: Rows that must not be returned.

    Returns:
        Scores ``float32 [q, k]``, descending, and row ids ``int64 [q, k]``. Of equal scores the lower id
        comes first.
    """
    excluded = np.unique(np.fromiter((i for i in exclude if 0 <= i < len(embeddings)), dtype=np.int64))
    k = min(k, len(embeddings) - len(excluded))
    scores = np.empty((len(queries), k), dtype=np.float32)
    ids = np.empty((len(queries), k), dtype=np.int64)
    if k == 0:
        return scores, ids
    for start in range(0, len(queries), _QUERY_CHUNK):
        rows = slice(start, start + _QUERY_CHUNK)
        best_scores = np.empty((len(queries[rows]), 0), dtype=np.float32)
        best_ids = np.empty(best_scores.shape, dtype=np.int64)
        for first in range(0, len(embeddings), _POOL_CHUNK):
            block = queries[rows] @ embeddings[first : first + _POOL_CHUNK].T
            hidden = excluded[(excluded >= first) & (excluded < first + _POOL_CHUNK)] - first
            block[:, hidden] = -np.inf
            block_ids = _largest(block, k)
            best_scores = np.concatenate([best_scores, np.take_along_axis(block, block_ids, axis=1)], axis=1)
            best_ids = np.concatenate([best_ids, block_ids + first], axis=1)
            keep = np.argsort(-best_scores, axis=1, kind="stable")[:, :k]
            best_scores = np.take_along_axis(best_scores, keep, axis=1)
            best_ids = np.take_along_axis(best_ids, keep, axis=1)
        scores[rows], ids[rows] = best_scores, best_ids
    return scores, ids


def _largest(block: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Columns of the k largest entries of each row, by falling score, ties by rising column."""
    ids: npt.NDArray[np.int64]
    if k == 1:
        ids = block.argmax(axis=1, keepdims=True).astype(np.int64)
        return ids
    if k < block.shape[1] // 4:
        chosen = np.sort(np.argpartition(-block, k - 1, axis=1)[:, :k], axis=1)
    else:
        chosen = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    values = np.take_along_axis(block, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(chosen, order, axis=1).astype(np.int64)
    return ids


class ContextIndex:
    """A pool of contexts with their embeddings: ``E_C = e_ctx(C)``.

    The pool is encoded when the index is made, in batches; a query then costs one matrix product.

    Args:
        retriever: Encodes the pool by its context side.
        pool: The contexts.
        backend: ``"numpy"`` needs nothing and is right below about 50,000 contexts; ``"faiss"``
            (``IndexFlatIP``, exact too) needs the extra ``faiss``. Both return the same neighbours.
        batch_size: Contexts handed to the retriever at once.

    Attributes:
        embeddings: ``float32 [n, d]``, read-only.

    Raises:
        ValueError: The retriever returns vectors of a wrong shape or non-finite values.
    """

    def __init__(
        self,
        retriever: Retriever,
        pool: ContextPool,
        *,
        backend: Backend = "numpy",
        batch_size: int = 1024,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        embeddings = np.empty((len(pool), retriever.dim), dtype=np.float32)
        for start in range(0, len(pool), batch_size):
            texts = pool[start : start + batch_size]
            vectors = np.asarray(retriever.encode_context(texts), dtype=np.float32)
            if vectors.shape != (len(texts), retriever.dim):
                raise ValueError(
                    f"encode_context must return [{len(texts)}, {retriever.dim}], got {list(vectors.shape)}"
                )
            embeddings[start : start + batch_size] = vectors
        self._set(retriever, pool, embeddings, backend)

    def _set(
        self,
        retriever: Retriever,
        pool: ContextPool,
        embeddings: npt.NDArray[np.float32],
        backend: Backend,
    ) -> None:
        if backend not in ("numpy", "faiss"):
            raise ValueError(f"backend must be 'numpy' or 'faiss', got {backend!r}")
        if not np.isfinite(embeddings).all():
            raise ValueError("the embeddings of the pool hold values that are not finite")
        embeddings.setflags(write=False)
        self.retriever = retriever
        self.pool = pool
        self.backend: Backend = backend
        self.embeddings = embeddings
        self._faiss: Any = None
        if backend == "faiss":
            try:
                import faiss
            except ModuleNotFoundError as error:
                raise ImportError(
                    "backend='faiss' needs faiss: pip install 'dialogkit-robustkit[faiss]'"
                ) from error
            self._faiss = faiss.IndexFlatIP(retriever.dim)
            self._faiss.add(embeddings)

    def __len__(self) -> int:
        return len(self.pool)

    def search(
        self, queries: npt.NDArray[np.float32], k: int = 1, *, exclude: Collection[int] = ()
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Finds the k contexts with the largest raw inner product for each query.

        Args:
            queries: ``float32 [q, d]``.
            k: How many; capped at the contexts there are.
            exclude: Ids that must not be returned.

        Returns:
            Scores ``float32 [q, k]``, descending, and ids ``int64 [q, k]``.

        Raises:
            ValueError: The queries are not ``[q, d]``, or k is below 1.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"queries must be [q, {self.embeddings.shape[1]}], got {list(queries.shape)}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if self._faiss is None:
            return search_numpy(queries, self.embeddings, k, exclude=exclude)
        import faiss

        excluded = sorted({i for i in exclude if 0 <= i < len(self)})
        k = min(k, len(self) - len(excluded))
        if k == 0 or not len(queries):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        params = None
        if excluded:
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64)))
            # faiss patches its constructors at run time, so the annotations lack their keywords.
            params = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        with products_by_blas(len(queries)):
            scores, ids = self._faiss.search(queries, k, params=params)
        return scores, ids

    def save(self, folder: str | os.PathLike[str], *, half: bool = False) -> None:
        """Writes the embeddings and what they belong to; the pool itself is not written.

        Files: ``index.safetensors`` (one tensor, ``embeddings``) and ``index.json`` (fingerprints, sizes).

        Args:
            folder: Where to write; an index that is there already is replaced in one step.
            half: Store float16, which halves the size and rounds scores at the third digit.

        Raises:
            FileExistsError: The folder holds other files.
        """
        from safetensors.numpy import save_file

        from trainkit.hub import atomic_directory, write_json

        root = Path(folder)
        # Replacing a folder removes all of it, so only an index may be replaced.
        ours = root.is_dir() and {path.name for path in root.iterdir()} <= {"index.json", "index.safetensors"}
        with atomic_directory(root, replace=ours) as temporary:
            stored = self.embeddings.astype(np.float16) if half else np.ascontiguousarray(self.embeddings)
            save_file({"embeddings": stored}, temporary / "index.safetensors")
            write_json(
                temporary / "index.json",
                {
                    "retriever": self.retriever.fingerprint,
                    "pool": self.pool.fingerprint,
                    "size": len(self.pool),
                    "dim": self.retriever.dim,
                },
            )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        retriever: Retriever,
        pool: ContextPool,
        *,
        backend: Backend = "numpy",
    ) -> ContextIndex:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: A file is missing.
            StaleIndexError: The embeddings come from another retriever or another pool.
            ValueError: A file is corrupt.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from trainkit.hub import read_json

        root = Path(folder)
        for name in ("index.json", "index.safetensors"):
            if not (root / name).is_file():
                raise FileNotFoundError(f"no {name} in {root}")
        written = read_json(root / "index.json")
        if not isinstance(written, dict) or not {"retriever", "pool"} <= set(written):
            raise ValueError(f"{root / 'index.json'} does not describe an index")
        here = {"retriever": retriever.fingerprint, "pool": pool.fingerprint}
        for part, value in here.items():
            if written[part] != value:
                raise StaleIndexError(
                    f"the index in {root} was made with another {part} "
                    f"(fingerprint {str(written[part])[:12]}, now {value[:12]}); build it anew"
                )
        try:
            embeddings = load_file(root / "index.safetensors")["embeddings"].astype(np.float32)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{root / 'index.safetensors'} is corrupt: {error}") from error
        if embeddings.shape != (len(pool), retriever.dim):
            raise ValueError(
                f"{root / 'index.safetensors'} is {list(embeddings.shape)}, "
                f"expected [{len(pool)}, {retriever.dim}]"
            )
        index = cls.__new__(cls)
        index._set(retriever, pool, embeddings, backend)
        return index

    @classmethod
    def cached(
        cls,
        retriever: Retriever,
        pool: ContextPool,
        cache_dir: str | os.PathLike[str],
        *,
        backend: Backend = "numpy",
    ) -> ContextIndex:
        """Loads the index from a cache, or builds it and stores it there.

        The cache is keyed by the fingerprints of both the retriever and the pool, so it is never stale.
        A cache that cannot be written costs the next call its time and is no error.

        Args:
            retriever: As for the constructor.
            pool: As for the constructor.
            cache_dir: Folder that holds one folder per index.
            backend: As for the constructor.
        """
        folder = Path(cache_dir) / f"{retriever.fingerprint[:24]}-{pool.fingerprint[:24]}"
        if (folder / "index.json").is_file():
            try:
                return cls.load(folder, retriever, pool, backend=backend)
            except (OSError, ValueError) as error:
                logger.warning("the cached index in %s cannot be used and is built anew: %s", folder, error)
        index = cls(retriever, pool, backend=backend)
        try:
            index.save(folder)
        except OSError as error:
            logger.info("the index cannot be cached in %s: %s", folder, error)
        return index
