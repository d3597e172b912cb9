"""Who speaks and what they are asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from embedded_models.corpus import load_corpus
from embedded_models.style import load_speakers

from dialogkit.dialogues import single_line
from dialogkit.evaluation import EvaluationCase
from dialogkit.pdp import Character
from trainkit.datafiles import data_file, read_jsonl

__all__ = ["SHOWN", "Speaker", "inputs", "speakers"]

SHOWN = 8
"""Utterances of a speaker, as in the paper."""

_EVALUATION = Path(__file__).parent.parent / "data" / "style_eval.json"


@dataclass(frozen=True)
class Speaker:
    """A voice under test.

    Attributes:
        id: Short name.
        character: With eight utterances and the turns they answer.
        lines: Other lines, which the judge learns the voice from.
    """

    id: str
    character: Character
    lines: tuple[str, ...]


def speakers(count: int) -> list[Speaker]:
    """Speakers whose utterances have true contexts: two of real data, then the project's own.

    Args:
        count: How many, at most ten.
    """
    written = json.loads(_EVALUATION.read_text(encoding="utf-8"))["gold_contexts"]
    heldout = load_corpus("heldout")
    answered: dict[str, str] = {}
    for exchange in (*heldout.plays["FALSTAFF"], *heldout.personas["humorous"]):
        answered.setdefault(exchange.response, exchange.context)
    found = []
    for one in load_speakers():
        shown = one.character.utterances[:SHOWN]
        if one.id in written:
            contexts = tuple(written[one.id])
        elif one.id in ("falstaff", "humorous-assistant"):
            contexts = tuple(answered[line] for line in shown)
        else:
            continue
        character = replace(one.character, utterances=shown, gold_contexts=contexts)
        found.append(Speaker(one.id, character, one.lines))
    found.sort(key=lambda one: (one.id in written, one.id))
    if not 2 <= count <= len(found):
        raise ValueError(f"speakers must be 2 to {len(found)}, got {count}")
    return found[:count]


def inputs(count: int, seed: int = 0) -> list[EvaluationCase]:
    """Distinct turns of DailyDialog's test dialogues, drawn at random.

    Args:
        count: How many.
        seed: Of the draw.
    """
    turns: Sequence[str] = sorted(
        {
            single_line(turn["text"])
            for dialogue in read_jsonl(data_file("dialogue/dailydialog.jsonl.gz"))
            if dialogue["split"] == "test"
            for turn in dialogue["turns"]
        }
    )
    return [EvaluationCase((text,)) for text in Random(seed).sample(turns, count)]
