"""RectGrad, guided backpropagation, deconvolution in networks, against hooks and autograd (R1 to R10, D3)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.interpret import Deconvolution, Gradient, GuidedBackprop, RectGrad, explain
from robustkit.interpret.rules import kept_units

from .nets import Entwined, autograd, by_hooks, cnn, images, mlp

RAW = {"final": "none"}


def rect(net: nn.Module, x: Tensor, **settings: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return explain(net, x, RectGrad(**(RAW | settings))).values


def guided(relevance: Tensor, output: Tensor) -> Tensor:
    return relevance * (output > 0) * (relevance > 0)


def published(relevance: Tensor, output: Tensor, q: float) -> Tensor:
    """Equation (1) by sorting, one sample at a time."""
    found = torch.zeros_like(relevance)
    for i in range(len(relevance)):
        scores = (output[i] * relevance[i]).flatten()
        threshold = scores.sort().values[round(q / 100 * (len(scores) - 1))]
        found[i] = torch.where(output[i] * relevance[i] > threshold, relevance[i], 0)
    return found


def test_the_gradient_is_autograds_and_times_input_multiplies() -> None:
    net, x = cnn(), images()
    assert torch.allclose(explain(net, x, "gradient").values, autograd(net, x))
    assert torch.allclose(explain(net, x, Gradient(times_input=True)).values, autograd(net, x) * x)


@pytest.mark.parametrize("q", [0, 20, 50, 80, 95, 98])
def test_rectgrad_is_equation_1_by_hooks(q: float) -> None:
    net, x = cnn(), images()
    wanted = by_hooks(net, x, lambda relevance, output: published(relevance, output, q))
    assert torch.allclose(rect(net, x, q=q, min_keep=0), wanted)
    assert wanted.abs().sum() > 0


def test_the_final_map_is_relevance_times_input() -> None:
    net, x = cnn(), images()
    relevance = rect(net, x, q=80)
    assert torch.allclose(rect(net, x, q=80, final="times_input"), relevance * x)
    assert torch.allclose(rect(net, x, q=80, final="times_input_relu"), (relevance * x).clamp(min=0))


def test_r1_a_threshold_of_zero_is_guided_backpropagation() -> None:
    net, x = cnn(), images()
    wanted = by_hooks(net, x, guided)
    assert torch.allclose(rect(net, x, tau=0.0), wanted) and wanted.abs().sum() > 0
    assert torch.allclose(explain(net, x, "guided_backprop").values, wanted)


def test_r2_a_score_that_counts_inactive_units_is_deconvolution() -> None:
    net, x = cnn(), images()

    def tiny(relevance: Tensor, output: Tensor) -> Tensor:
        return torch.where(kept_units((output + 1e-12) * relevance, tau=0.0, min_keep=0), relevance, 0)

    wanted = by_hooks(net, x, lambda relevance, output: relevance.clamp(min=0))
    assert torch.allclose(by_hooks(net, x, tiny), wanted)
    assert torch.allclose(explain(net, x, "deconvolution").values, wanted)
    assert not torch.allclose(wanted, by_hooks(net, x, guided))


def test_r3_on_the_plateau_of_zeros_it_is_guided_backpropagation_bit_for_bit() -> None:
    net, x = cnn(), images()
    shares = []

    def watch(relevance: Tensor, output: Tensor) -> Tensor:
        scores = (output * relevance).flatten(1)
        rank = round(0.5 * (scores.shape[1] - 1)) + 1
        shares.append((((scores < 0).sum(1) < rank) & (rank <= (scores <= 0).sum(1))).all())
        return guided(relevance, output)

    by_hooks(net, x, watch)
    assert all(shares)  # the condition of the statement
    assert torch.equal(rect(net, x, q=50), explain(net, x, "guided_backprop").values)


def test_r4_q_0_is_not_the_gradient_but_on_a_network_without_negative_weights() -> None:
    x = torch.randn(50, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net = mlp(10, 64, 64, 3)
    assert not torch.allclose(rect(net, x, q=0), autograd(net, x), atol=1e-3)
    second, third = net[2], net[4]
    assert isinstance(second, nn.Linear) and isinstance(third, nn.Linear)
    with torch.no_grad():
        second.weight.abs_(), third.weight.abs_()
        second.bias -= 0.25 * second.weight.sum(dim=1)
        hidden = net[1](net[0](x))
        inactive = torch.minimum((hidden == 0).sum(1), (net[3](net[2](hidden)) == 0).sum(1))
    for q in (0, 5, 20):
        fits = inactive >= round(q / 100 * 63) + 1
        assert fits.sum() >= 3
        assert torch.allclose(rect(net, x[fits], q=q), autograd(net, x[fits]))
        if q:
            other = (inactive < round(q / 100 * 63) + 1) & (inactive > 0)
            differs = (rect(net, x[other], q=q) - autograd(net, x[other])).abs().amax(dim=1)
            assert (differs > 1e-6).all() and other.any()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Mish, nn.Softplus])
@pytest.mark.parametrize("score", ["output", "input"])
def test_r5_the_gated_rule_at_q_0_is_the_gradient(activation: type[nn.Module], score: str) -> None:
    net, x = mlp(6, 20, 20, 3, activation=activation), images(5)[:, 0, 0, :6]
    assert torch.allclose(rect(net, x, rule="gated", q=0, score=score), explain(net, x, "gradient").values)
    assert not torch.allclose(
        rect(net, x, rule="gated", q=80, score=score), explain(net, x, "gradient").values
    )


class Clamped(nn.Module):
    """A convolution, a clamp at zero, a linear layer."""

    def __init__(self, clamp: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        layers = cnn()
        assert isinstance(layers[0], nn.Conv2d)
        self.below, self.clamp = layers[0], clamp
        self.pool, self.head = nn.Flatten(), nn.Linear(6 * 64, 3, bias=False).double()
        self.head.weight.data.copy_(torch.sin(torch.arange(3.0 * 6 * 64)).view(3, -1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.pool(self.clamp(self.below(x))))
        return found


CLAMPS = [
    lambda y: y.clamp(min=0),
    lambda y: torch.clamp_min(y, 0),
    lambda y: y.clip(0),
    lambda y: y.clamp_(min=0),
    lambda y: y.clamp_min_(0),
    lambda y: y.clip_(0),
    lambda y: torch.clamp_(y, 0),
]


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("zero", [False, True])
def test_r5_the_gated_rule_at_q_0_is_the_gradient_of_a_clamp(clamp: Any, zero: bool) -> None:
    net, x = Clamped(clamp).eval(), images()
    if zero:  # many units read 0 exactly, where a clamp's derivative is 1
        x[:, :, :4] = 0
        assert net.below.bias is not None
        net.below.bias.data.zero_()
    for score in ("output", "input"):
        assert torch.allclose(rect(net, x, rule="gated", q=0, score=score), autograd(net, x))


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize(
    "method", [RectGrad(q=70, final="none"), GuidedBackprop(), Deconvolution(), Gradient()]
)
def test_r10_a_clamp_at_zero_is_a_relu(clamp: Any, method: Any) -> None:
    x = images()
    wanted, found = explain(Clamped(F.relu).eval(), x, method), explain(Clamped(clamp).eval(), x, method)
    assert torch.allclose(found.values, wanted.values) and wanted.values.abs().sum() > 0
    if not isinstance(method, Gradient):
        assert found.activations is not None and dict(found.activations.treated) == {"relu": 1}


def test_r6_a_batch_gives_the_maps_of_its_inputs() -> None:
    net, x = cnn(), images()
    for method in (RectGrad(q=90), RectGrad(q=90, rule="gated"), GuidedBackprop(), Deconvolution()):
        whole = explain(net, x, method).values
        alone = torch.cat([explain(net, x[i : i + 1], method).values for i in range(4)])
        assert torch.equal(whole, alone)
        assert torch.equal(whole, explain(net, x, method, batch_size=3).values)


def test_r7_a_scaled_logit_scales_the_map() -> None:
    net, x = cnn(), images()
    larger = copy.deepcopy(net)
    head = larger[-1]
    assert isinstance(head, nn.Linear)
    head.weight.data *= 7
    head.bias.data *= 7
    assert torch.allclose(rect(larger, x, q=90), 7 * rect(net, x, q=90))


def test_r8_rescaling_between_layers_changes_nothing() -> None:
    net, x = mlp(6, 30, 30, 3), images(4)[:, 0, 0, :6]
    other = copy.deepcopy(net)
    first, second = other[0], other[2]
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    first.weight.data *= 8
    first.bias.data *= 8
    second.weight.data /= 8
    assert torch.allclose(rect(net, x, q=80), rect(other, x, q=80))


@pytest.mark.parametrize("style", ["functional", "discarded", "reused"])
@pytest.mark.parametrize(
    "method", [RectGrad(q=70, final="none"), GuidedBackprop(), Deconvolution(), Gradient()]
)
def test_r10_however_a_relu_is_written_the_map_is_the_same(style: str, method: Any) -> None:
    x = images(5)[:, 0, 0, :6]
    plain, other = Entwined("modules"), Entwined(style)
    assert torch.allclose(plain(x), other(x))
    wanted = explain(plain, x, method)
    found = explain(other, x, method)
    assert torch.allclose(found.values, wanted.values) and wanted.values.abs().sum() > 0
    if not isinstance(method, Gradient):
        assert found.activations is not None and dict(found.activations.treated) == {"relu": 3}


def test_prr_replaces_the_max_pools_gradient() -> None:
    net, x = cnn(), images()
    a = explain(net, x, RectGrad(q=50, prr=True, final="none"))
    assert a.activations is not None and a.activations.treated["max_pool2d"] == 1
    # By hand: through the head and the second ReLU, the pool, the first ReLU.
    with torch.no_grad():
        first = net[1](net[0](x))
    half = nn.Sequential(*list(net)[3:])
    upper = by_hooks(half, net[2](first).detach(), lambda relevance, output: published(relevance, output, 50))
    windows = F.unfold(first, 2, stride=2).view(4, 6, 4, 16)
    shared = (windows / (windows.sum(2, keepdim=True) + 1e-12)) * upper.view(4, 6, 1, 16)
    below = F.fold(shared.view(4, 24, 16), 8, 2, stride=2)
    leaf = x.clone().requires_grad_()
    net[0](leaf).backward(published(below, first, 50))
    assert leaf.grad is not None and torch.allclose(a.values, leaf.grad, atol=1e-7)
    with pytest.raises(ValueError, match="negative numbers"):
        explain(nn.Sequential(nn.MaxPool2d(2), *list(cnn())[3:-1], nn.Linear(128, 3).double()).eval(),
                images(2)[:, :1].expand(-1, 6, -1, -1), RectGrad(prr=True))  # fmt: skip


def test_r13_the_padding_trick_zeroes_the_ring_above_each_convolution() -> None:
    net, x = cnn(), images()
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            if y.requires_grad:
                y.register_hook(seen.append)
            return y

    spied = nn.Sequential(Spy(), *net[:1], *list(net)[1:]).eval()
    plain = rect(spied, x, tau=0.0)
    zeroed = rect(spied, x, tau=0.0, border="zero")
    assert not torch.allclose(plain, zeroed)
    # By hand: the ring of what arrives above each convolution is cut.
    leaf = x.clone().requires_grad_()
    first = net[0](leaf)
    a = net[1](first)
    second = net[3](net[2](a))
    b = net[4](second)
    ((up,),) = (torch.autograd.grad(net[6](net[5](b)).amax(1).sum(), b, retain_graph=True),)
    up = F.pad(guided(up, b)[..., 1:-1, 1:-1], (1, 1, 1, 1))
    (down,) = torch.autograd.grad(second, a, up, retain_graph=True)
    down = F.pad(guided(down, a)[..., 1:-1, 1:-1], (1, 1, 1, 1))
    (wanted,) = torch.autograd.grad(first, leaf, down)
    assert torch.allclose(zeroed, wanted)


def test_d13_maps_that_are_all_border_are_left_with_a_warning() -> None:
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        .double()
        .eval()
    )
    x = images(2)[..., :2, :2]
    with pytest.warns(UserWarning, match="all is border"):
        found = explain(net, x, RectGrad(tau=0.0, border="zero"))
    assert torch.equal(found.values, explain(net, x, RectGrad(tau=0.0)).values)


class Functional(nn.Module):
    """Two linear layers around any function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 3)]).double()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers[1](self.function(self.layers[0](x)))
        return found


