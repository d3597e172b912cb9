"""Behaviours S16-S19: training with DRESS, in one process and in two."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dialogkit.dialogues import Example
from dialogkit.diversity.dress import (
    DressConfig,
    DressMethod,
    DressRow,
    dress_loss,
    human_perplexity,
    train_dress,
)
from dialogkit.diversity.mining import MiningConfig
from dialogkit.diversity.pairs import PairEncoder, pair_logits
from dialogkit.diversity.semantic import sem_ent
from dialogkit.generation import TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from tests.dialogkit.diversity.toys import (
    WORDS,
    Interrupt,
    ToyClusters,
    by_length,
    pairs,
    share_of,
    short,
    toy_run,
)
from tests.dialogkit.tiny import tiny_causal_lm, tiny_seq2seq_lm
from trainkit import FitConfig

ROOT = Path(__file__).resolve().parents[3]


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=name)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


# Batches


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "t5", "bart"])
@pytest.mark.parametrize("layout", ["labelled", "lines"])
def test_a_batch_has_the_likelihoods_that_the_model_gives_one_by_one(family: str, layout: Any) -> None:
    """Also that ends are learned: the line break of the layout, or the end-of-sequence token."""
    seq2seq = family in ("t5", "bart")
    lm = (tiny_seq2seq_lm if seq2seq else tiny_causal_lm)(WORDS, family=family)
    encoder = PairEncoder(lm, DialoguePrompt(layout=layout))
    rows = pairs(7)
    batch = encoder.collate([encoder.encode(one.context, one.response) for one in rows])
    with torch.no_grad():
        logits = pair_logits(lm.model, batch)
    terms = [
        float(dress_loss(logits[i : i + 1], batch["labels"][i : i + 1], torch.ones(1), "sum"))
        for i in range(len(rows))
    ]
    prompt = encoder.prompt
    end = "" if seq2seq else "\n"
    likelihoods = lm.log_likelihood(
        [prompt.build(one.context) for one in rows], [prompt.answer(one.response) + end for one in rows]
    )
    for term, likelihood, one in zip(terms, likelihoods, rows, strict=True):
        if seq2seq:
            ids = encoder.encode(one.context, one.response).answer
            assert ids[-1] == lm.tokenizer.eos_token_id
            assert len(ids) == likelihood.num_tokens + 1
            assert term > -likelihood.sum_logprob
        else:
            assert term == pytest.approx(-likelihood.sum_logprob, rel=1e-4)


def test_chat_layout_ends_with_the_end_of_sequence_token() -> None:
    lm = tiny_causal_lm(WORDS, chat=True)
    pair = PairEncoder(lm, DialoguePrompt(layout="chat")).encode(("yes",), "no")
    assert pair.answer[-1] == lm.tokenizer.eos_token_id
    assert lm.tokenizer.decode(list(pair.answer[:-1])) == "no"


def test_long_texts_are_cut_with_one_warning_each() -> None:
    lm = tiny_causal_lm(WORDS, max_length=40)
    encoder = PairEncoder(lm, max_context_tokens=12, max_response_tokens=5)
    whole = PairEncoder(tiny_causal_lm(WORDS))
    context, response = ("sea " * 20, "sky"), "blue maybe " * 5
    with pytest.warns(UserWarning) as caught:
        pair = encoder.encode(context, response)
        encoder.encode(context, response)
    assert sorted(str(one.message).split()[1] for one in caught) == ["context", "response"]
    full = whole.encode(context, response)
    assert pair.context == full.context[-12:] and pair.answer == full.answer[:5]
    with pytest.warns(UserWarning):
        narrow = PairEncoder(lm, max_response_tokens=30).encode(context, response)
    assert len(narrow.context) + len(narrow.answer) - 1 == 40


def test_bad_limits() -> None:
    with pytest.raises(ValueError, match="max_context_tokens"):
        PairEncoder(tiny_causal_lm(), max_context_tokens=0)


# Updates


@pytest.mark.parametrize("reduction", ["tokens", "weighted_tokens"])
def test_a_step_minimises_the_weighted_loss(reduction: Any) -> None:
    """One step of plain gradient descent, against the gradient of `dress_loss` itself."""
    found, _ = toy_run(8, negative=None, max_grad_norm=None, reduction=reduction, max_steps=1)
    lm = tiny_causal_lm(WORDS, family="llama")
    encoder = PairEncoder(lm)
    rows = pairs(8)
    batch = encoder.collate([encoder.encode(one.context, one.response) for one in rows])
    weights = torch.tensor([(0.3**2, 0.7**2)[by_length(one.response)] for one in rows])
    dress_loss(pair_logits(lm.model, batch), batch["labels"], weights, reduction).backward()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    assert_close(found, lm.model.state_dict())


@pytest.mark.parametrize("reduction", ["tokens", "weighted_tokens"])
@pytest.mark.parametrize("negative", ["nll", "unlikelihood", None])
def test_s18_micro_batches_equal_one_large_batch(negative: Any, reduction: Any) -> None:
    """Twenty pairs in batches of 8, and negatives, some of which have weight 0."""
    whole, result = toy_run(negative=negative, reduction=reduction)
    parts, _ = toy_run(negative=negative, reduction=reduction, micro_batch_size=3)
    assert result.steps == 6
    assert_close(whole, parts)
    if negative is not None:
        assert any(line.get("negative") for line in result.history)
        assert differ(whole, toy_run(negative=None, reduction=reduction)[0])


def test_s16_without_a_head_cluster_negatives_update_nothing() -> None:
    """No share exceeds 1, so the run is DRESS(-NT) to the last bit."""
    assert not differ(toy_run(threshold=1.0)[0], toy_run(negative=None)[0])


def test_s17_without_negatives_nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("generate was called")

    monkeypatch.setattr(TransformersLM, "generate", refuse)
    _, result = toy_run(negative=None)
    assert result.steps == 6
    assert all("negative" not in line for line in result.history)
    with pytest.raises(AssertionError, match="generate was called"):
        toy_run()


def test_zero_weight_replies_count_in_the_denominator() -> None:
    """Step B's batch: a sum over the head replies, divided by the tokens of all."""
    lm = tiny_causal_lm(WORDS, family="llama")
    rows = [DressRow(one, by_length(one.response)) for one in pairs(8)]
    config = DressConfig(mining=MiningConfig(contexts=8, generation=short()))
    method = DressMethod(lm, rows, ToyClusters((0.7, 0.3), by_length), config)
    chosen = method.miner
    assert chosen is not None
    mined = chosen.mine([row.example.context for row in rows], range(8))
    method.mined = mined.__class__(**{**vars(mined), "clusters": (0, 1) * 4, "head": frozenset({1})})

    recorder = Recorder()
    total, weight = method._push_down(lm.model, 0, 8, recorder)  # type: ignore[arg-type]
    encoded = [method._mined_pair(i) for i in range(8)]
    batch = method.encoder.collate(encoded, [0.0, -1.0] * 4)
    with torch.no_grad():
        expected = dress_loss(pair_logits(lm.model, batch), batch["labels"], batch["weights"])
    assert weight == sum(len(pair.answer) for pair in encoded) == sum(recorder.weights)
    assert total / weight == pytest.approx(float(expected), rel=1e-5)
    assert total < 0 and recorder.updates == 1


