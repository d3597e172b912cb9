"""SmoothGrad and its relatives against closed forms (S1 to S9), and the bounds on batches (D1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.interpret import SmoothGrad, explain
from robustkit.interpret.noise import Moments, noise_scale

from .nets import images, mlp


class Scalar(nn.Module):
    """A function of (n, d) as the only logit."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.largest = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return self.function(x)[:, None]


def smooth(
    function: Callable[[Tensor], Tensor] | nn.Module, x: Tensor, *, batch_size: int = 4096, **settings: Any
) -> dict[str, Tensor]:
    net = function if isinstance(function, nn.Module) else Scalar(function)
    method = SmoothGrad(**({"n": 8, "sigma_of": "absolute"} | settings))
    return dict(explain(net, x, method, target=0, batch_size=batch_size).statistics)


def point(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_s1_a_quartic_has_the_moments_of_its_closed_form() -> None:
    sigma, x = 0.3, point(0.7)
    found = smooth(lambda x: (x**4).sum(1), x, sigma=sigma, n=40_000)
    # G = 4 (x + s e)^3: E G = 4 (x^3 + 3 x s^2), E G^2 = 16 E (x + s e)^6.
    mean = 4 * (0.7**3 + 3 * 0.7 * sigma**2)
    sixth = sum(math.comb(6, k) * 0.7 ** (6 - k) * sigma**k * e for k, e in ((0, 1), (2, 1), (4, 3), (6, 15)))
    assert found["mean"].item() == pytest.approx(mean, rel=0.02)
    assert found["square"].item() == pytest.approx(16 * sixth, rel=0.03)
    assert found["var"].item() == pytest.approx(16 * sixth - mean**2, rel=0.04)
    assert found["mean_abs"].item() == pytest.approx(mean, rel=0.05)  # nearly all gradients are positive


def test_s2_the_variance_follows_the_hessians_row_and_sigma_squared() -> None:
    net = mlp(5, 12, 2, activation=nn.Tanh)
    x = point(0.3, -0.2, 0.5, 0.1, -0.4)
    hessian = torch.autograd.functional.hessian(lambda one: net(one[None])[0, 0], x[0])
    third = torch.stack(
        [torch.autograd.functional.hessian(lambda one, i=i: torch.autograd.functional.jacobian(
            lambda z: net(z[None])[0, 0], one, create_graph=True)[i], x[0]).trace() for i in range(5)]
    )  # fmt: skip
    gradient = torch.autograd.functional.jacobian(lambda one: net(one[None])[0, 0], x[0])
    off = []
    for sigma in (0.2, 0.1):
        found = smooth(net, x, sigma=sigma, n=20_000)
        ratio = found["var"][0] / (sigma**2 * hessian.square().sum(1))
        off.append((ratio - 1).abs().mean().item())
        series = gradient + sigma**2 / 2 * third
        assert (found["mean"][0] - series).norm() < (0.2 if sigma == 0.2 else 0.1) * (
            series - gradient
        ).norm()
    assert off[1] < 0.5 * off[0] and off[1] < 0.1


def test_s3_identities_of_each_sample_set() -> None:
    net, x = mlp(5, 12, 1), images(2)[:, 0, 0, :5]
    w = torch.arange(1.0, 6.0, dtype=torch.float64)
    plain = smooth(net, x, sigma=0.5, n=10)
    shifted = smooth(lambda x: net(x)[:, 0] + x @ w, x, sigma=0.5, n=10)
    tripled = smooth(lambda x: 3 * net(x)[:, 0], x, sigma=0.5, n=10)
    assert torch.allclose(shifted["mean"], plain["mean"] + w) and torch.allclose(shifted["var"], plain["var"])
    assert torch.allclose(tripled["var"], 9 * plain["var"]) and plain["var"].max() > 1e-4
    assert torch.allclose(plain["square"], plain["var"] + plain["mean"] ** 2)
    assert not torch.allclose(shifted["square"], plain["square"])


def test_s4_one_hidden_relu_layer_is_smoothed_by_the_normal_distribution() -> None:
    net, x, sigma = mlp(4, 10, 1), point(0.2, -0.3, 0.1, 0.4), 0.6
    first, second = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    z = (first(x)[0] / (sigma * first.weight.norm(dim=1))).detach()
    open_share = 0.5 * (1 + torch.erf(z / 2**0.5))
    wanted = (second.weight[0] * open_share) @ first.weight
    found = smooth(net, x, sigma=sigma, n=20_000)["mean"][0]
    assert torch.allclose(found, wanted, atol=0.01)
    assert not torch.allclose(explain(net, x, "gradient").values[0], wanted, atol=0.05)


def test_s5_the_means_variance_is_vargrad_by_n() -> None:
    net, x, n = mlp(4, 10, 1), point(0.2, -0.3, 0.1, 0.4), 8
    repeats = x.expand(1, -1)
    runs = torch.cat(
        [smooth(net, repeats, sigma=0.5, n=n, seed=s, antithetic=False)["mean"] for s in range(400)]
    )
    true = smooth(net, x, sigma=0.5, n=20_000, antithetic=False)["var"][0]
    assert runs.var(dim=0).sum().item() == pytest.approx((true / n).sum().item(), rel=0.15)


def test_s6_the_variance_is_never_negative_and_vanishes_on_a_linear_model() -> None:
    weight = torch.full((6,), 1000.0) + torch.arange(6.0)
    x = torch.linspace(0, 1, 6)[None]
    found = smooth(lambda x: x @ weight, x, sigma=0.3, n=50, batch_size=7, antithetic=False)
    assert (found["var"] >= 0).all() and (found["var"] <= 1e-8 * weight**2).all()
    steep = smooth(
        lambda x: 1000 * x.sum(1) + (x**3).sum(1), x, sigma=0.1, n=64, batch_size=5, antithetic=False
    )
    assert (steep["var"] >= 0).all() and steep["var"][0, -1] > 0.1


def test_s7_the_seed_decides_and_the_chunk_does_not() -> None:
    net, x = mlp(5, 12, 1), images(3)[:, 0, 0, :5]
    wanted = smooth(net, x, sigma=0.5, n=12)
    for size in (1, 2, 3, 7, 9, 100):
        for name, found in smooth(net, x, sigma=0.5, n=12, batch_size=size).items():
            assert torch.allclose(found, wanted[name], atol=1e-12)
    again, other = smooth(net, x, sigma=0.5, n=12), smooth(net, x, sigma=0.5, n=12, seed=1)
    assert torch.equal(again["mean"], wanted["mean"]) and not torch.allclose(other["mean"], wanted["mean"])


def test_s8_opposite_noise_is_exact_on_quadratics() -> None:
    matrix = images(1)[0, 0, :5, :5]
    hessian, x = matrix + matrix.T, images(1)[:, 0, 0, :5]

    def quadratic(x: Tensor) -> Tensor:
        return ((x @ matrix) * x).sum(1)

    found = smooth(quadratic, x, sigma=0.4, n=4000)
    assert torch.allclose(found["mean"], x @ hessian, atol=1e-10)
    assert torch.allclose(found["var"][0], 0.16 * (hessian @ hessian).diag(), rtol=0.12)
    free = smooth(quadratic, x, sigma=0.4, n=40, antithetic=False)
    assert not torch.allclose(free["mean"], x @ hessian, atol=1e-3)


def test_s9_the_scale_is_of_each_input_by_itself() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5], [0.0, 100.0, 0.0]])
    assert noise_scale(x, 0.1, "range").flatten().tolist() == pytest.approx([0.1, 10.0])
    assert noise_scale(x, 0.1, "absolute").flatten().tolist() == pytest.approx([0.1, 0.1])
    assert noise_scale(x, 2, "std").flatten()[0].item() == pytest.approx(2 * x[0].std(correction=0).item())
    masked = noise_scale(x[:, :, None], 0.1, "range", torch.tensor([[True, False, True], [True, True, True]]))
    assert masked.flatten().tolist() == pytest.approx([0.05, 0, 0.05, 10, 10, 10])
    net, some = mlp(5, 12, 1), images(3)[:, 0, 0, :5]
    with_outlier = torch.cat([some, some[:1] * 1000])
    for name in ("mean", "var"):
        alone = explain(net, some, SmoothGrad(n=6), target=0).of(name).values
        beside = explain(net, with_outlier, SmoothGrad(n=6), target=0).of(name).values[:3]
        assert torch.allclose(beside, alone, atol=1e-12)  # chunks differ, and so does rounding


