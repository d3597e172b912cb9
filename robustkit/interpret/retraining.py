"""ROAR and KAR: remove, or keep, the pixels that a map puts first, train anew, and see what is lost.

A map is good if a network that is trained and tested without its first pixels (ROAR) is bad, and one that
sees nothing else (KAR) is good. Sources: Hooker et al. 2019, "A Benchmark for Interpretability Methods in
Deep Neural Networks" (arXiv 1806.10758) for ROAR; Kim et al. 2019 (arXiv 1902.04893 and 1903.11626) for KAR
and the score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainkit.config import FitConfig
from trainkit.hub import fingerprint, write_json
from trainkit.progress import Progress
from trainkit.seeding import derive_seed, preserved_rng

from .ranking import first_share, positions

__all__ = ["RANDOM", "RetrainingResult", "TrainFunction", "area", "degraded", "roar", "trained_by_fit"]

RANDOM = "random"
"""Name of the maps that every other is compared with."""

Mode = Literal["remove", "keep"]

TrainFunction = Callable[[Tensor, Tensor, int], nn.Module]
"""From pixels, labels and a seed to a network, trained from the start."""


def degraded(
    pixels: Tensor, maps: Tensor, fraction: float, mode: Mode, fill: Tensor, seed: int = 0
) -> Tensor:
    """Images without the pixels that their maps put first, or with nothing else.

    Args:
        pixels: ``(n, C, H, W)``; integers become float32, so that the fill is not cut.
        maps: ``(n, H, W)``.
        fraction: Share of the pixels that is removed, or kept.
        mode: ``"remove"`` (ROAR) or ``"keep"`` (KAR).
        fill: ``(C,)``: what removed pixels become.
        seed: Of the order of equal pixels.

    Returns:
        ``(n, C, H, W)``, floats.
    """
    return _degraded(pixels, positions(maps, seed), fraction, mode, fill)


def _degraded(pixels: Tensor, places: Tensor, fraction: float, mode: Mode, fill: Tensor) -> Tensor:
    values = pixels if pixels.is_floating_point() else pixels.float()
    top = first_share(places, fraction).to(values.device)
    gone = top if mode == "remove" else ~top
    return torch.where(gone[:, None], fill.to(values)[:, None, None], values)


def area(
    fractions: Sequence[float], accuracies: Sequence[float], *, mode: Mode, clean: float, chance: float
) -> float:
    """Area under an accuracy curve by trapezoids, with both ends fixed.

    Args:
        fractions: Between 0 and 1, ascending.
        accuracies: One for each.
        mode: Nothing removed, or all kept, is ``clean``.
        clean: Accuracy on whole images.
        chance: Accuracy on images without any pixel.
    """
    ends = (clean, chance) if mode == "remove" else (chance, clean)
    x, y = [0.0, *fractions, 1.0], [ends[0], *accuracies, ends[1]]
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


@dataclass(frozen=True)
class RetrainingResult:
    """Accuracies of all trainings, and what follows from them.

    Attributes:
        mode: ``"remove"`` (ROAR) or ``"keep"`` (KAR).
        fractions: Shares of pixels.
        clean: Accuracy on whole images: an end of every curve.
        chance: Accuracy without any pixel: the other end.
        accuracies: By method, then by fraction, then by repeat; `RANDOM` among them.
    """

    mode: Mode
    fractions: tuple[float, ...]
    clean: float
    chance: float
    accuracies: Mapping[str, tuple[tuple[float, ...], ...]]

    def areas(self, method: str) -> list[float]:
        """Area under the curve of each repeat."""
        return [
            area(self.fractions, run, mode=self.mode, clean=self.clean, chance=self.chance)
            for run in zip(*self.accuracies[method], strict=True)
        ]

    def score(self, method: str) -> float:
        """How much better than random maps: their area less the method's for ROAR, the reverse for KAR."""
        return fmean(self._scores(method))

    def error(self, method: str) -> float | None:
        """Standard error of the score over repeats; None for a single one."""
        scores = self._scores(method)
        return stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None

    def _scores(self, method: str) -> list[float]:
        sign = 1 if self.mode == "remove" else -1
        pairs = zip(self.areas(RANDOM), self.areas(method), strict=True)
        return [sign * (chance - own) for chance, own in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "mode": self.mode,
            "fractions": list(self.fractions),
            "clean": self.clean,
            "chance": self.chance,
            "methods": {
                name: {
                    "accuracies": [list(runs) for runs in curve],
                    "area": fmean(self.areas(name)),
                    "score": self.score(name),
                    "score_error": self.error(name),
                }
                for name, curve in self.accuracies.items()
            },
        }

    def table(self) -> str:
        """A Markdown table: mean accuracies, area, and score with its standard error; best first."""
        done = "removed" if self.mode == "remove" else "kept"
        shares = " | ".join(f"{100 * fraction:g} %" for fraction in self.fractions)
        lines = [
            f"| pixels {done} | {shares} | area | score |",
            f"| --- |{' ---: |' * (len(self.fractions) + 2)}",
        ]
        for name in sorted(self.accuracies, key=self.score, reverse=True):
            curve = " | ".join(f"{fmean(runs):.4f}" for runs in self.accuracies[name])
            error = self.error(name)
            score = f"{self.score(name):+.4f}" + ("" if error is None else f" ± {error:.4f}")
            lines.append(f"| {name} | {curve} | {fmean(self.areas(name)):.4f} | {score} |")
        return "\n".join(lines) + "\n"


