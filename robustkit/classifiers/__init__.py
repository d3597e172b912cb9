"""Classifiers of texts and images: logits, the vector that the head reads, gradients.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.classifiers.features import Features as Features
    from robustkit.classifiers.images import ImageClassifier as ImageClassifier
    from robustkit.classifiers.text import TextClassifier as TextClassifier
    from robustkit.classifiers.text import TokenGradients as TokenGradients

_HOME = {
    "Features": "features",
    "ImageClassifier": "images",
    "TextClassifier": "text",
    "TokenGradients": "text",
}

__all__ = ["Features", "ImageClassifier", "TextClassifier", "TokenGradients"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
