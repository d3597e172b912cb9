"""The image sets of the comparison, each with network, ball and methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
    Growing,
    Natural,
    PerturbationBank,
    PGDTraining,
    RobustMethod,
)

__all__ = ["STUDIES", "Entry", "Split", "Study", "Threat"]

Threat = LInf | Growing[LInf]


@dataclass(frozen=True)
class Split:
    """Images float32 ``(n, channels, y, x)`` in [0, 1] and labels; a map-style data set."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]

    def to(self, device: str) -> Split:
        """The same on a device."""
        return Split(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Attributes:
        name: What the table calls it.
        passes: Forward-backward passes of a minibatch in one step of the loop.
        make: Makes the method for a threat, a number of training images and of steps of the loop.
        rate: Peak learning rate as a share of the study's.
    """

    name: str
    passes: int
    make: Callable[[Threat, int, int], RobustMethod]
    rate: float = 1.0


@dataclass(frozen=True)
class Study:
    """An image set with what is done on it.

    Attributes:
        name: Short name; files and marks of the page have it.
        about: What the page calls set and network.
        shape: Channels, height, width.
        epsilon: Radius in pixels from 0 to 1, l-infinity.
        load: Gives images to train and to test.
        network: Makes a network with the weights of a seed; none has batch norm.
        optimizer: Makes the optimizer of a network for a peak learning rate.
        rate: That rate.
        batch: Images in a minibatch.
        device: Where networks are trained and attacked.
    """

    name: str
    about: str
    shape: tuple[int, int, int]
    epsilon: float
    load: Callable[[], tuple[Split, Split]]
    network: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    rate: float
    batch: int = 64
    device: str = "cpu"

    @property
    def threat(self) -> LInf:
        """The ball."""
        return LInf(self.epsilon)

    def methods(self) -> tuple[Entry, ...]:
        """The methods compared, with the same settings on every set."""

        def bank(size: int) -> PerturbationBank:
            return PerturbationBank(size, self.shape, self.epsilon, dtype="int8")

        return (
            Entry("natural", 1, lambda t, n, steps: Natural()),
            Entry("PGD-7 AT", 8, lambda t, n, steps: PGDTraining(t, 7)),
            Entry("FGSM-RS", 2, lambda t, n, steps: FGSMRS(t)),
            Entry("Free m=4", 4, lambda t, n, steps: FreeTraining(t, 4), 0.5),
            Entry("YOPO-5-3", 5, lambda t, n, steps: YOPO(t, 5, 3)),
            Entry(
                "DAT c_max=0.5",
                8,
                lambda t, n, steps: DynamicTraining(t, 7, c_max=0.5, horizon=max(1, round(0.8 * steps))),
            ),
            Entry("TRADES β=6", 10, lambda t, n, steps: TRADES(t, 7)),
            Entry("SI-HG gs, random init, α=1", 2, lambda t, n, steps: SIHG(t, init="random", alpha=1.0)),
            Entry("SI-HG gs, bank, α=0.25", 2, lambda t, n, steps: SIHG(t, bank(n), alpha=0.25)),
            Entry("SI-HG gs, bank, α=0.5", 2, lambda t, n, steps: SIHG(t, bank(n), alpha=0.5)),
            Entry("SI-HG fused, bank, α=0.25", 1, lambda t, n, steps: SIHG(t, bank(n), order="fused")),
        )


def _digits() -> tuple[Split, Split]:
    """The digits of scikit-learn: 1,297 to train and 500 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return Split(pixels[train], labels[train]), Split(pixels[test], labels[test])


def _mnist() -> tuple[Split, Split]:
    """The 10,000 test images of MNIST, which is all there is here: 9,000 to train and 1,000 to test."""
    from given_networks import mnist_images

    pixels, labels = mnist_images(10_000)
    return Split(pixels[1000:], labels[1000:]), Split(pixels[:1000], labels[:1000])


def _cifar10() -> tuple[Split, Split]:
    """10,000 training and 1,000 test images of CIFAR-10 that went through JPEG."""
    from given_networks import cifar_images

    return Split(*cifar_images(10_000, part="train")), Split(*cifar_images(1000))


def _digits_network(seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
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


def _mnist_network(seed: int) -> nn.Module:
    """Two convolutions with strides and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _cifar10_network(seed: int) -> nn.Module:
    """Two convolutions with strides and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _sgd(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)


def _adam(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=rate)


STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        study.name: study
        for study in (
            Study("digits", "a small network", (1, 8, 8), 0.2, _digits, _digits_network, _sgd, 0.1),
            Study(
                "mnist",
                "a small network on 9,000 images",
                (1, 28, 28),
                0.2,
                _mnist,
                _mnist_network,
                _adam,
                2e-3,
            ),
            Study(
                "cifar10",
                "a small network on 10,000 images (JPEG: not comparable with published CIFAR-10)",
                (3, 32, 32),
                8 / 255,
                _cifar10,
                _cifar10_network,
                _adam,
                1e-3,
            ),
        )
    }
)
"""The sets by name."""
