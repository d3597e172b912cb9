"""Attacks on classifiers: word attacks, the adapter for TextAttack, and the logs that both write.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.textattack import import_textattack as import_textattack

_HOME = {
    "import_textattack": "textattack",
}

__all__ = [
    "import_textattack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
