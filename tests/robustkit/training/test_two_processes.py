"""Two processes (gloo, CPU) train to what one process trains to, perturbations beside the data included."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.robustkit.training.two_processes import CASES, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.robustkit.training.two_processes", str(folder)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", [*sorted(CASES), "texts"])
def test_two_processes_equal_one(name: str, folder: Path, tmp_path: Path) -> None:
    """Section 12: within rounding, with uneven batches and a process without examples."""
    first, second = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert first["weights"] == second["weights"] and first["beside"] == second["beside"]
    alone = run(name, tmp_path)
    assert alone["processes"] == 1
    torch.testing.assert_close(
        torch.tensor(first["weights"]), torch.tensor(alone["weights"]), rtol=0, atol=1e-6
    )
    for one, other in zip(first["lines"], alone["lines"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    if alone["beside"] is not None:
        flat = [torch.tensor(document["beside"][0]) for document in (first, alone)]
        torch.testing.assert_close(*flat, rtol=0, atol=1e-6)


def test_batch_norm_with_two_forwards_and_one_backward_runs_in_two_processes(folder: Path) -> None:
    """TRADES wraps one of its two passes only: no buffer is overwritten before the backward pass."""
    losses = json.loads((folder / "norm-0.json").read_text())
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
