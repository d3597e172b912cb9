"""How far images lie from a data set: by nearest neighbours, or by a small autoencoder.

"Bridging Adversarial Robustness and Gradient Interpretability" (arXiv 1903.11626) projects with a VAE-GAN.
These two are simpler stand-ins, and are named as such: their distances cannot be compared with the paper's.
The paper's claim is about their order: what moves a robust network's inputs stays closer to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.config import FitConfig
from trainkit.seeding import derive_seed, preserved_rng

__all__ = ["AutoencoderDistance", "ManifoldDistance", "NeighbourDistance", "normalised"]


class ManifoldDistance(Protocol):
    """A distance from a data set."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(n, ...)`` to distances ``(n,)`` in units of the inputs' Euclidean norm."""


@dataclass(frozen=True)
class NeighbourDistance:
    """Mean Euclidean distance to the k nearest images of a data set.

    Cost: one matrix product of the images with the whole set.

    Attributes:
        reference: The data, ``(m, ...)``; leave out the images that are measured, or they find themselves.
        k: Neighbours.

    Raises:
        ValueError: Fewer images than neighbours.
    """

    reference: Tensor
    k: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.k <= len(self.reference):
            raise ValueError(f"k is {self.k}; expected 1 to {len(self.reference)}, the number of images")

    def __call__(self, images: Tensor) -> Tensor:
        """Distances ``(n,)``."""
        flat = self.reference.flatten(1)
        parts = [
            torch.cdist(part.flatten(1), flat).topk(self.k, largest=False).values
            for part in images.split(256)
        ]
        return torch.cat(parts).mean(dim=1)


class AutoencoderDistance:
    """Euclidean distance from an image to its reconstruction by an autoencoder of the data.

    Args:
        network: Images to reconstructions of the same shape.

    Example:
        >>> distance = AutoencoderDistance.fitted(train_pixels, latent=16)
        >>> normalised(distance(attacked), distance(clean))
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @classmethod
    def fitted(
        cls,
        images: Tensor,
        *,
        latent: int = 16,
        width: int = 256,
        config: FitConfig | None = None,
    ) -> AutoencoderDistance:
        """Train two layers to the latent space and two back, by the paper's sum of absolute errors.

        Args:
            images: ``(n, ...)``.
            latent: Dimensions of the latent space; the paper's VAE-GANs have 10 (MNIST) and 128 (CIFAR).
            width: Of the hidden layers.
            config: Of `trainkit.fit`; by default 20 epochs in batches of 100.
        """
        from trainkit.loop import fit
        from trainkit.objectives import Loss

        settings = config or FitConfig(epochs=20, batch_size=100, log_every=100)
        shape, size = images.shape[1:], math.prod(images.shape[1:])

        def loss(model: nn.Module, batch: tuple[Tensor]) -> Loss:
            (own,) = batch
            return Loss(F.l1_loss(model(own), own, reduction="sum"), len(own))

        with preserved_rng():
            torch.manual_seed(derive_seed("autoencoder", settings.seed))
            network = nn.Sequential(
                nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, latent),
                nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, size), nn.Unflatten(1, shape),
            )  # fmt: skip
            # The mean image is where reconstructions start.
            network[6].bias.data = images.mean(dim=0).flatten().clone()
            fit(network, loss, torch.utils.data.TensorDataset(images), config=settings)
        return cls(network)

    def __call__(self, images: Tensor) -> Tensor:
        """Distances ``(n,)``."""
        with torch.no_grad():
            parts = [(part - self.network(part)).flatten(1).norm(dim=1) for part in images.split(256)]
        return torch.cat(parts)


def normalised(distances: Tensor, clean: Tensor) -> Tensor:
    """Distances on the scale where clean data go from 0 to 1, as the paper plots them.

    Args:
        distances: Any shape.
        clean: Distances of clean data, which are not all equal.
    """
    return (distances - clean.min()) / (clean.max() - clean.min())
