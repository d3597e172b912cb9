"""A tiny language model, pairs and clusters for the tests of DRESS and its baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dialogkit.dialogues import Example
from dialogkit.diversity.baselines import NegativeTraining, NegativeTrainingConfig
from dialogkit.diversity.dress import DressConfig, DressMethod, DressRow
from dialogkit.diversity.mining import MiningConfig
from dialogkit.diversity.pairs import PairEncoder
from dialogkit.generation import GenerationConfig, TransformersLM
from tests.dialogkit.tiny import tiny_causal_lm
from trainkit import Callback, FitConfig, FitResult, FitState, fit

WORDS = ("yes", "no", "blue", "sea", "sky", "maybe", "what")


@dataclass(frozen=True)
class ToyClusters:
    """Clusters by a rule.

    Attributes:
        shares: Of the training responses.
        rule: From a text to its cluster.
    """

    shares: tuple[float, ...]
    rule: Callable[[str], int]

    @property
    def train_histogram(self) -> NDArray[np.float64]:
        return np.array(self.shares)

    def assign(self, responses: Sequence[str], /) -> NDArray[np.int64]:
        return np.array([self.rule(text) for text in responses], dtype=np.int64)


def by_length(text: str) -> int:
    return len(text) % 2


class Interrupt(Exception):
    pass


class Interrupter(Callback):
    """Ends a run as a power failure does."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise Interrupt


def short(tokens: int = 5) -> GenerationConfig:
    return GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=tokens)


def pairs(count: int) -> list[Example]:
    """Contexts and responses of very different length."""
    return [
        Example(
            tuple(WORDS[(i + j) % 7] for j in range(1 + i % 3)), " ".join(WORDS[i * 3 % 7 :][: 1 + i % 4])
        )
        for i in range(count)
    ]


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Its step is proportional to the gradient, so that equal gradients show as equal weights."""
    return torch.optim.SGD(model.parameters(), lr=0.5)


def toy_run(
    count: int = 20,
    *,
    family: str = "llama",
    negative: Any = "nll",
    threshold: float = 0.1,
    micro_batch_size: int | None = None,
    stop_at: int | None = None,
    reduction: Any = "tokens",
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = plain_sgd,
    **settings: Any,
) -> tuple[dict[str, Tensor], FitResult]:
    """Trains a tiny model with DRESS on ``count`` pairs in batches of 8; its weights and the result.

    Clusters go by the parity of a text's length, so that about half of what the random model says is head.
    """
    lm = tiny_causal_lm(WORDS, family=family)
    config = DressConfig(
        gamma=2.0,
        negative=negative,
        reduction=reduction,
        micro_batch_size=micro_batch_size,
        mining=MiningConfig(contexts=12, threshold=threshold, generation=short()),
    )
    clusters = ToyClusters((0.7, 0.3), by_length)
    rows = [DressRow(one, by_length(one.response)) for one in pairs(count)]
    result = fit(
        lm.model,
        DressMethod(lm, rows, clusters, config, seed=3),
        rows,
        config=FitConfig(
            **{"epochs": 2, "batch_size": 8, "max_grad_norm": 1.0, "log_every": 1, "seed": 3, "cpu": True}
            | settings
        ),
        optimizer=optimizer,
        callbacks=[Interrupter(stop_at)],
    )
    return {name: value.clone() for name, value in lm.model.state_dict().items()}, result


def share_of(lm: TransformersLM, contexts: Sequence[Sequence[str]], word: str) -> float:
    """Share of the contexts that the model answers with the word."""
    from dialogkit.generation.prompting import DialoguePrompt

    prompt = DialoguePrompt()
    config = GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=4, stop=prompt.stop)
    replies = lm.generate([prompt.build(context) for context in contexts], config=config, seed=0)
    return sum(word in found[0].text for found in replies) / len(contexts)


def negative_training_run(
    count: int = 20, *, stop_at: int | None = None, **settings: Any
) -> tuple[dict[str, Tensor], FitResult]:
    """Negative training of a tiny model, whose random replies soon repeat; weights and result."""
    lm = tiny_causal_lm(WORDS, family="llama")
    method = NegativeTraining(
        lm, PairEncoder(lm), NegativeTrainingConfig(threshold=0.05, window=3, generation=short(2))
    )
    result = fit(
        lm.model,
        method,
        pairs(count),
        config=FitConfig(
            **{"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "log_every": 1, "cpu": True} | settings
        ),
        callbacks=[Interrupter(stop_at)],
    )
    return {name: value.clone() for name, value in lm.model.state_dict().items()}, result
