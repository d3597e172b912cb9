"""G2R: a large dialogue generator distilled into a fast retriever."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import ScoredContext, group_by_context, response_set
    from .loss import G2RLoss, g2r_loss, teacher_distribution
    from .training import G2RConfig, G2RMethod

__all__ = [
    "G2RConfig",
    "G2RLoss",
    "G2RMethod",
    "ScoredContext",
    "g2r_loss",
    "group_by_context",
    "response_set",
    "teacher_distribution",
]

_HOMES = {
    "G2RConfig": "training",
    "G2RLoss": "loss",
    "G2RMethod": "training",
    "ScoredContext": "data",
    "g2r_loss": "loss",
    "group_by_context": "data",
    "response_set": "data",
    "teacher_distribution": "loss",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
