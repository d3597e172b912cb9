"""From scored responses to a chatbot: train the student, encode its responses, index them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.dialogues import Example
from dialogkit.retrieval import (
    IndexConfig,
    ResponseIndex,
    Retriever,
    SentenceTransformerRetriever,
    load_retriever,
    save_biencoder,
)
from trainkit import FitConfig, FitResult, fit
from trainkit.cards import DataUse, Metric

from .chatbot import Provenance, RetrievalChatbot, RetrievalConfig
from .data import ScoredContext, response_set
from .evaluation import context_text, evaluate_hits
from .training import G2RConfig, G2RMethod

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Distilled", "distil"]


@dataclass(frozen=True)
class Distilled:
    """A trained student.

    Attributes:
        chatbot: Retrieves from the response set with the student.
        result: Steps, history and best evaluation of the training.
    """

    chatbot: RetrievalChatbot
    result: FitResult


def distil(
    student: SentenceTransformer,
    examples: Sequence[ScoredContext],
    folder: str | Path,
    *,
    config: G2RConfig | None = None,
    training: FitConfig,
    responses: Sequence[str] | None = None,
    valid: Sequence[Example] = (),
    index: IndexConfig | None = None,
    name: str = "Bot",
    data: Sequence[DataUse] = (),
    licence: str = "not stated",
) -> Distilled:
    """Trains a student, builds the index of its responses anew, and saves the chatbot.

    Under ``accelerate launch`` all processes train; the first one encodes, saves, and the others wait.

    Args:
        student: A bi-encoder, such as :func:`~dialogkit.retrieval.biencoder_from` returns; trained in place.
        examples: Contexts with candidates and the teacher's scores.
        folder: Where the chatbot goes.
        config: The loss and the batches.
        training: The run. With ``valid`` it is evaluated by ``hits@1/10`` and, where there are enough
            examples, ``hits@1/100``, which ``metric_for_best`` may name.
        responses: What to draw negatives and to retrieve from; by default every candidate of the examples.
        valid: Human dialogues for the evaluation.
        index: How responses are searched.
        name: The chatbot's display name.
        data: The data sets behind the examples, for the model card.
        licence: Licence of the chatbot, for the model card.

    Raises:
        ValueError: There are no examples, or fewer than ten in ``valid``.
    """
    config = config or G2RConfig()
    if not examples:
        raise ValueError("examples is empty: there is nothing to learn from")
    if valid and len(valid) < 10:
        raise ValueError(f"valid must hold at least 10 examples, got {len(valid)}")
    texts = list(responses) if responses is not None else response_set(examples)

    def hits(retriever: Retriever) -> dict[str, float]:
        sizes = [k for k in (10, 100) if k <= len(valid)]
        return evaluate_hits(retriever, valid, candidates=sizes, max_turns=config.max_turns)

    def evaluate(model: Any) -> Mapping[str, float]:
        return hits(SentenceTransformerRetriever(model))

    from accelerate import PartialState

    tokenizer: Any = student.tokenizer
    result = fit(
        student,
        G2RMethod(tokenizer, texts, config),
        examples,
        config=training,
        evaluate=evaluate if valid else None,
    )
    student.eval()
    place = PartialState()
    if place.is_main_process:
        with tempfile.TemporaryDirectory() as parent:
            weights = Path(parent) / "student"
            save_biencoder(student, weights)
            retriever = load_retriever(weights)
            contexts = [context_text(example.context, config.max_turns) for example in examples[:1000]]
            found = hits(retriever) if valid else {}
            chatbot = RetrievalChatbot(
                retriever,
                ResponseIndex.build(retriever, texts, config=index, contexts=contexts),
                config=RetrievalConfig(max_turns=config.max_turns),
                name=name,
                provenance=Provenance(
                    _method(config, result.steps),
                    tuple(data),
                    tuple(
                        Metric(key, value, "validation examples", n=len(valid))
                        for key, value in found.items()
                    ),
                    training.seed,
                    licence,
                ),
            )
            chatbot.save_pretrained(folder)
    place.wait_for_everyone()
    return Distilled(RetrievalChatbot.from_pretrained(folder), result)


def _method(config: G2RConfig, steps: int) -> str:
    return (
        "G2R (Kim et al., Findings of EMNLP 2021, arXiv 2108.12582), "
        f"alpha {config.alpha:g}, teacher temperature {config.teacher_temperature:g}, "
        f"{config.negatives} random negatives, {steps:,} steps"
    )
