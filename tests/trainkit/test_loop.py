from __future__ import annotations

import copy
import json
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainkit.toys import (
    AdversarialRegression,
    Points,
    Sentences,
    TinyLM,
    TokenLoss,
    lines,
    regressor,
    squared_error,
    weights,
)
from trainkit import Callback, FitConfig, FitResult, FitState, Loss, Progress, StepContext, fit
from trainkit.batches import BatchPlan
from trainkit.optim import default_optimizer, schedule_factor
from trainkit.seeding import epoch_permutation


def assert_close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, atol: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=atol, msg=name)


def assert_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert_close(first, second, atol=0)
    assert all(torch.equal(first[name], second[name]) for name in first)


# The update


def test_fit_does_what_a_plain_loop_does() -> None:
    data, batch_size, steps, rate = Points(13), 4, 9, 0.05
    reference = regressor()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    losses = []
    for step in range(steps):
        epoch, index = divmod(step, 4)
        order = epoch_permutation(13, seed=7, epoch=epoch)
        ids = order[index * batch_size : (index + 1) * batch_size]
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        loss = ((reference(data.inputs[ids]) - data.targets[ids]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())

    model = regressor()
    result = fit(
        model,
        squared_error,
        data,
        config=FitConfig(
            max_steps=steps,
            batch_size=batch_size,
            learning_rate=rate,
            weight_decay=0.1,
            max_grad_norm=0.5,
            seed=7,
            log_every=1,
        ),
    )
    assert_close(weights(model), weights(reference))
    assert [line["loss"] for line in result.history] == pytest.approx(losses, rel=1e-5)
    assert result.steps == steps and result.num_processes == 1


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_accumulation_equals_one_large_batch_for_token_weighted_losses(
    micro_batch_size: int, max_grad_norm: float | None
) -> None:
    """Sentences differ in length, and the last batch of an epoch has 2 of 8 examples."""

    def train(micro: int | None) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[int]]:
        model, objective = TinyLM(), TokenLoss()
        result = fit(
            model,
            objective,
            Sentences(18),
            config=FitConfig(
                epochs=3,
                batch_size=8,
                micro_batch_size=micro,
                learning_rate=0.02,
                max_grad_norm=max_grad_norm,
                log_every=2,
            ),
        )
        return weights(model), lines(result.history), objective.sizes

    whole, whole_lines, whole_sizes = train(None)
    parts, part_lines, part_sizes = train(micro_batch_size)
    assert_close(whole, parts, atol=2e-6)
    assert sum(whole_sizes) == sum(part_sizes) == 3 * 18
    assert max(part_sizes) == micro_batch_size
    for one, other in zip(whole_lines, part_lines, strict=True):
        for name in ("loss", "accuracy", "grad_norm", "learning_rate", "step"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_a_mean_of_micro_batch_means_would_differ() -> None:
    """The equality above is no accident of the data: wrong weights are visible."""

    def per_batch_mean(model: Any, batch: Tensor) -> Loss:
        loss = TokenLoss()(model, batch)
        return Loss(loss.total / loss.weight, 1.0)

    per_batch_mean.collate = TokenLoss().collate  # type: ignore[attr-defined]
    trained = []
    for micro in (None, 3):
        model = TinyLM()
        config = FitConfig(epochs=3, batch_size=8, micro_batch_size=micro, learning_rate=0.02)
        fit(model, per_batch_mean, Sentences(18), config=config)
        trained.append(weights(model))
    assert (trained[0]["mix.weight"] - trained[1]["mix.weight"]).abs().max() > 1e-3


def test_every_example_is_seen_once_an_epoch_and_drop_last_leaves_a_rest() -> None:
    seen: list[list[int]] = []

    def watch(model: Any, batch: Tensor) -> Loss:
        seen.append(batch.tolist())
        return Loss(model(torch.ones(1, 4)).sum(), len(batch))

    fit(regressor(), watch, list(range(10)), config=FitConfig(epochs=2, batch_size=4))
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*seen[:3])), list(chain(*seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    seen.clear()
    fit(regressor(), watch, list(range(10)), config=FitConfig(epochs=1, batch_size=4, drop_last=True))
    assert [len(batch) for batch in seen] == [4, 4]
    assert list(chain(*seen)) == first[:8]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    micro=st.none() | st.integers(1, 6),
    world=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_processes_share_every_batch_and_run_equally_many_passes(
    length: int, batch_size: int, micro: int | None, world: int, drop_last: bool
) -> None:
    plans = [BatchPlan(length, batch_size, micro, drop_last, 3, rank, world) for rank in range(world)]
    order = plans[0].order(1)
    seen = []
    for index in range(plans[0].steps_per_epoch):
        parts = [list(plan.micro_batches(order, 1, index)) for plan in plans]
        assert len({len(part) for part in parts}) == 1
        ids = [i for part in parts for micro_batch in part if micro_batch.real for i in micro_batch.ids]
        assert ids == order[index * batch_size : (index + 1) * batch_size].tolist()
        assert len(ids) == sum(plans[0].shares(index))
        for part in parts:
            assert [micro_batch.last for micro_batch in part] == [False] * (len(part) - 1) + [True]
            assert all(1 <= len(micro_batch.ids) <= (micro or batch_size) for micro_batch in part)
        seen += ids
    assert sorted(seen) == (sorted(order[: len(seen)].tolist()))
    assert len(seen) == (length - length % batch_size if drop_last else length)


# Schedules and optimizer


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("one_cycle", [0.04, 1.0, 0.853554, 0.500002, 0.146450, 0.000004]),
    ],
)
def test_schedules_match_values_computed_by_hand(schedule: Any, expected: list[float]) -> None:
    factors = [schedule_factor(step, 6, schedule=schedule, warmup=2) for step in range(6)]
    assert factors == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("total", [7, 20, 101])
