"""Pictures of attributions: PNG files and pages that can be read in a light and in a dark scheme."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.hub import write_bytes

from .attribution import Attribution, Reduce
from .tokens import pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "articles",
    "clipped",
    "coloured",
    "heatmap_grid",
    "heatmap_png",
    "html_grid",
    "page",
    "shown_image",
]

# Of middle lightness: text can be read on white and on near-black.
_GREY = "#808890"
_SIDE, _GAP, _HEAD, _FOOT = 1.5, 0.08, 0.26, 0.42
_DPI = 120
# Blue against, orange in favour: told apart by colour-blind readers, too.
_POSITIVE, _NEGATIVE = "226,113,29", "47,129,193"


def clipped(maps: Tensor, low: float = 0.5, high: float = 99.5) -> Tensor:
    """Clip each map to two of its percentiles, so that single pixels do not decide the scale.

    Pixels below the lower percentile become 0 if that is positive; otherwise they become the percentile. As
    the RectGrad paper's code prepares its pictures; with ``low`` 95 it is the threshold that it gives other
    methods.

    Args:
        maps: ``(B, H, W)``.
        low: Percentile.
        high: Percentile.

    Returns:
        ``(B, H, W)``.
    """
    flat = maps.flatten(1).double()
    least, most = (torch.quantile(flat, q / 100, dim=1, keepdim=True) for q in (low, high))
    kept = flat.clamp(least, most)
    return torch.where((flat < least) & (least > 0), 0.0, kept).view(maps.shape).to(maps.dtype)


def heatmap_grid(
    path: str | Path,
    attributions: Sequence[Attribution],
    *,
    reduce: Reduce | None = None,
    rows: int | None = None,
) -> None:
    """Draw methods side by side: a row for each image, a column for each attribution; needs matplotlib.

    Each map has a colour scale of its own, symmetric around 0: red in favour, blue against. Colours tell
    nothing about which method gives larger numbers.

    Args:
        path: The PNG file; its folder must exist.
        attributions: Of the same images.
        reduce: See `Attribution.map`.
        rows: How many images, from the first; None for all.

    Raises:
        ValueError: Nothing to draw, other images, or no images.
    """
    _check_same_inputs(attributions)
    write_bytes(path, heatmap_png(attributions, reduce=reduce, columns=1, rows=rows))


def heatmap_png(
    attributions: Sequence[Attribution],
    *,
    reduce: Reduce | None = None,
    columns: int = 4,
    rows: int | None = None,
    legend: bool = True,
) -> bytes:
    """The PNG file of images beside their maps.

    Args:
        attributions: Of the same images.
        reduce: See `Attribution.map`.
        columns: Images in a row of the picture, each with all its maps.
        rows: How many images, from the first; None for all.
        legend: Whether a bar below says what the colours mean.

    Returns:
        The file. The same attributions always give the same size.

    Raises:
        ValueError: See `heatmap_grid`.
    """
    first = attributions[0]
    if first.text is not None or first.inputs.ndim != 4:
        raise ValueError(f"inputs {tuple(first.inputs.shape)} are no images (n, channels, y, x)")
    if columns < 1 or (rows is not None and rows < 1):
        raise ValueError(f"columns is {columns}, rows is {rows}; expected 1 or more")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    count = len(first) if rows is None else min(rows, len(first))
    across = min(columns, count)
    down = -(-count // across)
    group = 1 + len(attributions)
    height, width = first.inputs.shape[2:]
    tall = _SIDE * height / width
    step_x, step_y = group * (_SIDE + _GAP) + 2 * _GAP, tall + _HEAD
    size = (across * step_x - _GAP, down * step_y + (_FOOT if legend else 0))
    maps = [clipped(one.map(reduce)[:count].float().cpu()).numpy() for one in attributions]
    # Class names come from outside and hold no mathematics.
    with matplotlib.rc_context({"text.parse_math": False, "text.color": _GREY, "font.size": 8}):
        figure = Canvas(figsize=size, dpi=_DPI)
        FigureCanvasAgg(figure)
        for row in range(count):
            x0, y0 = _GAP + (row % across) * step_x, size[1] - (row // across + 1) * step_y
            panels: list[tuple[NDArray[Any], str]] = [
                (shown_image(first.inputs[row]), _short(first.label(row)))
            ]
            panels += [
                (coloured(own[row]), _short(_title(one))) for own, one in zip(maps, attributions, strict=True)
            ]
            for place, (image, title) in enumerate(panels):
                x = x0 + place * (_SIDE + _GAP)
                axes = figure.add_axes((x / size[0], y0 / size[1], _SIDE / size[0], tall / size[1]))
                axes.imshow(image, interpolation="nearest", aspect="auto")
                axes.set(xticks=[], yticks=[])
                # Without a frame a map of few pixels has no edge on a white page.
                axes.spines[:].set(color=_GREY, linewidth=0.4)
                axes.set_title(title, fontsize=8, color=_GREY, pad=3)
        if legend:
            _scale(figure, size)
        file = io.BytesIO()
        figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return file.getvalue()


def _scale(figure: Figure, size: tuple[float, float]) -> None:
    """A bar that says what the colours mean."""
    bar = coloured(np.linspace(-1, 1, 201, dtype=np.float32)[None])
    wide = min(1.6, size[0] - 1.7)
    left = (size[0] - wide) / 2
    axes = figure.add_axes((left / size[0], 0.14 / size[1], wide / size[0], 0.09 / size[1]))
    axes.imshow(bar, aspect="auto")
    axes.set_axis_off()
    for x, text, side in ((-0.03, "against", "right"), (1.03, "in favour", "left")):
        axes.text(x, 0.5, text, ha=side, va="center", fontsize=7.5, color=_GREY, transform=axes.transAxes)


def coloured(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """A map in blue, white and red, symmetric around 0.

    Args:
        values: ``(H, W)``.

    Returns:
        RGBA in [0, 1], ``(H, W, 4)``.
    """
    import matplotlib

    most = float(np.abs(values).max()) or 1.0
    found: NDArray[np.float64] = matplotlib.colormaps["bwr"](values / (2 * most) + 0.5)
    return found


def shown_image(pixels: Tensor) -> NDArray[np.float32]:
    """An image's pixels as they are drawn.

    Args:
        pixels: ``(C, H, W)``; of other than three channels the first is drawn, in grey.

    Returns:
        ``(H, W, 3)`` in [0, 1]; stretched where the values lie outside.
    """
    image = pixels.float().cpu()
    if image.min() < 0 or image.max() > 1:
        image = (image - image.min()) / (image.max() - image.min())
    image = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    return image.permute(1, 2, 0).numpy()


def _title(attribution: Attribution) -> str:
    name = attribution.method
    statistic = attribution.params.get("statistic")
    if name == "SmoothGrad" and statistic != "mean":
        return {"square": "SmoothGrad²", "var": "VarGrad", "mean_abs": "mean |gradient|"}[str(statistic)]
    if name == "Gradient" and attribution.params.get("times_input"):
        return "Gradient × input"
    if name == "RectGrad" and attribution.params.get("rule") == "gated":
        return "RectGrad-gated"
    return {"IntegratedGradients": "Integrated gradients", "GuidedBackprop": "Guided backprop"}.get(
        name, name
    )


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title><style>
:root{{color-scheme:light dark}}
body{{font:16px/1.9 system-ui,sans-serif;max-width:{width}rem;margin:2rem auto;padding:0 1rem}}
h1{{font-size:1.25rem;line-height:1.3;margin-bottom:.25rem}}
.note,.frame{{color:GrayText}} .note{{font-size:.875rem;line-height:1.5;margin:0 0 1rem}}
.frame{{font-size:.8em}} article{{border-top:1px solid rgba(128,136,144,.4);padding:.75rem 0}}
article p{{margin:.25rem 0;overflow-wrap:anywhere}} article .note{{margin:.5rem 0 0}}
.word{{padding:.1em .12em;border-radius:.2em}} img{{max-width:100%;display:block}}
.bar{{display:inline-block;width:8rem;height:.7em;border-radius:.2em;margin:0 .4em;background:linear-gradient(
90deg,{colours})}}
</style></head><body><h1>{title}</h1><p class="note">{note}</p>
{body}
<details class="note"><summary>Settings</summary>{settings}</details>
</body></html>
"""
_WORD_COLOURS = f"rgba({_NEGATIVE},.6),rgba({_NEGATIVE},0),rgba({_POSITIVE},0),rgba({_POSITIVE},.6)"
_MAP_COLOURS = "#00f,#fff,#f00"


