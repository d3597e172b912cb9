"""The report's section on explanations of images: numbers by hand, pictures, hostile names, the command."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from typer.testing import CliRunner

from robustkit.attacks.gradient import LInf
from robustkit.classifiers import ImageClassifier
from robustkit.cli import app
from robustkit.evaluation import (
    ExplanationConfig,
    GradientConfig,
    RobustnessReport,
    evaluate_images,
    explanations,
    gradients,
    image_explanation_section,
    read_labelled_images,
)
from robustkit.evaluation.explanations import FRACTIONS
from robustkit.interpret import explain, randomisation_test
from tests.robustkit.tiny import tiny_image_classifier
from trainkit.report import Estimate, Figure, Picture, Pictures, Section

QUICK = GradientConfig(steps=4, restarts=1, suite_steps=3, queries=5)
EVIL = "<script>alert(1)<"


def net(seed: int = 0, side: int = 8) -> ImageClassifier:
    """A convolution, a ReLU and a linear layer with random weights; three classes without names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(96, 3),
        )  # fmt: skip
        layers[4].weight.data *= 20
    return ImageClassifier(layers.eval(), mean=[0.5] * 3, std=[0.25] * 3, name="net")


def noise(n: int, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return net()


@pytest.fixture(scope="module")
def images(classifier: ImageClassifier) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels that are right but for the last two, and the images under noise that fools some."""
    pixels = noise(12)
    labels = classifier.predict(pixels)
    labels[-2:] = (labels[-2:] + 1) % 3
    perturbed = (pixels + (noise(12, seed=1) - 0.5)).clamp(0, 1)
    assert 3 <= int((classifier.predict(perturbed) != labels)[:-2].sum()) <= 7
    return pixels, labels, perturbed


METHODS = ("gradient", "gradient_times_input")


def made(classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor], **settings: Any) -> Section:
    config = ExplanationConfig(**{"methods": METHODS, "n_boot": 20, "examples": 2} | settings)
    pixels, labels, perturbed = images
    names = [f"{row}.png" for row in range(len(labels))]
    return image_explanation_section(
        classifier, pixels, labels, perturbed, attack="noise", captions=names, config=config
    )


@pytest.fixture(scope="module")
def section(classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor]) -> Section:
    return made(classifier, images)


def kinds(section: Section, kind: type) -> list[Any]:
    return [part for part in section.parts if isinstance(part, kind)]


def value(cell: Any) -> float:
    assert isinstance(cell, Estimate)
    return cell.value


def area(classifier: ImageClassifier, pixels: Tensor, order: np.ndarray, grey: float = 0.5) -> float:
    """Area under the predicted class's probability as the first pixels of an order turn grey."""
    target = int(classifier.predict(pixels[None]))
    sure = []
    for share in FRACTIONS:
        changed = pixels.clone().flatten(1)
        changed[:, order[: round(share * len(order))].tolist()] = grey
        sure.append(classifier.probabilities(changed.view_as(pixels)[None])[0, target].item())
    return float(np.trapezoid(sure, FRACTIONS))


def test_the_numbers_are_those_of_their_definitions(
    classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor], section: Section
) -> None:
    pixels, labels, perturbed = images
    right, still = (classifier.predict(one) == labels for one in (pixels, perturbed))
    rows = {"images as they are": torch.ones(12, dtype=torch.bool), "noise, fooled": right & ~still,
            "noise, withstood": right & still}  # fmt: skip
    deletion = {(row[0], row[1]): row[2:] for row in section.table("Deletion").rows}
    likeness = {(row[0], row[1]): row[2:] for row in section.table("Maps before and after attacks").rows}
    smoothness = {(row[0], row[1]): row[2:] for row in section.table("Smoothness of maps").rows}
    spelled = [method.replace("_", " ") for method in METHODS]
    assert list(deletion) == list(smoothness) == [(name, method) for name in rows for method in spelled]
    assert list(likeness) == [key for key in deletion if key[0] != "images as they are"]
    for method, name in ((method, name) for method in METHODS for name in rows):
        chosen, key = rows[name], (name, method.replace("_", " "))
        shown = pixels if name == "images as they are" else perturbed
        before, after = (
            explain(classifier, one[chosen], method).map().flatten(1).double().numpy()
            for one in (pixels, shown)
        )
        n = int(chosen.sum())
        assert deletion[key][0] == smoothness[key][0] == n
        for cell, sign in ((deletion[key][1], -1), (deletion[key][3], 1)):
            wanted = [
                area(classifier, image, np.argsort(sign * own, kind="stable"))
                for image, own in zip(shown[chosen], after, strict=True)
            ]
            assert value(cell) == pytest.approx(np.mean(wanted), abs=1e-5)
        square = after.reshape(n, 8, 8)
        steps = np.abs(np.diff(square, axis=1)).sum((1, 2)) + np.abs(np.diff(square, axis=2)).sum((1, 2))
        assert value(smoothness[key][1]) == pytest.approx((steps / np.abs(after).sum(1)).mean(), abs=1e-5)
        if key in likeness:
            wanted = [spearmanr(abs(a), abs(b)).statistic for a, b in zip(before, after, strict=True)]
            assert likeness[key][0] == n
            assert value(likeness[key][1]) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert len({value(deletion["noise, fooled", method][2]) for method in spelled}) == 1
    estimates = [cell for row in section.table("Deletion").rows for cell in row if isinstance(cell, Estimate)]
    assert len(estimates) == 18 and all(cell.low <= cell.value <= cell.high for cell in estimates)


