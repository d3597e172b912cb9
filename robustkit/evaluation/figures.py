"""Pictures of a report: curves as SVG that can be read on a light and on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from hashlib import sha256

from numpy.typing import ArrayLike

from trainkit.report import Figure

__all__ = ["curves_figure"]

# Of middle lightness: at least 3:1 against white and against #14171b.
_COLOURS = ("#2f81c1", "#c9671f", "#238b5b", "#d04a6b", "#8a63d2", "#8f7a1e", "#1f8f9e", "#b052a8")
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_GREY = "#808890"


def curves_figure(
    title: str,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    unit_square: bool = False,
    note: str = "",
) -> Figure:
    """Draw lines into one pair of axes, with their names below; needs matplotlib.

    Args:
        title: Title of the figure.
        curves: x and y values, each (k,), by name.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        diagonal: Whether to draw the line y = x, a ROC curve of guessing.
        unit_square: Whether both axes run from 0 to 1.
        note: What a reader must know to read the figure.

    Returns:
        The figure. The same curves always give the same SVG.

    Raises:
        ValueError: There are no curves.
    """
    if not curves:
        raise ValueError(f"the figure {title!r} has no curves")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    names = [name if len(name) <= 32 else f"{name[:31]}…" for name in curves]
    rows = (len(curves) + 1) // 2
    # Names in the picture come from outside and hold no mathematics. Two figures of one page must not share
    # the names of their clipping paths, hence the salt.
    with matplotlib.rc_context(
        {
            "text.parse_math": False,
            "svg.fonttype": "none",
            "svg.hashsalt": sha256(title.encode("utf-8", "replace")).hexdigest(),
            "axes.edgecolor": _GREY,
            "xtick.color": _GREY,
            "ytick.color": _GREY,
            "font.size": 10,
        }
    ):
        canvas = Canvas(figsize=(4.6, 4.2 + 0.22 * rows))
        FigureCanvasSVG(canvas)
        axes = canvas.add_axes(
            (0.14, (0.62 + 0.22 * rows) / (4.2 + 0.22 * rows), 0.83, 3.48 / (4.2 + 0.22 * rows))
        )
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
        lines = [
            axes.plot(
                x,
                y,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index // len(_COLOURS) % len(_STYLES)],
                linewidth=1.7,
            )[0]
            for index, (x, y) in enumerate(curves.values())
        ]
        if unit_square:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.legend(
            lines,
            names,
            loc="lower center",
            ncols=2,
            frameon=False,
            fontsize=9.5,
            borderpad=0,
            handlelength=1.6,
        )
        file = io.BytesIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode()
    svg = text[text.index("<svg") :].strip()
    # The licence block of the metadata is about the picture's format, not for a page.
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return Figure(title, svg, note)
