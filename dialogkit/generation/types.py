"""What a language model takes and gives: prompts, settings, candidates, likelihoods, and the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "Candidate",
    "FinishReason",
    "GenerationConfig",
    "LanguageModel",
    "Likelihood",
    "Prompt",
    "PromptError",
]

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""Plain text to be continued, or chat messages ``{"role": "system"|"user"|"assistant", "content": text}``."""

FinishReason: TypeAlias = Literal["stop", "eos", "length"]
"""Why a candidate ended: a stop string, the model's end-of-sequence token, or the limit on new tokens."""


class PromptError(ValueError):
    """A conversation that a model cannot be given: no room in its window, or roles that it does not know."""


@dataclass(frozen=True)
class GenerationConfig:
    """How candidates are drawn. The defaults are sample-and-rank settings, not taken from a paper.

    Attributes:
        max_new_tokens: Most tokens to generate for a candidate, at least 1.
        do_sample: Draw from the distribution; otherwise take its most probable token at each step (greedy).
        temperature: Divides the logits before sampling, above 0.
        top_k: Sample among this many most probable tokens; 0 keeps all.
        top_p: Sample among the most probable tokens that together reach this probability, in (0, 1].
        num_candidates: Candidates for a prompt, at least 1. Greedy decoding has one possible continuation and
            returns a single candidate whatever stands here.
        repetition_penalty: Above 1 makes tokens that already stand in the text (the prompt included, for
            models without an encoder) less probable, 1 is off (Keskar et al. 2019).
        stop: The text is cut before the first of these strings, none of them empty.

    Raises:
        ValueError: If a value is out of its range.
        TypeError: If `stop` is a single string or holds something else than strings.
    """

    max_new_tokens: int = 64
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 20
    top_p: float = 1.0
    num_candidates: int = 20
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        stop: object = self.stop  # a single string is an easy mistake
        if isinstance(stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise TypeError(f"stop must be a tuple of strings, got {self.stop!r}")
        if "" in self.stop:
            raise ValueError(f"stop must not hold an empty string, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True)
class Candidate:
    """One continuation of a prompt.

    The log-probabilities are natural logarithms under the model's own distribution (temperature 1, nothing
    filtered or penalised), whatever the sampling settings were. They cover the tokens that begin before the
    end of `text`: the end-of-sequence token, the tokens of the stop string and of white space after the text
    do not count, nor do special tokens; a token that begins in the text and reaches into the stop string
    does.

    Attributes:
        text: The continuation, cut before the first stop string and stripped of white space at both ends.
        logprob: Mean log-probability of a counted token; ``-inf`` if none counts (so that a candidate
            without text never wins), ``nan`` if a server gave no log-probabilities.
        sum_logprob: Sum over the counted tokens, 0 if there is none.
        num_tokens: Number of counted tokens.
        finish_reason: Why it ended.
        ranker_score: Score of another model that ranks candidates, where one was asked.
    """

    text: str
    logprob: float
    sum_logprob: float
    num_tokens: int
    finish_reason: FinishReason
    ranker_score: float | None = None


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of a given response.

    Attributes:
        sum_logprob: Sum of the natural log-probabilities of its tokens, the end-of-sequence token not
            included.
        num_tokens: Number of its tokens, at least 1.
    """

    sum_logprob: float
    num_tokens: int

    @property
    def logprob(self) -> float:
        """Mean log-probability of a token."""
        return self.sum_logprob / self.num_tokens


@runtime_checkable
class LanguageModel(Protocol):
    """A model that continues dialogues.

    Attributes:
        name: What to call it in logs and cards.
        max_length: Most tokens it can attend to, prompt and continuation together (encoder input alone for
            encoder-decoder models); None if unlimited or unknown.
        supports_chat: Whether a prompt may be a list of chat messages.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - documented in the class

    @property
    def max_length(self) -> int | None: ...  # noqa: D102

    @property
    def supports_chat(self) -> bool: ...  # noqa: D102

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        """Draw candidates for each prompt, in the order of the prompts."""
        ...

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> Iterator[str]:
        """Yield the pieces of one candidate as they come; joined, they are the first text of `generate`.

        An implementation that is a generator may return the `Candidate` at its end (the value of its
        ``StopIteration``): a chatbot then knows why the reply ended.
        """
        ...

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        """Score each response as the continuation of the prompt at the same place."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Number of tokens the prompt takes of `max_length`."""
        ...
