"""Explanations of texts in a report: word maps before and after attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from robustkit.attacks.logs import AttackLog, strip_marks
from robustkit.classifiers.text import TextClassifier
from robustkit.evaluation.explanations import (
    Explainer,
    ExplanationConfig,
    Inputs,
    Numbers,
    explanation_section,
)
from robustkit.interpret.attribution import Attribution
from robustkit.interpret.explaining import explain
from robustkit.interpret.ranking import rank_correlation
from robustkit.interpret.tokens import pieces
from trainkit.report import Section, ShadedText, Shades

__all__ = ["TextExplainer", "text_explanation_section"]


class TextExplainer(Explainer):
    """Explanations of texts; see `Explainer`.

    Args:
        classifier: The classifier.
    """

    classifier: TextClassifier
    inputs = "texts"
    entries = "tokens"
    substitute = "the padding token"
    left_out = "Blank texts, and attacks on them or that leave one, are left out."
    likeness_note = "Of words; texts whose number of words has changed do not count."

    def __init__(self, classifier: TextClassifier) -> None:
        self.classifier = classifier

    def check(self, inputs: Inputs, method: str) -> None:
        """See `Explainer`: `explain` refuses all that texts cannot have."""

    def likeness(self, before: Attribution, after: Attribution) -> Numbers:
        """See `Explainer`."""
        found = []
        for pair in zip(before.word_scores(), after.word_scores(), strict=True):
            sizes = [torch.tensor([[abs(score) for _, score in words]]) for words in pair]
            alike = sizes[0].shape == sizes[1].shape
            found.append(rank_correlation(*sizes).item() if alike else np.nan)
        return np.array(found)

    def smoothness(self, maps: Attribution) -> None:
        """See `Explainer`: words have no neighbours whose numbers should be alike."""

    def shown(self, inputs: Inputs, config: ExplanationConfig) -> Shades:
        """See `Explainer`."""
        stages = {"": inputs.items} if inputs.before is None else {
            "original: ": inputs.before, "altered: ": inputs.items,
        }  # fmt: skip
        lines: list[list[ShadedText]] = [[] for _ in inputs.labels]
        for stage, texts in stages.items():
            assert isinstance(texts, list)
            sure = self.classifier.probabilities(texts)
            for method in config.methods:
                name = stage if len(config.methods) == 1 else f"{stage}{method.replace('_', ' ')}, "
                for start in range(0, len(texts), config.batch_size):
                    part = texts[start : start + config.batch_size]
                    own = explain(self.classifier, part, method, batch_size=config.batch_size)
                    for row, line in enumerate(lines[start : start + config.batch_size]):
                        line.append(_shades(own, row, name, float(sure[start + row, int(own.target[row])])))
        labels = [self.classifier.labels[label] for label in inputs.labels]
        return Shades(
            "Word maps" if inputs.before is None else f"Word maps: {inputs.name}",
            tuple((f"labelled {label}", tuple(line)) for label, line in zip(labels, lines, strict=True)),
            "Orange words speak for the class that is named, blue ones against it; the strongest word of a "
            "text has the full shade. Numbers without sign, such as a gradient's size, are all orange. "
            "Drawn at random.",
        )


def _shades(own: Attribution, row: int, name: str, probability: float) -> ShadedText:
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
    return ShadedText(f"{name}{own.label(row)}, {probability:.2f}", tuple(shown))


def text_explanation_section(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    logs: Mapping[str, AttackLog],
    config: ExplanationConfig | None = None,
) -> Section:
    """Word maps of texts before and after attacks, and how far they can be trusted.

    Args:
        classifier: The classifier.
        data: Texts with labels.
        logs: Logs of attacks on the classifier, by name; successful attacks count.
        config: Settings.

    Raises:
        ValueError: See `robustkit.interpret.explain`.
    """
    # Texts of like length need little padding in a batch.
    plain = sorted((row for row in data if row[0].strip()), key=lambda row: len(row[0]))
    sets = [Inputs("texts as they are", [text for text, _ in plain], [label for _, label in plain])]
    for name, log in logs.items():
        won = [
            (strip_marks(record.original_text), strip_marks(record.perturbed_text), record)
            for record in sorted(log, key=lambda record: len(record.original_text))
            if record.outcome == "Successful"
        ]
        shown = [pair for pair in won if pair[0].strip() and pair[1].strip()]
        sets.append(
            Inputs(
                f"{name}, altered texts",
                [altered for _, altered, _ in shown],
                [record.ground_truth_output for _, _, record in shown],
                [original for original, _, _ in shown],
            )
        )
    return explanation_section(TextExplainer(classifier), sets, config)
