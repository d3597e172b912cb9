"""One progress bar for long work, silent where nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["Progress"]


class Progress:
    """A progress bar on standard error; does nothing when that is not a terminal.

    Args:
        total: Number of steps of the whole work.
        description: A word or two shown before the bar.
        done: Steps already done, for example by an earlier run.
        enabled: Set to false to stay silent on a terminal too.

    Example:
        ```python
        with Progress(len(items), "scoring") as progress:
            for item in items:
                progress.advance(note=score(item))
        ```
    """

    def __init__(self, total: int, description: str, *, done: int = 0, enabled: bool = True) -> None:
        self._bar = None
        if not (enabled and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Moves the bar.

        Args:
            steps: How many steps were done since the last call.
            note: New text behind the bar; ``None`` leaves the old one.
        """
        if self._bar is None:
            return
        if note is None:
            self._bar.update(self._task, advance=steps)
        else:
            self._bar.update(self._task, advance=steps, note=note)
