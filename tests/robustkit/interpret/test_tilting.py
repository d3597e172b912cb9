"""The boundary-tilting toy (T1)."""

from __future__ import annotations

import torch

from scripts.interpret_study.tilting import gaussians, tilt


def test_t1_adversarial_training_takes_the_tilt_out() -> None:
    points, labels = gaussians(50)
    assert points.amin(dim=0).tolist() == [-1, -1] and points.amax(dim=0).tolist() == [1, 1]
    assert torch.equal(labels, torch.arange(100) // 50)
    ordinary, robust = (tilt(epsilon, count=500, epochs=6) for epsilon in (0.0, 0.5))
    assert robust < 0.5 * ordinary
