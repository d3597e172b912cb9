"""Small networks for attribution tests, and backward passes written independently of the package."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rule = Callable[[Tensor, Tensor], Tensor]
"""From relevance and a ReLU's output to the relevance below."""


def mlp(
    *sizes: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0, bias: bool = True
) -> nn.Sequential:
    """A float64 network in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (read, give) in enumerate(pairwise(sizes)):
        layer = nn.Linear(read, give, bias=bias, dtype=torch.float64)
        layer.weight.data = torch.randn(give, read, generator=generator, dtype=torch.float64) / read**0.5
        if bias:
            layer.bias.data = torch.randn(give, generator=generator, dtype=torch.float64) * 0.2
        layers += [layer] if i == len(sizes) - 2 else [layer, activation()]
    return nn.Sequential(*layers).eval()


def cnn(seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """A float64 network of images (3, 8, 8) with two convolutions, a max-pool and three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), activation(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), activation(), nn.Flatten(), nn.Linear(8 * 16, 3),
        )  # fmt: skip
    return net.double().eval()


def images(n: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)


def by_hooks(net: nn.Module, x: Tensor, rule: Rule) -> Tensor:
    """The relevance of the largest logit at the input, by backward hooks on a copy's ReLU modules.

    An implementation of its own: the rule replaces what the ReLU module passes back.
    """
    outputs: dict[nn.Module, Tensor] = {}
    handles = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):

            def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
                outputs[module] = output.detach()

            def replace(module: nn.Module, below: Any, above: Any) -> tuple[Tensor]:
                return (rule(above[0], outputs[module]),)

            handles += [module.register_forward_hook(keep), module.register_full_backward_hook(replace)]
    leaf = x.clone().requires_grad_()
    net(leaf).amax(dim=1).sum().backward()
    for handle in handles:
        handle.remove()
    for weight in net.parameters():
        weight.grad = None
    assert leaf.grad is not None
    return leaf.grad


def autograd(net: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the largest logit."""
    return by_hooks(net, x, lambda relevance, output: relevance * (output > 0))


class Entwined(nn.Module):
    """The same function written with modules apart, or with functional, in-place and reused ReLUs.

    A shortcut reads the tensor again after an in-place ReLU, so that its values must have changed.
    """

    def __init__(self, style: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.double().eval()
        self.style = style
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.ReLU()])
        self.shared = nn.ReLU(inplace=True)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        match self.style:
            case "modules":
                a = self.relus[0](h)
                b = self.relus[1](self.second(a))
                return self.head(self.relus[2](a + b - 0.3))
            case "functional":
                a = F.relu(h)
                b = torch.relu(self.second(a))
                return self.head((a + b - 0.3).clamp(min=0))
            case "discarded":  # what in-place ReLUs return is not used
                h.relu_()
                b = self.second(h)
                F.relu(b, inplace=True)
                c = h + b - 0.3
                torch.relu_(c)
                return self.head(c)
            case _:
                self.shared(h)
                b = self.shared(self.second(h))
                return self.head(self.shared(h + b - 0.3))
