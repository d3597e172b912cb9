"""Gradient attacks on pixels and embeddings, and the sets of perturbations that they search.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.gradient.sets import L1 as L1
    from robustkit.attacks.gradient.sets import L2 as L2
    from robustkit.attacks.gradient.sets import EmbeddingBall as EmbeddingBall
    from robustkit.attacks.gradient.sets import LInf as LInf
    from robustkit.attacks.gradient.sets import PerturbationSet as PerturbationSet

_HOME = {
    "L1": "sets",
    "L2": "sets",
    "EmbeddingBall": "sets",
    "LInf": "sets",
    "PerturbationSet": "sets",
}

__all__ = ["L1", "L2", "EmbeddingBall", "LInf", "PerturbationSet"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
