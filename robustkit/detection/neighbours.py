"""Detectors that look at the nearest clean texts: distance to the k-th, and local intrinsic dimension."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.classifiers.features import Features

from .base import Detector, as_rows
from .kernel_pca import sample_rows

__all__ = ["KNNDetector", "LIDDetector", "nearest_distances"]

Condition = Literal["all", "predicted"]

# Numbers that one slice of the work may hold: 32 MiB of float64.
_SLICE = 1 << 22


def nearest_distances(queries: torch.Tensor, reference: torch.Tensor, k: int) -> torch.Tensor:
    """Euclidean distances to the k nearest of some rows.

    The nearest rows are found with one matrix product in the precision given, their distances are computed
    from differences in float64. Cost: m n d operations, memory bounded by slices.

    Args:
        queries: ``(m, d)``.
        reference: ``(n, d)``, n at least k.
        k: How many neighbours.

    Returns:
        float64 ``(m, k)``, ascending.
    """
    # Distances do not change under a shift; near the origin the product loses less to rounding.
    centre = reference.mean(dim=0)
    squares = (reference - centre).square().sum(dim=1)
    step = max(1, _SLICE // max(len(reference), k * reference.shape[1]))
    found = []
    for part in queries.split(step):
        near = ((part - centre) @ (reference - centre).T).mul_(-2).add_(squares)
        rows = near.topk(k, dim=1, largest=False).indices
        exact = (reference[rows].double() - part[:, None].double()).square().sum(dim=2).sqrt()
        found.append(exact.sort(dim=1).values)
    return torch.cat(found)


class _NeighbourDetector(Detector):
    """What both detectors share: features of clean training texts, as they are or of length one."""

    k: int
    normalize: bool
    condition: Condition
    max_samples: int | None
    random_state: int

    _reference: torch.Tensor
    _labels: torch.Tensor

    @abstractmethod
    def _from_distances(self, distances: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of distances (n, k), ascending."""

    def _check_params(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; expected at least 1")
        if self.condition not in get_args(Condition):
            raise ValueError(f"condition is {self.condition!r}; expected one of {get_args(Condition)}")
        if self.max_samples is not None and self.max_samples < self.k:
            raise ValueError(f"max_samples is {self.max_samples}; expected at least k = {self.k}")

    def _rows(self, values: NDArray[np.float32]) -> torch.Tensor:
        rows = as_rows(values).float()
        return torch.nn.functional.normalize(rows, dim=1) if self.normalize else rows

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        sample = sample_rows(len(clean), self.max_samples, self.random_state)
        self._labels = torch.from_numpy(labels[sample])
        fewest = len(sample)
        if self.condition == "predicted":
            fewest = int(self._labels.unique(return_counts=True)[1].min())
        if fewest < self.k:
            where = "in all" if self.condition == "all" else "in the smallest class"
            raise ValueError(f"k is {self.k}, but there are {fewest} texts {where}; take a smaller k")
        self._reference = self._rows(clean.values[sample])

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        rows = self._rows(inputs.values)
        if self.condition == "all":
            return self._from_distances(nearest_distances(rows, self._reference, self.k)).numpy()
        scores = torch.empty(len(rows), dtype=torch.float64)
        predictions = torch.from_numpy(inputs.predictions)
        for label in predictions.unique():
            mine, group = predictions == label, self._reference[self._labels == label]
            if not len(group):
                raise ValueError(
                    f"text {int(mine.int().argmax())} is predicted as class {int(label)}, but no text with "
                    "this label was fitted"
                )
            scores[mine] = self._from_distances(nearest_distances(rows[mine], group, self.k))
        return scores.numpy()

    def _state(self) -> dict[str, Any]:
        return {"reference": self._reference, "labels": self._labels}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._reference, self._labels = state["reference"], state["labels"]


class KNNDetector(_NeighbourDetector):
    """Distance to the k-th nearest clean training text (Sun, Ming, Zhu and Li, ICML 2022).

    Cost: no forward pass; a product with the reference at each query, which is kept in the file.

    Args:
        k: Which neighbour.
        normalize: Whether features are scaled to length one first, as in the paper.
        condition: Compare with ``"all"`` training texts, or with those whose gold label is the
            ``"predicted"`` one.
        max_samples: At most so many training texts, drawn uniformly, are kept; None keeps all.
        random_state: Seed of the draw.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(
        self,
        k: int = 10,
        normalize: bool = True,
        condition: Condition = "all",
        max_samples: int | None = 8000,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.normalize = normalize
        self.condition = condition
        self.max_samples = max_samples
        self.random_state = random_state
        self._check_params()

    def _from_distances(self, distances: torch.Tensor) -> torch.Tensor:
        return distances[:, -1]


class LIDDetector(_NeighbourDetector):
    r"""Local intrinsic dimension around a text, by the distances of its nearest clean training texts.

    :math:`-\left(\frac1k \sum_{i=1}^k \log \frac{r_i}{r_k}\right)^{-1}` with the distances
    :math:`r_1 \le \dots \le r_k` (Ma et al., ICLR 2018; formula unconfirmed). The paper feeds the values of
    all layers to a classifier trained on adversarial examples; this is the value of one layer, which needs
    none. Copies of a text are at distance 0 and make the dimension 0; equal distances make it at most 1e6.

    Args:
        k: Number of neighbours.
        normalize: Whether features are scaled to length one first.
        condition: See `KNNDetector`; likewise the others.
        max_samples: Most training texts kept.
        random_state: Seed of the draw.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(
        self,
        k: int = 20,
        normalize: bool = False,
        condition: Condition = "all",
        max_samples: int | None = 8000,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.normalize = normalize
        self.condition = condition
        self.max_samples = max_samples
        self.random_state = random_state
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        if self.k < 2:
            raise ValueError(f"k is {self.k}; a dimension needs at least 2 neighbours")

    def _from_distances(self, distances: torch.Tensor) -> torch.Tensor:
        mean = -(distances / distances[:, -1:]).log().mean(dim=1)
        # No distance but 0: 0 / 0, and a text among its own copies has no dimension.
        return torch.where(distances[:, -1] > 0, 1 / mean.clamp(min=1e-6), 0.0)
