"""XRAI: attributions of regions instead of pixels.

Source: Kapishnikov, Bolukbasi, Viégas and Terry 2019 (arXiv 1906.02825), with the settings of its published
code: overlapping segments of six scales, grown by a disk, are taken greedily by the mean attribution of the
pixels that they add. (The paper's poster speaks of sums; the code has means.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .attribution import Maps
from .paths import IntegratedGradients
from .subjects import GradientField

__all__ = ["XRAI", "dilated_masks", "felzenszwalb", "region_map", "segments"]

SCALES = (50, 100, 150, 250, 500, 1200)
"""How large segments are, of the published code."""

Mode = Literal["full", "fast"]


def region_map(
    attribution: NDArray[np.float64], masks: NDArray[np.bool_], *, mode: Mode = "full", min_pixels: int = 50
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Take masks greedily; each gives the pixels that it adds their mean.

    The map's sum is the attribution's. Cost of ``"full"``: each pixel is subtracted once from every mask that
    holds it.

    Args:
        attribution: ``(N,)``.
        masks: ``(m, N)``; they may overlap.
        mode: ``"full"``: masks are ranked anew, by their mean over pixels that are still free, after each
            choice; ``"fast"``: once, by their mean over all of their pixels.
        min_pixels: A mask that adds fewer is left out.

    Returns:
        The map ``(N,)``, and for each pixel the number of its region, from 0 in the order of choice; pixels
        that no mask took are the last region.
    """
    from scipy.sparse import csr_matrix

    members = csr_matrix(masks, dtype=np.float64)
    columns = members.tocsc()
    counts = np.asarray(masks.sum(axis=1), dtype=np.float64)
    sums = members @ attribution
    free = np.ones(masks.shape[1], dtype=bool)
    regions = np.full(masks.shape[1], -1, dtype=np.int64)
    order = np.argsort(-sums / np.maximum(counts, 1), kind="stable") if mode == "fast" else None
    for step in range(len(masks)):
        if order is None:
            means = np.where(counts >= max(min_pixels, 1), sums / np.maximum(counts, 1), -np.inf)
            chosen = int(means.argmax())
            if means[chosen] == -np.inf:
                break
        else:
            chosen = int(order[step])
            if counts[chosen] < max(min_pixels, 1):
                continue
        new = np.flatnonzero(masks[chosen] & free)
        free[new] = False
        regions[new] = regions.max() + 1
        part = columns[:, new]
        counts -= np.asarray(part.sum(axis=1)).ravel()
        sums -= part @ attribution[new]
    regions[free] = regions.max() + 1
    size = np.bincount(regions)
    return (np.bincount(regions, attribution) / size)[regions], regions


def segments(image: Tensor, *, side: int = 224, scales: Sequence[int] = SCALES) -> NDArray[np.int64]:
    """Segments of an image at several scales.

    The image is scaled to [-1, 1] and resized to a square, segmented there, and labels are brought back.

    Args:
        image: ``(C, H, W)``.
        side: Of the square, in pixels.
        scales: See `felzenszwalb`; in units of 1 / 255.

    Returns:
        Labels ``(len(scales), H, W)``.
    """
    low, high = image.min(), image.max()
    scaled = (image.double() - low) / (high - low).clamp(min=1e-12) * 2 - 1
    square = F.interpolate(scaled[None], (side, side), mode="bicubic", align_corners=False)[0]
    pixels = square.permute(1, 2, 0).cpu().numpy()
    labels = torch.from_numpy(felzenszwalb(pixels, [scale / 255 for scale in scales]))
    back = F.interpolate(labels[None].double(), tuple(image.shape[1:]), mode="nearest-exact")[0]
    return back.long().numpy()


