"""Gradient attacks on pixels and embeddings, and the sets of perturbations that they search.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.gradient.apgd import APGD as APGD
    from robustkit.attacks.gradient.losses import cross_entropy as cross_entropy
    from robustkit.attacks.gradient.losses import dlr as dlr
    from robustkit.attacks.gradient.losses import margin as margin
    from robustkit.attacks.gradient.losses import targeted_dlr as targeted_dlr
    from robustkit.attacks.gradient.patch import AdversarialPatch as AdversarialPatch
    from robustkit.attacks.gradient.pgd import FGSM as FGSM
    from robustkit.attacks.gradient.pgd import PGD as PGD
    from robustkit.attacks.gradient.search import Attack as Attack
    from robustkit.attacks.gradient.search import AttackResult as AttackResult
    from robustkit.attacks.gradient.sets import L1 as L1
    from robustkit.attacks.gradient.sets import L2 as L2
    from robustkit.attacks.gradient.sets import EmbeddingBall as EmbeddingBall
    from robustkit.attacks.gradient.sets import LInf as LInf
    from robustkit.attacks.gradient.sets import PerturbationSet as PerturbationSet
    from robustkit.attacks.gradient.square import Square as Square
    from robustkit.attacks.gradient.stationary import Stationarity as Stationarity
    from robustkit.attacks.gradient.stationary import stationarity as stationarity
    from robustkit.attacks.gradient.suite import AttackSuite as AttackSuite
    from robustkit.attacks.gradient.suite import Stage as Stage
    from robustkit.attacks.gradient.suite import SuiteResult as SuiteResult
    from robustkit.attacks.gradient.suite import strong_attack as strong_attack
    from robustkit.attacks.gradient.universal import UniversalPerturbation as UniversalPerturbation
    from robustkit.attacks.gradient.victims import EmbeddedTexts as EmbeddedTexts
    from robustkit.attacks.gradient.victims import changeable_tokens as changeable_tokens
    from robustkit.attacks.gradient.victims import judging as judging

_HOME = {
    "UniversalPerturbation": "universal",
    "AdversarialPatch": "patch",
    "APGD": "apgd",
    "Attack": "search",
    "AttackResult": "search",
    "AttackSuite": "suite",
    "EmbeddedTexts": "victims",
    "EmbeddingBall": "sets",
    "FGSM": "pgd",
    "L1": "sets",
    "L2": "sets",
    "LInf": "sets",
    "PGD": "pgd",
    "PerturbationSet": "sets",
    "Square": "square",
    "Stage": "suite",
    "Stationarity": "stationary",
    "SuiteResult": "suite",
    "changeable_tokens": "victims",
    "cross_entropy": "losses",
    "dlr": "losses",
    "judging": "victims",
    "margin": "losses",
    "stationarity": "stationary",
    "strong_attack": "suite",
    "targeted_dlr": "losses",
}

__all__ = [
    "APGD",
    "FGSM",
    "L1",
    "L2",
    "PGD",
    "AdversarialPatch",
    "Attack",
    "AttackResult",
    "AttackSuite",
    "EmbeddedTexts",
    "EmbeddingBall",
    "LInf",
    "PerturbationSet",
    "Square",
    "Stage",
    "Stationarity",
    "SuiteResult",
    "UniversalPerturbation",
    "changeable_tokens",
    "cross_entropy",
    "dlr",
    "judging",
    "margin",
    "stationarity",
    "strong_attack",
    "targeted_dlr",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
