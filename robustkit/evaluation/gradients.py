"""Accuracy under gradient attacks with what it cost, and how near the attacks came to a maximum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.attacks.gradient import PGD, AttackSuite, EmbeddedTexts, margin, stationarity, strong_attack
from robustkit.attacks.gradient.search import MixedPrecision
from robustkit.attacks.gradient.sets import EmbeddingBall, PerturbationSet
from robustkit.attacks.gradient.suite import Stage, SuiteResult
from robustkit.attacks.gradient.victims import Model
from robustkit.classifiers.images import ImageClassifier
from robustkit.classifiers.text import TextClassifier
from robustkit.evaluation.explained_images import ImageExplainer, image_explanation_section
from robustkit.evaluation.explanations import ExplanationConfig, Inputs, check_methods
from robustkit.evaluation.figures import curves_figure
from robustkit.evaluation.images import LabelledImages
from robustkit.evaluation.report import RobustnessReport
from trainkit.cards import collect_versions
from trainkit.report import Cell, Estimate, Figure, Part, Section, Table

__all__ = [
    "GradientConfig",
    "evaluate_images",
    "gradient_attacks",
    "gradient_section",
    "text_gradient_section",
]


@dataclass(frozen=True)
class GradientConfig:
    """Settings of gradient attacks in a report.

    Attributes:
        steps: Steps of PGD and of its margin form (CW).
        restarts: Their starts.
        suite_steps: Steps of each APGD run of the suite.
        queries: Queries of Square, the suite's last attack on images.
        batch_size: Samples in one batch.
        seed: Of all that is drawn.
        mixed_precision: Of the search; see `Attack.perturb`.
    """

    steps: int = 50
    restarts: int = 2
    suite_steps: int = 100
    queries: int = 5000
    batch_size: int = 64
    seed: int = 0
    mixed_precision: MixedPrecision = "no"


def gradient_attacks(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    threat: PerturbationSet,
    classes: int,
    config: GradientConfig | None = None,
) -> dict[str, SuiteResult]:
    """Attacks a model with PGD, its margin form and a suite of attacks.

    Args:
        model: As for `Attack.perturb`.
        inputs: ``(n, ...)`` inside the box of the threat.
        labels: int64 ``(n,)``.
        threat: The perturbations that are allowed.
        classes: Number of the model's classes.
        config: Settings.

    Returns:
        What they found, by name: PGD first, the suite last.

    Raises:
        ValueError: Inputs outside the box or empty, labels out of range.
    """
    config = config or GradientConfig()
    pgd = PGD(threat, config.steps, restarts=config.restarts)
    single = {f"PGD-{config.steps}": pgd, f"CW-{config.steps}": replace(pgd, loss=margin)}
    suites = {
        **{name: AttackSuite(((name, attack),), config.batch_size) for name, attack in single.items()},
        "suite": strong_attack(
            threat, classes, steps=config.suite_steps, queries=config.queries, batch_size=config.batch_size
        ),
    }
    return {
        name: suite.run(
            model, inputs, labels, seed=config.seed, progress=True, mixed_precision=config.mixed_precision
        )
        for name, suite in suites.items()
    }


def gradient_section(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    threat: PerturbationSet,
    classes: int,
    *,
    shown: str,
    config: GradientConfig | None = None,
    found: Mapping[str, SuiteResult] | None = None,
) -> Section:
    """Accuracy under attacks, what they took, and PGD step by step.

    Args:
        model: See `gradient_attacks`, as for the rest.
        inputs: See there.
        labels: See there.
        threat: See there.
        classes: See there.
        shown: What the report calls the threat.
        config: Settings.
        found: What `gradient_attacks` found; None to attack now.

    Raises:
        ValueError: See `gradient_attacks`.
    """
    config = config or GradientConfig()
    if found is None:
        found = gradient_attacks(model, inputs, labels, threat, classes, config)
    last = found["suite"]
    n, half = len(labels), config.mixed_precision == "bf16"
    rows: list[tuple[Cell, ...]] = [("none", n, _share(last.clean_accuracy, n), 1.0, 0.0, None)]
    rows += [_row(name, result, n) for name, result in found.items()]
    parts: list[Part] = [
        f"Perturbations within {shown}. An accuracy under attack is an upper bound of the true one: a "
        "stronger attack may lower it. The suite goes through its attacks in turn, each on what is still "
        "right; it is in the manner of AutoAttack, without FAB."
        + (" The search ran in bf16; what fooled the model was confirmed in its own precision." * half),
        Table(
            "Accuracy under gradient attacks",
            ("attack", "samples", "accuracy", "forward passes", "backward passes", "seconds"),
            tuple(rows),
            "Passes of one sample, as means over all samples; samples that are fooled leave the batch. "
            "In brackets 95 % intervals (Wilson).",
        ),
        Table(
            "The suite attack by attack",
            ("attack", "attacked", "fooled", "accuracy after it", "forward passes", "backward passes",
             "seconds"),
            tuple(
                (stage.name, stage.attacked, stage.fooled, stage.robust_accuracy, *_passes(stage, n),
                 stage.seconds)
                for stage in last.stages
            ),
        ),
    ]  # fmt: skip
    if last.doubts:
        parts.append("Reasons to doubt these accuracies: " + "; ".join(last.doubts) + ".")
    parts += _curves(model, inputs, labels, threat, config)
    return Section("gradient-attacks", "Gradient attacks", tuple(parts))


def text_gradient_section(
    classifier: TextClassifier,
    data: list[tuple[str, int]],
    threat: EmbeddingBall,
    *,
    shown: str,
    config: GradientConfig | None = None,
) -> Section:
    """Like `gradient_section`, on the embeddings of texts; epsilon is a share of their norms.

    Args:
        classifier: The classifier.
        data: Texts with labels, all padded to the longest.
        threat: A ball without mask.
        shown: What the report calls the threat.
        config: Settings.
    """
    texts = EmbeddedTexts(classifier, [text for text, _ in data])
    ball = threat.for_mask(texts.mask).relative_to(texts.embeddings)
    labels = torch.tensor([label for _, label in data], device=classifier.device)
    return gradient_section(
        texts, texts.embeddings, labels, ball, classifier.num_labels, shown=shown, config=config
    )


def evaluate_images(
    classifier: ImageClassifier,
    images: LabelledImages,
    threat: PerturbationSet,
    *,
    shown: str,
    dataset: str = "",
    rows: list[int] | None = None,
    config: GradientConfig | None = None,
    explained: ExplanationConfig | None = None,
) -> RobustnessReport:
    """A report on an image classifier: accuracy without and under gradient attacks, and explanations.

    Args:
        classifier: The classifier.
        images: Images with labels.
        threat: The perturbations that are allowed, in pixels from 0 to 1.
        shown: What the report calls the threat.
        dataset: Name of the data, for the report.
        rows: Which images; None for all. All of them are in memory at once.
        config: Settings.
        explained: Settings of explanations of images before and under PGD; None for none.

    Raises:
        ValueError: See `gradient_attacks`; a method of explanation does not suit the classifier or the size
            of its images, which is found before any attack.
    """
    config = config or GradientConfig()
    rows = list(range(len(images))) if rows is None else rows
    pixels, labels = images.take(rows)
    pixels, labels = pixels.to(classifier.device), labels.to(classifier.device)
    classes = classifier.probabilities(pixels[:1]).shape[1]
    if explained is not None:
        check_methods(ImageExplainer(classifier), Inputs("", pixels[:1], [0]), explained)
    facts: dict[str, Cell] = {
        "model": classifier.name,
        "fingerprint": classifier.fingerprint[:16],
        "data": dataset or "not named",
        "images": len(labels),
        "threat": shown,
        "seed": config.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in collect_versions().items()),
    }
    found = gradient_attacks(classifier, pixels, labels, threat, classes, config)
    sections = [
        gradient_section(classifier, pixels, labels, threat, classes, shown=shown, config=config, found=found)
    ]
    if explained is not None:
        name, weakest = next(iter(found.items()))
        sections.append(
            image_explanation_section(
                classifier,
                pixels,
                labels,
                weakest.perturbed,
                attack=f"{name} within {shown}",
                captions=[images.names[row] for row in rows],
                config=explained,
            )
        )
    return RobustnessReport(f"Robustness of {classifier.name}", tuple(sections), facts)


def _row(name: str, result: SuiteResult, n: int) -> tuple[Cell, ...]:
    passes = np.sum([_passes(stage, n) for stage in result.stages], axis=0)
    seconds = sum(stage.seconds for stage in result.stages)
    return (name, n, _share(result.robust_accuracy, n), float(passes[0]), float(passes[1]), seconds)


def _passes(stage: Stage, n: int) -> tuple[float, float]:
    """Forward and backward passes for each of all samples."""
    return stage.forwards / n, stage.backwards / n


def _share(share: float, n: int) -> Estimate:
    """A share of n with Wilson's 95 % interval."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, low=middle - half, high=middle + half)


