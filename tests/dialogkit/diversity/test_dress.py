"""Behaviours S10-S15: the equations of DRESS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from dialogkit.diversity.dress import DressConfig, dress_loss, dress_terms, dress_weights

FLOAT64 = torch.float64
counts = arrays(np.int64, st.integers(2, 12), elements=st.integers(0, 1000)).filter(lambda c: c.sum() > 0)


def batch(seed: int = 0, rows: int = 4, length: int = 6, vocabulary: int = 9) -> tuple[Tensor, Tensor]:
    """Random logits and labels of sequences of 2 to ``length`` targets, the first positions ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator, dtype=FLOAT64)
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    for i in range(rows):
        labels[i, : i % 3] = -100
        labels[i, length - i % 2 :] = -100
    return logits, labels


def by_hand(logits: Tensor, labels: Tensor) -> list[list[float]]:
    """NLL of every target with plain arithmetic."""
    found = []
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        found.append(
            [
                math.log(sum(math.exp(x) for x in scores)) - scores[target]
                for scores, target in zip(row, targets, strict=True)
                if target != -100
            ]
        )
    return found


@given(counts)
@settings(max_examples=60, deadline=None)
def test_s10_gamma_zero_weighs_all_alike(counts: np.ndarray[Any, Any]) -> None:
    assert dress_weights(counts / counts.sum(), gamma=0).tolist() == [1.0] * len(counts)


@pytest.mark.parametrize("reduction", ["tokens", "weighted_tokens"])
def test_s10_weights_of_one_give_the_mean_nll_of_a_token(reduction: Any) -> None:
    logits, labels = batch()
    flat = [nll for row in by_hand(logits, labels) for nll in row]
    loss = dress_loss(logits, labels, torch.ones(4, dtype=FLOAT64), reduction)
    assert float(loss) == pytest.approx(sum(flat) / len(flat), rel=1e-12)


def test_s11_values_of_the_specification() -> None:
    shares = [0.05, 0.108, 0.0135]
    weights = dress_weights([*shares, 1 - sum(shares)])
    assert weights[:3].tolist() == pytest.approx([0.214639, 0.0324, 0.665], abs=5e-4)
    assert float(weights[0]) == pytest.approx(0.95**30, rel=1e-12)
    assert weights.dtype == torch.float64


@given(counts, st.floats(0.1, 5))
@settings(max_examples=60, deadline=None)
def test_s11_a_greater_share_weighs_less(counts: np.ndarray[Any, Any], gamma: float) -> None:
    shares = counts / counts.sum()
    weights = dress_weights(shares, gamma=gamma).tolist()
    for share, weight in zip(shares, weights, strict=True):
        assert 0 <= weight <= 1
        if share == 0:
            assert weight == 1
        for other, its_weight in zip(shares, weights, strict=True):
            if share < other:
                assert weight > its_weight


def test_s11_one_cluster_for_all_has_no_weight_and_warns() -> None:
    with pytest.warns(UserWarning, match="nothing is learned"):
        assert dress_weights([0.0, 1.0]).tolist() == [1.0, 0.0]


def test_s12_a_uniform_histogram_does_not_weigh_one_unless_normalised() -> None:
    uniform = [1 / 20] * 20
    assert dress_weights(uniform).tolist() == pytest.approx([0.95**30] * 20, rel=1e-12)
    assert dress_weights(uniform, normalization="mean").tolist() == pytest.approx([1.0] * 20, abs=1e-12)


