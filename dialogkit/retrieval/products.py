"""How FAISS computes inner products in exact search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["products_by_blas"]

_QUERIES = 4


@contextmanager
def products_by_blas() -> Iterator[None]:
    """Within it, exact search for four queries or more multiplies matrices instead of vector by vector.

    The wheels of FAISS 1.15 set the limit to 128,000 queries; with 64 queries and 100,000 vectors of 384
    numbers matrices are about seven times as fast. The setting is FAISS's own, of the whole process: another
    thread that searches meanwhile gets the same results in another time.
    """
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = min(before, _QUERIES)
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