def test_maps_of_zeros_are_not_smooth(classifier: ImageClassifier) -> None:
    """Where the first layer sees only zeros, the gradient times the input is zero everywhere."""
    pixels = torch.cat([noise(3), torch.full((2, 3, 8, 8), 0.5)])
    config = ExplanationConfig(("gradient_times_input",), n_boot=0, examples=0)
    section = image_explanation_section(
        classifier, pixels, classifier.predict(pixels), pixels, attack="none", config=config
    )
    own = explain(classifier, pixels[:3], "gradient_times_input").map().double().numpy()
    steps = np.abs(np.diff(own, axis=1)).sum((1, 2)) + np.abs(np.diff(own, axis=2)).sum((1, 2))
    rows = section.table("Smoothness of maps").rows
    assert [row[0] for row in rows] == ["images as they are", "none, withstood"]
    for _, _, n, variation in rows:
        assert n == 3
        assert value(variation) == pytest.approx((steps / np.abs(own).sum((1, 2))).mean(), abs=1e-6)


def test_p1_the_sanity_number_is_that_of_weights_drawn_anew(
    classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor], section: Section
) -> None:
    table = section.table("Do maps depend on the weights?")
    assert table.columns == ("method", "n", "top 1 of 2 layers anew", "top 2 of 2 layers anew")
    wanted = randomisation_test(classifier, images[0], {name: name for name in METHODS}, skip_zeros=True)
    for row, method in zip(table.rows, METHODS, strict=True):
        assert row[:2] == (method.replace("_", " "), 12)
        assert [value(cell) for cell in row[2:]] == pytest.approx(wanted["methods"][method], abs=1e-6)
    assert abs(value(table.rows[0][3])) < 0.3  # the gradient forgets the network


