"""``robustkit explain``, on tiny models that are written for the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from robustkit.cli import app
from tests.robustkit.tiny import tiny_classifier

pytest.importorskip("matplotlib")

LABELS: Any = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("explain")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS
        )
        ResNetForImageClassification(config).save_pretrained(folder / "images-model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "images-model")
    (folder / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.JPG", "more/<c>.png")):
        pixels = torch.randint(0, 256, (20, 30 + number, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.byte().numpy()).save(folder / "photos" / name)
    (folder / "photos" / "notes.txt").write_text("no picture")
    model, tokenizer = tiny_classifier("bert")
    model.save_pretrained(folder / "texts-model")
    tokenizer.save_pretrained(folder / "texts-model")
    (folder / "texts.txt").write_text("the film is great .\n\na bad <script> plot\n")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_images_come_as_a_page_pictures_and_numbers(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = (files / "photos", "--model", files / "images-model", "--out", out, "--target", "cow")
    result = call(*given, "--method", "integrated_gradients,rectgrad", "--params", '{"rectgrad": {"q": 80}}',
                  "--batch-size", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 explained by integrated_gradients, rectgrad" in result.stdout
    summary = json.loads((out / "attributions.json").read_text())
    assert [row["file"] for row in summary["inputs"]] == ["a.png", "b.JPG", "more/<c>.png"]
    assert summary["methods"]["rectgrad"]["q"] == 80
    for row in summary["inputs"]:
        assert row["label"] == "cow" and row["target"] == 2
        scores = row["methods"]["integrated_gradients"]
        assert abs(scores["completeness_gap"]) < 0.1 * max(1, abs(scores["sum"]))
        assert row["methods"]["rectgrad"]["sum"] > 0
        assert (out / row["picture"]).read_bytes().startswith(b"\x89PNG")
    html = (out / "page.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == 3 and "&lt;c&gt;.png" in html
    assert sorted(file.name for file in out.iterdir()) == [
        "0001.png", "0002.png", "0003.png", "attributions.json", "page.html",
    ]  # fmt: skip
    again = call(*given, "--limit", 1)
    assert again.exit_code == 0 and not (out / "0002.png").exists()


def test_texts_come_as_a_page_and_numbers(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(
        files / "texts.txt", "-m", files / "texts-model", "-o", out, "--target", 1, "--score", "prob"
    )
    assert result.exit_code == 0, result.output
    (first, second) = json.loads((out / "attributions.json").read_text())["inputs"]
    words = first["methods"]["integrated_gradients"]["words"]
    assert [word for word, _ in words] == ["the", "film", "is", "great", "."]
    assert second["target"] == 1 and 0 < second["score"] < 1
    assert "<script" not in (out / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--method", "lime"], "there is no method 'lime'; there are gradient"),
        (["--method", "rectgrad", "--params", '{"rectgrad": {"p": 1}}'], "unexpected keyword argument 'p'"),
        (["--method", "rectgrad", "--params", '{"rectgrad": {"q": 200}}'], "q is 200"),
        (["--params", '{"rectgrad": {}}'], "settings of 'rectgrad', which is no --method"),
        (["--params", "[1]"], "no JSON object"),
        (["--target", "horse"], "no class of that name"),
        (["--target", "3"], "the model has 3 classes"),
        (["--out", "."], "holds no explanations"),
    ],
)
def test_bad_input_is_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("keep me")
    result = call(files / "photos", "-m", files / "images-model", "-o", "out", *change)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_pictures_and_files_that_are_none(files: Path, tmp_path: Path) -> None:
    options = ("-m", files / "images-model", "-o", tmp_path / "out")
    (tmp_path / "photos").mkdir()
    assert "holds no images" in call(tmp_path / "photos", *options).stderr
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG no more")
    assert "broken.png cannot be read as an image" in call(tmp_path / "photos", *options).stderr
    assert "there is no file or folder" in call(tmp_path / "nowhere", *options).stderr
    (tmp_path / "empty.txt").write_text("\n")
    texts = call(tmp_path / "empty.txt", "-m", files / "texts-model", "-o", tmp_path / "out")
    assert "the file holds no texts" in texts.stderr and not (tmp_path / "out").exists()
