"""The table, the comparison with the published order, the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from trainkit.hub import write_bytes
from trainkit.report import Estimate

from .material import Speaker
from .measure import Measured, difference, estimate
from .replies import PUBLISHED, ROWS

__all__ = ["orders", "relations", "summary", "write_report"]

_DOCS = Path(__file__).parents[2] / "docs"
PAGE = _DOCS / "pdp_comparison.md"
FIGURE = _DOCS / "img" / "pdp_comparison.svg"

_PICTURE = (
    "![StyleProb of every row, with the published one, and style against relevance](img/pdp_comparison.svg)"
)

PAIRED = ("static", "dynamic", "random", "gold")


def write_report(
    found: Mapping[str, Measured],
    latency: Mapping[str, Mapping[str, float]],
    *,
    head: str,
    voices: Sequence[Speaker],
    folder: Path,
    page: bool,
) -> None:
    """Writes ``report.md`` and ``figure.svg``; with ``page`` the parts of the documentation, too."""
    parts = {
        "setting": head,
        "table": f"{table(found, latency)}\n\n{_PICTURE}",
        "summary": summary(found),
        "relations": relations(found),
        "orders": orders(found),
        "speakers": by_speaker(found, voices),
    }
    write_bytes(folder / "report.md", "\n\n".join(parts.values()).encode())
    figure(found, folder / "figure.svg")
    if page:
        text = PAGE.read_text(encoding="utf-8")
        for name, part in parts.items():
            before, _, rest = text.partition(f"<!-- {name} -->\n")
            _, _, after = rest.partition(f"<!-- end {name} -->")
            if not after:
                raise ValueError(f"{PAGE} has no place for {name!r}")
            text = f"{before}<!-- {name} -->\n\n{part}\n\n<!-- end {name} -->{after}"
        write_bytes(PAGE, text.encode())
        figure(found, FIGURE)


def table(found: Mapping[str, Measured], latency: Mapping[str, Mapping[str, float]]) -> str:
    """All figures of all rows."""
    lines = [
        "| row | StyleProb | style accuracy | relevance | relevance lift | distinct-1 | distinct-2 | words "
        "| copied | ms a reply (p50) |",
        "| --- |" + " --- |" * 9,
    ]
    for row in ROWS:
        own = found[row]
        cells = [
            row,
            *(_cell(estimate(own.values[name])) for name in ("StyleProb", "style accuracy")),
            *(_cell(estimate(own.values[name])) for name in ("relevance", "lift")),
            *(_cell(each) for each in own.distinct.values()),
            _cell(estimate(own.values["length"]), 1),
            _cell(estimate(own.values["copied"])),
            f"{1e3 * latency[row]['p50']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def relations(found: Mapping[str, Measured]) -> str:
    """The relations that hold for all four language models of the paper, and what became of them here."""
    style = {row: found[row].values["StyleProb"] for row in ROWS}
    fit = {row: found[row].values["relevance"] for row in ROWS}
    asked = [
        (f"{row} has more style than utterances only", style[row], style["utterances only"]) for row in PAIRED
    ]
    asked.append(("dynamic has more style than static", style["dynamic"], style["static"]))
    asked += [
        (f"utterances only is more coherent than {row}", fit["utterances only"], fit[row]) for row in PAIRED
    ]
    asked += [
        (f"{row} is more coherent than dynamic", fit[row], fit["dynamic"]) for row in ("static", "random")
    ]
    lines = ["| published for every language model | difference here | |", "| --- | --- | --- |"]
    for claim, one, other in asked:
        gap = difference(one, other)
        lines.append(f"| {claim} | {_cell(gap, sign=True)} | {_verdict(1.0, gap)} |")
    return "\n".join(lines)


def summary(found: Mapping[str, Measured]) -> str:
    """How much of the published order is there, in two sentences."""
    lines = []
    for place, (name, theirs) in enumerate((("StyleProb", "StyleProb"), ("relevance", "MaUdE"))):
        values = {row: float(found[row].values[name].mean()) for row in PUBLISHED}
        here = sorted(values, key=lambda row: -values[row])
        there = sorted(PUBLISHED, key=lambda row: -PUBLISHED[row][place])
        steps = sum((here.index(row) - there.index(row)) ** 2 for row in PUBLISHED)
        count = len(PUBLISHED)
        verdicts = [
            _verdict(
                PUBLISHED[one][place] - PUBLISHED[other][place],
                difference(found[one].values[name], found[other].values[name]),
            )
            for one, other in combinations(PUBLISHED, 2)
        ]
        counts = [verdicts.count(each) for each in ("agrees", "disagrees", "undecided")]
        lines.append(
            f"- **{name}**, from high to low: {', '.join(here)}. The paper's {theirs}: {', '.join(there)}. "
            f"Spearman's rank correlation {1 - 6 * steps / (count * (count**2 - 1)):+.2f}; of {sum(counts)} "
            f"pairs {counts[0]} agree, {counts[1]} disagree, {counts[2]} cannot be told apart here."
        )
    return "\n".join(lines)


def orders(found: Mapping[str, Measured]) -> str:
    """Every pair of rows: the published differences and ours."""
    lines = [
        "| A − B | StyleProb, paper | here | | MaUdE, paper | relevance, here | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one, other in combinations(PUBLISHED, 2):
        cells = [f"{one} − {other}"]
        for place, name in enumerate(("StyleProb", "relevance")):
            published = PUBLISHED[one][place] - PUBLISHED[other][place]
            gap = difference(found[one].values[name], found[other].values[name])
            cells += [f"{published:+.3f}", _cell(gap, sign=True), _verdict(published, gap)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_speaker(found: Mapping[str, Measured], voices: Sequence[Speaker]) -> str:
    """StyleProb of each speaker."""
    lines = ["| StyleProb | " + " | ".join(ROWS) + " |", "| --- |" + " --- |" * len(ROWS)]
    for place, voice in enumerate(voices):
        cells = [f"{found[row].values['StyleProb'][place].mean():.3f}" for row in ROWS]
        lines.append(f"| {voice.id} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(found: Mapping[str, Measured], path: Path) -> None:
    """StyleProb beside the published one, and style against relevance."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawn, (bars, plane) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    style = {row: estimate(found[row].values["StyleProb"]) for row in ROWS}
    fit = {row: estimate(found[row].values["relevance"]) for row in ROWS}
    places = np.arange(len(ROWS))[::-1]
    colours = [pyplot.get_cmap("tab10")(i) for i in range(len(ROWS))]
    values = [style[row].value for row in ROWS]
    bars.barh(places, values, color=colours, alpha=0.75, xerr=_ends(list(style.values())), capsize=3)
    known = [(place, PUBLISHED[row][0]) for place, row in zip(places, ROWS, strict=True) if row in PUBLISHED]
    bars.scatter(
        [value for _, value in known],
        [place for place, _ in known],
        marker="D",
        color="black",
        zorder=3,
        label="published, 3.8 billion parameters",
    )
    bars.set_yticks(places, ROWS)
    bars.set_xlim(0, 1)
    bars.set_xlabel("StyleProb")
    bars.legend(loc="upper right", fontsize=8)
    for row, colour in zip(ROWS, colours, strict=True):
        plane.errorbar(
            fit[row].value,
            style[row].value,
            xerr=_ends([fit[row]]),
            yerr=_ends([style[row]]),
            color=colour,
            marker="o",
            capsize=2,
            linewidth=1,
            label=row,
        )
    plane.set_xlabel("relevance: cosine of input and reply by a held-out encoder")
    plane.set_ylabel("StyleProb")
    plane.grid(alpha=0.3)
    plane.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["svg.fonttype"] = "pdp", "none"
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def _ends(estimates: Sequence[Estimate]) -> list[list[float]]:
    low = [each.value - (each.value if each.low is None else each.low) for each in estimates]
    high = [(each.value if each.high is None else each.high) - each.value for each in estimates]
    return [low, high]


def _cell(one: Estimate, digits: int = 3, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    text = f"{one.value:{plus}.{digits}f}"
    return text if one.low is None else f"{text} [{one.low:{plus}.{digits}f}, {one.high:{plus}.{digits}f}]"


def _verdict(published: float, gap: Estimate) -> str:
    """Whether the interval lies on the published side of zero."""
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return "undecided"
    return "agrees" if (gap.value > 0) == (published > 0) else "disagrees"
