"""SI-HG through `fit`: R1 and R2 equal the float64 solvers, R3 loops written by hand; the bank; resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import LInf
from robustkit.training import (
    SIHG,
    Averaged,
    FlipCrop,
    FreeTraining,
    PerturbationBank,
    PGDTraining,
    SIHGFull,
    SIHGTable,
)
from robustkit.training.minimax import FiniteSum, si_hg_full, si_hg_table
from robustkit.training.problems import EPSILON as TOY_EPSILON
from robustkit.training.problems import toy_adversarial
from tests.robustkit.training.toys import (
    EPSILON,
    SHAPE,
    THREAT,
    Images,
    assert_other,
    assert_same,
    batches,
    clip,
    input_gradient,
    network,
    train,
    weights,
)
from trainkit import Callback, FitState
from trainkit.seeding import epoch_permutation


def bank(dtype: Any = "float32", size: int = 24) -> PerturbationBank:
    return PerturbationBank(size, SHAPE, EPSILON, dtype=dtype)


# R1 and R2: the network of section 8(e) trained by `fit` against the float64 solvers


class ToyNetwork(nn.Module):
    """v . tanh(W x) as two logits, whose cross-entropy is the logistic loss."""

    def __init__(self, theta: np.ndarray) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.tensor(theta[:48]).view(6, 8))
        self.head = nn.Parameter(torch.tensor(theta[48:]))

    def forward(self, inputs: Tensor) -> Tensor:
        score = torch.tanh(inputs @ self.hidden.T) @ self.head
        return torch.stack([torch.zeros_like(score), score], dim=1)


class ToyPoints:
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        points, plane = rng.standard_normal((50, 8)), rng.standard_normal(8)
        self.points = torch.tensor(points)
        self.labels = torch.tensor(np.sign(points @ plane + 0.3 * rng.standard_normal(50)) > 0).long()

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.labels[index]


def toy() -> FiniteSum:
    """Without decay, which the optimizer would apply otherwise, and from perturbations of 0."""
    problem = toy_adversarial()
    return replace(problem, decay=0.0, delta=np.zeros_like(problem.delta))


BALL = LInf(TOY_EPSILON, box=None)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_r2_equals_the_solver(eta: float) -> None:
    method = SIHGFull(BALL, 50, s=0.5, eta=eta, random_start=False)
    model = ToyNetwork(toy().theta)
    train(method, model, ToyPoints(), batch_size=50, learning_rate=0.3, max_steps=20)
    theta, delta = next(islice(si_hg_full(toy().whole(), 0.3, 0.5, eta), 19, None))
    np.testing.assert_allclose(weights(model).numpy(), theta, atol=1e-12)
    assert method.delta is not None
    np.testing.assert_allclose(method.delta.numpy(), delta, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_r1_equals_the_solver(eta: float) -> None:
    """One epoch fills the table, then one example a step, in the order of the loop's epochs."""
    method = SIHGTable(BALL, 50, s=0.5, eta=eta, random_start=False)
    model = ToyNetwork(toy().theta)
    train(method, model, ToyPoints(), batch_size=1, learning_rate=0.1, max_steps=50 + 70)
    order = [int(i) for epoch in (1, 2) for i in epoch_permutation(50, seed=0, epoch=epoch)]
    solver = si_hg_table(toy(), 0.1, 0.5, eta, iter(order))
    theta, delta = next(islice(solver, 69, None))
    np.testing.assert_allclose(weights(model).numpy(), theta, atol=1e-12)
    assert method.delta is not None
    np.testing.assert_allclose(method.delta.numpy(), delta, atol=1e-12)


def test_r1_with_all_examples_a_step_and_eta_0_is_alternating_descent_and_ascent() -> None:
    """Then z is the whole gradient at the last point: R2 with eta 0."""
    table = SIHGTable(BALL, 50, s=0.5, eta=0.0, random_start=False)
    model = ToyNetwork(toy().theta)
    train(table, model, ToyPoints(), batch_size=50, learning_rate=0.3, max_steps=1 + 10)
    theta, _ = next(islice(si_hg_full(toy().whole(), 0.3, 0.5, 0.0), 9, None))
    np.testing.assert_allclose(weights(model).numpy(), theta, atol=1e-12)


# R3