@given(counts, st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_s12_normalisations(counts: np.ndarray[Any, Any], gamma: float) -> None:
    shares = counts / counts.sum()
    if shares.max() > 0.9:
        return
    weights = dress_weights(shares, gamma)
    mean = dress_weights(shares, gamma, "mean")
    assert float((torch.tensor(shares) * mean).sum()) == pytest.approx(1, rel=1e-9)
    torch.testing.assert_close(mean / mean.max(), weights / weights.max())
    assert float(dress_weights(shares, gamma, "max").max()) == pytest.approx(1, rel=1e-12)


@given(counts, st.randoms())
@settings(max_examples=40, deadline=None)
def test_s13_each_response_keeps_its_weight_when_clusters_are_renamed(
    counts: np.ndarray[Any, Any], random: Any
) -> None:
    shares = counts / counts.sum()
    order = list(range(len(shares)))
    random.shuffle(order)
    weights = dress_weights(shares, gamma=3.0)
    assert dress_weights(shares[order], gamma=3.0).tolist() == weights[order].tolist()


@pytest.mark.parametrize("reduction", ["tokens", "weighted_tokens", "sum"])
def test_the_loss_is_what_arithmetic_gives(reduction: Any) -> None:
    logits, labels = batch()
    weights = [0.5, 0.0, 2.0, 0.25]
    rows = by_hand(logits, labels)
    total = sum(w * sum(row) for w, row in zip(weights, rows, strict=True))
    size = {
        "tokens": sum(map(len, rows)),
        "weighted_tokens": sum(w * len(row) for w, row in zip(weights, rows, strict=True)),
        "sum": 1,
    }[reduction]
    loss = dress_loss(logits, labels, torch.tensor(weights, dtype=FLOAT64), reduction)
    assert float(loss) == pytest.approx(total / size, rel=1e-12)


@given(st.integers(0, 1000), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_s14_linear_in_the_weights(seed: int, scale: float) -> None:
    logits, labels = batch(seed)
    first, second = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)

    def loss(weights: Tensor) -> float:
        return float(dress_loss(logits, labels, weights))

    assert loss(first + scale * second) == pytest.approx(loss(first) + scale * loss(second), abs=1e-9)


@pytest.mark.parametrize("scale", [0.03, 7.0])
def test_s14_scaled_weights(scale: float) -> None:
    logits, labels = batch()
    weights = torch.tensor([0.5, 0.1, 2.0, 0.25], dtype=FLOAT64)
    for reduction, factor in (("tokens", scale), ("weighted_tokens", 1.0)):
        before = float(dress_loss(logits, labels, weights, reduction))  # type: ignore[arg-type]
        after = float(dress_loss(logits, labels, scale * weights, reduction))  # type: ignore[arg-type]
        assert after == pytest.approx(factor * before, rel=1e-12)


def test_s14_a_sample_of_weight_zero_counts_in_the_denominator_only() -> None:
    logits, labels = batch()
    logits.requires_grad_()
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=FLOAT64)
    loss = dress_loss(logits, labels, weights)
    loss.backward()
    assert logits.grad is not None and not logits.grad[1].any() and logits.grad[0].any()
    kept = [0, 2, 3]
    alone = dress_loss(logits[kept], labels[kept], weights[kept])
    tokens = (labels != -100).sum(dim=1)
    assert float(loss) == pytest.approx(float(alone * tokens[kept].sum() / tokens.sum()), rel=1e-12)


def test_s14_padding_and_order_change_nothing() -> None:
    logits, labels = batch()
    weights = torch.tensor([0.5, 0.1, 2.0, 0.25], dtype=FLOAT64)
    loss = float(dress_loss(logits, labels, weights))
    padded = torch.cat([logits, torch.full((4, 3, 9), 50.0, dtype=FLOAT64)], dim=1)
    more = torch.cat([labels, torch.full((4, 3), -100)], dim=1)
    assert float(dress_loss(padded, more, weights)) == pytest.approx(loss, rel=1e-12)
    order = [2, 0, 3, 1]
    assert float(dress_loss(logits[order], labels[order], weights[order])) == pytest.approx(loss, rel=1e-12)
    other = labels.masked_fill(labels == -100, -1)
    assert float(dress_loss(logits, other, weights, ignore_index=-1)) == pytest.approx(loss, rel=1e-12)


def test_s15_minus_one_is_the_negated_nll_and_lowers_the_likelihood() -> None:
    logits, labels = batch()
    ones = torch.ones(4, dtype=FLOAT64)
    for reduction in ("tokens", "weighted_tokens", "sum"):
        up, down = (dress_loss(logits, labels, sign * ones, reduction) for sign in (1, -1))  # type: ignore[arg-type]
        assert float(down) == pytest.approx(-float(up), rel=1e-12)
    for negative in ("nll", "unlikelihood", "clipped"):
        moved = logits.clone().requires_grad_()
        dress_loss(moved, labels, -ones, negative=negative).backward()  # type: ignore[arg-type]
        assert moved.grad is not None
        after = moved.detach() - 0.1 * moved.grad
        for row in range(4):
            before_nll = dress_terms(logits, labels, ones)[row]
            assert dress_terms(after, labels, ones)[row] > before_nll, negative


