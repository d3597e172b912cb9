"""RectGrad against nine other maps on CIFAR ResNets, with the confounds of the published comparison switched.

The published figures compare maps that differ in more than their rule. Each difference is a switch here:

- product: RectGrad is multiplied by the input, plain gradients are not; or all maps are.
- sparsity: RectGrad keeps what is positive, the others what is above their 95th percentile; or every map
  keeps its first 5 % of pixels.
- scale: sums of absolute values; or shares of each map's own sum.
- padding: the ring above each convolution is zeroed for RectGrad; or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robustkit.classifiers import ImageClassifier
from robustkit.interpret import (
    Attribution,
    IntegratedGradients,
    RectGrad,
    SmoothGrad,
    explain,
    heatmap_grid,
    mass_outside,
    random_logit_test,
    randomisation_test,
    sensitivity_curve,
    total_variation,
)
from robustkit.interpret.pictures import clipped
from robustkit.interpret.ranking import top_share
from scripts.given_networks import cifar_images, cifar_resnet
from trainkit.hub import write_json

__all__ = ["Switches", "all_maps", "level", "measured", "products", "run"]

RECTGRAD, UNPADDED = "RectGrad", "RectGrad, no padding trick"
FRAME = 4
"""Pixels at each side that count as background: nobody drew masks, and objects of CIFAR are in the middle."""


@dataclass(frozen=True)
class Switches:
    """How maps are made comparable; the defaults are those of the published figures.

    Attributes:
        product: Maps that are multiplied by the input: as published, or all.
        sparsity: As published, or the same share of pixels of every map.
        scale: Sums, or shares.
        padding: Whether RectGrad has the padding trick.
    """

    product: Literal["published", "all"] = "published"
    sparsity: Literal["published", "same"] = "published"
    scale: Literal["sums", "shares"] = "sums"
    padding: Literal["published", "none"] = "published"


LEVEL = Switches("all", "same", "shares", "none")
SETTINGS: Mapping[str, Switches] = {
    "as published": Switches(),
    "product": Switches(product="all"),
    "sparsity": Switches(sparsity="same"),
    "scale": Switches(scale="shares"),
    "padding": Switches(padding="none"),
    "all four": LEVEL,
}


def all_maps(classifier: ImageClassifier, pixels: Tensor, n: int = 16) -> dict[str, Attribution]:
    """The maps of ten methods, with RectGrad in two versions, with and without the padding trick."""
    noise = explain(classifier, pixels, SmoothGrad(n=n))
    gradient = explain(classifier, pixels, "gradient")
    random = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return {
        RECTGRAD: explain(classifier, pixels, RectGrad(border="zero", final="none")),
        UNPADDED: explain(classifier, pixels, RectGrad(final="none")),
        "Gradient": gradient,
        "Gradient × input": explain(classifier, pixels, "gradient_times_input"),
        "SmoothGrad": noise,
        "SmoothGrad²": noise.of("square"),
        "VarGrad": noise.of("var"),
        "Integrated gradients": explain(classifier, pixels, IntegratedGradients(steps=n)),
        "Guided backprop": explain(classifier, pixels, "guided_backprop"),
        "Deconvolution": explain(classifier, pixels, "deconvolution"),
        "Random": replace(gradient, values=random, method="Random", params={"score": "logit"}),
    }


PRODUCTS = frozenset({"Gradient × input", "Integrated gradients"})


def products(maps: Mapping[str, Attribution], reference: Tensor, switches: Switches) -> dict[str, Tensor]:
    """Maps ``(B, C, H, W)`` of ten methods, multiplied by the input and with RectGrad's version as asked for.

    Args:
        maps: What `all_maps` gives.
        reference: What the network sees as zero, to be broadcast to an image.
        switches: ``product`` and ``padding`` count.
    """
    found = {}
    for name, one in maps.items():
        if name == UNPADDED:
            continue
        own = maps[UNPADDED] if name == RECTGRAD and switches.padding == "none" else one
        multiply = name == RECTGRAD or (switches.product == "all" and name not in PRODUCTS)
        found[name] = own.values * (own.inputs - reference) if multiply else own.values
    return found


def level(maps: Mapping[str, Attribution], reference: Tensor, switches: Switches) -> dict[str, Tensor]:
    """One number for each pixel ``(B, H, W)`` of ten methods, made comparable as the switches say."""
    found = {}
    for name, values in products(maps, reference, switches).items():
        summed = values.sum(dim=1)
        if switches.sparsity == "same":
            found[name] = torch.where(top_share(summed, 0.05), summed, 0)
        elif name == RECTGRAD:
            found[name] = values.clamp(min=0).sum(dim=1)
        else:
            found[name] = clipped(summed, 95, 100)
    return found


def measured(maps: Mapping[str, Tensor], switches: Switches) -> dict[str, dict[str, float]]:
    """Median total variation, and median mass in the frame, of each method."""
    inside = torch.zeros(next(iter(maps.values())).shape[1:], dtype=torch.bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    relative = switches.scale == "shares"
    return {
        name: {
            "total_variation": total_variation(own, relative=relative).median().item(),
            "mass_in_frame": mass_outside(own, inside, relative=relative).median().item(),
        }
        for name, own in maps.items()
    }


def run(
    output: Path, *, networks: Sequence[Literal[20, 56]], images: int, sanity_images: int, threads: int
) -> None:
    """Measures, draws, tests and writes ``results.json``, ``tables.md`` and pictures.

    Args:
        output: Folder.
        networks: Depths of CIFAR ResNets.
        images: How many test images.
        sanity_images: How many of them in the sanity tests.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    pixels, _ = cifar_images(images)
    file = output / "results.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for depth in networks:
        name = f"ResNet-{depth}, {images} images, {sanity_images} in sanity tests"
        if name not in kept:
            kept[name] = _one(cifar_resnet(depth), pixels, sanity_images, output / f"resnet{depth}")
            write_json(file, kept)
    text = "\n".join(_tables(name, own) for name, own in kept.items())
    (output / "tables.md").write_text(text, encoding="utf-8")
    print(text)


