"""Universal perturbations: one delta, its bound, aggregation against single steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import L2, LInf, UniversalPerturbation
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says


def case() -> tuple[nn.Sequential, Tensor]:
    return convolutions(), pixels(40)


def test_one_bounded_perturbation_fools_many_and_more_than_noise() -> None:
    model, x = case()
    modes = [module.training for module in model.modules()]
    attack = UniversalPerturbation(LInf(0.08), epochs=10, part=5, rounds=2)
    delta = attack.fit(model, [x[:20], x[20:]])
    assert delta.shape == (1, 3, 8, 8) and delta.abs().max() <= 0.08 + 1e-7
    changed = attack.apply(delta, x)
    assert changed.min() >= 0 and changed.max() <= 1
    inside = (x + delta >= 0) & (x + delta <= 1)
    torch.testing.assert_close(changed[inside], (x + delta)[inside])
    rate = attack.fooling_rate(model, delta, x)
    assert rate == (says(model, changed) != says(model, x)).double().mean().item()
    noise = 0.08 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    assert rate > attack.fooling_rate(model, noise, x) + 0.2
    assert [module.training for module in model.modules()] == modes
    # Images that took no part are fooled too: it is universal.
    assert attack.fooling_rate(model, delta, pixels(40, seed=9)) > rate - 0.2


def test_a_single_inner_round_is_one_sign_step_per_batch() -> None:
    """other_robustness_methods.md section 5: with K N / b = 1 the aggregation is SPGD's step."""
    model, x = case()
    attack = UniversalPerturbation(LInf(0.1), epochs=1, part=40, rounds=1)
    point = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model.eval()(point), says(model, x), reduction="none").clamp(max=9)
    (gradient,) = torch.autograd.grad(loss.mean(), point)
    want = 0.01 * gradient.mean(dim=0, keepdim=True).sign()
    torch.testing.assert_close(attack.fit(model, [x]), want)


def test_the_outer_step_is_the_sign_of_the_mean_of_all_inner_gradients() -> None:
    """A linear model's gradients do not depend on the place, so the outer step is known in advance."""
    direction = torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = lambda x: torch.cat([x @ direction.T, -(x @ direction.T)], dim=1)  # noqa: E731
    x = torch.full((20, 6), 0.5, dtype=torch.float64)
    wanted = -direction.sign() if (x @ direction.T)[0] > 0 else direction.sign()
    found = UniversalPerturbation(LInf(0.1), epochs=2, part=5).fit(model, [x])
    torch.testing.assert_close(found, 2 * 0.01 * wanted)


def test_momentum_keeps_a_direction_that_one_batch_turns_against() -> None:
    direction = torch.ones(1, 4, dtype=torch.float64)
    model = lambda x: torch.cat([(x - 0.5) @ direction.T, -((x - 0.5) @ direction.T)], dim=1)  # noqa: E731
    low = torch.full((10, 4), 0.3, dtype=torch.float64)
    high = torch.full((10, 4), 0.7, dtype=torch.float64)
    fit = lambda momentum: UniversalPerturbation(LInf(0.1), 1, momentum=momentum).fit(model, [low, low, high])  # noqa: E731
    torch.testing.assert_close(fit(0.0), 0.01 * direction)
    torch.testing.assert_close(fit(1.0), 0.03 * direction)


def test_seeds_decide_the_parts() -> None:
    model, x = case()
    attack = UniversalPerturbation(LInf(0.1), epochs=1, rounds=1, part=3)
    first, same, other = (attack.fit(model, [x], seed=s) for s in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threat": L2(1.0)}, "expected LInf with one radius"),
        ({"threat": LInf(torch.tensor([0.1, 0.2]))}, "expected LInf with one radius"),
        ({"epochs": 0}, "epochs is 0"),
        ({"part": 0}, "part is 0"),
        ({"step_size": 0.0}, "step_size is 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniversalPerturbation(**{"threat": LInf(0.1)} | settings)


def test_bad_batches_are_refused() -> None:
    model, x = case()
    with pytest.raises(ValueError, match="batches is empty"):
        UniversalPerturbation(LInf(0.1)).fit(model, [])
    with pytest.raises(ValueError, match="without normalization"):
        UniversalPerturbation(LInf(0.1)).fit(model, [x * 2])
