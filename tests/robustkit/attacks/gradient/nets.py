"""Tiny networks and inputs for the tests of gradient attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(
    features: int = 12, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Linear:
    """A linear model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, classes, dtype=torch.float64)


def convolutions(classes: int = 5, seed: int = 0, dropout: float = 0.3) -> nn.Sequential:
    """A small network with batch normalization and dropout, in training mode, for (n, 3, 8, 8) pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(128, classes),
        )  # fmt: skip
        with torch.no_grad():
            net(torch.rand(64, 3, 8, 8))  # statistics that are not those of the start
            net[-1].weight.mul_(4)
    return net


def pixels(n: int = 16, seed: int = 1) -> Tensor:
    """Random images ``(n, 3, 8, 8)`` in [0, 1]."""
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def says(model: nn.Module, inputs: Tensor) -> Tensor:
    """The classes that a model gives in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    with torch.no_grad():
        found: Tensor = model.eval()(inputs).argmax(dim=1)
    for module in training:
        module.training = True
    return found
