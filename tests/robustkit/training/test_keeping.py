"""Averaged weights, and the watch for catastrophic overfitting."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from robustkit.training import Averaged, Natural, OverfittingWatch, PGDTraining
from tests.robustkit.training.toys import THREAT, assert_other, assert_same, images, network, train, weights
from trainkit import Callback, FitState


class Recorder(Callback):
    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_step_end(self, state: FitState) -> None:
        self.weights.append(weights(state.model))


def averaged(method: Averaged, norm: bool = False) -> tuple[Tensor, list[Tensor]]:
    recorder = Recorder()
    model, _ = train(method, network(norm=norm), callbacks=[recorder])
    own = weights(model)
    with method.applied(model):
        found = weights(model)
    assert torch.equal(weights(model), own)
    return found, recorder.weights


def test_plain_average_is_the_mean_from_start_on() -> None:
    found, seen = averaged(Averaged(Natural(), decay=None, start=2))
    torch.testing.assert_close(found, torch.stack(seen[2:]).mean(0), atol=1e-12, rtol=0)


def test_exponential_average_by_hand() -> None:
    found, seen = averaged(Averaged(PGDTraining(THREAT, 1), decay=0.4))
    expected = seen[0]
    for t, value in enumerate(seen[1:], start=2):
        kept = min(0.4, (1 + t) / (10 + t))
        expected = kept * expected + (1 - kept) * value
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_counters_of_batch_norm_are_copied() -> None:
    method = Averaged(Natural(), decay=None)
    averaged(method, norm=True)
    assert int(method.average["1.num_batches_tracked"]) == 6


def test_the_average_changes_nothing_of_the_run() -> None:
    assert_same(train(Averaged(PGDTraining(THREAT, 1)))[0], train(PGDTraining(THREAT, 1))[0], atol=0)


def test_bad_settings_of_the_average() -> None:
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match="decay is"):
            Averaged(Natural(), decay=decay)
    with pytest.raises(ValueError, match="start is -1"):
        Averaged(Natural(), start=-1)
    with pytest.raises(ValueError, match="no average before"), Averaged(Natural()).applied(network()):
        pass


class Spoiler(Callback):
    """Makes the model say one class for everything, at one step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.before: Tensor | None = None

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step - 2:
            self.before = weights(state.model)
        if state.step == self.step:
            with torch.no_grad():
                state.model[-1].weight.zero_()  # type: ignore[index, union-attr, operator]


def watch(**settings: float) -> OverfittingWatch:
    return OverfittingWatch(*images(), THREAT, every=2, **settings)  # type: ignore[arg-type]


def test_a_collapse_ends_the_run_with_the_weights_before(caplog: pytest.LogCaptureFixture) -> None:
    """Looks at 2, 4, ...; the collapse of step 32 is seen at once, and the weights of step 30 come back."""
    spoiler, looker = Spoiler(32), watch()
    with caplog.at_level(logging.WARNING):
        model, result = train(Natural(), callbacks=[spoiler, looker], max_steps=40)
    assert looker.stopped_at == result.steps == 32 and result.stopped_early
    assert torch.equal(weights(model), spoiler.before)  # type: ignore[arg-type]
    assert looker.accuracies[-2][1] - looker.accuracies[-1][1] > 0.2
    assert "catastrophic overfitting" in caplog.text


def test_a_run_that_is_well_is_left_alone() -> None:
    looker = watch()
    model, result = train(PGDTraining(THREAT, 2), callbacks=[looker], max_steps=20)
    assert looker.stopped_at is None and not result.stopped_early
    assert [step for step, _ in looker.accuracies] == list(range(2, 21, 2))
    assert looker.accuracies[-1][1] > 0.8
    assert_same(model, train(PGDTraining(THREAT, 2), max_steps=20)[0], atol=0)


def test_a_larger_drop_may_be_allowed() -> None:
    looker = watch(drop=1.0)
    model, result = train(Natural(), callbacks=[Spoiler(32), looker], max_steps=40)
    assert looker.stopped_at is None and result.steps == 40
    assert_other(model, network())


def test_bad_settings_of_the_watch() -> None:
    with pytest.raises(ValueError, match="every is 0"):
        OverfittingWatch(*images(), THREAT, every=0)
    for drop in (0.0, 1.5):
        with pytest.raises(ValueError, match="drop is"):
            watch(drop=drop)
