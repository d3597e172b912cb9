"""The students of the study: what each learns from, and its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dialogkit.dialogues import Example
from dialogkit.g2r import (
    G2RConfig,
    RetrievalChatbot,
    RetrievalConfig,
    ScoredContext,
    distil,
    group_by_context,
    read_scored,
)
from dialogkit.g2r.data import ORIGINAL
from dialogkit.retrieval import ResponseIndex, biencoder_from, load_retriever, save_biencoder
from trainkit import FitConfig, atomic_directory

from .data import CONTEXT_TURNS, RatedContext
from .models import encoder_path

__all__ = [
    "CONTROLS",
    "STUDENTS",
    "Student",
    "StudentSettings",
    "examples_of",
    "scratch_encoder",
    "train",
    "untrained",
]


@dataclass(frozen=True)
class Student:
    """One row of the table.

    Attributes:
        name: What tables call it.
        score: Which of the teacher's scores it learns from.
        alpha: Weight of the soft loss.
        generated: Whether the teacher's responses are candidates and retrievable.
        scratch: Random weights instead of MiniLM's.
        in_batch: Whether the other contexts' responses are negatives, too: the vanilla student is trained as
            bi-encoders usually are.
        people: So many human replies to each development context of DailyDialog++ are the candidates, in
            place of the teacher's: what a teacher as good as people would give. 0 for none.
    """

    name: str
    score: str = "ll"
    alpha: float = 0.0
    generated: bool = True
    scratch: bool = False
    in_batch: bool = False
    people: int = 0

    @property
    def folder(self) -> str:
        """A file name."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")


STUDENTS = (
    Student("vanilla", generated=False, in_batch=True),
    Student("G2R-D"),
    Student("G2R-DM (LL)", "ll", 0.1),
    Student("G2R-DM (MI)", "mi", 0.1),
    Student("vanilla, from scratch", generated=False, scratch=True, in_batch=True),
    Student("G2R-DM (LL), from scratch", "ll", 0.1, scratch=True),
)

CONTROLS = (
    Student("vanilla, random negatives only", generated=False),
    Student("one reply by people", people=1),
    Student("five replies by people", people=5),
)
"""What tells the teacher's part from that of the negatives and of more candidates."""


@dataclass(frozen=True)
class StudentSettings:
    """What all students share.

    Attributes:
        steps: Optimizer steps.
        batch_size: Contexts of a step.
        negatives: Random responses of a step.
        max_candidates: Candidates of a context in a step; a vanilla student has one.
        learning_rate: Peak of the linear schedule.
        max_context_tokens: Tokens of a context that are read.
        max_response_tokens: Tokens of a response that are read.
        chunk_size: Texts in a forward pass, alike in length; changes nothing but the time.
    """

    steps: int = 80
    batch_size: int = 16
    negatives: int = 48
    max_candidates: int = 3
    learning_rate: float = 1e-4
    max_context_tokens: int = 96
    max_response_tokens: int = 48
    chunk_size: int = 16


def examples_of(student: Student, scored: Path, rated: Sequence[RatedContext] = ()) -> list[ScoredContext]:
    """The contexts with the candidates and scores that a student learns from."""
    if student.people:
        return [by_people(one, student.people) for one in rated]
    examples = group_by_context(read_scored(scored), score=student.score)
    return examples if student.generated else [human(example) for example in examples]


def human(example: ScoredContext) -> ScoredContext:
    """The same context with the human response alone."""
    kept = [i for i, source in enumerate(example.sources) if source == ORIGINAL]
    responses, scores = ([column[i] for i in kept] for column in (example.responses, example.scores))
    return ScoredContext(example.context, tuple(responses), tuple(scores), (ORIGINAL,) * len(kept))


def by_people(one: RatedContext, count: int) -> ScoredContext:
    """A context with human replies alone; their scores are not read, as alpha is 0."""
    replies = tuple(dict.fromkeys(one.good))[:count]
    return ScoredContext(one.context, replies, (0.0,) * len(replies), (ORIGINAL,) * len(replies))


def scratch_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A folder with MiniLM's tokenizer and an encoder of its shape with random weights."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    if not folder.exists():
        torch.manual_seed(seed)
        with atomic_directory(folder) as partial:
            AutoModel.from_config(AutoConfig.from_pretrained(encoder_path())).save_pretrained(partial)
            AutoTokenizer.from_pretrained(encoder_path()).save_pretrained(partial)
    return folder


def train(
    student: Student,
    settings: StudentSettings,
    examples: Sequence[ScoredContext],
    valid: Sequence[Example],
    folder: Path,
    *,
    seed: int,
) -> None:
    """Trains a student and saves its chatbot; the last step counts, nothing is chosen by evaluations.

    Args:
        student: Which.
        settings: Length and size of the training.
        examples: What it learns from (see `examples_of`).
        valid: Human pairs, for the log.
        folder: Where the chatbot goes.
        seed: Of batches, negatives, dropout and, from scratch, weights.
    """
    source = (
        scratch_encoder(folder.parent / f"scratch-{seed}", seed=seed) if student.scratch else encoder_path()
    )
    distil(
        biencoder_from(source, normalize=True, max_context_tokens=settings.max_context_tokens),
        examples,
        folder,
        config=G2RConfig(
            alpha=student.alpha,
            negatives=settings.negatives,
            max_candidates=settings.max_candidates,
            in_batch_negatives=student.in_batch,
            max_turns=CONTEXT_TURNS,
            max_context_tokens=settings.max_context_tokens,
            max_response_tokens=settings.max_response_tokens,
            chunk_size=settings.chunk_size,
        ),
        training=FitConfig(
            output_dir=folder.with_name(folder.name + ".run"),
            max_steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_ratio=0.1,
            mixed_precision="bf16",
            seed=seed,
            save_every=50,
            keep_checkpoints=1,
            eval_every=settings.steps,
            restore_best=False,
            resume=True,
        ),
        valid=valid,
    )


def untrained(responses: Sequence[str], folder: Path) -> RetrievalChatbot:
    """MiniLM as it comes, with the human responses."""
    if not folder.exists():
        student = biencoder_from(encoder_path(), normalize=True)
        weights = folder.with_name(folder.name + ".encoder")
        save_biencoder(student, weights)
        retriever = load_retriever(weights)
        config = RetrievalConfig(max_turns=CONTEXT_TURNS)
        RetrievalChatbot(retriever, ResponseIndex.build(retriever, responses), config=config).save_pretrained(
            folder
        )
    return RetrievalChatbot.from_pretrained(folder)
