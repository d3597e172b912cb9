"""EDF filter, unlikelihood, negative training, MMI: against values by hand and plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dialogkit.dialogues import Example
from dialogkit.diversity.baselines import (
    EDFConfig,
    LikelihoodObjective,
    MMIReranker,
    NegativeTraining,
    NegativeTrainingConfig,
    edf_filter,
    pair_entropies,
    unlikelihood_loss,
)
from dialogkit.diversity.pairs import PairEncoder, pair_logits
from dialogkit.generation.prompting import DialoguePrompt
from tests.dialogkit.diversity.test_dress import batch
from tests.dialogkit.diversity.test_dress_training import assert_close, differ, two
from tests.dialogkit.diversity.toys import WORDS, Interrupt, negative_training_run, pairs, share_of, short
from tests.dialogkit.tiny import tiny_causal_lm
from trainkit import FitConfig, fit

__all__ = ["two"]


def said(*turns: tuple[str, str]) -> list[Example]:
    return [Example(("before", source), target) for source, target in turns]


# EDF


def test_entropies_by_hand() -> None:
    """Partners 1/2, 1/4, 1/4 have 1.5 bits; one partner has none."""
    found = pair_entropies(["a"] * 4 + ["b"] * 3, ["x", "x", "y", "z", "w", "w", "w"])
    assert found == {"a": 1.5, "b": 0.0}
    assert math.copysign(1, found["b"]) == 1


EXAMPLES = said(
    ("how are you", "fine"),
    ("where is he", "i do not know"),
    ("who is she", "i do not know"),
    ("why not", "i do not know"),
    ("what", "the red one"),
    ("what", "i said hello"),
    ("what", "nothing"),
    ("good night", "sleep well"),
    ("good night", "sleep well"),
)


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        ("target", [0, 4, 5, 6, 7, 8]),
        ("source", [0, 1, 2, 3, 7, 8]),
        ("both", [0, 7, 8]),
    ],
)
def test_edf_drops_what_answers_or_precedes_too_much(side: Any, kept: list[int]) -> None:
    """log2 3 = 1.58 bits are more than 1.1; the context before the last turn plays no part."""
    assert edf_filter(EXAMPLES, EDFConfig(side=side)) == kept


def test_edf_threshold_is_strict_and_long_or_single_utterances_stay() -> None:
    assert edf_filter(EXAMPLES, EDFConfig(threshold=math.log2(3))) == list(range(9))
    assert edf_filter(EXAMPLES, EDFConfig(threshold=1.58, side="target")) == [0, 4, 5, 6, 7, 8]
    long = "word " * 15
    examples = said(*((f"q{i}", long) for i in range(4)))
    assert edf_filter(examples) == [0, 1, 2, 3]
    assert edf_filter(examples, EDFConfig(max_mean_words=16)) == []
    assert edf_filter(EXAMPLES, EDFConfig(min_size=4)) == list(range(9))


def test_edf_with_clusters_of_meaning() -> None:
    """Both phrasings are one target: together they answer four."""
    examples = said(("a", "i do not know"), ("b", "i do not know"), ("c", "no idea"), ("d", "no idea"))
    assert edf_filter(examples) == [0, 1, 2, 3]
    assert edf_filter(examples, target_clusters=[0, 0, 0, 0]) == []
    with pytest.raises(ValueError, match="target_clusters must be as many"):
        edf_filter(examples, target_clusters=[0])


@pytest.mark.parametrize("wrong", [{"threshold": -1.0}, {"side": "left"}])
def test_edf_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EDFConfig(**wrong)


# Unlikelihood


@pytest.mark.parametrize("seed", range(5))
def test_unlikelihood_against_a_plain_loop(seed: int) -> None:
    logits, labels = batch(seed, length=9, vocabulary=5)
    expected = []
    for scores, targets in zip(logits.softmax(dim=2).tolist(), labels.tolist(), strict=True):
        total = 0.0
        for t, target in enumerate(targets):
            if target != -100:
                candidates = {token for token in targets[:t] if token != -100} - {target}
                total -= sum(math.log(1 - scores[t][token]) for token in candidates)
        expected.append(total)
    assert unlikelihood_loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-10)


def test_unlikelihood_of_a_certain_repetition_is_finite() -> None:
    logits = torch.tensor([[[50.0, 0.0], [50.0, 0.0]]], requires_grad=True)
    loss = unlikelihood_loss(logits, torch.tensor([[0, 1]]))
    assert float(loss.detach()) == pytest.approx(-math.log(1e-5), rel=1e-4)
    loss.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_likelihood_objective(weight: float) -> None:
    lm = tiny_causal_lm(WORDS, family="llama")
    objective = LikelihoodObjective(PairEncoder(lm), weight)
    made = objective.collate(pairs(6))
    loss = objective(lm.model, made)
    logits = pair_logits(lm.model, made).detach()
    labels = made["labels"]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    expected = nll + weight * unlikelihood_loss(logits, labels).sum()
    assert float(loss.total.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert int(loss.weight) == int((labels != -100).sum())


def test_micro_batches_change_nothing() -> None:
    found = []
    for size in (None, 3):
        lm = tiny_causal_lm(WORDS, family="llama")
        config = FitConfig(epochs=2, batch_size=8, micro_batch_size=size, learning_rate=0.1, cpu=True)
        fit(
            lm.model,
            LikelihoodObjective(PairEncoder(lm), 1.0),
            pairs(20),
            config=config,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        )
        found.append(dict(lm.model.state_dict()))
    assert_close(*found)


def test_negative_weight_of_unlikelihood() -> None:
    with pytest.raises(ValueError, match="unlikelihood"):
        LikelihoodObjective(PairEncoder(tiny_causal_lm()), -1.0)


# Negative training


def window(*batches: list[str], threshold: float = 0.25, size: int = 3) -> NegativeTraining:
    lm = tiny_causal_lm(WORDS)
    method = NegativeTraining(lm, PairEncoder(lm), NegativeTrainingConfig(threshold=threshold, window=size))
    method.window.extend(batches)
    return method


def test_frequent_is_a_strict_share_of_the_exact_words_in_the_window() -> None:
    method = window(["a", "b", "c", "d"], ["a", "a", "B", "b"])
    assert method.frequent(["a", "b", "B", "e"]) == [0]  # 3/8 > 1/4, 2/8 = 1/4
    method.window.append(["b", "b"])
    assert method.frequent(["a", "b"]) == [0, 1]
    method.window.append(["x"])  # the first batch leaves
    assert method.frequent(["a", "b", "x"]) == [0, 1]
    method.window.extend([["y"], ["z"], ["y"]])
    assert method.frequent(["a", "y"]) == [1]


def test_what_was_said_once_is_not_frequent() -> None:
    assert window(["a", "b"], threshold=0.01).frequent(["a", "b"]) == []


def test_the_second_step_is_ascent_with_the_end_at_a_tenth() -> None:
    lm = tiny_causal_lm(WORDS, family="llama")
    method = NegativeTraining(lm, PairEncoder(lm))
    calls: list[tuple[float, float]] = []

    class Recorder:
        from types import SimpleNamespace

        accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)

        def backward(self, total: torch.Tensor, weight: Any) -> None:
            calls.append((float(total.detach()), float(weight)))

        def optimizer_step(self) -> None:
            pass

    examples = pairs(3)
    method._push_down(lm.model, examples, ["yes", "no", "blue sea"], [0, 2], Recorder())  # type: ignore[arg-type]
    prompt = DialoguePrompt()
    total = tokens = 0.0
    for i, reply in ((0, "yes"), (2, "blue sea")):
        context = prompt.build(examples[i].context)
        whole, ended = lm.log_likelihood([context] * 2, [f" {reply}", f" {reply}\n"])
        assert ended.num_tokens == whole.num_tokens + 1
        total += whole.sum_logprob + 0.1 * (ended.sum_logprob - whole.sum_logprob)
        tokens += ended.num_tokens
    assert calls == [(pytest.approx(total, rel=1e-4), tokens)]


def test_a_frequent_reply_becomes_less_likely() -> None:
    """A model that says "yes" to everything goes on for two steps, with negative training and without."""
    corpus = [Example((WORDS[i % 7],), "yes" if i % 4 else "no") for i in range(40)]
    found = {}
    for negative in (False, True):
        lm = tiny_causal_lm(WORDS, family="llama")
        encoder = PairEncoder(lm)
        first = FitConfig(epochs=8, batch_size=20, learning_rate=5e-3, cpu=True)
        fit(lm.model, LikelihoodObjective(encoder), corpus, config=first)
        assert share_of(lm, [one.context for one in corpus], "yes") == 1.0
        method: Any = LikelihoodObjective(encoder)
        if negative:
            config = NegativeTrainingConfig(threshold=0.3, window=3, generation=short(3))
            method = NegativeTraining(lm, encoder, config)
        second = FitConfig(epochs=1, batch_size=20, learning_rate=1e-3, cpu=True, log_every=1)
        result = fit(lm.model, method, corpus, config=second)
        found[negative] = sum(likelihood(lm, one.context, "yes") for one in corpus)
    assert [line["frequent"] for line in result.history] == [1.0, 1.0]
    assert found[True] < found[False] - 1


def test_an_interrupted_negative_training_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    """The window of replies comes back."""
    whole, result = negative_training_run(output_dir=tmp_path / "whole", save_every=1)
    assert any(line["frequent"] > 0 for line in result.history)
    folder = tmp_path / "parts"
    with pytest.raises(Interrupt):
        negative_training_run(output_dir=folder, save_every=1, resume=True, stop_at=5)
    parts, resumed = negative_training_run(output_dir=folder, save_every=1, resume=True)
    assert resumed.resumed_from == 4
    assert not differ(whole, parts)


@pytest.mark.slow
def test_two_processes_agree_in_negative_training(two: Path) -> None:
    """Also where only one of them has a frequent reply, or an example."""
    first, second = (load_file(two / f"negative-{rank}.safetensors") for rank in (0, 1))
    assert not differ(first, second)


@pytest.mark.parametrize("wrong", [{"threshold": 2.0}, {"window": 0}])
def test_negative_training_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NegativeTrainingConfig(**wrong)


# MMI


def likelihood(lm: Any, context: tuple[str, ...], response: str) -> float:
    prompt = DialoguePrompt()
    return float(lm.log_likelihood([prompt.build(context)], [prompt.answer(response)])[0].sum_logprob)


def test_mmi_formulas() -> None:
    forward, backward = tiny_causal_lm(WORDS), tiny_causal_lm(WORDS, seed=1)
    context, responses = ("yes", "what"), ["no", "blue sea sky", "maybe"]
    ahead = [likelihood(forward, context, one) for one in responses]
    alone = [likelihood(forward, (), one) for one in responses]
    back = [likelihood(backward, (one,), "what") for one in responses]
    tokens = [
        one.num_tokens
        for one in forward.log_likelihood(["x"] * 3, [f" {response}" for response in responses])
    ]
    assert MMIReranker(forward, 0.0)(context, responses) == pytest.approx(ahead, rel=1e-5)
    anti = MMIReranker(forward, 0.3, length_bonus=2.0)(context, responses)
    expected = [a - 0.3 * b + 2.0 * n for a, b, n in zip(ahead, alone, tokens, strict=True)]
    assert anti == pytest.approx(expected, rel=1e-5)
    both = MMIReranker(forward, 0.3, backward)(context, responses)
    assert both == pytest.approx([0.7 * a + 0.3 * b for a, b in zip(ahead, back, strict=True)], rel=1e-5)


def test_mmi_prefers_what_the_context_makes_likely() -> None:
    """A model that mostly says "yes", and "blue" after "sky": likelihood ranks "yes" first, MMI does not."""
    corpus = [
        Example(("sky" if i % 2 else "sea",), "blue" if i % 5 == 1 and i % 2 else "yes") for i in range(60)
    ]
    lm = tiny_causal_lm(WORDS, family="llama")
    config = FitConfig(epochs=15, batch_size=20, learning_rate=5e-3, cpu=True)
    fit(lm.model, LikelihoodObjective(PairEncoder(lm)), corpus, config=config)
    lm.model.eval()
    likely = MMIReranker(lm, 0.0)(("sky",), ["yes", "blue"])
    assert likely[0] > likely[1]
    gain = [MMIReranker(lm, 1.0)((turn,), ["yes", "blue"]) for turn in ("sky", "sea")]
    assert gain[0][1] - gain[0][0] > gain[1][1] - gain[1][0]


def test_mmi_bad_weight() -> None:
    with pytest.raises(ValueError, match="weight"):
        MMIReranker(tiny_causal_lm(), 1.5)
