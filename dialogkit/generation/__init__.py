"""Language models that continue dialogues, on this machine or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogkit.generation.endpoint import EndpointError, EndpointLM
    from dialogkit.generation.local import TransformersLM
    from dialogkit.generation.safety import Injection, injection_corpus
    from dialogkit.generation.trimming import trim_history
    from dialogkit.generation.types import (
        Candidate,
        FinishReason,
        GenerationConfig,
        LanguageModel,
        Likelihood,
        Prompt,
        PromptError,
    )

__all__ = [
    "Candidate",
    "EndpointError",
    "EndpointLM",
    "FinishReason",
    "GenerationConfig",
    "Injection",
    "LanguageModel",
    "Likelihood",
    "Prompt",
    "PromptError",
    "TransformersLM",
    "injection_corpus",
    "trim_history",
]

_HOMES = {
    "EndpointError": "endpoint",
    "EndpointLM": "endpoint",
    "Injection": "safety",
    "TransformersLM": "local",
    "injection_corpus": "safety",
    "trim_history": "trimming",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
