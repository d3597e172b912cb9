"""The figure: how much a generator leans on its exemplar, by likelihood and by words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

__all__ = ["draw"]


def draw(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Draws the gap of log-perplexities against exemplar BLEU-2, a point a run, a mark a method.

    Args:
        rows: Figures of the runs.
        methods: In the order of the legend.
        path: The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        points = [(row["gap"], row["exemplar BLEU-2"]) for row in own]
        colour = f"C{number}"
        axes.scatter(*zip(*points, strict=True), s=12, color=colour, alpha=0.5)
        mean = tuple(fmean(values) for values in zip(*points, strict=True))
        axes.scatter(*mean, s=70, marker="X", color=colour, label=method)
    axes.set_xscale("log")
    # Most generators copy next to nothing: the root tells them apart.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("log PPL with the retrieved exemplar - log PPL with the gold response (leaning)")
    axes.set_ylabel("exemplar BLEU-2 of replies (copying)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
