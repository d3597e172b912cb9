"""Writing and scoring responses: filters, shards, interruption, and behaviour G12."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.dialogues import Example
from dialogkit.g2r import (
    AugmentConfig,
    Filters,
    ScoreConfig,
    augment,
    group_by_context,
    read_scored,
    score,
    score_responses,
)
from dialogkit.g2r.shards import read_shards
from dialogkit.g2r.writing import copied_ngram, reason_to_drop, repeats
from dialogkit.generation import Candidate, GenerationConfig, TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from tests.dialogkit.tiny import tiny_causal_lm, tiny_seq2seq_lm

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["hello", "there", "who", "are", "you", "my", "old", "friend"]
EXAMPLES = [Example((f"hello {i}", "who are you"), f"friend {i}") for i in range(7)]
CONFIG = AugmentConfig(responses=3, generation=GenerationConfig(max_new_tokens=8, top_k=0))


@pytest.fixture(scope="module")
def teacher() -> TransformersLM:
    return tiny_causal_lm(WORDS)


@pytest.fixture(scope="module")
def augmented(teacher: TransformersLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("g2r") / "responses"
    augment(teacher, EXAMPLES, folder, config=CONFIG, seed=5, shard_size=2)
    return folder


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}


def test_every_context_keeps_its_human_response_and_gains_others(augmented: Path) -> None:
    rows = list(read_shards(augmented))
    for example in EXAMPLES:
        own = [row for row in rows if tuple(row["context"]) == example.context]
        assert own[0] == {
            "context": list(example.context),
            "response": example.response,
            "source": "original",
        }
        assert len({row["response"] for row in own}) == len(own) <= 4
        assert {row["source"] for row in own[1:]} == {"generated"}


class Interrupted:
    """A teacher whose work is stopped by Ctrl-C after some calls."""

    def __init__(self, teacher: TransformersLM, calls: int) -> None:
        self._teacher, self._calls = teacher, calls
        self.name = teacher.name

    def _count(self) -> None:
        if self._calls == 0:
            raise KeyboardInterrupt
        self._calls -= 1

    def generate(self, *args: Any, **settings: Any) -> list[list[Candidate]]:
        self._count()
        return self._teacher.generate(*args, **settings)

    def log_likelihood(self, *args: Any) -> Any:
        self._count()
        return self._teacher.log_likelihood(*args)


def test_a_stopped_run_goes_on_where_it_was(teacher: TransformersLM, augmented: Path, tmp_path: Path) -> None:
    folder = tmp_path / "responses"
    with pytest.raises(KeyboardInterrupt):
        augment(Interrupted(teacher, 2), EXAMPLES, folder, config=CONFIG, seed=5, shard_size=2)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"not finished: 2 of 4 shards are missing.*part-00002"):
        list(read_shards(folder))
    augment(Interrupted(teacher, 2), EXAMPLES, folder, config=CONFIG, seed=5, shard_size=2)  # type: ignore[arg-type]
    assert shards(folder) == shards(augmented)


def test_a_shard_cut_in_half_is_made_anew(
    teacher: TransformersLM, augmented: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "responses"
    augment(teacher, EXAMPLES, folder, config=CONFIG, seed=5, shard_size=2)
    file = folder / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    augment(Interrupted(teacher, 1), EXAMPLES, folder, config=CONFIG, seed=5, shard_size=2)  # type: ignore[arg-type]
    assert shards(folder) == shards(augmented)
    assert "part-00001.parquet cannot be read and is made anew" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "made with seed=5, now it is 6"),
        ({"shard_size": 3}, "made with shard"),
        ({"config": AugmentConfig(responses=4)}, "made with config="),
        ({"examples": EXAMPLES[:6]}, "made with (examples|shards)="),
    ],
)
def test_other_settings_are_refused(
    teacher: TransformersLM, augmented: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"config": CONFIG, "seed": 5, "shard_size": 2, **changes}
    rows = arguments.pop("examples", EXAMPLES)
    with pytest.raises(ValueError, match=message):
        augment(teacher, rows, augmented, **arguments)


TWO = """
import sys
import time
import torch
from dialogkit.g2r import augment, distil, group_by_context, read_scored, score
from tests.dialogkit.g2r.test_training import SMALL, student
from tests.dialogkit.g2r.test_writing import CONFIG, EXAMPLES, WORDS
from tests.dialogkit.tiny import tiny_causal_lm
from trainkit import FitConfig
from accelerate import PartialState
# Built before the processes know of each other: transformers lets the first one alone save a model.
pupil = student()
assert PartialState(cpu=True).num_processes == 2
teacher = tiny_causal_lm(WORDS)
if PartialState().process_index == 1:
    # One process is slower: the other must wait for its shards.
    generate = teacher.generate
    teacher.generate = lambda *args, **kwargs: (time.sleep(1), generate(*args, **kwargs))[1]