def roar(
    train_fn: TrainFunction,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    maps: Mapping[str, tuple[Tensor, Tensor]],
    *,
    mode: Mode = "remove",
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    repeats: int = 3,
    fill: Tensor | None = None,
    clean: float | None = None,
    chance: float | None = None,
    seed: int = 0,
    path: str | Path | None = None,
) -> RetrainingResult:
    """Retrain on images from which pixels were removed (ROAR), or in which only some were kept (KAR).

    Training and test images are changed by the same rule, with maps of one and the same original network.
    Networks of the same repeat start from the same seed whatever the method, so that differences are paired;
    equal pixels fall in another order in each repeat. Cost: a training for each method (and random maps),
    fraction and repeat.

    What the score cannot say: how a network is retrained decides what it can still find, and removing pixels
    leaves a shape that may itself give the class away.

    Args:
        train_fn: Trains a network from the start, such as `trained_by_fit`.
        train: Pixels ``(n, C, H, W)`` and labels int64 ``(n,)``.
        test: Pixels and labels to measure on.
        maps: By method, a number for each pixel of the training and of the test images, ``(n, H, W)`` each.
        mode: ``"remove"`` or ``"keep"``.
        fractions: Shares of the pixels, ascending, between 0 and 1.
        repeats: Trainings of each kind; the papers have 3.
        fill: ``(C,)``; by default the mean of each channel of the training images.
        clean: Accuracy on whole images; by default measured, with as many trainings.
        chance: Accuracy without any pixel; by default one by the number of classes.
        seed: Of trainings, ties and random maps.
        path: JSON file that keeps what is done; a run that was cut off goes on with it. It knows data, maps
            and seed, but not what ``train_fn`` does.

    Returns:
        The accuracies, with areas, scores and a table.

    Raises:
        ValueError: Shapes that do not fit, fractions out of range or order, a file of another run.
    """
    shares = tuple(float(fraction) for fraction in fractions)
    _check(train, test, maps, shares, repeats, mode)
    center = train[0].double().mean(dim=(0, 2, 3)) if fill is None else fill
    classes = len(torch.unique(torch.cat([train[1], test[1]])))
    # All fractions of a map and a repeat follow each other: they share one order of the pixels.
    every = [
        (repeat, name, fraction)
        for repeat in range(repeats)
        for name in (RANDOM, *maps)
        for fraction in shares
    ]
    ledger = _Ledger(path, _key(train, test, maps, mode, center, seed))

    @lru_cache(maxsize=1)
    def places(name: str, repeat: int) -> tuple[Tensor, ...]:
        found = []
        for part, (pixels, _) in enumerate((train, test)):
            own = _random_maps(pixels, seed, repeat, part) if name == RANDOM else maps[name][part]
            found.append(positions(own, derive_seed(seed, repeat, part)))
        return tuple(found)

    def accuracy(name: str, fraction: float, repeat: int) -> float:
        parts = zip((train, test), places(name, repeat), strict=True)
        changed = [_degraded(pixels, own, fraction, mode, center) for (pixels, _), own in parts]
        network = train_fn(changed[0], train[1], derive_seed("training", seed, repeat))
        return _accuracy(network, changed[1], test[1])

    with Progress(len(every), "ROAR" if mode == "remove" else "KAR") as progress:
        if clean is None:
            whole = [
                ledger(f"clean/{repeat}", lambda repeat=repeat: _accuracy(  # type: ignore[misc]
                    train_fn(train[0], train[1], derive_seed("training", seed, repeat)), *test
                ))
                for repeat in range(repeats)
            ]  # fmt: skip
            clean = fmean(whole)
        found: dict[str, list[list[float]]] = {name: [[] for _ in shares] for name in (RANDOM, *maps)}
        for repeat, name, fraction in every:
            value = ledger(
                f"{name}/{fraction}/{repeat}",
                lambda name=name, fraction=fraction, repeat=repeat: accuracy(name, fraction, repeat),  # type: ignore[misc]
            )
            found[name][shares.index(fraction)].append(value)
            progress.advance(note=name)
    curves = {name: tuple(tuple(runs) for runs in curve) for name, curve in found.items()}
    return RetrainingResult(mode, shares, clean, 1 / classes if chance is None else chance, curves)


