"""Pseudo Dialog Prompting: a character talks from a handful of its utterances (arXiv 2204.10825)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogkit.retrieval.index import ContextIndex
    from dialogkit.retrieval.pool import ContextPool

    from .characters import Blend, Character
    from .chatbot import PDPChatbot
    from .config import PDPConfig, embedded_config
    from .files import load_character, read_character, write_card, write_lines
    from .matching import (
        DynamicMatcher,
        GoldMatcher,
        Matcher,
        PseudoDialog,
        RandomMatcher,
        StaticMatcher,
        dynamic_queries,
        order_scores,
        select_and_order,
        static_scores,
    )
    from .metrics import classify_responses, style_accuracy, style_prob
    from .prompts import ChatTemplatePrompt, DialogPrompt, PromptBuilder, UtterancesPrompt, ZeroShotPrompt
    from .style import NgramStyleClassifier, StyleClassifier, StyleJudge

__all__ = [
    "Blend",
    "Character",
    "ChatTemplatePrompt",
    "ContextIndex",
    "ContextPool",
    "DialogPrompt",
    "DynamicMatcher",
    "GoldMatcher",
    "Matcher",
    "NgramStyleClassifier",
    "PDPChatbot",
    "PDPConfig",
    "PromptBuilder",
    "PseudoDialog",
    "RandomMatcher",
    "StaticMatcher",
    "StyleClassifier",
    "StyleJudge",
    "UtterancesPrompt",
    "ZeroShotPrompt",
    "classify_responses",
    "dynamic_queries",
    "embedded_config",
    "load_character",
    "order_scores",
    "read_character",
    "select_and_order",
    "static_scores",
    "style_accuracy",
    "style_prob",
    "write_card",
    "write_lines",
]

_HOMES = {
    "Blend": "dialogkit.pdp.characters",
    "Character": "dialogkit.pdp.characters",
    "ChatTemplatePrompt": "dialogkit.pdp.prompts",
    "ContextIndex": "dialogkit.retrieval.index",
    "ContextPool": "dialogkit.retrieval.pool",
    "DialogPrompt": "dialogkit.pdp.prompts",
    "DynamicMatcher": "dialogkit.pdp.matching",
    "GoldMatcher": "dialogkit.pdp.matching",
    "Matcher": "dialogkit.pdp.matching",
    "PDPChatbot": "dialogkit.pdp.chatbot",
    "PDPConfig": "dialogkit.pdp.config",
    "PromptBuilder": "dialogkit.pdp.prompts",
    "PseudoDialog": "dialogkit.pdp.matching",
    "RandomMatcher": "dialogkit.pdp.matching",
    "StaticMatcher": "dialogkit.pdp.matching",
    "UtterancesPrompt": "dialogkit.pdp.prompts",
    "ZeroShotPrompt": "dialogkit.pdp.prompts",
    "classify_responses": "dialogkit.pdp.metrics",
    "dynamic_queries": "dialogkit.pdp.matching",
    "load_character": "dialogkit.pdp.files",
    "read_character": "dialogkit.pdp.files",
    "write_card": "dialogkit.pdp.files",
    "write_lines": "dialogkit.pdp.files",
    "order_scores": "dialogkit.pdp.matching",
    "select_and_order": "dialogkit.pdp.matching",
    "static_scores": "dialogkit.pdp.matching",
    "style_accuracy": "dialogkit.pdp.metrics",
    "NgramStyleClassifier": "dialogkit.pdp.style",
    "StyleClassifier": "dialogkit.pdp.style",
    "StyleJudge": "dialogkit.pdp.style",
    "embedded_config": "dialogkit.pdp.config",
    "style_prob": "dialogkit.pdp.metrics",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
