"""DailyDialog for the teacher and the students, DailyDialog++ for the judge and the test."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dialogkit.dialogues import Example, single_line
from trainkit.datafiles import data_file, read_jsonl

__all__ = ["RatedContext", "StudyData", "load_data"]

CONTEXT_TURNS = 5
"""Turns of a context that anybody reads, the last ones."""


@dataclass(frozen=True)
class RatedContext:
    """A context of DailyDialog++ with replies that people wrote to be good, or to mislead.

    Attributes:
        context: The turns.
        good: Five adequate replies.
        adversarial: Five inadequate replies that share words with the context.
        random: Five replies to other contexts.
    """

    context: tuple[str, ...]
    good: tuple[str, ...]
    adversarial: tuple[str, ...]
    random: tuple[str, ...]


@dataclass(frozen=True)
class StudyData:
    """The parts of the study; no dialogue of a later part stands in an earlier one.

    Attributes:
        dialogues: Training dialogues, each a tuple of turns: what the teacher reads.
        pairs: Contexts with the human response, one of a dialogue: what students learn from.
        validation: The same from validation dialogues.
        test: The same from test dialogues.
        rated_dev: For the judge of replies.
        rated_test: What the replies answer that are measured.
    """

    dialogues: tuple[tuple[str, ...], ...]
    pairs: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    rated_dev: tuple[RatedContext, ...]
    rated_test: tuple[RatedContext, ...]


def load_data(pairs: int, held_out: int, *, seed: int = 0) -> StudyData:
    """Reads and cuts the data.

    A context of DailyDialog++ is part of a dialogue of DailyDialog: training dialogues that hold one are
    left out, and so are those that stand in the validation or test part, too.

    Args:
        pairs: Training pairs of the students.
        held_out: Pairs of the validation and of the test part.
        seed: Of the draws.

    Raises:
        FileNotFoundError: The data are missing.
    """
    parts: dict[str, list[tuple[str, ...]]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz")):
        turns = tuple(single_line(turn["text"]) for turn in row["turns"])
        parts[row["split"]].append(tuple(turn for turn in turns if turn))
    rated: dict[str, list[RatedContext]] = {"dev": [], "test": []}
    for row in read_jsonl(data_file("dialogue/dailydialog_pp.jsonl.gz")):
        kinds = ("positive_responses", "adversarial_negative_responses", "random_negative_responses")
        replies = (tuple(single_line(text) for text in row[kind]) for kind in kinds)
        context = tuple(single_line(turn) for turn in row["context"])
        rated[row["split"]].append(RatedContext(context[-CONTEXT_TURNS:], *replies))
    closed = {key(turn) for part in rated.values() for one in part for turn in one.context if len(turn) > 40}
    test = list(dict.fromkeys(parts["test"]))
    known = {tuple(map(key, turns)) for turns in test}
    validation = [
        turns for turns in dict.fromkeys(parts["validation"]) if tuple(map(key, turns)) not in known
    ]
    known |= {tuple(map(key, turns)) for turns in validation}
    train = [
        turns
        for turns in dict.fromkeys(parts["train"])
        if tuple(map(key, turns)) not in known and not any(key(turn) in closed for turn in turns)
    ]
    return StudyData(
        tuple(train),
        _pairs(train, pairs, seed),
        _pairs(validation, held_out, seed),
        _pairs(test, held_out, seed),
        tuple(rated["dev"]),
        tuple(rated["test"]),
    )


def key(turn: str) -> str:
    """A turn without what differs between the two data sets: letters and digits only."""
    return "".join(c for c in turn.casefold() if c.isalnum())


def _pairs(dialogues: list[tuple[str, ...]], count: int, seed: int) -> tuple[Example, ...]:
    """One context and its response of each of some dialogues, all responses distinct."""
    rng = Random(seed)
    found: dict[str, Example] = {}
    for turns in rng.sample(dialogues, len(dialogues)):
        if len(turns) > 1:
            place = rng.randrange(1, len(turns))
            example = Example(turns[max(0, place - CONTEXT_TURNS) : place], turns[place])
            found.setdefault(example.response, example)
        if len(found) == count:
            break
    return tuple(found.values())
