"""Behaviours C1 to C7, C9 to C11 and C19 of the loss, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dialogkit.exemplar import exemplar_loss, relevance_log_weights, relevance_scores


def drawn(seed: int = 0, b: int = 3, k: int = 4, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ell = -10 + spread * torch.randn(b, k, generator=generator, dtype=torch.float64)
    scores = torch.randn(b, k, generator=generator, dtype=torch.float64)
    return ell.requires_grad_(), scores.requires_grad_()


def test_values_by_hand() -> None:
    ell = torch.log(torch.tensor([[0.2, 0.4]], dtype=torch.float64))
    scores = torch.log(torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    found = exemplar_loss(ell, scores)
    assert found.loss.item() == pytest.approx(-math.log(0.75 * 0.2 + 0.25 * 0.4))
    assert found.weights.tolist()[0] == pytest.approx([0.75, 0.25])
    assert found.posterior.tolist()[0] == pytest.approx([0.6, 0.4])
    expected = -(0.75 * math.log(0.2) + 0.25 * math.log(0.4))
    assert exemplar_loss(ell, scores, mode="nll").loss.item() == pytest.approx(expected)
    assert exemplar_loss(ell, scores, mode="nll_sum").loss.item() == pytest.approx(2 * expected)


@given(seed=st.integers(0, 1000), k=st.integers(1, 6), temperature=st.floats(0.2, 5))
@settings(max_examples=40, deadline=None)
def test_c1_gradients(seed: int, k: int, temperature: float) -> None:
    ell, scores = drawn(seed, k=k)
    found = exemplar_loss(ell, scores, temperature=temperature)
    found.per_example.sum().backward()
    assert ell.grad is not None
    assert scores.grad is not None
    torch.testing.assert_close(ell.grad, -found.posterior)
    torch.testing.assert_close(scores.grad, (found.weights - found.posterior).detach() / temperature)
    assert scores.grad.sum(dim=1).abs().max() < 1e-12


def test_c2_one_exemplar_is_plain_nll() -> None:
    ell, scores = drawn(k=1)
    found = exemplar_loss(ell, scores)
    found.per_example.sum().backward()
    torch.testing.assert_close(found.per_example, -ell[:, 0])
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0
    assert torch.equal(found.per_example, exemplar_loss(ell, mode="nll").per_example)


def test_c3_infinite_temperature() -> None:
    ell, scores = drawn()
    found = exemplar_loss(ell, scores, temperature=1e12)
    torch.testing.assert_close(found.per_example, math.log(4) - ell.logsumexp(dim=1))
    found.loss.backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-10
    mean = exemplar_loss(ell, mode="nll").per_example
    assert bool((found.per_example < mean).all())
    equal = torch.full((2, 3), -7.0, dtype=torch.float64)
    torch.testing.assert_close(exemplar_loss(equal).per_example, exemplar_loss(equal, mode="nll").per_example)


def test_c4_temperature_zero_takes_the_most_relevant() -> None:
    ell, scores = drawn()
    found = exemplar_loss(ell, scores, temperature=1e-6)
    best = scores.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(found.per_example, -ell.gather(1, best)[:, 0])


@given(seed=st.integers(0, 1000), k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_c5_bounds(seed: int, k: int) -> None:
    ell, scores = drawn(seed, k=k)
    found = exemplar_loss(ell, scores)
    mean = exemplar_loss(ell, scores, mode="nll").per_example
    assert bool(((-ell).amin(dim=1) <= found.per_example + 1e-9).all())
    assert bool((found.per_example <= mean + 1e-9).all())


def test_c6_equal_likelihoods_teach_the_retriever_nothing() -> None:
    _, scores = drawn()
    ell = torch.full((3, 4), -5.0, dtype=torch.float64)
    found = exemplar_loss(ell, scores)
    found.loss.backward()
    torch.testing.assert_close(found.per_example, torch.full((3,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(found.posterior, found.weights.detach())
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-12


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_c7_invariance(seed: int, shift: float) -> None:
    ell, scores = drawn(seed)
    found = exemplar_loss(ell, scores)
    torch.testing.assert_close(found.per_example, exemplar_loss(ell, scores + shift).per_example)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    permuted = exemplar_loss(ell[:, order], scores[:, order])
    torch.testing.assert_close(found.per_example, permuted.per_example)
    torch.testing.assert_close(found.posterior[:, order], permuted.posterior)


def test_c9_the_generators_gradient_is_that_of_the_posteriors_mean() -> None:
    logits = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    _, scores = drawn()
    targets = torch.tensor([1, 2, 3])[:, None].expand(3, 4)

    def likelihoods() -> Tensor:
        return logits.log_softmax(dim=2).gather(2, targets[..., None])[..., 0]

    found = exemplar_loss(likelihoods(), scores)
    (gradient,) = torch.autograd.grad(found.per_example.sum(), logits)
    (expected,) = torch.autograd.grad(-(found.posterior * likelihoods()).sum(), logits)
    torch.testing.assert_close(gradient, expected)


@given(seed=st.integers(0, 300), masked=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_c10_masking_is_removing(seed: int, masked: list[bool]) -> None:
    ell, scores = drawn(seed, b=1)
    mask = ~torch.tensor([masked])
    if not mask.any():
        return
    kept = mask[0]
    for mode in ("marginal", "nll", "nll_sum"):
        garbage = torch.where(mask, ell, math.nan)
        found = exemplar_loss(garbage, scores, mask=mask, mode=mode)
        less = exemplar_loss(ell[:, kept], scores[:, kept], mode=mode)
        torch.testing.assert_close(found.loss, less.loss)
        torch.testing.assert_close(found.weights[:, kept], less.weights)
        assert found.weights[~mask].abs().sum() == 0
        assert found.posterior[~mask].abs().sum() == 0
        gradients = torch.autograd.grad(found.loss, [ell, scores], allow_unused=True)
        assert all(g is None or torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("k", [0, 3])
def test_c10_rows_without_exemplars_fall_back(k: int) -> None:
    ell = torch.full((2, k), math.nan, dtype=torch.float64)
    alone = torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, k, dtype=torch.bool)
    found = exemplar_loss(ell, ell, mask=mask, alone=alone)
    assert found.per_example.tolist() == [4.0, 9.0]
    found.per_example.sum().backward()
    assert alone.grad is not None
    assert alone.grad.tolist() == [-1.0, -1.0]
    with pytest.raises(ValueError, match=r"rows \[0, 1\] have no exemplar"):
        exemplar_loss(ell, mask=mask)


def test_c11_improbable_responses() -> None:
    ell = torch.tensor([[-300.0, -310.0], [-2000.0, -2001.0]], requires_grad=True)
    scores = torch.zeros(2, 2, requires_grad=True)
    assert torch.isinf(-(scores.softmax(1) * ell.exp()).sum(1).log()).all()
    found = exemplar_loss(ell, scores)
    found.loss.backward()
    for value in (found.loss, ell.grad, scores.grad):
        assert value is not None
        assert torch.isfinite(value).all()
    half = exemplar_loss(ell.detach().half(), scores.half())
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, found.loss.detach(), rtol=1e-3, atol=0)


def test_c19_weighted_with_equal_weights_is_the_mean_and_k_times_it_the_released_criterion() -> None:
    ell, _ = drawn()
    equal = exemplar_loss(ell, torch.full((3, 4), 2.5, dtype=torch.float64), mode="nll")
    mean = exemplar_loss(ell, mode="nll")
    torch.testing.assert_close(equal.per_example, mean.per_example)
    torch.testing.assert_close(mean.per_example, -ell.mean(dim=1))
    released = exemplar_loss(ell, mode="nll_sum")
    torch.testing.assert_close(released.per_example, -ell.sum(dim=1))


def test_relevance() -> None:
    u = torch.randn(2, 5, requires_grad=True)
    v = torch.randn(2, 3, 5, requires_grad=True)
    scores = relevance_scores(u, v)
    expected = torch.stack([(u[i] * v[i]).sum(dim=1) for i in range(2)])
    torch.testing.assert_close(scores, expected)
    scores.sum().backward()
    assert v.grad is None
    assert u.grad is not None
    mask = torch.tensor([[True, False, True], [True, True, True]])
    weights = relevance_log_weights(scores.detach(), 2.0, mask).exp()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert weights[0, 1] == 0


@pytest.mark.parametrize(
    ("given_arguments", "message"),
    [
        ({"log_likelihoods": torch.zeros(3)}, r"must be \[B, k\]"),
        ({"relevance": torch.zeros(2, 3)}, r"relevance must be \[2, 2\]"),
        ({"mask": torch.ones(2, 2)}, "mask must be boolean"),
        ({"mode": "mean"}, "mode must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_bad_arguments(given_arguments: dict[str, Any], message: str) -> None:
    arguments = {"log_likelihoods": torch.zeros(2, 2), **given_arguments}
    with pytest.raises(ValueError, match=message):
        exemplar_loss(**arguments)