counts = augment(teacher, EXAMPLES, sys.argv[1], config=CONFIG, seed=5, shard_size=2)
assert counts["original"] == len(EXAMPLES), counts
score(teacher, sys.argv[1], sys.argv[1] + "-scored")
rows = group_by_context(read_scored(sys.argv[1] + "-scored"))
assert sum(len(row.responses) for row in rows) == sum(counts.values())
steps = FitConfig(max_steps=2, batch_size=2, cpu=True, progress=False)
done = distil(pupil, rows, sys.argv[1] + "-bot", config=SMALL, training=steps)
assert sorted(done.chatbot.index.responses) == sorted({r for row in rows for r in row.responses})
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_shards(augmented: Path, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "two.py"), str(tmp_path / "responses")],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "responses") == shards(augmented)


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
@pytest.mark.parametrize("layout", ["labelled", "lines"])
def test_g12_scores_are_the_models_own_loss(family: str, layout: Any) -> None:
    lm = tiny_causal_lm(WORDS) if family == "causal" else tiny_seq2seq_lm(WORDS)
    prompt = DialoguePrompt(layout=layout)
    context = ("hello there",)
    value = score_responses(lm, [context], ["who are you"], ScoreConfig(prompt=prompt))[0]
    text, answer = prompt.build(context), prompt.answer("who are you")
    assert isinstance(text, str)
    response = lm.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    if family == "causal":
        before = lm.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([before, response], dim=1)
        labels = ids.clone()
        labels[:, : before.shape[1]] = -100
        loss = lm.model(input_ids=ids, labels=labels).loss
    else:
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
        loss = lm.model(input_ids=ids, labels=response).loss
    length = response.shape[1]
    assert value.num_tokens == length
    assert value.value("ll_sum") == pytest.approx(-loss.item() * length, rel=1e-4)
    assert value.value("ll") == pytest.approx(-loss.item(), rel=1e-4)


def test_g12_mutual_information(teacher: TransformersLM) -> None:
    contexts: list[Sequence[str]] = [("hello there",), ("who are you",)]
    responses = ["my friend", "my friend"]
    plain = score_responses(teacher, contexts, responses)
    null = score_responses(teacher, [()], ["my friend"])[0]
    for value in plain:
        assert value.null_sum_logprob == null.sum_logprob
        assert value.value("mi_sum") == value.sum_logprob - null.sum_logprob
        assert value.value("mi") == value.value("mi_sum") / value.num_tokens
    same = score_responses(teacher, contexts[:1], responses[:1], ScoreConfig(null_context=("hello there",)))[
        0
    ]
    assert same.value("mi") == 0.0


