"""Adversarial training as a minimax problem: SI-HG and the methods it is compared with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .minimax import FiniteSum as FiniteSum
    from .minimax import Saddle as Saddle

__all__ = ["FiniteSum", "Saddle"]

_HOMES = {"FiniteSum": "minimax", "Saddle": "minimax"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
