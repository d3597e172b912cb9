"""Tiny models, data and methods for the tests of the training loop."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainkit import Loss, StepContext

VOCABULARY, WIDTH = 11, 8


class TinyLM(nn.Module):
    """Predicts each token from the one before it; input and output embeddings are tied."""

    def __init__(self, *, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.mix(self.norm(self.embedding(ids)))))
        return self.head(hidden)


class Sentences:
    """Sentences of 2 to 9 tokens: examples of very different weight."""

    def __init__(self, count: int, *, noise: bool = False, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 10, (count,), generator=generator).tolist()
        self.rows = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        row = self.rows[index]
        if self.noise:
            # One draw from each global generator.
            shift = random.randrange(5) + np.random.randint(5) + int(torch.randint(5, ()))
            row = 1 + (row - 1 + shift) % (VOCABULARY - 1)
        return row


class TokenLoss:
    """Cross-entropy summed over target tokens; token 0 pads."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def collate(self, rows: Sequence[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    def __call__(self, model: Any, batch: Tensor) -> Loss:
        self.sizes.append(len(batch))
        logits, targets = model(batch[:, :-1]), batch[:, 1:]
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=0
        )
        weight = (targets != 0).sum()
        hits = ((logits.argmax(-1) == targets) & (targets != 0)).sum()
        return Loss(total, weight, {"accuracy": (hits, weight), "tokens_per_sentence": (weight, len(batch))})


class Points:
    """Inputs ``[4]`` and their noisy linear target ``[1]``."""

    def __init__(self, count: int, *, seed: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 4, generator=generator)
        self.targets = self.inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        self.targets += 0.1 * torch.randn(count, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def regressor(*, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def squared_error(model: Any, batch: tuple[Tensor, Tensor]) -> Loss:
    inputs, targets = batch
    return Loss(((model(inputs) - targets) ** 2).sum(), len(inputs))


class AdversarialRegression:
    """Minimax: each example keeps a perturbation of its input, moved one signed step a visit."""

    def __init__(self, count: int, *, epsilon: float = 0.3, step_size: float = 0.1) -> None:
        self.perturbations = torch.zeros(count, 4)
        self.visits = torch.zeros(count, dtype=torch.int64)
        self.epsilon, self.step_size = epsilon, step_size
        self.last_draw = 0.0

    def step(self, model: Any, batch: tuple[Tensor, Tensor], context: StepContext) -> Loss:
        inputs, targets = batch
        ids = context.example_ids
        delta = self.perturbations[ids].requires_grad_()
        self._loss(model, inputs + delta, targets).backward()
        context.zero_grad()
        assert delta.grad is not None
        moved = (delta.detach() + self.step_size * delta.grad.sign()).clamp(-self.epsilon, self.epsilon)
        total = self._loss(model, inputs + moved, targets)
        context.backward(total, len(inputs))
        context.optimizer_step()
        self.last_draw = float(torch.rand((), generator=context.generator))
        everyones_ids, everyones = context.exchange(moved)
        self.perturbations[everyones_ids] = everyones
        self.visits[everyones_ids] += 1
        return Loss(total, len(inputs), {"size": (moved.abs().sum(), len(inputs))})

    def _loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return ((model(inputs) - targets) ** 2).sum()

    def state_dict(self) -> Mapping[str, Any]:
        return {"perturbations": self.perturbations, "visits": self.visits, "draw": self.last_draw}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.perturbations, self.visits = state["perturbations"], state["visits"]
        self.last_draw = state["draw"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def lines(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run without the clock."""
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in history]
