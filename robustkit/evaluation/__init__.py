"""Evaluation: how robust a classifier is, as a report of tables, figures and examples.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.evaluation.figures import curves_figure as curves_figure
    from robustkit.evaluation.report import Estimate as Estimate
    from robustkit.evaluation.report import ExamplePair as ExamplePair
    from robustkit.evaluation.report import Examples as Examples
    from robustkit.evaluation.report import Figure as Figure
    from robustkit.evaluation.report import RobustnessReport as RobustnessReport
    from robustkit.evaluation.report import Section as Section
    from robustkit.evaluation.report import Table as Table
    from robustkit.evaluation.robustness import EvaluationConfig as EvaluationConfig
    from robustkit.evaluation.robustness import evaluate_robustness as evaluate_robustness

_HOME = {
    "Estimate": "report",
    "EvaluationConfig": "robustness",
    "ExamplePair": "report",
    "Examples": "report",
    "Figure": "report",
    "RobustnessReport": "report",
    "Section": "report",
    "Table": "report",
    "curves_figure": "figures",
    "evaluate_robustness": "robustness",
}

__all__ = [
    "Estimate",
    "EvaluationConfig",
    "ExamplePair",
    "Examples",
    "Figure",
    "RobustnessReport",
    "Section",
    "Table",
    "curves_figure",
    "evaluate_robustness",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
