"""Boundary tilting: two flat Gaussian classes, and which way adversarial examples lie.

After notebook 4.1 of the code of "Bridging Adversarial Robustness and Gradient Interpretability" (arXiv
1903.11626): an ordinary boundary leans along the direction of small variance, so that a small step across it
leads away from the data; adversarial training takes the tilt out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import L2, PGD
from robustkit.training import Natural, PGDTraining
from trainkit import FitConfig, fit
from trainkit.seeding import preserved_rng

BOX = (-1.0, 1.0)


def gaussians(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points ``(2 · count, 2)``, each coordinate scaled to [-1, 1], and classes."""
    generator = torch.Generator().manual_seed(seed)
    covariance = torch.tensor([[0.1, -0.01], [-0.01, 0.002]])
    noise = torch.randn(2, count, 2, generator=generator) @ torch.linalg.cholesky(covariance).T
    center = torch.tensor([1.2, 0.1])
    points = torch.cat([noise[0] - center, noise[1] + center])
    low, high = points.amin(dim=0), points.amax(dim=0)
    return (points - low) / (high - low) * 2 - 1, torch.arange(2).repeat_interleave(count)


def tilt(epsilon: float, *, count: int = 3000, epochs: int = 10, seed: int = 0) -> float:
    """Angle in degrees between the mean perturbation of class 0 and the line from its mean to the other's.

    Args:
        epsilon: Radius (L2) of adversarial training; 0 for none. The attack that is looked at has radius 1.
        count: Points of each class.
        epochs: Of training.
        seed: Of points, network and training.
    """
    points, labels = gaussians(count, seed)
    with preserved_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 2))
        method = PGDTraining(L2(epsilon, BOX), 5, 0.5, random_start=False) if epsilon else Natural()
        config = FitConfig(
            epochs=epochs, batch_size=100, schedule="constant", weight_decay=0, seed=seed, cpu=True,
            progress=False, log_every=10_000,
        )  # fmt: skip
        fit(network, method, torch.utils.data.TensorDataset(points, labels), config=config)
    own = labels == 0
    attack = PGD(L2(1.0, BOX), steps=20, random_start=False, early_stop=False)
    moved = attack.perturb(network, points[own], labels[own]) - points[own]
    between = points[~own].mean(dim=0) - points[own].mean(dim=0)
    cosine = torch.cosine_similarity(moved.mean(dim=0), between, dim=0)
    return math.degrees(math.acos(float(cosine.clamp(-1, 1))))
