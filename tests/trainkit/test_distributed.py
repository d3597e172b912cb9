"""Two real processes (gloo, CPU) train to what one process trains to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

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
from tests.trainkit.two_processes import best_evaluation, sparse_config, token_config
from trainkit import Callback, CheckpointFolder, FitResult, FitState, fit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.trainkit.two_processes", str(folder)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "expected processes" not in done.stderr
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    """The result of one run, after making sure that two processes took part and agree."""
    first, second = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    for key in ("steps", "stopped_early", "history", "weights", "best"):
        assert first[key] == second[key], key
    return first


def assert_close(document: dict[str, Any], expected: dict[str, Tensor]) -> None:
    assert document["weights"].keys() == expected.keys()
    for name, value in expected.items():
        actual = torch.tensor(document["weights"][name])
        torch.testing.assert_close(actual, value, rtol=1e-5, atol=2e-6, msg=name)


def assert_same_lines(document: dict[str, Any], result: FitResult) -> None:
    for one, other in zip(document["history"], lines(result.history), strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))


@pytest.mark.parametrize("name", ["tokens", "accumulated"])
def test_two_processes_equal_one_for_token_weighted_losses(folder: Path, name: str) -> None:
    """Also with micro batches: 8 examples are 4 a process, in passes of 3 and 1."""
    model = TinyLM()
    result = fit(model, TokenLoss(), Sentences(20), config=token_config())
    document = read(folder, name)
    assert_close(document, weights(model))
    assert_same_lines(document, result)
    sizes = [json.loads((folder / f"{name}-{rank}.json").read_text())["sizes"] for rank in (0, 1)]
    assert sum(sizes[0]) == sum(sizes[1]) == 3 * 10
    assert max(sizes[0]) == (3 if name == "accumulated" else 4)


def test_a_process_without_examples_neither_hangs_nor_counts(folder: Path) -> None:
    model = regressor()
    result = fit(model, squared_error, Points(17), config=sparse_config())
    document = read(folder, "sparse")
    assert document["steps"] == result.steps == 6
    assert_close(document, weights(model))
    assert_same_lines(document, result)


def test_perturbations_beside_the_data_are_shared(folder: Path) -> None:
    model, method = regressor(), AdversarialRegression(17)
    result = fit(model, method, Points(17), config=sparse_config())
    document = read(folder, "minimax")
    assert_close(document, weights(model))
    assert_same_lines(document, result)
    for rank in (0, 1):
        own = json.loads((folder / f"minimax-{rank}.json").read_text())
        torch.testing.assert_close(torch.tensor(own["perturbations"]), method.perturbations)
        assert own["visits"] == method.visits.tolist() == [2] * 17


def test_one_process_stops_all(folder: Path) -> None:
    document = read(folder, "stopped")
    assert document["stopped_early"] and document["steps"] == 3


def test_two_processes_resume_where_they_were(folder: Path) -> None:
    """With dropout, so each process needs its own random numbers back, and early stopping in the main one."""
    whole, parts = read(folder, "whole"), read(folder, "parts")
    assert (whole["resumed_from"], parts["resumed_from"]) == (None, 3)
    assert whole["best"] == parts["best"] == [4, best_evaluation(4, 0)]
    assert whole["stopped_early"] and whole["steps"] == parts["steps"] == 8
    assert whole["weights"] == parts["weights"]
    assert whole["history"] == parts["history"]
    written = [json.loads(line) for line in (folder / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert lines(written) == whole["history"]
    newest = CheckpointFolder(folder / "parts" / "checkpoints").latest()
    assert newest is not None
    names = {file.name for file in newest.iterdir()}
    assert {"process-0.safetensors", "process-1.safetensors"} <= names


def test_one_process_takes_over_from_two(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = token_config(output_dir=folder / "handed-over", resume=True, epochs=2, schedule="constant")
    model = TinyLM()
    result = fit(model, TokenLoss(), Sentences(20), config=config)
    assert (result.resumed_from, result.steps, result.num_processes) == (3, 6, 1)
    assert "is of 2 process(es), now there are 1" in caplog.text
    alone = TinyLM()
    fit(alone, TokenLoss(), Sentences(20), config=token_config(epochs=2, schedule="constant"))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-5, atol=2e-6)
    halfway = load_file(folder / "handed-over.safetensors")
    assert not torch.allclose(halfway["mix.weight"], alone.mix.weight, atol=1e-4)


def test_a_sharded_model_trains_resumes_and_restores_its_best_weights(folder: Path) -> None:
    """FSDP2 of torch itself: parameters lie in halves, tied ones stay tied."""
    whole, parts = read(folder, "sharded-whole"), read(folder, "sharded-parts")
    halves = [json.loads((folder / f"sharded-whole-{rank}.json").read_text())["local"] for rank in (0, 1)]
    assert halves[0]["mix.weight"] == halves[1]["mix.weight"] == [4, 8]
    assert (parts["resumed_from"], whole["resumed_from"]) == (4, None)
    assert whole["weights"] == parts["weights"] and whole["history"] == parts["history"]

    steps: list[int] = []

    class Watch(Callback):
        def on_step_end(self, state: FitState) -> None:
            steps.append(state.step)

    model = TinyLM()
    fit(
        model,
        TokenLoss(),
        Sentences(20),
        config=token_config(eval_every=2, patience=2),
        evaluate=lambda _: {"loss": best_evaluation(steps[-1], 0)},
        callbacks=[Watch()],
    )
    assert_close(whole, weights(model))
    stored = load_file(folder / "sharded-whole" / "best" / "step-00000004" / "model.safetensors")
    assert len({"head.weight", "embedding.weight"} & stored.keys()) == 1
    torch.testing.assert_close(stored["mix.weight"], model.mix.weight.detach(), rtol=1e-5, atol=2e-6)
