"""The whole comparison with chatbots and an encoder that need no model."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import cycle
from pathlib import Path

import pytest

from dialogkit.diversity import SemanticClusters, SentenceTransformerEncoder
from dialogkit.evaluation import Comparison, EvaluationCase, EvaluationConfig, compare
from trainkit.report import Bars, Examples, Report, Table

from .stubs import KINDS, WORDS, Parrot, WordEncoder, some_cases

QUICK = EvaluationConfig(clusters=4, resamples=50, permutations=50, latency_contexts=2, examples=3)
EVIL = "<script>alert(1)</script> [[x]] {{ 7 * 7 }} | `*_"


def varied(text: str) -> str:
    number = int(text.rstrip(".").rpartition(" ")[2])
    return KINDS[number % 6].format(WORDS[number % 8])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("comparison")
    bots = {"varied": Parrot(varied), "dull": Parrot(lambda text: "thank you so much tea")}
    comparison = compare(
        bots,
        some_cases(12),
        folder,
        config=QUICK,
        retriever=WordEncoder(),
        styles={"polite": lambda texts: ["thank" in text for text in texts]},
        unsafe=["rain"],
    )
    comparison.write(folder)
    return comparison, folder


def test_every_system_has_every_figure(found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    assert comparison.systems == ("human", "varied", "dull")
    keys = [measure.key for measure in comparison.measures]
    assert {"dist-2", "ent-1", "LF-100", "self-BLEU", "length", "Sem-Ent", "relevance", "F1-1"} <= set(keys)
    assert {"polite", "unsafe", "copied from context", "empty"} <= set(keys)
    for system in comparison.systems:
        assert list(comparison.figures[system]) == keys
    dull = comparison.figures["dull"]
    assert dull["Sem-Ent"].value == 0.0 and dull["kinds used"].value == 0.25
    assert dull["polite"].value == 1.0 and dull["self-BLEU"].value == pytest.approx(1.0)
    assert comparison.figures["varied"]["Sem-Ent"].value > 0.5
    for figures in comparison.figures.values():
        for key, one in figures.items():
            assert one.low is None or one.high is None or one.low <= one.value + 1e-9, key
            assert one.low is None or one.high is None or one.value <= one.high + 1e-9, key


def test_pairs_are_tested_and_corrected_within_a_figure(found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    of_sem_ent = [one for one in comparison.differences if one.measure == "Sem-Ent"]
    assert [(one.one, one.other) for one in of_sem_ent] == [
        ("human", "varied"), ("human", "dull"), ("varied", "dull"),
    ]  # fmt: skip
    figures = comparison.figures
    for one in comparison.differences:
        assert one.contexts == 12 and 0 < one.p <= one.p_holm <= 1
        difference = figures[one.one][one.measure].value - figures[one.other][one.measure].value
        assert one.value == pytest.approx(difference)
    assert of_sem_ent[2].p < 0.05 and of_sem_ent[0].p > 0.05


def test_the_report_holds_table_differences_kinds_replies_definitions(found: tuple[Comparison, Path]) -> None:
    comparison, folder = found
    report = Report.read(folder)
    assert [section.key for section in report.sections] == [
        "figures", "kinds", "replies", "differences", "definitions",
    ]  # fmt: skip
    table = report.section("figures").table("All figures")
    assert table.columns == ("figure", "better", "human", "varied", "dull")
    rows = {row[0]: row for row in table.rows}
    assert rows["replies"][2:] == (12, 12, 12) and rows["failed"][2:] == (None, 0, 0)
    assert isinstance(rows["latency p50 s"][3], float) and rows["latency p50 s"][2] is None
    never = report.section("kinds").table("Kinds that people give and a chatbot never")
    assert never.rows[1][0] == "dull" and never.rows[1][1] == 3
    (bars,) = [part for part in report.section("kinds").parts if isinstance(part, Bars)]
    assert bars.series == comparison.systems and len(bars.bars) == 4
    assert all(sum(column) == pytest.approx(1) for column in zip(*(b.values for b in bars.bars), strict=True))
    (examples,) = [part for part in report.section("replies").parts if isinstance(part, Examples)]
    assert len(examples.examples) == 3
    assert [name for name, _ in examples.examples[0].texts] == ["human", "varied", "dull"]
    defined = report.section("definitions").table("Figures and what they are")
    assert {measure.key for measure in comparison.measures} <= {row[0] for row in defined.rows}
    assert "used by none" in str(report.facts["encoder of relevance"])
    names = {path.name for path in folder.iterdir()}
    assert {"report.md", "report.html", "report.json", "comparison.csv", "replies"} <= names


def test_the_csv_has_a_row_for_each_system_the_human_one_included(found: tuple[Comparison, Path]) -> None:
    comparison, folder = found
    rows = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    assert [row["system"] for row in rows] == ["human", "varied", "dull"]
    for row in rows:
        assert float(row["dist-1"]) == comparison.figures[row["system"]]["dist-1"].value
    assert rows[0]["latency p50 s"] == "" and rows[0]["replies"] == "12"


def test_a_second_run_asks_nothing_and_finds_the_same(found: tuple[Comparison, Path]) -> None:
    comparison, folder = found
    bots = {"varied": Parrot(varied), "dull": Parrot(lambda text: "thank you so much tea")}
    again = compare(
        bots,
        some_cases(12),
        folder,
        config=QUICK,
        retriever=WordEncoder(),
        styles={"polite": lambda texts: ["thank" in text for text in texts]},
        unsafe=["rain"],
    )
    assert bots["varied"].asked == [] and bots["dull"].asked == []
    assert json.dumps(again.report().to_json()) == json.dumps(comparison.report().to_json())


def test_texts_are_never_markup(tmp_path: Path) -> None:
    cases = [EvaluationCase((EVIL, f"{EVIL} {i}"), (f"{EVIL} human {i}", EVIL)) for i in range(3)]
    comparison = compare(
        {EVIL: Parrot(lambda text: f"{EVIL} said")},
        cases,
        tmp_path,
        config=EvaluationConfig(clusters=2, resamples=5, permutations=5),
        retriever=WordEncoder(),
    )
    comparison.write(tmp_path, title=EVIL)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "[[x]]" in page and ">49<" not in page
    assert "<mark>" not in page
    assert [path.suffix for path in (tmp_path / "replies").iterdir()] == [".jsonl"]


# Bad input.


def small(say, cases: list[EvaluationCase]) -> Comparison:  # type: ignore[no-untyped-def]
    return compare([Parrot(say)], cases, config=QUICK, retriever=WordEncoder())


def test_one_context_gives_figures_without_intervals() -> None:
    comparison = small(lambda text: "thank you", some_cases(1))
    figures = comparison.figures["parrot"]
    assert figures["dist-1"].value == 1.0 and figures["dist-1"].low is None
    assert math.isnan(figures["self-BLEU"].value)
    assert comparison.kinds is None and "k=4 clusters need at least 4 responses, got 3" in comparison.notes[0]
    assert comparison.report().to_html()


def test_equal_replies_and_equal_human_replies() -> None:
    cases = [EvaluationCase((f"turn {i}",), ("thank you", "thank you")) for i in range(6)]
    comparison = small(lambda text: "thank you", cases)
    assert comparison.kinds is None and comparison.notes[0].startswith("Sem-Ent:")
    assert comparison.figures["parrot"]["F1-1"].value == 1.0
    assert comparison.figures["human"]["similarity"].value == pytest.approx(1.0)
    assert all(one.p == 1.0 for one in comparison.differences)
    assert comparison.notes[0] in comparison.report().to_markdown().replace("\\", "")


def test_empty_replies() -> None:
    comparison = small(lambda text: "", some_cases(6))
    figures = comparison.figures["parrot"]
    assert figures["empty"].value == 1.0 and figures["length"].value == 0.0
    assert figures["dist-1"].value == figures["ent-2"].value == figures["relevance"].value == 0.0
    assert "(empty)" in comparison.report().to_html()


def test_other_languages_and_emoji() -> None:
    said = cycle(["你好，世界", "👋🏽👋🏽", "مرحبا بك", "नमस्ते", "Grüße aus Köln", "e\u0301a"])
    comparison = small(lambda text: next(said), some_cases(6))
    assert comparison.figures["parrot"]["empty"].value == 0.0
    report = comparison.report()
    (examples,) = [part for part in report.section("replies").parts if isinstance(part, Examples)]
    shown = [dict(example.texts)["parrot"] for example in examples.examples]
    assert len(shown) == 3 and not any(text.isascii() for text in shown)
    assert all(text in report.to_html() for text in shown)


def test_a_chatbot_that_fails_for_one_context_is_recorded_and_compared_on_the_others() -> None:
    def say(text: str) -> str:
        if text.endswith(" 3."):
            raise KeyError("no three")
        return varied(text)

    comparison = small(say, some_cases(12))
    assert comparison.collected[0].answers[3].error == "KeyError: 'no three'"
    assert {one.contexts for one in comparison.differences} == {11}
    report = comparison.report()
    failures = report.section("figures").table("Failures")
    assert failures.rows == (("parrot", 3, "KeyError: 'no three'"),)
    rows = {row[0]: row for row in report.section("figures").table("All figures").rows}
    assert rows["replies"][2:] == (12, 11) and rows["failed"][2:] == (None, 1)


def test_a_chatbot_that_always_fails_leaves_dashes() -> None:
    def say(text: str) -> str:
        raise OSError("server is down")

    comparison = small(say, some_cases(6))
    assert all(math.isnan(one.value) for one in comparison.figures["parrot"].values())
    assert comparison.differences == ()
    table = comparison.report().section("figures").table("Failures")
    assert isinstance(table, Table) and len(table.rows) == 6


def test_without_human_replies_there_is_no_human_system() -> None:
    cases = [EvaluationCase((f"number {i}",)) for i in range(5)]
    comparison = small(varied, cases)
    assert comparison.systems == ("parrot",) and comparison.kinds is None
    assert math.isnan(comparison.figures["parrot"]["F1-1"].value)
    assert comparison.report().facts["human replies"] == "none"


def test_given_clusters_and_none() -> None:
    clusters = SemanticClusters.fit(
        [kind.format(word) for kind in KINDS for word in WORDS],
        SentenceTransformerEncoder(WordEncoder()),
        k=6,
    )
    comparison = compare([Parrot(varied)], some_cases(12), config=QUICK, retriever=None, clusters=clusters)
    assert comparison.kinds is not None and comparison.kinds.fingerprint == clusters.fingerprint
    keys = [measure.key for measure in comparison.measures]
    assert "Sem-Ent" in keys and "relevance" not in keys and "F1-2" in keys
    nothing = compare([Parrot(varied)], some_cases(3), config=QUICK, retriever=None, clusters=None)
    assert nothing.kinds is None and nothing.notes == ()


def test_an_encoder_that_a_chatbot_uses_is_not_held_out() -> None:
    bot = Parrot(varied)
    bot.retriever = WordEncoder()  # type: ignore[attr-defined]
    comparison = compare([bot], some_cases(6), config=QUICK, retriever=WordEncoder())
    assert comparison.not_held_out == ("parrot",)
    assert "NOT held out: also used by parrot" in str(comparison.report().facts["encoder of relevance"])


@pytest.mark.parametrize(
    ("bots", "said"),
    [
        ({}, "no chatbots"),
        ([Parrot(varied), Parrot(varied)], "different names"),
        ({"a b": Parrot(varied), "A-b": Parrot(varied)}, "different names"),
        ({"human": Parrot(varied)}, "cannot be called 'human'"),
        ({"...": Parrot(varied)}, "cannot be called"),
    ],
)
def test_names_must_tell_chatbots_apart(bots, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        compare(bots, some_cases(2), retriever=None)


def test_no_contexts_and_bad_settings() -> None:
    with pytest.raises(ValueError, match="no contexts"):
        compare([Parrot(varied)], [], retriever=None)
    for name in ("batch_size", "resamples", "permutations", "clusters", "copied_run", "relevance_turns"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            EvaluationConfig(**{name: 0})
    with pytest.raises(ValueError, match="examples must be at least 0"):
        EvaluationConfig(examples=-1)
    with pytest.raises(ValueError, match="denominator"):
        EvaluationConfig(denominator="words")  # type: ignore[arg-type]
