"""A run that was stopped and continued is the run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainkit.killed_run import train
from tests.trainkit.toys import Points, Sentences, TinyLM, TokenLoss, lines, regressor, squared_error, weights
from trainkit import Callback, CheckpointFolder, FitConfig, FitResult, FitState, fit

ROOT = Path(__file__).resolve().parents[2]


class Interrupt(Exception):
    pass


class Interrupter(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise Interrupt


def language_run(
    directory: Path, *, stop_at: int | None = None, **settings: Any
) -> tuple[FitResult, nn.Module]:
    """Dropout, noisy data, accumulation, evaluation, and log windows that checkpoints cut in two."""
    model = TinyLM(dropout=0.3)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"loss": float(model(torch.arange(5)[None]).square().sum())}

    config = FitConfig(
        output_dir=directory,
        max_steps=11,
        batch_size=6,
        micro_batch_size=4,
        learning_rate=0.03,
        schedule="one_cycle",
        eval_every=4,
        save_every=2,
        log_every=3,
        resume=True,
        **settings,
    )
    result = fit(
        model,
        TokenLoss(),
        Sentences(20, noise=True),
        config=config,
        evaluate=evaluate,
        callbacks=[Interrupter(stop_at)],
    )
    return result, model


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("stop_at", "settings"),
    [
        *((step, {}) for step in range(1, 12)),
        (5, {"mixed_precision": "bf16"}),
        (5, {"num_workers": 1}),
    ],
)
def test_a_run_interrupted_at_any_step_ends_the_same(
    tmp_path: Path, stop_at: int, settings: dict[str, Any]
) -> None:
    whole, model = language_run(tmp_path / "whole", **settings)
    with pytest.raises(Interrupt):
        language_run(tmp_path / "parts", stop_at=stop_at, **settings)
    resumed, again = language_run(tmp_path / "parts", **settings)
    saved = (stop_at - 1) // 2 * 2
    assert resumed.resumed_from == (saved or None) and whole.resumed_from is None
    assert_same(weights(model), weights(again))
    assert lines(resumed.history) == lines(whole.history)
    assert [line["step"] for line in whole.history] == [3, 4, 6, 8, 9, 11, 11]
    written = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == list(resumed.history)


def test_a_finished_run_is_returned_as_it_was(tmp_path: Path) -> None:
    whole, model = language_run(tmp_path)
    again, same = language_run(tmp_path)
    assert (again.steps, again.resumed_from) == (11, 11)
    assert (again.best_metric, again.best_step) == (whole.best_metric, whole.best_step)
    assert again.history == whole.history
    assert_same(weights(model), weights(same))


def test_a_half_written_line_of_metrics_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Interrupt):
        language_run(tmp_path, stop_at=9)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    resumed, _ = language_run(tmp_path)
    assert "half-written line" in caplog.text
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [line["step"] for line in resumed.history] == [3, 4, 6, 8, 9, 11, 11]


def patient_run(
    directory: Path, *, patience: int = 2, stop_at: int | None = None, wanted: dict[int, float] | None = None
) -> tuple[FitResult, nn.Module, list[int]]:
    """Evaluates to given values: best at step 4."""
    values = wanted or {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 0.5}
    steps: list[int] = []
    model = regressor()
    current = Interrupter(stop_at)

    class Watch(Callback):
        def on_step_end(self, state: FitState) -> None:
            steps.append(state.step)

    config = FitConfig(
        output_dir=directory,
        max_steps=10,
        batch_size=4,
        eval_every=2,
        save_every=3,
        patience=patience,
        keep_checkpoints=1,
        resume=True,
    )
    result = fit(
        model,
        squared_error,
        Points(8),
        config=config,
        evaluate=lambda _: {"loss": values[steps[-1]]},
        callbacks=[Watch(), current],
    )
    return result, model, steps


@pytest.mark.parametrize("stop_at", [5, 7])
def test_the_best_weights_survive_a_resume(tmp_path: Path, stop_at: int) -> None:
    whole, model, _ = patient_run(tmp_path / "whole")
    assert (whole.stopped_early, whole.steps, whole.best_step) == (True, 8, 4)
    with pytest.raises(Interrupt):
        patient_run(tmp_path / "parts", stop_at=stop_at)
    resumed, again, steps = patient_run(tmp_path / "parts")
    assert steps[0] == resumed.resumed_from + 1  # type: ignore[operator]
    assert (resumed.stopped_early, resumed.steps, resumed.best_step) == (True, 8, 4)
    assert_same(weights(model), weights(again))
    assert CheckpointFolder(tmp_path / "parts" / "best").steps() == [4]


def test_a_run_out_of_patience_stays_stopped_until_it_gets_more(tmp_path: Path) -> None:
    _, model, _ = patient_run(tmp_path)
    again, same, steps = patient_run(tmp_path)
    assert steps == [] and again.stopped_early and again.steps == 8
    assert_same(weights(model), weights(same))
    longer, _, steps = patient_run(tmp_path, patience=3)
    assert steps == [9, 10] and not longer.stopped_early
    assert (longer.best_step, longer.best_metric) == (10, 0.5)


def test_lost_best_weights_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Interrupt):
        patient_run(tmp_path, stop_at=7)
    folder = CheckpointFolder(tmp_path / "best")
    folder.remove(folder.steps())
    result, _, _ = patient_run(tmp_path)
    assert result.best_step == 4
    assert "the weights of the best step, 4, are lost" in caplog.text


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.trainkit.killed_run", str(directory), *arguments],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        stderr=subprocess.PIPE,
    )


def wait(process: subprocess.Popen[bytes]) -> str:
    _, errors = process.communicate(timeout=120)
    return errors.decode()


def test_a_run_killed_again_and_again_ends_as_if_never_killed(tmp_path: Path) -> None:
    """SIGKILL before the first checkpoint, during a checkpoint, after an evaluation, and from outside."""
    model, method, result = train(tmp_path / "whole")
    directory = tmp_path / "killed"
    folder = CheckpointFolder(directory / "checkpoints")
    for arguments, complete in [
        (("step", "3"), []),
        (("save", "2"), [4]),  # while step 8 is being written
        (("evaluate", "15"), [8, 12]),
    ]:
        process = start(directory, *arguments)
        errors = wait(process)
        assert process.returncode == -signal.SIGKILL, errors
        if arguments[0] == "save":
            left = {file.name for file in folder.partial(8).iterdir()}
            assert {"model.safetensors", "optimizer.safetensors"} <= left
            assert "manifest.json" not in left
        assert folder.steps() == complete

    process = start(directory, "linger", "0")
    deadline = time.monotonic() + 60
    while max(folder.steps()) < 16 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert wait(process) is not None and process.returncode == -signal.SIGKILL
    stopped_at = max(folder.steps())
    assert stopped_at >= 16

    process = start(directory)
    errors = wait(process)
    assert process.returncode == 0, errors
    final = json.loads((directory / "result.json").read_text())
    assert final["resumed_from"] == stopped_at
    assert final["weights"] == {name: value.tolist() for name, value in model.state_dict().items()}
    assert final["perturbations"] == method.perturbations.tolist()
    assert final["draw"] == method.last_draw
    assert final["best"] == [result.best_step, result.best_metric]
    assert final["history"] == lines(result.history)
    written = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert lines(written) == lines(result.history)
