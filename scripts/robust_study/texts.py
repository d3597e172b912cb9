"""Text classifiers trained naturally and in balls of embeddings at equal cost, then attacked by words."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from rde_study.attacks import Lexicon, make_attack
from rde_study.data import Row, StudyData, load_data
from rde_study.victims import encoder_path

from robustkit.attacks.gradient import EmbeddingBall
from robustkit.classifiers import TextClassifier
from robustkit.training import SIHG, FreeLB, Natural, OnTexts, RobustMethod, TextBank
from trainkit import FitConfig, fit
from trainkit.hub import write_json
from trainkit.terminal import quiet

__all__ = ["ENTRIES", "Entry", "Result", "run"]

BATCH = 32
RATE = 1e-4


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Attributes:
        name: What the table calls it.
        passes: Forward-backward passes of a minibatch in one step.
        make: Makes the method for a number of training texts.
    """

    name: str
    passes: int
    make: Callable[[int], RobustMethod]


ENTRIES = (
    Entry("natural", 1, lambda n: Natural()),
    Entry("FreeLB K=2, sentence 0.1", 2, lambda n: FreeLB(EmbeddingBall(0.1, per="sentence"))),
    Entry("FreeLB K=2, sentence 0.3", 2, lambda n: FreeLB(EmbeddingBall(0.3, per="sentence"))),
    Entry("SI-HG, bank, token 0.1", 2, lambda n: SIHG(EmbeddingBall(0.1), TextBank(n), alpha=0.5)),
    Entry("SI-HG, bank, token 0.3", 2, lambda n: SIHG(EmbeddingBall(0.3), TextBank(n), alpha=0.5)),
)
"""Epsilon is a share of the norm of the embeddings."""


@dataclass(frozen=True)
class Result:
    """One trained classifier.

    Attributes:
        method: Its name.
        seed: Of the head, the order, dropout and perturbations.
        passes: The budget: minibatch passes that it might spend.
        clean: Accuracy on the test texts.
        attacked: Accuracy on the attacked texts, by attack.
        queries: Mean queries for a text, by attack.
        seconds: Processor time of training, on one thread.
    """

    method: str
    seed: int
    passes: int
    clean: float
    attacked: dict[str, float]
    queries: dict[str, float]
    seconds: float


def run(
    output: Path,
    *,
    data: str,
    encoder: str,
    passes: int,
    seeds: Sequence[int],
    attacks: Sequence[str],
    train: int | None,
    test: int | None,
    attacked: int,
    threads: int,
) -> None:
    """Trains, attacks, writes results (a run that is there already is not repeated) and a table.

    Args:
        output: Folder of the results.
        data: A data set of `rde_study`.
        encoder: Folder or Hub id of the encoder, or ``minilm`` for the packaged one.
        passes: Forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds.
        attacks: Names of word attacks, as `make_attack` knows them.
        train: Training texts; None for all.
        test: Test texts for the clean accuracy; None for all.
        attacked: Test texts that are attacked.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    quiet()  # a new head is no news
    study, lexicon = load_data(data), Lexicon.load()
    file = output / f"{data}-{passes}-{train}-{test}-{attacked}.json"
    output.mkdir(parents=True, exist_ok=True)
    known = [Result(**row) for row in json.loads(file.read_text())["results"]] if file.exists() else []
    for seed in seeds:
        for entry in ENTRIES:
            if any((row.method, row.seed) == (entry.name, seed) for row in known):
                continue
            classifier, seconds = train_one(entry, study, _drawn(study.train, train), encoder, passes, seed)
            clean = accuracy(classifier, _drawn(study.test, test))
            shares, queries = under_attack(classifier, _drawn(study.test, attacked), attacks, lexicon, seed)
            known.append(Result(entry.name, seed, passes, clean, shares, queries, round(seconds, 1)))
            write_json(file, {"results": [asdict(row) for row in known]})
            print(known[-1], flush=True)
    text = _table(known, data, passes, attacked, len(_drawn(study.train, train)))
    (output / f"{data}.md").write_text(text, encoding="utf-8")
    print(text)


def train_one(
    entry: Entry, study: StudyData, rows: Sequence[Row], encoder: str, passes: int, seed: int
) -> tuple[TextClassifier, float]:
    """A classifier trained from the encoder with a new head, and the seconds that it took."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = encoder_path(encoder)
    torch.manual_seed(seed)
    names = dict(enumerate(study.labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        source, id2label=names, label2id={name: label for label, name in names.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    classifier = TextClassifier(model, tokenizer, max_length=study.max_length, name=entry.name)
    steps = max(1, passes // entry.passes)
    config = FitConfig(
        max_steps=steps,
        batch_size=BATCH,
        learning_rate=RATE,
        warmup_ratio=0.1,
        mixed_precision="bf16",
        seed=seed,
        progress=False,
        log_every=steps,
    )
    started = time.process_time()
    fit(classifier.model, OnTexts(entry.make(len(rows)), classifier), rows, config=config)
    return classifier, time.process_time() - started


def accuracy(classifier: TextClassifier, rows: Sequence[Row]) -> float:
    """Share of texts that the classifier gets right."""
    right = classifier.predict([text for text, _ in rows]) == [label for _, label in rows]
    return float(right.mean())


def under_attack(
    classifier: TextClassifier, rows: Sequence[Row], attacks: Sequence[str], lexicon: Lexicon, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy under every attack, and mean queries for a text."""
    shares, queries = {}, {}
    for name in attacks:
        log = make_attack(name, lexicon, None).attack(classifier, list(rows), lock_step=16, seed=seed)
        shares[name] = fmean(record.outcome == "Failed" for record in log)
        queries[name] = fmean(record.num_queries for record in log)
    return shares, queries


def _drawn(rows: Sequence[Row], count: int | None) -> list[Row]:
    """So many rows, always the same; a longer draw begins with the shorter one."""
    found = sorted(rows)
    Random(0).shuffle(found)
    return found[:count]


def _table(rows: Sequence[Result], data: str, passes: int, attacked: int, train: int) -> str:
    attacks = list(rows[0].attacked)
    seeds = sorted({row.seed for row in rows})
    lines = [
        f"{data}, {train:,} training texts, {passes:,} passes of a minibatch of {BATCH}, {len(seeds)} "
        f"{'seeds' if len(seeds) > 1 else 'seed, so no spread'}; {attacked} test texts are attacked. "
        f"Seconds are processor time of training ({platform.machine()}, torch {torch.__version__}).",
        "",
        f"| method | clean | {' | '.join(f'{name} (min to max)' for name in attacks)} | queries | seconds |",
        f"| --- | ---: |{' ---: |' * len(attacks)} ---: | ---: |",
    ]
    for entry in ENTRIES:
        own = [row for row in rows if row.method == entry.name]
        if own:
            under = []
            for name in attacks:
                found = [row.attacked[name] for row in own]
                under.append(f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
            queries = fmean(value for row in own for value in row.queries.values())
            cells = [entry.name, f"{fmean(row.clean for row in own):.3f}", *under, f"{queries:.0f}",
                     f"{fmean(row.seconds for row in own):.0f}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
