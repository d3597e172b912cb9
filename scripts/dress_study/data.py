"""DailyDialog as context-response pairs: what each run learns from, and what all are tested on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from dialogkit.dialogues import Example
from trainkit.datafiles import data_file, read_jsonl

__all__ = ["Material", "Settings", "load_material"]


@dataclass(frozen=True)
class Settings:
    """The scale of the study, chosen beforehand.

    Attributes:
        turns: Turns of a context.
        base_pairs: Pairs that the common start is trained on.
        base_steps: Its optimizer steps.
        base_rate: Its peak learning rate; it falls linearly to nothing.
        cluster_responses: Training responses that clusters are fitted on.
        pairs: Pairs that a run learns from, each once.
        batch_size: Pairs in a step.
        rate: Learning rate of the runs, constant after ten steps.
        max_grad_norm: As in the released runs.
        mined: Contexts that are answered at the start of DRESS, one for ten pairs (released runs: one for
            fifteen, each epoch).
        max_context_tokens: Of the language model.
        max_response_tokens: Of the language model; also the longest reply.
        test: Test contexts, each from another dialogue.
    """

    turns: int = 2
    base_pairs: int = 4800
    base_steps: int = 300
    base_rate: float = 1e-3
    cluster_responses: int = 6000
    pairs: int = 640
    batch_size: int = 16
    rate: float = 5e-4
    max_grad_norm: float = 0.1
    mined: int = 64
    max_context_tokens: int = 48
    max_response_tokens: int = 32
    test: int = 400


@dataclass(frozen=True)
class Material:
    """The pairs of the study.

    Attributes:
        train: All training pairs in random order, without dialogues that stand in another part word for word.
        test: Test pairs, each from another dialogue.
    """

    train: list[Example]
    test: list[Example]


def load_material(settings: Settings) -> Material:
    """Reads DailyDialog."""
    parts: dict[str, list[tuple[str, ...]]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz")):
        parts[row["split"]].append(tuple(turn["text"].strip() for turn in row["turns"]))
    held_out = {*parts["validation"], *parts["test"]}
    kept = [turns for turns in parts["train"] if turns not in held_out]
    train = [pair for turns in kept for pair in _pairs(turns, settings.turns)]
    Random(0).shuffle(train)
    return Material(train, _one_of_each(parts["test"], settings.test, settings.turns))


def _pairs(turns: tuple[str, ...], length: int) -> list[Example]:
    return [
        Example(turns[max(0, i - length) : i], turns[i])
        for i in range(1, len(turns))
        if turns[i] and turns[i - 1]
    ]


def _one_of_each(dialogues: Iterable[tuple[str, ...]], count: int, length: int) -> list[Example]:
    rng = Random(1)
    choices: list[Any] = [pairs for turns in dialogues if (pairs := _pairs(turns, length))]
    rng.shuffle(choices)
    return [rng.choice(pairs) for pairs in choices[:count]]
