"""The report's section on explanations of texts: curves, maps before and after attacks, hostile texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from robustkit.attacks.logs import AttackLog, AttackRecord, ResultType
from robustkit.classifiers import TextClassifier
from robustkit.evaluation import (
    EvaluationConfig,
    ExplanationConfig,
    evaluate_robustness,
    text_explanation_section,
)
from robustkit.evaluation.explanations import FRACTIONS
from robustkit.interpret import explain, randomisation_test, sensitivity_curve
from tests.robustkit.tiny import toy_sentiment, trained_bert
from trainkit.report import Estimate, Figure, Section, Shades


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


def test_clean_texts_have_curves_an_area_and_maps_h2(classifier: TextClassifier) -> None:
    data = [*rows_of(12, seed=3), ("  ", 1)]  # a text without words is left out
    config = ExplanationConfig(("integrated_gradients",), examples=3, n_boot=50)
    section = text_explanation_section(classifier, data, {}, config)
    (figure,), (maps,) = (kinds(section, kind) for kind in (Figure, Shades))
    ((name, method, n, *areas),) = section.table("Deletion").rows
    assert (name, method, n) == ("texts as they are", "integrated gradients", 12)
    assert figure.svg.count("<path") > 3
    texts = sorted((text for text, _ in data if text.strip()), key=len)
    a = explain(classifier, texts, "integrated_gradients")
    wanted = sensitivity_curve(classifier, texts, a, fractions=FRACTIONS)["area"]
    assert isinstance(areas[0], Estimate) and areas[0].value == pytest.approx(wanted, abs=1e-4)
    assert all(isinstance(area, Estimate) and area.low <= area.value <= area.high for area in areas)
    assert areas[0].value < areas[2].value  # of a classifier that was trained, most first falls faster
    ((_, counted, half, every),) = section.table("Do maps depend on the weights?").rows
    anew = randomisation_test(classifier, texts, {"m": "integrated_gradients"}, skip_zeros=True, every=7)
    assert counted == 12 and isinstance(every, Estimate) and isinstance(half, Estimate)
    assert every.value == pytest.approx(anew["methods"]["m"][-1], abs=1e-3)
    assert len(maps.groups) == 3
    for caption, (text,) in maps.groups:
        written = "".join(piece for piece, _ in text.pieces)
        assert (written, caption) in {(one, f"labelled {classifier.labels[label]}") for one, label in data}
        assert max(abs(shade) for _, shade in text.pieces) == 1.0
        (own,) = explain(classifier, [written], "integrated_gradients").word_scores()
        shades = [shade for piece, shade in text.pieces if piece.strip()]
        most = max(abs(score) for _, score in own)
        assert shades == pytest.approx([score / most for _, score in own], abs=1e-4)


def test_one_text_has_numbers_without_an_interval_and_no_text_is_refused(classifier: TextClassifier) -> None:
    config = ExplanationConfig(("gradient",), examples=0)
    section = text_explanation_section(classifier, [("a good film", 1)], {}, config)
    for cell in section.table("Deletion").rows[0][3:]:
        assert isinstance(cell, Estimate) and cell.low is None and 0 <= cell.value <= 1
    with pytest.raises(ValueError, match="there are no texts to explain"):
        text_explanation_section(classifier, [("  ", 1)], {}, config)


def test_attacked_texts_stand_beside_their_originals_and_stay_text(classifier: TextClassifier) -> None:
    rows = rows_of(6, seed=4)
    evil = "a <script>alert(1)</script> film"
    log = AttackLog(
        [record(text, f"[[{evil}]]") for text, _ in rows] + [record("kept text", "kept text", "Failed")]
    )
    config = ExplanationConfig(("gradient", "gradient_times_input"), examples=2, n_boot=0)
    section = text_explanation_section(classifier, rows, {"pwws": log}, config)
    (maps,) = kinds(section, Shades)
    assert maps.title == "Word maps: pwws, altered texts" and len(maps.groups) == 2
    originals = {text for text, _ in rows}
    for _, texts in maps.groups:
        assert [text.name.partition(", ")[0] for text in texts] == [
            "original: gradient", "original: gradient times input",
            "altered: gradient", "altered: gradient times input",
        ]  # fmt: skip
        before, _, after, _ = ("".join(piece for piece, _ in text.pieces) for text in texts)
        assert before in originals and after == evil
        assert min(shade for _, shade in texts[2].pieces) == 0.0  # sizes have no sign
    table = section.table("Deletion")
    assert [(row[0], row[2]) for row in table.rows] == [("texts as they are", 6)] * 2 + [
        ("pwws, altered texts", 6)
    ] * 2
    assert table.rows[0][4] == table.rows[1][4]  # one random order serves all methods
    figures = [cell.value for row in table.rows for cell in row[3:] if isinstance(cell, Estimate)]
    assert len(figures) == 12 and np.isfinite(figures).all()


def test_word_maps_are_compared_where_words_stand_in_the_same_places(classifier: TextClassifier) -> None:
    rows = [("the plot is good and great fun", 1), ("a bad script", 0)]
    log = AttackLog(
        [record(rows[0][0], "the plot is fine and [[decent]] fun"), record(rows[1][0], "a film", label=0)]
    )
    config = ExplanationConfig(("gradient",), examples=0, n_boot=0)
    section = text_explanation_section(classifier, rows, {"own": log}, config)
    ((name, method, n, likeness),) = section.table("Maps before and after attacks").rows
    assert (name, method, n) == ("own, altered texts", "gradient", 1) and not kinds(section, Shades)
    before, after = (
        [score for _, score in explain(classifier, [text], "gradient").word_scores()[0]]
        for text in (rows[0][0], "the plot is fine and decent fun")
    )
    assert isinstance(likeness, Estimate)
    assert likeness.value == pytest.approx(spearmanr(before, after).statistic, abs=1e-6)


def test_attacks_that_leave_no_words_are_left_out_and_the_section_says_so(classifier: TextClassifier) -> None:
    rows = rows_of(3, seed=4)
    kept = record("a fine film", "a [[decent]] film")
    blanks = [record("good", "[[ ]]"), record(" ", "[[bad]]"), record("[[good]]", "")]
    config = ExplanationConfig(("gradient",), examples=5, n_boot=0)
    logs = {"own": AttackLog([*blanks, kept]), "blank": AttackLog(blanks)}
    section = text_explanation_section(classifier, rows, logs, config)
    assert [(row[0], row[2]) for row in section.table("Deletion").rows] == [
        ("texts as they are", 3), ("own, altered texts", 1),
    ]  # fmt: skip
    (maps,) = kinds(section, Shades)
    assert len(maps.groups) == 1
    assert "Blank texts, and attacks on them or that leave one, are left out." in str(section.parts[0])


def test_the_report_has_the_section_and_a_wrong_method_costs_no_attack(classifier: TextClassifier) -> None:
    rows = rows_of(6, seed=5)
    evil = record("a fine film", "a [[<script>alert(1)</script>]] film")
    report = evaluate_robustness(
        classifier, rows, {"own": AttackLog([evil])}, config=EvaluationConfig(n_boot=0),
        explained=ExplanationConfig(("gradient_times_input",), n_boot=0),
    )  # fmt: skip
    page = report.to_html()
    assert report.sections[-1].key == "explanations" and 'class="shade"' in page
    assert "<script" not in page and "&lt;" in page

    class Untouched:
        def attack(self, *arguments: Any, **settings: Any) -> AttackLog:
            raise AssertionError("attacked before the method was known to be good")

    for method, message in (("xrai", "explanations by xrai: .*no images"), ("rectgrad", "rectgrad: .*gelu")):
        with pytest.raises(ValueError, match=f"(?i){message}"):
            evaluate_robustness(
                classifier, rows, {"own": Untouched()}, explained=ExplanationConfig((method,))  # type: ignore[dict-item]
            )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("wild",)}, "method is 'wild'; expected one of gradient,"),
        ({"methods": ()}, "expected names, at least one"),
        ({"methods": ("gradient", "gradient")}, "each once"),
        ({"sample": 0}, "sample is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"examples": -1}, "examples is -1"),
        ({"n_boot": -1}, "n_boot is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplanationConfig(**settings)
