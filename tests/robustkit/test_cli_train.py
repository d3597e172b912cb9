"""``robustkit train``, and ``robustkit evaluate --threat`` on what it saved, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from robustkit.classifiers import ImageClassifier, TextClassifier
from robustkit.cli import app
from robustkit.cli_train import _KINDS
from robustkit.training import RobustMethod
from tests.robustkit.tiny import tiny_classifier, tiny_image_classifier, toy_sentiment


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("train")
    for name, brightness in (("day", 200), ("night", 40)):
        (folder / "skies" / name).mkdir(parents=True)
        for number in range(5):
            image = Image.new("RGB", (8, 8), (brightness + number, brightness, 10))
            image.save(folder / "skies" / name / f"{number}.png")
    pictures = tiny_image_classifier(("day", "night"))
    pictures.model.save_pretrained(folder / "vit")
    assert pictures.processor is not None
    pictures.processor.save_pretrained(folder / "vit")
    model, tokenizer = tiny_classifier()
    model.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    rows = [{"text": text, "label": f"class {label}"} for text, label in zip(*toy_sentiment(12), strict=True)]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stars = [row | {"label": ("bad", "fair", "good")[number % 3]} for number, row in enumerate(rows)]
    (folder / "stars.jsonl").write_text("\n".join(map(json.dumps, stars)))
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def images(files: Path, out: Path, *more: object) -> Result:
    common = ("--model", files / "vit", "--data", files / "skies", "--out", out, "--cpu", "--batch-size", 4)
    return call("train", *common, *more)


def texts(files: Path, out: Path, *more: object) -> Result:
    common = ("--model", files / "bert", "--data", files / "reviews.jsonl", "--out", out, "--cpu")
    return call("train", *common, "--batch-size", 6, *more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


def test_images_are_trained_saved_and_evaluated_with_what_it_cost(files: Path, tmp_path: Path) -> None:
    done = images(
        files, tmp_path / "run", "--method", "sihg", "--threat", "linf:8/255", "--epochs", 2, "--augment",
        "--average", 0.5, "--watch", "--params", '{"alpha": 0.5}', "--optimizer", "sgd",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "sihg trained for 6 steps at 5.00 units of cost an example" in done.stdout
    saved = tmp_path / "run" / "model"
    record = json.loads((saved / "training.json").read_text())
    assert record["passes"] == {"forwards": 40, "input_backwards": 20, "full_backwards": 20}
    assert ImageClassifier.from_pretrained(saved).labels == ("day", "night")
    before, after = weights(files / "vit"), weights(saved)
    assert any((before[name] - after[name]).abs().max() > 1e-6 for name in before)
    shown = call(
        "evaluate", "--model", saved, "--data", files / "skies", "--out", tmp_path / "report", "--threat",
        "linf:8/255", "--pgd-steps", 2, "--queries", 5, "--sample", 4, "--mixed-precision", "bf16",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "The search ran in bf16" in json.dumps(told["sections"])
    assert told["facts"]["images"] == 4
    assert told["facts"]["training"].startswith("sihg within linf:8/255, 6 steps of 4 examples, 5.0 units")
    assert [section["key"] for section in told["sections"]] == ["gradient-attacks"]


def test_texts_are_trained_with_a_new_head_and_evaluated(files: Path, tmp_path: Path) -> None:
    done = call(
        "train", "--model", files / "bert", "--data", files / "stars.jsonl", "--out", tmp_path / "run",
        "--cpu", "--method", "freelb", "--threat", "sentence:0.2", "--epochs", 1, "--batch-size", 6,
        "--new-head", "--max-length", 8,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    saved = tmp_path / "run" / "model"
    assert TextClassifier.from_pretrained(saved).labels == ("bad", "fair", "good")
    shown = call(
        "evaluate", "--model", saved, "--data", files / "stars.jsonl", "--out", tmp_path / "report",
        "--threat", "token:0.1", "--pgd-steps", 2, "--sample", 5,
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [section["key"] for section in told["sections"]] == ["accuracy", "gradient-attacks"]
    assert "freelb within sentence:0.2" in told["facts"]["training"]


def test_an_interrupted_run_goes_on_to_the_same_model(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--method", "sihg", "--threat", "token:0.2", "--epochs", 3)
    whole = texts(files, tmp_path / "whole", *asked)
    assert whole.exit_code == 0, whole.output
    from robustkit.training import OnTexts

    step, taken = OnTexts.step, 0

    def killed(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 6:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(OnTexts, "step", killed)
    assert texts(files, tmp_path / "cut", *asked).exit_code == 130
    assert not (tmp_path / "cut" / "model").exists()
    resumed = texts(files, tmp_path / "cut", *asked)
    assert resumed.exit_code == 0, resumed.output
    record = json.loads((tmp_path / "cut" / "model" / "training.json").read_text())
    assert record["resumed_from"] == 4
    first, second = (weights(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = texts(files, tmp_path / "cut", *asked, "--learning-rate", 1e-3)
    assert "holds a run with learning_rate 5e-05, not 0.001" in refused(other)


def test_the_ball_grows_for_a_share_of_the_steps(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkit.training import FGSMRS

    threat_at, radii = FGSMRS.threat_at, list[Any]()

    def noted(self: Any, step: int) -> Any:
        radii.append(threat_at(self, step).epsilon)  # type: ignore[attr-defined]
        return threat_at(self, step)

    monkeypatch.setattr(FGSMRS, "threat_at", noted)
    asked = ("--method", "fgsm-rs", "--threat", "linf:0.3", "--epochs", 2)
    assert images(files, tmp_path / "run", *asked, "--grow", 0.5).exit_code == 0
    assert radii == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3])
    record = tmp_path / "run" / "training.json"
    told = json.loads(record.read_text())
    assert told.pop("grow") == 0.5
    assert "grow 0.5, not 0.0" in refused(images(files, tmp_path / "run", *asked))
    # A run that was begun before there was such a thing goes on.
    record.write_text(json.dumps(told))
    assert images(files, tmp_path / "run", *asked).exit_code == 0


def test_every_method_has_a_name() -> None:
    from robustkit import training
    from robustkit.training import SIHGFull, SIHGTable

    kinds = {value for name in training.__all__ if isinstance(value := getattr(training, name), type)}
    methods = {kind for kind in kinds if issubclass(kind, RobustMethod)} - {RobustMethod, SIHGFull, SIHGTable}
    assert {getattr(training, name) for name in _KINDS.values()} == methods


@pytest.mark.parametrize("method", ["natural", "dat", "yopo"])
def test_methods_with_settings_of_their_own_run(method: str, files: Path, tmp_path: Path) -> None:
    threat = () if method == "natural" else ("--threat", "l2:0.2")
    params = {"natural": "{}", "dat": '{"steps": 2}', "yopo": '{"rounds": 2, "inner": 1}'}[method]
    done = images(files, tmp_path / "run", "--method", method, *threat, "--epochs", 1, "--params", params)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_what_cannot_be_used_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    linf = ("--threat", "linf:8/255")
    for result, message in (
        (images(files, tmp_path / "a"), "needs a --threat"),
        (images(files, tmp_path / "a", "--threat", "token:0.2"), "for images it is linf, l2 or l1"),
        (texts(files, tmp_path / "a", *linf), "for texts it is token or sentence"),
        (images(files, tmp_path / "a", "--method", "natural", *linf), "natural training has no --threat"),
        (images(files, tmp_path / "a", "--method", "natural", "--grow", 0.1), "one that could --grow"),
        (images(files, tmp_path / "b", *linf, "--params", "[]"), "--params is a JSON list"),
        (images(files, tmp_path / "c", *linf, "--params", '{"beta": 1}'), "--params of sihg: "),
        (images(files, tmp_path / "taken", *linf), "exists and holds no training run"),
        (texts(files, tmp_path / "a", "--threat", "token:0.2", "--watch"), "are for images"),
        (
            texts(files, tmp_path / "d", "--method", "free", "--threat", "token:0.2"),
            "FreeTraining needs inputs of one shape",
        ),
    ):
        assert message in refused(result)
    assert not (tmp_path / "c").exists()
    common = ("evaluate", "--model", files / "vit", "--data", files / "skies", "--out", tmp_path / "report")
    assert "holds images; give --threat" in refused(call(*common))
    assert "are for texts" in refused(call(*common, *linf, "--attacks", "pwws"))
    common = (
        "evaluate",
        "--model",
        files / "bert",
        "--data",
        files / "reviews.jsonl",
        "--out",
        tmp_path / "x",
    )
    assert "texts need token:RADIUS" in refused(call(*common, *linf))
    assert "nothing to evaluate" in refused(call(*common))