class _Ledger:
    """Values that are computed once and kept in a file."""

    def __init__(self, path: str | Path | None, key: str) -> None:
        self._path = None if path is None else Path(path)
        self._key = key
        self._known: dict[str, float] = {}
        if self._path is not None and self._path.exists():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept.get("key") != key:
                raise ValueError(f"{path} is of a run with other data, maps or settings; name another file")
            self._known = kept["accuracies"]

    def __call__(self, name: str, compute: Callable[[], float]) -> float:
        if name not in self._known:
            self._known[name] = compute()
            if self._path is not None:
                write_json(self._path, {"key": self._key, "accuracies": self._known})
        return self._known[name]


def trained_by_fit(make: Callable[[], nn.Module], config: FitConfig) -> TrainFunction:
    """A training function that runs `trainkit.fit` with cross-entropy on a fresh network.

    Args:
        make: Makes the network; the global generator is seeded before.
        config: Settings; the seed is replaced by the training's.
    """
    from dataclasses import replace

    from trainkit.loop import fit
    from trainkit.objectives import Loss

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        pixels, labels = batch
        return Loss(F.cross_entropy(model(pixels), labels, reduction="sum"), len(labels))

    def train(pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
        with preserved_rng():
            torch.manual_seed(seed)
            network = make()
            data = torch.utils.data.TensorDataset(pixels, labels)
            fit(network, loss, data, config=replace(config, seed=seed))
        return network

    return train


def _random_maps(pixels: Tensor, seed: int, repeat: int, part: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(RANDOM, seed, repeat, part))
    return torch.rand(len(pixels), *pixels.shape[2:], generator=generator)


def _accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    network.eval()
    device = next((weight.device for weight in network.parameters()), pixels.device)
    floats = pixels if pixels.is_floating_point() else pixels.float()
    with torch.no_grad():
        said = torch.cat([network(part.to(device)).argmax(dim=1).cpu() for part in floats.split(256)])
    return (said == labels.cpu()).double().mean().item()


def _check(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], maps: Mapping[str, tuple[Tensor, Tensor]],
    fractions: tuple[float, ...], repeats: int, mode: str,
) -> None:  # fmt: skip
    if mode not in ("remove", "keep"):
        raise ValueError(f"mode is {mode!r}; expected 'remove' or 'keep'")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected 1 or more")
    if (
        not fractions
        or list(fractions) != sorted(set(fractions))
        or not 0 < fractions[0] <= fractions[-1] < 1
    ):
        raise ValueError(f"fractions is {fractions}; expected ascending shares between 0 and 1")
    if RANDOM in maps:
        raise ValueError(f"maps has {RANDOM!r}, which is the name of the random maps; call it something else")
    for name, (pixels, labels) in (("train", train), ("test", test)):
        if pixels.ndim != 4 or len(pixels) == 0 or labels.shape != (len(pixels),):
            raise ValueError(
                f"{name} is {tuple(pixels.shape)} with labels {tuple(labels.shape)}; expected (n, C, y, x) "
                "and (n,)"
            )
    for name, own in maps.items():
        for part, found, pixels in zip(("training", "test"), own, (train[0], test[0]), strict=True):
            if found.shape != (len(pixels), *pixels.shape[2:]):
                raise ValueError(
                    f"maps of {name!r} are {tuple(found.shape)} for {part} images {tuple(pixels.shape)}; "
                    "expected (n, y, x)"
                )
            if not found.isfinite().all():
                raise ValueError(f"maps of {name!r} have NaN or infinite numbers")


def _key(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], maps: Mapping[str, tuple[Tensor, Tensor]],
    mode: str, fill: Tensor, seed: int,
) -> str:  # fmt: skip
    arrays = [one.cpu().numpy() for one in (*train, *test, fill)]
    arrays += [one.detach().cpu().numpy() for own in maps.values() for one in own]
    return fingerprint(mode, seed, list(maps), *arrays)
