"""The study of robust networks' gradients, very small: every stage, what it resumes and what it writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustkit.attacks.gradient import LInf
from robustkit.classifiers import ImageClassifier
from robustkit.interpret import explain
from robustkit.training import PGDTraining
from scripts.interpret_study import bridging, bridging_report, networks
from scripts.interpret_study.networks import STUDIES, Recipe, Study, network
from scripts.interpret_study.tradeoff import records, series


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise (n, 1, 13, 13) with a bright row that says the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    pixels = 0.3 * torch.rand(count, 1, 13, 13, generator=generator)
    pixels[torch.arange(count), 0, labels + 1] += 0.6
    return pixels, labels


def parts(train: int, test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    pixels, labels = images(train + test)
    return (pixels[:train], labels[:train]), (pixels[train:], labels[train:])


def given() -> dict[str, ImageClassifier]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = {}
        for name in ("given, clean", "given, L∞ 0.3", bridging.UNTESTED):
            found[name] = network(images(1)[0]).eval()
            found[name].name = f"MNIST, {name}"
        return found


TOY = Study(
    "mnist", "Toy", parts, {"L2": (0.5,)}, train=60, test=40, epochs=2, retraining_epochs=1,
    rate=1e-2, moved=10, strong=3.0, latent=4, steps=2, given=given,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages of one seed, with one share of pixels instead of five."""
    folder = tmp_path_factory.mktemp("bridging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridging, "FRACTIONS", (0.5,))
        bridging.run("all", studies=[TOY], seeds=(0,), runs=folder)
    return folder


def test_every_stage_leaves_its_files(runs: Path) -> None:
    names = {path.name for path in (runs / "mnist" / "seed-0").iterdir()}
    assert {"standard.safetensors", "L2-0.5.safetensors"} <= names
    assert {"accuracies.json", "manifold.json", "remove.json", "keep.json"} <= names
    assert (runs / "mnist" / "seed-0" / "gradients.png").read_bytes()[1:4] == b"PNG"
    assert (runs / "mnist" / "given" / "gradients.png").exists()
    kept = json.loads((runs / "mnist" / "given" / "keep.json").read_text())
    assert set(kept["methods"]) == {"random"} | {
        f"{name}/{method}" for name in ("given, clean", "given, L∞ 0.3") for method in bridging.MAPS
    }
    text = (runs / "report.md").read_text()
    for head in (
        "networks",
        "distance from the data",
        "ROAR and KAR",
        "what the shape of half of the pixels tells",
    ):
        assert f"### Toy: {head}" in text
    assert "| L2 0.5 | 1 |" in text and (runs / "bridging_tradeoff.svg").exists()


def test_what_is_there_is_not_done_again(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = tmp_path / "again"
    shutil.copytree(runs, again)
    for name in ("fit", "accuracies", "moved_distances", "roar", "heatmap_grid"):

        def refused(*arguments: object, **settings: object) -> None:
            raise AssertionError("done again")

        monkeypatch.setattr(networks if name == "fit" else bridging, name, refused)
    bridging.run("all", studies=[TOY], seeds=(0,), runs=again)
    assert (again / "report.md").read_text() == (runs / "report.md").read_text()
    (again / "mnist" / "seed-0" / "keep.json").unlink()
    with pytest.raises(AssertionError, match="done again"):
        bridging.run("roar", studies=[TOY], seeds=(0,), runs=again)
    # Only groups that have both tests count.
    bridging.run("tradeoff", studies=[TOY], seeds=(0,), runs=again)
    document = json.loads((again / "mnist" / "tradeoff.json").read_text())
    assert {row["group"] for row in document["records"]} == {"given"}


def test_retrainings_that_were_cut_off_go_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridging, "FRACTIONS", (0.5,))
    again = tmp_path / "again"
    shutil.copytree(runs, again)
    folder = again / "mnist" / "seed-0"
    wanted = json.loads((folder / "remove.json").read_text())
    (folder / "remove.json").unlink()
    ledger = json.loads((folder / "remove-trainings.json").read_text())
    del ledger["accuracies"]["L2 0.5/gradient/0.5/0"]
    (folder / "remove-trainings.json").write_text(json.dumps(ledger))
    bridging.run("roar", studies=[TOY], seeds=(0,), runs=again)
    assert json.loads((folder / "remove.json").read_text()) == wanted


@pytest.mark.parametrize("side", [13, 28, 32])
def test_the_small_network_reads_every_pixel(side: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaf = torch.rand(4, 1, side, side, requires_grad=True)
        logits = network(leaf.detach()).eval()(leaf)
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    assert (gradient.abs().sum(dim=(0, 1)) > 0).all()


def test_maps_are_the_losss_absolute_gradients() -> None:
    (pixels, _), _ = TOY.load()
    classifier = given()["given, clean"]
    found = bridging.maps_of(classifier, pixels[:5], steps=32)
    leaf = pixels[:5].clone().requires_grad_()
    logits = classifier(leaf)
    torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()
    assert leaf.grad is not None
    assert torch.allclose(found["gradient"], leaf.grad.abs().sum(dim=1), atol=1e-6)
    product = (leaf.grad * (pixels[:5] - 0.5)).abs().sum(dim=1)
    assert torch.allclose(found["gradient × input"], product, atol=1e-6)
    own = explain(classifier, pixels[:5], "integrated_gradients", score="logprob").map("abs_sum")
    assert torch.allclose(found["integrated gradients"], own, rtol=0.1, atol=0.1 * float(own.max()))


def test_only_images_that_change_the_standard_networks_prediction_count() -> None:
    class Sum(torch.nn.Module):
        """Says 1 if the sum of pixels is above a bound."""

        def __init__(self, bound: float) -> None:
            super().__init__()
            self.bound = torch.nn.Parameter(torch.tensor(bound))

        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(dim=1)
            return torch.stack([self.bound - total, total - self.bound], dim=1)

    pixels = torch.tensor([0.5, 0.1])[:, None, None, None].expand(2, 1, 2, 2).contiguous()
    labels = torch.tensor([1, 0])  # sums are 2 and .4; the bound is 1
    nets = {name: ImageClassifier(Sum(1.0)).eval() for name in ("standard", "other")}
    measures = {"mean": lambda x: x.flatten(1).mean(dim=1)}
    # A radius of .25 moves the sum by .5: .4 goes to .9, 2 to 1.5; neither crosses. One of .4 moves it by .8.
    found = bridging.moved_distances(0.25, nets, (pixels, labels), measures)
    assert found["counted"] == {"standard": 0, "other": 0} and found["moved"] == {}
    found = bridging.moved_distances(0.4, nets, (pixels, labels), measures)
    assert found["counted"] == {"standard": 1, "other": 1}
    assert found["moved"]["other"] == pytest.approx(0.4, abs=1e-4)
    assert found["distances"]["mean"]["other"] == pytest.approx([0.3], abs=1e-4)
    assert found["distances"]["mean"]["clean"] == pytest.approx([0.5, 0.1])


def test_distances_are_on_the_scale_of_clean_images_and_paired() -> None:
    def group(shift: float) -> dict[str, object]:
        own = {"clean": [1.0, 2.0, 5.0], "standard": [5.0 + shift] * 3, "L2 0.5": [3.0] * 3}
        return {
            "distances": {"autoencoder": own, "neighbours": own},
            "counted": {"standard": 3, "L2 0.5": 3}, "moved": {"standard": 1.0, "L2 0.5": 0.5},
        }  # fmt: skip

    lines = bridging_report.distance_table({"seed-0": group(0.0), "seed-1": group(0.4)}).splitlines()
    clean, standard, robust = (line.split(" | ") for line in lines[2:])
    # By hand: a distance d is (d - 1) / 4.
    assert clean[:3] == ["| clean", "2", "0.250 ± 0.000"]
    assert standard[2:4] == ["1.050 ± 0.071", ""]
    assert robust[2:4] == ["0.500 ± 0.000", "+0.550 ± 0.071"] and robust[-1] == "0.50 ± 0.00 |"


def rows(group: str, repeat: int, scores: dict[str, float]) -> list[dict[str, object]]:
    known = {"standard": ("", 0.0, 0.9), "L2 0.5": ("L2", 0.5, 0.8), "L2 1": ("L2", 1.0, 0.7)}
    return [
        {"group": group, "repeat": repeat, "network": name, "norm": known[name][0], "radius": known[name][1],
         "map": "gradient", "test": "KAR", "accuracy": known[name][2], "score": score}
        for name, score in scores.items()
    ]  # fmt: skip


def test_a_series_compares_the_strongest_with_the_standard_network_of_its_seed() -> None:
    found = series(
        [
            *rows("seed-0", 0, {"standard": 0.1, "L2 0.5": 0.2, "L2 1": 0.3}),
            *rows("seed-1", 0, {"standard": 0.3, "L2 0.5": 0.4, "L2 1": 0.7}),
        ]
    )
    (one,) = found
    assert (one["norm"], one["map"], one["test"], one["n"]) == ("L2", "gradient", "KAR", 2)
    assert one["standard"] == pytest.approx(0.2) and one["strongest"] == pytest.approx(0.5)
    assert one["gain"] == pytest.approx(0.3) and one["sd"] == pytest.approx(0.02**0.5)
    # By hand: radii 0, .5, 1 twice; scores .1 .2 .3 .3 .4 .7.
    assert one["correlations"]["linear radius"] == pytest.approx(
        0.3 / (0.5 * (0.6 - 4 / 3 * 0.2)) ** 0.5, rel=0.2
    )
    assert one["correlations"]["linear accuracy"] == pytest.approx(-one["correlations"]["linear radius"])
    text = bridging_report.better(found)
    assert (
        "KAR: the most robust network is better in 1 of 1 series (by more than two standard errors in 1"
        in text
    )
    assert "ROAR: the most robust network is better in 0 of 0" in text
    (alone,) = series(rows("seed-0", 0, {"standard": 0.3, "L2 1": 0.1}))
    assert alone["sd"] is None
    assert bridging_report.better([alone]).endswith(
        "KAR: the most robust network is better in 0 of 1 series."
    )


def test_records_have_the_score_against_random_maps(tmp_path: Path) -> None:
    folder = tmp_path / "seed-0"
    folder.mkdir()
    (folder / "accuracies.json").write_text(
        json.dumps({"standard": {"clean": 0.9}, "L2 0.5": {"clean": 0.8}})
    )
    for mode, own in (("remove", 0.4), ("keep", 0.8)):
        methods = {"random": 0.6, "standard/gradient": own, "L2 0.5/gradient": own}
        document = {
            "mode": mode, "fractions": [0.5], "clean": 1.0, "chance": 0.1,
            "methods": {name: {"accuracies": [[value]]} for name, value in methods.items()},
        }  # fmt: skip
        (folder / f"{mode}.json").write_text(json.dumps(document))
    found = records(TOY, tmp_path)
    assert [(row["network"], row["norm"], row["radius"], row["test"]) for row in found] == [
        ("standard", "", 0.0, "ROAR"), ("L2 0.5", "L2", 0.5, "ROAR"),
        ("standard", "", 0.0, "KAR"), ("L2 0.5", "L2", 0.5, "KAR"),
    ]  # fmt: skip
    # Halves of the curve: trapezoids (1 + 2 y + .1) / 4, so .2 of accuracy are .1 of area.
    assert [row["score"] for row in found] == pytest.approx([0.1] * 4)
    assert found[1]["accuracy"] == 0.8


def test_the_page_gets_tables_between_its_markers(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "bridging.md"
    page.parent.mkdir()
    page.write_text(f"before\n{bridging_report.BEGIN}\nold\n{bridging_report.END}\nafter\n")
    bridging_report.write_report([TOY], runs, page=True, target=page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "### Toy: ROAR and KAR" in text
    drawn = {path.name for path in (page.parent / "img").iterdir()}
    assert drawn == {
        "bridging_manifold.svg", "bridging_tradeoff.svg",
        "bridging_gradients_seed-0.png", "bridging_gradients_given.png",
    }  # fmt: skip


def test_networks_of_others_are_retrained_as_often_as_all_seeds_together(tmp_path: Path) -> None:
    groups = bridging.Bridging(replace(TOY, train=10, test=10, epochs=1), tmp_path, (0, 1), 2).groups
    assert [(group.name, group.seed, group.repeats) for group in groups] == [
        ("seed-0", 0, 2), ("seed-1", 1, 2), ("given", 0, 4),
    ]  # fmt: skip
    standard = [group.networks["standard"].model.state_dict()["0.weight"] for group in groups[:2]]
    assert not torch.equal(*standard)


def test_recipes() -> None:
    names = [recipe.name for recipe in STUDIES["mnist"].recipes()]
    assert names == ["standard", "L2 0.5", "L2 1", "L∞ 0.05", "L∞ 0.1"]
    robust = Recipe("L∞", 0.1).method()
    assert isinstance(robust, PGDTraining) and not robust.random_start and robust.threat == LInf(0.1)
    assert not isinstance(Recipe().method(), PGDTraining)