@pytest.mark.parametrize("method", [GuidedBackprop(), Deconvolution(), RectGrad()])
def test_d3_functional_relus_are_caught_and_other_activations_refused(method: Any) -> None:
    x = images(4)[:, 0, 0, :6]
    net = Functional(F.relu)
    found = explain(net, x, method)
    assert found.activations is not None and found.activations.treated["relu"] == 1
    assert not torch.allclose(found.values, explain(net, x, "gradient").values)
    for function, name in ((F.gelu, "gelu"), (F.silu, "silu"), (F.elu, "elu"), (F.leaky_relu, "leaky_relu")):
        with pytest.raises(ValueError, match=f"activation {name}, and this rule is defined for ReLU only"):
            explain(Functional(function), x, method)
    for function in (torch.sin, torch.tanh):
        with pytest.raises(ValueError, match="calls no ReLU"):
            explain(Functional(function), x, method)


def test_d9_transformers_activations_are_gated_whole_however_they_are_computed() -> None:
    from transformers.activations import ACT2FN

    x = images(4)[:, 0, 0, :6]
    for key, name in (("gelu", "gelu"), ("gelu_new", "newgelu"), ("gelu_fast", "fastgelu"),
                      ("quick_gelu", "quickgelu"), ("relu2", "relusquared"),
                      ("gelu_python", "gelu")):  # fmt: skip
        net = Functional(ACT2FN[key])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is left alone, so there is nothing to warn about
            a = explain(net, x, RectGrad(rule="gated", q=0, final="none"))
        assert a.activations is not None
        assert dict(a.activations.treated) == {name: 1} and dict(a.activations.left_alone) == {}, key
        assert torch.allclose(a.values, explain(net, x, "gradient").values)
        assert not torch.allclose(rect(net, x, rule="gated", q=80), a.values)
        assert not net.function._forward_hooks and not net.function._forward_pre_hooks


