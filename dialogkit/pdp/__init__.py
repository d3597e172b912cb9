"""Pseudo Dialog Prompting: a character talks from a handful of its utterances (arXiv 2204.10825)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogkit.retrieval.index import ContextIndex
    from dialogkit.retrieval.pool import ContextPool

    from .character_report import CharacterReport, Check
    from .characters import Blend, Character
    from .chatbot import PDPChatbot
    from .config import PDPConfig, embedded_config
    from .contradiction import NLIJudge
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
    from .regression import RegressionConfig, examine_character, leaked
    from .style import NgramStyleClassifier, StyleClassifier, StyleJudge

__all__ = [
    "Blend",
    "Character",
    "CharacterReport",
    "ChatTemplatePrompt",
    "Check",
    "ContextIndex",
    "ContextPool",
    "DialogPrompt",
    "DynamicMatcher",
    "GoldMatcher",
    "Matcher",
    "NLIJudge",
    "NgramStyleClassifier",
    "PDPChatbot",
    "PDPConfig",
    "PromptBuilder",
    "PseudoDialog",
    "RandomMatcher",
    "RegressionConfig",
    "StaticMatcher",
    "StyleClassifier",
    "StyleJudge",
    "UtterancesPrompt",
    "ZeroShotPrompt",
    "classify_responses",
    "dynamic_queries",
    "embedded_config",
    "examine_character",
    "leaked",
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
    "CharacterReport": "dialogkit.pdp.character_report",
    "Check": "dialogkit.pdp.character_report",
    "NLIJudge": "dialogkit.pdp.contradiction",
    "RegressionConfig": "dialogkit.pdp.regression",
    "examine_character": "dialogkit.pdp.regression",
    "leaked": "dialogkit.pdp.regression",
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
