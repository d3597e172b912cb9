"""Explanations of images in a report: maps beside images before and after an attack."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.classifiers.images import ImageClassifier
from robustkit.evaluation.explanations import (
    Explainer,
    ExplanationConfig,
    Inputs,
    Numbers,
    explanation_section,
)
from robustkit.interpret.attribution import Attribution
from robustkit.interpret.explaining import METHODS, explain
from robustkit.interpret.measures import total_variation
from robustkit.interpret.pictures import clipped, coloured, shown_image
from robustkit.interpret.ranking import rank_correlation
from robustkit.interpret.regions import XRAI
from trainkit.report import Picture, Pictures, Section

__all__ = ["ImageExplainer", "image_explanation_section"]

_SIDE = 140
"""Longest side of a picture in pixels: smaller images are enlarged by a whole number, larger ones shrunk."""


class ImageExplainer(Explainer):
    """Explanations of images; see `Explainer`.

    Args:
        classifier: The classifier.
    """

    classifier: ImageClassifier
    inputs = "images"
    entries = "pixels"
    likeness_note = "Pixels that are 0 in both maps do not count."

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier
        # What the network's first layer sees as zero.
        self.substitute = "the mean colour" if classifier.mean.any() else "black"

    def check(self, inputs: Inputs, method: str) -> None:
        """See `Explainer`: XRAI of an image that has no two regions is constant, or nearly so."""
        settings = METHODS[method]
        height, width = _pixels(inputs.items).shape[2:]
        if isinstance(settings, XRAI) and height * width < 2 * settings.min_pixels:
            raise ValueError(
                f"images of {height} x {width} pixels are too small for two regions of {settings.min_pixels} "
                "pixels"
            )

    def likeness(self, before: Attribution, after: Attribution) -> Numbers:
        """See `Explainer`."""
        one, other = (maps.map().abs().flatten(1) for maps in (before, after))
        return rank_correlation(one, other, (one != 0) | (other != 0)).numpy()

    def smoothness(self, maps: Attribution) -> Numbers:
        """See `Explainer`."""
        own = maps.map().double()
        found = total_variation(own, relative=True)
        found[(own == 0).all(dim=(1, 2))] = torch.nan
        numbers: Numbers = found.cpu().numpy()
        return numbers

    def shown(self, inputs: Inputs, config: ExplanationConfig) -> Pictures:
        """See `Explainer`."""
        strips = [strip for part in inputs.batches(config.batch_size) for strip in self._strips(part, config)]
        note = (
            "Red pixels speak for the class that is named, blue ones against it; each map has a scale of its "
            "own, cut at its percentiles 0.5 and 99.5. Numbers without sign are all red. Drawn at random."
        )
        if inputs.before is not None:
            note += (
                " The perturbation, what the attack adds to an image, is multiplied by the number below it; "
                "grey stands for nothing."
            )
        title = "Maps" if inputs.before is None else f"Maps: {inputs.name}"
        return Pictures(title, tuple(zip(_captions(inputs, self.classifier), strips, strict=True)), note)

    def _strips(self, inputs: Inputs, config: ExplanationConfig) -> list[tuple[Picture, ...]]:
        """For each image its pictures, from left to right."""
        after = _pixels(inputs.items)
        if inputs.before is None:
            return self._stage("clean", after, config)
        before = _pixels(inputs.before)
        columns = zip(
            self._stage("clean", before, config),
            self._stage("attacked", after, config),
            (_perturbation(change) for change in (after - before).float().cpu()),
            strict=True,
        )
        return [(*clean, *attacked, perturbation) for clean, attacked, perturbation in columns]

    def _stage(self, stage: str, pixels: Tensor, config: ExplanationConfig) -> list[tuple[Picture, ...]]:
        """Images, each with a map by each method."""
        maps = {
            method.replace("_", " "): explain(self.classifier, pixels, method, batch_size=config.batch_size)
            for method in config.methods
        }
        drawn = {method: clipped(own.map().float().cpu()) for method, own in maps.items()}
        sure = self.classifier.probabilities(pixels).amax(dim=1).tolist()
        first = next(iter(maps.values()))
        found = []
        for row, image in enumerate(pixels.float().cpu()):
            said = f"{first.label(row)}, {sure[row]:.2f}"
            strip = [_picture(image, f"{stage}: {said}", f"The {stage} image, predicted {said}")]
            for method, own in drawn.items():
                label = maps[method].label(row)
                colours = torch.from_numpy(coloured(_fitted(own[row][None])[0].numpy())[..., :3])
                alt = f"Map by {method} of {label} at the {stage} image"
                strip.append(Picture(f"{method}: {label}", _png(colours), alt))
            found.append(tuple(strip))
        return found


def _captions(inputs: Inputs, classifier: ImageClassifier) -> list[str]:
    names = inputs.captions or ["image"] * len(inputs)
    labels = [
        f"class {label}" if classifier.labels is None else classifier.labels[label] for label in inputs.labels
    ]
    return [f"{name}, labelled {label}" for name, label in zip(names, labels, strict=True)]


def _perturbation(change: Tensor) -> Picture:
    """What an attack adds, as far from grey as it can be shown."""
    most = change.abs().max().item()
    times = 0.5 / most if most else 1.0
    # An average over pixels would hide what changes its sign from pixel to pixel.
    shown = (0.5 + times * change).clamp(0, 1)
    name = f"perturbation × {times:.3g}" if most else "no perturbation"
    alt = f"What the attack adds, at most {most:.3g} for a pixel, multiplied by {times:.3g} round grey"
    return _picture(shown, name, alt, shrink="nearest-exact")


def _picture(pixels: Tensor, name: str, alt: str, shrink: str = "area") -> Picture:
    """A picture of pixels ``(C, H, W)`` in [0, 1]."""
    return Picture(name, _png(torch.from_numpy(shown_image(_fitted(pixels, shrink)))), alt)


def _fitted(pixels: Tensor, shrink: str = "area") -> Tensor:
    """Pixels ``(C, H, W)`` in the size of a picture."""
    longest = max(pixels.shape[1:])
    if longest <= _SIDE:
        times = _SIDE // longest
        return pixels.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    size = [max(1, round(side * _SIDE / longest)) for side in pixels.shape[1:]]
    return F.interpolate(pixels[None], size, mode=shrink)[0]


def _png(colours: Tensor) -> bytes:
    """The file of ``(H, W, 3)`` in [0, 1]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((colours * 255).round().to(torch.uint8).numpy()).save(file, format="png")
    return file.getvalue()


