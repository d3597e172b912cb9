"""G2R on the level of data: a teacher writes more responses to every context."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dialogkit.dialogues import Example, single_line
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.types import GenerationConfig, LanguageModel
from trainkit import derive_seed, fingerprint

from .data import ORIGINAL
from .shards import read_shards, write_shards

__all__ = ["GENERATED", "AugmentConfig", "Filters", "augment", "copied_ngram", "reason_to_drop", "repeats"]

GENERATED = "generated"
"""The ``source`` of a response that a teacher wrote."""

_COLUMNS = {"context": "strings", "response": "string", "source": "string"}


@dataclass(frozen=True)
class Filters:
    """Which generated responses are dropped. The released work names no filter: all of this is our choice.

    Attributes:
        min_words: Fewer words are too short.
        max_words: More words are too long.
        max_repeats: A response in which any sequence of three words occurs more often than this is dropped.
        max_copied: A response that copies this many words in a row from its context is dropped; shorter
            responses that stand in the context as a whole, too. None allows copying.
        unsafe: A response with one of these words or word sequences is dropped; case does not count.
    """

    min_words: int = 1
    max_words: int = 60
    max_repeats: int = 1
    max_copied: int | None = 6
    unsafe: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                f"expected 1 <= min_words <= max_words, got {self.min_words} and {self.max_words}"
            )
        if self.max_repeats < 1 or (self.max_copied is not None and self.max_copied < 1):
            raise ValueError("max_repeats and max_copied must be at least 1")
        if not all(_words(text) for text in self.unsafe):
            raise ValueError(f"unsafe must hold words, got {self.unsafe!r}")


@dataclass(frozen=True)
class AugmentConfig:
    """How a teacher writes responses; all of it is our choice, as the released work names no settings.

    Attributes:
        responses: Responses drawn for a context; about ten in the released data (unconfirmed). After filters
            and removal of equal ones fewer are left.
        generation: Sampling settings; the number of candidates and the stop strings are set from here.
        filters: What is dropped.
        prompt: How a context is laid out for the teacher.
    """

    responses: int = 10
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_tokens=48, top_k=0, top_p=0.9)
    )
    filters: Filters = field(default_factory=Filters)
    prompt: DialoguePrompt = field(default_factory=DialoguePrompt)

    def __post_init__(self) -> None:
        if self.responses < 1:
            raise ValueError(f"responses must be at least 1, got {self.responses}")


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c in "'’" else " " for c in text.casefold()).split()


def repeats(words: Sequence[str], n: int = 3) -> int:
    """How often the most frequent sequence of n words occurs; 0 if there is none."""
    return max(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values(), default=0)


def copied_ngram(words: Sequence[str], source: Sequence[str], n: int) -> bool:
    """Whether n words in a row, or all the words if they are fewer, stand in the source in this order."""
    n = min(n, len(words))
    if n == 0:
        return False
    there = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    return any(tuple(words[i : i + n]) in there for i in range(len(words) - n + 1))


def reason_to_drop(response: str, context: Sequence[str], filters: Filters) -> str | None:
    """Why a response is dropped: ``"short"``, ``"long"``, ``"repeats"``, ``"copies"``, ``"unsafe"``.

    Args:
        response: The response.
        context: The turns it answers.
        filters: The limits.

    Returns:
        None for a response to keep.
    """
    words = _words(response)
    if len(words) < filters.min_words:
        return "short"
    if len(words) > filters.max_words:
        return "long"
    if repeats(words) > filters.max_repeats:
        return "repeats"
    # A short answer such as "Yes" may well stand somewhere in a context: only whole turns count for those.
    if filters.max_copied is not None:
        turns = [_words(turn) for turn in context]
        if words in turns or (
            len(words) >= filters.max_copied
            and any(copied_ngram(words, t, filters.max_copied) for t in turns)
        ):
            return "copies"
    if any(copied_ngram(_words(phrase), words, len(_words(phrase))) for phrase in filters.unsafe):
        return "unsafe"
    return None


def augment(
    teacher: LanguageModel,
    examples: Sequence[Example],
    folder: str | Path,
    *,
    config: AugmentConfig | None = None,
    seed: int = 0,
    shard_size: int = 64,
) -> dict[str, int]:
    """Writes a person's response and new ones of the teacher for every context, as Parquet shards.

    A stopped run goes on where it was when it is called again with the same arguments; a shard cut in half is
    made anew. Each shard has random numbers of its own, so the rows do not depend on how the work was split
    over processes or interrupted.

    Args:
        teacher: Writes the responses.
        examples: Contexts with their human responses.
        folder: For the shards: columns ``context``, ``response`` and ``source``.
        config: Sampling, filters and prompt.
        seed: Of the sampling.
        shard_size: Contexts in a shard.

    Returns:
        Numbers of rows by source, over all shards.

    Raises:
        ValueError: There are no examples, or the folder was made with other settings.
    """
    config = config or AugmentConfig()
    if not len(examples):
        raise ValueError("examples is empty: there are no contexts to respond to")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    generation = replace(config.generation, num_candidates=config.responses, stop=config.prompt.stop)
    texts = ["\n".join([*example.context, example.response]) for example in examples]
    settings = {
        "teacher": teacher.name,
        "examples": fingerprint(texts),
        "config": _plain(config),
        "seed": seed,
        "shard_size": shard_size,
    }

    def make(number: int) -> list[dict[str, Any]]:
        chosen = examples[number * shard_size : (number + 1) * shard_size]
        drawn = teacher.generate(
            [config.prompt.build(example.context) for example in chosen],
            config=generation,
            seed=derive_seed(seed, number),
        )
        rows = []
        for example, candidates in zip(chosen, drawn, strict=True):
            kept = {single_line(example.response): ORIGINAL}
            for candidate in candidates:
                text = single_line(candidate.text)
                if text and reason_to_drop(text, example.context, config.filters) is None:
                    kept.setdefault(text, GENERATED)
            rows += [
                {"context": list(example.context), "response": text, "source": source}
                for text, source in kept.items()
            ]
        return rows

    count = -(-len(examples) // shard_size)
    write_shards(folder, count, make, settings=settings, columns=_COLUMNS, description="writing responses")
    return dict(Counter(row["source"] for row in read_shards(folder)))


def _plain(config: AugmentConfig) -> Mapping[str, Any]:
    # As it will be read back: tuples become lists.
    plain: Mapping[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
