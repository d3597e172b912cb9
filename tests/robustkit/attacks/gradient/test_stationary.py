"""Curves of loss, gap and residual: by hand on a linear model, and on a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import LInf, stationarity
from tests.robustkit.attacks.gradient.nets import convolutions, linear, pixels


def test_curves_of_a_linear_loss_are_the_formulas_and_end_at_zero() -> None:
    """Loss <w, x>: the gap is eps |w|_1 - <delta, w>, and signed steps reach the corner."""
    model = linear(6, 2)
    weight = (model.weight[1] - model.weight[0]).detach()
    inputs = torch.full((3, 6), 0.5, dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.int64)

    def difference(logits: Tensor, labels: Tensor) -> Tensor:
        return logits[:, 1] - logits[:, 0]

    found = stationarity(model, inputs, labels, LInf(0.1), 8, alpha=0.5, loss=difference, seed=4)
    start = LInf(0.1).random(inputs, torch.Generator().manual_seed(4))
    expected = 0.1 * weight.abs().sum() - start @ weight
    torch.testing.assert_close(found.fosc[:, 0], expected, rtol=0, atol=1e-12)
    ahead = (start + weight).clamp(-0.1, 0.1)
    torch.testing.assert_close(found.residual[:, 0], (ahead - start).norm(dim=1), rtol=0, atol=1e-12)
    assert found.passes.tolist() == list(range(2, 20, 2))
    assert (found.fosc.diff(dim=1) <= 1e-12).all() and (found.loss.diff(dim=1) >= -1e-12).all()
    assert (found.fosc[:, -1].abs() < 1e-12).all() and (found.residual[:, -1] < 1e-12).all()


def test_nothing_of_the_model_changes_and_settings_are_checked() -> None:
    net = convolutions()
    before = [value.clone() for value in net.state_dict().values()]
    labels = torch.arange(4)
    found = stationarity(net, pixels(4), labels, LInf(0.03), 5)
    assert found.loss.shape == found.fosc.shape == found.residual.shape == (4, 6)
    assert (found.fosc >= 0).all() and found.loss[:, -1].mean() > found.loss[:, 0].mean()
    assert net.training and all(map(torch.equal, before, net.state_dict().values()))
    with pytest.raises(ValueError, match="steps is 0"):
        stationarity(net, pixels(4), labels, LInf(0.03), 0)
    with pytest.raises(ValueError, match="inputs go from"):
        stationarity(nn.Flatten(), 2 * pixels(4), labels, LInf(0.03))
