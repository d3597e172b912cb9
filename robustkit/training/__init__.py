"""Adversarial training as a minimax problem: SI-HG (a reconstruction) and the methods it is compared with.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bank import PerturbationBank as PerturbationBank
    from .bank import TextBank as TextBank
    from .game import Cost as Cost
    from .game import Game as Game
    from .growing import Growing as Growing
    from .keeping import Averaged as Averaged
    from .keeping import OverfittingWatch as OverfittingWatch
    from .methods import FGSMRS as FGSMRS
    from .methods import YOPO as YOPO
    from .methods import DynamicTraining as DynamicTraining
    from .methods import FreeTraining as FreeTraining
    from .methods import Natural as Natural
    from .methods import PGDTraining as PGDTraining
    from .methods import RobustMethod as RobustMethod
    from .sihg import SIHG as SIHG
    from .sihg import SIHGFull as SIHGFull
    from .sihg import SIHGTable as SIHGTable
    from .texts import FreeLB as FreeLB
    from .texts import OnTexts as OnTexts
    from .texts import TextGame as TextGame
    from .trades import MART as MART
    from .trades import TRADES as TRADES
    from .views import FlipCrop as FlipCrop
    from .views import Views as Views

_HOMES = {
    "FGSMRS": "methods",
    "MART": "trades",
    "SIHG": "sihg",
    "TRADES": "trades",
    "YOPO": "methods",
    "Averaged": "keeping",
    "Cost": "game",
    "DynamicTraining": "methods",
    "FlipCrop": "views",
    "FreeLB": "texts",
    "FreeTraining": "methods",
    "Game": "game",
    "Growing": "growing",
    "Natural": "methods",
    "OnTexts": "texts",
    "OverfittingWatch": "keeping",
    "PGDTraining": "methods",
    "PerturbationBank": "bank",
    "RobustMethod": "methods",
    "SIHGFull": "sihg",
    "SIHGTable": "sihg",
    "TextBank": "bank",
    "TextGame": "texts",
    "Views": "views",
}

__all__ = [
    "FGSMRS",
    "MART",
    "SIHG",
    "TRADES",
    "YOPO",
    "Averaged",
    "Cost",
    "DynamicTraining",
    "FlipCrop",
    "FreeLB",
    "FreeTraining",
    "Game",
    "Growing",
    "Natural",
    "OnTexts",
    "OverfittingWatch",
    "PGDTraining",
    "PerturbationBank",
    "RobustMethod",
    "SIHGFull",
    "SIHGTable",
    "TextBank",
    "TextGame",
    "Views",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
