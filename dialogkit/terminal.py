"""Text on a terminal: what users and models write is shown as text, never obeyed."""

from __future__ import annotations

import sys
import unicodedata
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text

__all__ = ["error_console", "output_console", "printable", "safe"]

# Invisible characters that reorder the text around them and so can disguise what a line says.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Remove what could steer a terminal: control characters, reordering marks and lone surrogates.

    Tabs and line breaks of every kind become one space each. The function works character by character, so
    the pieces of a stream may be passed one at a time.

    Args:
        text: Any text, such as a user's message or a model's reply.

    Returns:
        The text, safe to print as it is.
    """
    kept = []
    for character in text:
        if character in "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
            kept.append(" ")
        elif character not in _REORDERING and unicodedata.category(character) not in ("Cc", "Cs"):
            kept.append(character)
    return "".join(kept)


def safe(text: str, style: str = "") -> Text:
    """A `rich` renderable that shows `text` literally, without markup, in a style.

    Args:
        text: Any text.
        style: A style of `rich`, such as ``"bold cyan"``.

    Returns:
        The renderable.
    """
    return Text(printable(text), style=style)


def output_console() -> Console:
    """The console for results, on standard output. Plain strings printed on it are literal, too.

    Characters that the stream's encoding lacks are replaced instead of raising an error.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(markup=False, emoji=False, highlight=False)


def error_console() -> Console:
    """The console for errors and warnings, on standard error, with the manners of `output_console`."""
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    return Console(stderr=True, markup=False, emoji=False, highlight=False)