def felzenszwalb(
    pixels: NDArray[np.float64], scales: Sequence[float], *, sigma: float = 0.8, min_size: int = 150
) -> NDArray[np.int64]:
    """Segments of a picture whose inner differences are small against those at their borders.

    Source: Felzenszwalb and Huttenlocher 2004, "Efficient Graph-Based Image Segmentation". Neighbours, also
    across corners, are joined in the order of their difference if it is at most that inside of either part,
    ``largest difference joined so far + scale / size``. Cost: what all scales join alike is joined at once,
    with arrays; a loop over the differences between the remaining parts follows for each scale.

    Args:
        pixels: ``(H, W, C)``.
        scales: Larger ones give larger segments; in units of the pixels.
        sigma: Of the blur before.
        min_size: Smaller parts join the neighbour that differs least.

    Returns:
        Labels ``(len(scales), H, W)``, from 0 in the order of their first pixels.
    """
    height, width = pixels.shape[:2]
    edges = _differences(pixels, sigma)
    part, size, inner = _joined_at_all_scales(edges, height * width, min(scales))
    first, second = part[edges.first], part[edges.second]
    # Of all differences between two parts the smallest alone decides whether they are joined.
    pairs = np.minimum(first, second) * len(size) + np.maximum(first, second)
    cheapest = np.sort(np.unique(pairs, return_index=True)[1])
    cheapest = cheapest[first[cheapest] != second[cheapest]]
    between = _Edges(first[cheapest], second[cheapest], edges.cost[cheapest])
    found = []
    for scale in scales:
        _, start, label = np.unique(
            _joined(between, size, inner, scale, min_size)[part], return_index=True, return_inverse=True
        )
        found.append(np.argsort(np.argsort(start))[label].reshape(height, width))
    return np.stack(found)


class _Edges(NamedTuple):
    """Neighbours and how much they differ, the least first."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cost: NDArray[np.float64]


def _differences(pixels: NDArray[np.float64], sigma: float) -> _Edges:
    from scipy.ndimage import gaussian_filter

    height, width = pixels.shape[:2]
    blurred = gaussian_filter(pixels, (sigma, sigma, 0))
    places = np.arange(height * width).reshape(height, width)
    ends, differences = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, columns = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        far = slice(down, height), slice(max(0, right), width - max(0, -right))
        ends.append(np.stack([places[rows, columns].ravel(), places[far].ravel()]))
        differences.append(np.linalg.norm(blurred[rows, columns] - blurred[far], axis=2).ravel())
    cost = np.concatenate(differences)
    order = np.argsort(cost, kind="stable")
    first, second = np.concatenate(ends, axis=1)[:, order]
    return _Edges(first, second, cost[order])


def _joined_at_all_scales(
    edges: _Edges, count: int, least_scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Parts of the pixels, their sizes and the largest difference joined in each.

    An edge that is the cheapest of both its parts would find them as they are now in the sequential order,
    too; all such edges are joined in one step, where the smallest scale, and so every scale, allows it.
    """
    part = np.arange(count)
    size, inner = np.ones(count), np.zeros(count)
    first, second, cost = edges
    while len(cost):
        numbers = np.arange(len(cost))
        cheapest = np.full((2, count), len(cost))
        # Of several values for one place the last is kept.
        cheapest[0, first[::-1]] = cheapest[1, second[::-1]] = numbers[::-1]
        best = cheapest.min(axis=0)
        limit = inner + least_scale / size
        mutual = (best[first] == numbers) & (best[second] == numbers)
        chosen = np.flatnonzero(mutual & (cost <= limit[first]) & (cost <= limit[second]))
        kept, gone = first[chosen], second[chosen]
        size[kept] += size[gone]
        inner[kept] = cost[chosen]
        step = np.arange(count)
        step[gone] = kept
        part = step[part]
        first, second = step[first], step[second]
        apart = first != second
        first, second, cost = first[apart], second[apart], cost[apart]
        # Few more at the price of a step are better left to the loop.
        if len(chosen) * 200 < len(cost):
            break
    names, part = np.unique(part, return_inverse=True)
    return part, size[names], inner[names]