def gauss_seidel(
    steps: int, *, replays: int, ascent: int, eta: float, alpha: float, reset: bool = True
) -> tuple[nn.Module, Tensor]:
    """The specification's pseudo-code (section 4.3) with a bank of zeros."""
    model = network()
    parameters = list(model.parameters())
    kept = torch.zeros(24, *SHAPE, dtype=torch.float64)
    before: list[Tensor] | None = None
    for ids, inputs, labels in batches(steps):
        delta = kept[ids]
        if reset:
            before = None
        for _ in range(replays):
            for _ in range(ascent):
                sign = input_gradient(model, inputs, delta, labels).sign()
                delta = clip(delta + alpha * EPSILON * sign, inputs)
            loss = nn.functional.cross_entropy(model(inputs + delta), labels)
            now = list(torch.autograd.grad(loss, parameters))
            with torch.no_grad():
                for row, parameter in enumerate(parameters):
                    moved = now[row]
                    if before is not None:
                        moved = moved + eta * (now[row] - before[row])
                    parameter -= 0.1 * moved
            before = now
        kept[ids] = delta
    return model, kept


def zeros() -> PerturbationBank:
    """A bank that holds 0 for every example, so that nothing is drawn."""
    made = bank()
    made.put(torch.arange(24), torch.zeros(24, *SHAPE))
    return made


@pytest.mark.parametrize(
    ("replays", "ascent", "eta", "reset"),
    [(1, 1, 0.0, True), (1, 3, 0.0, True), (3, 1, 0.0, True), (3, 2, 1.0, True), (2, 1, 0.5, False)],
)
def test_5_7_gauss_seidel_is_the_pseudo_code(replays: int, ascent: int, eta: float, reset: bool) -> None:
    """With eta 0 that is alternating signed SGD; two epochs, so the bank is read; it keeps 32 bits."""
    expected, kept = gauss_seidel(6, replays=replays, ascent=ascent, eta=eta, alpha=0.25, reset=reset)
    store = zeros()
    method = SIHG(THREAT, store, replays=replays, ascent=ascent, eta=eta, reset=reset)
    assert_same(train(method)[0], expected, atol=1e-6)
    torch.testing.assert_close(store.get(torch.arange(24)).double(), kept, atol=1e-7, rtol=0)


def test_fused_moves_both_players_along_one_pass() -> None:
    """Optimistic steps of both: gradients at the same point, extrapolated from the second replay on."""
    model = network()
    for _, inputs, labels in batches(6):
        delta = torch.zeros_like(inputs)
        before: tuple[Tensor, ...] | None = None
        for _ in range(3):
            delta.requires_grad_()
            losses = nn.functional.cross_entropy(model(inputs + delta), labels, reduction="none")
            now = torch.autograd.grad(losses.sum(), (delta, *model.parameters()))
            moved = now
            if before is not None:
                moved = tuple(g + 0.7 * (g - b) for g, b in zip(now, before, strict=True))
            before = now
            delta = clip(delta.detach() + 0.25 * EPSILON * moved[0].sign(), inputs)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), moved[1:], strict=True):
                    parameter -= 0.1 * gradient / len(inputs)
    method = SIHG(THREAT, init="zero", order="fused", replays=3, eta=0.7)
    assert_same(train(method)[0], model)


def test_extrapolation_without_anything_before_does_nothing_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The trap of section 4.3."""
    plain = train(SIHG(THREAT, zeros()))[0]
    assert "does nothing" not in caplog.text
    idle = SIHG(THREAT, zeros(), eta=1.0)
    assert "eta=1 does nothing with replays=1 and reset=True" in caplog.text
    assert_same(train(idle)[0], plain, atol=0)
    assert_other(train(SIHG(THREAT, zeros(), eta=1.0, reset=False))[0], plain)


def test_samples_that_are_near_a_maximum_do_not_step() -> None:
    """A threshold above every gap keeps the bank's zeros; below 0 it changes nothing."""
    store = zeros()
    train(SIHG(THREAT, store, stop=1e6))
    assert (store.get(torch.arange(24)) == 0).all()
    assert_same(train(SIHG(THREAT, zeros(), stop=-1.0))[0], train(SIHG(THREAT, zeros()))[0], atol=0)


def test_new_examples_start_at_random_points_and_the_bank_can_start_anew() -> None:
    store = bank()
    train(SIHG(THREAT, store, ascent=0), max_steps=3)
    kept = store.get(torch.arange(24))
    assert store.seen.all() and kept.std() > EPSILON / 4
    train(SIHG(THREAT, store, ascent=0), max_steps=3)
    assert torch.equal(store.get(torch.arange(24)), kept)
    train(SIHG(THREAT, store, ascent=0, reset_every=1), max_steps=6)
    assert not torch.equal(store.get(torch.arange(24)), kept)


