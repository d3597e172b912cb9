"""Detection of adversarial inputs: features of clean and attacked texts, detectors, their evaluation.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.detection.addmu import ADDMUDetector as ADDMUDetector
    from robustkit.detection.base import Detector as Detector
    from robustkit.detection.covariance import MinCovDet as MinCovDet
    from robustkit.detection.density import MahalanobisDetector as MahalanobisDetector
    from robustkit.detection.density import MLEDetector as MLEDetector
    from robustkit.detection.density import RDEDetector as RDEDetector
    from robustkit.detection.ensemble import EnsembleDetector as EnsembleDetector
    from robustkit.detection.fgws import FGWSDetector as FGWSDetector
    from robustkit.detection.gradients import GradMaskDetector as GradMaskDetector
    from robustkit.detection.gradients import SharpnessDetector as SharpnessDetector
    from robustkit.detection.guarded import guard as guard
    from robustkit.detection.kernel_pca import KernelPCA as KernelPCA
    from robustkit.detection.metrics import DetectionReport as DetectionReport
    from robustkit.detection.metrics import RocCurve as RocCurve
    from robustkit.detection.metrics import detection_report as detection_report
    from robustkit.detection.metrics import roc_curve as roc_curve
    from robustkit.detection.metrics import threshold_from_clean as threshold_from_clean
    from robustkit.detection.neighbours import KNNDetector as KNNDetector
    from robustkit.detection.neighbours import LIDDetector as LIDDetector
    from robustkit.detection.perplexity import PerplexityDetector as PerplexityDetector
    from robustkit.detection.replaced import JudgedWord as JudgedWord
    from robustkit.detection.replaced import ReplacedWordsDetector as ReplacedWordsDetector
    from robustkit.detection.replaced import ReplacedWordsSettings as ReplacedWordsSettings
    from robustkit.detection.replaced import WordReader as WordReader
    from robustkit.detection.replaced import train_replaced_words as train_replaced_words
    from robustkit.detection.replaced_edits import Edited as Edited
    from robustkit.detection.replaced_edits import edited_copies as edited_copies
    from robustkit.detection.replaced_edits import typos as typos
    from robustkit.detection.scenarios import DetectionSet as DetectionSet
    from robustkit.detection.scenarios import make_scenario as make_scenario
    from robustkit.detection.scenarios import split_log as split_log
    from robustkit.detection.softmax import MSPDetector as MSPDetector
    from robustkit.detection.suspects import SuspectWord as SuspectWord
    from robustkit.detection.suspects import SuspectWordsDetector as SuspectWordsDetector
    from robustkit.detection.text_detector import DetectionResult as DetectionResult
    from robustkit.detection.text_detector import TextDetector as TextDetector
    from robustkit.detection.wdr import WDRDetector as WDRDetector

_HOME = {
    "ADDMUDetector": "addmu",
    "DetectionReport": "metrics",
    "DetectionResult": "text_detector",
    "DetectionSet": "scenarios",
    "Detector": "base",
    "Edited": "replaced_edits",
    "EnsembleDetector": "ensemble",
    "FGWSDetector": "fgws",
    "GradMaskDetector": "gradients",
    "JudgedWord": "replaced",
    "KNNDetector": "neighbours",
    "KernelPCA": "kernel_pca",
    "LIDDetector": "neighbours",
    "MLEDetector": "density",
    "MSPDetector": "softmax",
    "MahalanobisDetector": "density",
    "MinCovDet": "covariance",
    "PerplexityDetector": "perplexity",
    "RDEDetector": "density",
    "ReplacedWordsDetector": "replaced",
    "ReplacedWordsSettings": "replaced",
    "RocCurve": "metrics",
    "SharpnessDetector": "gradients",
    "SuspectWord": "suspects",
    "SuspectWordsDetector": "suspects",
    "TextDetector": "text_detector",
    "WDRDetector": "wdr",
    "WordReader": "replaced",
    "detection_report": "metrics",
    "edited_copies": "replaced_edits",
    "guard": "guarded",
    "make_scenario": "scenarios",
    "roc_curve": "metrics",
    "split_log": "scenarios",
    "threshold_from_clean": "metrics",
    "train_replaced_words": "replaced",
    "typos": "replaced_edits",
}

__all__ = [
    "ADDMUDetector",
    "DetectionReport",
    "DetectionResult",
    "DetectionSet",
    "Detector",
    "Edited",
    "EnsembleDetector",
    "FGWSDetector",
    "GradMaskDetector",
    "JudgedWord",
    "KNNDetector",
    "KernelPCA",
    "LIDDetector",
    "MLEDetector",
    "MSPDetector",
    "MahalanobisDetector",
    "MinCovDet",
    "PerplexityDetector",
    "RDEDetector",
    "ReplacedWordsDetector",
    "ReplacedWordsSettings",
    "RocCurve",
    "SharpnessDetector",
    "SuspectWord",
    "SuspectWordsDetector",
    "TextDetector",
    "WDRDetector",
    "WordReader",
    "detection_report",
    "edited_copies",
    "guard",
    "make_scenario",
    "roc_curve",
    "split_log",
    "threshold_from_clean",
    "train_replaced_words",
    "typos",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
