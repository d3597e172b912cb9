"""Sets of human replies whose diversity of meaning is known, with equal or opposed diversity of words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from trainkit.datafiles import data_file, read_jsonl
from trainkit.hub import write_json
from trainkit.seeding import derive_seed

from .material import Material, Measure
from .statistics import Floats, auc, interval

__all__ = ["Pairs", "best_pairs", "by_contexts", "rewrites", "run"]

_MATCH = np.array([0.02, 0.02, 0.5])
"""How far dist-1, dist-2 and words per response of a matched pair may differ."""
_OPPOSED = 0.03
"""How much lower dist-1 and dist-2 of the set with the more diverse meaning are, where words are opposed."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of sets of responses.

    Attributes:
        name: What differs.
        low: Rows of the sets with the less diverse meaning (or words).
        high: Rows of their partners.
    """

    name: str
    low: list[list[int]]
    high: list[list[int]]


def replies() -> tuple[list[str], list[str]]:
    """DailyDialog++: five good replies to each context, one after another, and the contexts' last turns."""
    rows = list(read_jsonl(data_file("dialogue/dailydialog_pp.jsonl.gz")))
    rows = [row for row in rows if len(row["positive_responses"]) == 5 and all(row["positive_responses"])]
    return [text for row in rows for text in row["positive_responses"]], [row["context"][-1] for row in rows]


def by_contexts(
    contexts: int, groups: int, pool: int, rng: Random
) -> tuple[list[list[int]], list[list[int]]]:
    """Sets of ``5 * groups`` replies: all five to each of ``groups`` contexts, or one to each of many.

    Args:
        contexts: Number of contexts; rows ``5 i .. 5 i + 4`` answer context i.
        groups: Contexts of a set with little diversity of meaning; no context is in two of them.
        pool: Number of sets with one reply to each of ``5 * groups`` contexts.
        rng: Source of chance.
    """
    order = rng.sample(range(contexts), contexts)
    low = [
        [5 * context + i for context in order[start : start + groups] for i in range(5)]
        for start in range(0, contexts - groups + 1, groups)
    ]
    high = [
        [5 * context + rng.randrange(5) for context in rng.sample(range(contexts), 5 * groups)]
        for _ in range(pool)
    ]
    return low, high


def best_pairs(
    distance: Floats, allowed: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Most allowed pairs of a row with a column of its own, then the least distance in sum."""
    from scipy.optimize import linear_sum_assignment

    forbidden = 1e3 * (1.0 + distance.max())
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def rewrites(
    text: str, neighbours: Mapping[str, Sequence[str]], rng: Random, count: int = 5
) -> list[str] | None:
    """Paraphrase-like versions: each word that has near-synonyms is one of them or itself, by chance.

    Returns:
        ``count`` distinct texts, or None where less than a third of the words can be replaced.
    """
    words = text.split()
    choices = []
    for word in words:
        core = word.strip(".,!?;:'\"").lower()
        choices.append([core, *neighbours.get(core, ())] if core else [core])
    if sum(len(choice) > 2 for choice in choices) < max(2, len(words) / 3):
        return None
    found: dict[str, None] = {}
    for _ in range(50):
        found[" ".join(rng.choice(choice) for choice in choices)] = None
        if len(found) == count:
            return list(found)
    return None


def _pairs(measure: Measure, low: list[list[int]], high: list[list[int]], opposed: bool, name: str) -> Pairs:
    a = np.array([measure.words(rows) for rows in low])
    b = np.array([measure.words(rows) for rows in high])
    difference = b[None] - a[:, None]
    scaled = np.abs(difference) / _MATCH
    if opposed:
        allowed = (difference[..., :2] <= -_OPPOSED).all(axis=2) & (scaled[..., 2] <= 1)
        chosen = best_pairs(scaled[..., 2], allowed)
    else:
        chosen = best_pairs(scaled.sum(axis=2), (scaled <= 1).all(axis=2))
    return Pairs(name, [low[i] for i in chosen[0]], [high[i] for i in chosen[1]])


def _same_meaning(measure: Measure, sets: list[list[int]], name: str) -> Pairs:
    """Among ten sets of like length, those with the least and the most diverse words."""
    words = np.array([measure.words(rows) for rows in sets])
    order = np.argsort(words[:, 2], kind="stable")
    low, high = [], []
    for start in range(0, len(order) - 9, 10):
        block = order[start : start + 10]
        low.append(sets[block[words[block, 0].argmin()]])
        high.append(sets[block[words[block, 0].argmax()]])
    return Pairs(name, low, high)


def rows_of(measure: Measure, pairs: Pairs) -> list[dict[str, Any]]:
    """AUC of each metric between the two sides, with intervals over resampled pairs."""
    low, high = ([measure(rows) for rows in side] for side in (pairs.low, pairs.high))
    found = []
    for metric in low[0]:
        if metric in ("words", "responses"):
            continue
        a, b = (np.array([row[metric] for row in side]) for side in (low, high))
        ends = interval(lambda rows, a=a, b=b: auc(a[rows], b[rows]), len(a), resamples=300)  # type: ignore[misc]
        means = float(a.mean()), float(b.mean())
        found.append({"metric": metric, "auc": auc(a, b), "interval": ends, "means": means})
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each metric, a column for each test."""
    names = [f"{result['test']} (n = {result['pairs']})" for result in results]
    lines = [f"| metric | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for i, row in enumerate(results[0]["rows"]):
        cells = []
        for result in results:
            one = result["rows"][i]
            cells.append(f"{one['auc']:.2f} ({one['interval'][0]:.2f} to {one['interval'][1]:.2f})")
        lines.append(f"| {row['metric']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(encoders: Sequence[str], k: int, responses: int, sets: int, seed: int, output: Path) -> None:
    """Builds the sets, measures them, prints the tables, and writes them as JSON."""
    texts, last_turns = replies()
    rng = Random(derive_seed("known diversity", seed))
    neighbours = json.loads(
        gzip.decompress(data_file("lexicon/counterfitted_neighbors.json.gz").read_bytes())
    )
    versions, start = [], len(texts)
    for context in rng.sample(range(len(last_turns)), len(last_turns)):
        made = rewrites(texts[5 * context + rng.randrange(5)], neighbours, rng)
        versions += made or []
    own = [list(range(i, i + 5)) for i in range(start, start + len(versions), 5)]
    material = Material.load(encoders, k=k, responses=responses, cache=output / "vectors")
    measure = Measure(material, [*texts, *versions])

    results = []
    for groups, size in ((1, "5 replies"), (5, "25 replies")):
        low, high = by_contexts(len(last_turns), groups, 3 * sets, rng)
        low = low[:sets]
        tests = [
            _pairs(measure, low, high, False, f"meaning, words equal, {size}"),
            _pairs(measure, low, high, True, f"meaning, words opposed, {size}"),
            _same_meaning(measure, low, f"words, meaning equal, {size}"),
        ]
        if groups == 1:
            human = [list(range(5 * i, 5 * i + 5)) for i in range(len(last_turns))]
            tests.append(_pairs(measure, own[:sets], human, False, "human replies or rewrites, words equal"))
        for pairs in tests:
            if len(pairs.low) >= 10:
                rows = rows_of(measure, pairs)
                results.append({"test": pairs.name, "pairs": len(pairs.low), "rows": rows})
            else:
                print(f"{pairs.name}: only {len(pairs.low)} pairs, left out")
    write_json(
        output / "known.json", {"k": k, "cluster_responses": responses, "seed": seed, "tests": results}
    )
    print(table(results))
    print("\nsome rewrites:", *versions[:5], sep="\n  ")
