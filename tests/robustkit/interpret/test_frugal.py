"""Passes that keep little: the same numbers as torch's own, less kept, and nothing of the model changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustkit.interpret import (
    XRAI,
    Gradient,
    GuidedBackprop,
    IntegratedGradients,
    RectGrad,
    SmoothGrad,
    explain,
    frugal,
    subjects,
)
from robustkit.interpret.frugal import Frugal, gradient_by_phases


class Net(nn.Module):
    """All that is treated, in 64 bits: images (3, 16, 16) to four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.Conv2d(32, 8, 3, padding="same")
        self.norm, self.after = nn.BatchNorm2d(32), nn.BatchNorm2d(8, affine=False)
        self.line, self.head = nn.Conv1d(8, 6, 2), nn.Linear(6, 4)
        self.block = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = F.avg_pool2d(F.relu(self.after(self.next(x)), True), 2)
        x = x + F.relu(self.block(x[:, None])[:, 0], inplace=True)
        found: Tensor = self.head(torch.relu(self.line(x.flatten(2)).tanh()).mean(dim=2))
        return found


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().double()
        with torch.no_grad():
            for _ in range(10):
                model(torch.randn(16, 3, 16, 16, dtype=torch.float64))
            model.norm.weight.uniform_(-2, 2), model.norm.bias.normal_()
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frugal, "WORTHWHILE", 1)


def pictures(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=generator)


def slope(model: Callable[[Tensor], Tensor], x: Tensor, thrifty: bool) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    with Frugal() if thrifty else nullcontext():
        logits = model(leaf)
    (found,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), found


def same(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    (logits, gradient), (wanted, expected) = slope(model, x, True), slope(model, x, False)
    assert torch.equal(logits, wanted)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12) and expected.abs().max() > 1e-6


@settings(deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(2, 4),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
)
def test_the_gradient_by_phases_is_the_gradient(
    kernel: tuple[int, int], stride: int, padding: tuple[int, int], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64, generator=generator)
    output = F.conv2d(x, weight, stride=stride, padding=padding)
    above = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    (wanted,) = torch.autograd.grad(output, x, above)
    assert torch.allclose(gradient_by_phases(above, weight, size, stride, padding), wanted, atol=1e-12)


def test_numbers_are_those_of_a_plain_pass(net: Net) -> None:
    same(net, pictures())
    leaf = pictures().float().requires_grad_()
    narrow = copy.deepcopy(net).float()
    with Frugal():
        logits = narrow(leaf)
    # To the last bit: no unit near zero may change sides.
    assert torch.equal(logits, narrow(leaf))


def kept(logits: Tensor) -> list[Tensor]:
    """All that a graph keeps."""
    found, open_nodes, seen = [], [logits.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                value = getattr(node, name)
                found += [one for one in (value if isinstance(value, tuple) else (value,))]
        open_nodes += [below for below, _ in node.next_functions]
    return [one for one in found if isinstance(one, Tensor)]


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="passes are frugal from torch 2.8",
)
@pytest.mark.parametrize("thrifty", [False, True])
def test_no_activation_is_kept(net: Net, thrifty: bool) -> None:
    read: list[Tensor] = []
    layers = (net.norm, net.next, net.after, net.line, net.block)
    handles = [layer.register_forward_pre_hook(lambda _, args: read.append(args[0])) for layer in layers]
    with Frugal() if thrifty else nullcontext():
        logits = net(pictures().requires_grad_())
    for handle in handles:
        handle.remove()
    # What was read is alive here, so nothing else can lie in its place.
    places = {one.data_ptr() for one in kept(logits)}
    alive = [one.data_ptr() in places for one in read]
    assert alive == [not thrifty] * len(layers)
    masks = [one for one in kept(logits) if one.dtype == torch.bool]
    # What is written into a view is left alone.
    assert len(masks) == (3 if thrifty else 0)


