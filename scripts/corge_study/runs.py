"""The runs: a generator from the common start, trained with one policy of exemplars."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from dress_study.data import Settings as StartSettings

from dialogkit.dialogues import Example
from dialogkit.exemplar import (
    ExemplarConfig,
    ExemplarPacker,
    ExemplarPolicy,
    LengthBudget,
    preset,
    train_exemplar,
)
from dialogkit.generation import TransformersLM
from dialogkit.retrieval import ResponseIndex, Retriever
from trainkit import FitConfig

__all__ = ["METHODS", "Settings", "budget_of", "policy_of", "train_run"]

logger = logging.getLogger(__name__)

METHODS = (
    "none",
    "retnref",
    "retnref-alpha",
    "rag",
    "corge",
    "corge-no-kne",
    "corge-no-jf",
    "corge-no-rs",
)


@dataclass(frozen=True)
class Settings:
    """The scale of the study; rate and steps were tried on test pairs that are not measured.

    Attributes:
        start: The common start, and how DailyDialog is cut.
        responses: Training responses that are retrieved.
        pairs: Pairs that a run learns from, each once.
        batch_size: Pairs in a step.
        rate: Peak learning rate; it falls linearly to nothing.
        k: Exemplars of a pair where a method has several.
        temperature: Of relevance; the retriever's vectors have length 1.
        tried: The first test pairs, on which rate and steps were tried, with the gold response as the only
            exemplar; nothing is measured on them.
        context: Most tokens of a context.
        exemplar: Most tokens of an exemplar.
        response: Most tokens of a response.
    """

    start: StartSettings = field(default_factory=StartSettings)
    responses: int = 4000
    pairs: int = 960
    batch_size: int = 16
    rate: float = 1e-3
    k: int = 3
    temperature: float = 0.05
    tried: int = 150
    context: int = 48
    exemplar: int = 24
    response: int = 32


def policy_of(method: str, settings: Settings) -> ExemplarPolicy:
    """The policy of a method at the study's scale."""
    policy = preset(method)
    return replace(policy, k=min(policy.k, settings.k), temperature=settings.temperature)


def budget_of(settings: Settings) -> LengthBudget:
    """Most tokens of each part."""
    return LengthBudget(settings.context, settings.exemplar, settings.response)


def train_run(
    method: str,
    seed: int,
    pairs: Sequence[Example],
    retriever: Retriever,
    index: ResponseIndex,
    settings: Settings,
    *,
    base: Path,
    folder: Path,
) -> ExemplarPacker:
    """Trains one method from the common start; the retriever stays as it is for all.

    Args:
        method: One of `METHODS`.
        seed: Draws the pairs and what the policy leaves to chance.
        pairs: Training pairs, of which the run takes its own.
        retriever: Finds and weighs exemplars.
        index: The responses that it finds.
        settings: The scale.
        base: The common start.
        folder: For checkpoints.
    """
    lm = TransformersLM.from_pretrained(base)
    own = Random(seed).sample(list(pairs), settings.pairs)
    trained = train_exemplar(
        lm,
        own,
        retriever,
        index,
        training=FitConfig(
            output_dir=folder / "fit",
            epochs=1,
            batch_size=settings.batch_size,
            learning_rate=settings.rate,
            warmup_steps=10,
            seed=seed,
            save_every=20,
            keep_checkpoints=1,
            resume=True,
            cpu=True,
        ),
        config=ExemplarConfig(
            policy=policy_of(method, settings),
            budget=budget_of(settings),
            train_retriever=False,
            max_turns=settings.start.turns,
        ),
    )
    logger.info("%s, seed %d: %s", method, seed, trained.result.history[-1])
    return trained.packer
