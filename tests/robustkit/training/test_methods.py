"""Step methods through `fit`, against loops written by hand and against each other; costs; bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import L2, LInf
from robustkit.training import (
    FGSMRS,
    MART,
    SIHG,
    TRADES,
    YOPO,
    DynamicTraining,
    FlipCrop,
    FreeTraining,
    Natural,
    PerturbationBank,
    PGDTraining,
    SIHGFull,
    SIHGTable,
)
from robustkit.training.trades import boosted_cross_entropy, divergence
from tests.robustkit.training.toys import (
    EPSILON,
    SHAPE,
    THREAT,
    Images,
    assert_other,
    assert_same,
    batches,
    clip,
    images,
    input_gradient,
    network,
    train,
    weights,
)
from trainkit import CheckpointFolder

Pixels = tuple[Tensor, Tensor]


def by_hand(perturb: Callable[[nn.Module, Tensor, Tensor], Tensor], steps: int = 6) -> nn.Module:
    """SGD at 0.1 on perturbed batches."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, inputs, labels in batches(steps):
        moved = inputs + perturb(model, inputs, labels)
        nn.functional.cross_entropy(model(moved), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def bank(size: int = 24) -> PerturbationBank:
    return PerturbationBank(size, SHAPE, EPSILON, dtype="float32")


# Identities


def test_natural_training_is_sgd() -> None:
    model, result = train(Natural())
    assert_same(model, by_hand(lambda model, inputs, labels: torch.zeros_like(inputs)))
    assert result.history[0]["cost"] == 3


def test_pgd_training_is_madrys_loop() -> None:
    def pgd(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        delta = torch.zeros_like(inputs)
        for _ in range(3):
            delta = clip(delta + 0.25 * EPSILON * input_gradient(model, inputs, delta, labels).sign(), inputs)
        return delta

    model, _ = train(PGDTraining(THREAT, 3, random_start=False))
    assert_same(model, by_hand(pgd))
    assert_other(model, train(Natural())[0])


def test_pgd_training_without_steps_and_start_is_natural() -> None:
    assert_same(train(PGDTraining(THREAT, 0, random_start=False))[0], train(Natural())[0])


def test_5_6_sihg_with_random_starts_is_fgsm_rs() -> None:
    """One replay, no extrapolation, the same random numbers: equal weights after 6 steps."""
    fast = train(FGSMRS(THREAT))[0]
    assert_same(train(SIHG(THREAT, init="random", alpha=1.25))[0], fast, atol=0)
    assert_same(train(PGDTraining(THREAT, 1, 1.25))[0], fast, atol=0)
    assert_other(train(SIHG(THREAT, init="random", alpha=1.0))[0], fast)


def test_free_with_one_replay_starts_as_natural_training_and_carries_over() -> None:
    """The first batch is met without perturbation; what it leaves meets the second."""
    assert_same(train(FreeTraining(THREAT, 1), max_steps=1)[0], train(Natural(), max_steps=1)[0])

    (_, first, its_labels), (_, second, labels) = batches(2)
    model = network()
    delta = clip(EPSILON * input_gradient(model, first, torch.zeros_like(first), its_labels).sign(), first)
    expected = by_hand(
        lambda model, inputs, _: (
            clip(delta, inputs) if torch.equal(inputs, second) else torch.zeros_like(inputs)
        ),
        2,
    )
    method = FreeTraining(THREAT, 1)
    assert_same(train(method, max_steps=2)[0], expected)
    assert len(labels) == 8 and method.carried is not None


@pytest.mark.parametrize("replays", [1, 3])
def test_free_is_fused_sihg_that_carries_over(replays: int) -> None:
    free = train(FreeTraining(THREAT, replays, 0.5))[0]
    fused = SIHG(THREAT, init="carry", order="fused", alpha=0.5, replays=replays)
    assert_same(train(fused)[0], free, atol=0)


def test_yopo_with_one_round_is_plain_training_at_the_start() -> None:
    """N = 0 as well: rounds at one and the same point average to its gradient."""
    start = train(PGDTraining(THREAT, 0))[0]
    assert_same(train(YOPO(THREAT, 1, 3))[0], start)
    assert_same(train(YOPO(THREAT, 3, 0))[0], start)


def test_yopos_first_inner_step_is_pgds_first_step() -> None:
    """Then two rounds average the weights' gradients before and after PGD's step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, inputs, labels in batches(6):
        zero = torch.zeros_like(inputs)
        step = clip(0.25 * EPSILON * input_gradient(model, inputs, zero, labels).sign(), inputs)
        for delta in (zero, step):
            (nn.functional.cross_entropy(model(inputs + delta), labels) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(train(YOPO(THREAT, 2, 1, random_start=False))[0], model)


def test_yopos_later_inner_steps_hold_the_slope() -> None:
    """The second inner step differs from PGD's: it uses the first layer at the new point, the old slope."""
    model = network()
    _, inputs, labels = batches(1)[0]
    conv, rest = model[0], model[1:]  # type: ignore[index]
    out = conv(inputs).detach().requires_grad_()
    nn.functional.cross_entropy(rest(out), labels, reduction="sum").backward()
    model.zero_grad()
    slope, delta = out.grad, torch.zeros_like(inputs)
    for _ in range(2):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad((conv(inputs + delta) * slope).sum(), delta)
        delta = clip(delta.detach() + 0.25 * EPSILON * gradient.sign(), inputs)
    for point in (torch.zeros_like(inputs), delta):
        (nn.functional.cross_entropy(model(inputs + point), labels) / 2).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert_same(train(YOPO(THREAT, 2, 2, random_start=False), max_steps=1)[0], model)
    named = train(YOPO(THREAT, 2, 2, first="0", random_start=False), max_steps=1)[0]
    assert_same(named, model)


def test_yopo_reads_the_first_layer_before_an_activation_in_place() -> None:
    def rectifier(inplace: bool) -> nn.Module:
        model = network()
        model[1] = nn.ReLU(inplace=inplace)  # type: ignore[operator]
        return model

    assert_same(train(YOPO(THREAT, 3, 2), rectifier(True))[0], train(YOPO(THREAT, 3, 2), rectifier(False))[0])


def test_dynamic_training_with_threshold_0_is_pgd() -> None:
    pgd, run = train(PGDTraining(THREAT, 4))
    dynamic, other = train(DynamicTraining(THREAT, 4, c_max=0.0, horizon=10))
    assert_same(dynamic, pgd)
    assert [line["cost"] for line in other.history] == [line["cost"] for line in run.history] == [11] * 6


def test_dynamic_training_with_an_infinite_threshold_takes_the_first_step_only() -> None:
    dynamic, run = train(DynamicTraining(THREAT, 4, c_max=math.inf, horizon=10))
    assert_same(dynamic, train(PGDTraining(THREAT, 1))[0])
    assert run.history[0]["cost"] == 2 * 2 + 3


def test_dynamic_thresholds_fall_and_save_passes_in_between() -> None:
    method = DynamicTraining(THREAT, 8, 0.5, c_max=0.02, horizon=100)
    assert [method.threshold(step) for step in (0, 50, 100, 200)] == [0.02, 0.01, 0.0, 0.0]
    costs = [line["cost"] for line in train(method)[1].history]
    assert all(2 * 1 + 3 <= cost <= 2 * 8 + 3 for cost in costs) and min(costs) < 19


def test_trades_with_beta_0_is_natural() -> None:
    assert_same(train(TRADES(THREAT, 2, beta=0.0))[0], train(Natural())[0])
    assert_other(train(TRADES(THREAT, 2, beta=6.0))[0], train(Natural())[0])


def test_trades_loss_by_hand() -> None:
    clean = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    p, q = clean.softmax(1), other.softmax(1)
    torch.testing.assert_close(divergence(clean, other), (p * (p / q).log()).sum(1))
    assert float(divergence(clean, clean)) == pytest.approx(0, abs=1e-15)
    # Also with beta > 0 and no step: the gradient goes through both sides.
    (_, inputs, labels), model = batches(1)[0], network()
    method = TRADES(THREAT, 0, beta=3.0)
    noise = torch.Generator()
    seen: list[Tensor] = []
    play = method.play

    def spy(game: Any, context: Any) -> Any:
        noise.set_state(context.generator.get_state())
        seen.append(game.inputs)
        return play(game, context)

    method.play = spy  # type: ignore[method-assign]
    trained, _ = train(method, max_steps=1)
    delta = clip(0.001 * torch.randn(inputs.shape, generator=noise).double(), inputs)
    assert torch.equal(seen[0], inputs)
    (
        nn.functional.cross_entropy(model(inputs), labels)
        + 3 * divergence(model(inputs), model(inputs + delta)).mean()
    ).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert_same(trained, model)


def test_mart_by_hand() -> None:
    """-log p_y - log(1 - largest other p); with weight 0 that is all."""
    logits = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    expected = -math.log(0.2) - math.log(0.5)
    assert float(boosted_cross_entropy(logits, torch.tensor([0]))) == pytest.approx(expected)

    (_, inputs, labels), model = batches(1)[0], network()
    step = clip(
        0.25 * EPSILON * input_gradient(model, inputs, torch.zeros_like(inputs), labels).sign(), inputs
    )
    perturbed, clean = model(inputs + step), model(inputs)
    loss = boosted_cross_entropy(perturbed, labels)
    wrong = 1 - clean.softmax(1)[torch.arange(8), labels]
    (loss + 5 * divergence(clean, perturbed) * wrong).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert_same(train(MART(THREAT, 1, random_start=False), max_steps=1)[0], model)


def test_label_smoothing_is_both_players() -> None:
    (_, inputs, labels), model = batches(1)[0], network()

    def loss(delta: Tensor) -> Tensor:
        log_p = model(inputs + delta).log_softmax(1)
        return -(0.7 * log_p[torch.arange(8), labels] + 0.3 * log_p.mean(1))

    delta = torch.zeros_like(inputs).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(delta).sum(), delta)
    loss(clip(0.25 * EPSILON * gradient.sign(), inputs)).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    method = PGDTraining(THREAT, 1, random_start=False, label_smoothing=0.3)
    assert_same(train(method, max_steps=1)[0], model)


# Cost


@pytest.mark.parametrize(
    ("method", "units"),
    [
        (Natural(), 3),
        (FGSMRS(THREAT), 5),
        (PGDTraining(THREAT, 7), 17),
        (TRADES(THREAT, 5), 17),
        (MART(THREAT, 5), 16),
        (FreeTraining(THREAT, 4), 12),
        (YOPO(THREAT, 5, 3), 15),
        (SIHG(THREAT, bank()), 5),
        (SIHG(THREAT, bank(), ascent=3), 9),
        (SIHG(THREAT, bank(), replays=2, ascent=2), 14),
        (SIHG(THREAT, bank(), order="fused"), 3),
        (SIHG(THREAT, bank(), order="fused", replays=4), 12),
    ],
)
def test_costs_are_those_of_the_table(method: Any, units: int) -> None:
    """Specification adversarial_training_baselines.md, section 2."""
    _, result = train(method, max_steps=2)
    assert [line["cost"] for line in result.history] == [units, units]
    assert method.cost.units == 2 * 8 * units


# The model stays itself


@pytest.mark.parametrize("make", [lambda: PGDTraining(THREAT, 3), lambda: YOPO(THREAT, 1, 2)])
def test_passes_of_the_perturbation_leave_batch_norm_alone(make: Callable[[], Any]) -> None:
    """One training forward a step moves the statistics once; frozen modules stay frozen."""
    model = network(norm=True)
    train(make(), model, max_steps=3)
    assert int(model[1].num_batches_tracked) == 3  # type: ignore[index, union-attr]

    counted = network(norm=True)
    train(PGDTraining(THREAT, 3, mode="train"), counted, max_steps=3)
    assert int(counted[1].num_batches_tracked) == 12  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGDTraining(L2(0.5), 2),
        lambda: TRADES(L2(0.5), 2),
        lambda: SIHG(L2(0.5), PerturbationBank(24, SHAPE, 0.5)),
        lambda: DynamicTraining(L2(0.5), 3, horizon=10),
        lambda: FreeTraining(L2(0.5), 2),
        lambda: YOPO(L2(0.5), 2, 2),
    ],
)
def test_other_sets_and_momentum_train(make: Callable[[], Any]) -> None:
    _, result = train(make(), momentum=0.9, max_steps=30, learning_rate=0.05)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2


