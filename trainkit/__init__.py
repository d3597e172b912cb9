"""What dialogkit and robustkit share: one training loop, checkpoints, Hub persistence and model cards.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.cards import ModelCard as ModelCard
    from trainkit.checkpoints import CheckpointFolder as CheckpointFolder
    from trainkit.hub import HubMixin as HubMixin
    from trainkit.hub import atomic_directory as atomic_directory
    from trainkit.hub import fingerprint as fingerprint
    from trainkit.hub import resolve as resolve
    from trainkit.hub import write_json as write_json
    from trainkit.loop import Callback as Callback
    from trainkit.loop import FitConfig as FitConfig
    from trainkit.loop import FitResult as FitResult
    from trainkit.loop import FitState as FitState
    from trainkit.loop import Loss as Loss
    from trainkit.loop import Objective as Objective
    from trainkit.loop import StepContext as StepContext
    from trainkit.loop import StepMethod as StepMethod
    from trainkit.loop import fit as fit
    from trainkit.progress import Progress as Progress
    from trainkit.seeding import derive_seed as derive_seed
    from trainkit.seeding import seed_everything as seed_everything

_HOME = {
    "Callback": "loop",
    "CheckpointFolder": "checkpoints",
    "FitConfig": "loop",
    "FitResult": "loop",
    "FitState": "loop",
    "HubMixin": "hub",
    "Loss": "loop",
    "ModelCard": "cards",
    "Objective": "loop",
    "Progress": "progress",
    "StepContext": "loop",
    "StepMethod": "loop",
    "atomic_directory": "hub",
    "derive_seed": "seeding",
    "fingerprint": "hub",
    "fit": "loop",
    "resolve": "hub",
    "seed_everything": "seeding",
    "write_json": "hub",
}

__all__ = [
    "Callback",
    "CheckpointFolder",
    "FitConfig",
    "FitResult",
    "FitState",
    "HubMixin",
    "Loss",
    "ModelCard",
    "Objective",
    "Progress",
    "StepContext",
    "StepMethod",
    "atomic_directory",
    "derive_seed",
    "fingerprint",
    "fit",
    "resolve",
    "seed_everything",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
