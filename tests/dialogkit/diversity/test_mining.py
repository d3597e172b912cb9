"""Behaviour S16 and the miner: which replies become negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dialogkit.diversity.mining import Mined, MiningConfig, NegativeMiner, head_clusters
from dialogkit.generation import Candidate, GenerationConfig, Likelihood, Prompt
from dialogkit.generation.prompting import DialoguePrompt
from tests.dialogkit.diversity.toys import WORDS, ToyClusters, by_length, short
from tests.dialogkit.tiny import tiny_causal_lm


@dataclass
class Parrot:
    """Says the last turn of the context again."""

    asked: list[GenerationConfig] = field(default_factory=list)
    name: str = "parrot"
    max_length: int | None = None
    supports_chat: bool = False

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        self.asked.append(config)
        words = [str(prompt).splitlines()[-2].removeprefix("User: ") for prompt in prompts]
        return [[Candidate(word, -1.0, -1.0, 1, "stop")] for word in words]

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> Iterator[str]:
        raise NotImplementedError

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        raise NotImplementedError

    def count_tokens(self, prompt: Prompt) -> int:
        raise NotImplementedError


def ten(*said: str) -> list[tuple[str]]:
    """Contexts of one turn; the parrot answers each with itself."""
    return [(word,) for word in said]


LETTERS = ToyClusters((0.25,) * 4, lambda text: "abcd".index(text))


def test_s16_a_share_of_exactly_the_threshold_is_not_head() -> None:
    assert head_clusters([0.1, 0.1000001, 0.0, 0.7999999], 0.1).tolist() == [False, True, False, True]
    said = ten(*"a" * 1, *"b" * 2, *"c" * 7)
    mined = NegativeMiner(Parrot(), LETTERS).mine(said, range(10))
    assert mined.shares == (0.1, 0.2, 0.7, 0.0)
    assert mined.head == {1, 2}
    assert mined.weights == (0.0, *[-1.0] * 9)


@pytest.mark.parametrize("n", [10, 20, 30, 70, 1000, 5000])
def test_s16_a_tenth_is_a_tenth_for_any_number_of_replies(n: int) -> None:
    assert not head_clusters(np.bincount([0] * (n // 10) + [1] * (n - n // 10)) / n, 0.1)[0]


def test_s16_no_head() -> None:
    mined = NegativeMiner(Parrot(), LETTERS, MiningConfig(threshold=0.5)).mine(ten("a", "b"), range(2))
    assert mined.head == frozenset() and mined.weights == (0.0, 0.0)


def test_head_is_decided_by_what_is_generated_not_by_the_training_responses() -> None:
    skewed = ToyClusters((0.97, 0.01, 0.01, 0.01), LETTERS.rule)
    mined = NegativeMiner(Parrot(), skewed).mine(ten(*"b" * 10), range(10))
    assert mined.head == {1}


def test_the_threshold_may_follow_the_number_of_clusters() -> None:
    """2/k is 0.5 for four clusters, and as strict."""
    miner = NegativeMiner(Parrot(), LETTERS, MiningConfig(threshold="2/k"))
    assert miner.mine(ten(*"aabb"), range(4)).head == frozenset()
    assert miner.mine(ten(*"aaab"), range(4)).head == {0}


def test_rows_replies_and_clusters_belong_together() -> None:
    said = ten(*"abcdabcd")
    mined = NegativeMiner(Parrot(), LETTERS).mine(said, [6, 1, 3])
    assert mined.rows == (6, 1, 3)
    assert mined.replies == ("c", "b", "d")
    assert mined.clusters == (2, 1, 3)


def test_contexts_are_drawn_anew_for_every_seed() -> None:
    miner = NegativeMiner(Parrot(), LETTERS, MiningConfig(contexts=30))
    first = miner.draw(100, seed=1)
    assert first == miner.draw(100, seed=1) != miner.draw(100, seed=2)
    assert len(set(first)) == 30 and set(first) <= set(range(100))
    assert sorted(miner.draw(20, seed=1)) == list(range(20))


def test_decoding_is_greedy_and_stops_where_the_layout_does() -> None:
    parrot = Parrot()
    NegativeMiner(parrot, LETTERS).mine(ten("a"), range(1))
    assert not parrot.asked[0].do_sample and parrot.asked[0].max_new_tokens == 128
    assert parrot.asked[0].stop == DialoguePrompt().stop


def test_replies_of_a_real_model_are_what_it_generates() -> None:
    lm = tiny_causal_lm(WORDS)
    contexts = [(word, "sea") for word in WORDS]
    mined = NegativeMiner(lm, ToyClusters((0.5, 0.5), by_length), MiningConfig(generation=short())).mine(
        contexts, range(len(WORDS))
    )
    prompt = DialoguePrompt()
    config = GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=5, stop=prompt.stop)
    expected = lm.generate([prompt.build(context) for context in contexts], config=config)
    assert mined.replies == tuple(found[0].text for found in expected)
    assert mined.clusters == tuple(by_length(text) for text in mined.replies)
    assert sum(mined.shares) == pytest.approx(1)


def test_processes_share_the_work_and_get_the_same_result() -> None:
    """A stand-in for Accelerate: what each of two processes would send is put together."""
    import torch

    said = ten(*"abcda")
    sent: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def accelerator(rank: int, answers: list[torch.Tensor]) -> Any:
        def gather(tensor: torch.Tensor) -> torch.Tensor:
            sent[rank].append(tensor)
            return answers.pop(0) if answers else tensor

        def pad(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            return torch.nn.functional.pad(tensor, (0, 500 - tensor.shape[dim]))

        return SimpleNamespace(
            process_index=rank,
            num_processes=2,
            device=torch.device("cpu"),
            gather=gather,
            pad_across_processes=pad,
        )

    miner = NegativeMiner(Parrot(), LETTERS)
    for rank in (0, 1):
        with pytest.raises((KeyError, ValueError)):  # each alone lacks the other's part
            miner.mine(said, range(5), accelerator(rank, []))
    both = [torch.cat([sent[0][i], sent[1][i]]) for i in (0, 1)]
    alone = miner.mine(said, range(5))
    for rank in (0, 1):
        assert miner.mine(said, range(5), accelerator(rank, list(both))) == alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"contexts": 0}, "contexts"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": "3/k"}, "threshold"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningConfig(**wrong)


def test_mined_weights() -> None:
    mined = Mined((0, 1, 2), ("x", "y", "z"), (0, 3, 1), (0.4, 0.3, 0.0, 0.3), frozenset({0, 3}))
    assert mined.weights == (-1.0, -1.0, 0.0)
