"""The statistics and the pairing behind the studies of diversity metrics, on data made for the test."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed")
pytest.importorskip("faiss", reason="FAISS is not installed")
pytest.importorskip("nltk", reason="NLTK is not installed")

from diversity_study import judgement, known, statistics
from diversity_study.material import Material, Measure, embedded

from dialogkit.diversity import SemanticClusters, distinct_n, sem_ent, token_counts

RECORDS = [
    {
        "context": "User: Hi\nSystem: Hello\nUser: And?\nSystem: Nothing: really",
        "system": "A",
        "annotations": {"Diverse": [0, 2, "N/A (too short)"]},
    },
    {"context": "User: Hi\nSystem: Hello", "system": "B", "annotations": {"Diverse": [1]}},
    {"context": "User: Hi", "response": "System: Yo", "system": "B", "annotations": {}},
]


class Letters:
    """Counts letters; says how often it was asked."""

    fingerprint = "letters"

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, texts: Any, /) -> Any:
        self.asked += len(texts)
        return np.array([[text.count(letter) + 0.1 for letter in "abcd"] for text in texts], np.float32)


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    train = [letter * n for letter in "abcd" for n in (1, 2, 3)]
    clusters = SemanticClusters.fit(train, Letters(), k=4)
    material = Material({"letters": clusters}, token_counts(train), tmp_path)
    return Measure(material, ["a a", "a b", "b", "c d c", "d", "a", "a a a"])


def test_spearman_with_ties_equals_scipy() -> None:
    from scipy.stats import spearmanr

    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 5, size=(2, 60)).astype(float)
    assert statistics.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert statistics.spearman(x, np.ones(60)) == 0.0
    assert statistics.spearman(x + 1e-13 * y, x) == pytest.approx(1.0)


def test_partial_correlation_forgets_what_the_control_explains() -> None:
    draw = np.random.default_rng(1)
    length = draw.normal(size=400)
    x, y = length + 0.3 * draw.normal(size=400), length + 0.3 * draw.normal(size=400)
    assert statistics.spearman(x, y) > 0.8
    assert abs(statistics.partial_spearman(x, y, length[:, None])) < 0.15
    assert statistics.partial_spearman(x, x, length[:, None]) == pytest.approx(1.0)


def test_auc_counts_pairs() -> None:
    low, high = np.array([1.0, 2, 2, 5]), np.array([2.0, 3, 9])
    wins = np.mean([(b > a) + 0.5 * (b == a) for a in low for b in high])
    assert statistics.auc(low, high) == pytest.approx(wins)
    assert statistics.auc(high, low) == pytest.approx(1 - wins)
    ends = statistics.interval(lambda rows: float(low[rows].mean()), 4, resamples=200)
    assert ends[0] <= low.mean() <= ends[1]


def test_dialogues_of_fed_are_read() -> None:
    found = judgement.system_turns(RECORDS)
    assert len(found) == 1
    assert found[0].turns == ["Hello", "Nothing: really"]
    assert found[0].ratings == [0.0, 2.0]


def test_the_table_of_judgements_finds_the_metric_that_people_follow() -> None:
    draw = np.random.default_rng(2)
    human = draw.normal(size=80)
    figures = {"good": human**3, "blind": draw.normal(size=80), "responses": draw.normal(size=80)}
    figures["words"] = draw.normal(size=80)
    rows = {row["metric"]: row for row in judgement.rows_of(figures, human)}
    assert rows["good"]["spearman"] == pytest.approx(1.0) and rows["good"]["partial"] > 0.9
    assert rows["blind"]["interval"][0] < 0 < rows["blind"]["interval"][1]
    assert "partial" not in rows["words"]
    assert "| good | +1.00 |" in judgement.table(list(rows.values()))
    raters = [judgement.Rated("A", ["x"], [value, value + 1, -value]) for value in (0.0, 1.0, 2.0)]
    assert -1.0 <= judgement.rater_agreement(raters) < 1.0


def test_measure_is_that_of_the_part(measure: Measure) -> None:
    figures = measure([0, 3])
    assert figures["dist-1"] == distinct_n(["a a", "c d c"], 1)
    labels = measure.material.clusters["letters"].assign(["a a", "c d c"])
    assert figures["Sem-Ent (letters)"] == pytest.approx(sem_ent(labels, 4))
    assert (figures["words"], figures["responses"]) == (5.0, 2.0)
    assert measure.words([0, 3]) == pytest.approx((0.6, 1.0, 2.5))


def test_embeddings_are_kept(tmp_path: Path) -> None:
    encoder, texts = Letters(), [f"{'ab'[i % 2]} {i}" for i in range(1500)]
    first = embedded(encoder, texts, tmp_path)
    assert encoder.asked == 1500
    np.testing.assert_array_equal(embedded(encoder, texts, tmp_path), first)
    assert encoder.asked == 1500 and len(list(tmp_path.iterdir())) == 2


def test_sets_by_contexts() -> None:
    low, high = known.by_contexts(12, 2, 5, Random(0))
    assert len(low) == 6 and len(high) == 5
    assert sorted(row for rows in low for row in rows) == list(range(60))
    assert all({row // 5 for row in rows} == {rows[0] // 5, rows[9] // 5} for rows in low)
    assert all(len({row // 5 for row in rows}) == 10 for rows in high)


def test_best_pairs_are_allowed_many_and_near() -> None:
    distance = np.array([[1.0, 5.0, 2.0], [1.0, 9.0, 9.0], [3.0, 3.0, 3.0]])
    allowed = np.array([[True, True, True], [True, False, False], [False, False, False]])
    rows, columns = known.best_pairs(distance, allowed)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 2), (1, 0)]


def test_pairs_are_matched_or_opposed(measure: Measure) -> None:
    low, high = [[0, 2], [1, 4], [3]], [[1, 2], [1, 5], [0, 5], [3, 0], [6]]
    for opposed in (False, True):
        pairs = known._pairs(measure, low, high, opposed, "test")
        assert pairs.low
        for a, b in zip(pairs.low, pairs.high, strict=True):
            one, other = measure.words(a), measure.words(b)
            if opposed:
                assert other[0] <= one[0] - 0.03 and other[1] <= one[1] - 0.03
            else:
                assert abs(other[0] - one[0]) <= 0.02 and abs(other[1] - one[1]) <= 0.02
            assert abs(other[2] - one[2]) <= 0.5


def test_rewrites_use_near_synonyms_only() -> None:
    near = {"big": ["large", "great"], "dog": ["hound", "puppy"]}
    found = known.rewrites("A big dog!", near, Random(0))
    assert found is not None and len(set(found)) == 5
    for text in found:
        a, size, animal = text.split()
        assert a == "a" and size in ("big", "large", "great") and animal in ("dog", "hound", "puppy")
    assert known.rewrites("nothing to replace here", near, Random(0)) is None
    assert known.rewrites("big thing", {"big": ["large"]}, Random(0)) is None


def test_a_run_of_the_first_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gzip

    turns = ["red sun", "blue sea", "a cat", "who knows", "no"]
    records = [
        {
            "context": "\n".join(f"System: {turns[(i + j) % 5]}" for j in range(2 + i % 3)),
            "system": "AB"[i % 2],
            "annotations": {"Diverse": [i % 3, (i + 1) % 3]},
        }
        for i in range(12)
    ]
    path = tmp_path / "fed.json.gz"
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    monkeypatch.setattr(judgement, "data_file", lambda name: path)
    monkeypatch.setattr("diversity_study.material.training_responses", lambda count: turns * (count // 5))
    judgement.run(["embedded"], 3, 10, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert written["dialogues"] == 12
    shown = capsys.readouterr().out
    assert "Sem-Ent (embedded)" in shown and "12 dialogues" in shown