def test_d1_no_forward_pass_is_larger_than_the_batch_size() -> None:
    net = Scalar(lambda x: (x**2).sum(1))
    for n, inputs in ((50, 3), (4, 30)):
        explain(
            net,
            images(inputs)[:, 0, 0, :4],
            SmoothGrad(n=n),
            batch_size=8,
        )
        assert net.largest <= 8


def test_d4_smoothgrad_is_the_signed_mean_of_logit_gradients() -> None:
    x = images(1)[:, 0, 0, :4]
    found = explain(Scalar(lambda x: -3 * x.sum(1)), x, "smoothgrad")
    assert torch.allclose(found.values, torch.full_like(x, -3))
    assert torch.allclose(found.of("mean_abs").values, torch.full_like(x, 3))
    with pytest.raises(ValueError, match="there are mean, mean_abs, square, var"):
        found.of("median")


def test_moments_in_chunks_are_those_of_all_samples() -> None:
    samples = images(11).view(11, -1) + 1e4
    moments = Moments()
    for part in samples.split([1, 4, 3, 3]):
        moments.add(part)
    found = moments.statistics()
    assert torch.allclose(found["var"], samples.var(dim=0, correction=0)) and torch.allclose(
        found["mean"], samples.mean(0)
    )
    assert torch.allclose(found["square"], samples.square().mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n": 0}, "n is 0"), ({"n": 3}, "even number"), ({"sigma": -1.0}, "sigma is"),
     ({"sigma": math.nan}, "sigma is"),
     ({"sigma_of": "max"}, "sigma_of"), ({"statistic": "median"}, "statistic")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothGrad(**settings)
