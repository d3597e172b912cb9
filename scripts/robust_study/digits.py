"""Data, network and methods of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import LInf
from robustkit.training import (
    FGSMRS,
    SIHG,
    TRADES,
    YOPO,
    DynamicTraining,
    FreeTraining,
    Natural,
    PerturbationBank,
    PGDTraining,
    RobustMethod,
)

__all__ = ["BATCH", "EPSILON", "METHODS", "THREAT", "Entry", "Split", "digits", "network"]

EPSILON = 0.2
"""Radius in pixels from 0 to 1, l-infinity."""
BATCH = 64
SHAPE = (1, 8, 8)
THREAT = LInf(EPSILON)


@dataclass(frozen=True)
class Split:
    """Images float32 ``(n, 1, 8, 8)`` in [0, 1] and labels; a map-style data set."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]


def digits() -> tuple[Split, Split]:
    """The digits of scikit-learn: 1,297 to train and 500 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return Split(pixels[train], labels[train]), Split(pixels[test], labels[test])


def network(seed: int) -> nn.Module:
    """Two convolutions and two linear layers, without batch norm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Attributes:
        name: What the table calls it.
        passes: Forward-backward passes of a minibatch in one step of the loop.
        make: Makes the method for a number of training images and steps of the loop.
        rate: Peak learning rate.
    """

    name: str
    passes: int
    make: Callable[[int, int], RobustMethod]
    rate: float = 0.1


def _bank(size: int) -> PerturbationBank:
    return PerturbationBank(size, SHAPE, EPSILON, dtype="int8")


METHODS = (
    Entry("natural", 1, lambda n, steps: Natural()),
    Entry("PGD-7 AT", 8, lambda n, steps: PGDTraining(THREAT, 7)),
    Entry("FGSM-RS", 2, lambda n, steps: FGSMRS(THREAT)),
    Entry("Free m=4", 4, lambda n, steps: FreeTraining(THREAT, 4), 0.05),
    Entry("YOPO-5-3", 5, lambda n, steps: YOPO(THREAT, 5, 3)),
    Entry(
        "DAT c_max=0.5",
        8,
        lambda n, steps: DynamicTraining(THREAT, 7, c_max=0.5, horizon=max(1, round(0.8 * steps))),
    ),
    Entry("TRADES β=6", 10, lambda n, steps: TRADES(THREAT, 7)),
    Entry("SI-HG gs, random init, α=1", 2, lambda n, steps: SIHG(THREAT, init="random", alpha=1.0)),
    Entry("SI-HG gs, bank, α=0.25", 2, lambda n, steps: SIHG(THREAT, _bank(n), alpha=0.25)),
    Entry("SI-HG gs, bank, α=0.5", 2, lambda n, steps: SIHG(THREAT, _bank(n), alpha=0.5)),
    Entry("SI-HG fused, bank, α=0.25", 1, lambda n, steps: SIHG(THREAT, _bank(n), order="fused")),
)