def test_one_cycle_without_warmup_is_torchs(total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=total)
    for step in range(total):
        factor = schedule_factor(step, total, schedule="one_cycle", warmup=0)
        assert 2.0 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step + 1 < total:
            reference.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "one_cycle", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
def test_a_schedule_stays_in_range_and_reaches_its_peak(schedule: Any, warmup: int) -> None:
    factors = [schedule_factor(step, 5, schedule=schedule, warmup=warmup) for step in range(5)]
    assert all(0 < factor <= 1 for factor in factors)
    if warmup <= 5 and schedule != "one_cycle":
        assert max(factors) == 1.0


def test_the_learning_rate_of_every_group_follows_the_schedule() -> None:
    rates: list[list[float]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        first, *rest = model.parameters()
        return Watched([{"params": [first], "lr": 1.0}, {"params": rest, "lr": 0.1}], lr=0.5)

    config = FitConfig(max_steps=4, batch_size=4, warmup_ratio=0.5, log_every=1)
    result = fit(regressor(), squared_error, Points(8), config=config, optimizer=make)
    assert rates == [pytest.approx([rate, rate / 10]) for rate in (0.5, 1.0, 1.0, 0.5)]
    assert [line["learning_rate"] for line in result.history] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    model = TinyLM()
    model.mix.bias.requires_grad_(False)
    decayed, spared = default_optimizer(model, FitConfig(max_steps=1, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model.mix.weight)]
    assert {id(p) for p in spared["params"]} == {
        id(model.embedding.weight),
        id(model.norm.weight),
        id(model.norm.bias),
    }
    decayed, spared = default_optimizer(model, FitConfig(max_steps=1, decay_embeddings=True)).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model.mix.weight), id(model.embedding.weight)}


# Metrics, evaluation, early stopping


def test_a_line_of_metrics_averages_over_its_steps_by_weight(tmp_path: Path) -> None:
    def objective(model: Any, batch: Tensor) -> Loss:
        value = batch.sum()
        return Loss(
            model(torch.zeros(1, 4)).sum() * 0 + value * 10,
            value,
            {"pair": (len(batch) * 2.0, len(batch)), "plain": float(value)},
        )

    numbers = [1.0, 2.0, 3.0, 4.0, 5.0]
    config = FitConfig(output_dir=tmp_path, epochs=1, batch_size=2, log_every=2)
    result = fit(regressor(), objective, numbers, config=config)
    first, second = result.history
    assert (first["step"], second["step"]) == (2, 3)
    order = epoch_permutation(5, seed=0, epoch=0).tolist()
    batches = [sum(numbers[i] for i in order[start : start + 2]) for start in (0, 2, 4)]
    assert first["loss"] == second["loss"] == pytest.approx(10)
    assert first["pair"] == second["pair"] == pytest.approx(2)
    assert first["plain"] == pytest.approx((batches[0] ** 2 + batches[1] ** 2) / (batches[0] + batches[1]))
    assert second["plain"] == pytest.approx(batches[2])
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == list(result.history)


