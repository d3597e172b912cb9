"""Diversity of responses: lexical metrics, semantic clusters and Sem-Ent, DRESS training.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lexical import (
        TokenTable,
        distinct_n,
        entropy_n,
        low_frequency,
        mean_length,
        self_bleu,
        token_counts,
    )

__all__ = [
    "TokenTable",
    "distinct_n",
    "entropy_n",
    "low_frequency",
    "mean_length",
    "self_bleu",
    "token_counts",
]

_HOMES = {
    "TokenTable": "lexical",
    "distinct_n": "lexical",
    "entropy_n": "lexical",
    "low_frequency": "lexical",
    "mean_length": "lexical",
    "self_bleu": "lexical",
    "token_counts": "lexical",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