def html_grid(path: str | Path, attributions: Sequence[Attribution], *, reduce: Reduce | None = None) -> None:
    """Write one page, without scripts and with all that it shows, of methods side by side.

    Texts have a line for each method with coloured words, images a strip of maps. Each map has a scale of its
    own.

    Args:
        path: The HTML file; its folder must exist.
        attributions: Of the same inputs.
        reduce: See `Attribution.map`.

    Raises:
        ValueError: Nothing to show, other inputs, or inputs that are neither texts nor images.
    """
    write_bytes(path, page(attributions, articles(attributions, reduce=reduce)).encode("utf-8", "replace"))


def articles(
    attributions: Sequence[Attribution],
    *,
    reduce: Reduce | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """The parts of a page: an HTML element for each input.

    Args:
        attributions: Of the same inputs.
        reduce: See `Attribution.map`.
        names: What inputs are called, such as their files; None for no names.

    Raises:
        ValueError: See `html_grid`.
    """
    _check_same_inputs(attributions)
    first = attributions[0]
    headings = [""] * len(first) if names is None else [f"<strong>{escape(name)}</strong> " for name in names]
    if first.text is None:
        return [_strip(attributions, row, headings[row], reduce) for row in range(len(first))]
    scores = [one.word_scores(reduce) for one in attributions]
    return [
        f"<article>{f'<p>{headings[row]}</p>' if headings[row] else ''}"
        + "".join(
            _line(one, row, own[row], reduce or one.usual_reduce(), len(attributions))
            for one, own in zip(attributions, scores, strict=True)
        )
        + "</article>"
        for row in range(len(first))
    ]


def page(attributions: Sequence[Attribution], parts: Sequence[str]) -> str:
    """A page of what `articles` gives.

    Args:
        attributions: One of each method, for title and settings.
        parts: Elements, also of further inputs that were explained in the same way.
    """
    texts = attributions[0].text is not None
    titles = [_title(one) for one in attributions]
    settings = "".join(
        f"<p>{escape(title)}: "
        f"{escape(', '.join(f'{name} {_setting(value)}' for name, value in one.params.items()))}</p>"
        for title, one in zip(titles, attributions, strict=True)
    )
    hint = "; pointing at a word shows its number. Each line" if texts else ". Each map"
    return _PAGE.format(
        title=escape(titles[0] if len(titles) == 1 else f"{len(titles)} attribution methods"),
        note=f'against<span class="bar"></span>in favour of the class{hint} has a scale of its own.',
        body="\n".join(parts),
        settings=settings,
        width=60 if texts else 100,
        colours=_WORD_COLOURS if texts else _MAP_COLOURS,
    )


def _check_same_inputs(attributions: Sequence[Attribution]) -> None:
    if not attributions:
        raise ValueError("attributions is empty")
    first = attributions[0]
    for one in attributions[1:]:
        texts = None if one.text is None else one.text.texts, None if first.text is None else first.text.texts
        if one.inputs.shape != first.inputs.shape or texts[0] != texts[1]:
            raise ValueError("the attributions are of different inputs")


def _setting(value: object) -> str:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)