def test_little_is_left_alone(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frugal, "WORTHWHILE", 3 * 32 * 8 * 8 + 1)
    with Frugal():
        logits = net(pictures().requires_grad_())
    assert [one for one in kept(logits) if one.dtype == torch.bool] == []


@pytest.mark.parametrize(
    "model",
    [
        lambda x: F.relu(x * 2),
        lambda x: (x * 2).relu() + 1,
        lambda x: (x * 2).relu_(),
        lambda x: torch.relu_(x * 2),
        lambda x: F.relu(input=x * 2),
        lambda x: (lambda y: y[:, 1:].relu_() + 0 * y[:, 1:] + y[:, :1])(x * 2),
        lambda x: torch.func.vmap(lambda one: F.relu(one) * 2)(x * 2),
        lambda x: torch.func.grad(lambda one: F.relu(one).pow(3).sum())(x * 2),
        lambda x: F.max_pool2d(x * 2, 2, return_indices=True)[0],
        lambda x: F.avg_pool2d((x * 2).transpose(2, 3), 2),
        lambda x: F.conv2d(x * 2, x[:2, :, :3, :3]),
        lambda x: (lambda y: F.conv2d(y, y.detach(), padding=4))(x * 2),
        lambda x: F.batch_norm(x * 2, None, None, training=True),
        lambda x: F.batch_norm(x * 2, torch.ones(3).double(), torch.full((3,), 4.0).double()),
        lambda x: torch.batch_norm(
            x * 2, torch.full((3,), 3.0).double(), torch.ones(3).double(), torch.zeros(3).double(),
            torch.full((3,), 4.0).double(), False, 0.1, 1e-5, False,
        ),
    ],
)  # fmt: skip
def test_calls_of_every_form(model: Callable[[Tensor], Tensor]) -> None:
    same(model, pictures())


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    "above",
    [
        torch.sqrt,
        lambda y: y.sqrt().mean((2, 3)),
        lambda y: y.pow(0.5),
    ],
)
def test_no_gradient_passes_an_inactive_unit_not_even_one_that_is_no_number(
    wide: bool, above: Callable[[Tensor], Tensor]
) -> None:
    x = pictures() if wide else pictures().float()
    found, wanted = (slope(lambda x: above(F.relu(x * 2)), x, thrifty)[1] for thrifty in (True, False))
    assert not found.isnan().any() and torch.allclose(found, wanted, rtol=1e-5)
    assert (wanted[x > 0] != 0).any() and (wanted[x < 0] == 0).all()


def test_a_unit_that_is_no_number_shows_in_the_gradient() -> None:
    x = pictures()
    x[0, 0, 0, 0] = float("nan")
    found, wanted = (slope(lambda x: F.relu(x * 2), x, thrifty)[1] for thrifty in (True, False))
    assert torch.allclose(found, wanted, equal_nan=True) and wanted.isnan().sum() == 1


def narrow_layers(x: Tensor) -> Tensor:
    """Normalization and a ReLU in 32 bits, where memory is chosen by hand."""
    variance = torch.full((3,), 4.0)
    return F.relu(F.batch_norm(x * 2, torch.ones(3), variance)).square()


@pytest.mark.parametrize("transform", [False, True])
def test_many_gradients_at_once(transform: bool) -> None:
    found = []
    for context in (Frugal(), nullcontext()):
        leaf = pictures().float().requires_grad_()
        with context:
            output = narrow_layers(leaf)
        above = torch.stack([torch.ones_like(output), output.detach() - 1])
        if transform:
            pull = torch.func.vmap(lambda one: torch.autograd.grad(output, leaf, one)[0])  # noqa: B023
            found.append(pull(above))
        else:
            found.append(torch.autograd.grad(output, leaf, above, is_grads_batched=True)[0])
    assert torch.allclose(found[0], found[1]) and found[1].abs().max() > 1e-6


