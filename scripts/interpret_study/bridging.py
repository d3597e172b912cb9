"""The stages of "bridging": adversarial training, the gradients' nearness to data, ROAR, KAR and accuracy.

After Kim, Seo and Jeon, "Bridging Adversarial Robustness and Gradient Interpretability" (arXiv 1903.11626).
What differs from the paper stands in ``docs/bridging.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from robustkit.attacks.gradient import L2, PGD
from robustkit.classifiers import ImageClassifier
from robustkit.interpret import (
    Attribution,
    AutoencoderDistance,
    IntegratedGradients,
    NeighbourDistance,
    explain,
    heatmap_grid,
    roar,
)
from robustkit.interpret.ranking import top_share
from robustkit.interpret.retraining import Mode, TrainFunction, trained_by_fit
from trainkit import FitConfig
from trainkit.hub import read_json, write_json

from .bridging_report import write_report
from .networks import STUDIES, Images, Recipe, Study, accuracies, accuracy, network, trained
from .tradeoff import GIVEN, records, series

__all__ = ["MAPS", "STAGES", "Group", "maps_of", "moved_distances", "run"]

logger = logging.getLogger(__name__)

STAGES = ("train", "gradients", "manifold", "roar", "shapes", "tradeoff", "report")
MAPS = ("gradient", "gradient × input", "integrated gradients")
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
HALF = 0.5  # of the pixels, whose shape is looked at alone
SHOWN = 6  # images in a picture of gradients
UNTESTED = "given, TRADES 0.3"  # has another architecture than the clean one: left out of ROAR and KAR


def run(
    stage: str,
    *,
    studies: Sequence[Study] = tuple(STUDIES.values()),
    seeds: Sequence[int] = (0, 1, 2),
    repeats: int = 1,
    runs: Path = Path("runs/bridging"),
    threads: int = 1,
    page: bool = False,
) -> None:
    """Runs one stage or all; what is there already is not done again.

    Args:
        stage: One of `STAGES`, or ``"all"``: every stage of one study after the other.
        studies: Data and networks.
        seeds: Of the networks that are trained.
        repeats: Retrainings of each kind for a seed; the networks of others have as many for each seed.
        runs: Folder of everything written.
        threads: CPU threads.
        page: Whether the report goes into ``docs/bridging.md`` as well.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    for study in studies:
        work = Bridging(study, runs / study.name, tuple(seeds), repeats)
        for name in STAGES[:-1]:
            if stage in (name, "all"):
                logger.info("%s: %s", study.title, name)
                getattr(work, name)()
    if stage in ("report", "all"):
        write_report(studies, runs, page=page)


@dataclass(frozen=True)
class Group:
    """Networks that are compared with the first of them, which was trained without attacks.

    Attributes:
        name: Of its folder.
        seed: Of training, of the autoencoder and of retraining.
        repeats: Retrainings of each kind.
        networks: By name, the clean one first.
    """

    name: str
    seed: int
    repeats: int
    networks: Mapping[str, ImageClassifier]


