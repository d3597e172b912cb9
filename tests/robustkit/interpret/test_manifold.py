"""Distances from a data set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit.interpret import AutoencoderDistance, NeighbourDistance
from robustkit.interpret.manifold import normalised
from trainkit import FitConfig


def line(n: int, seed: int) -> Tensor:
    """Images (n, 1, 3, 3) along one direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    return 0.5 + torch.rand(n, 1, 1, 1, generator=generator) * direction


def test_the_nearest_neighbours_by_hand() -> None:
    data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    x = torch.tensor([[0.0, 0.0], [3.0, 5.0]])
    assert NeighbourDistance(data)(x).tolist() == pytest.approx([0, 1])
    both = [5 / 2, (1 + (9 + 9) ** 0.5) / 2]
    assert NeighbourDistance(data, k=2)(x).tolist() == pytest.approx(both)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}"):
            NeighbourDistance(data, k)


def test_an_autoencoder_of_a_line_finds_what_lies_beside_it() -> None:
    data, fresh = line(200, 0), line(50, 1)
    beside = fresh + 0.4 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    config = FitConfig(max_steps=150, batch_size=50, learning_rate=3e-3, cpu=True, log_every=150)
    distance = AutoencoderDistance.fitted(data, latent=1, width=32, config=config)
    assert torch.equal(torch.get_rng_state(), state)
    clean, far = distance(fresh), distance(beside)
    assert far.median() > 3 * clean.median() and clean.shape == (50,)
    assert distance.network(fresh).shape == fresh.shape
    scaled = normalised(clean, clean)
    assert scaled.min() == 0 and scaled.max() == 1 and normalised(far, clean).median() > 1
