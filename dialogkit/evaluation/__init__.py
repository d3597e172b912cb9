"""Evaluation: one harness that talks to any chatbot and fills one table.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cases import EvaluationCase, read_cases
    from .harness import Comparison, EvaluationConfig, compare
    from .replies import Answer, Collected, collect_replies

__all__ = [
    "Answer",
    "Collected",
    "Comparison",
    "EvaluationCase",
    "EvaluationConfig",
    "collect_replies",
    "compare",
    "read_cases",
]

_HOMES = {
    "Answer": "replies",
    "Collected": "replies",
    "Comparison": "harness",
    "EvaluationCase": "cases",
    "EvaluationConfig": "harness",
    "collect_replies": "replies",
    "compare": "harness",
    "read_cases": "cases",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