def _joined(
    edges: _Edges, size: NDArray[np.float64], inner: NDArray[np.float64], scale: float, min_size: int
) -> NDArray[np.int64]:
    """For each part one that stands for all that it is joined with, by the edges in their order."""
    parent = list(range(len(size)))
    sizes: list[float] = size.tolist()
    limit: list[float] = (inner + scale / size).tolist()

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    def join(a: int, b: int) -> int:
        if sizes[a] < sizes[b]:
            a, b = b, a
        parent[b] = a
        sizes[a] += sizes[b]
        return a

    for a, b, cost in zip(*(one.tolist() for one in edges), strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and cost <= limit[a] and cost <= limit[b]:
            kept = join(a, b)
            limit[kept] = cost + scale / sizes[kept]
    roots, sizes_now = np.array([root(node) for node in range(len(parent))]), np.array(sizes)
    first, second = roots[edges.first], roots[edges.second]
    small = np.minimum(sizes_now[first], sizes_now[second]) < min_size
    open_pairs = small & (first != second)
    for a, b in zip(first[open_pairs].tolist(), second[open_pairs].tolist(), strict=True):
        a, b = root(a), root(b)
        if a != b and min(sizes[a], sizes[b]) < min_size:
            join(a, b)
    return np.array([root(node) for node in range(len(parent))])


def dilated_masks(labels: NDArray[np.int64], radius: int = 5) -> NDArray[np.bool_]:
    """A mask for each label of each segmentation, grown by a disk.

    Args:
        labels: ``(s, H, W)``.
        radius: In pixels.

    Returns:
        ``(m, H, W)``.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    masks = []
    for one in labels:
        for label, box in enumerate(find_objects(one + 1)):
            if box is None:
                continue
            # Nothing outside the box and a margin is near enough.
            wide = tuple(slice(max(0, side.start - radius), side.stop + radius) for side in box)
            mask = np.zeros(one.shape, dtype=bool)
            mask[wide] = distance_transform_edt(one[wide] != label) <= radius
            masks.append(mask)
    return np.stack(masks)


@dataclass(frozen=True)
class XRAI:
    """Regions by the mean of integrated gradients in them, from a black and a white baseline.

    The map ``(B, 1, H, W)`` has one number for each region; larger means more important. Channels of the base
    attribution are collapsed by their largest value, as in the published code. Images only.

    Attributes:
        mode: ``"full"`` ranks regions anew after each choice, ``"fast"`` once.
        steps: Of each of the two integrated gradients; the published code has 100.
        min_pixels: A segment that adds fewer is left out.
        side: Of the square in which images are segmented.
        radius: By which segments grow, in pixels of the image.

    Raises:
        ValueError: A setting out of range; inputs that are no images.
    """

    mode: Mode = "full"
    steps: int = 100
    min_pixels: int = 50
    side: int = 224
    radius: int = 5

    def __post_init__(self) -> None:
        if self.mode not in ("full", "fast"):
            raise ValueError(f"mode is {self.mode!r}; expected full or fast")
        for name in ("steps", "min_pixels", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.radius < 0:
            raise ValueError(f"radius is {self.radius}; expected 0 or more")

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        images = field.inputs
        if field.subject.text is not None or images.ndim != 4:
            raise ValueError(f"inputs {tuple(images.shape)} are no images (n, channels, y, x)")
        ends = (images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True))
        base = torch.stack(
            [IntegratedGradients(baseline=end, steps=self.steps).attribute(field).values for end in ends]
        ).mean(dim=0)
        found = [self.regions(image, own) for image, own in zip(images, base, strict=True)]
        return Maps(torch.stack(found)[:, None].to(images))

    def regions(self, image: Tensor, base: Tensor) -> Tensor:
        """The map of an image from any attribution of its pixels.

        Args:
            image: ``(C, H, W)``.
            base: ``(C, H, W)``, of the same size.

        Returns:
            float64 ``(H, W)`` on the processor.
        """
        masks = dilated_masks(segments(image, side=self.side), self.radius)
        flat = base.amax(dim=0).double().cpu().numpy().ravel()
        found, _ = region_map(flat, masks.reshape(len(masks), -1), mode=self.mode, min_pixels=self.min_pixels)
        return torch.from_numpy(found).view(image.shape[1:])
