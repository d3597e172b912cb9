"""Numbers about maps: sensitivity curves, completeness, total variation, mass outside a region.

None of them needs a network to be trained; see `robustkit.interpret.retraining` for those that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.classifiers.text import TextClassifier

from .attribution import Attribution, Reduce
from .ranking import first_share, positions
from .subjects import GradientField, Score, subject_of, undisturbed

__all__ = ["completeness", "mass_outside", "sensitivity_curve", "total_variation"]


def sensitivity_curve(
    model: nn.Module | TextClassifier,
    inputs: Any,
    attribution: Attribution,
    *,
    mode: Literal["deletion", "insertion"] = "deletion",
    first: Literal["most", "least"] = "most",
    fractions: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    baseline: float | str | Tensor | None = None,
    score: Score = "prob",
    reduce: Reduce | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """The score of the explained class as pixels or words are taken away, or come in, by the map's order.

    For deletion of the most relevant first, a low area is good; for insertion, or of the least relevant
    first, a high one. Networks never saw such inputs in training, which retraining (ROAR) is made to answer.
    Cost: a forward pass for each fraction.

    Args:
        model: See `explain`.
        inputs: What the attribution is of.
        attribution: Whose map gives the order, and whose target is asked for.
        mode: ``"deletion"``: from the input to the baseline; ``"insertion"``: the reverse.
        first: ``"most"`` or ``"least"`` relevant entries change first. Values count with their sign.
        fractions: Shares of pixels, or of tokens that are neither special nor padding.
        baseline: What takes a pixel's or word's place, as for `IntegratedGradients`.
        score: See `explain`.
        reduce: See `Attribution.map`.
        seed: Of the order of equal entries.
        batch_size: See `explain`.

    Returns:
        ``fractions``; ``scores``: the mean score at each; ``each``: by input, then by fraction; ``area``: of
        the mean curve by trapezoids, divided by the range of fractions.

    Raises:
        ValueError: Other inputs than the attribution's, fractions out of range or order; see `explain`.
    """
    shares = [float(fraction) for fraction in fractions]
    if len(shares) < 2 or shares != sorted(set(shares)) or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"fractions is {shares}; expected two or more from 0 to 1, ascending")
    if mode not in ("deletion", "insertion") or first not in ("most", "least"):
        raise ValueError(
            f"mode is {mode!r}, first is {first!r}; expected deletion or insertion, most or least"
        )
    subject = subject_of(model, inputs)
    if subject.inputs.shape != attribution.inputs.shape:
        raise ValueError(
            f"inputs are {tuple(subject.inputs.shape)}, the attribution's {tuple(attribution.inputs.shape)}"
        )
    field = GradientField(subject, attribution.target, score, batch_size=batch_size)
    start = subject.baseline(baseline)
    maps = attribution.map(reduce) * (1 if first == "most" else -1)
    words = None if subject.text is None else subject.text.mask & ~subject.text.special
    old, new = (subject.inputs, start) if mode == "deletion" else (start, subject.inputs)
    places = positions(maps, seed, words)
    columns = []
    with undisturbed(subject.module):
        for share in shares:
            changed = first_share(places, share, words).to(old.device)
            # Pixels (B, H, W) change in all channels, tokens (B, T) in all dimensions.
            spread = changed.unsqueeze(1 if subject.text is None else 2) if old.ndim > 2 else changed
            columns.append(field.scores(torch.where(spread, new, old)).double().cpu())
    each = torch.stack(columns, dim=1)
    mean = each.mean(dim=0)
    area = torch.trapezoid(mean, torch.tensor(shares, dtype=torch.float64)) / (shares[-1] - shares[0])
    return {"fractions": shares, "scores": mean.tolist(), "each": each.tolist(), "area": area.item()}


def completeness(
    model: nn.Module | TextClassifier,
    inputs: Any,
    attribution: Attribution,
    *,
    baseline: float | str | Tensor | None = None,
    batch_size: int = 32,
) -> dict[str, list[float]]:
    """What a map's sum misses of the rise S(x) - S(b), for any method; of most it is no promise.

    Args:
        model: See `explain`.
        inputs: What the attribution is of.
        attribution: The maps, and what they explain.
        baseline: b, as for `IntegratedGradients`.
        batch_size: See `explain`.

    Returns:
        For each input ``sum``, ``rise``, ``gap`` (their difference) and ``relative``, ``|gap| / |rise|``.
    """
    subject = subject_of(model, inputs)
    field = GradientField(subject, attribution.target, attribution.params["score"], batch_size=batch_size)
    with undisturbed(subject.module):
        rise = field.scores(subject.inputs) - field.scores(subject.baseline(baseline))
    total = attribution.values.flatten(1).sum(dim=1).to(rise)
    gap = total - rise
    columns = {"sum": total, "rise": rise, "gap": gap, "relative": gap.abs() / rise.abs()}
    return {name: column.tolist() for name, column in columns.items()}


def total_variation(maps: Tensor, *, relative: bool = False) -> Tensor:
    """Sum of absolute differences between neighbouring pixels, down and to the right.

    Args:
        maps: ``(B, H, W)``.
        relative: Divide by the sum of absolute values, so that the scale of a map does not matter; 0 for a
            map of zeros.

    Returns:
        ``(B,)``.
    """
    total = maps.diff(dim=1).abs().sum(dim=(1, 2)) + maps.diff(dim=2).abs().sum(dim=(1, 2))
    return _share(total, maps) if relative else total


def mass_outside(maps: Tensor, mask: Tensor, *, relative: bool = False) -> Tensor:
    """Sum of absolute values outside a region, such as an object.

    Args:
        maps: ``(B, H, W)``.
        mask: bool ``(B, H, W)`` or ``(H, W)``: True inside.
        relative: As a share of the whole map, as for `total_variation`.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: A mask of another shape or type.
    """
    if mask.dtype != torch.bool or mask.shape not in (maps.shape, maps.shape[1:]):
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; expected bool, as the maps' {tuple(maps.shape)}"
        )
    outside = (maps.abs() * ~mask).sum(dim=(1, 2))
    return _share(outside, maps) if relative else outside


def _share(total: Tensor, maps: Tensor) -> Tensor:
    mass = maps.abs().sum(dim=(1, 2))
    return torch.where(mass > 0, total / mass.where(mass > 0, 1), 0)
