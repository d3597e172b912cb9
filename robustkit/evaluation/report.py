"""What is particular to the report of a classifier: its name, and texts before and after an attack."""

from __future__ import annotations

from trainkit.report import Example, Report

__all__ = ["RobustnessReport", "attack_example"]


class RobustnessReport(Report):
    """What was measured on a classifier, section by section; see :class:`trainkit.report.Report`."""


def attack_example(caption: str, original: str, perturbed: str) -> Example:
    """A text before and after an attack.

    Args:
        caption: What happened to it, in a line.
        original: The text, with ``[[ ]]`` round the words that were changed.
        perturbed: The altered text, with ``[[ ]]`` round the new words.
    """
    return Example(caption, (("original", original), ("altered", perturbed)))
