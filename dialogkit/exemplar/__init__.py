"""Exemplar-based generation: CORGE and the family that it improves on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chatbot import ExemplarBotConfig, ExemplarChatbot
    from .copying import copied_share, exemplar_bleu
    from .loss import ExemplarLoss, exemplar_loss, relevance_log_weights, relevance_scores
    from .metrics import (
        ReplyFigures,
        exemplar_perplexity,
        exemplars_from,
        measure_replies,
        perplexities,
    )
    from .packing import ExemplarEncoder, ExemplarPacker, LengthBudget, PackedRow
    from .policy import PRESETS, ExemplarPolicy, JaccardFilter, preset
    from .selection import ContentTokens, Exemplars, ExemplarSelector, jaccard, select_exemplars
    from .tower import ContextTower
    from .training import ExemplarConfig, ExemplarMethod, ExemplarModel, Trained, train_exemplar

__all__ = [
    "PRESETS",
    "ContentTokens",
    "ContextTower",
    "ExemplarBotConfig",
    "ExemplarChatbot",
    "ExemplarConfig",
    "ExemplarEncoder",
    "ExemplarLoss",
    "ExemplarMethod",
    "ExemplarModel",
    "ExemplarPacker",
    "ExemplarPolicy",
    "ExemplarSelector",
    "Exemplars",
    "JaccardFilter",
    "LengthBudget",
    "PackedRow",
    "ReplyFigures",
    "Trained",
    "copied_share",
    "exemplar_bleu",
    "exemplar_loss",
    "exemplar_perplexity",
    "exemplars_from",
    "jaccard",
    "measure_replies",
    "perplexities",
    "preset",
    "relevance_log_weights",
    "relevance_scores",
    "select_exemplars",
    "train_exemplar",
]

_HOMES = {
    "ContentTokens": "selection",
    "ContextTower": "tower",
    "ExemplarBotConfig": "chatbot",
    "ExemplarChatbot": "chatbot",
    "ExemplarConfig": "training",
    "ExemplarEncoder": "packing",
    "ExemplarLoss": "loss",
    "ExemplarMethod": "training",
    "ExemplarModel": "training",
    "ExemplarPacker": "packing",
    "ExemplarPolicy": "policy",
    "ExemplarSelector": "selection",
    "Exemplars": "selection",
    "JaccardFilter": "policy",
    "LengthBudget": "packing",
    "PRESETS": "policy",
    "PackedRow": "packing",
    "ReplyFigures": "metrics",
    "Trained": "training",
    "copied_share": "copying",
    "exemplar_bleu": "copying",
    "exemplar_loss": "loss",
    "exemplar_perplexity": "metrics",
    "exemplars_from": "metrics",
    "jaccard": "selection",
    "measure_replies": "metrics",
    "perplexities": "metrics",
    "preset": "policy",
    "relevance_log_weights": "loss",
    "relevance_scores": "loss",
    "select_exemplars": "selection",
    "train_exemplar": "training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
