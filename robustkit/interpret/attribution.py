"""What an explanation is: numbers for each entry of the inputs, with all that is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainkit.hub import write_bytes

from .interception import ActivationSummary
from .tokens import TokenizedTexts

__all__ = ["Attribution", "Maps", "Reduce"]

Reduce = Literal["sum", "abs_sum", "max_abs", "l2"]


@dataclass(frozen=True)
class Maps:
    """What a method gives.

    Attributes:
        values: ``(B, ...)``.
        delta: Gap of completeness ``(B,)``, of methods that have one.
        statistics: Further maps of the same pass, by name.
        activations: What was done to activations.
    """

    values: Tensor
    delta: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    activations: ActivationSummary | None = None


@dataclass(frozen=True)
class Attribution:
    """How much each entry of some inputs has to do with a model's score.

    Attributes:
        values: ``(B, C, H, W)`` for images, ``(B, T, d)`` by embedding for texts, ``(B, ...)`` in general;
            float32 or wider. 0 for padding.
        target: The explained classes, int64 ``(B,)``.
        output: The explained score at the inputs, ``(B,)``.
        method: Name of the method.
        params: Its settings, and ``score``.
        inputs: What was explained: pixels, or embeddings.
        delta: The sum of a map less the rise of the score from the baseline, ``(B,)``, where the method
            promises that they are equal.
        statistics: Further maps of the same pass by name, for noise methods ``mean``, ``mean_abs``,
            ``square`` and ``var``.
        labels: Names of the classes.
        text: Tokens and words of texts.
        activations: Which activations had a backward rule, and which non-linear functions had none.
    """

    values: Tensor
    target: Tensor
    output: Tensor
    method: str
    params: Mapping[str, Any]
    inputs: Tensor
    delta: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    text: TokenizedTexts | None = None
    activations: ActivationSummary | None = None

    def __len__(self) -> int:
        """How many inputs were explained."""
        return len(self.values)

    def __getitem__(self, rows: slice) -> Attribution:
        """The explanation of some of the inputs, such as ``attribution[2:5]``."""
        return replace(
            self,
            values=self.values[rows],
            target=self.target[rows],
            output=self.output[rows],
            inputs=self.inputs[rows],
            delta=None if self.delta is None else self.delta[rows],
            statistics={name: values[rows] for name, values in self.statistics.items()},
            text=None if self.text is None else self.text[rows],
        )

    def __repr__(self) -> str:
        return f"Attribution({self.method!r}, values {tuple(self.values.shape)})"

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """Tokens of each text, special ones included, padding not.

        Raises:
            ValueError: The inputs are no texts.
        """
        return self._text().tokens

    def of(self, statistic: str) -> Attribution:
        """The same explanation with another statistic of the same pass as its values.

        Raises:
            ValueError: There is no such statistic.
        """
        if statistic not in self.statistics:
            raise ValueError(f"statistic is {statistic!r}; there are {', '.join(self.statistics) or 'none'}")
        params = {**self.params, "statistic": statistic}
        return replace(self, values=self.statistics[statistic], params=params)

    def map(self, reduce: Reduce | None = None) -> Tensor:
        """One number for each pixel or token.

        Args:
            reduce: Over channels or embedding dimensions: ``"sum"``, ``"abs_sum"``, ``"max_abs"`` or
                ``"l2"``. By default the Euclidean norm for gradients by embeddings, where a sum has no
                meaning, otherwise the sum.

        Returns:
            ``(B, H, W)`` for images, ``(B, T)`` for texts, 0 for padding; inputs ``(B, d)`` as they are.

        Raises:
            ValueError: An unknown ``reduce``.
        """
        how = reduce or self.usual_reduce()
        if how not in ("sum", "abs_sum", "max_abs", "l2"):
            raise ValueError(f"reduce is {reduce!r}; expected sum, abs_sum, max_abs or l2")
        if self.values.ndim < 3:
            return self.values
        return _reduced(self.values, how, dim=1 if self.text is None else 2)

    def token_scores(self, reduce: Reduce | None = None) -> list[list[tuple[str, float]]]:
        """Tokens of each text with their numbers; see `map`."""
        text, scores = self._text(), self.map(reduce).cpu()
        return [
            list(zip(tokens, row[mask].tolist(), strict=True))
            for tokens, row, mask in zip(text.tokens, scores, text.mask, strict=True)
        ]

    def word_scores(self, reduce: Reduce | None = None) -> list[list[tuple[str, float]]]:
        """Words of each text with the number of all their pieces together, reduced as one; see `map`."""
        how = reduce or self.usual_reduce()
        scores = self.map(how).cpu()
        return [
            [(word.text, _reduced(row[list(word.columns)], how, dim=0).item()) for word in words]
            for words, row in zip(self._text().words, scores, strict=True)
        ]

    def heatmap(self, path: str | Path, *, reduce: Reduce | None = None, columns: int = 4) -> None:
        """Draw images and their maps into a PNG that suits a light and a dark page; needs matplotlib.

        Args:
            path: The file; its folder must exist.
            reduce: See `map`.
            columns: Images in a row, each beside its map.

        Raises:
            ValueError: The inputs are no images.
        """
        from .pictures import heatmap_png

        write_bytes(path, heatmap_png([self], reduce=reduce, columns=columns))

    def to_html(self, path: str | Path, *, reduce: Reduce | None = None) -> None:
        """Write a page without scripts that shows words in colour, or images with their maps.

        Args:
            path: The file; its folder must exist.
            reduce: See `map`.

        Raises:
            ValueError: The inputs are neither texts nor images.
        """
        from .pictures import html_grid

        html_grid(path, [self], reduce=reduce)

    def label(self, row: int) -> str:
        """Name of the explained class of one input."""
        number = int(self.target[row])
        return f"class {number}" if self.labels is None else self.labels[number]

    def usual_reduce(self) -> Reduce:
        """What `map` does by default."""
        times_input = {
            "IntegratedGradients": True,
            "RectGrad": self.params.get("final") != "none",
            "Gradient": self.params.get("times_input"),
        }.get(self.method)
        return "sum" if self.text is None or times_input else "l2"

    def _text(self) -> TokenizedTexts:
        if self.text is None:
            raise ValueError("these inputs are no texts and have no tokens")
        return self.text


def _reduced(values: Tensor, how: Reduce, dim: int) -> Tensor:
    match how:
        case "sum":
            return values.sum(dim=dim)
        case "abs_sum":
            return values.abs().sum(dim=dim)
        case "max_abs":
            return values.abs().amax(dim=dim)
        case "l2":
            norm: Tensor = torch.linalg.vector_norm(values, dim=dim)
            return norm
