"""Rows as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from trainkit.hub import write_bytes

__all__ = ["averaged", "compared", "markdown", "overall", "pivot", "reached", "write_csv"]


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; floats with three decimals."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def averaged(
    rows: Sequence[Mapping[str, object]], by: Sequence[str], *, counts: Sequence[str] = ()
) -> list[dict[str, object]]:
    """Means of the rows that agree in the columns ``by``; the columns ``counts`` are summed.

    NaN, such as the words changed by an attack that never succeeded, counts nothing; "" where all are.
    """
    groups: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    found = []
    for group in groups.values():
        joined = dict(group[0])
        for name in joined:
            if name not in by:
                values = [float(str(row[name])) for row in group]
                known = [value for value in values if not math.isnan(value)]
                joined[name] = round(sum(values)) if name in counts else fmean(known) if known else ""
        found.append(joined)
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows with the same names, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def pivot(rows: Sequence[Mapping[str, object]], figure: str = "auc", scenario: str = "s1") -> str:
    """One figure in percent as mean ± standard deviation: a line for each kind of set, a column a detector.

    The best detector of a line is bold.
    """
    lines: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["scenario"] == scenario:
            kind = (str(row["data"]), str(row["attack"]), str(row["distance"]))
            cell = (float(row[figure]), float(row[f"{figure}_sd"]))  # type: ignore[arg-type]
            lines.setdefault(kind, {})[str(row["detector"])] = cell
    columns = list(dict.fromkeys(name for cells in lines.values() for name in cells))
    table = []
    for (data, attack, distance), cells in lines.items():
        best = max(round(100 * mean, 1) for mean, _ in cells.values())
        line: dict[str, object] = {"data": data, "attack": attack, "boundary": distance}
        for column in columns:
            if column not in cells:
                line[column] = ""
                continue
            mean, spread = cells[column]
            text = f"{100 * mean:.1f} ± {100 * spread:.1f}"
            line[column] = f"**{text}**" if round(100 * mean, 1) == best else text
        table.append(line)
    return markdown(table)


def kinds(rows: Sequence[Mapping[str, object]]) -> dict[tuple[str, ...], dict[str, Mapping[str, object]]]:
    """Rows by data set, attack, distance and scenario, then by detector."""
    found: dict[tuple[str, ...], dict[str, Mapping[str, object]]] = {}
    for row in rows:
        kind = tuple(str(row[name]) for name in ("data", "attack", "distance", "scenario"))
        found.setdefault(kind, {})[str(row["detector"])] = row
    return found


def overall(rows: Sequence[Mapping[str, object]]) -> str:
    """A line for each detector: figures averaged over all rows, in percent, and milliseconds."""
    table = []
    for name in dict.fromkeys(str(row["detector"]) for row in rows):
        own = [row for row in rows if row["detector"] == name]

        def mean(figure: str, rows: Sequence[Mapping[str, object]] = own) -> str:
            return f"{100 * fmean(float(str(row[figure])) for row in rows):.1f}"

        near = [row for row in own if row["distance"] == "near"]
        far = [row for row in own if row["distance"] == "far"]
        table.append(
            {
                "detector": name,
                "AUC near": mean("auc", near),
                "AUC far": mean("auc", far),
                "TPR@10 oracle": mean("tpr_oracle"),
                "TPR calibrated": mean("tpr"),
                "FPR calibrated": mean("fpr"),
                "F1 calibrated": mean("f1"),
                "ms/text": f"{fmean(float(str(row['ms'])) for row in own):.2f}",
            }
        )
    return markdown(table)


def compared(
    rows: Sequence[Mapping[str, object]], one: str, others: Sequence[str]
) -> list[tuple[tuple[str, ...], float, str]]:
    """By how much the AUC of a detector exceeds that of the best of others.

    Returns:
        Kind of set, lead and name of the best of the others, for each kind.
    """
    found = []
    for kind, cells in kinds(rows).items():
        bar, best = max((float(str(cells[name]["auc"])), name) for name in others)
        found.append((kind, float(str(cells[one]["auc"])) - bar, best))
    return found


def reached(
    rows: Sequence[Mapping[str, object]], names: Sequence[str], bars: Mapping[str, Sequence[str]]
) -> str:
    """In how many rows detectors are at least as good as the best of others, with mean and worst lead.

    Args:
        rows: Of all detectors.
        names: A line for each.
        bars: Names of the others, by the title of their column; a detector is no bar for itself.
    """
    table = []
    for name in names:
        line: dict[str, object] = {"detector": name}
        for title, others in bars.items():
            leads = [lead for _, lead, _ in compared(rows, name, [one for one in others if one != name])]
            count = f"{sum(lead >= 0 for lead in leads)} of {len(leads)}"
            line[title] = f"{count} ({100 * fmean(leads):+.1f}, worst {100 * min(leads):+.1f})"
        table.append(line)
    return markdown(table)
