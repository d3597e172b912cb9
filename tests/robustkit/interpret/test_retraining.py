"""ROAR and KAR: duality, the published score, ties, oracle and constant maps (K1 to K5, D12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.interpret.retraining import RANDOM, RetrainingResult, area, degraded, roar, trained_by_fit
from trainkit import FitConfig

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
# Raw accuracies of gradient times input that the authors of arXiv 1903.11626 published, means of 3.
STANDARD = (0.6558, 0.5972, 0.5644, 0.5191, 0.4296)
STRONGEST = (0.6484, 0.5598, 0.5141, 0.4625, 0.3942)
KEPT = (0.4702, 0.5674, 0.6192, 0.6568, 0.6996)


def toy(n: int, seed: int, informative: int = 4) -> tuple[Tensor, Tensor]:
    """Noise (n, 1, 4, 4) whose first pixels say the class, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(n, 1, 4, 4, generator=generator) * 0.5
    labels = torch.arange(n) % 2
    pixels.view(n, 16)[:, :informative] += (2.0 * labels - 1)[:, None]
    return pixels, labels


class Nearest(nn.Module):
    """The class with the nearer mean: training that costs nothing."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.means = torch.stack([pixels[labels == c].mean(dim=0).flatten() for c in (0, 1)])

    def forward(self, pixels: Tensor) -> Tensor:
        return -torch.cdist(pixels.flatten(1), self.means)


def nearest(pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
    return Nearest(pixels, labels)


def oracle(pixels: Tensor) -> Tensor:
    maps = torch.zeros(len(pixels), 16)
    maps[:, :4] = 1
    return maps.view(-1, 4, 4)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8125])
def test_k1_removing_pixels_is_keeping_the_others(fraction: float) -> None:
    pixels, _ = toy(20, 0)
    maps = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(1))
    fill = torch.tensor([7.0])
    removed = degraded(pixels, maps, fraction, "remove", fill)
    assert torch.equal(removed, degraded(pixels, -maps, 1 - fraction, "keep", fill))
    assert (removed == 7).flatten(1).sum(dim=1).tolist() == [round(16 * fraction)] * 20
    assert torch.equal(degraded(pixels, maps, 0, "remove", fill), pixels)
    assert torch.equal(degraded(pixels, maps, 1, "keep", fill), pixels)


def test_d12_integers_are_filled_without_a_cut() -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    fill = torch.tensor([100.25, 0.5, 254.75])
    found = degraded(pixels, torch.zeros(5, 4, 4), 1, "remove", fill)
    assert found.dtype == torch.float32 and torch.equal(found[2, :, 1, 1], fill)
    half = degraded(pixels, torch.zeros(5, 4, 4), 0.5, "remove", fill)
    gone = (half == fill.view(3, 1, 1)).all(dim=1)
    assert gone.flatten(1).sum(dim=1).tolist() == [8] * 5  # all channels of a pixel go together


def test_d12_training_and_test_images_get_the_same_fill() -> None:
    seen: list[Tensor] = []

    class Spy(Nearest):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(pixels)
            return super().forward(pixels)

    def spy(pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
        seen.append(pixels)
        return Spy(pixels, labels)

    train, test = toy(20, 0), toy(10, 1)
    maps = {"oracle": (oracle(train[0]), oracle(test[0]))}
    roar(spy, train, test, maps, fractions=(0.25,), repeats=1, clean=1.0)
    trained, judged = seen[-2:]
    mean = train[0].double().mean().float()
    assert torch.equal(trained.view(20, 16)[:, :4], mean.expand(20, 4))
    assert torch.equal(judged.view(10, 16)[:, :4], mean.expand(10, 4))


def test_k2_the_score_reproduces_the_published_areas() -> None:
    ends = {"clean": 0.7366, "chance": 0.1}
    standard = area(SHARES, STANDARD, mode="remove", **ends)
    assert round(standard, 4) == 0.5408
    assert round(area(SHARES, KEPT, mode="keep", **ends), 4) == 0.5860
    assert standard - area(SHARES, STRONGEST, mode="remove", **ends) == pytest.approx(0.0353, abs=5e-5)


def test_the_score_is_against_random_maps_of_the_same_repeat() -> None:
    curves = {RANDOM: ((0.8, 0.6),), "a": ((0.5, 0.4),), "b": ((0.9, 0.8),)}
    removed = RetrainingResult("remove", (0.5,), 1.0, 0.5, curves)
    # Areas by hand: (1 + 2 y + 0.5) / 4.
    assert removed.areas("a") == pytest.approx([0.625, 0.575])
    assert removed.score("a") == pytest.approx((0.15 + 0.10) / 2) and removed.score(RANDOM) == 0
    assert removed.error("a") == pytest.approx(0.025)
    kept = RetrainingResult("keep", (0.5,), 1.0, 0.5, curves)
    assert kept.score("b") == pytest.approx((0.05 + 0.10) / 2) and kept.score("a") < 0
    single = RetrainingResult("keep", (0.5,), 1.0, 0.5, {RANDOM: ((0.8,),), "b": ((0.9,),)})
    assert single.error("b") is None
    assert kept.as_dict()["methods"]["b"]["score"] == kept.score("b")
    lines = kept.table().splitlines()
    assert lines[0] == "| pixels kept | 50 % | area | score |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| b", "| random", "| a"]
    assert "+0.0750 ± 0.0250" in lines[2]


def test_k4_an_oracle_leaves_chance_and_keeps_everything() -> None:
    train, test = toy(400, 0), toy(400, 1)
    maps = {"oracle": (oracle(train[0]), oracle(test[0]))}
    removed = roar(nearest, train, test, maps, mode="remove", fractions=(0.25, 0.5), repeats=2)
    assert removed.clean > 0.99 and removed.chance == 0.5
    assert all(abs(accuracy - 0.5) < 0.1 for runs in removed.accuracies["oracle"] for accuracy in runs)
    assert all(accuracy > 0.85 for accuracy in removed.accuracies[RANDOM][0])
    kept = roar(nearest, train, test, maps, mode="keep", fractions=(0.25, 0.5), repeats=2)
    assert all(accuracy > 0.99 for runs in kept.accuracies["oracle"] for accuracy in runs)
    assert removed.score("oracle") > 0.25 and kept.score("oracle") > 0.03


def test_k5_a_constant_map_is_as_good_as_random() -> None:
    train, test = toy(600, 0), toy(600, 1)
    maps = {"constant": (torch.ones(600, 4, 4), torch.ones(600, 4, 4))}
    for mode in ("remove", "keep"):
        found = roar(nearest, train, test, maps, mode=mode, repeats=4)  # type: ignore[arg-type]
        assert abs(found.score("constant")) < 0.01
        assert found.accuracies["constant"] != found.accuracies[RANDOM]


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    train, test = toy(40, 0), toy(40, 1)
    maps = {"oracle": (oracle(train[0]), oracle(test[0]))}
    settings: dict[str, Any] = {"fractions": (0.25, 0.5), "repeats": 2}
    trainings = 0

    def counted(pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
        nonlocal trainings
        trainings += 1
        if trainings == 5:
            raise KeyboardInterrupt
        return Nearest(pixels, labels)

    path = tmp_path / "roar.json"
    with pytest.raises(KeyboardInterrupt):
        roar(counted, train, test, maps, path=path, **settings)
    found = roar(counted, train, test, maps, path=path, **settings)
    assert trainings == 5 + 10 - 4
    assert found == roar(nearest, train, test, maps, **settings)
    with pytest.raises(ValueError, match="other data, maps or settings"):
        roar(nearest, train, test, maps, path=path, mode="keep", **settings)


def test_networks_are_trained_by_fit_and_the_seed_decides() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    train = trained_by_fit(
        make, FitConfig(max_steps=30, batch_size=20, learning_rate=0.05, cpu=True, log_every=30)
    )
    pixels, labels = toy(60, 0)
    state = torch.get_rng_state()
    first, again, other = train(pixels, labels, 1), train(pixels, labels, 1), train(pixels, labels, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1].weight, again[1].weight) and not torch.equal(first[1].weight, other[1].weight)  # type: ignore[index]
    accuracy = (first(pixels).argmax(dim=1) == labels).double().mean()
    assert accuracy > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (0.5, 0.3)}, "ascending shares"),
        ({"fractions": (0.0, 0.5)}, "between 0 and 1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"mode": "drop"}, "mode is 'drop'"),
        ({"maps": {RANDOM: (torch.zeros(8, 4, 4),) * 2}}, "name of the random maps"),
        ({"maps": {"a": (torch.zeros(8, 4, 4), torch.zeros(8, 1, 4, 4))}}, r"\(8, 1, 4, 4\) for test images"),
        ({"maps": {"a": (torch.full((8, 4, 4), torch.nan),) * 2}}, "maps of 'a' have NaN"),
        ({"train": (torch.zeros(8, 4, 4), torch.zeros(8))}, r"train is \(8, 4, 4\)"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"train": toy(8, 0), "test": toy(8, 1), "maps": {}} | change
    with pytest.raises(ValueError, match=message):
        roar(nearest, **given)
