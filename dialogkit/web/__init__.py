"""The chat page: talk with characters and other chatbots in a browser (extra ``web``)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import chat_page, mount_chat

__all__ = ["chat_page", "mount_chat"]

_HOMES = {"chat_page": "page", "mount_chat": "page"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