def _curves(
    model: Model, inputs: Tensor, labels: Tensor, threat: PerturbationSet, config: GradientConfig
) -> Iterator[Figure]:
    """Means of the gap and of the residual while PGD runs, as shares of their first values."""
    parts = [
        stationarity(
            model.take(rows) if isinstance(model, EmbeddedTexts) else model,
            inputs[rows],
            labels[rows],
            threat.take(rows),
            config.steps,
            seed=config.seed,
        )
        for rows in torch.arange(len(labels), device=labels.device).split(config.batch_size)
    ]
    passes = parts[0].passes.numpy()

    def share(values: list[Tensor]) -> NDArray[np.float64]:
        means = torch.cat(values).double().mean(dim=0).cpu().numpy()
        return np.asarray(means / max(means[0], np.finfo(np.float64).tiny))

    yield curves_figure(
        "Stationarity of PGD",
        {
            "FOSC": (passes, share([part.fosc for part in parts])),
            "residual": (passes, share([part.residual for part in parts])),
        },
        x_label="forward and backward passes of a sample",
        y_label="share of the value at the start",
        note="Means over all samples from one random start, none of which stops early. FOSC is the gap of "
        "first-order stationarity, the residual the length of a projected gradient step; both are 0 where a "
        "perturbation cannot be improved to first order, and steps of a fixed length do not get there.",
    )
    yield curves_figure(
        "Loss under PGD",
        {"loss": (passes, torch.cat([part.loss for part in parts]).double().mean(dim=0).cpu().numpy())},
        x_label="forward and backward passes of a sample",
        y_label="cross-entropy",
        note="Mean over all samples. A curve that still rises at its end calls for more steps.",
    )
