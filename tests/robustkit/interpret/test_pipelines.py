"""Maps beside a pipeline's answers, and at each evaluation of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.classifiers import ImageClassifier, TextClassifier
from robustkit.interpret import ExplainedPipeline, attribution_callback, explain
from tests.robustkit.tiny import tiny_classifier

TEXTS = ["the film is great .", "a boring plot and a bad , bad ending !"]


def test_texts_are_answered_and_explained() -> None:
    from transformers import pipeline

    model, tokenizer = tiny_classifier("bert")
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    answers, maps = ExplainedPipeline(plain, "gradient")(TEXTS)
    assert answers == plain(TEXTS)
    assert [maps.label(row) for row in range(2)] == [answer["label"] for answer in answers]
    wanted = explain(TextClassifier(model, tokenizer), TEXTS, "gradient")
    assert torch.equal(maps.values, wanted.values) and maps.word_scores() == wanted.word_scores()


def test_images_are_answered_and_explained() -> None:
    from PIL import Image
    from transformers import ViTImageProcessor, pipeline

    from .test_explaining import tiny

    model = tiny("vit")
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    plain = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    drawn = np.random.default_rng(0).integers(256, size=(2, 20, 24, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in drawn]
    answers, maps = ExplainedPipeline(plain, "gradient")(pictures)
    assert answers == plain(pictures)
    assert [maps.label(row) for row in range(2)] == [answer[0]["label"] for answer in answers]
    assert torch.equal(maps.values, explain(ImageClassifier(model, processor), pictures, "gradient").values)


def test_other_pipelines_and_single_inputs_are_refused() -> None:
    from transformers import pipeline

    model, tokenizer = tiny_classifier("bert")
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(TypeError, match="inputs is a str; expected a list"):
        ExplainedPipeline(plain)("a film")
    plain.task = "token-classification"
    with pytest.raises(ValueError, match="task is 'token-classification'"):
        ExplainedPipeline(plain)


def test_a_trainer_shows_maps_at_each_evaluation(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, tokenizer = tiny_classifier("bert")
    rows: Any = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, (1, 0), strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=1, eval_strategy="steps",
        eval_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        learning_rate=0.05,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
        callbacks=[attribution_callback(["<b> great </b>", TEXTS[0]], tmp_path / "maps", "gradient")],
    )  # fmt: skip
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    trainer.train()
    pages = sorted((tmp_path / "maps").iterdir())
    assert [page.name for page in pages] == ["step-000001.html", "step-000002.html"]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert "<b>" not in texts[0] and "great" in texts[0] and texts[0] != texts[1]
    # Training, evaluation and maps, then training again: the mode came back.
    assert modes[0] and not modes[1] and True in modes[modes.index(False) :]


def test_a_trainer_without_a_tokenizer_is_told_so(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    model, _ = tiny_classifier("bert")
    model.train()
    callback: Any = attribution_callback(TEXTS, tmp_path)
    with pytest.raises(ValueError, match="without a tokenizer or an image processor"):
        callback.on_evaluate(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl(), model=model)
    assert model.training and list(tmp_path.iterdir()) == []