def _pixels(items: list[str] | Tensor) -> Tensor:
    assert isinstance(items, Tensor)
    return items


def image_explanation_section(
    classifier: ImageClassifier,
    pixels: Tensor,
    labels: Tensor,
    perturbed: Tensor,
    *,
    attack: str,
    captions: Sequence[str] = (),
    config: ExplanationConfig | None = None,
) -> Section:
    """Maps of images before and after an attack, and how far they can be trusted.

    Attacked images count where the classifier is right without the attack: those that fool it, and those
    that it withstands.

    Args:
        classifier: The classifier.
        pixels: ``(n, channels, height, width)`` in [0, 1].
        labels: The true classes, int64 ``(n,)``.
        perturbed: The same images after the attack.
        attack: What the report calls it.
        captions: What each image is called, such as its file; empty for nothing.
        config: Settings.

    Raises:
        ValueError: See `robustkit.interpret.explain`.
    """
    right, still = (classifier.predict(images).cpu() == labels.cpu() for images in (pixels, perturbed))
    everything = Inputs("images as they are", pixels, labels.tolist(), captions=captions)
    attacked = replace(everything, items=perturbed, before=pixels)
    sets = [
        everything,
        replace(attacked, name=f"{attack}, fooled").take(np.flatnonzero(right & ~still).tolist()),
        replace(attacked, name=f"{attack}, withstood").take(np.flatnonzero(right & still).tolist()),
    ]
    return explanation_section(ImageExplainer(classifier), sets, config)
