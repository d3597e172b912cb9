"""Tables in Markdown and the figure of residuals against passes."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from trainkit.hub import write_json

from .runs import SECTIONS, Curve, Section, measure

__all__ = ["run"]

PAGE = Path(__file__).parents[2] / "docs" / "si_hg.md"
FIGURE = PAGE.parent / "img" / "si_hg_convergence.svg"
BEGIN, END = "<!-- convergence: begin -->", "<!-- convergence: end -->"
SHOWN = ("a", "b", "d, h=0.6", "e")
# Curves of panel (e) that lie on others or only show that a step is too long; they are in the table.
LEFT_OUT = frozenset(
    {
        "SI-HG R1, τ=0.03, η=0",
        "SI-HG R1, τ=0.03, η=1",
        *(f"SI-HG R1, τ=0.3, η={eta}" for eta in ("0", "0.5", "1")),
        "SI-HG R2, τ=0.3, η=1",
        "alternating SGDA, 0.03",
    }
)
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf", "#000000",
)  # fmt: skip
POINTS = 100


def run(output: Path, *, page: bool) -> None:
    """Runs everything, writes the numbers, the tables and the figure.

    Args:
        output: Folder for ``convergence.json``, ``convergence.md`` and the figure.
        page: Put tables and figure into the documentation too.
    """
    started = time.process_time()
    found = {section.key: [measure(section, each) for each in section.runs] for section in SECTIONS}
    seconds = time.process_time() - started
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "convergence.json", _document(found))
    where = f"{platform.processor() or platform.machine()}, one thread of a shared machine"
    text = (
        f"Made by `python scripts/convergence.py --page` in about {round(seconds, -1):.0f} s of "
        f"processor time ({where}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}).\n\n"
        + "\n\n".join(_table(section, found[section.key]) for section in SECTIONS)
    )
    (output / "convergence.md").write_text(text + "\n", encoding="utf-8")
    figure = FIGURE if page else output / "convergence.svg"
    _figure(found, figure)
    if page:
        whole = PAGE.read_text(encoding="utf-8")
        before, _, rest = whole.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)


def _document(found: dict[str, list[Curve]]) -> dict[str, dict[str, list[str]]]:
    """Numbers as text, because JSON knows no infinity."""
    return {
        key: {curve.name: [f"{value:.3e}" for value in curve.row] for curve in curves}
        for key, curves in found.items()
    }


def _table(section: Section, curves: Sequence[Curve]) -> str:
    head = [f"{column:,}" for column in section.columns] + ["last"] * section.by_gradients
    shows = (
        f"best residual after that many gradients of one block, geometric mean of {len(section.seeds)} seeds"
        if section.by_gradients
        else "residual after that many iterations"
    )
    lines = [f"**({section.key}) {section.title}**: {shows}.", "", f"| method | {' | '.join(head)} |"]
    lines.append("| --- |" + " ---: |" * len(head))
    lines += [f"| {curve.name} | {' | '.join(_number(value) for value in curve.row)} |" for curve in curves]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "diverges" if not math.isfinite(value) or value > 1e3 else f"{value:.1e}"


def _figure(found: dict[str, list[Curve]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    sections = {section.key: section for section in SECTIONS}
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.4), layout="constrained")
    for axis, key in zip(axes.flat, SHOWN, strict=True):
        shown = [curve for curve in found[key] if curve.name not in LEFT_OUT]
        for index, curve in enumerate(shown):
            passes, values = _thinned(curve)
            ours = curve.name.startswith("SI-HG")
            axis.plot(
                passes,
                values,
                color=COLOURS[index],
                linestyle="-" if ours else "--",
                linewidth=1.6 if ours else 1.2,
                label=curve.name,
            )
        axis.set_yscale("log")
        axis.set_ylim(1e-20 if key != "e" else 5e-7, 1e4 if key != "e" else 0.3)
        if key == "e":
            axis.set_xscale("log")
        axis.set_title(f"({key}) {sections[key].title}", fontsize=9)
        axis.set_xlabel("passes over the data (gradients of the whole sum)", fontsize=8)
        axis.set_ylabel("best squared residual so far" if key == "e" else "squared residual", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["svg.fonttype"] = "convergence", "none"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """At most `POINTS` points of a curve."""
    kept = np.unique(np.geomspace(1, len(curve.passes), POINTS).astype(int) - 1)
    return [curve.passes[i] for i in kept], [curve.values[i] for i in kept]