def test_an_objective_must_always_name_the_same_metrics() -> None:
    def objective(model: Any, batch: Any) -> Loss:
        loss = squared_error(model, batch)
        return Loss(loss.total, loss.weight, {"b" if len(batch[0]) == 1 else "a": 1.0})

    with pytest.raises(ValueError, match=r"same metrics.*'a'.*'b'"):
        fit(
            regressor(), objective, Points(4), config=FitConfig(max_steps=1, batch_size=4, micro_batch_size=3)
        )


def test_evaluation_happens_in_evaluation_mode_and_does_not_change_the_run() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, model.mix.training, torch.is_grad_enabled()))  # type: ignore[union-attr]
        random.random(), np.random.rand(), torch.rand(3)
        torch.manual_seed(99)
        return {"loss": 1.0}

    class FrozenNorm(TinyLM):
        def train(self, mode: bool = True) -> FrozenNorm:
            super().train(mode)
            self.norm.eval()
            return self

    with_evaluation, without = FrozenNorm(dropout=0.3), FrozenNorm(dropout=0.3)
    config = FitConfig(epochs=2, batch_size=4, eval_every=2)
    modes: list[tuple[bool, bool]] = []

    class Modes(Callback):
        def on_evaluate(self, state: FitState, metrics: Mapping[str, float]) -> None:
            modes.append((state.model.training, state.model.norm.training))  # type: ignore[union-attr]

    data = Sentences(10, noise=True)
    fit(with_evaluation, TokenLoss(), data, config=config, evaluate=evaluate, callbacks=[Modes()])
    fit(without, TokenLoss(), data, config=config)
    assert seen == [(False, False, False)] * 3
    assert modes == [(True, False)] * 3
    assert_equal(weights(with_evaluation), weights(without))
    assert not with_evaluation.training


def test_without_eval_every_evaluation_ends_every_epoch_and_the_run() -> None:
    def steps(config: FitConfig) -> list[int]:
        result = fit(regressor(), squared_error, Points(10), config=config, evaluate=lambda _: {"loss": 0.0})
        return [line["step"] for line in result.history if line["split"] == "eval"]

    assert steps(FitConfig(epochs=2, batch_size=4)) == [3, 6]
    assert steps(FitConfig(max_steps=4, batch_size=4)) == [3, 4]
    assert steps(FitConfig(max_steps=5, batch_size=4, eval_every=2)) == [2, 4, 5]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("greater_is_better", [False, True])
def test_early_stopping_restores_the_best_weights(
    tmp_path: Path, on_disk: bool, greater_is_better: bool
) -> None:
    sign = -1.0 if greater_is_better else 1.0
    values = iter([5.0, 3.0, 4.0, math.nan, 2.0])
    snapshots: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        snapshots.append(weights(model))
        return {"score": sign * next(values)}

    model = TinyLM()
    result = fit(
        model,
        TokenLoss(),
        Sentences(8),
        config=FitConfig(
            output_dir=tmp_path if on_disk else None,
            max_steps=50,
            batch_size=4,
            eval_every=3,
            patience=2,
            metric_for_best="score",
            greater_is_better=greater_is_better,
            learning_rate=0.05,
            log_every=100,
        ),
        evaluate=evaluate,
    )
    assert result.stopped_early
    assert (result.steps, result.best_step, result.best_metric) == (12, 6, sign * 3.0)
    assert_equal(weights(model), snapshots[1])
    assert not torch.equal(snapshots[1]["mix.weight"], snapshots[3]["mix.weight"])
    assert model.head.weight is model.embedding.weight
    assert [line["step"] for line in result.history if line["split"] == "train"] == [12]
    assert [line["score"] for line in result.history if line["split"] == "eval"] == [
        sign * 5.0,
        sign * 3.0,
        sign * 4.0,
        None,
    ]


