"""What a classifier looks at, before and after attacks, and how far that can be trusted: a report's section.

The section is the same for texts and images. What differs, such as how a map is shown, is an `Explainer`:
`robustkit.evaluation.explained_texts` and `robustkit.evaluation.explained_images`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.classifiers.images import ImageClassifier
from robustkit.classifiers.text import TextClassifier
from robustkit.evaluation.figures import curves_figure
from robustkit.evaluation.report import bootstrap_mean, interval_note
from robustkit.interpret.attribution import Attribution
from robustkit.interpret.explaining import METHODS, explain
from robustkit.interpret.measures import sensitivity_curve
from robustkit.interpret.sanity import layers_in_order, randomisation_test
from trainkit.progress import Progress
from trainkit.report import Cell, Figure, Part, Section, Table
from trainkit.seeding import derive_seed

__all__ = ["FRACTIONS", "Explainer", "ExplanationConfig", "Inputs", "check_methods", "explanation_section"]

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of tokens or pixels that are taken away."""

_ORDERS = ("most important first", "random order", "least important first")

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ExplanationConfig:
    """Settings of explanations in a report.

    Attributes:
        methods: Attribution methods, names of `robustkit.interpret.METHODS`; each takes the time of one.
        sample: Texts or images behind each number at most, drawn at random.
        examples: Examples whose maps are shown, of each attack.
        n_boot: Bootstrap samples for intervals; 0 for none.
        batch_size: Inputs, noisy copies or steps in one forward pass; it bounds the memory.
        seed: Of all that is drawn.

    Raises:
        ValueError: No method or an unknown one, or a number out of range.
    """

    methods: tuple[str, ...] = ("integrated_gradients",)
    sample: int = 100
    examples: int = 5
    n_boot: int = 1000
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {self.methods!r}, expected names, at least one, each once")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
        for name, least in (("sample", 1), ("batch_size", 1), ("examples", 0), ("n_boot", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Inputs:
    """Texts or images: as they are, or as an attack left them.

    Attributes:
        name: What the report calls them.
        items: n texts, or pixels ``(n, channels, height, width)``.
        labels: Their true classes.
        before: The same before the attack, of the type of ``items``; None for inputs as they are.
        captions: What each is called, such as its file; empty for nothing.
    """

    name: str
    items: list[str] | Tensor
    labels: Sequence[int]
    before: list[str] | Tensor | None = None
    captions: Sequence[str] = ()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> Inputs:
        """Some of them."""
        return Inputs(
            self.name,
            _rows(self.items, rows),
            [self.labels[row] for row in rows],
            None if self.before is None else _rows(self.before, rows),
            [self.captions[row] for row in rows] if self.captions else (),
        )

    def batches(self, size: int) -> Iterator[Inputs]:
        """All of them, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.take(range(len(self))[start : start + size])


def _rows(items: list[str] | Tensor, rows: Sequence[int]) -> list[str] | Tensor:
    return items[list(rows)] if isinstance(items, Tensor) else [items[row] for row in rows]


class Explainer(ABC):
    """What is particular to texts or to images.

    Attributes:
        classifier: The classifier.
        inputs: What inputs are called, such as ``"texts"``.
        entries: What a map has numbers for, such as ``"tokens"``.
        substitute: What takes the place of an entry that is taken away.
        left_out: What the section says of inputs that are left out; empty for none.
        likeness_note: What the likeness of two maps leaves out.
    """

    classifier: TextClassifier | ImageClassifier
    inputs: str
    entries: str
    substitute: str
    left_out: str = ""
    likeness_note: str

    @abstractmethod
    def check(self, inputs: Inputs, method: str) -> None:
        """Raise ``ValueError`` if a method says nothing of such inputs though `explain` takes them."""

    @abstractmethod
    def likeness(self, before: Attribution, after: Attribution) -> Numbers:
        """Rank correlation of the sizes of two maps' numbers, ``(n,)``; NaN where there is none."""

    @abstractmethod
    def smoothness(self, maps: Attribution) -> Numbers | None:
        """Total variation of each map over its mass, ``(n,)``, NaN of zeros; None without neighbours."""

    @abstractmethod
    def shown(self, inputs: Inputs, config: ExplanationConfig) -> Part:
        """Inputs with their maps, before and after an attack."""


def check_methods(explainer: Explainer, inputs: Inputs, config: ExplanationConfig) -> None:
    """Try all methods, best on a single input and before anything that takes long.

    Args:
        explainer: Of texts or images.
        inputs: Some inputs.
        config: The methods.

    Raises:
        ValueError: A method does not suit the classifier or the inputs; the message names it.
    """
    for method in config.methods:
        try:
            explain(explainer.classifier, inputs.items, method, batch_size=config.batch_size)
            explainer.check(inputs, method)
        except ValueError as error:
            raise ValueError(f"explanations by {method}: {error}") from error


def explanation_section(
    explainer: Explainer, sets: Sequence[Inputs], config: ExplanationConfig | None = None
) -> Section:
    """Maps of inputs before and after attacks, and numbers that say how far maps can be trusted.

    Cost of each method, for each input: its own, twice for attacked inputs and three times more for the test
    with weights drawn anew; and 33 forward passes. Memory is bounded by the batch size.

    Args:
        explainer: Of texts or images.
        sets: Inputs, the first as they are; those of an attack with what they were before.
        config: Settings.

    Raises:
        ValueError: There are no inputs as they are; see `robustkit.interpret.explain`.
    """
    config = config or ExplanationConfig()
    if not sets or not len(sets[0]):
        raise ValueError(f"there are no {explainer.inputs} to explain")
    drawn = [_sample(own, config.sample, config.seed) for own in sets if len(own)]
    attacked = [own for own in drawn if own.before is not None]
    with Progress(sum(map(len, drawn)) + len(drawn[0]), "explanations") as bar:
        found = {own.name: _measured(explainer, own, config, bar) for own in drawn}
        anew = _drawn_anew(explainer, drawn[0], config, bar)
    parts: list[Part] = [_introduction(explainer, config), _deletion(explainer, found, config)]
    if attacked:
        parts.append(_likeness(explainer, attacked, found, config))
    if any(own.smoothness for measured in found.values() for own in measured.values()):
        parts.append(_smoothness(explainer, found, config))
    parts.append(_dependence(explainer, anew, config))
    parts += [
        _figure(f"Deletion: {name}, {_spelled(method)}", own.curves, explainer)
        for name, measured in found.items()
        for method, own in measured.items()
    ]
    if config.examples:
        parts += [
            explainer.shown(_sample(own, config.examples, config.seed), config) for own in attacked or drawn
        ]
    return Section("explanations", "Explanations", tuple(parts))


def _sample(inputs: Inputs, most: int, seed: int) -> Inputs:
    rng = np.random.default_rng(derive_seed("explained", seed, inputs.name, most))
    return inputs.take(sorted(rng.permutation(len(inputs))[:most].tolist()))


# Numbers ----------------------------------------------------------------------------------------------------


@dataclass
class _Measured:
    """What is found of one method's maps of a set, a row for each input.

    Attributes:
        curves: The predicted class's probability ``(n, len(FRACTIONS))``, by order.
        likeness: To the map before the attack.
        smoothness: See `Explainer.smoothness`.
    """

    curves: dict[str, list[list[float]]] = field(default_factory=lambda: {order: [] for order in _ORDERS})
    likeness: list[float] = field(default_factory=list)
    smoothness: list[float] = field(default_factory=list)


def _measured(
    explainer: Explainer, inputs: Inputs, config: ExplanationConfig, bar: Progress
) -> dict[str, _Measured]:
    """By method."""
    found = {method: _Measured() for method in config.methods}
    done = 0
    for part in inputs.batches(config.batch_size):
        chance: list[list[float]] | None = None
        for method, own in found.items():
            maps = _maps(explainer, part.items, method, config)
            if chance is None:
                noise = _noise(
                    maps, [derive_seed("order", config.seed, done + row) for row in range(len(part))]
                )
                chance = _curves(explainer, part, noise, config, "most")
            own.curves[_ORDERS[0]] += _curves(explainer, part, maps, config, "most")
            own.curves[_ORDERS[1]] += chance
            own.curves[_ORDERS[2]] += _curves(explainer, part, maps, config, "least")
            if part.before is not None:
                before = _maps(explainer, part.before, method, config)
                own.likeness += explainer.likeness(before, maps).tolist()
            if (smoothness := explainer.smoothness(maps)) is not None:
                own.smoothness += smoothness.tolist()
        done += len(part)
        bar.advance(len(part))
    return found


def _maps(
    explainer: Explainer, items: list[str] | Tensor, method: str, config: ExplanationConfig
) -> Attribution:
    return explain(explainer.classifier, items, method, batch_size=config.batch_size)


def _noise(maps: Attribution, seeds: Sequence[int]) -> Attribution:
    """The same explanation with random numbers in its maps, whatever the batch."""
    shape = maps.map().shape[1:]
    drawn = torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(one)) for one in seeds])
    return replace(maps, values=drawn.to(maps.values).unsqueeze(1 if maps.text is None else 2))


