"""How FAISS computes inner products in exact search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["products_by_blas"]

_QUERIES = 8
"""As measured; below it the product of matrices is slower than vector by vector."""


@contextmanager
def products_by_blas(queries: int) -> Iterator[None]:
    """Within it, exact search for eight queries or more multiplies matrices instead of vector by vector.

    The wheels of FAISS 1.15 do so only far above any usual number; with 64 queries and 200,000 vectors of 384
    numbers matrices take a fifth of the time, with one query five times as long. The setting is FAISS's own,
    of the whole process: another thread that searches meanwhile gets the same results in another time.

    Args:
        queries: How many queries the search has.
    """
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    if queries >= _QUERIES:
        faiss.cvar.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