def test_pictures_are_the_images_their_maps_and_what_the_attack_adds(
    classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor], section: Section
) -> None:
    from PIL import Image

    pixels, labels, perturbed = images
    right, still = (classifier.predict(one) == labels for one in (pixels, perturbed))
    fooled, withstood = kinds(section, Pictures)
    assert (fooled.title, withstood.title) == ("Maps: noise, fooled", "Maps: noise, withstood")
    for part, wanted in ((fooled, right & ~still), (withstood, right & still)):
        assert len(part.groups) == 2
        for caption, strip in part.groups:
            row = int(caption.partition(".png")[0])
            assert wanted[row] and caption == f"{row}.png, labelled class {labels[row]}"
            clean, *maps, attacked, _, _, change = strip
            for stage, picture, shown in (("clean", clean, pixels), ("attacked", attacked, perturbed)):
                sure, said = classifier.probabilities(shown[row : row + 1]).max(dim=1)
                assert picture.name == f"{stage}: class {int(said)}, {float(sure):.2f}"
                assert "alt" not in picture.alt and picture.alt.startswith(f"The {stage} image")
            assert [picture.name for picture in maps] == [
                f"{method.replace('_', ' ')}: class {labels[row]}" for method in METHODS
            ]
            drawn = np.asarray(Image.open(io.BytesIO(clean.png)))
            assert drawn.shape == (136, 136, 3) and clean.size == (136, 136)
            image = (pixels[row] * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(drawn[::17, ::17], image) and np.array_equal(drawn[16::17, 16::17], image)
            added = (perturbed[row] - pixels[row]).numpy()
            times = 0.5 / np.abs(added).max()
            assert change.name == f"perturbation × {times:.3g}"
            grey = np.asarray(Image.open(io.BytesIO(change.png)))[::17, ::17].transpose(2, 0, 1) / 255
            assert np.abs(grey - (0.5 + times * added)).max() <= 1 / 255
            own = explain(classifier, pixels[row : row + 1], "gradient").map()[0]
            colours = np.asarray(Image.open(io.BytesIO(maps[0].png)))[8::17, 8::17].astype(int)
            strong = own.abs() > 0.3 * own.abs().max()
            redder = torch.from_numpy(colours[..., 0] > colours[..., 2])
            assert torch.equal(redder[strong], own[strong] > 0)


def test_s7_same_seed_same_section_whatever_the_batch(
    classifier: ImageClassifier, images: tuple[Tensor, Tensor, Tensor], section: Section
) -> None:
    smaller = made(classifier, images, methods=("gradient",), batch_size=5)
    wanted = [row for row in section.table("Deletion").rows if row[1] == "gradient"]
    for one, other in zip(wanted, smaller.table("Deletion").rows, strict=True):
        assert one[:3] == other[:3]
        assert list(map(value, one[3:])) == pytest.approx(list(map(value, other[3:])), abs=1e-4)
    few = [made(classifier, images, methods=("gradient",), sample=3, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] and few[0].table("Deletion") != few[2].table("Deletion")
    assert [row[2] for row in few[0].table("Deletion").rows] == [3, 3, 3]


def test_nothing_fooled_nothing_right_and_no_attack_at_all(classifier: ImageClassifier) -> None:
    pixels = noise(4)
    labels = classifier.predict(pixels)
    config = ExplanationConfig(("gradient",), n_boot=0)
    given: Any = {"attack": "none", "config": config}
    kept = image_explanation_section(classifier, pixels, labels, pixels, **given)
    ((name, _, n, likeness),) = kept.table("Maps before and after attacks").rows
    assert (name, n) == ("none, withstood", 4) and value(likeness) == pytest.approx(1)
    assert kinds(kept, Pictures)[0].groups[0][1][-1].name == "no perturbation"
    wrong = image_explanation_section(classifier, pixels, (labels + 1) % 3, pixels, **given)
    assert [part.title for part in kinds(wrong, Pictures)] == ["Maps"]
    assert [picture.name.partition(":")[0] for picture in kinds(wrong, Pictures)[0].groups[0][1]] == [
        "clean", "gradient",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        wrong.table("Maps before and after attacks")
    assert len(kinds(wrong, Figure)) == 1

    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3)) / 2], dim=1)

    plain = ImageClassifier(Bright().eval())
    section = image_explanation_section(plain, pixels, plain.predict(pixels), pixels, **given)
    assert any(isinstance(part, str) and "No layer of this network" in part for part in section.parts)
    assert "are replaced by black," in section.table("Deletion").note


def test_h1_a_resnet_of_transformers_and_no_images() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = ImageClassifier(ResNetForImageClassification(config).eval())
    pixels = noise(3, 32, 32)
    labels = classifier.predict(pixels)
    wanted = ExplanationConfig(("rectgrad",), n_boot=0, batch_size=2)
    section = image_explanation_section(classifier, pixels, labels, pixels, attack="x", config=wanted)
    rows = section.table("Do maps depend on the weights?").rows
    assert [row[:2] for row in rows] == [("rectgrad", 3)] and abs(value(rows[0][-1])) < 1
    with pytest.raises(ValueError, match="pixels is empty"):
        image_explanation_section(classifier, pixels[:0], labels[:0], pixels[:0], attack="x", config=wanted)


