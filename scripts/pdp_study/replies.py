"""The rows of the table as chatbots, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dialogkit.bots import bot_fingerprint
from dialogkit.chat import Chatbot, Reply, measure_latency
from dialogkit.dialogues import Turn
from dialogkit.evaluation import EvaluationCase, collect_replies
from dialogkit.evaluation.replies import Collected
from dialogkit.g2r import RetrievalChatbot
from dialogkit.generation import GenerationConfig
from dialogkit.generation.types import LanguageModel
from dialogkit.pdp import PDPChatbot, PDPConfig
from dialogkit.retrieval import ResponseIndex, Retriever
from trainkit.hub import fingerprint, write_json

from .material import SHOWN, Speaker

__all__ = ["PUBLISHED", "ROWS", "Setting", "ask", "latency", "make_bot"]

logger = logging.getLogger(__name__)

ROWS = ("zero-shot", "utterances only", "static", "dynamic", "random", "gold", "retrieval")
"""Rows of the table; the retrieval baseline is not in the paper."""

# Table 1 of the paper (3.8 billion parameters): StyleProb and MaUdE.
PUBLISHED = {
    "zero-shot": (0.1432, 0.8857),
    "utterances only": (0.2098, 0.8887),
    "static": (0.4192, 0.8467),
    "dynamic": (0.4789, 0.8299),
    "random": (0.4774, 0.8358),
    "gold": (0.4575, 0.8350),
}


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        model: The language model.
        retriever: Matches, orders and, in the last row, retrieves.
        generation: How candidates are drawn; the likeliest becomes the reply (``top1``).
        batch_size: Inputs asked together.
    """

    model: LanguageModel
    retriever: Retriever
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_tokens=20, num_candidates=1, temperature=0.7)
    )
    batch_size: int = 200


def make_bot(row: str, speaker: Speaker, setting: Setting) -> Chatbot:
    """One speaker as one row of the table.

    Args:
        row: One of `ROWS`.
        speaker: Who talks.
        setting: What all rows share.
    """
    if row == "retrieval":
        index = ResponseIndex.build(setting.retriever, speaker.character.utterances)
        return RetrievalChatbot(setting.retriever, index, name=speaker.character.name)
    matched = row in ("static", "dynamic", "random", "gold")
    config = PDPConfig(
        matcher=row if matched else "random",  # type: ignore[arg-type]
        prompt={"zero-shot": "zero-shot", "utterances only": "utterances"}.get(row, "auto"),  # type: ignore[arg-type]
        selection="logprob",
        max_dialogs=SHOWN,
        generation=setting.generation,
    )
    return PDPChatbot(setting.model, speaker.character, retriever=setting.retriever, config=config)


class Draws:
    """Replies of several seeds from one reading of each prompt.

    The candidates of a prompt are independent draws, whatever their number, so those of seed ``s`` are
    candidates ``s * k`` to ``s * k + k - 1`` of one call, and the likeliest of them is the reply.

    Random contexts are the same for all seeds: the authors draw them once a run.

    Args:
        bot: Who answers.
        seeds: How many.
        each: Candidates of a seed, k.
    """

    def __init__(self, bot: PDPChatbot, seeds: int, each: int) -> None:
        generation = replace(bot.config.generation, num_candidates=seeds * each)
        self._bot, self._each = bot, each
        bot.config = replace(bot.config, generation=generation)
        self.name = bot.name
        self.fingerprint = fingerprint("draws", bot_fingerprint(bot), seeds)
        self._known: tuple[object, list[Reply]] = (None, [])

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        """The replies of one seed, from 0; those of the others are kept for the next call."""
        if self._known[0] != list(histories):
            self._known = (list(histories), self._bot.reply_batch(histories, seed=0))
        first = (seed or 0) * self._each
        chosen = []
        for reply in self._known[1]:
            group = reply.candidates[first : first + self._each]
            chosen.append(replace(reply, text=max(group, key=lambda one: one.logprob).text))
        return chosen


def ask(
    setting: Setting,
    voices: Sequence[Speaker],
    cases: Sequence[EvaluationCase],
    seeds: Sequence[int],
    folder: Path,
) -> dict[tuple[str, str, int], Collected]:
    """Replies by row, speaker and seed; what is in the folder already is not asked again."""
    found = {}
    for row in ROWS:
        for voice in voices:
            bot = make_bot(row, voice, setting)
            if isinstance(bot, PDPChatbot):
                bot = Draws(bot, len(seeds), setting.generation.num_candidates)  # type: ignore[assignment]
            for seed in seeds:
                found[row, voice.id, seed] = collect_replies(
                    bot,
                    cases,
                    folder / row.replace(" ", "-") / f"{voice.id}-{seed}.jsonl",
                    name=f"{row}, {voice.id}",
                    seed=seed,
                    batch_size=setting.batch_size,
                    latency_contexts=0,
                )
        logger.info("%s: %d replies", row, len(voices) * len(seeds) * len(cases))
    return found


def latency(
    setting: Setting, voice: Speaker, cases: Sequence[EvaluationCase], path: Path
) -> dict[str, dict[str, float]]:
    """Seconds of a reply asked for alone, by row, for one speaker; written to a file."""
    asked = [case.context[0] for case in cases]
    found = {}
    for row in ROWS:
        one = measure_latency(make_bot(row, voice, setting), asked)
        found[row] = {"p50": one.p50, "p95": one.p95, "replies": float(one.replies)}
        logger.info("%s: %.0f ms", row, 1e3 * one.p50)
    write_json(path, found)
    return found
