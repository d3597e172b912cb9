"""What a text classifier looks at, before and after attacks: word maps and deletion curves for a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.attacks.logs import AttackLog, AttackRecord, strip_marks
from robustkit.classifiers.text import TextClassifier
from robustkit.evaluation.figures import curves_figure
from robustkit.interpret.attribution import Attribution
from robustkit.interpret.explaining import explain
from robustkit.interpret.measures import sensitivity_curve
from robustkit.interpret.tokens import pieces
from trainkit.report import Cell, Estimate, Figure, Part, Section, ShadedText, Shades, Table

__all__ = ["FRACTIONS", "explanation_section"]

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of tokens that are taken away."""

_ORDERS = ("most important first", "random order", "least important first")
_BATCH = 16


def explanation_section(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    logs: Mapping[str, AttackLog],
    method: str,
    *,
    examples: int = 5,
    texts: int = 100,
    n_boot: int = 1000,
    seed: int = 0,
) -> Section:
    """Word maps of texts before and after attacks, and how the probability falls as their words go.

    Args:
        classifier: The classifier.
        data: Texts with labels; some are explained if there are no logs.
        logs: Logs of attacks on the classifier, by name.
        method: A name of `robustkit.interpret.METHODS`.
        examples: Groups of word maps for each attack.
        texts: Texts behind a deletion curve at most, drawn at random.
        n_boot: Bootstrap samples for intervals; 0 for none.
        seed: Of what is drawn.

    Raises:
        ValueError: See `robustkit.interpret.explain`.
    """
    rng = np.random.default_rng(seed)
    won = {name: [record for record in log if record.outcome == "Successful"] for name, log in logs.items()}
    won = {name: records for name, records in won.items() if records}
    plain = [row for row in data if row[0].strip()]
    drawn = [plain[i] for i in _drawn(rng, len(plain), texts)]
    sets = {"texts as they are": [text for text, _ in drawn]}
    sets |= {
        f"{name}, altered texts": [
            strip_marks(records[i].perturbed_text) for i in _drawn(rng, len(records), texts)
        ]
        for name, records in won.items()
    }
    curves = {name: _curves(classifier, own, method, seed) for name, own in sets.items() if own}
    parts: list[Part] = [
        f"Maps by {method.replace('_', ' ')} of the predicted class: how much each word has to do with its "
        "score. None is a proof of what the classifier does. The curves say how far the maps can be trusted: "
        "the tokens of a text are replaced, in the order of their numbers, by the padding token. The "
        "probability of the predicted class should fall fast if the most important go first, and stay if the "
        "least important do; maps whose curves are like those of a random order say nothing.",
        _table(curves, n_boot),
        *(_figure(name, own) for name, own in curves.items()),
    ]
    note = (
        "Orange words speak for the class that is named, blue ones against it; the strongest word of a text "
        "has the full shade."
    )
    if logs:
        for name, records in won.items():
            chosen = [records[i] for i in _drawn(rng, len(records), examples)]
            parts.append(_attacked(classifier, name, chosen, method, note))
    else:
        shown = _shaded(classifier, [text for text, _ in drawn[:examples]], method)
        groups = tuple(
            (f"labelled {classifier.labels[label]}", (text,))
            for text, (_, label) in zip(shown, drawn, strict=False)
        )
        parts.append(Shades("Word maps", groups, note))
    return Section("explanations", "Explanations", tuple(parts))


def _drawn(rng: np.random.Generator, count: int, most: int) -> list[int]:
    return sorted(rng.permutation(count)[:most].tolist())


def _curves(
    classifier: TextClassifier, texts: Sequence[str], method: str, seed: int
) -> dict[str, NDArray[np.float64]]:
    """The predicted class's probability for each text and share of tokens gone, by order."""
    found: dict[str, list[list[float]]] = {order: [] for order in _ORDERS}
    for part in _batches(sorted(texts, key=len)):
        own = explain(classifier, part, method)
        generator = torch.Generator().manual_seed(seed + len(found[_ORDERS[0]]))
        chance = replace(own, values=torch.rand(own.values.shape, generator=generator).to(own.values))
        for order, attribution in zip(_ORDERS, (own, chance, own), strict=True):
            first: Literal["most", "least"] = "least" if order == _ORDERS[2] else "most"
            found[order] += sensitivity_curve(
                classifier, part, attribution, first=first, fractions=FRACTIONS
            )["each"]
    return {order: np.array(rows) for order, rows in found.items()}


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH):
        yield list(texts[start : start + _BATCH])


def _table(curves: Mapping[str, Mapping[str, NDArray[np.float64]]], n_boot: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, own in curves.items():
        areas = [np.asarray(np.trapezoid(own[order], FRACTIONS, axis=1)) for order in _ORDERS]
        rows.append((name, len(areas[0]), *(_mean(one, n_boot) for one in areas)))
    note = "Area under the probability of the predicted class, mean over texts."
    if n_boot:
        note += f" In brackets 95 % bootstrap intervals, {n_boot} samples."
    return Table("Deletion", ("texts", "n", *_ORDERS), tuple(rows), note)


def _mean(values: NDArray[np.float64], n_boot: int) -> Estimate:
    if not n_boot or not len(values):
        return Estimate(float(values.mean()) if len(values) else math.nan)
    drawn = np.random.default_rng(0).integers(len(values), size=(n_boot, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), low=float(low), high=float(high))


def _figure(name: str, curves: Mapping[str, NDArray[np.float64]]) -> Figure:
    return curves_figure(
        f"Deletion: {name}",
        {order: (FRACTIONS, own.mean(axis=0)) for order, own in curves.items()},
        x_label="share of tokens replaced",
        y_label="probability of the predicted class",
        unit_square=True,
    )


def _attacked(
    classifier: TextClassifier, name: str, records: Sequence[AttackRecord], method: str, note: str
) -> Shades:
    before = _shaded(classifier, [strip_marks(record.original_text) for record in records], method)
    after = _shaded(classifier, [strip_marks(record.perturbed_text) for record in records], method)
    groups = tuple(
        (
            f"{classifier.labels[record.ground_truth_output]} → {classifier.labels[record.perturbed_output]}",
            (replace(one, name=f"original: {one.name}"), replace(other, name=f"altered: {other.name}")),
        )
        for record, one, other in zip(records, before, after, strict=True)
    )
    return Shades(f"Word maps: {name}", groups, f"{note} Successful attacks, drawn at random.")


def _shaded(classifier: TextClassifier, texts: Sequence[str], method: str) -> list[ShadedText]:
    found = []
    for part in _batches(texts):
        own = explain(classifier, part, method)
        sure = classifier.probabilities(part)
        found += [_shades(own, row, float(sure[row, int(own.target[row])])) for row in range(len(part))]
    return found


def _shades(own: Attribution, row: int, probability: float) -> ShadedText:
    """One text, shaded by its map; the largest number has the full shade."""
    assert own.text is not None
    scores = [score for _, score in own[row : row + 1].word_scores()[0]]
    most = max(map(abs, scores), default=0.0) or 1.0
    text = own.text.texts[row]
    assert isinstance(text, str)
    shown = [
        (piece, 0.0 if score is None else score / most)
        for piece, score in pieces(text, own.text.words[row], scores)
        if piece
    ]
    return ShadedText(f"{own.label(row)}, {probability:.2f}", tuple(shown))