class Recorder:
    """Stands in for the loop: keeps weights and counts updates."""

    def __init__(self) -> None:
        from types import SimpleNamespace

        self.accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
        self.weights: list[float] = []
        self.updates = 0
        self.real = True

    def backward(self, total: Tensor, weight: Any) -> None:
        total.backward()
        self.weights.append(float(weight))

    def optimizer_step(self) -> None:
        self.updates += 1


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_an_interrupted_run_is_the_run_that_was_never_stopped(tmp_path: Path, stop_at: int) -> None:
    """With dropout; within an epoch and at its end; the replies of the epoch are not decoded anew."""
    settings: dict[str, Any] = {"family": "gpt2", "optimizer": None, "learning_rate": 0.01, "resume": True}
    whole, result = toy_run(output_dir=tmp_path / "whole", save_every=1, **settings)
    folder = tmp_path / "parts"
    with pytest.raises(Interrupt):
        toy_run(output_dir=folder, save_every=1, stop_at=stop_at, **settings)
    parts, resumed = toy_run(output_dir=folder, save_every=1, **settings)
    assert resumed.resumed_from == stop_at - 1 and resumed.steps == result.steps == 6
    assert not differ(whole, parts)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of the runs that the tests below make in one."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.dialogkit.diversity.two_processes", str(folder)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 17])