def test_s15_unlikelihood_is_minus_log_of_the_rest() -> None:
    logits, labels = batch()
    terms = dress_terms(logits, labels, -torch.ones(4, dtype=FLOAT64), negative="unlikelihood")
    expected = [-sum(math.log(1 - math.exp(-nll)) for nll in row) for row in by_hand(logits, labels)]
    assert terms.tolist() == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 1000), st.floats(0, 60))
@settings(max_examples=40, deadline=None)
def test_s15_bounded_variants(seed: int, sharpness: float) -> None:
    """Also where the model is certain: no infinity, no NaN, and clipped tokens get no gradient."""
    logits, labels = batch(seed)
    logits = (logits * sharpness).float().requires_grad_()
    minus = -torch.ones(4)
    unlikely = dress_terms(logits, labels, minus, negative="unlikelihood")
    assert bool((unlikely >= 0).all()) and bool(unlikely.isfinite().all())
    clipped = dress_terms(logits, labels, minus, negative="clipped", clip=2.0)
    tokens = (labels != -100).sum(dim=1)
    assert bool((clipped >= -2.0 * tokens).all())
    (unlikely.sum() + clipped.sum()).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_clipped_leaves_improbable_tokens_alone() -> None:
    logits = torch.tensor([[[0.0, 9.0], [0.0, 0.0]]], dtype=FLOAT64, requires_grad=True)
    labels = torch.tensor([[0, 0]])
    terms = dress_terms(logits, labels, torch.tensor([-1.0]), negative="clipped", clip=5.0)
    assert float(terms) == pytest.approx(-5.0 - math.log(2))
    terms.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[0, 0].any() and logits.grad[0, 1].any()


def test_positive_weights_do_not_ask_for_the_variant() -> None:
    logits, labels = batch()
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=FLOAT64)
    plain = dress_terms(logits, labels, weights)
    for negative in ("unlikelihood", "clipped"):
        found = dress_terms(logits, labels, weights, negative=negative, clip=0.1)  # type: ignore[arg-type]
        assert found[[0, 2, 3]].tolist() == plain[[0, 2, 3]].tolist()
        assert float(found[1]) != float(plain[1])


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels = batch()
    half = logits.bfloat16()
    found = dress_loss(half, labels, torch.ones(4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dress_loss(half.float(), labels, torch.ones(4)))


def test_nothing_to_divide_by_is_zero() -> None:
    logits, labels = batch()
    nothing = torch.full_like(labels, -100)
    assert float(dress_loss(logits, nothing, torch.ones(4))) == 0
    assert float(dress_loss(logits, labels, torch.zeros(4), "weighted_tokens")) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6],), "add up to 1"),
        (([1.5, -0.5],), "add up to 1"),
        (([float("nan"), 1.0],), "add up to 1"),
        (([],), "vector of shares"),
        (([[0.5, 0.5]],), "vector of shares"),
        (([0.5, 0.5], -1.0), "gamma"),
        (([0.5, 0.5], math.inf), "gamma"),
        (([0.5, 0.5], 1.0, "sum"), "normalization"),
    ],
)
def test_bad_histograms(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dress_weights(*arguments)


def test_a_mean_weight_of_zero_cannot_be_divided_by() -> None:
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="divides by a weight of 0"):
        dress_weights([0.0, 1.0], normalization="mean")


def test_shapes_and_names_that_do_not_fit() -> None:
    logits, labels = batch()
    with pytest.raises(ValueError, match="must fit"):
        dress_loss(logits[:, :-1], labels, torch.ones(4))
    with pytest.raises(ValueError, match="must fit"):
        dress_loss(logits, labels, torch.ones(3))
    with pytest.raises(ValueError, match="reduction"):
        dress_loss(logits, labels, torch.ones(4), "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"negative": "no"}, {"reduction": "sum"}, {"clip": 0.0}, {"micro_batch_size": 0}]
)
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DressConfig(**wrong)
