"""Integrated gradients: the gradient along a straight line from a baseline, times the way.

A_i = (x_i - b_i) times the integral over t in [0, 1] of dS/dx_i at b + t (x - b); their sum is S(x) - S(b).
Source: Sundararajan, Taly and Yan 2017 (arXiv 1703.01365).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .attribution import Maps
from .subjects import GradientField

__all__ = ["IntegratedGradients", "quadrature"]

Rule = Literal["gausslegendre", "midpoint", "trapezoid", "right"]


def quadrature(rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights that sum to 1, float64 ``(steps,)`` each.

    The error falls with 1 / steps for ``right`` and with its square for ``midpoint`` and ``trapezoid``.
    """
    places = torch.arange(steps, dtype=torch.float64)
    even = torch.full((steps,), 1 / steps, dtype=torch.float64)
    if rule == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    if rule == "midpoint":
        return (places + 0.5) / steps, even
    if rule == "right":
        return (places + 1) / steps, even
    ends = torch.ones_like(even)
    ends[0] = ends[-1] = 0.5
    return places / (steps - 1), ends / (steps - 1)


@dataclass(frozen=True)
class IntegratedGradients:
    """Gradients integrated from a baseline to the input.

    `Attribution.delta` is the gap of completeness, the sum of the map less S(x) - S(b). Cost: ``steps`` + 2
    forward passes, ``steps`` backward ones; with a tolerance up to twice those of the last round.

    Attributes:
        baseline: b. None: what the network sees as zero (for pixels that are normalized inside, their mean),
            and for texts the pad token, or zero where there is none. A number or a tensor, in the inputs'
            units; for texts ``"zero"``, ``"pad"`` or ``"mask"``, always with special tokens as they are.
        steps: Nodes of the quadrature, 32 by our choice; the RectGrad paper's code takes 50 with ``right``.
        rule: ``"gausslegendre"``, ``"midpoint"``, ``"trapezoid"`` or ``"right"``.
        tol: Double the steps of an input until its gap is at most this share of |S(x) - S(b)|. None: one
            round.
        max_steps: Where doubling ends, with a warning.

    Raises:
        ValueError: A setting is out of range.
    """

    baseline: float | str | Tensor | None = None
    steps: int = 32
    rule: Rule = "gausslegendre"
    tol: float | None = None
    max_steps: int = 1024

    def __post_init__(self) -> None:
        if self.rule not in ("gausslegendre", "midpoint", "trapezoid", "right"):
            raise ValueError(f"rule is {self.rule!r}; expected gausslegendre, midpoint, trapezoid or right")
        least = 2 if self.rule == "trapezoid" else 1
        if not least <= self.steps <= self.max_steps:
            raise ValueError(f"steps is {self.steps}; expected {least} to max_steps, {self.max_steps}")
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"tol is {self.tol}; expected more than 0")

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        start = field.subject.baseline(self.baseline)
        way = field.inputs - start
        foot = field.scores(start)
        rise = field.output - foot
        values = way * self._mean_gradient(field, start, way, field.rows, self.steps)
        delta = values.flatten(1).sum(dim=1) - rise
        steps = self.steps
        while self.tol is not None:
            rows = (delta.abs() > self.tol * rise.abs()).nonzero()[:, 0]
            if len(rows) == 0:
                break
            if steps * 2 > self.max_steps:
                worst = (delta.abs() / rise.abs()).max().item()
                warnings.warn(
                    f"integrated gradients miss completeness by up to {worst:.2g} of S(x) - S(b) at {steps} "
                    f"steps, tol is {self.tol:g}; raise max_steps",
                    stacklevel=4,
                )
                break
            steps *= 2
            values[rows] = way[rows] * self._mean_gradient(field, start, way, rows, steps)
            delta = values.flatten(1).sum(dim=1) - rise
        return Maps(values, delta=delta)

    def _mean_gradient(
        self, field: GradientField, start: Tensor, way: Tensor, rows: Tensor, steps: int
    ) -> Tensor:
        nodes, weights = quadrature(self.rule, steps)
        total = torch.zeros_like(way[rows])
        chunk = max(1, field.batch_size // len(rows))
        for part in torch.arange(steps).split(chunk):
            points = torch.cat([start[rows] + float(t) * way[rows] for t in nodes[part]])
            gradients = field.gradients(points, rows.repeat(len(part))).view(len(part), *total.shape)
            total += torch.tensordot(weights[part].to(total), gradients, dims=1)
            del gradients  # before the next chunk
        return total