def _curves(
    explainer: Explainer,
    inputs: Inputs,
    maps: Attribution,
    config: ExplanationConfig,
    first: Literal["most", "least"],
) -> list[list[float]]:
    found: list[list[float]] = sensitivity_curve(
        explainer.classifier,
        inputs.items,
        maps,
        first=first,
        fractions=FRACTIONS,
        batch_size=config.batch_size,
    )["each"]
    return found


@dataclass
class _Anew:
    """Likeness of maps to those of the same network with layers drawn anew.

    Attributes:
        layers: How many layers can be drawn anew.
        steps: How many were, from the top: half and all.
        kept: Tensors of weights that stay.
        each: By method, ``(len(steps), n)``.
    """

    layers: int
    steps: list[int]
    kept: int
    each: dict[str, Numbers]


def _drawn_anew(
    explainer: Explainer, inputs: Inputs, config: ExplanationConfig, bar: Progress
) -> _Anew | None:
    """None if no layer can be drawn anew."""
    layers = len(layers_in_order(explainer.classifier, inputs.take([0]).items))
    if not layers:
        return None
    parts: list[dict[str, Any]] = []
    for part in inputs.batches(config.batch_size):
        tested = randomisation_test(
            explainer.classifier,
            part.items,
            {method: method for method in config.methods},
            every=-(-layers // 2),
            skip_zeros=True,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        parts.append(tested)
        bar.advance(len(part))
    each = {
        method: torch.cat([one["each"][method] for one in parts], dim=1).numpy() for method in config.methods
    }
    return _Anew(layers, parts[0]["steps"], len(parts[0]["kept"]), each)


def _estimates(counted: Numbers, columns: Iterable[Numbers], config: ExplanationConfig) -> tuple[Cell, ...]:
    """The number of values that there are, and the mean of each column."""
    return int((~np.isnan(counted)).sum()), *(bootstrap_mean(column, config.n_boot) for column in columns)


# Parts ------------------------------------------------------------------------------------------------------


def _spelled(method: str) -> str:
    return method.replace("_", " ")


def _introduction(explainer: Explainer, config: ExplanationConfig) -> str:
    return (
        f"Maps of the predicted class by {', '.join(map(_spelled, config.methods))}: how much each of an "
        f"input's {explainer.entries} has to do with its score. None is a proof of what the classifier does; "
        f"the tables say how far these can be trusted. At most {config.sample} {explainer.inputs}, drawn at "
        f"random, are behind each number. {explainer.left_out}"
    ).strip()


def _deletion(
    explainer: Explainer, found: Mapping[str, Mapping[str, _Measured]], config: ExplanationConfig
) -> Table:
    rows = []
    for name, measured in found.items():
        for method, own in measured.items():
            areas = [np.trapezoid(np.array(own.curves[order]), FRACTIONS, axis=1) for order in _ORDERS]
            rows.append((name, _spelled(method), *_estimates(areas[0], areas, config)))
    return Table(
        "Deletion",
        (explainer.inputs, "method", "n", *_ORDERS),
        tuple(rows),
        f"The {explainer.entries} of an input are replaced by {explainer.substitute}, in the order of their "
        f"numbers. Area under the probability of the predicted class, mean over {explainer.inputs}: it "
        "should be small if the most important go first, large if the least important do. A map whose areas "
        f"are no better than those of a random order says nothing. {interval_note(config.n_boot)}".strip(),
    )


def _likeness(
    explainer: Explainer,
    attacked: Sequence[Inputs],
    found: Mapping[str, Mapping[str, _Measured]],
    config: ExplanationConfig,
) -> Table:
    rows = []
    for inputs in attacked:
        for method, own in found[inputs.name].items():
            values = np.array(own.likeness)
            rows.append((inputs.name, _spelled(method), *_estimates(values, [values], config)))
    return Table(
        "Maps before and after attacks",
        ("attack", "method", "n", "rank correlation"),
        tuple(rows),
        "Of the sizes of a map's numbers before and after the attack: 1 if the map points at the same places "
        "in the same order, 0 if it has nothing to do with the one before. Each map is of the class that is "
        f"predicted there. {explainer.likeness_note} {interval_note(config.n_boot)}".strip(),
    )


def _smoothness(
    explainer: Explainer, found: Mapping[str, Mapping[str, _Measured]], config: ExplanationConfig
) -> Table:
    rows = []
    for name, measured in found.items():
        for method, own in measured.items():
            values = np.array(own.smoothness)
            rows.append((name, _spelled(method), *_estimates(values, [values], config)))
    return Table(
        "Smoothness of maps",
        (explainer.inputs, "method", "n", "total variation"),
        tuple(rows),
        "Sum of the differences between neighbours, divided by the sum of sizes: small for smooth maps, "
        "whatever their scale. Maps that are 0 everywhere do not count. A smooth map is easier to look at, "
        "and not more right. What is known of the "
        "gradients of robust networks is in the documentation, docs/bridging.md. "
        f"{interval_note(config.n_boot)}".strip(),
    )


def _dependence(explainer: Explainer, anew: _Anew | None, config: ExplanationConfig) -> Part:
    if anew is None:
        return (
            "No layer of this network can be drawn anew, so nobody knows whether maps depend on its weights."
        )
    kept = f" {anew.kept} tensors of weights outside of these layers stay." if anew.kept else ""
    return Table(
        "Do maps depend on the weights?",
        ("method", "n", *(f"top {step} of {anew.layers} layers anew" for step in anew.steps)),
        tuple((_spelled(method), *_estimates(own[-1], own, config)) for method, own in anew.each.items()),
        "Rank correlation of a map, in sizes, with that of the same network after layers were drawn anew, "
        f"mean over {explainer.inputs} as they are; {explainer.entries} that are 0 in both do not count. "
        "Near 1 the map would be much the same if those layers had learned nothing, and cannot say what they "
        "did learn. Maps that are multiplied by the input keep something of it in any case. Adebayo et al. "
        f"2018, arXiv 1810.03292.{kept} {interval_note(config.n_boot)}".strip(),
    )


def _figure(title: str, curves: Mapping[str, list[list[float]]], explainer: Explainer) -> Figure:
    return curves_figure(
        title,
        {order: (FRACTIONS, np.mean(curves[order], axis=0)) for order in _ORDERS},
        x_label=f"share of {explainer.entries} replaced",
        y_label="probability of the predicted class",
        unit_square=True,
    )
