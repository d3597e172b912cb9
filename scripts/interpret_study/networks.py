"""Data and networks: small LeNets trained on clean or on attacked images, and networks of others.

Radii are in pixels from 0 to 1. The paper's inputs go from -1 to 1, so its radii are twice as large; networks
here see the same [-1, 1], because a map "times input" depends on what counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustkit.attacks.gradient import L2, PGD, LInf
from robustkit.classifiers import ImageClassifier
from robustkit.training import Natural, PGDTraining, RobustMethod
from scripts.given_networks import cifar_images, mnist_images, mnist_network
from trainkit import FitConfig, derive_seed, fit
from trainkit.hub import write_bytes
from trainkit.seeding import preserved_rng

__all__ = ["STANDARD", "STUDIES", "Images", "Recipe", "Study", "accuracies", "accuracy", "network",
           "trained"]  # fmt: skip

Images = tuple[Tensor, Tensor]
"""Pixels ``(n, C, y, x)`` in [0, 1] and labels ``(n,)``."""

STANDARD = "standard"
STEPS = 5
"""Of the attack in training; the paper's has 40."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        norm: ``"L2"`` or ``"L∞"``, or ``""`` without attacks.
        radius: Of the attack in training, in pixels from 0 to 1.
    """

    norm: str = ""
    radius: float = 0.0

    @property
    def name(self) -> str:
        """What tables call the network."""
        return f"{self.norm} {self.radius:g}" if self.norm else STANDARD

    def method(self) -> RobustMethod:
        """The paper's: only attacked images, no random start, cross-entropy."""
        if not self.norm:
            return Natural()
        threat = L2(self.radius) if self.norm == "L2" else LInf(self.radius)
        return PGDTraining(threat, STEPS, random_start=False)


def _none() -> dict[str, ImageClassifier]:
    return {}


def _mnist(train: int, test: int) -> tuple[Images, Images]:
    pixels, labels = mnist_images(train + test)
    return (pixels[:train], labels[:train]), (pixels[train:], labels[train:])


def _cifar(train: int, test: int) -> tuple[Images, Images]:
    return cifar_images(train, part="train"), cifar_images(test, part="test")


def _lenets() -> dict[str, ImageClassifier]:
    return {
        "given, clean": mnist_network("clean"),
        "given, L∞ 0.3": mnist_network("adversarial"),
        "given, TRADES 0.3": mnist_network("trades"),
    }


@dataclass(frozen=True)
class Study:
    """A data set with its networks, and how much is done with it.

    Attributes:
        name: Of its folder.
        title: What tables call it.
        images: Gives a number of images to train on and one to measure on, drawn by a seed.
        radii: Of adversarial training by norm, ascending.
        train: Images to train on.
        test: Other images to measure on.
        epochs: Of training.
        retraining_epochs: Of training for ROAR and KAR.
        rate: Peak learning rate of Adam in both.
        moved: The first test images, which the strong attack moves.
        strong: Its L2 radius; the paper's 12 is 6 in pixels from 0 to 1.
        latent: Dimensions of the autoencoder; those of the paper's VAE-GANs.
        steps: Of integrated gradients.
        given: Loads networks of others, the clean one first.
    """

    name: str
    title: str
    images: Callable[[int, int], tuple[Images, Images]]
    radii: Mapping[str, tuple[float, ...]]
    train: int = 3000
    test: int = 3000
    epochs: int = 6
    retraining_epochs: int = 3
    rate: float = 4e-3
    moved: int = 200
    strong: float = 6.0
    latent: int = 10
    steps: int = 5
    given: Callable[[], dict[str, ImageClassifier]] = _none

    def load(self) -> tuple[Images, Images]:
        """Images to train and to measure on; the same for all seeds."""
        return self.images(self.train, self.test)

    def recipes(self) -> list[Recipe]:
        """The standard network first, then by norm and radius."""
        return [Recipe(), *(Recipe(norm, radius) for norm, radii in self.radii.items() for radius in radii)]

    def config(self, epochs: int, seed: int) -> FitConfig:
        """Settings of a training."""
        return FitConfig(
            epochs=epochs, batch_size=100, learning_rate=self.rate, schedule="linear", warmup_ratio=0.1,
            weight_decay=0, max_grad_norm=None, seed=seed, cpu=True, progress=False, log_every=10_000,
        )  # fmt: skip


STUDIES: dict[str, Study] = {
    "mnist": Study(
        "mnist", "MNIST", _mnist, {"L2": (0.5, 1.0), "L∞": (0.05, 0.1)}, given=_lenets
    ),
    "cifar": Study(
        "cifar", "CIFAR-10 as JPEG", _cifar, {"L2": (0.4, 0.8), "L∞": (0.01, 0.02)},
        train=10_000, latent=128,
    ),
}  # fmt: skip


def network(pixels: Tensor, *, standardized: bool = False) -> ImageClassifier:
    """A small LeNet for images like these: two convolutions with stride 2 and two linear layers.

    Padding lets it read every pixel: one that it did not read would be last in its gradient, and missed by
    no network trained again.

    Args:
        pixels: Images ``(n, C, y, x)``.
        standardized: Scale inputs by these images' mean and standard deviation instead of to [-1, 1].
    """
    channels, side = pixels.shape[1], pixels.shape[2]
    net = nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (-(-side // 4)) ** 2, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    if not standardized:
        mean, std = torch.full_like(mean, 0.5), torch.full_like(std, 0.5)
    return ImageClassifier(net, mean=mean.tolist(), std=std.tolist())


def trained(study: Study, recipe: Recipe, seed: int, train: Images, path: Path) -> ImageClassifier:
    """The network of a recipe and a seed in evaluation mode; trained if its file is not there."""
    with preserved_rng():
        torch.manual_seed(derive_seed("bridging", study.name, seed))
        classifier = network(train[0])
        if not path.exists():
            data = torch.utils.data.TensorDataset(*train)
            fit(classifier, recipe.method(), data, config=study.config(study.epochs, seed))
            write_bytes(path, save(classifier.model.state_dict()))
    classifier.model.load_state_dict(load_file(path))
    classifier.name = recipe.name
    return classifier.eval()


def accuracies(study: Study, classifier: ImageClassifier, test: Images) -> dict[str, float]:
    """Accuracy on all test images, and of `moved` ones under PGD with the largest radius of each norm."""
    found = {"clean": accuracy(classifier, test)}
    some = (test[0][: study.moved], test[1][: study.moved])
    for norm, radii in study.radii.items():
        threat = L2(radii[-1]) if norm == "L2" else LInf(radii[-1])
        moved = PGD(threat, steps=20).perturb(classifier, *some)
        found[norm] = accuracy(classifier, (moved, some[1]))
    return found


def accuracy(classifier: ImageClassifier, images: Images) -> float:
    """Share of images that are classified right."""
    return (classifier.predict(images[0]) == images[1]).double().mean().item()
