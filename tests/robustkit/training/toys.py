"""Small images, models without and with batch norm, and a run of `fit` on them, all in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import LInf
from trainkit import Callback, FitConfig, FitResult, fit
from trainkit.seeding import epoch_permutation

EPSILON = 0.1
THREAT = LInf(EPSILON)
SHAPE = (1, 6, 6)
BATCH = 8


def images(count: int = 24, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Three classes: a bright square in one of three corners, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = 0.4 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        top, left = [(0, 0), (0, 3), (3, 0)][label]
        pixels[row, :, top : top + 3, left : left + 3] += 0.5
    return pixels, labels


class Images:
    """The same as a map-style data set."""

    def __init__(self, count: int = 24) -> None:
        self.pixels, self.labels = images(count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]


def network(*, norm: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    if norm:
        first.append(nn.BatchNorm2d(4))
    model = nn.Sequential(*first, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return model.double()


def config(**settings: Any) -> FitConfig:
    given: dict[str, Any] = {
        "max_steps": 6,
        "batch_size": BATCH,
        "learning_rate": 0.1,
        "schedule": "constant",
        "max_grad_norm": None,
        "log_every": 1,
        "cpu": True,
        "progress": False,
        **settings,
    }
    return FitConfig(**given)


def train(
    method: Any,
    model: nn.Module | None = None,
    data: Any = None,
    *,
    momentum: float = 0.0,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> tuple[nn.Module, FitResult]:
    """Runs `fit` with plain SGD."""
    model = model or network()
    made = config(**settings)
    result = fit(
        model,
        method,
        data or Images(),
        config=made,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=made.learning_rate, momentum=momentum),
        callbacks=callbacks,
    )
    return model, result


def batches(steps: int, data: Images | None = None, size: int = BATCH) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, inputs and labels of the steps of a run with seed 0."""
    data = data or Images()
    found = []
    epoch = 0
    while len(found) < steps:
        for ids in epoch_permutation(len(data), seed=0, epoch=epoch).split(size):
            found.append((ids, data.pixels[ids], data.labels[ids]))
        epoch += 1
    return found[:steps]


def input_gradient(model: nn.Module, inputs: Tensor, delta: Tensor, labels: Tensor) -> Tensor:
    delta = delta.clone().requires_grad_()
    nn.functional.cross_entropy(model(inputs + delta), labels, reduction="sum").backward()
    model.zero_grad()
    assert delta.grad is not None
    return delta.grad


def clip(delta: Tensor, inputs: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Onto ball and box, written apart from the sets."""
    return (inputs + delta.clamp(-epsilon, epsilon)).clamp(0, 1) - inputs


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def assert_same(one: nn.Module, other: nn.Module, atol: float = 1e-12) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=atol)


def assert_other(one: nn.Module, other: nn.Module) -> None:
    assert (weights(one) - weights(other)).abs().max() > 1e-5
