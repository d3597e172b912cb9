"""Threats as words, images from folders, and the report on gradient attacks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustkit.attacks.gradient import L1, L2, PGD, AttackSuite, EmbeddingBall, LInf
from robustkit.classifiers import ImageClassifier, TextClassifier
from robustkit.evaluation.gradients import (
    GradientConfig,
    evaluate_images,
    gradient_section,
    text_gradient_section,
)
from robustkit.evaluation.images import LabelledImages, class_names, holds_images, read_labelled_images
from robustkit.evaluation.inputs import read_labelled_texts
from robustkit.evaluation.threats import parse_threat
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says
from tests.robustkit.tiny import tiny_image_classifier, toy_sentiment, trained_bert
from trainkit.report import Estimate, Figure, Table

QUICK = GradientConfig(steps=4, restarts=1, suite_steps=5, queries=20, batch_size=6)


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("linf:8/255", LInf(8 / 255)),
        ("linf:0.1", LInf(0.1)),
        ("l2:0.5", L2(0.5)),
        ("l1:12", L1(12.0)),
        ("token:0.2", EmbeddingBall(0.2)),
        ("sentence:1/4", EmbeddingBall(0.25, per="sentence")),
    ],
)
def test_threats_are_read_from_words(text: str, threat: Any) -> None:
    assert parse_threat(text) == threat


@pytest.mark.parametrize(
    "text", ["linf", "linf:", "linf:a", "linf:-1", "linf:1/0", "l2:nan", "l2:inf", "8/255"]
)
def test_threats_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="threat is"):
        parse_threat(text)


def test_eight_for_eight_of_255_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="8/255, not 8"):
        parse_threat("linf:8")


# Images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark images of class "night", bright ones of class "day"."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for name, brightness in (("day", 200), ("night", 40)):
        (folder / name).mkdir()
        for number in range(4):
            Image.new("RGB", (12, 10), (brightness + number, brightness, 10)).save(
                folder / name / f"{number}.png"
            )
    (folder / "day" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return tiny_image_classifier(("day", "night"))


def test_a_folder_for_each_class_is_read(folder: Path, classifier: ImageClassifier) -> None:
    images = read_labelled_images(folder, classifier)
    assert class_names(folder) == ("day", "night") and holds_images(folder)
    assert len(images) == 8 and images.labels == [0] * 4 + [1] * 4
    assert images.names[3:5] == [str(Path("day", "3.png")), str(Path("night", "0.png"))]
    drawn, label = images[1]
    assert drawn.shape == (3, 8, 8) and label == 0
    torch.testing.assert_close(drawn[0], torch.full((8, 8), 201 / 255), rtol=0, atol=1e-6)
    taken, labels = images.take([7, 0])
    assert taken.shape == (2, 3, 8, 8) and labels.tolist() == [1, 0]


def test_a_saved_data_set_is_read(tmp_path: Path, folder: Path, classifier: ImageClassifier) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    rows = {
        "image": [Image.open(folder / "night" / "3.png"), Image.open(folder / "day" / "0.png")],
        "label": [1, 0],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["day", "night"]))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "images"))
    images = read_labelled_images(tmp_path / "images", classifier)
    assert images.names == ["image 0", "image 1"]
    assert images.labels == [1, 0] and class_names(tmp_path / "images") == ("day", "night")
    torch.testing.assert_close(images[0][0][0], torch.full((8, 8), 43 / 255), rtol=0, atol=1e-6)
    texts = datasets.Dataset.from_dict({"text": ["fine", "bad"], "label": [1, 0]})
    texts.save_to_disk(str(tmp_path / "texts"))
    assert not holds_images(tmp_path / "texts")
    assert read_labelled_texts(tmp_path / "texts", ("bad", "good")) == [("fine", 1), ("bad", 0)]
    datasets.DatasetDict({"train": texts}).save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(ValueError, match="several parts"):
        holds_images(tmp_path / "parts")


def test_images_that_cannot_be_used_are_refused(tmp_path: Path, classifier: ImageClassifier) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        holds_images(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_labelled_images(tmp_path / "none", classifier)
    (tmp_path / "day").mkdir()
    with pytest.raises(ValueError, match="no images"):
        read_labelled_images(tmp_path, classifier)
    with pytest.raises(ValueError, match="has 1 classes"):
        class_names(tmp_path)
    (tmp_path / "day" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_labelled_images(tmp_path, classifier)[0]
    (tmp_path / "dusk").mkdir()
    (tmp_path / "dusk" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="label 'dusk' is unknown; the classifier knows day, night"):
        read_labelled_images(tmp_path, classifier)
    with pytest.raises(ValueError, match="no image processor"):
        LabelledImages([], [], ImageClassifier(nn.Flatten()), [])


# The report


def table(section: Any, title: str) -> dict[Any, dict[str, Any]]:
    """Rows of a table by their first cell."""
    (found,) = (part for part in section.parts if isinstance(part, Table) and part.title == title)
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def test_accuracies_are_those_of_the_attacks_and_passes_are_counted() -> None:
    net = convolutions(dropout=0.0)
    inputs = pixels(16)
    labels = says(net, inputs)
    labels[:3] = (labels[:3] + 1) % 5
    section = gradient_section(net, inputs, labels, LInf(0.05), 5, shown="linf:0.05", config=QUICK)
    rows = table(section, "Accuracy under gradient attacks")
    assert list(rows) == ["none", "PGD-4", "CW-4", "suite"]
    shares = {name: row["accuracy"] for name, row in rows.items()}
    assert shares["none"].value == 13 / 16
    assert shares["suite"].value <= shares["none"].value
    alone = AttackSuite((("PGD-4", PGD(LInf(0.05), 4)),), QUICK.batch_size).run(net, inputs, labels, seed=0)
    assert shares["PGD-4"].value == alone.robust_accuracy < 13 / 16
    assert rows["PGD-4"]["forward passes"] == alone.stages[0].forwards / 16 <= 5 * 13 / 16
    assert rows["PGD-4"]["backward passes"] == alone.stages[0].backwards / 16 <= 4 * 13 / 16
    share = shares["none"]
    assert isinstance(share, Estimate) and share.low is not None and share.high is not None
    # Wilson's interval of 13 of 16, from its quadratic equation.
    for end in (share.low, share.high):
        assert math.isclose((end - 13 / 16) ** 2, 1.96**2 * end * (1 - end) / 16, rel_tol=1e-9)
    stages = table(section, "The suite attack by attack")
    assert list(stages) == ["APGD-CE", "APGD-T", "Square"]
    assert stages["APGD-CE"]["attacked"] == 13
    for passes in ("forward passes", "backward passes"):
        assert math.isclose(sum(stage[passes] for stage in stages.values()), rows["suite"][passes])
    assert [part.title for part in section.parts if isinstance(part, Figure)] == [
        "Stationarity of PGD", "Loss under PGD",
    ]  # fmt: skip


def test_doubts_are_told() -> None:
    class Sure(nn.Module):
        def forward(self, inputs: Any) -> Any:
            return inputs.flatten(1)[:, :3].softmax(dim=1)

    section = gradient_section(
        Sure(), pixels(6), torch.arange(6) % 3, LInf(0.05), 3, shown="linf:0.05", config=QUICK
    )
    assert any("probabilities instead of logits" in part for part in section.parts if isinstance(part, str))


def test_a_report_on_images_can_be_written(folder: Path, classifier: ImageClassifier, tmp_path: Path) -> None:
    images = read_labelled_images(folder, classifier)
    report = evaluate_images(
        classifier, images, LInf(0.1), shown="linf:0.1", dataset="skies", rows=[0, 5, 6], config=QUICK
    )
    report.write(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["facts"]["images"] == 3 and told["facts"]["data"] == "skies"
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_texts_are_attacked_in_balls_relative_to_their_embeddings() -> None:
    model, tokenizer = trained_bert()
    found = TextClassifier(model, tokenizer)
    data = list(zip(*toy_sentiment(10, seed=3), strict=True))
    weak, strong = (
        text_gradient_section(found, data, EmbeddingBall(size), shown="token", config=QUICK)
        for size in (0.0, 1.5)
    )
    name = "Accuracy under gradient attacks"
    assert table(weak, name)["suite"]["accuracy"].value == table(weak, name)["none"]["accuracy"].value
    assert table(strong, name)["suite"]["accuracy"].value < 0.5
    assert "Square" not in table(strong, "The suite attack by attack")
