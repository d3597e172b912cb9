"""The attacks of the study and their logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from robustkit.attacks.logs import AttackLog
from trainkit.datafiles import data_file

from .data import Row, StudyData
from .victims import encoder_path

if TYPE_CHECKING:
    from robustkit.attacks.words import Neighbours, SentenceEncoder, Tagger, WordNet
    from robustkit.attacks.words.engine import WordAttack
    from robustkit.classifiers import TextClassifier

__all__ = [
    "ATTACKS",
    "DISTANCES",
    "PARTS",
    "AttackPlan",
    "Lexicon",
    "attacked_rows",
    "make_attack",
    "read_logs",
    "run_attacks",
]

logger = logging.getLogger(__name__)

ATTACKS = ("textfooler", "pwws", "a2t", "deepwordbug")
DISTANCES: Mapping[str, float | None] = {"near": None, "far": 0.9}
"""Probability that an attack wants for the wrong class; None stops at the flip."""
SHARD = 40
"""Texts in one log file: a plan may grow without losing what is done."""
PARTS = ("test", "validation", "train")


@dataclass(frozen=True)
class AttackPlan:
    """Which texts are attacked.

    Attributes:
        test: Test texts attacked by every attack, near and far; the results are made of them.
        validation: Validation texts attacked likewise, for choosing among combinations.
        train: Training texts attacked, for detectors that learn from attacked texts.
        for_training: Attack and distance, the only ones that such detectors see.
        seed: Of the draw of texts.
    """

    test: int = 160
    validation: int = 120
    train: int = 120
    for_training: tuple[str, str] = ("pwws", "near")
    seed: int = 0


def attacked_rows(data: StudyData, part: str, plan: AttackPlan) -> list[Row]:
    """The rows of one part that are attacked; a longer draw begins with the shorter one."""
    rows = sorted(getattr(data, part))
    Random(plan.seed).shuffle(rows)
    return rows[: getattr(plan, part)]


@dataclass(frozen=True)
class Lexicon:
    """What the attacks read, from the data folder and the packaged MiniLM."""

    neighbours: Neighbours
    wordnet: WordNet
    tagger: Tagger
    encoder: SentenceEncoder
    stopwords: frozenset[str]

    @classmethod
    def load(cls) -> Lexicon:
        """Reads the files.

        Raises:
            FileNotFoundError: A file is missing.
        """
        from robustkit.attacks.words import Neighbours, SentenceEncoder, Tagger, WordNet, read_stopwords

        return cls(
            neighbours=Neighbours.from_file(data_file("lexicon/counterfitted_neighbors.json.gz")),
            wordnet=WordNet.from_files(
                data_file("lexicon/oewn_entries.json.gz"), data_file("lexicon/oewn_synsets.jsonl.gz")
            ),
            tagger=Tagger.from_file(data_file("lexicon/averaged_perceptron_tagger.json.gz")),
            encoder=SentenceEncoder.from_pretrained(encoder_path("minilm")),
            stopwords=read_stopwords(data_file("lexicon/stopwords_en.txt")),
        )


def make_attack(name: str, lexicon: Lexicon, goal_score: float | None) -> WordAttack:
    """An attack by name.

    The neighbour lists come without their vectors, so no least cosine of two words is asked for.
    """
    from robustkit.attacks.words import recipes

    if name == "pwws":
        return recipes.pwws(wordnet=lexicon.wordnet, stopwords=lexicon.stopwords, goal_score=goal_score)
    if name == "deepwordbug":
        return recipes.deepwordbug(stopwords=lexicon.stopwords, goal_score=goal_score)
    make = {"textfooler": recipes.textfooler, "a2t": recipes.a2t}[name]
    return make(
        neighbours=lexicon.neighbours,
        vectors=None,
        tagger=lexicon.tagger,
        encoder=lexicon.encoder,
        stopwords=lexicon.stopwords,
        goal_score=goal_score,
    )


def run_attacks(
    data: StudyData, classifier: TextClassifier, lexicon: Lexicon, folder: Path, plan: AttackPlan
) -> None:
    """Attacks what the plan says; an interrupted run goes on, and one with a longer plan adds to it.

    All attacks advance together, so that an interrupted run has left something of each.

    Args:
        data: Whose texts are attacked.
        classifier: The victim; with a cache the far attack costs only what the near one has not asked.
        lexicon: What the attacks read.
        folder: Gets a CSV for each run and `SHARD` texts.
        plan: How many texts of which part.
    """
    longest = max(getattr(plan, part) for part in PARTS)
    for number, part, attack, (distance, goal_score) in product(
        range(-(-longest // SHARD)), PARTS, ATTACKS, DISTANCES.items()
    ):
        rows = attacked_rows(data, part, plan)[number * SHARD : (number + 1) * SHARD]
        if rows and (part != "train" or (attack, distance) == plan.for_training):
            log = make_attack(attack, lexicon, goal_score).attack(
                classifier,
                rows,
                path=folder / f"{part}-{attack}-{distance}-{number:02}.csv",
                seed=plan.seed,
                lock_step=SHARD,
            )
            logger.info("%s %s %s %s %d: %s", data.name, part, attack, distance, number, log.summary())


def read_logs(folder: Path, part: str) -> dict[tuple[str, str], AttackLog]:
    """The logs of one part by attack and distance, as far as they are there."""
    found: dict[tuple[str, str], AttackLog] = {}
    for attack, distance in product(ATTACKS, DISTANCES):
        shards = sorted(folder.glob(f"{part}-{attack}-{distance}-*.csv"))
        records = [record for shard in shards for record in AttackLog.read_csv(shard)]
        if records:
            found[attack, distance] = AttackLog(records, attack)
    return found
