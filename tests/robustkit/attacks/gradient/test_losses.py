"""Losses of gradient attacks against values by hand and their invariances."""

from __future__ import annotations

import pytest
import torch

from robustkit.attacks.gradient import cross_entropy, dlr, margin, targeted_dlr

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 5.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    want = torch.logsumexp(LOGITS, 1) - torch.tensor([3.0, 2.0])
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), want)


def test_margin_by_hand_positive_exactly_where_misclassified() -> None:
    assert margin(LOGITS, LABELS).tolist() == [-2.0, 3.0]


def test_dlr_by_hand() -> None:
    # (z_1 - z_0) / (z_(1) - z_(3)) = -2/3, and (5 - 2) / (5 - 2).
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-2 / 3, 1.0], dtype=torch.float64))


def test_targeted_dlr_by_hand() -> None:
    # (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)
    found = targeted_dlr(LOGITS, LABELS, torch.tensor([2, 3]))
    torch.testing.assert_close(found, torch.tensor([-3 / 3.5, 2 / 4.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_ratios_know_neither_shift_nor_scale_of_the_logits(scale: float) -> None:
    other = LOGITS * scale + 7
    torch.testing.assert_close(dlr(other, LABELS), dlr(LOGITS, LABELS))
    targets = torch.tensor([2, 3])
    torch.testing.assert_close(targeted_dlr(other, LABELS, targets), targeted_dlr(LOGITS, LABELS, targets))


def test_equal_logits_give_no_nan() -> None:
    equal = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(dlr(equal, torch.tensor([0])).sum(), equal)
    assert torch.isfinite(gradient).all()


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 classes, the model has 2"):
        dlr(LOGITS[:, :2], LABELS)
    with pytest.raises(ValueError, match="4 classes, the model has 3"):
        targeted_dlr(LOGITS[:, :3], LABELS, LABELS)