def test_what_the_gated_rule_leaves_is_said() -> None:
    net = Functional(lambda h: F.layer_norm(F.silu(h) * torch.sigmoid(h), (12,)))
    with pytest.warns(UserWarning, match="leaves layer_norm, product, sigmoid as they are"):
        a = explain(net, images(2)[:, 0, 0, :6], "rectgrad_gated")
    assert a.activations is not None and a.activations.left_alone["product"] == 1


def test_an_activation_that_mixes_samples_is_refused() -> None:
    net = Functional(lambda h: F.relu(h.reshape(-1, 6)).reshape(-1, 12))
    with pytest.raises(ValueError, match="first axis must be the input"):
        explain(net, images(2)[:, 0, 0, :6], "rectgrad")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"q": 101}, "q is 101"), ({"min_keep": -1}, "min_keep"), ({"rule": "own"}, "rule is 'own'"),
     ({"border": "x"}, "border"), ({"final": "x"}, "final"), ({"score": "input"}, "rule='gated'")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RectGrad(**settings)


def test_captum_agrees() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = cnn(), images()
    with torch.no_grad():
        target = net(x).argmax(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(rect(net, x, tau=0.0), attr.GuidedBackprop(net).attribute(x, target=target))
        assert torch.allclose(
            explain(net, x, "deconvolution").values, attr.Deconvolution(net).attribute(x, target=target)
        )