def test_scores_of_shards(teacher: TransformersLM, augmented: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(Interrupted(teacher, 1), augmented, tmp_path / "scored")  # type: ignore[arg-type]
    score(teacher, augmented, tmp_path / "scored")
    records = list(read_scored(tmp_path / "scored"))
    rows = list(read_shards(augmented))
    assert [record["response"] for record in records] == [row["response"] for row in rows]
    expected = score_responses(teacher, [row["context"] for row in rows], [row["response"] for row in rows])
    for record, value in zip(records, expected, strict=True):
        assert record["score_infos"]["mi"] == pytest.approx(value.value("mi"), rel=1e-4)
        assert record["score_infos"]["ll"] == pytest.approx(value.value("ll"), rel=1e-4)
    grouped = group_by_context(records, "mi")
    assert [row.context for row in grouped] == [example.context for example in EXAMPLES]
    with pytest.raises(ValueError, match="must not be the source"):
        score(teacher, augmented, augmented)
    with pytest.raises(FileNotFoundError, match=r"holds no settings\.json"):
        score(teacher, tmp_path / "nothing", tmp_path / "scored")


def test_bad_input(teacher: TransformersLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="examples is empty"):
        augment(teacher, [], tmp_path / "x")
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        augment(teacher, EXAMPLES, tmp_path / "x", shard_size=0)
    with pytest.raises(ValueError, match="as many, got 1 and 2"):
        score_responses(teacher, [("a",)], ["b", "c"])
    with pytest.raises(ValueError, match="response 0 is blank"):
        score_responses(teacher, [("a",)], [" \n"])
    with pytest.raises(ValueError, match="responses must be at least 1"):
        AugmentConfig(responses=0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("Yes.", None),
        ("...", "short"),
        ("one two three four five six", "long"),
        ("go on go on go on", "repeats"),
        ("I like it, I like it.", "repeats"),
        ("Well, what is your name?", "copies"),
        ("what is YOUR name", "copies"),
        ("Your name", None),
        ("you damned fool", "unsafe"),
        ("Damned? No.", None),
    ],
)
def test_filters(response: str, reason: str | None) -> None:
    filters = Filters(max_words=6 if reason != "long" else 5, max_copied=4, unsafe=("damned fool",))
    assert reason_to_drop(response, ["Hello.", "What is your name?"], filters) == reason


def test_bad_filters() -> None:
    with pytest.raises(ValueError, match="1 <= min_words <= max_words"):
        Filters(min_words=9, max_words=3)
    with pytest.raises(ValueError, match="at least 1"):
        Filters(max_copied=0)
    with pytest.raises(ValueError, match="unsafe must hold words"):
        Filters(unsafe=("!",))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_ngrams_by_hand(words: list[str], source: list[str]) -> None:
    grams = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
    assert repeats(words) == max((grams.count(gram) for gram in grams), default=0)
    joined = f" {' '.join(source)} "
    n = min(2, len(words))
    pieces = [f" {' '.join(words[i : i + n])} " for i in range(len(words) - n + 1)]
    assert copied_ngram(words, source, 2) == bool(words and any(piece in joined for piece in pieces))


def test_prompts() -> None:
    turns = ["Hi.\nBot: no", "Hello.", "Who are you?"]
    labelled = DialoguePrompt(instruction="A talk.")
    assert labelled.build(turns) == "A talk.\nUser: Hi. Bot: no\nBot: Hello.\nUser: Who are you?\nBot:"
    assert labelled.build([]) == "A talk.\nBot:"
    assert labelled.answer("Me. ") == " Me."
    assert labelled.stop == ("\n", "User:", "Bot:")
    lines = DialoguePrompt(layout="lines")
    assert lines.build(turns) == "Hi. Bot: no\nHello.\nWho are you?"
    chat = DialoguePrompt(layout="chat", instruction="Be kind.").build(turns)
    assert json.loads(json.dumps(chat)) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi. Bot: no"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
    with pytest.raises(TypeError, match="sequence of turns"):
        labelled.build("Hi.")
    with pytest.raises(ValueError, match="different names"):
        DialoguePrompt(user="bot")
    with pytest.raises(ValueError, match="layout must be"):
        DialoguePrompt(layout="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a colon"):
        DialoguePrompt(bot="Ann:")