def test_augmentation_moves_what_the_model_sees() -> None:
    plain = train(PGDTraining(THREAT, 1))[0]
    moved = train(PGDTraining(THREAT, 1, augmentation=FlipCrop(pad=2)))[0]
    assert_other(plain, moved)
    still = train(Natural(augmentation=FlipCrop(pad=0, flip=False)))[0]
    assert_same(still, train(Natural())[0])


def test_image_data_sets_of_the_hub_and_models_with_output_objects() -> None:
    """Mappings with pixel_values and label, and a model that returns an object with logits."""
    from transformers.modeling_outputs import ImageClassifierOutput

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, pixels: Tensor) -> ImageClassifierOutput:
            return ImageClassifierOutput(logits=self.inner(pixels))

    pixels, labels = images()
    rows = [{"pixel_values": p, "label": int(y)} for p, y in zip(pixels, labels, strict=True)]
    model, _ = train(PGDTraining(THREAT, 2), Wrapped(), rows)
    assert_same(model, train(PGDTraining(THREAT, 2))[0])


# Bad input


class Broken(Images):
    def __init__(self, pixels: Tensor | None = None, labels: Tensor | None = None) -> None:
        super().__init__()
        self.pixels = self.pixels if pixels is None else pixels
        self.labels = self.labels if labels is None else labels


