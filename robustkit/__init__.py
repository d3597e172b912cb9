"""A classifier goes in; attacks, detectors, explanations and a report on how robust it is come out.

Nothing heavy is imported here: a name is looked up in its room when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks import AttackLog as AttackLog
    from robustkit.attacks import AttackRecord as AttackRecord
    from robustkit.classifiers import Features as Features
    from robustkit.classifiers import ImageClassifier as ImageClassifier
    from robustkit.classifiers import TextClassifier as TextClassifier
    from robustkit.detection import Detector as Detector
    from robustkit.detection import RDEDetector as RDEDetector
    from robustkit.detection import TextDetector as TextDetector
    from robustkit.detection import detection_report as detection_report
    from robustkit.detection import guard as guard
    from robustkit.detection import make_scenario as make_scenario
    from robustkit.evaluation import evaluate_robustness as evaluate_robustness
    from robustkit.interpret import Attribution as Attribution
    from robustkit.interpret import explain as explain

_HOME = {
    "AttackLog": "attacks",
    "AttackRecord": "attacks",
    "Attribution": "interpret",
    "Detector": "detection",
    "Features": "classifiers",
    "ImageClassifier": "classifiers",
    "RDEDetector": "detection",
    "TextClassifier": "classifiers",
    "TextDetector": "detection",
    "detection_report": "detection",
    "evaluate_robustness": "evaluation",
    "explain": "interpret",
    "guard": "detection",
    "make_scenario": "detection",
}

__all__ = [
    "AttackLog",
    "AttackRecord",
    "Attribution",
    "Detector",
    "Features",
    "ImageClassifier",
    "RDEDetector",
    "TextClassifier",
    "TextDetector",
    "detection_report",
    "evaluate_robustness",
    "explain",
    "guard",
    "make_scenario",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