class Bridging:
    """The stages of one study.

    Args:
        study: Data and networks.
        folder: Where everything is written.
        seeds: Of training.
        repeats: See `run`.
    """

    def __init__(self, study: Study, folder: Path, seeds: tuple[int, ...], repeats: int) -> None:
        self.study, self.folder, self.seeds, self.repeats = study, folder, seeds, repeats

    @cached_property
    def images(self) -> tuple[Images, Images]:
        """Images to train and to measure on."""
        return self.study.load()

    @cached_property
    def groups(self) -> list[Group]:
        """One of each seed, and one of networks of others where there are any."""
        found = []
        for seed in self.seeds:
            own = {recipe.name: self._network(recipe, seed) for recipe in self.study.recipes()}
            found.append(Group(f"seed-{seed}", seed, self.repeats, own))
        given = self.study.given()
        if given:
            found.append(Group(GIVEN, 0, self.repeats * len(self.seeds), given))
        return found

    def _network(self, recipe: Recipe, seed: int) -> ImageClassifier:
        name = recipe.name.replace("∞", "inf").replace(" ", "-")
        folder = self.folder / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return trained(self.study, recipe, seed, self.images[0], folder / f"{name}.safetensors")

    def _kept(self, group: Group, name: str, compute: Callable[[], Any]) -> Any:
        """What a JSON file holds; computed if it is not there."""
        path = self.folder / group.name / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, compute())
            logger.info("%s", path)
        return read_json(path)

    def train(self) -> None:
        """Trains the networks that are not there, and measures accuracy with and without attacks."""
        for group in self.groups:
            self._kept(
                group,
                "accuracies",
                lambda group=group: {
                    name: accuracies(self.study, one, self.images[1]) for name, one in group.networks.items()
                },
            )

    def gradients(self) -> None:
        """Draws the gradient of minus the cross-entropy at the predicted class, as the paper does."""
        pixels = self.images[1][0][:SHOWN]
        for group in self.groups:
            path = self.folder / group.name / "gradients.png"
            if group.name in (f"seed-{self.seeds[0]}", GIVEN) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                heatmap_grid(path, [loss_gradient(one, pixels) for one in group.networks.values()])

    def manifold(self) -> None:
        """Measures how far attacked images lie from the data, by network."""
        for group in self.groups:
            self._kept(group, "manifold", lambda group=group: self._distances(group))

    def _distances(self, group: Group) -> dict[str, Any]:
        train, test = self.images
        some = (test[0][: self.study.moved], test[1][: self.study.moved])
        config = FitConfig(
            epochs=20, batch_size=100, seed=group.seed, cpu=True, progress=False, log_every=10_000
        )
        measures = {
            "autoencoder": AutoencoderDistance.fitted(train[0], latent=self.study.latent, config=config),
            "neighbours": NeighbourDistance(train[0], k=5),
        }
        return moved_distances(self.study.strong, group.networks, some, measures)

    def roar(self) -> None:
        """Retrains without the pixels that a map puts first (ROAR), and with nothing else (KAR)."""
        train, test = self.images
        for group in self.groups:
            wanted = [mode for mode in get_args(Mode) if not self._retrained(group, mode)]
            maps = self._maps(group) if wanted else {}
            for mode in wanted:
                folder = self.folder / group.name
                result = roar(
                    self._retrain(), train, test, maps, mode=mode, fractions=FRACTIONS, repeats=group.repeats,
                    chance=0.1, seed=group.seed, path=folder / f"{mode}-trainings.json",
                )  # fmt: skip
                write_json(folder / f"{mode}.json", result.as_dict())
                logger.info("%s, %s\n%s", group.name, mode, result.table())

    def _retrain(self) -> TrainFunction:
        # In [-1, 1] what is left of an image is nearly one number, and short trainings hardly leave chance.
        config = self.study.config(self.study.retraining_epochs, 0)
        return trained_by_fit(lambda: network(self.images[0][0], standardized=True), config)

    def _retrained(self, group: Group, mode: str) -> bool:
        path = self.folder / group.name / f"{mode}.json"
        if not path.exists():
            return False
        curves = read_json(path)["methods"].values()
        return min(len(runs) for curve in curves for runs in curve["accuracies"]) >= group.repeats

    def _maps(self, group: Group) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, classifier in group.networks.items():
            if name != UNTESTED:
                parts = [maps_of(classifier, pixels, self.study.steps) for pixels, _ in self.images]
                found |= {f"{name}/{method}": (parts[0][method], parts[1][method]) for method in MAPS}
        return found

    def shapes(self) -> None:
        """Trains on nothing but which half of the pixels a map puts first: what ROAR's holes tell."""
        for group in self.groups:
            self._kept(group, "shapes", lambda group=group: self._shapes(group))

    def _shapes(self, group: Group) -> dict[str, float]:
        labels = [labels for _, labels in self.images]
        found = {}
        for name, own in self._maps(group).items():
            holes = [top_share(one, HALF, group.seed)[:, None].float() for one in own]
            found[name] = accuracy(self._retrain()(holes[0], labels[0], group.seed), (holes[1], labels[1]))
        return found

    def tradeoff(self) -> None:
        """Puts accuracy beside the scores of ROAR and KAR, with both remedies as axes: map and norm."""
        rows = records(self.study, self.folder)
        if rows:
            write_json(self.folder / "tradeoff.json", {"records": rows, "series": series(rows)})


def loss_gradient(classifier: ImageClassifier, pixels: Tensor) -> Attribution:
    """The gradient of minus the cross-entropy at the predicted class, called by the network's name."""
    found = explain(classifier, pixels, "gradient", score="logprob", batch_size=256)
    return replace(found, method=classifier.name.removeprefix("MNIST, "))


def maps_of(classifier: ImageClassifier, pixels: Tensor, steps: int) -> dict[str, Tensor]:
    """Maps ``(n, y, x)`` by method, of the predicted class's cross-entropy: absolute, channels summed."""
    gradient = explain(classifier, pixels, "gradient", score="logprob", batch_size=256)
    product = replace(gradient, values=gradient.values * (pixels - classifier.mean))
    path = explain(
        classifier, pixels, IntegratedGradients(steps=steps), target=gradient.target, score="logprob",
        batch_size=256,
    )  # fmt: skip
    maps = dict(zip(MAPS, (gradient, product, path), strict=True))
    return {name: one.map("abs_sum") for name, one in maps.items()}


def moved_distances(
    radius: float,
    networks: Mapping[str, ImageClassifier],
    test: Images,
    measures: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, Any]:
    """Distances from the data of images that a strong attack moved along each network's loss gradient.

    As in the paper, images count whose prediction by the first, standard network changes; clean ones all do.

    Args:
        radius: L2 radius of the attack: 40 steps of a sixth of it without random start.
        networks: By name, the standard one first.
        test: Images that are moved.
        measures: Distances from the data by name.

    Returns:
        By measure and network (and ``"clean"``) the distances; for each network how many images count, and
        how far they were moved.
    """
    pixels, labels = test
    attack = PGD(L2(radius), steps=40, step_size=radius / 6, random_start=False, early_stop=False)
    standard = next(iter(networks.values()))
    before = standard.predict(pixels)
    found: dict[str, Any] = {
        "distances": {name: {"clean": measure(pixels).tolist()} for name, measure in measures.items()},
        "counted": {},
        "moved": {},
    }
    for name, classifier in networks.items():
        attacked = attack.perturb(classifier, pixels, labels)
        changed = standard.predict(attacked) != before
        found["counted"][name] = int(changed.sum())
        if changed.any():
            step = (attacked - pixels)[changed].flatten(1).norm(dim=1)
            found["moved"][name] = step.mean().item()
            for key, measure in measures.items():
                found["distances"][key][name] = measure(attacked[changed]).tolist()
    return found
