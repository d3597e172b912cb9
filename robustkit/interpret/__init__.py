"""Attribution maps of images and texts, and proofs of them: retraining, sanity tests, sensitivity curves.

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
    from .manifold import AutoencoderDistance as AutoencoderDistance
    from .manifold import NeighbourDistance as NeighbourDistance
    from .measures import completeness as completeness
    from .measures import mass_outside as mass_outside
    from .measures import sensitivity_curve as sensitivity_curve
    from .measures import total_variation as total_variation
    from .noise import SmoothGrad as SmoothGrad
    from .paths import IntegratedGradients as IntegratedGradients
    from .pictures import heatmap_grid as heatmap_grid
    from .pictures import html_grid as html_grid
    from .pipelines import Answered as Answered
    from .pipelines import ExplainedPipeline as ExplainedPipeline
    from .pipelines import attribution_callback as attribution_callback
    from .regions import XRAI as XRAI
    from .retraining import RetrainingResult as RetrainingResult
    from .retraining import degraded as degraded
    from .retraining import roar as roar
    from .retraining import trained_by_fit as trained_by_fit
    from .sanity import random_logit_test as random_logit_test
    from .sanity import randomisation_test as randomisation_test

_HOME = {
    "METHODS": "explaining",
    "XRAI": "regions",
    "Answered": "pipelines",
    "Attribution": "attribution",
    "AutoencoderDistance": "manifold",
    "Deconvolution": "backprop",
    "ExplainedPipeline": "pipelines",
    "Gradient": "backprop",
    "GuidedBackprop": "backprop",
    "IntegratedGradients": "paths",
    "Method": "explaining",
    "NeighbourDistance": "manifold",
    "RectGrad": "backprop",
    "RetrainingResult": "retraining",
    "SmoothGrad": "noise",
    "attribution_callback": "pipelines",
    "completeness": "measures",
    "degraded": "retraining",
    "explain": "explaining",
    "heatmap_grid": "pictures",
    "html_grid": "pictures",
    "mass_outside": "measures",
    "random_logit_test": "sanity",
    "randomisation_test": "sanity",
    "roar": "retraining",
    "sensitivity_curve": "measures",
    "total_variation": "measures",
    "trained_by_fit": "retraining",
}

__all__ = [
    "METHODS",
    "XRAI",
    "Answered",
    "Attribution",
    "AutoencoderDistance",
    "Deconvolution",
    "ExplainedPipeline",
    "Gradient",
    "GuidedBackprop",
    "IntegratedGradients",
    "Method",
    "NeighbourDistance",
    "RectGrad",
    "RetrainingResult",
    "SmoothGrad",
    "attribution_callback",
    "completeness",
    "degraded",
    "explain",
    "heatmap_grid",
    "html_grid",
    "mass_outside",
    "random_logit_test",
    "randomisation_test",
    "roar",
    "sensitivity_curve",
    "total_variation",
    "trained_by_fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
