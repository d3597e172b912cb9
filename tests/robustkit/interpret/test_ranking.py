"""Orders of maps: ties at random, shares, rank correlation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.interpret.ranking import first_share, positions, rank_correlation, top_share


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 5))
def test_positions_sort_and_use_every_place_once(values: list[int], seed: int) -> None:
    maps = torch.tensor([values], dtype=torch.float32)
    found = positions(maps, seed)[0]
    assert sorted(found.tolist()) == list(range(len(values)))
    ordered = [values[i] for i in found.argsort().tolist()]
    assert ordered == sorted(values, reverse=True)


def test_k3_ties_fall_at_random_by_the_seed_and_for_each_map_by_itself() -> None:
    maps = torch.zeros(200, 4, 4)
    maps[:, 0, 0] = 1e-30  # far below the noise that the authors' code adds
    first, again, other = positions(maps, 0), positions(maps, 0), positions(maps, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first[:, 0, 0] == 0).all()
    mean = first.double().mean(dim=0)
    assert mean.flatten()[1:].min() > 6 and mean.flatten()[1:].max() < 10  # 8 is the middle of 1 to 15
    assert len({tuple(row.flatten().tolist()) for row in first}) > 190


def test_shares_count_what_is_valid() -> None:
    maps = torch.tensor([[4.0, 3, 2, 1, 0, 9], [0, 1, 2, 3, 9, 9]])
    valid = torch.tensor([[True] * 5 + [False], [True] * 4 + [False] * 2])
    found = top_share(maps, 0.5, valid=valid)
    assert found.tolist() == [
        [True, True, False, False, False, False],
        [False, False, True, True, False, False],
    ]
    assert top_share(maps, 1, valid=valid).tolist() == valid.tolist()
    assert not top_share(maps, 0).any() and top_share(maps, 1).all()
    for bad in (lambda: top_share(maps, 1.5), lambda: top_share(maps, 1.5, valid=valid)):
        with pytest.raises(ValueError, match=r"fraction is 1\.5"):
            bad()


@given(st.integers(1, 40), st.floats(0, 1))
def test_one_order_serves_all_shares(count: int, fraction: float) -> None:
    maps = torch.randn(3, count, generator=torch.Generator().manual_seed(count))
    found = first_share(positions(maps, 1), fraction)
    assert found.sum(dim=1).tolist() == [round(count * fraction)] * 3
    assert torch.equal(found, top_share(maps, fraction, 1))
    assert torch.equal(found, top_share(maps, fraction, 1, torch.ones_like(maps, dtype=torch.bool)))


def test_rank_correlation_is_scipys_spearman_ties_included() -> None:
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 5, (6, 40), generator=generator).double()
    second = first + torch.randint(0, 9, (6, 40), generator=generator)
    found = rank_correlation(first, second)
    wanted = [spearmanr(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert found.tolist() == pytest.approx(wanted)
    assert rank_correlation(first, -2 * first).tolist() == pytest.approx([-1] * 6)
    assert math.isnan(rank_correlation(torch.ones(1, 5), torch.arange(5.0)[None]).item())
    valid = torch.tensor([[True, True, True, False, False], [False] * 5])
    some = rank_correlation(
        torch.tensor([[1.0, 2, 3, 9, 0]] * 2), torch.tensor([[5.0, 6, 7, 0, 9]] * 2), valid
    )
    assert some[0].item() == pytest.approx(1) and math.isnan(some[1].item())
