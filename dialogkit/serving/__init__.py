"""Chatbots behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogkit.serving.app import create_app
    from dialogkit.serving.engine import Answer, Busy, Choice, Engine, FailedError
    from dialogkit.serving.running import check_address, run_app
    from dialogkit.serving.settings import ServerSettings

__all__ = [
    "Answer",
    "Busy",
    "Choice",
    "Engine",
    "FailedError",
    "ServerSettings",
    "check_address",
    "create_app",
    "run_app",
]

_HOMES = {
    "Answer": "engine",
    "Busy": "engine",
    "Choice": "engine",
    "Engine": "engine",
    "FailedError": "engine",
    "ServerSettings": "settings",
    "check_address": "running",
    "create_app": "app",
    "run_app": "running",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
