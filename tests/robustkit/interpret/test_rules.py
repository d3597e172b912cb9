"""The rules on tensors: percentiles (R15), hand values (R14), shares (R9), pools (R12), the ring (R13)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.interpret.rules import (
    deconvolution_rule,
    gated_rule,
    guided_rule,
    kept_units,
    percentile_nearest,
    rectgrad_rule,
    redistribute,
    zero_border,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 60), q=st.floats(0, 100), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_r15_the_percentile_is_torchs_nearest_quantile(n: int, q: float, seed: int) -> None:
    scores = normal(3, n, seed=seed)
    rank = q / 100 * (n - 1)
    if abs(rank % 1 - 0.5) < 1e-6:
        return  # halfway between two, the sides round by their own precision
    wanted = torch.quantile(scores, q / 100, dim=1, interpolation="nearest")
    assert torch.equal(percentile_nearest(scores, q), wanted)


def test_r15_more_elements_than_torchs_quantile_takes() -> None:
    n = 2**24 + 3
    scores = torch.zeros(1, n)
    scores[0, : n // 2 + 1] = -1
    scores[0, n // 2] = 48
    scores[0, n // 2 + 1 :] = 49
    with pytest.raises(RuntimeError):
        torch.quantile(scores, 0.5, interpolation="nearest")
    assert percentile_nearest(scores, 50).item() == 48


def test_r15_bfloat16_and_padding() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 9.0, 9.0], [5.0, 4.0, 6.0, 7.0, 8.0]])
    assert percentile_nearest(scores.bfloat16(), 50).tolist() == [3.0, 6.0]
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    assert percentile_nearest(scores, 50, valid).tolist() == [2.0, 6.0]


def test_r14_by_hand_with_a_tie_and_a_negative_threshold() -> None:
    output = torch.tensor([[0.0, 2.0, 1.0, 0.0, 3.0]], dtype=torch.float64)
    relevance = torch.tensor([[4.0, 1.0, 2.0, -1.0, -1.0]], dtype=torch.float64)
    # s = 0, 2, 2, 0, -3. At q = 75 the threshold is 2, and both tied units are dropped.
    assert rectgrad_rule(relevance, output, q=75).tolist() == [[0, 0, 0, 0, 0]]
    # At q = 0 it is -3: inactive units leak, and only the minimum is dropped.
    assert rectgrad_rule(relevance, output, q=0).tolist() == [[4, 1, 2, -1, 0]]
    # At q = 50 it is 0.
    assert rectgrad_rule(relevance, output, q=50).tolist() == [[0, 1, 2, 0, 0]]
    assert guided_rule(relevance, output).tolist() == [[0, 1, 2, 0, 0]]
    assert deconvolution_rule(relevance).tolist() == [[4, 1, 2, 0, 0]]
    assert gated_rule(relevance, kept_units(output * relevance, q=75, strict=False)).tolist() == [
        [0, 1, 2, 0, 0]
    ]


@given(n=st.integers(2, 200), q=st.floats(0, 100), seed=st.integers(0, 99), least=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_r9_the_share_that_passes(n: int, q: float, seed: int, least: int) -> None:
    scores = normal(2, n, seed=seed)
    kept = kept_units(scores, q=q, min_keep=least)
    positive = (scores > 0).sum(dim=1).clamp(max=least)
    assert (kept.sum(dim=1) <= torch.maximum(positive, torch.tensor(n * (1 - q / 100) + 1))).all()
    assert (kept.sum(dim=1) >= positive).all()


def test_d15_a_narrow_layer_does_not_die_at_q_99() -> None:
    scores = normal(3, 32)
    assert kept_units(scores, q=99, min_keep=0).sum() == 0
    kept = kept_units(scores, q=99)
    assert torch.equal(kept.int().argmax(dim=1), scores.argmax(dim=1)) and kept.sum() == 3
    assert kept_units(-scores.abs(), q=99).sum() == 0


def test_thresholds_are_of_each_sample_over_all_its_axes() -> None:
    scores = normal(3, 4, 5, 6)
    scores[1] += 100
    together = kept_units(scores, q=80)
    for i in range(3):
        assert torch.equal(together[i], kept_units(scores[i : i + 1], q=80)[0])
        assert together[i].sum() == 24


@pytest.mark.parametrize("stride", [2, 1])
def test_r12_redistribution_shares_a_windows_relevance_in_proportion(stride: int) -> None:
    h = normal(2, 3, 6, 6).abs()
    relevance = normal(2, 3, *[3 if stride == 2 else 5] * 2, seed=1)
    found = redistribute(relevance, h, 2, stride)
    wanted = torch.zeros_like(h)
    for y in range(relevance.shape[2]):
        for x in range(relevance.shape[3]):
            window = (..., slice(y * stride, y * stride + 2), slice(x * stride, x * stride + 2))
            total = h[window].sum(dim=(-2, -1), keepdim=True)
            wanted[window] += relevance[..., y : y + 1, x : x + 1] * h[window] / total
    assert torch.allclose(found, wanted, atol=1e-8)
    if stride == 2:
        assert torch.allclose(found.sum(), relevance.sum(), atol=1e-7)


def test_r12_an_empty_window_gets_nothing_and_padding_takes_no_part() -> None:
    h = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    h[0, 0, 2:, 2:] = 1
    found = redistribute(torch.ones(1, 1, 2, 2, dtype=torch.float64), h, 2)
    assert found[0, 0, :2].abs().sum() == 0 and found.sum().item() == pytest.approx(1)
    padded = redistribute(torch.ones(1, 1, 3, 3, dtype=torch.float64), h + 1, 2, 2, 1)
    assert padded.sum().item() == pytest.approx(9)


def test_r13_the_ring_is_zero_and_nothing_else() -> None:
    relevance = torch.ones(2, 3, 5, 4)
    found = zero_border(relevance)
    assert found[:, :, 1:-1, 1:-1].eq(1).all() and found.sum() == 2 * 3 * 3 * 2
    assert relevance.eq(1).all()
    with pytest.raises(ValueError, match="no inside"):
        zero_border(torch.ones(1, 1, 2, 5))


def test_the_gated_rule_is_the_published_one_on_relu_above_the_plateau() -> None:
    z, relevance = normal(3, 400), normal(3, 400, seed=1)
    output = z.clamp(min=0)
    for q in (80, 90, 98):
        kept = kept_units(output * relevance, q=q, min_keep=0)
        gated = gated_rule((z > 0) * relevance, kept)
        assert torch.equal(gated, rectgrad_rule(relevance, output, q=q)) and gated.abs().sum() > 0
    assert not torch.equal(rectgrad_rule(relevance, output, q=5), (z > 0) * relevance)
