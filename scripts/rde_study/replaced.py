"""The readers of replaced words that the study trains, one for each data set."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.detection import ReplacedWordsSettings, edited_copies, train_replaced_words
from robustkit.detection.replaced_edits import Source
from trainkit import atomic_directory, derive_seed, write_json

from .combine import auc
from .data import StudyData
from .victims import encoder_path

__all__ = ["train_reader"]


def train_reader(
    data: StudyData,
    sources: Sequence[Source],
    spared: Collection[str],
    folder: Path,
    *,
    seed: int,
    encoder: str = "minilm",
    settings: ReplacedWordsSettings | None = None,
) -> dict[str, Any]:
    """Fine-tunes a reader and writes it to ``folder`` as a plain transformers folder, with ``figures.json``.

    Args:
        data: The data set; its training texts are learned from, its validation texts give the figures, and
            the reader takes as many tokens as its victims.
        sources: Where replacements come from.
        spared: Lower-case words that stay.
        folder: Where it goes; checkpoints lie beside it and are removed by hand.
        seed: Of the head's first weights, the edits, the order and dropout.
        encoder: As in `VictimSettings`.
        settings: Edits, batches and rates.

    Returns:
        The figures: AUC of clean against randomly edited validation texts, CPU seconds, settings.
    """
    settings = replace(settings or ReplacedWordsSettings(), max_length=data.max_length)
    started = time.process_time()
    reader = train_replaced_words(
        [text for text, _ in data.train],
        encoder_path(encoder),
        sources,
        spared=spared,
        settings=settings,
        output_dir=folder.with_name(folder.name + ".run"),
        seed=seed,
    ).reader
    clean = [text for text, _ in data.validation]
    changed = edited_copies(clean, sources, spared, seed=derive_seed("validation", seed))
    scores = reader.log_odds([*clean, *(new.text for new in changed)], truncate=True)
    figures: dict[str, Any] = {
        "data": data.name,
        "seed": seed,
        "validation_auc": auc(scores, np.arange(len(scores)) >= len(clean)),
        "cpu_seconds": time.process_time() - started,
        "settings": {"encoder": encoder, **asdict(settings)},
    }
    with atomic_directory(folder, replace=True) as partial:
        reader.save_pretrained(partial)
        write_json(partial / "figures.json", figures)
    return figures
