"""Dialogues go in, a chatbot that talks comes out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogkit.chat import Chatbot, ChatSession, Reply
    from dialogkit.dialogues import (
        DataError,
        Dialogue,
        Example,
        Turn,
        as_history,
        read_dialogues,
        read_examples,
        single_line,
    )
    from dialogkit.generation import (
        Candidate,
        EndpointLM,
        GenerationConfig,
        LanguageModel,
        Likelihood,
        TransformersLM,
    )
    from dialogkit.pdp import Character, PDPChatbot

__all__ = [
    "Candidate",
    "Character",
    "ChatSession",
    "Chatbot",
    "DataError",
    "Dialogue",
    "EndpointLM",
    "Example",
    "GenerationConfig",
    "LanguageModel",
    "Likelihood",
    "PDPChatbot",
    "Reply",
    "TransformersLM",
    "Turn",
    "as_history",
    "read_dialogues",
    "read_examples",
    "single_line",
]

_HOMES = {
    "Candidate": "generation",
    "Character": "pdp",
    "ChatSession": "chat",
    "Chatbot": "chat",
    "EndpointLM": "generation",
    "GenerationConfig": "generation",
    "LanguageModel": "generation",
    "Likelihood": "generation",
    "PDPChatbot": "pdp",
    "Reply": "chat",
    "TransformersLM": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'dialogues')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
