"""Replies on disk: nothing that was answered is lost or asked again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from dialogkit.bots import GeneratorChatbot
from dialogkit.chat import Reply
from dialogkit.dialogues import Turn
from dialogkit.evaluation import EvaluationCase, collect_replies
from dialogkit.generation import GenerationConfig

from ..tiny import tiny_causal_lm
from .stubs import Histories, Parrot, some_cases

CASES = [EvaluationCase((f"turn {i}",), (f"human {i}",)) for i in range(7)]


class Stopped(Parrot):
    """Is stopped by Ctrl-C at its nth batch."""

    def __init__(self, at: int) -> None:
        super().__init__(str.upper)
        self.at = at

    def reply_batch(self, histories: Histories, *, seed: int | None = None) -> list[Reply]:
        if len(self.asked) == self.at:
            raise KeyboardInterrupt
        return super().reply_batch(histories, seed=seed)


def failing(text: str) -> str:
    if text == "turn 3":
        raise ValueError("no word for 3")
    return text.upper()


def test_a_stopped_run_goes_on_and_asks_for_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "replies" / "bot.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect_replies(Stopped(2), CASES, path, batch_size=2, latency_contexts=0)
    bot = Parrot(str.upper)
    found = collect_replies(bot, CASES, path, batch_size=2, latency_contexts=0)
    assert bot.asked == [["turn 4", "turn 5"], ["turn 6"]]
    assert [answer.text for answer in found.answers] == [f"TURN {i}" for i in range(7)]
    again = Parrot(str.upper)
    assert collect_replies(again, CASES, path, latency_contexts=0) == found
    assert again.asked == []


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "bot.jsonl"
    whole = collect_replies(Parrot(str.upper), CASES, path, latency_contexts=0)
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    bot = Parrot(str.upper)
    found = collect_replies(bot, CASES, path, latency_contexts=0)
    assert bot.asked == [["turn 6"]]
    assert [answer.text for answer in found.answers] == [answer.text for answer in whole.answers]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    path.write_bytes(content[:20])  # cut off within the settings
    assert next(a.text for a in collect_replies(bot, CASES, path, latency_contexts=0).answers) == "TURN 0"


@pytest.mark.parametrize(
    ("bot", "cases", "seed", "latency", "said"),
    [
        (Parrot(str.upper, mark="2"), CASES, 0, 0, "fingerprint="),
        (Parrot(str.upper), CASES[:5], 0, 0, "data="),
        (Parrot(str.upper), CASES, 1, 0, "seed=0, now it is 1"),
        (Parrot(str.upper), CASES, 0, 2, "latency_contexts=0"),
    ],
)
def test_other_settings_are_refused(
    tmp_path: Path, bot: Parrot, cases: Sequence[EvaluationCase], seed: int, latency: int, said: str
) -> None:
    path = tmp_path / "bot.jsonl"
    collect_replies(Parrot(str.upper), CASES, path, latency_contexts=0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        collect_replies(bot, cases, path, seed=seed, latency_contexts=latency)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["nonsense", '{"i": 99, "text": "a", "seconds": 0}', '{"i": 1}', "[]"])
def test_a_damaged_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bot.jsonl"
    collect_replies(Parrot(str.upper), CASES, path, latency_contexts=0)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 9"):
        collect_replies(Parrot(str.upper), CASES, path, latency_contexts=0)


def test_a_failure_is_recorded_and_asked_again_next_time(tmp_path: Path) -> None:
    path = tmp_path / "bot.jsonl"
    found = collect_replies(Parrot(failing), CASES, path, latency_contexts=0)
    assert found.answers[3].text is None and found.answers[3].error == "ValueError: no word for 3"
    assert [answer.text for i, answer in enumerate(found.answers) if i != 3] == [
        f"TURN {i}" for i in range(7) if i != 3
    ]
    mended = Parrot(str.upper)
    again = collect_replies(mended, CASES, path, latency_contexts=0)
    assert mended.asked == [["turn 3"]] and again.answers[3].text == "TURN 3"


def test_a_chatbot_that_always_fails_has_no_latency(tmp_path: Path) -> None:
    def fail(text: str) -> str:
        raise RuntimeError("broken")

    found = collect_replies(Parrot(fail), CASES, tmp_path / "bot.jsonl", latency_contexts=3)
    assert {answer.error for answer in found.answers} == {"RuntimeError: broken"}
    assert found.latency is None


def test_latency_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "bot.jsonl"
    first = collect_replies(Parrot(str.upper), CASES, path, latency_contexts=4)
    assert first.latency is not None and first.latency.replies == 4
    assert 0 <= first.latency.p50 <= first.latency.p95
    bot = Parrot(str.upper)
    assert collect_replies(bot, CASES, path, latency_contexts=4).latency == first.latency
    assert bot.asked == []


def test_replies_are_one_line_and_any_text_survives(tmp_path: Path) -> None:
    said = iter(["a\nb", "", "👋🏽 嗨", "\ud800x", "{{ 7 }}", "مرحبا", '"'])
    path = tmp_path / "bot.jsonl"
    wanted = ["a b", "", "👋🏽 嗨", "\ufffdx", "{{ 7 }}", "مرحبا", '"']
    bot = Parrot(lambda text: next(said))
    assert [a.text for a in collect_replies(bot, CASES, path, latency_contexts=0).answers] == wanted
    assert [a.text for a in collect_replies(bot, CASES, path, latency_contexts=0).answers] == wanted


def test_replies_of_a_language_model_do_not_depend_on_the_batch() -> None:
    generation = GenerationConfig(max_new_tokens=4, num_candidates=1)
    bot = GeneratorChatbot(tiny_causal_lm(["hello", "tea"]), generation=generation)
    one = collect_replies(bot, CASES, batch_size=1, latency_contexts=0)
    many = collect_replies(bot, CASES, batch_size=7, latency_contexts=0)
    assert [answer.text for answer in one.answers] == [answer.text for answer in many.answers]
    assert collect_replies(bot, CASES, seed=5, latency_contexts=0).answers != many.answers


def test_the_human_reply_is_scored_under_the_chatbots_own_prompt(tmp_path: Path) -> None:
    model = tiny_causal_lm(["hello", "tea"])
    bot = GeneratorChatbot(model, generation=GenerationConfig(max_new_tokens=2, num_candidates=1))
    path = tmp_path / "bot.jsonl"
    collect_replies(bot, CASES, path, batch_size=3, latency_contexts=0)
    found = collect_replies(bot, CASES, path, batch_size=3, latency_contexts=0)
    for i, answer in enumerate(found.answers):
        (wanted,) = model.log_likelihood([f"User: turn {i}\nBot:"], [f" human {i}"])
        assert answer.human_logprob == pytest.approx(wanted.sum_logprob, rel=1e-5)
        assert answer.human_tokens == wanted.num_tokens
    assert collect_replies(Parrot(str.upper), CASES).answers[0].human_logprob is None


def test_sources_are_kept(tmp_path: Path) -> None:
    class Retrieving(Parrot):
        def reply_batch(self, histories: Histories, *, seed: int | None = None) -> list[Reply]:
            rows = [{"response": "found", "score": 1.0}, {"response": "second", "score": 0.5}]
            return [Reply("found", evidence={"candidates": rows}) for _ in histories]

    path = tmp_path / "bot.jsonl"
    for _ in range(2):
        found = collect_replies(Retrieving(str.upper), CASES[:1], path, latency_contexts=0)
        assert found.answers[0].sources == ("found",)


def test_bad_arguments() -> None:
    class Short(Parrot):
        def reply_batch(self, histories: Histories, *, seed: int | None = None) -> list[Reply]:
            return []

    with pytest.raises(TypeError, match="must return 7 replies"):
        collect_replies(Short(str.upper), CASES)
    with pytest.raises(ValueError, match="no contexts"):
        collect_replies(Parrot(str.upper), [])
    with pytest.raises(ValueError, match="batch_size"):
        collect_replies(Parrot(str.upper), CASES, batch_size=0)
    with pytest.raises(ValueError, match="latency_contexts"):
        collect_replies(Parrot(str.upper), CASES, latency_contexts=-1)


def test_the_chatbot_sees_the_whole_context() -> None:
    seen: list[tuple[str, ...]] = []

    class Reader(Parrot):
        def reply_batch(self, histories: Histories, *, seed: int | None = None) -> list[Reply]:
            seen.extend(
                tuple(f"{turn.speaker}: {turn.text}" for turn in history if isinstance(turn, Turn))
                for history in histories
            )
            return super().reply_batch(histories, seed=seed)

    found = collect_replies(Reader(str.upper, "Otto"), some_cases(1), latency_contexts=0)
    assert seen == [("Otto: Hello number 0.", "User: Tell me about tea and 0.")]
    assert found.name == "Otto" and not math.isnan(found.answers[0].seconds)
