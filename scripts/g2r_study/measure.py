"""What is measured of a retriever, of its replies, and of the teacher's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from dialogkit.chat import Latency, Reply, measure_latency
from dialogkit.dialogues import USER, Example, Turn
from dialogkit.diversity import distinct_n, mean_length
from dialogkit.evaluation.overlap import ngram_f1, split_words
from dialogkit.g2r import RetrievalChatbot, evaluate_hits
from dialogkit.g2r.evaluation import context_text, draw_distractors, hits_at_1
from dialogkit.g2r.scoring import score_responses
from dialogkit.generation import GenerationConfig, TransformersLM

from .data import CONTEXT_TURNS, RatedContext
from .models import PROMPT, encoder_path

__all__ = [
    "Critics",
    "TeacherBot",
    "figures_of",
    "histories",
    "hits",
    "measure_latency",
    "rated_hits",
    "retriever_hits",
    "teacher_hits",
]

Scorer = Callable[[Sequence[Sequence[str]], Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class Critics:
    """Who says how good a reply is.

    Attributes:
        judge: A cross-encoder, taught on contexts that nothing else uses.
        teacher: The teacher's likelihood.
        references: Good replies of people to each context, as many to each.
    """

    judge: Scorer
    teacher: TransformersLM
    references: Sequence[Sequence[str]]


class TeacherBot:
    """The teacher as a chatbot: one sampled reply.

    Args:
        model: The teacher.
        generation: How it samples.
    """

    name = "Teacher"

    def __init__(self, model: TransformersLM, generation: GenerationConfig) -> None:
        self.model = model
        self.generation = replace(generation, num_candidates=1, stop=PROMPT.stop)

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answers the last turn."""
        return self.reply_batch([history], seed=seed)[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answers several conversations at once."""
        prompts = [PROMPT.build([turn.text for turn in turns]) for turns in histories]  # type: ignore[union-attr]
        drawn = self.model.generate(prompts, config=self.generation, seed=seed)
        return [Reply(candidates[0].text.strip()) for candidates in drawn]

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None):
        """Yields the reply in one piece."""
        yield self.reply(history, seed=seed).text


def histories(contexts: Sequence[Sequence[str]]) -> list[list[Turn]]:
    """Contexts as conversations whose last turn is the user's."""
    return [
        [Turn(USER if (len(context) - i) % 2 else "Bot", turn) for i, turn in enumerate(context)]
        for context in contexts
    ]


def hits(scores: NDArray[np.float64], good: int) -> float:
    """Share of rows of ``[n, candidates]`` whose best is one of the first ``good``; a tie is none."""
    return float((scores[:, :good].max(axis=1) > scores[:, good:].max(axis=1)).mean())


def rated_hits(rated: Sequence[RatedContext], score: Scorer) -> dict[str, float]:
    """How often the best of a context's rated replies is a good one, by what the other five are."""
    replies = [reply for one in rated for reply in (*one.good, *one.adversarial, *one.random)]
    contexts = [one.context for one in rated for _ in range(15)]
    scores = np.asarray(score(contexts, replies)).reshape(len(rated), 15)
    return {
        "hits@1 adversarial": hits(scores[:, :10], 5),
        "hits@1 random": hits(scores[:, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]], 5),
    }


def retriever_hits(
    bot: RetrievalChatbot, test: Sequence[Example], rated: Sequence[RatedContext]
) -> dict[str, float]:
    """Hits of a student on human responses and on rated replies."""

    def score(contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> NDArray[np.float64]:
        texts = [context_text(context, CONTEXT_TURNS) for context in contexts]
        asked = list(dict.fromkeys(texts))
        queries = dict(zip(asked, bot.retriever.encode_context(asked), strict=True))
        answers = bot.retriever.encode_response(list(replies))
        return np.einsum("nd,nd->n", np.stack([queries[text] for text in texts]), answers)

    return {**evaluate_hits(bot.retriever, test, max_turns=CONTEXT_TURNS), **rated_hits(rated, score)}


def likelihood(
    teacher: TransformersLM, contexts: Sequence[Sequence[str]], replies: Sequence[str]
) -> NDArray[np.float64]:
    """LL per token of replies."""
    return np.array([s.value("ll") for s in score_responses(teacher, contexts, replies)])


def teacher_hits(
    teacher: TransformersLM, test: Sequence[Example], rated: Sequence[RatedContext]
) -> dict[str, float]:
    """The same hits for the teacher, which ranks by LL; with the same distractors, but 10 candidates only."""
    others = draw_distractors(len(test), 99)[:, :9]
    rows = [[i, *row] for i, row in enumerate(others.tolist())]
    scores = likelihood(
        teacher,
        [test[i].context for i, row in enumerate(rows) for _ in row],
        [test[j].response for row in rows for j in row],
    ).reshape(len(rows), 10)
    same = np.array([[test[j].response == test[i].response for j in row] for i, row in enumerate(rows)])
    scores[:, 1:][same[:, 1:]] = -np.inf
    return {
        "hits@1/10": hits_at_1(scores[:, 0], scores[:, 1:]),  # type: ignore[arg-type]
        **rated_hits(rated, lambda contexts, replies: likelihood(teacher, contexts, replies)),
    }


def figures_of(
    contexts: Sequence[Sequence[str]], replies: Sequence[str], critics: Critics
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """The figures of some replies, and for each reply what the first three are means of."""
    words = split_words([*replies, *(text for texts in critics.references for text in texts)])
    rest = iter(words[len(replies) :])
    known = [[next(rest) for _ in texts] for texts in critics.references]
    opinions = {
        "similarity": similarity(replies, critics.references),
        "F1": np.array([ngram_f1(own, others, 1) for own, others in zip(words, known, strict=False)]),
        "judge": critics.judge(contexts, replies),
    }
    figures = {name: float(values.mean()) for name, values in opinions.items()}
    figures["teacher LL"] = float(likelihood(critics.teacher, contexts, replies).mean())
    figures["length"] = mean_length(replies)
    for n in (2, 3):
        figures[f"Dist-{n} (n-grams)"] = distinct_n(replies, n)
        figures[f"Dist-{n} (tokens)"] = distinct_n(replies, n, denominator="tokens")
    return figures, opinions


def similarity(replies: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Cosine of each reply and the nearest of its references, by MiniLM as it comes."""
    own = unit_vectors(tuple(replies))
    others = unit_vectors(tuple(text for texts in references for text in texts))
    cosines = np.einsum("nd,nrd->nr", own, others.reshape(len(replies), -1, own.shape[1]))
    return np.asarray(cosines.max(axis=1), dtype=np.float64)


@lru_cache(maxsize=2)
def unit_vectors(texts: tuple[str, ...]) -> NDArray[np.float32]:
    """Embeddings by MiniLM, of length 1; the references come again with every row."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(encoder_path()), device="cpu")
    return np.asarray(encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))


def random_replies(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Replies drawn from a response set without regard to the context."""
    return Random(seed).choices(list(texts), k=count)


def milliseconds(latency: Latency) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50 ms": 1e3 * latency.p50, "p95 ms": 1e3 * latency.p95}
