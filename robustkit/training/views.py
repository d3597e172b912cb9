"""Flips and crops that carry perturbations along and bring them back without loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FlipCrop", "Views"]


@dataclass(frozen=True)
class Views:
    """Where each pixel of what the model sees comes from: no interpolation, so nothing is lost.

    Attributes:
        rows: int64 ``(n, height)``: rows of the original, -1 for the border of zeros.
        columns: int64 ``(n, width)``: columns of the original, -1 for the border.
    """

    rows: Tensor
    columns: Tensor

    def see(self, images: Tensor) -> Tensor:
        """What the model sees of images or perturbations ``(n, channels, y, x)``; 0 in the border."""
        rows, columns, inside = self._places(images)
        seen = images.gather(2, rows.expand(-1, images.shape[1], -1, images.shape[3])).gather(3, columns)
        return seen * inside

    def put_back(self, original: Tensor, seen: Tensor) -> Tensor:
        """Perturbations of the originals with what was seen written over them; the rest keeps its value.

        Args:
            original: ``(n, channels, height, width)``.
            seen: The same shape, in the model's coordinates.
        """
        _, _, inside = self._places(original)
        samples, ys, xs = inside[:, 0].nonzero(as_tuple=True)
        at = self.rows.to(original.device)[samples, ys], self.columns.to(original.device)[samples, xs]
        result = original.clone()
        result[samples, :, at[0], at[1]] = seen[samples, :, ys, xs]
        return result

    def _places(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = self.rows.to(like.device), self.columns.to(like.device)
        inside = (rows >= 0)[:, None, :, None] & (columns >= 0)[:, None, None, :]
        n, channels, height, width = like.shape
        wide = columns.clamp(min=0)[:, None, None, :].expand(n, channels, height, width)
        return rows.clamp(min=0)[:, None, :, None], wide, inside


@dataclass(frozen=True)
class FlipCrop:
    """Random crops of images with a border of zeros, and mirror images.

    Args:
        pad: Width of the border, in pixels; an image moves by at most as much.
        flip: Whether every other image is mirrored left to right.

    Raises:
        ValueError: A negative border.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad is {self.pad}; expected at least 0")

    def draw(self, images: Tensor, generator: torch.Generator) -> Views:
        """Views of images ``(n, channels, height, width)``.

        Raises:
            ValueError: Not four dimensions.
        """
        if images.ndim != 4:
            raise ValueError(f"inputs are {tuple(images.shape)}; flips and crops need (n, channels, y, x)")
        n, _, height, width = images.shape
        shifts = torch.randint(-self.pad, self.pad + 1, (2, n, 1), generator=generator)
        mirrored = (torch.rand(n, 1, generator=generator) < 0.5) & self.flip
        rows, columns = torch.arange(height) + shifts[0], torch.arange(width) + shifts[1]
        columns = torch.where(mirrored, width - 1 - columns, columns)
        return Views(_inside(rows, height), _inside(columns, width))


def _inside(places: Tensor, length: int) -> Tensor:
    return torch.where((places >= 0) & (places < length), places, -1)