def test_forward_mode_is_left_alone() -> None:
    found = []
    for context in (Frugal(), nullcontext()):
        with torch.autograd.forward_ad.dual_level(), context:
            leaf = pictures().float().requires_grad_()
            dual = torch.autograd.forward_ad.make_dual(leaf, torch.ones_like(leaf))
            output = narrow_layers(dual)
            found.append(torch.autograd.forward_ad.unpack_dual(output).tangent.detach())
    assert torch.allclose(found[0], found[1]) and found[1].abs().max() > 1e-6


def test_all_is_left_alone_where_nobody_can_ask_who_keeps(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.8."""
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    with Frugal():
        logits = net(pictures().requires_grad_())
    assert [one for one in kept(logits) if one.dtype == torch.bool] == []


def test_pools_of_other_devices_are_left_alone() -> None:
    x = torch.empty(2, 3, 8, 8, device="meta", requires_grad=True)
    with Frugal():
        output = F.max_pool2d(x * 2, 2)
    (saved,) = (one for one in kept(output) if one.shape == x.shape)
    assert saved.stride() == x.stride()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_network_with_checkpoints_is_left_alone(net: Net, reentrant: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        found: Tensor = checkpoint(net, x, use_reentrant=reentrant)
        return found

    x = pictures().requires_grad_()
    wanted = slope(net, pictures(), False)[1]
    with Frugal():
        logits = forward(x)
    logits.square().sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, wanted, rtol=1e-10, atol=1e-12)


def test_weights_that_take_gradients_get_theirs(net: Net) -> None:
    found = []
    for context in (Frugal(), nullcontext()):
        model = copy.deepcopy(net).requires_grad_(True)
        with context:
            logits = model(pictures().requires_grad_())
        found.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
    for mine, wanted in zip(*found, strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-12) and wanted.abs().max() > 0


def test_the_second_derivative_is_that_of_a_plain_pass(net: Net) -> None:
    found = []
    for context in (Frugal(), nullcontext()):
        leaf = pictures(1).requires_grad_()
        with context:
            score = net(leaf).square().sum()
        (first,) = torch.autograd.grad(score, leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12) and found[1].abs().max() > 1e-6


@pytest.mark.parametrize(
    "method",
    [
        Gradient(),
        SmoothGrad(n=4),
        IntegratedGradients(steps=4),
        GuidedBackprop(),
        RectGrad(q=80),
        RectGrad(q=80, rule="gated", score="input"),
        XRAI(steps=3, side=16, min_pixels=4),
    ],
)
@pytest.mark.filterwarnings("ignore:RectGrad-gated")
def test_every_methods_map_is_that_of_plain_passes(
    net: Net, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pictures()
    found = explain(net, x, method, batch_size=2)
    monkeypatch.setattr(subjects, "Frugal", nullcontext)
    wanted = explain(net, x, method, batch_size=2)
    assert torch.allclose(found.values, wanted.values, rtol=1e-9, atol=1e-10)
    assert wanted.values.abs().max() > 1e-6


def test_two_explanations_at_once_leave_the_model_as_it_was(net: Net) -> None:
    model = copy.deepcopy(net).requires_grad_(True)
    model.head.bias.requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    x = pictures(4)
    wanted = [explain(model, part, SmoothGrad(n=8), batch_size=4).values for part in x.split(2)]
    found: dict[int, Tensor] = {}
    start = threading.Barrier(2)

    def work(number: int, part: Tensor) -> None:
        start.wait()
        for _ in range(5):
            found[number] = explain(model, part, SmoothGrad(n=8), batch_size=4).values

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(x.split(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(found[i], one, rtol=1e-9, atol=1e-10) for i, one in enumerate(wanted))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1], name
        assert value.grad is None


def test_both_ends_of_a_path_take_one_pass(net: Net) -> None:
    passes: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    found = explain(net, pictures(2), IntegratedGradients(steps=4, baseline=0.5))
    handle.remove()
    assert passes == [4, 8]
    assert found.delta is not None
    gap = found.values.flatten(1).sum(dim=1) - found.delta
    rise = found.output - net(torch.full_like(pictures(2), 0.5)).gather(1, found.target[:, None])[:, 0]
    assert torch.allclose(gap, rise)