def test_inputs_outside_the_box_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the box"):
        train(PGDTraining(THREAT, 1), data=Broken(pixels=images()[0] * 255))


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="labels go from 1 to 3; the model has 3 classes"):
        train(PGDTraining(THREAT, 1), data=Broken(labels=images()[1] + 1), batch_size=24)


def test_epsilon_in_the_wrong_unit_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="8/255, not 8"):
        PGDTraining(LInf(8), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGDTraining(THREAT, -1), "steps is -1"),
        (lambda: PGDTraining(THREAT, alpha=0), "alpha is 0"),
        (lambda: PGDTraining(THREAT, label_smoothing=1.0), "label_smoothing is 1"),
        (lambda: PGDTraining(THREAT, mode="test"), "mode is 'test'"),  # type: ignore[arg-type]
        (lambda: FreeTraining(THREAT, 0), "replays is 0"),
        (lambda: DynamicTraining(THREAT, c_max=-1, horizon=5), "c_max is -1"),
        (lambda: DynamicTraining(THREAT, horizon=0), "horizon is 0"),
        (lambda: YOPO(THREAT, 0), "rounds is 0"),
        (lambda: TRADES(THREAT, beta=-1), "beta is -1"),
        (lambda: MART(THREAT, weight=-1), "weight is -1"),
        (lambda: FlipCrop(pad=-1), "pad is -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_yopo_names_a_missing_first_layer() -> None:
    with pytest.raises(ValueError, match="'stem'; Sequential has no such module"):
        train(YOPO(THREAT, first="stem"))


def test_other_examples_than_pairs_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a pair of input and label"):
        train(Natural(), data=[torch.zeros(3)] * 24)


class Poisoned(Images):
    """One example is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels[int(batches(6)[4][0][0])] = math.nan


@pytest.mark.parametrize(
    "make",
    [
        lambda: Natural(),
        lambda: SIHG(LInf(EPSILON, box=None), bank()),
        lambda: FreeTraining(LInf(EPSILON, box=None), 2),
    ],
)
def test_a_nan_stops_the_run_and_the_last_good_checkpoint_stays(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    """The example turns up in step 5; the checkpoint of step 2 holds finite weights."""
    model = network()
    with pytest.raises((FloatingPointError, ValueError), match=r"step \d: the norm|NaN"):
        train(make(), model, Poisoned(), output_dir=tmp_path, save_every=2)
    newest = CheckpointFolder(tmp_path / "checkpoints").latest()
    assert newest is not None and newest.name in ("step-00000002", "step-00000004")
    assert torch.isfinite(weights(model)).all()


def test_theory_methods_check_their_settings() -> None:
    for make in (SIHGFull, SIHGTable):
        with pytest.raises(ValueError, match="size is 0"):
            make(THREAT, 0, 0.1)
        with pytest.raises(ValueError, match="s is 0"):
            make(THREAT, 5, 0.0)
    with pytest.raises(ValueError, match="a batch has 8 of 24"):
        train(SIHGFull(THREAT, 24, 0.1))
    with pytest.raises(ValueError, match="size is 10; the data set has example"):
        train(SIHGTable(THREAT, 10, 0.1), batch_size=24)
