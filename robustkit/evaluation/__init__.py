"""Evaluation: how robust a classifier is, as a report of tables, figures and examples.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.evaluation.explained_images import image_explanation_section as image_explanation_section
    from robustkit.evaluation.explained_texts import text_explanation_section as text_explanation_section
    from robustkit.evaluation.explanations import ExplanationConfig as ExplanationConfig
    from robustkit.evaluation.explanations import explanation_section as explanation_section
    from robustkit.evaluation.figures import curves_figure as curves_figure
    from robustkit.evaluation.gradients import GradientConfig as GradientConfig
    from robustkit.evaluation.gradients import evaluate_images as evaluate_images
    from robustkit.evaluation.gradients import gradient_attacks as gradient_attacks
    from robustkit.evaluation.gradients import gradient_section as gradient_section
    from robustkit.evaluation.gradients import text_gradient_section as text_gradient_section
    from robustkit.evaluation.images import read_labelled_images as read_labelled_images
    from robustkit.evaluation.report import RobustnessReport as RobustnessReport
    from robustkit.evaluation.report import attack_example as attack_example
    from robustkit.evaluation.robustness import EvaluationConfig as EvaluationConfig
    from robustkit.evaluation.robustness import evaluate_robustness as evaluate_robustness
    from robustkit.evaluation.threats import parse_threat as parse_threat
    from trainkit.report import Estimate as Estimate
    from trainkit.report import Examples as Examples
    from trainkit.report import Figure as Figure
    from trainkit.report import Section as Section
    from trainkit.report import Table as Table

_HOME = {
    "Estimate": "trainkit.report",
    "EvaluationConfig": "robustkit.evaluation.robustness",
    "Examples": "trainkit.report",
    "ExplanationConfig": "robustkit.evaluation.explanations",
    "Figure": "trainkit.report",
    "GradientConfig": "robustkit.evaluation.gradients",
    "RobustnessReport": "robustkit.evaluation.report",
    "Section": "trainkit.report",
    "Table": "trainkit.report",
    "attack_example": "robustkit.evaluation.report",
    "curves_figure": "robustkit.evaluation.figures",
    "evaluate_images": "robustkit.evaluation.gradients",
    "evaluate_robustness": "robustkit.evaluation.robustness",
    "explanation_section": "robustkit.evaluation.explanations",
    "gradient_attacks": "robustkit.evaluation.gradients",
    "gradient_section": "robustkit.evaluation.gradients",
    "image_explanation_section": "robustkit.evaluation.explained_images",
    "parse_threat": "robustkit.evaluation.threats",
    "read_labelled_images": "robustkit.evaluation.images",
    "text_explanation_section": "robustkit.evaluation.explained_texts",
    "text_gradient_section": "robustkit.evaluation.gradients",
}

__all__ = [
    "Estimate",
    "EvaluationConfig",
    "Examples",
    "ExplanationConfig",
    "Figure",
    "GradientConfig",
    "RobustnessReport",
    "Section",
    "Table",
    "attack_example",
    "curves_figure",
    "evaluate_images",
    "evaluate_robustness",
    "explanation_section",
    "gradient_attacks",
    "gradient_section",
    "image_explanation_section",
    "parse_threat",
    "read_labelled_images",
    "text_explanation_section",
    "text_gradient_section",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