def test_s18_two_processes_equal_one(two: Path, count: int) -> None:
    """17 pairs in batches of 8: the last batch has one, so that one process has none."""
    alone, _ = toy_run(count)
    for rank in (0, 1):
        assert_close(alone, load_file(two / f"dress-{count}-{rank}.safetensors"), 2e-6)


# What is learned


def corpus() -> list[Example]:
    """Nine of ten responses are "yes"; one in five that follow "sky" is "blue", none that follow "sea"."""
    return [Example(("sky" if i % 2 else "sea",), "blue" if i % 10 == 1 else "yes") for i in range(100)]


def toy_training(config: DressConfig, seed: int = 0) -> tuple[TransformersLM, float]:
    """A model after the same steps on the corpus, and the share of "blue" in what it answers."""
    lm = tiny_causal_lm(WORDS, family="llama")
    clusters = ToyClusters((0.9, 0.1), lambda text: int("blue" in text))
    training = FitConfig(
        epochs=12, batch_size=20, learning_rate=5e-3, weight_decay=0.0, seed=seed, cpu=True, log_every=1000
    )
    train_dress(lm, corpus(), clusters, training=training, config=config)
    return lm, share_of(lm, [one.context for one in corpus()], "blue")


@pytest.mark.parametrize("negative", [None, "nll", "unlikelihood"])
def test_s19_the_minority_cluster_is_said_more_often(negative: Any) -> None:
    mining = MiningConfig(contexts=20, threshold=0.6, generation=short(4))
    _, vanilla = toy_training(DressConfig(gamma=0.0, negative=None))
    _, dress = toy_training(DressConfig(gamma=1.0, negative=negative, mining=mining))
    assert vanilla < 0.1
    assert 0.3 < dress < 0.9
    assert sem_ent([dress, 1 - dress]) > sem_ent([vanilla, 1 - vanilla]) + 0.3


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_learn(family: str) -> None:
    lm = tiny_seq2seq_lm(WORDS, family=family)
    clusters = ToyClusters((0.9, 0.1), lambda text: int("blue" in text))
    before = human_perplexity(lm, corpus()[:10])
    config = DressConfig(gamma=1.0, mining=MiningConfig(contexts=8, generation=short()))
    training = FitConfig(epochs=3, batch_size=20, learning_rate=5e-3, cpu=True)
    result = train_dress(lm, corpus(), clusters, training=training, config=config, valid=corpus()[:10])
    assert human_perplexity(lm, corpus()[:10]) < before / 2
    assert result.best_metric is not None
    last = [line for line in result.history if line["split"] == "eval"][-1]
    assert last["loss"] == pytest.approx(math.log(last["perplexity"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": []}, "examples is empty"),
        ({"labels": [0, 1]}, "labels must be as many"),
        ({"labels": [0] * 99 + [2]}, "labels must be 0 to 1, got 0 to 2"),
        ({"labels": [-1] * 100}, "labels must be 0 to 1, got -1"),
    ],
)
def test_bad_training_input(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"examples": corpus(), **arguments}
    with pytest.raises(ValueError, match=message):
        train_dress(
            tiny_causal_lm(WORDS),
            given["examples"],
            ToyClusters((0.9, 0.1), by_length),
            training=FitConfig(max_steps=1),
            labels=given.get("labels"),
        )


def test_a_model_must_not_move_its_own_yardstick() -> None:
    """Clusters of the very model in training would be of another encoder after the first step."""
    from dialogkit.diversity.clusters import SemanticClusters
    from dialogkit.diversity.encoders import CausalLMEncoder

    lm = tiny_causal_lm(WORDS)
    texts: Sequence[str] = [f"{a} {b}" for a in WORDS for b in WORDS]
    clusters = SemanticClusters.fit(texts, CausalLMEncoder(lm.model, lm.tokenizer), k=2, n_redo=1)
    with pytest.raises(ValueError, match="load the encoder once more"):
        train_dress(lm, corpus(), clusters, training=FitConfig(max_steps=1))
