"""XRAI: sums, constancy on regions, the greedy choice by a naive implementation (X1 to X5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from robustkit.interpret import XRAI, explain
from robustkit.interpret.regions import dilated_masks, felzenszwalb, region_map, segments

from .nets import cnn, images
from .test_texts import TEXTS, classifier


def fixture(seed: int, masks: int = 12, pixels: int = 60) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    drawn = np.random.default_rng(seed)
    return drawn.normal(size=pixels), drawn.random((masks, pixels)) < drawn.random((masks, 1)) * 0.5


def naive(attribution: NDArray[Any], masks: NDArray[np.bool_], least: int, fast: bool) -> NDArray[Any]:
    """The choice as the specification tells it, with every mask counted anew."""
    found, covered = np.full(len(attribution), np.nan), np.zeros(len(attribution), dtype=bool)
    left = [mask for mask in masks if mask.any()]
    if fast:
        left.sort(key=lambda mask: -attribution[mask].mean())
    while left:
        left = [mask for mask in left if (mask & ~covered).sum() >= least]
        if not left:
            break
        best = left.pop(0) if fast else max(left, key=lambda mask: attribution[mask & ~covered].mean())
        new = best & ~covered
        found[new] = attribution[new].mean()
        covered |= new
    if not covered.all():
        found[~covered] = attribution[~covered].mean()
    return found


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 10]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_x1_x2_x3_the_greedy_choice(seed: int, least: int, fast: bool) -> None:
    attribution, masks = fixture(seed)
    found, regions = region_map(attribution, masks, mode="fast" if fast else "full", min_pixels=least)
    assert np.allclose(found, naive(attribution, masks, least, fast), atol=1e-12)  # X3
    assert found.sum() == pytest.approx(attribution.sum())  # X1
    assert all(len(np.unique(found[regions == region])) == 1 for region in np.unique(regions))  # X2
    assert set(regions) == set(range(regions.max() + 1))


def test_x4_fast_and_full_agree_on_masks_apart_from_each_other() -> None:
    attribution, _ = fixture(3)
    masks = np.repeat(np.eye(6, dtype=bool), 10, axis=1)
    pair = [region_map(attribution, masks, mode=mode, min_pixels=5)[0] for mode in ("full", "fast")]  # type: ignore[arg-type]
    assert np.array_equal(*pair) and len(np.unique(pair[0])) == 6


def test_x5_a_uniform_attribution_gives_a_uniform_map() -> None:
    _, masks = fixture(4)
    found, _ = region_map(np.full(60, 0.3), masks, min_pixels=1)
    assert np.allclose(found, 0.3)


def test_masks_grow_by_a_disk() -> None:
    labels = np.zeros((2, 20, 16), dtype=np.int64)
    labels[0, 8:11, 0:4] = 1
    labels[1, :, 9:] = 4  # numbers may be missing
    masks = dilated_masks(labels, radius=3)
    assert masks.shape == (4, 20, 16)
    y, x = np.mgrid[-3:4, -3:4]
    disk = x**2 + y**2 <= 9
    originals = [labels[0] == 0, labels[0] == 1, labels[1] == 0, labels[1] == 4]
    for mask, original in zip(masks, originals, strict=True):
        assert np.array_equal(mask, binary_dilation(original, disk))
    assert np.array_equal(dilated_masks(labels, radius=0)[1], originals[1])


def one_by_one(pixels: NDArray[Any], scale: float, sigma: float, min_size: int) -> NDArray[np.int64]:
    """The segments as the paper tells them: edges in order, parts as sets of pixels."""
    blurred = gaussian_filter(pixels, (sigma, sigma, 0))
    height, width = pixels.shape[:2]
    edges = [
        (float(np.linalg.norm(blurred[y, x] - blurred[y + down, x + right])), (y, x), (y + down, x + right))
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        for y in range(height - down)
        for x in range(max(0, -right), width - max(0, right))
    ]
    edges.sort(key=lambda edge: edge[0])  # stable
    part = {place: {place} for place in np.ndindex(height, width)}
    inner = {place: 0.0 for place in part}

    def join(one: tuple[int, ...], other: tuple[int, ...]) -> None:
        part[one] |= part[other]
        for place in part[one]:
            part[place] = part[one]

    for cost, one, other in edges:
        allowed = min(inner[min(part[end])] + scale / len(part[end]) for end in (one, other))
        if part[one] is not part[other] and cost <= allowed:
            join(one, other)
            inner[min(part[one])] = cost
    for _, one, other in edges:
        if part[one] is not part[other] and min(len(part[one]), len(part[other])) < min_size:
            join(one, other)
    firsts = sorted({min(own) for own in part.values()})
    return np.array([firsts.index(min(part[place])) for place in np.ndindex(height, width)]).reshape(
        height, width
    )


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([2, 6, 256]),
    st.sampled_from([0.0, 0.8]),
    st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_segments_are_those_of_the_sequential_algorithm(
    seed: int, shape: tuple[int, int], shades: int, sigma: float, min_size: int
) -> None:
    drawn = np.random.default_rng(seed)
    pixels = drawn.integers(shades, size=(*shape, 3)) / (shades - 1)  # few shades: many equal differences
    scales = [0.2, 1.0, 4.0]
    found = felzenszwalb(pixels, scales, sigma=sigma, min_size=min_size)
    for scale, labels in zip(scales, found, strict=True):
        assert np.array_equal(labels, one_by_one(pixels, scale, sigma, min_size))


def test_segments_are_areas_of_one_colour() -> None:
    pixels = np.zeros((30, 40, 3))
    pixels[:, 20:, 0] = 1.0
    pixels[20:, :20, 1] = 1.0
    pixels[5, 5, 2] = 1.0  # a dot is too small to stay alone
    (labels,) = felzenszwalb(pixels, [0.5], sigma=0.0, min_size=20)
    assert labels.max() == 2
    for part in (labels[:20, :20], labels[:, 20:], labels[20:, :20]):
        assert len(np.unique(part)) == 1
    (dots,) = felzenszwalb(pixels, [0.5], sigma=0.0, min_size=1)
    assert dots.max() == 3 and (dots == dots[5, 5]).sum() == 1
    # A large scale joins everything, and each scale is as if it were alone.
    assert [labels.max() for labels in felzenszwalb(pixels, [0.5, 1e4], sigma=0.0, min_size=1)] == [3, 0]


def test_labels_come_back_in_the_images_size() -> None:
    image = torch.zeros(3, 12, 16)
    image[:, :, 8:] = 1
    found = segments(image, side=24, scales=(50, 500))
    assert found.shape == (2, 12, 16) and found.dtype == np.int64
    assert (found[0, :, :7] == found[0, 0, 0]).all() and (found[0, :, 9:] == found[0, 0, 15]).all()
    assert found[0, 0, 0] != found[0, 0, 15]


def test_explained_images_have_regions_that_sum_to_the_base() -> None:
    net, x = cnn(), images(2)
    method = XRAI(steps=8, side=32, min_pixels=4, radius=1)
    a = explain(net, x, method, target=1)
    assert a.values.shape == (2, 1, 8, 8) and a.map().shape == (2, 8, 8)
    black, white = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    from robustkit.interpret import IntegratedGradients

    base = sum(
        explain(net, x, IntegratedGradients(baseline=end, steps=8), target=1).values for end in (black, white)
    )
    assert isinstance(base, torch.Tensor)
    assert torch.allclose(a.values.sum(dim=(1, 2, 3)), (base / 2).amax(dim=1).sum(dim=(1, 2)))
    alone = explain(net, x[1:], method, target=1)
    assert torch.allclose(alone.values[0], a.values[1])
    with pytest.raises(ValueError, match="are no images"):
        explain(classifier("bert"), TEXTS, "xrai")


@pytest.mark.parametrize(
    "change", [{"mode": "slow"}, {"steps": 0}, {"side": 0}, {"radius": -1}, {"min_pixels": 0}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        XRAI(**change)
