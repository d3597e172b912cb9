"""The detector of replaced words on a Hub on the loopback interface, and trained by two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.hub_server import ROOT, HubClient, HubServer
from tests.robustkit.detection import replaced_clients as clients

pytestmark = pytest.mark.slow


def test_a_pushed_detector_brings_its_reader(tmp_path_factory: pytest.TempPathFactory) -> None:
    with HubServer() as hub:
        with HubClient(hub, tmp_path_factory.mktemp("owner"), token=hub.token) as owner:
            commit, scores = owner.call(clients.push, "tester/replaced", timeout=300)
        stored = hub.repository("tester/replaced").commits[commit].files
        assert {Path(name).suffix for name in stored} <= {
            ".json",
            ".safetensors",
            ".md",
            ".gitattributes",
            "",
        }
        assert "reader/model.safetensors" in stored
        with HubClient(hub, tmp_path_factory.mktemp("stranger")) as stranger:
            for revision in (None, commit):
                threshold, found = stranger.call(clients.load, "tester/replaced", revision, timeout=300)
                assert found == scores
                assert threshold in scores


def test_two_processes_train_one_reader(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.robustkit.detection.replaced_clients", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, other = (np.loadtxt(tmp_path / f"{rank}.txt") for rank in (0, 1))
    np.testing.assert_array_equal(one, other)
    assert np.ptp(one) > 0.1
