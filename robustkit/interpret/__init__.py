"""Attribution maps of images and texts: gradients, noise methods, integrated gradients, RectGrad.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import Attribution as Attribution
    from .backprop import Deconvolution as Deconvolution
    from .backprop import Gradient as Gradient
    from .backprop import GuidedBackprop as GuidedBackprop
    from .backprop import RectGrad as RectGrad
    from .explaining import METHODS as METHODS
    from .explaining import Method as Method
    from .explaining import explain as explain
    from .noise import SmoothGrad as SmoothGrad
    from .paths import IntegratedGradients as IntegratedGradients
    from .pictures import heatmap_grid as heatmap_grid
    from .pictures import html_grid as html_grid

_HOME = {
    "METHODS": "explaining",
    "Attribution": "attribution",
    "Deconvolution": "backprop",
    "Gradient": "backprop",
    "GuidedBackprop": "backprop",
    "IntegratedGradients": "paths",
    "Method": "explaining",
    "RectGrad": "backprop",
    "SmoothGrad": "noise",
    "explain": "explaining",
    "heatmap_grid": "pictures",
    "html_grid": "pictures",
}

__all__ = [
    "METHODS",
    "Attribution",
    "Deconvolution",
    "Gradient",
    "GuidedBackprop",
    "IntegratedGradients",
    "Method",
    "RectGrad",
    "SmoothGrad",
    "explain",
    "heatmap_grid",
    "html_grid",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
