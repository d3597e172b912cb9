"""Attacks on classifiers: word attacks, the adapter for TextAttack, and the logs that both write.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.logs import AttackLog as AttackLog
    from robustkit.attacks.logs import AttackRecord as AttackRecord
    from robustkit.attacks.logs import AttackSummary as AttackSummary
    from robustkit.attacks.logs import RunLog as RunLog
    from robustkit.attacks.logs import strip_marks as strip_marks
    from robustkit.attacks.textattack import as_model_wrapper as as_model_wrapper
    from robustkit.attacks.textattack import import_textattack as import_textattack
    from robustkit.attacks.textattack import run_attack as run_attack

_HOME = {
    "AttackLog": "logs",
    "AttackRecord": "logs",
    "AttackSummary": "logs",
    "RunLog": "logs",
    "as_model_wrapper": "textattack",
    "import_textattack": "textattack",
    "run_attack": "textattack",
    "strip_marks": "logs",
}

__all__ = [
    "AttackLog",
    "AttackRecord",
    "AttackSummary",
    "RunLog",
    "as_model_wrapper",
    "import_textattack",
    "run_attack",
    "strip_marks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