def test_perturbations_stay_with_the_originals_pixels_under_flips_and_crops() -> None:
    """A linear model pulls every pixel up or down for good: so does the bank, whatever the view was."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0], [-1.0]]).expand(3, 36))  # type: ignore[union-attr]
    store, data = zeros(), Images()
    method = SIHG(THREAT, store, alpha=1.0, augmentation=FlipCrop(pad=2))
    train(method, model, data, max_steps=12, learning_rate=1e-9)
    kept = store.get(torch.arange(24)).double()
    sign = torch.where(data.labels == 0, -1.0, 1.0).double()[:, None, None, None]
    worst = clip(EPSILON * sign * torch.ones_like(data.pixels), data.pixels)
    there = kept != 0
    torch.testing.assert_close(kept[there], worst[there], atol=1e-6, rtol=0)
    assert there.double().mean() > 0.9
    assert torch.equal(clip(kept, data.pixels).float(), kept.float())


def test_a_bank_of_8_bits_trains_about_as_well() -> None:
    one, other = (train(SIHG(THREAT, bank(dtype)), max_steps=30)[1] for dtype in ("float32", "int8"))
    assert other.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=0.05)


# Resuming


class Killed(Exception):
    pass


class Killer(Callback):
    def on_step_end(self, state: FitState) -> None:
        if state.step == 5:
            raise Killed


@pytest.mark.parametrize(
    "make",
    [
        lambda: SIHG(THREAT, bank("int8"), replays=2, eta=0.5, augmentation=FlipCrop(1)),
        lambda: SIHG(THREAT, bank(), eta=1.0, reset=False, reset_every=1),
        lambda: SIHG(THREAT, init="carry", order="fused"),
        lambda: FreeTraining(THREAT, 2),
        lambda: SIHGTable(THREAT, 24, 0.1),
        lambda: Averaged(PGDTraining(THREAT, 2), decay=0.9),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(make: Callable[[], Any], tmp_path: Path) -> None:
    """Bank, table, carried perturbations, the gradient before and averages come back."""
    whole = make()
    expected, _ = train(whole, max_steps=9, momentum=0.9)
    with pytest.raises(Killed):
        train(make(), max_steps=9, momentum=0.9, output_dir=tmp_path, save_every=4, callbacks=[Killer()])
    again = make()
    model, result = train(again, max_steps=9, momentum=0.9, output_dir=tmp_path, resume=True)
    assert result.resumed_from == 4
    assert_same(model, expected, atol=0)
    assert _flat(again.state_dict()) == _flat(whole.state_dict())


def test_r2_resumes(tmp_path: Path) -> None:
    def run(**settings: Any) -> nn.Module:
        return train(SIHGFull(THREAT, 24, 0.1), batch_size=24, max_steps=7, **settings)[0]

    with pytest.raises(Killed):
        run(output_dir=tmp_path, save_every=4, callbacks=[Killer()])
    assert_same(run(output_dir=tmp_path, resume=True), run(), atol=0)


def _flat(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.tolist()
    return {key: _flat(value) for key, value in state.items()} if isinstance(state, dict) else state


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SIHG(THREAT), "give both or neither"),
        (lambda: SIHG(THREAT, bank(), init="random"), "give both or neither"),
        (lambda: SIHG(THREAT, init="start"), "init is 'start'"),  # type: ignore[arg-type]
        (lambda: SIHG(THREAT, bank(), order="free"), "order is 'free'"),  # type: ignore[arg-type]
        (lambda: SIHG(THREAT, bank(), eta=-1), "eta is -1"),
        (lambda: SIHG(THREAT, bank(), replays=0), "replays is 0"),
        (lambda: SIHG(THREAT, bank(), ascent=-1), "ascent is -1"),
        (lambda: SIHG(THREAT, bank(), reset_every=0), "reset_every is 0"),
        (lambda: SIHG(THREAT, bank(), alpha=float("inf")), "alpha is inf"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bank_that_is_too_small_is_noticed() -> None:
    with pytest.raises(IndexError, match="the bank has 10 examples"):
        train(SIHG(THREAT, bank(size=10)), batch_size=24)
