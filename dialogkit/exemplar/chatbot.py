"""A chatbot that writes its reply with a retrieved response in view, and shows which one."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dialogkit.chat import Reply
from dialogkit.dialogues import Turn, as_history, single_line
from dialogkit.generation import Candidate, GenerationConfig, TransformersLM
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.retrieval import ResponseIndex, Retriever
from dialogkit.retrieval.biencoder import quiet_progress
from dialogkit.retrieval.saving import Provenance, read_retriever, write_retriever
from trainkit.cards import ModelCard
from trainkit.hub import HubMixin, read_json, write_json

from .copying import copied_share
from .packing import ExemplarPacker, LengthBudget
from .selection import context_query

__all__ = ["ExemplarBotConfig", "ExemplarChatbot"]


@dataclass(frozen=True)
class ExemplarBotConfig:
    """How a reply is written.

    Attributes:
        exemplars: Retrieved responses that replies are written with, one reply or more for each; 0 writes
            without. 1 in the released code.
        rank: Which reply wins: ``"logprob"`` by mean log-probability of its tokens, ``"joint"`` by
            ``log P_R(z | c) + log P(y | c, z)`` (ours both).
        temperature: T of ``P_R`` for ``"joint"``, that of the training policy.
        max_turns: Turns of the conversation that the retriever reads, the last ones.
        generation: How replies are drawn, for each exemplar. The released code searches with 10 beams, at
            least 20 tokens and without repeated 3-grams, which this package does not have.

    Raises:
        ValueError: A value is out of its range.
    """

    exemplars: int = 1
    rank: Literal["logprob", "joint"] = "logprob"
    temperature: float = 1.0
    max_turns: int = 20
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_tokens=48, num_candidates=4)
    )

    def __post_init__(self) -> None:
        if self.exemplars < 0:
            raise ValueError(f"exemplars must be at least 0, got {self.exemplars}")
        if self.rank not in ("logprob", "joint"):
            raise ValueError(f"rank must be 'logprob' or 'joint', got {self.rank!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")


@dataclass(frozen=True)
class _Draft:
    """A reply that may win, and what it was written with."""

    exemplar: str | None
    score: float | None
    weight: float  # log P_R
    candidate: Candidate


class ExemplarChatbot(HubMixin):
    """Retrieves responses for the conversation and lets a generator write with each of them in view.

    Args:
        packer: Lays out rows for the generator, ``packer.lm``.
        retriever: Encodes the conversation; the one that the index was built with.
        index: The responses.
        config: How a reply is written.
        name: Its display name.
        provenance: Where the models come from, for the model card.

    Raises:
        StaleIndexError: The index belongs to another retriever.
        ValueError: ``name`` is blank.
    """

    def __init__(
        self,
        packer: ExemplarPacker,
        retriever: Retriever,
        index: ResponseIndex,
        *,
        config: ExemplarBotConfig | None = None,
        name: str = "Bot",
        provenance: Provenance | None = None,
    ) -> None:
        index.check(retriever)
        if not single_line(name):
            raise ValueError(f"name must not be blank, got {name!r}")
        self.packer, self.retriever, self.index = packer, retriever, index
        self.config = config or ExemplarBotConfig()
        self.name = single_line(name)
        self.provenance = provenance

    @property
    def model(self) -> TransformersLM:
        """The generator."""
        return self.packer.lm

    @property
    def prompt(self) -> DialoguePrompt:
        """The layout of conversations."""
        return self.packer.prompt

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        """Answers the last turn; see :meth:`reply_batch`."""
        return self.reply_batch([history], seed=seed)[0]

    def stream(
        self, history: Sequence[Turn] | str, *, seed: int | None = None
    ) -> Generator[str, None, Reply]:
        """Yields the reply in one piece, as it is the best of several, and returns it with its evidence."""
        reply = self.reply(history, seed=seed)
        yield reply.text
        return reply

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """Answers several conversations with one encoding and one search.

        The model sees a conversation as turns of two speakers in alternation, the last one the user's. What
        was said in a conversation is no exemplar of it. Where nothing is found, the reply is written without.

        Args:
            histories: The conversations.
            seed: Any integer for the same replies each time.

        Returns:
            One reply per conversation. Its evidence holds ``"exemplars"`` (the text of the one that the reply
            was written with; none: empty), ``"score"`` (its inner product with the context), ``"copied"``
            (the share of the reply's words that stand in it in runs of four), and ``"considered"``: the best
            reply for each exemplar with the exemplar, its score and the reply's rank score, best first.

        Raises:
            ValueError: A history is empty or its last turn is blank.
        """
        if not histories:
            return []
        contexts = [self._context(history) for history in histories]
        begin = time.perf_counter()
        found = self._found(contexts)
        searched = time.perf_counter()
        asked = [(row, *pair) for row, pairs in enumerate(found) for pair in pairs]
        drawn = self.packer.generate(
            [contexts[row] for row, _, _ in asked],
            [text for _, text, _ in asked],
            config=self.config.generation,
            seed=seed,
        )
        written = time.perf_counter()
        share = len(histories)
        seconds = {
            "search": (searched - begin) / share,
            "generate": (written - searched) / share,
            "total": (written - begin) / share,
        }
        drafts: list[list[_Draft]] = [[] for _ in histories]
        for (row, text, score), candidates in zip(asked, drawn, strict=True):
            weight = self._log_weight(score, [other for _, other in found[row]])
            drafts[row] += [_Draft(text, score, weight, candidate) for candidate in candidates]
        return [self._answer(own, seconds) for own in drafts]

    def _context(self, history: Sequence[Turn] | str) -> list[str]:
        return [line for line in (single_line(turn.text) for turn in as_history(history)) if line]

    def _found(self, contexts: Sequence[Sequence[str]]) -> list[list[tuple[str | None, float | None]]]:
        """Exemplars with their scores for each context; one without where there is none."""
        wanted = self.config.exemplars
        if wanted == 0:
            return [[(None, None)] for _ in contexts]
        queries = [context_query(context, self.config.max_turns) for context in contexts]
        vectors = np.asarray(self.retriever.encode_context(queries), dtype=np.float32)
        depth = min(len(self.index), wanted + max(map(len, contexts)))
        hits = self.index.search(vectors, depth)
        found: list[list[tuple[str | None, float | None]]] = []
        for row, context in enumerate(contexts):
            said = {turn.casefold() for turn in context}
            pairs: list[tuple[str | None, float | None]] = [
                (text, float(score))
                for text, score, valid in zip(hits.texts[row], hits.scores[row], hits.valid[row], strict=True)
                if valid and text.casefold() not in said
            ]
            found.append(pairs[:wanted] or [(None, None)])
        return found

    def _log_weight(self, score: float | None, scores: Sequence[float | None]) -> float:
        if score is None:
            return 0.0
        logits = np.array([one for one in scores if one is not None]) / self.config.temperature
        return float(score / self.config.temperature - np.logaddexp.reduce(logits))

    def _answer(self, drafts: Sequence[_Draft], seconds: dict[str, float]) -> Reply:
        ranked = sorted(drafts, key=lambda draft: -self._rank(draft))
        best = ranked[0]
        considered: dict[str | None, dict[str, Any]] = {}
        for draft in ranked:
            considered.setdefault(
                draft.exemplar,
                {
                    "exemplar": draft.exemplar,
                    "score": draft.score,
                    "reply": draft.candidate.text,
                    "rank_score": self._rank(draft) if draft.candidate.text else None,
                },
            )
        shown = [] if best.exemplar is None else [best.exemplar]
        evidence = {
            "method": "exemplar",
            "model": self.model.name,
            "exemplars": shown,
            "score": best.score,
            "copied": copied_share(_words(best.candidate.text), [_words(text) for text in shown]),
            "considered": list(considered.values()),
        }
        candidates = tuple(draft.candidate for draft in ranked)
        return Reply(best.candidate.text, candidates, evidence, dict(seconds))

    def _rank(self, draft: _Draft) -> float:
        """A reply without words never wins."""
        if not draft.candidate.text:
            return -np.inf
        if self.config.rank == "joint":
            return draft.weight + draft.candidate.sum_logprob
        return draft.candidate.logprob

    # Saving

    def _save(self, directory: Path) -> None:
        settings = write_retriever(self.retriever, directory / "retriever")
        (directory / "index").mkdir()
        self.index._save(directory / "index")
        with quiet_progress():
            self.model.model.save_pretrained(directory / "generator")
            self.model.tokenizer.save_pretrained(directory / "generator")
        record = None if self.provenance is None else asdict(self.provenance)
        write_json(
            directory / "chatbot.json",
            {
                "name": self.name,
                "config": asdict(self.config),
                "prompt": asdict(self.prompt),
                "budget": asdict(self.packer.budget),
                "marker": self.packer.marker,
                "sentence_transformer": settings,
                "provenance": record,
            },
        )

    @classmethod
    def _load(cls, directory: Path) -> ExemplarChatbot:
        settings = read_json(directory / "chatbot.json")
        drawn = settings["config"]["generation"]
        generation = GenerationConfig(**{**drawn, "stop": tuple(drawn["stop"])})
        with quiet_progress():
            lm = TransformersLM.from_pretrained(directory / "generator")
        packer = ExemplarPacker(
            lm,
            DialoguePrompt(**settings["prompt"]),
            budget=LengthBudget(**settings["budget"]),
            marker=settings["marker"],
        )
        return cls(
            packer,
            read_retriever(directory / "retriever", settings["sentence_transformer"]),
            ResponseIndex._load(directory / "index"),
            config=ExemplarBotConfig(**{**settings["config"], "generation": generation}),
            name=settings["name"],
            provenance=Provenance.from_record(settings["provenance"]),
        )

    def _card(self) -> ModelCard:
        origin = self.provenance or Provenance("Exemplar-based generation; its training is not recorded")
        return ModelCard(
            title=self.name,
            method=origin.method,
            summary=(
                f"Writes its replies with {self.config.exemplars} of {len(self.index):,} responses in view, "
                f"found by the inner product of {self.index.dim} dimensions. The generator is a transformers "
                "model in the folder generator, the encoder a sentence-transformers model in retriever."
            ),
            licence=origin.licence,
            data=origin.data,
            metrics=(*origin.metrics, *self.index.metrics()),
            seed=origin.seed,
            limits=(
                "A reply can repeat what stands in the list of responses, also what is wrong or unsafe.",
                "Trained with exemplars of the gold response, used with exemplars of the context.",
            ),
            tags=("dialogue", "retrieval", "text-generation"),
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())