def _one(classifier: ImageClassifier, pixels: Tensor, sanity_images: int, stem: Path) -> dict[str, Any]:
    maps = all_maps(classifier, pixels)
    reference = classifier.mean
    figures = {
        setting: measured(level(maps, reference, switches), switches)
        for setting, switches in SETTINGS.items()
    }
    deletion = {setting: _deletion(classifier, pixels, maps, reference, SETTINGS[setting])
                for setting in ("as published", "product", "padding", "all four")}  # fmt: skip
    _draw(maps, reference, stem)
    some = pixels[:sanity_images]
    tested: dict[str, Any] = {
        "Gradient": "gradient",
        "Gradient × input": "gradient_times_input",
        "SmoothGrad": SmoothGrad(n=4),
        "Guided backprop": "guided_backprop",
        "Deconvolution": "deconvolution",
        "RectGrad": RectGrad(final="none"),
        "RectGrad × input": RectGrad(final="times_input"),
    }
    cascade = randomisation_test(classifier, some, tested, every=4)
    return {
        "figures": figures,
        "deletion": deletion,
        "layers_drawn_anew": cascade["steps"],
        "cascade": cascade["methods"],
        "other_class": random_logit_test(classifier, some, tested),
    }


def _deletion(
    classifier: ImageClassifier, pixels: Tensor, maps: Mapping[str, Attribution], reference: Tensor,
    switches: Switches,
) -> dict[str, float]:  # fmt: skip
    """Area under the deletion curve: the order of pixels counts, not their scale or how many are kept."""
    areas = {}
    for name, values in products(maps, reference, switches).items():
        rectified = values.clamp(min=0) if name == RECTGRAD else values
        areas[name] = sensitivity_curve(classifier, pixels, replace(maps[name], values=rectified))["area"]
    return areas


def _draw(maps: Mapping[str, Attribution], reference: Tensor, stem: Path) -> None:
    """Two pictures: as they are, and with the final threshold that the paper gives RectGrad's rivals."""
    shown = []
    for name, one in maps.items():
        if name == UNPADDED:
            continue
        drawn = one
        if name == RECTGRAD:
            drawn = replace(
                one, values=one.values * (one.inputs - reference), params={"final": "times_input"}
            )
        shown.append(drawn)
    heatmap_grid(f"{stem}.png", shown, rows=6)
    cut = [
        one if one.method == "RectGrad" else replace(one, values=clipped(one.map(), 95, 99.5)[:, None])
        for one in shown
    ]
    heatmap_grid(f"{stem}-threshold.png", cut, rows=6)


def _tables(name: str, found: Mapping[str, Any]) -> str:
    lines = [f"## {name}", ""]
    columns = list(SETTINGS)
    methods = list(found["figures"]["as published"])
    for key, title in (
        ("total_variation", "Total variation, median"),
        ("mass_in_frame", f"Mass in the outer {FRAME} pixels, median"),
    ):
        lines += [
            f"### {title}",
            "",
            "| switched | " + " | ".join(columns) + " |",
            "| --- |" + " ---: |" * len(columns),
        ]
        for method in methods:
            cells = [f"{found['figures'][column][method][key]:.3g}" for column in columns]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    columns = list(found["deletion"])
    lines += ["### Deletion, area under the mean probability (lower is better)", ""]
    lines += ["| switched | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for method in methods:
        cells = [f"{found['deletion'][column][method]:.3f}" for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    steps = found["layers_drawn_anew"]
    chosen = sorted({0, len(steps) // 4, len(steps) // 2, len(steps) - 1})
    heads = [f"{steps[i]} layers" for i in chosen]
    lines += ["", "### Rank correlation with the map of the trained network, or of the predicted class", ""]
    lines += [
        "| drawn anew, from the top | " + " | ".join(heads) + " | other class |",
        "| --- |" + " ---: |" * (len(heads) + 1),
    ]
    for method, curve in found["cascade"].items():
        cells = [f"{curve[i]:.2f}" for i in chosen] + [f"{found['other_class'][method]:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
