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
    from robustkit.attacks.textattack import import_textattack as import_textattack

_HOME = {
    "AttackLog": "logs",
    "AttackRecord": "logs",
    "AttackSummary": "logs",
    "RunLog": "logs",
    "import_textattack": "textattack",
    "strip_marks": "logs",
}

__all__ = [
    "AttackLog",
    "AttackRecord",
    "AttackSummary",
    "RunLog",
    "import_textattack",
    "strip_marks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
