"""The trained image networks and image sets of the data folder, for experiments and benchmarks.

    from scripts.given_networks import cifar_images, cifar_resnet, mnist_images, mnist_network
    classifier, (pixels, labels) = cifar_resnet(20), cifar_images(200)

Networks are `ImageClassifier` in evaluation mode, so pixels are in [0, 1] and normalization is inside. The
CIFAR-10 images are JPEG files, which is lossy: figures on them are not comparable with published ones.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.classifiers import ImageClassifier
from trainkit.datafiles import data_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def lenet5() -> nn.Sequential:
    """Two convolutions and two linear layers for 28 x 28 pixels, as AdverTorch trained them."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 64, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip


def small_cnn() -> nn.Sequential:
    """Four convolutions and three linear layers for 28 x 28 pixels, the MNIST network of TRADES."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 4 * 64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(),
        nn.Linear(200, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions beside a shortcut that drops pixels and adds channels of zeros where sizes change."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        found = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images)))))
        added = found.shape[1] - images.shape[1]
        short = images[:, :, :: self.stride, :: self.stride]
        if added:
            short = nn.functional.pad(short, (0, 0, 0, 0, added // 2, added - added // 2))
        return torch.relu(found + short)


class ResNet(nn.Module):
    """The CIFAR network of He et al. 2016, section 4.2: three groups of blocks, 16, 32, 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(32 if i else 16, 32, 1 if i else 2) for i in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(64 if i else 32, 64, 1 if i else 2) for i in range(blocks)))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu(self.bn1(self.conv1(images)))
        found = self.layer3(self.layer2(self.layer1(found)))
        logits: Tensor = self.linear(found.mean(dim=(2, 3)))
        return logits


def mnist_network(name: Literal["clean", "adversarial", "trades"]) -> ImageClassifier:
    """An MNIST network: LeNet-5 trained cleanly or adversarially (epsilon 0.3), or the small CNN of TRADES.

    Raises:
        FileNotFoundError: The weights are not in the data folder.
    """
    path = {
        "clean": lambda: data_file("weights/mnist/mnist_lenet5_clntrained.pt"),
        "adversarial": lambda: data_file("weights/mnist/mnist_lenet5_advtrained.pt"),
        "trades": lambda: data_file("weights/mnist/trades_mnist_smallcnn.pt"),
    }[name]()
    net = small_cnn() if name == "trades" else lenet5()
    _fill(net, torch.load(path, map_location="cpu", weights_only=True))
    return ImageClassifier(net.eval(), name=f"MNIST, {name}")


def cifar_resnet(depth: Literal[20, 56]) -> ImageClassifier:
    """A CIFAR-10 ResNet, trained without attacks.

    Raises:
        FileNotFoundError: The weights are not in the data folder.
    """
    path = {
        20: lambda: data_file("weights/cifar10_resnet/resnet20-12fca82f.th"),
        56: lambda: data_file("weights/cifar10_resnet/resnet56-4bfd9763.th"),
    }[depth]()
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = ResNet(depth)
    net.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ImageClassifier(net.eval(), mean=mean, std=std, labels=CLASSES, name=f"ResNet-{depth}")


def mnist_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some of the 10,000 MNIST test images, drawn by a seed.

    Returns:
        Pixels float32 ``(count, 1, 28, 28)`` in [0, 1] and labels int64 ``(count,)``.

    Raises:
        FileNotFoundError: The images are not in the data folder.
    """
    pixels = _idx(data_file("image/mnist/t10k-images-idx3-ubyte.gz"), header=16).reshape(-1, 1, 28, 28)
    labels = _idx(data_file("image/mnist/t10k-labels-idx1-ubyte.gz"), header=8)
    rows = random.Random(seed).sample(range(len(labels)), count)
    return torch.from_numpy(pixels[rows]).float() / 255, torch.from_numpy(labels[rows]).long()


def cifar_images(count: int, seed: int = 0, part: Literal["test", "train"] = "test") -> tuple[Tensor, Tensor]:
    """Some of 10,000 CIFAR-10 images to test, or of 10,000 to train, from JPEG files, drawn by a seed.

    Returns:
        Pixels float32 ``(count, 3, 32, 32)`` in [0, 1] and labels int64 ``(count,)``.

    Raises:
        FileNotFoundError: The images are not in the data folder.
    """
    from PIL import Image

    names = [f"{part}/{name}/{number:04d}.jpg" for name in CLASSES for number in range(1000)]
    chosen = random.Random(seed).sample(names, count)
    wanted, found = set(chosen), {}
    path = {
        "test": lambda: data_file("image/cifar10_jpeg/test.tar.xz"),
        "train": lambda: data_file("image/cifar10_jpeg/train_part0.tar.xz"),
    }[part]()
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in wanted:
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    pixels = torch.from_numpy(np.stack([found[name] for name in chosen])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([CLASSES.index(name.split("/")[1]) for name in chosen])
    return pixels.float() / 255, labels


def _fill(net: nn.Sequential, weights: dict[str, Tensor]) -> None:
    """Weights by their order: the networks were saved with names of their own."""
    own = net.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in weights.values()]:
        raise ValueError("the weights' shapes are not those of the network")
    net.load_state_dict(dict(zip(own, weights.values(), strict=True)))


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).copy()
