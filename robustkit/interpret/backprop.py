"""Attributions from one backward pass: the gradient, and backward passes with another rule at activations."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from .attribution import Maps
from .interception import ActivationRule, ActivationSummary, Interception, Unit
from .rules import deconvolution_rule, gated_rule, guided_rule, kept_units, rectgrad_rule
from .subjects import GradientField

__all__ = ["Deconvolution", "Gradient", "GuidedBackprop", "RectGrad"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the score by the input, or gradient times input.

    Cost: one forward and one backward pass.

    Attributes:
        times_input: Whether it is multiplied by the input, as the network's first layer sees it.
    """

    times_input: bool = False

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        gradient, _ = field.gradients_at_inputs()
        return Maps(_times_input(gradient, field) if self.times_input else gradient)


@dataclass(frozen=True)
class GuidedBackprop:
    """Guided backpropagation: at each ReLU only positive relevance of active units passes.

    Source: Springenberg et al. 2015 (arXiv 1412.6806). It is nearly independent of the parameters of later
    layers (Adebayo et al. 2018; Sixt et al. 2020). ReLU networks only.
    """

    any_activation = False

    def propagate(self, relevance: Tensor, unit: Unit) -> Tensor:
        """See `ActivationRule`."""
        return guided_rule(relevance, unit.output)

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        values, summary = _backward(field, self)
        return Maps(values, activations=summary)


@dataclass(frozen=True)
class Deconvolution:
    """Deconvolution: at each ReLU positive relevance passes, whether the unit was active or not.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901); the criticism of guided backpropagation holds for it,
    too. ReLU networks only.
    """

    any_activation = False

    def propagate(self, relevance: Tensor, unit: Unit) -> Tensor:
        """See `ActivationRule`."""
        return deconvolution_rule(relevance)

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        values, summary = _backward(field, self)
        return Maps(values, activations=summary)


@dataclass(frozen=True)
class RectGrad:
    """Rectified gradient: at each activation only the relevance of units with a high score a R passes.

    Defaults are those of the published code but for ``border``, whose published pictures need ``"zero"``, and
    ``min_keep``, which is 0 there. It is known to depend little on the parameters of later layers: see the
    documentation before you trust a map. Cost: one forward and one backward pass, and a selection in each
    layer.

    Attributes:
        q: Percentile of the scores that a unit must exceed, for each sample and layer.
        tau: A fixed threshold on the score instead; 0 gives guided backpropagation.
        rule: ``"published"``: the mask replaces the activation's derivative; ReLU networks only. ``"gated"``:
            the mask multiplies it; any activation. The latter is our extension and not supported by any
            publication; in a transformer it thresholds the activations between linear layers and leaves
            attention, normalization and residuals as they are.
        score: Of a unit under the gated rule: ``"output"``, ``a R``, or ``"input"``, ``z act'(z) R``; the
            same for ReLU.
        prr: Whether max-pools redistribute relevance in proportion to what they read.
        border: ``"zero"``: the outermost ring above each convolution that keeps the size is set to 0.
        final: The map of the relevance R at the input x: ``"times_input_relu"``: ``max(x R, 0)``, of the
            published measurements; ``"times_input"``: ``x R``, of the published pictures; ``"none"``: R.
        min_keep: Units with a positive score that pass in any case.

    Raises:
        ValueError: A setting is out of range.
    """

    q: float = 98.0
    tau: float | None = None
    rule: Literal["published", "gated"] = "published"
    score: Literal["output", "input"] = "output"
    prr: bool = False
    border: Literal["none", "zero"] = "none"
    final: Literal["times_input_relu", "times_input", "none"] = "times_input_relu"
    min_keep: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 100:
            raise ValueError(f"q is {self.q}; expected a percentile from 0 to 100")
        if self.min_keep < 0:
            raise ValueError(f"min_keep is {self.min_keep}; expected 0 or more")
        for name, known in (
            ("rule", ("published", "gated")),
            ("score", ("output", "input")),
            ("border", ("none", "zero")),
            ("final", ("times_input_relu", "times_input", "none")),
        ):
            if asdict(self)[name] not in known:
                raise ValueError(f"{name} is {asdict(self)[name]!r}; expected one of {', '.join(known)}")
        if self.score == "input" and self.rule == "published":
            raise ValueError("score='input' belongs to rule='gated'")

    @property
    def any_activation(self) -> bool:
        """See `ActivationRule`."""
        return self.rule == "gated"

    def propagate(self, relevance: Tensor, unit: Unit) -> Tensor:
        """See `ActivationRule`."""
        wide = torch.promote_types(relevance.dtype, torch.float32)
        if self.rule == "published":
            kept = self._kept(unit.output.to(wide) * relevance.to(wide), unit)
            return rectgrad_rule(relevance, unit.output, kept)
        propagated = unit.derivative(relevance)
        scores = unit.output.to(wide) * relevance if self.score == "output" else unit.z.to(wide) * propagated
        return gated_rule(propagated, self._kept(scores, unit))

    def _kept(self, scores: Tensor, unit: Unit) -> Tensor:
        return kept_units(
            scores, q=self.q, tau=self.tau, strict=self.rule == "published", min_keep=self.min_keep,
            valid=unit.valid,
        )  # fmt: skip

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""
        values, summary = _backward(field, self, pools=self.prr, borders=self.border == "zero")
        if self.final != "none":
            values = _times_input(values, field)
        if self.final == "times_input_relu":
            values = values.clamp(min=0)
        if self.rule == "gated" and summary.left_alone:
            warnings.warn(
                f"RectGrad-gated is no published method; in {type(field.subject.module).__name__} it leaves "
                f"{', '.join(sorted(summary.left_alone))} as they are",
                stacklevel=4,
            )
        return Maps(values, activations=summary)


def _backward(
    field: GradientField, rule: ActivationRule, pools: bool = False, borders: bool = False
) -> tuple[Tensor, ActivationSummary]:
    def intercepted(rows: int, mask: Tensor | None) -> Interception:
        return Interception(rule, rows, redistribute_pools=pools, zero_borders=borders, valid=mask)

    values, summary = field.gradients_at_inputs(intercepted)
    assert summary is not None
    if not any(name != "max_pool2d" for name in summary.treated):
        wanted = "activation" if rule.any_activation else "ReLU"
        raise ValueError(
            f"{type(field.subject.module).__name__} calls no {wanted} that the rule could be applied to: the "
            "map would be the plain gradient"
        )
    return values, summary


def _times_input(gradient: Tensor, field: GradientField) -> Tensor:
    return gradient * (field.inputs - field.subject.reference)
