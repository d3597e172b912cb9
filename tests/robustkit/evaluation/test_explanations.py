"""The report's section on explanations: curves, maps before and after attacks, hostile texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robustkit.attacks.logs import AttackLog, AttackRecord, ResultType
from robustkit.classifiers import TextClassifier
from robustkit.evaluation import EvaluationConfig, evaluate_robustness
from robustkit.evaluation.explanations import FRACTIONS, explanation_section
from robustkit.interpret import explain, sensitivity_curve
from tests.robustkit.tiny import toy_sentiment, trained_bert
from trainkit.report import Estimate, Figure, Section, Shades, Table


def rows_of(n: int, seed: int) -> list[tuple[str, int]]:
    return list(zip(*toy_sentiment(n, seed=seed), strict=True))


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return TextClassifier(*trained_bert())


def record(original: str, perturbed: str, outcome: ResultType = "Successful", label: int = 1) -> AttackRecord:
    changed = label if outcome == "Failed" else 1 - label
    return AttackRecord(original, perturbed, 0.1, 0.9, label, changed, label, 7, outcome)


def kinds(section: Section, kind: type) -> list[Any]:
    return [part for part in section.parts if isinstance(part, kind)]


def test_clean_texts_have_curves_an_area_and_maps(classifier: TextClassifier) -> None:
    data = [*rows_of(20, seed=3), ("  ", 1)]  # a text without words is left out
    section = explanation_section(classifier, data, {}, "integrated_gradients", examples=3, n_boot=50)
    (table,), (figure,), (maps,) = (kinds(section, kind) for kind in (Table, Figure, Shades))
    ((name, n, *areas),) = table.rows
    assert (name, n) == ("texts as they are", 20) and figure.svg.count("<path") > 3
    texts = sorted((text for text, _ in data if text.strip()), key=len)
    a = explain(classifier, texts, "integrated_gradients")
    wanted = sensitivity_curve(classifier, texts, a, fractions=FRACTIONS)["area"]
    assert areas[0].value == pytest.approx(wanted, abs=1e-4)
    assert all(isinstance(area, Estimate) and area.low <= area.value <= area.high for area in areas)
    assert areas[0].value < areas[2].value  # of a classifier that was trained, most first falls faster
    assert len(maps.groups) == 3
    for caption, (text,) in maps.groups:
        written = "".join(piece for piece, _ in text.pieces)
        assert (written, caption) in {(one, f"labelled {classifier.labels[label]}") for one, label in data}
        assert max(abs(shade) for _, shade in text.pieces) == 1.0
        (own,) = explain(classifier, [written], "integrated_gradients").word_scores()
        shades = [shade for piece, shade in text.pieces if piece.strip()]
        most = max(abs(score) for _, score in own)
        assert shades == pytest.approx([score / most for _, score in own], abs=1e-4)


def test_attacked_texts_stand_beside_their_originals_and_stay_text(classifier: TextClassifier) -> None:
    rows = rows_of(6, seed=4)
    evil = "a <script>alert(1)</script> film"
    log = AttackLog(
        [record(text, f"[[{evil}]]") for text, _ in rows] + [record("kept text", "kept text", "Failed")]
    )
    section = explanation_section(classifier, rows, {"pwws": log}, "gradient", examples=2, n_boot=0)
    (maps,) = kinds(section, Shades)
    assert maps.title == "Word maps: pwws" and len(maps.groups) == 2
    originals = {text for text, _ in rows}
    for _, (before, after) in maps.groups:
        assert before.name.startswith("original: ") and after.name.startswith("altered: ")
        assert "".join(piece for piece, _ in before.pieces) in originals
        assert "".join(piece for piece, _ in after.pieces) == evil
        assert min(shade for _, shade in after.pieces) == 0.0  # sizes have no sign
    (table,) = kinds(section, Table)
    assert [(row[0], row[1]) for row in table.rows] == [("texts as they are", 6), ("pwws, altered texts", 6)]
    assert np.isfinite([cell.value for row in table.rows for cell in row[2:]]).all()


def test_the_report_has_the_section_and_a_wrong_method_costs_no_attack(classifier: TextClassifier) -> None:
    rows = rows_of(6, seed=5)
    evil = record("a fine film", "a [[<script>alert(1)</script>]] film")
    config = EvaluationConfig(n_boot=0, explain="gradient_times_input")
    report = evaluate_robustness(classifier, rows, {"own": AttackLog([evil])}, config=config)
    page = report.to_html()
    assert report.sections[-1].key == "explanations" and 'class="shade"' in page
    assert "<script" not in page and "&lt;" in page

    class Untouched:
        def attack(self, *arguments: Any, **settings: Any) -> AttackLog:
            raise AssertionError("attacked before the method was known to be good")

    for method, message in (("wild", "method is 'wild'"), ("xrai", "no images"), ("rectgrad", "gelu")):
        config = EvaluationConfig(explain=method)
        with pytest.raises(ValueError, match=f"(?i){message}"):
            evaluate_robustness(classifier, rows, {"own": Untouched()}, config=config)  # type: ignore[dict-item]
