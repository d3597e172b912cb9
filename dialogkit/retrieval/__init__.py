"""Retrieval: encoders of contexts and responses, pools of contexts, and exact search in them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .biencoder import (
        BiEncoder,
        BiEncoderObjective,
        UnsupportedModelError,
        biencoder_from,
        build_biencoder,
        contrastive_loss,
        save_biencoder,
    )
    from .index import ContextIndex, StaleIndexError
    from .pool import ContextPool
    from .response_index import IndexConfig, ResponseIndex, ResponseList, SearchResult
    from .retriever import Retriever, SentenceTransformerRetriever, default_retriever, load_retriever

__all__ = [
    "BiEncoder",
    "BiEncoderObjective",
    "ContextIndex",
    "ContextPool",
    "IndexConfig",
    "ResponseIndex",
    "ResponseList",
    "Retriever",
    "SearchResult",
    "SentenceTransformerRetriever",
    "StaleIndexError",
    "UnsupportedModelError",
    "biencoder_from",
    "build_biencoder",
    "contrastive_loss",
    "default_retriever",
    "load_retriever",
    "save_biencoder",
]

_HOMES = {
    "BiEncoder": "biencoder",
    "BiEncoderObjective": "biencoder",
    "ContextIndex": "index",
    "ContextPool": "pool",
    "IndexConfig": "response_index",
    "ResponseIndex": "response_index",
    "ResponseList": "response_index",
    "Retriever": "retriever",
    "SearchResult": "response_index",
    "SentenceTransformerRetriever": "retriever",
    "StaleIndexError": "index",
    "UnsupportedModelError": "biencoder",
    "biencoder_from": "biencoder",
    "build_biencoder": "biencoder",
    "contrastive_loss": "biencoder",
    "default_retriever": "retriever",
    "load_retriever": "retriever",
    "save_biencoder": "biencoder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
