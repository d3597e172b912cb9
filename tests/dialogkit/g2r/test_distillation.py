"""Hits among candidates, and the whole way from scores to a chatbot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dialogkit.dialogues import Example
from dialogkit.g2r import G2RConfig, RetrievalChatbot, ScoredContext, distil, evaluate_hits
from dialogkit.g2r.evaluation import context_text, hits_at_1
from tests.dialogkit.g2r.test_training import student
from trainkit import FitConfig
from trainkit.cards import DataUse


class Numbers:
    """Answers "3" with "reply 3", unless the number is listed as unknown."""

    dim = 8
    symmetric = False
    fingerprint = "numbers"

    def __init__(self, unknown: Sequence[int] = ()) -> None:
        self.unknown = unknown

    def _vectors(self, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.stack([np.random.default_rng(n).normal(size=self.dim) for n in numbers]).astype(np.float32)

    def encode_context(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        numbers = [int(text.split("\n")[-1]) for text in texts]
        signs = np.array([-1.0 if n in self.unknown else 1.0 for n in numbers], dtype=np.float32)
        unit = self._vectors(numbers)
        return unit / np.linalg.norm(unit, axis=1, keepdims=True) * signs[:, None]

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        unit = self._vectors([int(text.split()[-1]) for text in texts])
        return unit / np.linalg.norm(unit, axis=1, keepdims=True)


def numbered(count: int) -> list[Example]:
    return [Example(("so", f"{i}"), f"reply {i}") for i in range(count)]


def test_hits_count_what_is_found() -> None:
    assert evaluate_hits(Numbers(), numbered(120)) == {"hits@1/10": 1.0, "hits@1/100": 1.0}
    found = evaluate_hits(Numbers(unknown=range(30)), numbered(120), candidates=[2, 120])
    assert found["hits@1/120"] == 0.75
    assert 0.75 <= found["hits@1/2"] < 1
    assert evaluate_hits(Numbers(), numbered(20), candidates=[10], seed=1) == {"hits@1/10": 1.0}
    same = [Example((f"{i % 2}",), f"reply {i % 2}") for i in range(20)]
    assert evaluate_hits(Numbers(), same, candidates=[20]) == {"hits@1/20": 1.0}


def test_a_tie_is_no_hit() -> None:
    true = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    others = np.array([[0.0, 1.0], [1.0, 1.5], [-np.inf, -np.inf]], dtype=np.float32)
    assert hits_at_1(true, others) == pytest.approx(2 / 3)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 2 to 5"):
        evaluate_hits(Numbers(), numbered(5), candidates=[10])
    with pytest.raises(ValueError, match="must be 2 to 5"):
        evaluate_hits(Numbers(), numbered(5), candidates=[1])
    steps = FitConfig(max_steps=1, batch_size=2, cpu=True, progress=False)
    with pytest.raises(ValueError, match="examples is empty"):
        distil(student(), [], tmp_path / "bot", training=steps)
    with pytest.raises(ValueError, match="at least 10 examples, got 5"):
        distil(student(), scored(), tmp_path / "bot", training=steps, valid=numbered(5))


def test_a_context_is_its_last_turns() -> None:
    assert context_text(["a", " ", "b\tc", "d"], max_turns=2) == "b c\nd"


WORDS = ("red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "violet", "cyan", "teal")


def scored() -> list[ScoredContext]:
    return [
        ScoredContext(
            (f"say {word}",), (f"{word} it is", f"well, {word}"), (-1.0, -3.0), ("original", "generated")
        )
        for word in WORDS
    ]


def test_from_scores_to_a_chatbot(tmp_path: Path) -> None:
    valid = [Example((f"say {word}",), f"{word} it is") for word in WORDS]
    model = student()
    done = distil(
        model,
        scored(),
        tmp_path / "bot",
        config=G2RConfig(negatives=20, score_scale=1.0),
        training=FitConfig(
            max_steps=240,
            batch_size=3,
            learning_rate=3e-3,
            eval_every=120,
            seed=5,
            cpu=True,
            progress=False,
        ),
        valid=valid,
        name="Ann",
        data=[DataUse("Colours", "CC0-1.0")],
        licence="CC-BY-4.0",
    )
    last = done.result.history[-1]
    assert last["hits@1/10"] > 0.8
    assert done.chatbot.name == "Ann"
    assert sorted(done.chatbot.index.responses) == sorted({r for row in scored() for r in row.responses})
    right = [done.chatbot.reply(f"say {word}").text in (f"{word} it is", f"well, {word}") for word in WORDS]
    assert sum(right) > 9
    origin = done.chatbot.provenance
    assert origin is not None
    assert (origin.seed, origin.licence) == (5, "CC-BY-4.0")
    assert {metric.name: metric.value for metric in origin.metrics} == evaluate_hits(
        done.chatbot.retriever, valid, candidates=[10]
    )
    card = (tmp_path / "bot" / "README.md").read_text()
    for words in ("Colours", "240 steps", "alpha 0.1", "20 random negatives", "hits@1/10"):
        assert words in card, words
    again = RetrievalChatbot.from_pretrained(tmp_path / "bot")
    assert again.reply("say red").evidence == done.chatbot.reply("say red").evidence
