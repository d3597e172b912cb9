"""How much a generator depends on its exemplar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dialogkit.dialogues import Example, Turn, single_line
from dialogkit.generation.forward import Forward
from dialogkit.retrieval import ResponseIndex

from .chatbot import ExemplarChatbot
from .copying import exemplar_bleu
from .packing import ExemplarPacker
from .selection import NO_EXEMPLAR, ContextEncoder, context_query, other_response

__all__ = [
    "SOURCES",
    "ReplyFigures",
    "Source",
    "exemplar_perplexity",
    "exemplars_from",
    "measure_replies",
    "perplexities",
]

Source = Literal["none", "context", "gold", "random"]

SOURCES: tuple[Source, ...] = ("none", "context", "gold", "random")
"""Where an exemplar may come from."""


def exemplars_from(
    source: Source,
    examples: Sequence[Example],
    retriever: ContextEncoder | None = None,
    index: ResponseIndex | None = None,
    *,
    seed: int = 0,
    max_turns: int = 20,
) -> list[str | None]:
    """One exemplar for each of some examples, to measure a generator with.

    Args:
        source: ``"none"``; ``"context"``: the best response for the context; ``"gold"``: the gold response
            itself; ``"random"``: any response. Where the gold response stands in the index, it counts as an
            exemplar for ``"gold"`` alone.
        examples: The examples.
        retriever: Encodes contexts, for ``"context"``.
        index: The response set, for ``"context"`` and ``"random"``.
        seed: Of ``"random"``.
        max_turns: Turns of a context that are read.

    Returns:
        Exemplars; None where there is none.

    Raises:
        ValueError: The source is unknown, or needs what is not given.
    """
    golds = [single_line(example.response) for example in examples]
    if source == "none":
        return [None] * len(examples)
    if source == "gold":
        return list(golds)
    if source not in ("context", "random"):
        raise ValueError(f"source must be 'none', 'context', 'gold' or 'random', got {source!r}")
    if index is None or (source == "context" and retriever is None):
        raise ValueError(f"source {source!r} needs an index and, for 'context', a retriever")
    if source == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = [other_response(index.responses, gold, generator) for gold in golds]
        return [None if number == NO_EXEMPLAR else index.responses[number] for number in drawn]
    assert retriever is not None
    queries = [context_query(example.context, max_turns) for example in examples]
    found: list[str | None] = []
    for start in range(0, len(queries), 256):
        part = queries[start : start + 256]
        hits = index.search(np.asarray(retriever.encode_context(part), dtype=np.float32), 2)
        for row, query in enumerate(part):
            texts = [
                text
                for text, valid in zip(hits.texts[row], hits.valid[row], strict=True)
                if valid and query and text != golds[start + row]
            ]
            found.append(texts[0] if texts else None)
    return found


def exemplar_perplexity(
    packer: ExemplarPacker, examples: Sequence[Example], exemplars: Sequence[str | None]
) -> float:
    """Perplexity of the gold responses, each read with one given exemplar.

    ``exp(sum of NLL / number of tokens)`` over the tokens of the responses, what ends them not counted. The
    released code averages over exemplars that were retrieved *with the gold response*: never compare the two.

    Args:
        packer: Lays out the rows; its generator is measured as it is.
        examples: The examples, at least one.
        exemplars: One for each; None is none. See :func:`exemplars_from`.

    Raises:
        ValueError: There are no examples, or not as many exemplars.
    """
    if not examples or len(exemplars) != len(examples):
        raise ValueError(
            f"exemplars must be as many as examples, at least one: {len(exemplars)} and {len(examples)}"
        )
    rows = [
        packer.encode(example.context, exemplar, example.response, end=False)
        for example, exemplar in zip(examples, exemplars, strict=True)
    ]
    pairs = [(list(row.prompt), list(row.answer)) for row in rows if row.answer]
    pairs.sort(key=lambda pair: sum(map(len, pair)))
    forward, size = Forward(packer.lm.model, packer.lm.tokenizer), min(16, packer.lm.batch_size)
    total = 0.0
    for start in range(0, len(pairs), size):
        total += sum(forward.score(pairs[start : start + size]))
    return math.exp(-total / sum(len(answer) for _, answer in pairs))


def perplexities(
    packer: ExemplarPacker,
    examples: Sequence[Example],
    retriever: ContextEncoder,
    index: ResponseIndex,
    *,
    sources: Sequence[Source] = SOURCES,
    seed: int = 0,
    max_turns: int = 20,
) -> dict[Source, float]:
    """Perplexity by where the exemplar comes from, see :func:`exemplars_from`.

    A generator that ignores its exemplar has nearly the same with ``"gold"`` and ``"context"``; one that
    copies has a ``"gold"`` near 1 and a high ``"context"``.

    Args:
        packer: Lays out rows for the generator.
        examples: The examples, at least one.
        retriever: Encodes contexts.
        index: The response set.
        sources: Which ones.
        seed: Of ``"random"``.
        max_turns: Turns of a context that the retriever reads.
    """
    found: dict[Source, float] = {}
    for source in sources:
        given = exemplars_from(source, examples, retriever, index, seed=seed, max_turns=max_turns)
        found[source] = exemplar_perplexity(packer, examples, given)
    return found


@dataclass(frozen=True)
class ReplyFigures:
    """What :func:`measure_replies` returns.

    Attributes:
        replies: The replies.
        exemplars: What each was written with; None where there was none.
        bleu: Mean exemplar BLEU-2 over replies with an exemplar, see :func:`exemplar_bleu`.
        copied: Mean share of a reply's words that stand in its exemplar in runs of four.
        relevance: Mean inner product of context and reply by the chatbot's own retriever. It favours
            chatbots that copy what that retriever found.
    """

    replies: tuple[str, ...]
    exemplars: tuple[str | None, ...]
    bleu: float
    copied: float
    relevance: float


def measure_replies(
    bot: ExemplarChatbot, examples: Sequence[Example], *, seed: int = 0, batch_size: int = 16
) -> ReplyFigures:
    """Lets a chatbot answer the contexts of some examples, and measures how it uses its exemplars.

    Args:
        bot: Who answers.
        examples: At least one, each with a turn that is not blank.
        seed: Of the replies.
        batch_size: Contexts answered together.

    Raises:
        ValueError: There are no examples, or a context is blank.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to measure")
    answers = []
    for start in range(0, len(examples), batch_size):
        histories = [_history(example) for example in examples[start : start + batch_size]]
        answers += bot.reply_batch(histories, seed=seed)
    replies = [answer.text for answer in answers]
    exemplars = [next(iter(answer.evidence["exemplars"]), None) for answer in answers]
    pairs = [(reply, text) for reply, text in zip(replies, exemplars, strict=True) if text is not None]
    scores = exemplar_bleu([reply for reply, _ in pairs], [text for _, text in pairs])
    queries = [context_query(example.context, bot.config.max_turns) for example in examples]
    asked, said = bot.retriever.encode_context(queries), bot.retriever.encode_response(replies)
    return ReplyFigures(
        tuple(replies),
        tuple(exemplars),
        float(np.mean(scores)) if scores else 0.0,
        float(np.mean([answer.evidence["copied"] for answer in answers])),
        float((asked * said).sum(axis=1).mean()),
    )


def _history(example: Example) -> list[Turn]:
    """The context as turns of two speakers, the last of them the user's."""
    turns = [turn for turn in example.context if turn.strip()]
    return [Turn("User" if (len(turns) - i) % 2 else "Bot", turn) for i, turn in enumerate(turns)]
