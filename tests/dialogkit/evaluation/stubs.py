"""Chatbots and an encoder that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dialogkit.chat import Reply
from dialogkit.dialogues import Turn
from dialogkit.evaluation import EvaluationCase

Histories = Sequence[Sequence[Turn] | str]


class Parrot:
    """Says what a function of the last turn says, and remembers what it was asked."""

    def __init__(self, say: Callable[[str], str], name: str = "parrot", mark: str = "1") -> None:
        self.name = name
        self.fingerprint = f"{name} {mark}"
        self.say = say
        self.asked: list[list[str]] = []

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        return self.reply_batch([history], seed=seed)[0]

    def reply_batch(self, histories: Histories, *, seed: int | None = None) -> list[Reply]:
        last = [turns if isinstance(turns, str) else turns[-1].text for turns in histories]
        self.asked.append(last)
        return [Reply(self.say(text)) for text in last]

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Iterator[str]:
        yield self.reply(history).text


class WordEncoder:
    """Adds up a fixed random vector for each word: texts with words in common are near."""

    dim = 16
    symmetric = True
    fingerprint = "word encoder"

    def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.stack([self.vector(text) for text in texts]) if texts else np.zeros((0, 16), np.float32)

    encode_context = encode_response

    def vector(self, text: str) -> npt.NDArray[np.float32]:
        seeds = [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in text.lower().split()]
        parts = [np.random.default_rng(seed).normal(size=16) for seed in seeds]
        return np.sum(parts, axis=0, dtype=np.float32) if parts else np.zeros(16, np.float32)


KINDS = (
    "thank you so much {}",
    "good bye and see you {}",
    "where is the {} station",
    "i like {} very much",
    "no idea about {}",
    "what does {} cost",
)
WORDS = ("tea", "rain", "bread", "music", "snow", "paper", "glass", "bees")


def some_cases(count: int = 12, references: int = 3) -> list[EvaluationCase]:
    """Contexts with as many different human replies."""
    return [
        EvaluationCase(
            (f"Hello number {i}.", f"Tell me about {WORDS[i % 8]} and {i}."),
            tuple(KINDS[(i + j) % 6].format(WORDS[(i + j) % 8]) for j in range(references)),
        )
        for i in range(count)
    ]
