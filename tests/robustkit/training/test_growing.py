"""A ball that grows: its radius at each step, and what methods make of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustkit.attacks.gradient import L1, L2, EmbeddingBall, LInf
from robustkit.training import (
    FGSMRS,
    MART,
    SIHG,
    TRADES,
    YOPO,
    DynamicTraining,
    FreeTraining,
    Growing,
    PerturbationBank,
    PGDTraining,
    SIHGFull,
    SIHGTable,
)
from tests.robustkit.training.toys import (
    EPSILON,
    SHAPE,
    THREAT,
    assert_other,
    assert_same,
    batches,
    clip,
    input_gradient,
    network,
    train,
)
from trainkit.objectives import StepContext


def test_the_radius_rises_in_a_straight_line_and_stays() -> None:
    growing = Growing(LInf(0.2), 4)
    assert [growing.at(step).epsilon for step in range(6)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    assert growing.at(3) is growing.threat and growing.at(0).box == (0.0, 1.0)
    assert all(Growing(THREAT, steps).at(0) is THREAT for steps in (0, 1))
    for steps in (-1, 0.3):
        with pytest.raises(ValueError, match=f"steps is {steps}; expected a whole number"):
            Growing(THREAT, steps)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threat is a Growing"):
        Growing(growing, 3)  # type: ignore[type-var]
    with pytest.warns(UserWarning, match="epsilon is 8"):
        wide = Growing(LInf(8), 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wide.at(9).epsilon == 4


@pytest.mark.parametrize("kind", [LInf, L2, L1, EmbeddingBall])
def test_a_scaled_set_has_a_share_of_every_radius(kind: Any) -> None:
    inputs = torch.rand(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    epsilon = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(kind(epsilon).scaled(0.25).radius(inputs), 0.25 * kind(epsilon).radius(inputs))
    assert kind(0.4).scaled(0.5).epsilon == 0.2
    far = 10 * torch.ones_like(inputs)
    assert (
        kind(epsilon).scaled(0.5).norm(kind(epsilon).scaled(0.5).project(far)) <= epsilon / 2 + 1e-9
    ).all()
    kept = EmbeddingBall(0.4, per="sentence", mask=torch.ones(3, 5)).scaled(0.5)
    assert kept.per == "sentence" and kept.mask is not None


def test_pgd_training_with_a_growing_ball_is_the_loop_by_hand() -> None:
    """Starts, steps and projections are those of the step's own radius."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (_, inputs, labels) in enumerate(batches(6)):
        epsilon = EPSILON * min(1.0, (step + 1) / 4)
        delta = torch.zeros_like(inputs)
        for _ in range(3):
            gradient = input_gradient(model, inputs, delta, labels)
            delta = clip(delta + 0.4 * epsilon * gradient.sign(), inputs, epsilon)
        nn.functional.cross_entropy(model(inputs + delta), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    method = PGDTraining(Growing(THREAT, 4), 3, 0.4, random_start=False)
    assert_same(train(method)[0], model)
    assert method.threat is THREAT
    assert_other(train(PGDTraining(THREAT, 3, 0.4, random_start=False))[0], model)


@pytest.mark.parametrize(
    "make",
    [
        lambda threat: DynamicTraining(threat, 2, horizon=5),
        lambda threat: YOPO(threat, 2, 1),
        lambda threat: MART(threat, 2),
        lambda threat: SIHG(threat, PerturbationBank(24, SHAPE, EPSILON, dtype="int8")),
        lambda threat: SIHGTable(threat, 24, 5.0),
        lambda threat: SIHGFull(threat, 24, 5.0),
    ],
)
def test_every_method_takes_a_growing_ball(make: Callable[[Any], Any]) -> None:
    settings: dict[str, Any] = {"max_steps": 6}
    if isinstance(make(THREAT), SIHGFull):
        settings["batch_size"] = 24
    grown, grown_at_once, whole = (
        train(make(threat), **settings)[0] for threat in (Growing(THREAT, 12), Growing(THREAT, 0), THREAT)
    )
    assert_same(grown_at_once, whole, atol=0)
    assert_other(grown, whole)


class Spying(FreeTraining):
    """Remembers the largest perturbation that each step leaves."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sizes: list[float] = []

    def play(self, game: Any, context: StepContext) -> Any:
        loss = super().play(game, context)
        assert self.carried is not None
        self.sizes.append(float(self.carried.abs().max()))
        return loss


def test_perturbations_that_are_carried_over_grow_with_the_ball() -> None:
    method = Spying(Growing(THREAT, 3), 2)
    train(method)
    expected = [EPSILON / 3, 2 * EPSILON / 3, EPSILON, EPSILON, EPSILON, EPSILON]
    assert method.sizes == pytest.approx(expected)


def test_a_bank_keeps_what_the_ball_of_its_step_allowed() -> None:
    bank = PerturbationBank(24, SHAPE, EPSILON, dtype="float32")
    train(SIHG(Growing(THREAT, 6), bank, alpha=1.0), max_steps=3)  # one epoch: each example once
    sizes = torch.zeros(24)
    for step, (ids, _, _) in enumerate(batches(3)):
        sizes[ids] = EPSILON * (step + 1) / 6
    found = bank.get(torch.arange(24)).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(found, sizes, rtol=1e-5, atol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", [FGSMRS, TRADES], ids=lambda kind: str(kind.__name__))
def test_a_killed_run_goes_on_with_the_radius_it_had(kind: Any, tmp_path: Path) -> None:
    whole, _ = train(kind(Growing(THREAT, 5)))

    class Broken(kind):  # type: ignore[misc]
        def play(self, game: Any, context: StepContext) -> Any:
            if context.step == 3:
                raise Killed
            return super().play(game, context)

    folder: dict[str, Any] = {"output_dir": tmp_path, "save_every": 2}
    with pytest.raises(Killed):
        train(Broken(Growing(THREAT, 5)), **folder)
    resumed, result = train(kind(Growing(THREAT, 5)), resume=True, **folder)
    assert result.resumed_from == 2
    assert_same(resumed, whole, atol=0)


def test_networks_leave_the_start_with_a_ball_that_grows() -> None:
    """What it is for: met at once, a ball nearly as wide as the contrast teaches some networks little."""

    def right(threat: LInf | Growing[LInf]) -> float:
        inputs, labels = (torch.cat(parts) for parts in list(zip(*batches(3), strict=True))[1:])
        found = []
        for seed in range(3):
            model, _ = train(PGDTraining(threat, 5), network(seed=seed), max_steps=60, learning_rate=0.2)
            found.append(float((model(inputs).argmax(dim=1) == labels).double().mean()))
        return sum(found) / 3

    ball = LInf(0.42)
    assert right(Growing(ball, 60)) > 0.95 > 0.87 > right(ball)
