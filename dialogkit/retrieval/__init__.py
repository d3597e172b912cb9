"""Retrieval: encoders of contexts and responses, pools of contexts, and exact search in them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .biencoder import (
        BiEncoder,
        BiEncoderObjective,
        UnsupportedModelError,
        build_biencoder,
        contrastive_loss,
        save_biencoder,
    )

__all__ = [
    "BiEncoder",
    "BiEncoderObjective",
    "UnsupportedModelError",
    "build_biencoder",
    "contrastive_loss",
    "save_biencoder",
]

_HOMES = {
    "BiEncoder": "biencoder",
    "BiEncoderObjective": "biencoder",
    "UnsupportedModelError": "biencoder",
    "build_biencoder": "biencoder",
    "contrastive_loss": "biencoder",
    "save_biencoder": "biencoder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