def test_large_images_are_shrunk_so_that_a_page_can_hold_them() -> None:
    classifier, pixels = net(), noise(2, 240, 180)
    config = ExplanationConfig(("gradient",), n_boot=0)
    labels = classifier.predict(pixels)
    section = image_explanation_section(classifier, pixels, labels, pixels * 0.99, attack="x", config=config)
    pictures: list[Picture] = [one for _, strip in kinds(section, Pictures)[0].groups for one in strip]
    assert {picture.size for picture in pictures} == {(105, 140)}
    assert max(len(picture.png) for picture in pictures) < 64 * 1024


# The report and the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose file and class names are hostile, and a network that knows these classes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name in (EVIL, "[x](javascript:alert(2))"):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image.save(folder / "data" / name / f'"><img src=x onerror=alert(3)>\u202e{number}.png')
    classifier = tiny_image_classifier((EVIL, "[x](javascript:alert(2))"))
    classifier.model.save_pretrained(folder / "vit")
    assert classifier.processor is not None
    classifier.processor.save_pretrained(folder / "vit")
    return folder


class Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_names_of_files_and_classes_are_no_markup_and_pictures_say_what_they_are(folder: Path) -> None:
    classifier = ImageClassifier.from_pretrained(folder / "vit")
    report = evaluate_images(
        classifier, read_labelled_images(folder / "data", classifier), LInf(0.05), shown="linf:0.05",
        config=QUICK, explained=ExplanationConfig(("gradient",), n_boot=0),
    )  # fmt: skip
    assert [section.key for section in report.sections] == ["gradient-attacks", "explanations"]
    page = Page(report.to_html())
    drawn = [attributes for tag, attributes in page.tags if tag == "img"]
    assert drawn and all(one["src"] and one["src"].startswith("data:image/png;base64,") for one in drawn)
    assert all(one["alt"] and one["width"] and one["height"] for one in drawn)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in report.to_html() and "onerror=alert(3)&gt;⟨U+202E⟩" in report.to_html()
    plain = report.to_markdown()
    assert "<script>" not in plain and "<img" not in plain and "](javascript" not in plain.replace("\\]", "")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("rectgrad", "explanations by rectgrad: .*gelu"),
        ("guided_backprop", "explanations by guided_backprop: "),
        ("xrai", "explanations by xrai: images of 8 x 8 pixels are too small for two regions of 50 pixels"),
    ],
)
def test_a_method_that_does_not_suit_costs_no_attack_d3(
    folder: Path, method: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attacked(*arguments: object) -> None:
        raise AssertionError("attacked before the method was known to be good")

    monkeypatch.setattr(gradients, "gradient_attacks", attacked)
    classifier = ImageClassifier.from_pretrained(folder / "vit")
    images = read_labelled_images(folder / "data", classifier)
    with pytest.raises(ValueError, match=f"(?i){message}"):
        evaluate_images(
            classifier, images, LInf(0.05), shown="linf", explained=ExplanationConfig(("gradient", method))
        )  # fmt: skip


def test_the_command_explains_images_and_leaves_nothing_when_it_is_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["evaluate", "--model", str(folder / "vit"), "--data", str(folder / "data"), "--threat",
              "linf:8/255", "--pgd-steps", "2", "--queries", "5", "--n-boot", "10"]  # fmt: skip
    wild = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "wild"), "--explain", "wild"])
    assert wild.exit_code == 2 and "method is 'wild'; expected one of gradient" in wild.stderr
    more = ["--explain", "gradient,vargrad", "--explain-sample", "4", "--explain-examples", "1"]
    done = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "out"), *more])
    assert done.exit_code == 0, done.output
    section = RobustnessReport.read(tmp_path / "out").section("explanations")
    assert [row[:3] for row in section.table("Deletion").rows[:2]] == [
        ("images as they are", "gradient", 4), ("images as they are", "vargrad", 4),
    ]  # fmt: skip
    assert all(len(part.groups) == 1 for part in kinds(section, Pictures))
    assert (tmp_path / "out" / "explanations-do-maps-depend-on-the-weights.csv").is_file()

    asked = 0

    def stopped(*arguments: Any, **settings: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise KeyboardInterrupt
        return explain(*arguments, **settings)

    monkeypatch.setattr(explanations, "explain", stopped)
    ended = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "half"), *more])
    assert ended.exit_code == 130 and not (tmp_path / "half").exists()
