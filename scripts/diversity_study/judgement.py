"""Which metric ranks dialogues as people who rated their diversity do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from trainkit.datafiles import data_file
from trainkit.hub import write_json

from .material import Material, Measure
from .statistics import Floats, interval, partial_spearman, spearman

__all__ = ["Rated", "rater_agreement", "rows_of", "run", "system_turns"]

CONTROLS = ("responses", "words")


@dataclass(frozen=True)
class Rated:
    """A dialogue.

    Attributes:
        system: Who spoke as "System": Meena, Mitsuku or a person.
        turns: What it said.
        ratings: "Is the system diverse in its responses?", 0 to 2, a number for each rater.
    """

    system: str
    turns: list[str]
    ratings: list[float]


def system_turns(records: Sequence[Mapping[str, Any]]) -> list[Rated]:
    """The dialogue-level records of FED with two or more system turns and a rating."""
    found = []
    for record in records:
        if "response" in record:
            continue
        lines = [line for line in record["context"].split("\n") if line.startswith("System:")]
        turns = [text for line in lines if (text := line.removeprefix("System:").strip())]
        ratings = [float(value) for value in record["annotations"]["Diverse"] if isinstance(value, int)]
        if len(turns) >= 2 and ratings:
            found.append(Rated(record["system"], turns, ratings))
    return found


def rater_agreement(dialogues: Sequence[Rated]) -> float:
    """Mean rank correlation of one column of ratings with the mean of the others: a ceiling for metrics.

    The columns are not persons: FED does not say who rated what.
    """
    ratings = np.array([one.ratings for one in dialogues])
    others = (ratings.sum(axis=1, keepdims=True) - ratings) / (ratings.shape[1] - 1)
    return fmean(spearman(ratings[:, i], others[:, i]) for i in range(ratings.shape[1]))


def rows_of(figures: Mapping[str, Floats], human: Floats) -> list[dict[str, Any]]:
    """For each metric its correlation with people, plain and without what the controls explain."""
    controls = np.column_stack([figures[name] for name in CONTROLS])
    rows = []
    for name, values in figures.items():
        low, high = interval(lambda rows, v=values: spearman(v[rows], human[rows]), len(human))  # type: ignore[misc]
        row: dict[str, Any] = {"metric": name, "spearman": spearman(values, human), "interval": [low, high]}
        if name not in CONTROLS:
            row["partial"] = partial_spearman(values, human, controls)
            row["partial_interval"] = interval(
                lambda rows, v=values: partial_spearman(v[rows], human[rows], controls[rows]),  # type: ignore[misc]
                len(human),
            )
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = ["| metric | Spearman | 95 % | controlled | 95 % |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [row["metric"], f"{row['spearman']:+.2f}", _range(row["interval"])]
        cells += [f"{row['partial']:+.2f}", _range(row["partial_interval"])] if "partial" in row else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def run(encoders: Sequence[str], k: int, responses: int, output: Path) -> None:
    """Measures, prints the table, and writes it as JSON."""
    records = json.loads(gzip.decompress(data_file("ratings/fed.json.gz").read_bytes()))
    dialogues = system_turns(records)
    material = Material.load(encoders, k=k, responses=responses, cache=output / "vectors")
    measure = Measure(material, [turn for one in dialogues for turn in one.turns])
    ends = np.cumsum([len(one.turns) for one in dialogues]).tolist()
    measured = [measure(range(end - len(one.turns), end)) for one, end in zip(dialogues, ends, strict=True)]
    figures = {name: np.array([row[name] for row in measured]) for name in measured[0]}
    human = np.array([fmean(one.ratings) for one in dialogues])
    rows = rows_of(figures, human)
    systems = {
        name: fmean(fmean(one.ratings) for one in dialogues if one.system == name)
        for name in sorted({one.system for one in dialogues})
    }
    agreement = rater_agreement(dialogues)
    write_json(
        output / "judgement.json",
        {
            "dialogues": len(dialogues),
            "k": k,
            "cluster_responses": responses,
            "agreement": agreement,
            "mean_rating": systems,
            "rows": rows,
        },
    )
    print(f"{len(dialogues)} dialogues; mean rating {systems}; one rater with the others {agreement:.2f}\n")
    print(table(rows))
