"""Behaviours G1-G8 and G10-G11 of the loss, on score matrices in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dialogkit.g2r import g2r_loss, teacher_distribution


def batch(seed: int = 0, contexts: int = 4, texts: int = 12, negatives: int = 5) -> dict[str, Any]:
    """Scores with the last texts as negatives; the others are each a candidate of one context or two."""
    draw = torch.Generator().manual_seed(seed)
    candidates = texts - negatives
    positive = torch.zeros(contexts, texts, dtype=torch.bool)
    positive[torch.arange(candidates) % contexts, torch.arange(candidates)] = True
    positive[0, 1] = True  # a response that two contexts share
    negative = torch.arange(texts) >= candidates
    return {
        "scores": torch.randn(contexts, texts, generator=draw, dtype=torch.float64),
        "positive_mask": positive,
        "negative_mask": negative,
        "teacher_scores": torch.randn(contexts, texts, generator=draw, dtype=torch.float64),
    }


def by_hand(rows: dict[str, Any], alpha: float, temperature: float = 1.0) -> tuple[float, float, float]:
    """The equations as loops over Python floats."""
    scores, positive, negative = (rows[k].tolist() for k in ("scores", "positive_mask", "negative_mask"))
    teacher = rows["teacher_scores"].tolist()
    ce, kd = [], []
    for i, row in enumerate(scores):
        own = [u for u in range(len(row)) if positive[i][u]]
        others = sum(math.exp(row[u]) for u in range(len(row)) if negative[u])
        ce += [-math.log(math.exp(row[u]) / (math.exp(row[u]) + others)) for u in own]
        whole = others + sum(math.exp(row[u]) for u in own)
        mass = sum(math.exp(teacher[i][u] / temperature) for u in own)
        kd.append(
            -sum(
                math.exp(teacher[i][u] / temperature) / mass * math.log(math.exp(row[u]) / whole) for u in own
            )
        )
    hard, soft = sum(ce) / len(ce), sum(kd) / len(kd)
    return (1 - alpha) * hard + alpha * soft, hard, soft


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equations(alpha: float, temperature: float) -> None:
    rows = batch()
    result = g2r_loss(**rows, alpha=alpha, teacher_temperature=temperature)
    expected = by_hand(rows, alpha, temperature)
    assert [result.loss.item(), result.ce.item(), result.kd.item()] == pytest.approx(expected, rel=1e-12)
    assert result.kd_per_context.shape == (4,)


def test_g1_gradient_is_student_minus_teacher() -> None:
    rows = batch()
    scores = rows["scores"].requires_grad_()
    g2r_loss(**rows, alpha=1.0).kd_per_context.sum().backward()
    support = rows["positive_mask"] | rows["negative_mask"]
    q = scores.detach().masked_fill(~support, -torch.inf).softmax(dim=1)
    p = teacher_distribution(rows["teacher_scores"], rows["positive_mask"])
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, q - p, rtol=0, atol=1e-14)
    assert (scores.grad[~support] == 0).all()
    torch.testing.assert_close(
        scores.grad.sum(dim=1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_g2_hot_teacher_is_uniform() -> None:
    rows = batch()
    p = teacher_distribution(rows["teacher_scores"], rows["positive_mask"], 1e9)
    uniform = rows["positive_mask"].double() / rows["positive_mask"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(p, uniform, rtol=0, atol=1e-8)
    support = rows["positive_mask"] | rows["negative_mask"]
    log_q = rows["scores"].masked_fill(~support, -torch.inf).log_softmax(dim=1)
    expected = torch.stack([-log_q[i][rows["positive_mask"][i]].mean() for i in range(4)])
    torch.testing.assert_close(
        g2r_loss(**rows, teacher_temperature=1e9).kd_per_context, expected, rtol=1e-7, atol=0
    )


def test_g3_cold_teacher_names_one_candidate_and_splits_ties() -> None:
    rows = batch()
    p = teacher_distribution(rows["teacher_scores"], rows["positive_mask"], 1e-6)
    best = rows["teacher_scores"].masked_fill(~rows["positive_mask"], -torch.inf).argmax(dim=1)
    torch.testing.assert_close(p, functional.one_hot(best, 12).double())
    rows["teacher_scores"].fill_(-3.0)
    tied = teacher_distribution(rows["teacher_scores"], rows["positive_mask"], 1e-6)
    torch.testing.assert_close(tied[0], rows["positive_mask"][0].double() / rows["positive_mask"][0].sum())


def test_g4_one_candidate_each_makes_both_losses_one() -> None:
    rows = batch(contexts=4, texts=9, negatives=5)
    rows["positive_mask"][0, 1] = False
    results = [g2r_loss(**rows, alpha=alpha) for alpha in (0.0, 0.3, 1.0)]
    for result in results:
        torch.testing.assert_close(result.loss, results[0].ce, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(shift=st.floats(-50, 50), factor=st.floats(0.1, 10))
def test_g5_shift_and_scale_of_the_teacher(shift: float, factor: float) -> None:
    rows = batch()
    plain = g2r_loss(**rows, alpha=0.5)
    moved = dict(rows, teacher_scores=rows["teacher_scores"] + shift * torch.arange(4.0)[:, None])
    torch.testing.assert_close(g2r_loss(**moved, alpha=0.5).loss, plain.loss, rtol=1e-9, atol=0)
    scaled = dict(rows, teacher_scores=rows["teacher_scores"] * factor)
    colder = g2r_loss(**rows, alpha=0.5, teacher_temperature=1 / factor)
    torch.testing.assert_close(g2r_loss(**scaled, alpha=0.5).loss, colder.loss, rtol=1e-9, atol=0)


def test_g6_without_soft_loss_the_teacher_is_not_heard() -> None:
    rows = batch()
    shuffled = dict(rows, teacher_scores=rows["teacher_scores"].flip(1))
    assert torch.equal(g2r_loss(**rows, alpha=0).loss, g2r_loss(**shuffled, alpha=0).loss)
    assert not torch.equal(g2r_loss(**rows, alpha=0.1).loss, g2r_loss(**shuffled, alpha=0.1).loss)


def test_g6_in_batch_negatives_alone_are_the_standard_softmax() -> None:
    scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = g2r_loss(
        scores,
        torch.eye(6, dtype=torch.bool),
        torch.zeros(6, dtype=torch.bool),
        torch.zeros_like(scores),
        alpha=0,
        in_batch_negatives=True,
    )
    torch.testing.assert_close(result.loss, functional.cross_entropy(scores, torch.arange(6)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_g7_soft_loss_is_above_the_entropy_of_the_teacher(seed: int) -> None:
    rows = batch(seed)
    p = teacher_distribution(rows["teacher_scores"], rows["positive_mask"])
    entropy = torch.special.entr(p).sum(dim=1)
    assert (g2r_loss(**rows).kd_per_context > entropy).all()
    matched = torch.where(rows["negative_mask"], -800.0, rows["teacher_scores"] + 7.0)
    torch.testing.assert_close(
        g2r_loss(**dict(rows, scores=matched)).kd_per_context, entropy, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_g8_who_receives_gradient(alpha: float) -> None:
    rows = batch()
    rows["teacher_scores"].requires_grad_()
    scores = rows["scores"].requires_grad_()
    g2r_loss(**rows, alpha=alpha).loss.backward()
    assert rows["teacher_scores"].grad is None
    assert scores.grad is not None
    assert (scores.grad[:, rows["negative_mask"]] > 0).all()
    assert (scores.grad[rows["positive_mask"]] != 0).any()


def test_g9_a_shared_candidate_costs_no_negative() -> None:
    """The hard loss of every candidate meets all negatives, also where two contexts share a candidate."""
    rows = batch()
    scores = rows["scores"].requires_grad_()
    g2r_loss(**rows, alpha=0).loss.backward()
    assert scores.grad is not None
    assert (scores.grad[0, rows["negative_mask"]] > 0).all()
    with pytest.raises(ValueError, match="marks a text that is a candidate"):
        g2r_loss(**dict(batch(), negative_mask=torch.ones(12, dtype=torch.bool)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_g10_order_does_not_matter(seed: int) -> None:
    rows = batch()
    draw = torch.Generator().manual_seed(seed)
    texts, contexts = torch.randperm(12, generator=draw), torch.randperm(4, generator=draw)
    moved = {
        name: value[texts] if value.ndim == 1 else value[contexts][:, texts] for name, value in rows.items()
    }
    torch.testing.assert_close(g2r_loss(**moved).loss, g2r_loss(**rows).loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_g11_half_precision_stays_finite(dtype: torch.dtype) -> None:
    rows = batch()
    scores = (rows["scores"] * 1000).to(dtype).requires_grad_()
    rows["teacher_scores"] = (rows["teacher_scores"] * 1000).to(dtype)
    result = g2r_loss(**dict(rows, scores=scores))
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert torch.isfinite(result.loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_candidates_alone_still_learn_from_the_teacher() -> None:
    rows = batch()
    rows["negative_mask"].zero_()
    scores = rows["scores"].requires_grad_()
    result = g2r_loss(**rows)
    result.loss.backward()
    assert result.ce.item() == 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[rows["positive_mask"]].abs().sum() > 0


def wrong(**changes: Any) -> dict[str, Any]:
    return {**batch(), **changes}


NAN = torch.full((4, 12), math.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (wrong(scores=torch.zeros(12)), "scores must be"),
        (wrong(positive_mask=torch.ones(4, 12)), "positive_mask must be boolean"),
        (wrong(teacher_scores=torch.zeros(4, 11)), "teacher_scores must be"),
        (wrong(negative_mask=torch.zeros(4, dtype=torch.bool)), "negative_mask must be"),
        (wrong(alpha=1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (wrong(teacher_temperature=0.0), "teacher_temperature must be positive"),
        (wrong(positive_mask=torch.zeros(4, 12, dtype=torch.bool)), r"contexts \[0, 1, 2, 3\] have none"),
        (wrong(scores=NAN), "scores hold values that are not finite"),
        (wrong(teacher_scores=NAN), "teacher_scores of candidates"),
    ],
)
def test_bad_input(rows: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        g2r_loss(**rows)


def test_teacher_scores_outside_the_candidates_may_be_anything() -> None:
    rows = batch()
    expected = g2r_loss(**rows).loss
    masked: Tensor = rows["teacher_scores"].masked_fill(~rows["positive_mask"], math.nan)
    assert torch.equal(g2r_loss(**dict(rows, teacher_scores=masked)).loss, expected)
