"""The common start, and the runs that go on from it with one method each."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from dialogkit import embedded
from dialogkit.dialogues import Example
from dialogkit.diversity.baselines import (
    LikelihoodObjective,
    NegativeTraining,
    NegativeTrainingConfig,
    edf_filter,
)
from dialogkit.diversity.clusters import SemanticClusters
from dialogkit.diversity.dress import DressConfig, human_perplexity, train_dress
from dialogkit.diversity.mining import MiningConfig
from dialogkit.diversity.pairs import PairEncoder
from dialogkit.generation import GenerationConfig, TransformersLM
from trainkit import FitConfig, atomic_directory, fit, write_json

from .data import Material, Settings

__all__ = ["METHODS", "answers", "train_base", "train_run"]

logger = logging.getLogger(__name__)

METHODS = ("vanilla", "edf", "negative training", "unlikelihood", "dress-nt", "dress")


def train_base(material: Material, settings: Settings, folder: Path) -> None:
    """Fine-tunes the embedded language model on DailyDialog by likelihood: where every run starts."""
    lm = TransformersLM.from_pretrained(embedded.lm_path())
    config = FitConfig(
        output_dir=folder.with_name("base-fit"),
        max_steps=settings.base_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.base_rate,
        warmup_steps=20,
        save_every=20,
        keep_checkpoints=1,
        resume=True,
        cpu=True,
    )
    fit(
        lm.model,
        LikelihoodObjective(_encoder(lm, settings)),
        material.train[: settings.base_pairs],
        config=config,
    )
    with atomic_directory(folder) as written:
        lm.model.save_pretrained(written)
        lm.tokenizer.save_pretrained(written)
    shutil.rmtree(folder.with_name("base-fit"))


def train_run(
    method: str,
    seed: int,
    material: Material,
    settings: Settings,
    *,
    base: Path,
    clusters: SemanticClusters,
    folder: Path,
) -> None:
    """Trains one method from the common start and writes its replies to the test contexts."""
    lm = TransformersLM.from_pretrained(base)
    pairs = _training_pairs(method, seed, material, settings)
    checkpoints = folder / "fit"
    config = FitConfig(
        output_dir=checkpoints,
        epochs=1,
        batch_size=settings.batch_size,
        learning_rate=settings.rate,
        schedule="constant",
        warmup_steps=10,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        save_every=20,
        keep_checkpoints=1,
        resume=True,
        cpu=True,
    )
    objective: Any
    if method.startswith("dress"):
        own = DressConfig(
            negative="nll" if method == "dress" else None,
            mining=MiningConfig(contexts=settings.mined, generation=_greedy(settings)),
            max_context_tokens=settings.max_context_tokens,
            max_response_tokens=settings.max_response_tokens,
        )
        result = train_dress(lm, pairs, clusters, training=config, config=own)
    else:
        encoder = _encoder(lm, settings)
        if method == "negative training":
            own_config = NegativeTrainingConfig(generation=_greedy(settings))
            objective = NegativeTraining(lm, encoder, own_config)
        else:
            objective = LikelihoodObjective(encoder, 1.0 if method == "unlikelihood" else 0.0)
        result = fit(lm.model, objective, pairs, config=config)
    write_json(
        folder / "run.json",
        {
            "method": method,
            "seed": seed,
            "steps": result.steps,
            "perplexity": human_perplexity(lm, material.test),
            "replies": answers(lm, material.test, settings),
        },
    )
    shutil.rmtree(checkpoints)
    logger.info("%s, seed %d: %d steps", method, seed, result.steps)


def answers(lm: TransformersLM, examples: Sequence[Example], settings: Settings) -> list[str]:
    """Greedy replies to contexts."""
    encoder = _encoder(lm, settings)
    config = GenerationConfig(
        do_sample=False,
        num_candidates=1,
        max_new_tokens=settings.max_response_tokens,
        stop=encoder.prompt.stop,
    )
    prompts = [encoder.prompt.build(example.context) for example in examples]
    return [found[0].text for found in lm.generate(prompts, config=config, seed=0)]


def _training_pairs(method: str, seed: int, material: Material, settings: Settings) -> list[Example]:
    """As many pairs for every method; EDF draws on in the same order where it drops one."""
    rows = list(range(settings.base_pairs, len(material.train)))
    if method == "edf":
        # Entropies are those of the whole training part.
        kept = set(edf_filter(material.train))
        rows = [row for row in rows if row in kept]
        logger.info("edf keeps %d of %d training pairs", len(kept), len(material.train))
    order = list(range(len(material.train)))
    Random(seed).shuffle(order)
    wanted = set(rows)
    return [material.train[row] for row in order if row in wanted][: settings.pairs]


def _encoder(lm: TransformersLM, settings: Settings) -> PairEncoder:
    return PairEncoder(
        lm,
        max_context_tokens=settings.max_context_tokens,
        max_response_tokens=settings.max_response_tokens,
    )


def _greedy(settings: Settings) -> GenerationConfig:
    return GenerationConfig(do_sample=False, num_candidates=1, max_new_tokens=settings.max_response_tokens)
