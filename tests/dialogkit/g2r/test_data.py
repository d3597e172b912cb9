from __future__ import annotations

import math
from typing import Any

import pytest

from dialogkit.dialogues import DataError
from dialogkit.g2r import ScoredContext, group_by_context, response_set


def record(response: str, ll: float = -1.0, source: str = "generated", **changes: Any) -> dict[str, Any]:
    row = {
        "context": ["Hello."],
        "response": response,
        "source": source,
        "score_infos": {"ll": ll, "mi": -ll},
    }
    return {**row, **changes}


def test_equal_contexts_are_one_example() -> None:
    rows = [
        record("Hi.", -2.0),
        record("Go away.", -5.0, context=["Hello.", "And?"]),
        record("Good\tday.\n", -3.0),
        record("Hi.", -9.0, source="original"),
        record("Good day.", -4.0),
    ]
    first, second = group_by_context(rows)
    assert first == ScoredContext(("Hello.",), ("Hi.", "Good day."), (-9.0, -3.0), ("original", "generated"))
    assert second.context == ("Hello.", "And?")
    assert group_by_context(rows, score="mi")[1].scores == (5.0,)
    assert response_set([first, second]) == ["Hi.", "Good day.", "Go away."]
    assert response_set([first, second], generated=False) == ["Hi."]


@pytest.mark.parametrize(
    "broken",
    [
        {"response": "Hi."},
        record("Hi.", score_infos={"mi": 1.0}),
        record("Hi.", math.nan),
        record(" \n"),
        record("Hi.", context=[]),
        record("Hi.", context="Hello."),
        record("Hi.", score_infos=None),
    ],
)
def test_a_broken_record_is_named(broken: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="record 1"):
        group_by_context([record("Fine."), broken])


def test_bad_examples() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ScoredContext((), ("a",), (0.0,), ("x",))
    with pytest.raises(ValueError, match="one length"):
        ScoredContext(("c",), ("a", "b"), (0.0,), ("x", "x"))
    with pytest.raises(ValueError, match="distinct"):
        ScoredContext(("c",), ("a", "a"), (0.0, 1.0), ("x", "x"))
    with pytest.raises(ValueError, match="the score of 'a' is inf"):
        ScoredContext(("c",), ("a",), (math.inf,), ("x",))
