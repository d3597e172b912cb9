from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dialogkit.dialogues import DataError
from dialogkit.evaluation import EvaluationCase, read_cases
from dialogkit.evaluation.cases import cases_fingerprint, history_of


def test_human_replies_stand_under_any_of_the_keys(tmp_path: Path) -> None:
    records = [
        {"context": ["a"], "responses": ["b", "c"], "response": "not this"},
        {"context": ["a"], "positive_responses": ["b"], "random_negative_responses": ["x"]},
        {"context": ["a", "b"], "response": "c"},
        {"context": ["嗨 👋"]},
    ]
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    cases = read_cases(path)
    assert [case.references for case in cases] == [("b", "c"), ("b",), ("c",), ()]
    assert cases[3].context == ("嗨 👋",)
    assert read_cases(records) == cases


def test_a_limit_draws_by_seed_and_keeps_the_order() -> None:
    records = [{"context": [str(i)]} for i in range(50)]
    drawn = [int(case.context[0]) for case in read_cases(records, limit=10, seed=1)]
    assert len(drawn) == 10 and drawn == sorted(drawn) and drawn != list(range(10))
    assert drawn == [int(case.context[0]) for case in read_cases(records, limit=10, seed=1)]
    assert drawn != [int(case.context[0]) for case in read_cases(records, limit=10, seed=2)]
    assert len(read_cases(records, limit=99)) == 50


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"response": "a"}, "record 1: lacks the key 'context'"),
        ({"context": "one text"}, "record 1: context must be a sequence"),
        ({"context": []}, "record 1: context must end"),
        ({"context": ["a", " \n"]}, "record 1: context must end"),
        ({"context": ["a"], "responses": [""]}, "record 1: references must not be blank"),
        ({"context": ["a"], "response": 3}, "record 1"),
        ({"context": ["a", None]}, "record 1: context must be a sequence of strings"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(record: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_cases([record])


def test_no_data_and_no_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no contexts"):
        read_cases([])
    with pytest.raises(ValueError, match="limit must be at least 1"):
        read_cases([{"context": ["a"]}], limit=0)
    with pytest.raises(FileNotFoundError):
        read_cases(tmp_path / "none.jsonl")


def test_turns_alternate_and_the_last_is_the_users() -> None:
    turns = history_of(("a", " ", "b\nB", "c"), "Bot")
    assert [(turn.speaker, turn.text) for turn in turns] == [("User", "a"), ("Bot", "b B"), ("User", "c")]
    assert [turn.speaker for turn in history_of(("a", "b"), "user")] == ["user", "Other User"]


def test_the_fingerprint_knows_contexts_and_replies() -> None:
    base = [EvaluationCase(("a",), ("b",))]
    others = [
        [EvaluationCase(("b",), ("b",))],
        [EvaluationCase(("a",), ("c",))],
        [EvaluationCase(("a", "b"))],
        base * 2,
    ]
    marks = {cases_fingerprint(cases) for cases in (base, *others)}
    assert len(marks) == 5
    assert cases_fingerprint([EvaluationCase(("a",), ("b",))]) == cases_fingerprint(base)
