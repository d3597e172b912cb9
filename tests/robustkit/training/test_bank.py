"""The bank gives back what was put, in memory and on disk, through flips and crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.training import FlipCrop, PerturbationBank
from trainkit.checkpoints import load_tree, save_tree

EPSILON = 8 / 255
SHAPE = (2, 3)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1) * EPSILON


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", EPSILON / 1024), ("int8", EPSILON / 254)]
)
@pytest.mark.parametrize("disk", [False, True])
def test_what_is_put_comes_back(dtype: Any, error: float, disk: bool, tmp_path: Path) -> None:
    """Section 10: int8 is off by at most epsilon / 254; the corners of the ball are exact."""
    bank = PerturbationBank(5, SHAPE, EPSILON, dtype=dtype, path=tmp_path / "bank" if disk else None)
    ids, delta = torch.tensor([4, 0, 2]), uniform(3, *SHAPE)
    delta[0] = EPSILON
    bank.put(ids, delta)
    assert (bank.get(ids) - delta).abs().max() <= error * (1 + 1e-4)
    assert (bank.get(ids)[0] - EPSILON).abs().max() < 1e-4 * EPSILON or dtype == "float16"
    assert bank.seen.tolist() == [True, False, True, False, True]
    assert (bank.get(torch.tensor([1, 3])) == 0).all()
    bank.forget()
    assert (bank.get(ids) == 0).all() and not bank.seen.any()


@pytest.mark.parametrize("disk", [False, True])
def test_a_checkpoint_brings_the_bank_back(disk: bool, tmp_path: Path) -> None:
    """Changes after the checkpoint are undone, on disk too."""
    path = tmp_path / "values" if disk else None
    bank = PerturbationBank(5, SHAPE, EPSILON, dtype="int8", path=path)
    bank.put(torch.tensor([1, 2]), uniform(2, *SHAPE))
    before = bank.get(torch.arange(5))
    save_tree(tmp_path, "state", bank.state_dict())
    bank.put(torch.tensor([2, 3]), uniform(2, *SHAPE, seed=1))
    assert not torch.equal(bank.get(torch.arange(5)), before)
    other = PerturbationBank(5, SHAPE, EPSILON, dtype="int8", path=path)
    other.load_state_dict(load_tree(tmp_path, "state"))
    assert torch.equal(other.get(torch.arange(5)), before)
    assert other.seen.tolist() == [False, True, True, False, False]


def test_two_banks_may_share_a_file(tmp_path: Path) -> None:
    """As two processes do; what an earlier run left there does not count."""
    one, other = (PerturbationBank(4, SHAPE, EPSILON, path=tmp_path / "bank") for _ in range(2))
    delta = uniform(1, *SHAPE)
    one.put(torch.tensor([3]), delta)
    assert (other.get(torch.tensor([3])) == 0).all()
    other.seen[3] = True
    torch.testing.assert_close(other.get(torch.tensor([3])), delta, atol=EPSILON / 1000, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["bank"]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    pad=st.integers(0, 7),
    flip=st.booleans(),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_views_lose_nothing(seed: int, pad: int, flip: bool, size: tuple[int, int]) -> None:
    """What is seen and written back is the original; what changes in view changes there alone."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, *size, generator=generator)
    views = FlipCrop(pad, flip).draw(images, generator)
    seen = views.see(images)
    assert torch.equal(views.put_back(images, seen), images)
    changed = views.put_back(torch.zeros_like(images), torch.ones_like(images))
    assert torch.equal(views.see(changed), views.see(torch.ones_like(images)))
    assert changed.sum() == views.see(torch.ones_like(images)).sum()


def test_views_are_flips_and_crops_of_a_padded_image() -> None:
    """Against padding, slicing and flipping each image by itself."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 1, 5, 7, generator=generator)
    seen = FlipCrop(pad=2).draw(images, generator).see(images)
    kinds = set()
    for image, view in zip(images, seen, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(view, (padded.flip(2) if mirrored else padded)[:, top : top + 5, left : left + 7])
        ]
        assert found
        kinds.add(found[0])
    assert len(kinds) > 20 and {kind[2] for kind in kinds} == {False, True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, SHAPE, EPSILON), "size is 0"),
        ((3, SHAPE, 0.0), "epsilon is 0"),
        ((3, SHAPE, float("nan")), "epsilon is nan"),
    ],
)
def test_banks_out_of_range_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbationBank(*arguments)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    bank = PerturbationBank(3, SHAPE, EPSILON)
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        PerturbationBank(3, SHAPE, EPSILON, dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="ids go from 0 to 3; the bank has 3"):
        bank.get(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"delta is \(1, 3\); expected \(1, 2, 3\)"):
        bank.put(torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at most epsilon"):
        bank.put(torch.tensor([0]), torch.full((1, *SHAPE), 2 * EPSILON))
    with pytest.raises(ValueError, match="delta goes to nan"):
        bank.put(torch.tensor([0]), torch.full((1, *SHAPE), float("nan")))
    with pytest.raises(ValueError, match="the state holds"):
        PerturbationBank(4, SHAPE, EPSILON).load_state_dict(bank.state_dict())
    with pytest.raises(ValueError, match="epsilon is"):
        PerturbationBank(3, SHAPE, 2 * EPSILON).load_state_dict(bank.state_dict())
    (tmp_path / "file").write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes"):
        PerturbationBank(3, SHAPE, EPSILON, path=tmp_path / "file")
    with pytest.raises(ValueError, match="flips and crops need"):
        FlipCrop().draw(torch.zeros(3, 4), torch.Generator())
