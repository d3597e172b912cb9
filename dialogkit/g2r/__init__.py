"""G2R: a large dialogue generator distilled into a fast retriever."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loss import G2RLoss, g2r_loss, teacher_distribution

__all__ = ["G2RLoss", "g2r_loss", "teacher_distribution"]

_HOMES = {"G2RLoss": "loss", "g2r_loss": "loss", "teacher_distribution": "loss"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
