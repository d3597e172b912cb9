"""A chatbot that answers with the best response of an index."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dialogkit.chat import Reply
from dialogkit.dialogues import Turn, as_history, single_line
from dialogkit.generation.types import Candidate
from dialogkit.retrieval import ResponseIndex, Retriever
from dialogkit.retrieval.saving import Provenance, read_retriever, write_retriever
from trainkit.cards import ModelCard
from trainkit.hub import HubMixin, read_json, write_json

from .reranking import Reranker

__all__ = ["Provenance", "RetrievalChatbot", "RetrievalConfig"]


@dataclass(frozen=True)
class RetrievalConfig:
    """How a response is found.

    Attributes:
        candidates: Responses that are found, ranked again where there is a reranker, and shown as evidence.
        max_turns: Turns of the conversation that are read, the last ones; 20 in the released runs of G2R.
        avoid_repeats: Never answer with what was said in the conversation before, by either side (our choice:
            the released system has no such rule).
    """

    candidates: int = 10
    max_turns: int = 20
    avoid_repeats: bool = True

    def __post_init__(self) -> None:
        for name in ("candidates", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class RetrievalChatbot(HubMixin):
    """Answers with a response that somebody, or some model, wrote before.

    It can say nothing that is not in its index: no name or figure of the conversation, unless by chance.

    Args:
        retriever: Encodes the conversation; the one that the index was built with.
        index: The responses.
        config: How a response is found.
        reranker: Ranks the found responses again; it is not saved.
        name: Its display name.
        provenance: Where the encoder comes from, for the model card.

    Raises:
        StaleIndexError: The index belongs to another retriever.
    """

    def __init__(
        self,
        retriever: Retriever,
        index: ResponseIndex,
        *,
        config: RetrievalConfig | None = None,
        reranker: Reranker | None = None,
        name: str = "Bot",
        provenance: Provenance | None = None,
    ) -> None:
        index.check(retriever)
        if not single_line(name):
            raise ValueError(f"name must not be blank, got {name!r}")
        self.retriever = retriever
        self.index = index
        self.config = config or RetrievalConfig()
        self.reranker = reranker
        self.name = single_line(name)
        self.provenance = provenance

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answers the last turn with the best response.

        Args:
            history: Turns, oldest first, or the text of a single turn of the user.
            seed: Changes nothing: there is no chance in it.

        Returns:
            The reply. Its evidence holds ``"candidates"``, best first, each with ``"response"``, ``"id"``,
            ``"score"`` (inner product) and, with a reranker, ``"rank_score"``.

        Raises:
            ValueError: The history is empty or blank, or everything in the index was said already.
        """
        return self.reply_batch([history], seed=seed)[0]

    def stream(
        self, history: Sequence[Turn] | str, *, seed: int | None = None
    ) -> Generator[str, None, Reply]:
        """Yields the response in one piece, and returns the reply."""
        reply = self.reply(history, seed=seed)
        yield reply.text
        return reply

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answers several conversations with one encoding and one search; see :meth:`reply`."""
        if not histories:
            return []
        contexts = [self._context(history) for history in histories]
        begin = time.perf_counter()
        vectors = self.retriever.encode_context(["\n".join(context) for context in contexts])
        encoded = time.perf_counter()
        longest = max(len(context) for context in contexts) if self.config.avoid_repeats else 0
        found = self.index.search(vectors, min(self.config.candidates + longest, len(self.index)))
        searched = time.perf_counter()
        share = len(histories)
        timing = {"encode": (encoded - begin) / share, "search": (searched - encoded) / share}
        replies = []
        for row, context in enumerate(contexts):
            start = time.perf_counter()
            said = {turn.casefold() for turn in context} if self.config.avoid_repeats else set()
            rows: list[dict[str, Any]] = [
                {"response": text, "id": int(number), "score": float(score)}
                for text, number, score, valid in zip(
                    found.texts[row], found.ids[row], found.scores[row], found.valid[row], strict=True
                )
                if valid and text.casefold() not in said
            ][: self.config.candidates]
            if not rows:
                raise ValueError(
                    "every response found was said in the conversation before; the index is too small"
                )
            ranked = self._ranked(context, rows)
            rank = time.perf_counter() - start
            replies.append(
                Reply(
                    ranked[0]["response"],
                    tuple(_candidate(row) for row in ranked),
                    {"candidates": ranked, "index": self.index.config.kind},
                    {**timing, "rank": rank, "total": sum(timing.values()) + rank},
                )
            )
        return replies

    def _context(self, history: Sequence[Turn] | str) -> list[str]:
        turns = [single_line(turn.text) for turn in as_history(history)]
        return [turn for turn in turns if turn][-self.config.max_turns :]

    def _ranked(self, context: Sequence[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.reranker is None:
            return rows
        scores = [float(score) for score in self.reranker(context, [row["response"] for row in rows])]
        if len(scores) != len(rows) or not all(math.isfinite(score) for score in scores):
            raise ValueError(f"the reranker must give {len(rows)} finite scores, got {scores}")
        rescored = [{**row, "rank_score": score} for row, score in zip(rows, scores, strict=True)]
        return sorted(rescored, key=lambda row: -row["rank_score"])

    def _save(self, directory: Path) -> None:
        roles = write_retriever(self.retriever, directory / "retriever")
        (directory / "index").mkdir()
        self.index._save(directory / "index")
        record = None if self.provenance is None else asdict(self.provenance)
        write_json(
            directory / "chatbot.json",
            {
                "name": self.name,
                "config": asdict(self.config),
                "sentence_transformer": roles,
                "provenance": record,
            },
        )

    @classmethod
    def _load(cls, directory: Path) -> RetrievalChatbot:
        settings = read_json(directory / "chatbot.json")
        return cls(
            read_retriever(directory / "retriever", settings.get("sentence_transformer")),
            ResponseIndex._load(directory / "index"),
            config=RetrievalConfig(**settings["config"]),
            name=settings["name"],
            provenance=Provenance.from_record(settings.get("provenance")),
        )

    def _card(self) -> ModelCard:
        origin = self.provenance or Provenance("Retrieval; how its encoder was trained is not recorded")
        return ModelCard(
            title=self.name,
            method=origin.method,
            summary=(
                f"Answers with the best of {len(self.index):,} responses, found by the inner product of "
                f"{self.index.dim} dimensions ({self.index.config.kind} index). The encoder is a "
                "sentence-transformers model in the folder retriever."
            ),
            licence=origin.licence,
            data=origin.data,
            metrics=(*origin.metrics, *self.index.metrics()),
            seed=origin.seed,
            limits=(
                "Says nothing that is not in its list of responses: no name or figure of the conversation.",
                "Whatever stands in the list can be said, also what is wrong or unsafe.",
            ),
            tags=("dialogue", "retrieval"),
        )


def _candidate(row: dict[str, Any]) -> Candidate:
    score = row.get("rank_score", row["score"])
    return Candidate(row["response"], math.nan, math.nan, 0, "stop", ranker_score=score)
