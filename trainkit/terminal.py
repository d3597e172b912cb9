"""What both commands share: text is shown as text, never obeyed; errors are lines, not tracebacks."""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "error_console",
    "output_console",
    "plain_errors",
    "printable",
    "quiet",
    "safe",
    "say",
    "show_version",
    "table",
]

# Invisible characters that reorder the text around them and so can disguise what a line says.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BREAKS = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")

_PIPE_WIDTH = 110
"""Columns of a table that is not shown on a terminal."""


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
        if character in _BREAKS:
            kept.append(" ")
        elif character not in _REORDERING and unicodedata.category(character) not in ("Cc", "Cs"):
            kept.append(character)
    return "".join(kept)


def safe(text: str, style: str = "") -> Text:
    """A renderable of `rich` that shows a text literally, without markup.

    Args:
        text: Any text.
        style: A style of `rich`, such as ``"bold cyan"``.

    Returns:
        The renderable.
    """
    return Text(printable(text), style=style)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    unbroken: Sequence[str] = (),
) -> Table:
    """A plain table whose cells are shown literally.

    Args:
        columns: Headings.
        rows: One cell for each column.
        numeric: Headings of the columns to align to the right and never to wrap.
        unbroken: Headings of further columns never to wrap.

    Returns:
        The renderable.
    """
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in columns:
        right = heading in numeric
        justify: Literal["left", "right"] = "right" if right else "left"
        shown.add_column(safe(heading), justify=justify, no_wrap=right or heading in unbroken)
    for row in rows:
        shown.add_row(*(safe(cell) for cell in row))
    return shown


def output_console() -> Console:
    """The console for results, on standard output. Plain strings printed on it are literal, too.

    Characters that the stream's encoding lacks are replaced instead of raising an error.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def error_console() -> Console:
    """The console for errors and warnings, on standard error, with the manners of `output_console`."""
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """Prints one line on standard error."""
    error_console().print(safe(message, style))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns errors that a user can repair into one line on standard error and exit code 2.

    Warnings become a line, too, and Ctrl-C exit code 130. What is left to show a traceback is a defect of the
    program.
    """
    import typer

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except BrokenPipeError:
            raise  # typer ends quietly when nobody reads on
        except KeyboardInterrupt as error:
            say("interrupted", "yellow")
            raise typer.Exit(130) from error
        except (ValueError, TypeError, OSError, ImportError) as error:
            say(f"error: {error}", "bold red")
            raise typer.Exit(2) from error


def show_version(program: str) -> Callable[[bool], None]:
    """What typer calls for a program's ``--version``: prints the installed version and ends."""

    def show(wanted: bool) -> None:
        import typer

        if wanted:
            try:
                number = version("dialogkit-robustkit")
            except PackageNotFoundError:
                number = "(not installed)"
            typer.echo(f"{program} {number}")
            raise typer.Exit()

    return show


def quiet() -> None:
    """Keeps transformers' progress bars and advice off the terminal, in a process that is a command's own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