def _strip(attributions: Sequence[Attribution], row: int, heading: str, reduce: Reduce | None) -> str:
    own = [one[row : row + 1] for one in attributions]
    picture = b64encode(heatmap_png(own, reduce=reduce, legend=False)).decode()
    shown = escape(f"{own[0].label(0)}: {float(own[0].output[0]):.3f}")
    titles = escape(", ".join(_title(one) for one in own))
    return (
        f'<article><p class="note">{heading}{shown}</p>'
        f'<img alt="The image and its maps: {titles}" src="data:image/png;base64,{picture}"></article>'
    )


def _line(
    attribution: Attribution, row: int, scores: Sequence[tuple[str, float]], reduce: Reduce, methods: int
) -> str:
    assert attribution.text is not None
    text = attribution.text.texts[row]
    sides = text if isinstance(text, tuple) else (text,)
    most = max((abs(score) for _, score in scores), default=0.0) or 1.0
    words = attribution.text.words[row]
    gap = "" if attribution.delta is None else f", completeness gap {float(attribution.delta[row]):+.2g}"
    method = f"{_title(attribution)}, " if methods > 1 else ""
    unsigned = "" if reduce == "sum" else ", sizes without sign"
    shown = f"{method}{attribution.label(row)}: {float(attribution.output[row]):.3f}{gap}{unsigned}"
    lines = []
    for number, side in enumerate(sides):
        own = [(word, score) for word, (_, score) in zip(words, scores, strict=True) if word.side == number]
        *parts, (rest, _) = pieces(side, [word for word, _ in own], [score for _, score in own])
        shades = [escape(piece) if score is None else _span(piece, score, most) for piece, score in parts]
        lines.append(f'<p>{"".join(shades)}<span class="frame">{escape(rest)}</span></p>')
    return f'<p class="note">{escape(shown)}</p>{"".join(lines)}'


def _span(text: str, score: float, most: float) -> str:
    colour = _POSITIVE if score > 0 else _NEGATIVE
    return (
        f'<span class="word" style="background:rgba({colour},{0.6 * abs(score) / most:.3f})" '
        f'title="{score:+.4g}">{escape(text)}</span>'
    )