def test_without_patience_the_last_weights_stay_unless_the_best_are_asked_for() -> None:
    def train(restore_best: bool | None) -> tuple[FitResult, dict[str, Tensor], list[dict[str, Tensor]]]:
        snapshots: list[dict[str, Tensor]] = []

        def evaluate(model: nn.Module) -> dict[str, float]:
            snapshots.append(weights(model))
            return {"loss": float(len(snapshots))}

        model = regressor()
        config = FitConfig(max_steps=4, batch_size=4, eval_every=2, restore_best=restore_best)
        result = fit(model, squared_error, Points(8), config=config, evaluate=evaluate)
        return result, weights(model), snapshots

    result, last, snapshots = train(None)
    assert (result.best_step, result.best_metric, result.stopped_early) == (2, 1.0, False)
    assert_equal(last, snapshots[1])
    _, best, snapshots = train(True)
    assert_equal(best, snapshots[0])


def test_the_deciding_metric_must_be_among_the_results() -> None:
    config = FitConfig(max_steps=2, batch_size=4, patience=1, metric_for_best="f1")
    with pytest.raises(ValueError, match=r"'f1'.*\['loss'\]"):
        fit(regressor(), squared_error, Points(4), config=config, evaluate=lambda _: {"loss": 1.0})


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = FitConfig(output_dir=tmp_path, max_steps=3, batch_size=4, log_every=1, tensorboard=True)
    result = fit(regressor(), squared_error, Points(8), config=config, evaluate=lambda _: {"loss": 7.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [line["loss"] for line in result.history if line["split"] == "train"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(2, 7.0), (3, 7.0)]


# Callbacks and output


def test_callbacks_see_the_run_and_may_end_it(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Recorder(Callback):
        def on_step_end(self, state: FitState) -> None:
            calls.append(("step", state.step, state.epoch))
            assert math.isfinite(state.loss)
            if state.step == 4:
                state.stop()

        def on_evaluate(self, state: FitState, metrics: Mapping[str, float]) -> None:
            calls.append(("evaluate", state.step, dict(metrics)))

        def on_save(self, state: FitState, path: Path) -> None:
            calls.append(("save", state.step, path.name))

        def on_end(self, state: FitState, result: FitResult) -> None:
            calls.append(("end", result.steps, result.stopped_early))

    config = FitConfig(output_dir=tmp_path, max_steps=100, batch_size=4, eval_every=3, save_every=3)
    result = fit(
        regressor(),
        squared_error,
        Points(12),
        config=config,
        evaluate=lambda _: {"loss": 1.0},
        callbacks=[Recorder()],
    )
    assert calls == [
        ("step", 1, 0),
        ("step", 2, 0),
        ("step", 3, 0),
        ("evaluate", 3, {"loss": 1.0}),
        ("save", 3, "step-00000003"),
        ("step", 4, 1),
        ("evaluate", 4, {"loss": 1.0}),
        ("save", 4, "step-00000004"),
        ("end", 4, True),
    ]
    assert result.stopped_early and result.steps == 4


def test_a_run_prints_nothing_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    fit(regressor(), squared_error, Points(8), config=FitConfig(max_steps=2, batch_size=4))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_bar_shows_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(3, "hidden") as bar:
        bar.advance(note="x")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(3, "shown", done=1) as bar:
        bar.advance()
        bar.advance(note="loss 1.5")
    shown = capsys.readouterr().err
    assert "shown" in shown and "3/3" in shown and "loss 1.5" in shown
    with Progress(3, "switched off", enabled=False) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


# Precision, compilation, loading


def test_bf16_trains_master_weights_in_fp32_and_gives_the_model_back_unwrapped() -> None:
    seen: set[torch.dtype] = set()

    class Probe(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            seen.add(output.dtype)
            return output

    torch.manual_seed(0)
    model = nn.Sequential(Probe(4, 8), nn.Tanh(), Probe(8, 1))
    evaluated: list[torch.dtype] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        evaluated.append(model(torch.ones(1, 4)).dtype)
        return {"loss": 0.0}

    config = FitConfig(epochs=20, batch_size=8, learning_rate=0.05, mixed_precision="bf16", log_every=1)
    result = fit(model, squared_error, Points(16), config=config, evaluate=evaluate)
    losses = [line["loss"] for line in result.history if line["split"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert seen == {torch.bfloat16} and set(evaluated) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model)
    seen.clear()
    model(torch.ones(1, 4))
    assert seen == {torch.float32}
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_runs_of_different_precision_follow_each_other() -> None:
    losses = []
    for precision in ("no", "bf16", "no"):
        config = FitConfig(max_steps=3, batch_size=4, mixed_precision=precision, log_every=3)  # type: ignore[arg-type]
        losses.append(fit(regressor(), squared_error, Points(8), config=config).history[-1]["loss"])
    assert losses[0] == losses[2] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.fixture
def no_state() -> Iterator[None]:
    """Accelerate as in a new process, before and after."""
    for state in (AcceleratorState._shared_state, GradientState._shared_state):
        state.clear()
    yield
    for state in (AcceleratorState._shared_state, GradientState._shared_state):
        state.clear()


@pytest.mark.usefixtures("no_state")
def test_a_state_of_somebody_else_is_neither_used_nor_changed() -> None:
    def broken(model: Any, batch: Any) -> Loss:
        raise KeyError("broken")

    # A Trainer of transformers leaves one behind.
    others = Accelerator(cpu=True, mixed_precision="no")
    before = dict(AcceleratorState._shared_state)
    config = FitConfig(max_steps=1, batch_size=4, mixed_precision="bf16")
    fit(regressor(), squared_error, Points(8), config=config)
    assert dict(AcceleratorState._shared_state) == before
    with pytest.raises(KeyError, match="broken"):
        fit(regressor(), broken, Points(8), config=config)
    assert dict(AcceleratorState._shared_state) == before
    assert others.mixed_precision == "no"


@pytest.mark.usefixtures("no_state")
def test_a_run_inside_an_accumulating_loop_learns_and_leaves_it_as_it_was() -> None:
    others = Accelerator(cpu=True, gradient_accumulation_steps=4)
    config = FitConfig(max_steps=3, batch_size=4)
    alone = regressor()
    fit(alone, squared_error, Points(8), config=config)
    inside = regressor()
    with others.accumulate(inside):
        assert not others.sync_gradients
        fit(inside, squared_error, Points(8), config=config)
        assert not others.sync_gradients
    assert others.gradient_accumulation_steps == 4
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), inside.parameters(), strict=True))
    assert not torch.equal(next(inside.parameters()), next(regressor().parameters()))


@pytest.mark.usefixtures("no_state")
def test_the_cpu_that_is_asked_for_is_not_taken_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    with pytest.raises(ValueError, match="cpu=True, but Accelerate already runs on meta"):
        fit(regressor(), squared_error, Points(8), config=FitConfig(max_steps=1, cpu=True))


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_and_leaves_an_eager_model() -> None:
    trained = []
    for compiled in (False, True):
        model = TinyLM()
        config = FitConfig(max_steps=6, batch_size=6, compile=compiled, eval_every=3)
        evaluate = lambda model: {"loss": float(model(torch.ones(1, 3, dtype=torch.int64)).sum())}  # noqa: E731
        fit(model, TokenLoss(), Sentences(12), config=config, evaluate=evaluate)
        assert model._compiled_call_impl is None
        trained.append(weights(model))
    assert_close(trained[0], trained[1], atol=1e-5)


def test_loading_processes_do_not_change_what_is_learned() -> None:
    trained = []
    for workers in (0, 2):
        model = TinyLM()
        config = FitConfig(epochs=2, batch_size=4, micro_batch_size=3, num_workers=workers)
        fit(model, TokenLoss(), Sentences(9), config=config)
        trained.append(weights(model))
    assert_equal(*trained)


def test_random_loading_in_processes_depends_on_the_position_alone() -> None:
    """Two workers, or one, or a start in mid-epoch: an example is disturbed in the same way."""
    trained = []
    for workers in (1, 2):
        model = TinyLM()
        config = FitConfig(epochs=1, batch_size=3, num_workers=workers)
        fit(model, TokenLoss(), Sentences(9, noise=True), config=config)
        trained.append(weights(model))
    assert_equal(*trained)


def test_a_data_set_that_reads_several_rows_at_once_is_asked_once() -> None:
    class Rows(Points):
        asked: list[list[int]] = []  # noqa: RUF012

        def __getitems__(self, ids: list[int]) -> list[tuple[Tensor, Tensor]]:
            self.asked.append(ids)
            return [self[i] for i in ids]

    data = Rows(6)
    fit(regressor(), squared_error, data, config=FitConfig(epochs=1, batch_size=4))
    assert [len(ids) for ids in data.asked] == [4, 2]


# Methods that own their step


class DescentAscent:
    """min over x, max over y of x * y + y: the saddle is at x = -1, y = 0; both move at once."""

    def __init__(self, rate: float) -> None:
        self.y, self.rate = torch.tensor(1.0), rate
        self.path: list[tuple[float, float]] = []

    def step(self, model: Any, batch: Tensor, context: StepContext) -> Loss:
        x = model(torch.ones(1, 1)).squeeze()
        self.path.append((float(x.detach()), float(self.y)))
        total = (x * self.y + self.y) * len(batch)
        context.backward(total, len(batch))
        ascent = x.detach() + 1
        context.optimizer_step()
        self.y = self.y + self.rate * ascent
        return Loss(total, len(batch))

    def state_dict(self) -> Mapping[str, Any]:
        return {"y": self.y}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.y = state["y"]


def test_a_step_method_alternates_updates_as_computed_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    method = DescentAscent(0.1)
    fit(
        model,
        method,
        [0.0] * 6,
        config=FitConfig(max_steps=3, batch_size=2, schedule="constant", max_grad_norm=None),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )
    x, y, expected = 0.5, 1.0, []
    for _ in range(3):
        expected.append((x, y))
        x, y = x - 0.1 * y, y + 0.1 * (x + 1)
    assert method.path == [pytest.approx(pair) for pair in expected]
    assert float(model.weight.detach()) == pytest.approx(x) and float(method.y) == pytest.approx(y)


def test_perturbations_beside_the_data_follow_their_examples() -> None:
    data, method, model = Points(10), AdversarialRegression(10), regressor()
    config = FitConfig(epochs=4, batch_size=4, learning_rate=0.02, log_every=1)
    result = fit(model, method, data, config=config)
    assert method.visits.tolist() == [4] * 10
    assert method.perturbations.abs().max() <= 0.3 + 1e-6
    # One signed step a visit: whole multiples of the step size that differ between examples.
    multiples = method.perturbations / 0.1
    torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-4)
    assert len({tuple(row) for row in multiples.round().tolist()}) > 1
    with torch.no_grad():
        clean = ((model(data.inputs) - data.targets) ** 2).sum()
        attacked = ((model(data.inputs + method.perturbations) - data.targets) ** 2).sum()
    assert attacked > clean
    assert all(0 < line["size"] <= 4 * 0.3 + 1e-6 for line in result.history)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "max_steps and epochs"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "not both"),
        ({"schedule": "step"}, "'step'"),
        ({"mixed_precision": "fp8"}, "'fp8'"),
        ({"patience": 0}, "patience"),
        ({"resume": True}, "resume needs an output_dir"),
        ({"save_every": 5}, "save_every needs an output_dir"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(**{"max_steps": 1, **changes})


def test_settings_that_do_not_fit_the_run_are_named() -> None:
    config = FitConfig(max_steps=1, batch_size=8)
    with pytest.raises(ValueError, match="train must hold at least one example"):
        fit(regressor(), squared_error, [], config=config)
    with pytest.raises(TypeError, match="map-style data set with a length, got generator"):
        fit(regressor(), squared_error, (row for row in ()), config=config)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drop_last leaves nothing of 3 examples at batch_size 8"):
        fit(
            regressor(), squared_error, Points(3), config=FitConfig(max_steps=1, batch_size=8, drop_last=True)
        )
    with pytest.raises(ValueError, match="micro_batch_size is for objectives"):
        method = AdversarialRegression(3)
        fit(regressor(), method, Points(3), config=FitConfig(max_steps=1, micro_batch_size=2))
    with pytest.raises(ValueError, match="patience needs evaluate"):
        fit(regressor(), squared_error, Points(3), config=FitConfig(max_steps=1, patience=2))
    with pytest.raises(ValueError, match="no parameter that needs a gradient"):
        fit(nn.Identity(), squared_error, Points(3), config=config)


def test_a_loss_must_be_a_scalar_tensor_in_a_loss() -> None:
    with pytest.raises(TypeError, match="total must be a tensor, got float"):
        Loss(1.0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scalar.*\[3\]"):
        Loss(torch.zeros(3), 1)
    bare = lambda model, batch: model(batch[0]).sum()  # noqa: E731
    with pytest.raises(TypeError, match="must return a Loss, got Tensor"):
        fit(regressor(), bare, Points(3), config=FitConfig(max_steps=1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(value: float) -> None:
    calls = 0

    def objective(model: Any, batch: Any) -> Loss:
        nonlocal calls
        calls += 1
        loss = squared_error(model, batch)
        return Loss(loss.total * (value if calls == 3 else 1.0), loss.weight)

    model = regressor()
    with pytest.raises(FloatingPointError, match=f"step 3: the loss is {value}"):
        fit(model, objective, Points(8), config=FitConfig(max_steps=5, batch_size=2))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_failed_run_gives_the_model_back_unwrapped() -> None:
    def broken(model: Any, batch: Any) -> Loss:
        raise KeyError("broken")

    model = regressor()
    with pytest.raises(KeyError, match="broken"):
        fit(model, broken, Points(4), config=FitConfig(max_steps=1, mixed_precision="bf16"))
    assert "forward" not in vars(model) and "_original_forward" not in vars(model)
    fit(model, squared_error, Points(4), config=FitConfig(max_steps=1))


def test_the_documented_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    objective, method = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(objective, names)
    assert names["result"].steps == 9
    exec(objective, names)
    assert names["result"].resumed_from == 9
    exec(method, names)
    adversary = names["AdversarialRegression"](10)
    fit(regressor(), adversary, Points(10), config=FitConfig(epochs=2, batch_size=4))
    assert 0 < adversary.perturbations.abs().max() <= 0.2 + 1e-6


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    def objective(model: Any, batch: Any) -> Loss:
        return Loss((model(batch[0]) * 0).sqrt().sum(), 1)

    model = regressor()
    with pytest.raises(FloatingPointError, match="step 1: the norm of the gradient is nan"):
        fit(model, objective, Points(8), config=FitConfig(max_steps=5, batch_size=2))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_without_any_unit_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def objective(model: Any, batch: Any) -> Loss:
        return Loss(squared_error(model, batch).total * 0, 0)

    model = regressor()
    before = weights(model)
    result = fit(model, objective, Points(4), config=FitConfig(max_steps=2, batch_size=2))
    assert_equal(before, weights(model))
    assert result.steps == 2
    assert "the batch has weight 0" in caplog.text


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight of a loss must not be negative, got -2"):
        fit(
            regressor(),
            lambda model, batch: Loss(squared_error(model, batch).total, -2),
            Points(4),
            config=FitConfig(max_steps=1),
        )


def test_fewer_processes_than_expected_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="trainkit")

    def train(expected: int | None) -> str:
        caplog.clear()
        config = FitConfig(max_steps=1, batch_size=2, expected_processes=expected)
        fit(regressor(), squared_error, Points(4), config=config)
        return caplog.text

    assert train(None) == train(1) == ""
    assert "only 1 of 4 expected processes" in train(4)
    # What accelerate launch --cpu --num_processes 2 leaves in the environment of its one process.
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_MIXED_PRECISION": "no",
    }.items():
        monkeypatch.setenv(name, value)
    assert "several processes were asked for but one is running" in train(None)
    assert train(1) == ""
