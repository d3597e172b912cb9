"""Auto-PGD: its schedule, exactness on linear models, strength beside PGD, targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.attacks.gradient import APGD, L1, L2, PGD, LInf, cross_entropy, dlr, margin
from robustkit.attacks.gradient.apgd import _State, checkpoints
from tests.robustkit.attacks.gradient.nets import convolutions, linear, pixels, says


def test_checkpoints_are_the_papers() -> None:
    """p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), times the steps."""
    shares, found = [0.0, 0.22], [22]
    while True:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
        if shares[-1] > 1:
            break
        found.append(round(100 * shares[-1]))
    assert checkpoints(100) == found == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_short_runs_have_checkpoints_too(steps: int) -> None:
    found = checkpoints(steps)
    assert found and found == sorted(set(found)) and found[-1] <= steps


@pytest.mark.parametrize("ball", [LInf(0.1), L2(0.3)])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_apgd_is_exact_for_a_linear_model(ball: Any, loss: Any) -> None:
    """adversarial_training_baselines.md section 10."""
    model = linear(classes=2)
    x = torch.rand(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = model(x).argmax(1)
    slope = (model.weight[1 - y] - model.weight[y]).detach()
    # A radius at which none is fooled, so that no sample leaves early.
    small = type(ball)(
        (0.5 * -margin(model(x), y) / (ball.linear_max(slope) * slope).sum(1) * ball.epsilon).detach()
    )
    found = APGD(small, loss=loss).run(model, x, y)
    want = margin(model(x + small.linear_max(slope, x)), y)
    assert not found.success.any()
    torch.testing.assert_close(margin(model(found.perturbed), y), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ball", [LInf(0.006), L2(0.08), L1(0.5)])
def test_apgd_is_at_least_as_strong_as_pgd_at_equal_steps(ball: Any) -> None:
    model, x = convolutions(), pixels(48)
    y = says(model, x)
    apgd = APGD(ball, steps=40).run(model, x, y)
    pgd = PGD(ball, steps=40).run(model, x, y)
    assert 0 < pgd.success.sum() < 48
    assert apgd.success.sum() >= pgd.success.sum()
    left = ~apgd.success & ~pgd.success
    assert apgd.loss[left].mean() >= pgd.loss[left].mean() - 1e-3


def test_what_a_result_says_is_what_the_model_says() -> None:
    model, x = convolutions(), pixels(32)
    y = says(model, x)
    for attack in (APGD(LInf(0.01)), APGD(L2(0.2), loss=dlr), APGD(LInf(0.01), steps=20, targets=4)):
        found = attack.run(model, x, y)
        assert torch.equal(found.success, says(model, found.perturbed) != y)
        assert (attack.threat.norm(found.perturbed - x) <= attack.threat.epsilon + 1e-6).all()  # type: ignore[attr-defined]
        assert found.perturbed.min() >= 0 and found.perturbed.max() <= 1


def test_passes_are_counted() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    found = APGD(LInf(0.001), steps=20).run(model, x, y)
    left = ~found.success
    assert left.any() and (found.forwards[left] == 21).all() and (found.backwards[left] == 20).all()
    targets = APGD(LInf(0.001), steps=20, targets=4).run(model, x, y)
    left = ~targets.success
    assert (targets.forwards[left] == 1 + 4 * 21).all() and (targets.backwards[left] == 4 * 20).all()


def test_targets_beyond_the_classes_are_not_tried() -> None:
    model, x = convolutions(classes=5), pixels()
    y = says(model, x)
    four, nine = (APGD(LInf(0.002), steps=5, targets=k).run(model, x, y) for k in (4, 9))
    assert torch.equal(four.forwards, nine.forwards) and torch.equal(four.perturbed, nine.perturbed)


def test_a_targeted_attack_reaches_its_targets() -> None:
    model, x = convolutions(), pixels()
    target = (says(model, x) + 1) % 5
    found = APGD(LInf(0.2), steps=40, targeted=True).run(model, x, target)
    assert torch.equal(found.success, says(model, found.perturbed) == target) and found.success.all()


# The two conditions of a checkpoint -------------------------------------------------------------------------


def state(losses: list[list[float]]) -> _State:
    """A state after the losses of some samples, without checkpoints."""
    table = torch.tensor(losses)
    point = lambda k: table[:, k, None].clone()  # noqa: E731  # a perturbation that names its loss
    found = _State.begin(point(0), table[:, 0], -point(0))
    for k in range(1, table.shape[1]):
        found = found.moved(point(k), table[:, k], -point(k))
    return found


def test_a_step_size_is_halved_where_fewer_than_three_quarters_of_the_steps_rise() -> None:
    before = state([[0, 1, 2, 3, 4], [0, 1, 2, 3, 2], [0, 1, 2, 1, 2]])
    assert before.rises.tolist() == [4, 3, 3]
    assert before.checked(4).size.tolist() == [2, 2, 2]
    after = state([[0, 1, 2, 3, 4], [0, 1, 2, 3, 2], [0, 3, 2, 1, 2]]).checked(4)
    assert after.size.tolist() == [2, 2, 1]
    # The third goes back to its best point, with that point's loss and gradient.
    assert after.delta.flatten().tolist() == [4, 2, 3]
    assert after.loss.tolist() == [4, 2, 3] and after.gradient.flatten().tolist() == [-4, -2, -3]
    assert after.rises.tolist() == [0, 0, 0]


def test_a_step_size_is_halved_where_the_best_has_not_changed_since_a_checkpoint_that_kept_it() -> None:
    kept = state([[0, 1, 2, 3, 5]]).checked(4)
    assert not kept.halved.any()

    def later(losses: list[float]) -> _State:
        found = kept
        for loss in losses:
            value = torch.tensor([loss])
            found = found.moved(value[:, None], value, -value[:, None])
        return found.checked(len(losses))

    assert later([1.0, 2.0, 3.0, 4.0]).halved.tolist() == [True]  # three of four rise, but none is best
    assert later([1.0, 2.0, 3.0, 6.0]).halved.tolist() == [False]


def test_the_first_checkpoint_does_not_compare_bests() -> None:
    assert not state([[5, 1, 2, 3, 4]]).checked(4).halved.any()


def test_momentum_mixes_a_quarter_of_the_step_before() -> None:
    """Two steps by hand on a linear function without projection: weight 1 first, then 0.75."""
    slope = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    model = lambda x: torch.cat([-(x @ slope.T), 0 * x[:, :1]], dim=1)  # noqa: E731
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    ball = L2(torch.tensor([1.0]), None)
    seen: list[Tensor] = []

    def watched(inputs: Tensor) -> Tensor:
        seen.append(inputs.detach().clone())
        return model(inputs - 100)  # far from being fooled

    APGD(ball, steps=3, loss=margin).run(watched, x, y)
    unit = slope / 5
    start = seen[0]
    first = ball.project(start + 2 * unit)
    ahead = ball.project(first + 2 * unit)
    second = ball.project(first + 0.75 * (ahead - first) + 0.25 * (first - start))
    torch.testing.assert_close(torch.stack(seen[1:3]), torch.stack([first, second]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"targets": -1}, "targets is -1"),
        ({"targets": 2, "targeted": True}, "targets is 2"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        APGD(LInf(0.1), **settings)


def test_ratios_with_too_few_classes_are_refused() -> None:
    model, x = convolutions(classes=3), pixels(2)
    with pytest.raises(ValueError, match="needs 4 classes"):
        APGD(LInf(0.1), targets=2).perturb(model, x, says(model, x))
