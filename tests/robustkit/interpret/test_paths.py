"""Integrated gradients: completeness, orders of the rules, exact cases (I1 to I5, D10)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from robustkit.interpret import Gradient, IntegratedGradients, explain
from robustkit.interpret.paths import quadrature

from .nets import images, mlp


def gap(rule: Any, steps: int) -> float:
    net, x = mlp(5, 16, 16, 3, activation=nn.Tanh), images(4)[:, 0, 0, :5]
    delta = explain(net, x, IntegratedGradients(rule=rule, steps=steps), target=1).delta
    assert delta is not None
    return float(delta.abs().mean())


@pytest.mark.parametrize("baseline", [None, 0.7])
def test_i1_and_d10_the_map_sums_to_the_rise_from_any_baseline(baseline: float | None) -> None:
    net, x = mlp(5, 16, 3, activation=nn.Tanh), images(4)[:, 0, 0, :5]
    start = torch.full_like(x, baseline or 0.0)
    a = explain(net, x, IntegratedGradients(baseline=baseline), target=2)
    rise = (net(x) - net(start))[:, 2].detach()
    assert torch.allclose(a.values.sum(dim=1), rise, atol=1e-8)
    assert a.delta is not None and torch.allclose(a.delta, a.values.sum(dim=1) - rise, atol=1e-10)
    assert torch.allclose(a.output, net(x)[:, 2].detach())
    each = explain(net, x, IntegratedGradients(baseline=x.flip(0)), target=2)
    assert torch.allclose(each.values.sum(dim=1), (net(x) - net(x.flip(0)))[:, 2].detach(), atol=1e-8)


def test_i2_orders_of_the_rules() -> None:
    assert 1.8 < gap("right", 64) / gap("right", 128) < 2.2
    assert 3.5 < gap("midpoint", 32) / gap("midpoint", 64) < 4.5
    assert 3.5 < gap("trapezoid", 33) / gap("trapezoid", 65) < 4.5
    assert gap("gausslegendre", 8) < 0.5 * gap("midpoint", 64)


@pytest.mark.parametrize("rule", ["gausslegendre", "midpoint", "trapezoid", "right"])
def test_quadratures_integrate_lines(rule: Any) -> None:
    nodes, weights = quadrature(rule, 7)
    assert weights.sum().item() == pytest.approx(1)
    assert (nodes * weights).sum().item() == pytest.approx(0.5 if rule != "right" else 4 / 7)


def test_i3_without_biases_it_is_gradient_times_input() -> None:
    net, x = mlp(5, 16, 16, 3, bias=False), images(4)[:, 0, 0, :5]
    product = explain(net, x, Gradient(times_input=True))
    assert torch.allclose(product.values.sum(dim=1), product.output)
    assert torch.allclose(explain(net, x, "integrated_gradients").values, product.values)


def test_i4_nothing_where_the_input_is_the_baseline() -> None:
    net, x = mlp(5, 16, 3), images(4)[:, 0, 0, :5]
    baseline = torch.zeros(5, dtype=torch.float64)
    baseline[2] = 1.0
    x[:, 2] = 1.0
    values = explain(net, x, IntegratedGradients(baseline=baseline)).values
    assert values[:, 2].eq(0).all() and values[:, [0, 1, 3, 4]].abs().min() > 0


def test_i5_rescaling_between_layers_changes_nothing() -> None:
    net, x = mlp(5, 16, 3), images(4)[:, 0, 0, :5]
    other = copy.deepcopy(net)
    first, second = other[0], other[2]
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    first.weight.data *= 4
    first.bias.data *= 4
    second.weight.data /= 4
    found = explain(other, x, "integrated_gradients").values
    assert torch.allclose(found, explain(net, x, "integrated_gradients").values)


def test_a_tolerance_doubles_the_steps_of_those_that_need_it() -> None:
    net, x = mlp(5, 16, 16, 3, activation=nn.Tanh), images(4)[:, 0, 0, :5] * 2
    rough = explain(net, x, IntegratedGradients(rule="midpoint", steps=2), target=0)
    fine = explain(net, x, IntegratedGradients(rule="midpoint", steps=2, tol=1e-4), target=0)
    rise = (net(x) - net(torch.zeros_like(x)))[:, 0].detach().abs()
    assert rough.delta is not None and fine.delta is not None
    assert (rough.delta.abs() > 1e-4 * rise).any() and (fine.delta.abs() <= 1e-4 * rise).all()
    assert torch.allclose(fine.values.sum(1), (net(x) - net(torch.zeros_like(x)))[:, 0].detach() + fine.delta)
    with pytest.warns(UserWarning, match="miss completeness by up to .* at 4 steps"):
        explain(net, x, IntegratedGradients(rule="midpoint", steps=2, tol=1e-9, max_steps=7), target=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps is 0"), ({"rule": "trapezoid", "steps": 1}, "expected 2"),
     ({"rule": "left"}, "rule is"),
     ({"tol": 0.0}, "tol is")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntegratedGradients(**settings)


def test_a_baseline_that_does_not_fit() -> None:
    net, x = mlp(5, 16, 3), images(4)[:, 0, 0, :5]
    with pytest.raises(ValueError, match="does not fit"):
        explain(net, x, IntegratedGradients(baseline=torch.zeros(4)))
    with pytest.raises(ValueError, match="for texts"):
        explain(net, x, IntegratedGradients(baseline="pad"))
