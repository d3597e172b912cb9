"""Stand-ins for convolutions: the same numbers, and the model afterwards as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import APGD, PGD, LInf, judging
from robustkit.attacks.gradient.standins import AT_ONCE, standing_in
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says


class Residual(nn.Module):
    """Batch norm behind a convolution, before one, and on an output that is used twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, 6, 3, bias=False)
        self.norm, self.after = nn.BatchNorm2d(32), nn.BatchNorm2d(6, affine=False)
        self.head, self.twice = nn.Linear(6, 5), twice

    def forward(self, images: Tensor) -> Tensor:
        made = self.first(images)
        found = torch.relu(self.norm(made)) + (made if self.twice else 0)
        logits: Tensor = self.head(self.after(self.second(found)).mean(dim=(2, 3)))
        return logits


def network(twice: bool = False) -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual(twice)
        with torch.no_grad():
            for _ in range(20):
                net(2 * torch.rand(64, 3, 8, 8))
            net.norm.weight.uniform_(-2, 2), net.norm.bias.normal_()
    return net.eval()


def slope(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient


def kinds(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


@pytest.mark.parametrize("twice", [False, True])
def test_logits_and_gradients_are_the_same(twice: bool) -> None:
    model, x = network(twice), pixels()
    expected = slope(model, x)
    quick = standing_in(model, x)
    # An output that is used twice must not be changed: the network then stays as it is.
    assert (quick is not model) == (not twice) and ("_StandIn" in kinds(quick)) == (not twice)
    found = slope(quick, x)
    assert not any(
        p.requires_grad for m in quick.modules() if type(m).__name__ == "_StandIn" for p in m.parameters()
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_goes_into_the_convolution_before_it_only() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    with torch.no_grad():
        model(pixels())
    model.eval()
    expected = slope(model, pixels())
    quick = standing_in(model, pixels())
    assert kinds(quick)[1:7] == ["BatchNorm2d", "_StandIn", "ReLU", "BatchNorm2d", "_StandIn", "Identity"]
    torch.testing.assert_close(slope(quick, pixels())[1], expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3}, {"kernel_size": 3, "padding": 1, "bias": False}, {"kernel_size": 1},
        {"kernel_size": (2, 5), "stride": (2, 3)}, {"kernel_size": 3, "stride": 2, "padding": (0, 2)},
        {"kernel_size": 3, "dilation": 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_a_narrow_first_layer(settings: dict[str, Any], channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 40, **settings), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.rand(5, channels, 9, 11)
    model(x)
    expected = slope(model.eval(), x)
    quick = standing_in(model, x)
    assert quick[0].narrow == ("dilation" not in settings)
    found = slope(quick, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_model_itself_is_not_touched() -> None:
    model = network()
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    before = [(type(m), set(vars(m)), dict(m._parameters), dict(m._modules)) for m in modules]
    quick = standing_in(model, pixels())
    assert [(type(m), set(vars(m)), dict(m._parameters), dict(m._modules)) for m in modules] == before
    assert quick is not model and not set(quick.modules()) & set(modules)
    slope(quick, pixels())
    assert list(model.modules()) == modules and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.is_contiguous()


def test_a_module_that_stands_in_two_places_does_so_in_the_copy() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(4))
    model(pixels())
    quick = standing_in(model.eval(), pixels())
    assert quick is not model and quick[0] is quick[2] and isinstance(quick[3], nn.BatchNorm2d)
    torch.testing.assert_close(quick(pixels()), model(pixels()), rtol=1e-4, atol=1e-5)


class Viewing(nn.Module):
    """Cannot take channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        logits: Tensor = self.head(found.view(len(found), -1))
        return logits


class InPlace(nn.Module):
    """Writes into what the convolution gave before the batch norm reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(images).mul_(3)).mean(dim=(2, 3)))
        return logits


class Reading(nn.Module):
    """Reads a number of its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(images)).mean(dim=(2, 3))) * self.norm.weight.sum()
        return logits


class Mixed(nn.Module):
    """Turns on lower precision by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.relu(self.conv(images)).mean(dim=(2, 3))
        logits: Tensor = self.head(found.float())
        return logits


class Squeezing(nn.Module):
    """Loses the first dimension of a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).amax(dim=(2, 3), keepdim=True).squeeze().softmax(dim=1)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).mean(dim=(2, 3)))
        return logits + torch.randn_like(logits)


def hooked() -> nn.Module:
    model = network()
    model.head.register_forward_hook(lambda module, arguments, output: None)
    return model


def compiled_within() -> nn.Module:
    model = network()
    model.first = torch.compile(model.first)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (Viewing(), pixels()), (hooked(), pixels()), (nn.Linear(3, 2), torch.rand(4, 3)),
        (network().double(), pixels().double()), (network().bfloat16(), pixels()), (lambda x: x, pixels()),
        (Reading().eval(), pixels()), (Noisy(), pixels()), (compiled_within(), pixels()),
        (Squeezing(), pixels(1)),
    ],
    ids=[
        "view", "hook", "no convolution", "float64", "bfloat16 weights", "function", "read batch norm",
        "random", "compiled part", "one image",
    ],
)  # fmt: skip
def test_what_does_not_suit_is_left_alone(model: Any, images: Tensor) -> None:
    assert standing_in(model, images) is model


def test_what_is_written_in_place_is_not_folded() -> None:
    model = InPlace().eval()
    quick = standing_in(model, pixels())
    assert quick is not model and isinstance(quick.norm, nn.BatchNorm2d)
    torch.testing.assert_close(slope(quick, pixels())[0], slope(model, pixels())[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [Mixed(), Squeezing(), Reading().eval()])
def test_networks_with_ways_of_their_own_are_attacked(model: Any) -> None:
    x = pixels(AT_ONCE + 1)
    found = PGD(LInf(0.05), steps=2, early_stop=False).run(model, x, says(model, x))
    assert bool((found.backwards == 2).all()) and bool((found.perturbed != x).any())


@pytest.mark.parametrize("attack", [PGD(LInf(0.02), steps=8, early_stop=False), APGD(LInf(0.02), steps=8)])
def test_attacks_find_the_same_with_and_without(attack: Any) -> None:
    """More images than go at once, so that parts are put together again; a hook keeps stand-ins away."""
    model, x = convolutions(), pixels(2 * AT_ONCE + 3)
    y = says(model, x)
    with judging(model):
        assert standing_in(model, x) is not model
    fast = attack.run(model, x, y)
    handle = model[0].register_forward_hook(lambda module, arguments, output: None)
    plain = attack.run(model, x, y)
    handle.remove()
    assert 0 < int(plain.success.sum()) < len(x)
    # An image at the very edge of a class may fall on either side of it.
    alike = fast.success == plain.success
    assert int((~alike).sum()) <= 1
    assert torch.equal(fast.forwards[alike], plain.forwards[alike])
    assert torch.equal(fast.backwards[alike], plain.backwards[alike])
    assert int((fast.success != (says(model, fast.perturbed) != y)).sum()) <= 1
