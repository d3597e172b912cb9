"""FGSM and PGD: exact on linear models, best-so-far, restarts, passes, targets, momentum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.attacks.gradient import FGSM, L1, L2, PGD, LInf, cross_entropy, margin
from tests.robustkit.attacks.gradient.nets import convolutions, linear, pixels, says

BALLS = [LInf(0.1), L2(0.3), L1(0.6)]


def linear_case(n: int = 20) -> tuple[torch.nn.Linear, Tensor, Tensor]:
    """A linear two-class model whose loss rises along one direction, and inputs that it gets right."""
    model = linear(classes=2)
    inputs = torch.rand(n, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, inputs, model(inputs).argmax(dim=1)


def worst_margin(model: torch.nn.Linear, inputs: Tensor, labels: Tensor, ball: Any) -> Tensor:
    """The largest margin that the set allows: of a linear function, by its closed form."""
    slope = (model.weight[1 - labels] - model.weight[labels]).detach()
    return margin(model(inputs + ball.linear_max(slope, inputs)), labels)


@pytest.mark.parametrize("ball", BALLS)
def test_fgsm_is_optimal_for_a_linear_model(ball: Any) -> None:
    model, inputs, labels = linear_case()
    found = FGSM(ball).run(model, inputs, labels)
    torch.testing.assert_close(
        margin(model(found.perturbed), labels), worst_margin(model, inputs, labels, ball)
    )
    assert torch.equal(found.success, says(model, found.perturbed) != labels)


def test_fgsm_adds_epsilon_times_the_sign_inside_the_box() -> None:
    model, inputs, labels = linear_case()
    sign = (model.weight[1 - labels] - model.weight[labels]).sign()
    torch.testing.assert_close(
        FGSM(LInf(0.1)).perturb(model, inputs, labels), (inputs + 0.1 * sign).clamp(0, 1)
    )


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("ball", [LInf(0.1), L2(0.3)])
def test_pgd_reaches_the_optimum_of_a_linear_model(ball: Any, random_start: bool) -> None:
    model, inputs, labels = linear_case()
    attack = PGD(ball, steps=100, step_size=0.02, random_start=random_start, early_stop=False)
    found = margin(model(attack.perturb(model, inputs, labels)), labels)
    torch.testing.assert_close(found, worst_margin(model, inputs, labels, ball), atol=1e-3, rtol=0)


def test_one_step_of_pgd_from_the_input_is_fgsm() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    pgd = PGD(LInf(0.03), steps=1, step_size=0.03, random_start=False, early_stop=False)
    torch.testing.assert_close(pgd.perturb(model, x, y), FGSM(LInf(0.03)).perturb(model, x, y))


@pytest.mark.parametrize("ball", [LInf(0.02), L2(0.2), L1(1.0)])
def test_the_worst_point_so_far_never_gets_better_for_the_model(ball: Any) -> None:
    """adversarial_training_baselines.md section 10: PGD best-so-far loss never decreases."""
    model, x = convolutions(), pixels()
    y = says(model, x)
    runs = [PGD(ball, steps=k, step_size=0.05, early_stop=False).run(model, x, y) for k in (1, 2, 4, 8, 16)]
    for fewer, more in pairwise(runs):
        stays = fewer.success == more.success
        assert (more.success >= fewer.success).all()
        assert (more.loss[stays] >= fewer.loss[stays] - 1e-6).all()


def test_what_a_result_says_is_what_the_model_says() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    for attack in (PGD(LInf(0.02)), PGD(LInf(0.02), early_stop=False), PGD(L2(0.3), loss=margin, restarts=2)):
        found = attack.run(model, x, y)
        assert torch.equal(found.success, says(model, found.perturbed) != y) and found.success.any()
        logits = model.eval()(found.perturbed).detach()
        torch.testing.assert_close(found.loss, attack.loss(logits, y), atol=1e-5, rtol=1e-4)
        assert (attack.threat.norm(found.perturbed - x) <= attack.threat.epsilon + 1e-6).all()
        assert found.perturbed.min() >= 0 and found.perturbed.max() <= 1


def test_restarts_only_add_successes() -> None:
    model, x = convolutions(), pixels(32)
    y = says(model, x)
    one = PGD(LInf(0.01), steps=3, step_size=0.01).run(model, x, y)
    five = PGD(LInf(0.01), steps=3, step_size=0.01, restarts=5).run(model, x, y)
    assert (five.success >= one.success).all()
    left = ~five.success
    assert left.any() and (five.loss[left] >= one.loss[left]).all()
    assert (five.loss[left] > one.loss[left]).any()


def test_fooled_samples_leave_the_batch_and_passes_are_counted() -> None:
    model, x = convolutions(), pixels(32)
    y = says(model, x)
    seen: list[int] = []
    handle = model.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    found = PGD(LInf(0.01), steps=6, restarts=2).run(model, x, y)
    handle.remove()
    assert sum(seen) == int(found.forwards.sum()) and max(seen) == 32 and min(seen) < 32
    assert (found.forwards[~found.success] == 2 * (6 + 1)).all()
    assert (found.backwards[~found.success] == 2 * 6).all()
    assert (found.forwards[found.success] < 2 * (6 + 1) + 1).all()
    full = PGD(LInf(0.01), steps=6, early_stop=False).run(model, x, y)
    assert (full.forwards == 7).all() and (full.backwards == 6).all()


def test_early_stop_changes_no_success() -> None:
    model, x = convolutions(), pixels(32)
    y = says(model, x)
    stopped, full = (PGD(LInf(0.01), early_stop=early).run(model, x, y) for early in (True, False))
    assert torch.equal(stopped.success, full.success) and 0 < stopped.success.sum() < 32


def test_targets_are_reached_and_counted_as_success() -> None:
    model, x = convolutions(), pixels()
    target = (says(model, x) + 1) % 5
    for attack in (
        PGD(LInf(0.2), steps=40, targeted=True),
        PGD(LInf(0.2), steps=40, loss=margin, targeted=True),
        FGSM(LInf(0.2), targeted=True),
    ):
        found = attack.run(model, x, target)
        assert torch.equal(found.success, says(model, found.perturbed) == target)
        if isinstance(attack, PGD):
            assert found.success.double().mean() > 0.8


def test_momentum_is_the_sum_of_gradients_by_their_l1_norms() -> None:
    """Two steps with momentum 1 by hand, for a smooth function of two classes."""
    inputs = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    model = lambda x: torch.stack([0 * x[:, 0], x[:, 0] ** 2 - 1.2 * x[:, 1] * x[:, 0]], dim=1)  # noqa: E731
    label = torch.tensor([0])

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(margin(model(x), label).sum(), x)[0]

    ball = L2(10.0, None)
    first = slope(inputs)
    velocity = first / first.abs().sum()
    x = inputs + 0.1 * velocity / velocity.norm()
    velocity = 0.9 * velocity + slope(x) / slope(x).abs().sum()
    want = x + 0.1 * velocity / velocity.norm()
    attack = PGD(
        ball, steps=2, step_size=0.1, loss=margin, random_start=False, momentum=0.9, early_stop=False
    )
    torch.testing.assert_close(attack.perturb(model, inputs, label), want)


def test_epsilon_zero_gives_clean_accuracy() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x).clone()
    y[:5] = (y[:5] + 1) % 5
    found = PGD(LInf(0.0), steps=3).run(model, x, y)
    assert torch.equal(found.perturbed, x) and found.success.tolist() == [True] * 5 + [False] * 11


def test_the_order_of_a_batch_does_not_matter() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    turn = torch.arange(15, -1, -1)
    attack = PGD(LInf(0.01), random_start=False)
    torch.testing.assert_close(
        attack.perturb(model, x, y)[turn], attack.perturb(model, x[turn], y[turn]), atol=1e-5, rtol=0
    )


def test_a_sample_does_not_depend_on_when_others_are_done() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    wrong = y.clone()
    wrong[1:] = (y[1:] + 1) % 5  # these are fooled before the first step
    attack = PGD(LInf(0.01), restarts=3)
    torch.testing.assert_close(
        attack.perturb(model, x, y)[0], attack.perturb(model, x, wrong)[0], atol=1e-5, rtol=0
    )


def test_each_sample_may_have_a_radius_of_its_own() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    epsilon = torch.linspace(0, 0.05, 16)
    found = PGD(LInf(epsilon)).run(model, x, y)
    assert ((found.perturbed - x).abs().flatten(1).amax(1) <= epsilon + 1e-6).all()
    assert not found.success[0] and found.success[8:].any()


def test_seeds_decide_what_is_drawn() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    attack = PGD(LInf(0.02), steps=2)
    same, again, other = (attack.perturb(model, x, y, seed=s) for s in (0, 0, 1))
    assert torch.equal(same, again) and not torch.equal(same, other)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(attack.perturb(model, x, y, seed=generator), same)
    assert not torch.equal(attack.perturb(model, x, y, seed=generator), same)


def test_a_loss_may_be_any_function() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    found = PGD(LInf(0.03), loss=lambda logits, labels: 3 * cross_entropy(logits, labels)).run(model, x, y)
    assert found.success.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"step_size": 0.0}, "step_size is 0"),
        ({"momentum": -1.0}, "momentum is -1"),
        ({"restarts": 2, "random_start": False}, "without random start every run is the same"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(LInf(0.1), **settings)
