"""Text classifiers trained naturally and in balls of embeddings at equal cost, then attacked by words."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import torch
from rde_study.attacks import Lexicon, make_attack
from rde_study.data import Row, StudyData, load_data
from rde_study.victims import encoder_path

from robustkit.attacks.gradient import EmbeddingBall
from robustkit.classifiers import TextClassifier
from robustkit.training import SIHG, FreeLB, Natural, OnTexts, RobustMethod, TextBank
from trainkit import FitConfig, fit
from trainkit.hub import atomic_directory, write_json
from trainkit.terminal import quiet

from .report import put

__all__ = ["ENTRIES", "Comparison", "Entry", "Plan", "Result", "run"]

BATCH = 16
RATE = 1e-4
MARGIN = 0.05
PAGE = Path(__file__).parents[2] / "docs" / "adversarial_training.md"


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Attributes:
        name: What the table calls it.
        passes: Forward-backward passes of a minibatch in one step.
        make: Makes the method for a number of training texts and an epsilon.
        ball: Whether the method has an epsilon, a share of the norm of the embeddings.
    """

    name: str
    passes: int
    make: Callable[[int, float], RobustMethod]
    ball: bool = True


ENTRIES = (
    Entry("natural", 1, lambda n, epsilon: Natural(), ball=False),
    Entry("FreeLB K=2", 2, lambda n, epsilon: FreeLB(EmbeddingBall(epsilon, per="sentence"))),
    Entry("SI-HG, bank", 2, lambda n, epsilon: SIHG(EmbeddingBall(epsilon), TextBank(n), alpha=0.5)),
)


@dataclass(frozen=True)
class Result:
    """One trained classifier.

    Attributes:
        method: Its name.
        epsilon: Its ball; 0 for none.
        seed: Of the head, the order, dropout and perturbations.
        clean: Accuracy on the texts.
        attacked: Accuracy on the attacked texts, by attack.
        queries: Mean queries for a text, by attack.
        seconds: Processor time of training, on one thread.
        part: ``validation`` or ``test``, whose texts these are.
    """

    method: str
    epsilon: float
    seed: int
    clean: float
    attacked: dict[str, float]
    queries: dict[str, float]
    seconds: float
    part: str


@dataclass(frozen=True)
class Plan:
    """What the comparison spends.

    Attributes:
        data: A data set of `rde_study`.
        encoder: Folder or Hub id of the encoder, or ``minilm`` for the packaged one.
        passes: Forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds; epsilon is chosen with the first.
        epsilons: What epsilon is chosen among.
        attacks: Names of word attacks, as `make_attack` knows them.
        train: Training texts; None for all.
        validation: Validation texts that are attacked to choose epsilon.
        test: Test texts for the clean accuracy; None for all.
        attacked: Test texts that are attacked.
    """

    data: str
    encoder: str
    passes: int
    seeds: Sequence[int]
    epsilons: Sequence[float]
    attacks: Sequence[str]
    train: int | None
    validation: int
    test: int | None
    attacked: int


class Comparison:
    """Trains and attacks; what is in the folder already is not done again.

    Args:
        output: Folder of classifiers and results.
        plan: What is spent. Give another plan another folder.
    """

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output, self.plan = output, plan
        self.study, self.lexicon = load_data(plan.data), Lexicon.load()
        self.file = output / "results.json"
        asked = json.loads(json.dumps(asdict(plan)))
        found = json.loads(self.file.read_text()) if self.file.exists() else {"plan": asked, "results": []}
        if found["plan"] != asked:
            raise ValueError(f"{output} holds a comparison of another plan: {found['plan']}")
        self.results = [Result(**row) for row in found["results"]]

    def chosen(self, entry: Entry) -> float:
        """Chosen on validation texts: what stays right under attack, if the clean accuracy is near the best.

        A classifier that says the same of everything withstands every attack, so those with a clean accuracy
        more than `MARGIN` below the best one's are left out. Of equal ones it is the smaller.
        """
        if not entry.ball:
            return 0.0
        seed = self.plan.seeds[0]
        found = {epsilon: self.result(entry, epsilon, seed, "validation") for epsilon in self.plan.epsilons}
        least = max(row.clean for row in found.values()) - MARGIN
        able = sorted(epsilon for epsilon, row in found.items() if row.clean >= least)
        return max(able, key=lambda epsilon: fmean(found[epsilon].attacked.values()))

    def result(self, entry: Entry, epsilon: float, seed: int, part: str) -> Result:
        """One classifier on validation or test texts."""
        for row in self.results:
            if (row.method, row.epsilon, row.seed, row.part) == (entry.name, epsilon, seed, part):
                return row
        classifier, seconds = self._classifier(entry, epsilon, seed)
        plan, rows = self.plan, getattr(self.study, part)
        clean = accuracy(classifier, _drawn(rows, plan.test if part == "test" else None))
        count = plan.attacked if part == "test" else plan.validation
        shares, queries = under_attack(classifier, _drawn(rows, count), plan.attacks, self.lexicon, seed)
        row = Result(entry.name, epsilon, seed, clean, shares, queries, round(seconds, 1), part)
        self.results.append(row)
        write_json(self.file, {"plan": asdict(plan), "results": [asdict(each) for each in self.results]})
        print(row, flush=True)
        return row

    def _classifier(self, entry: Entry, epsilon: float, seed: int) -> tuple[TextClassifier, float]:
        folder = self.output / "classifiers" / f"{ENTRIES.index(entry)}-{epsilon}-{seed}"
        if not folder.exists():
            rows = _drawn(self.study.train, self.plan.train)
            classifier, seconds = train_one(
                entry, epsilon, self.study, rows, self.plan.encoder, self.plan.passes, seed
            )
            with atomic_directory(folder) as path:
                classifier.model.save_pretrained(path)
                classifier.tokenizer.save_pretrained(path)
                write_json(path / "seconds.json", seconds)
        seconds = json.loads((folder / "seconds.json").read_text())
        return TextClassifier.from_pretrained(folder, max_length=self.study.max_length), seconds


def run(output: Path, plan: Plan, *, threads: int, page: bool) -> None:
    """Chooses epsilon on validation texts, trains, attacks, writes results and a table.

    Args:
        output: Folder of the results; an interrupted comparison goes on.
        plan: What is spent.
        threads: CPU threads.
        page: Put the table into ``docs/adversarial_training.md`` too.

    Raises:
        ValueError: The folder holds a comparison of another plan.
    """
    torch.set_num_threads(threads)
    quiet()  # a new head is no news
    output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(output, plan)
    epsilons = {entry: comparison.chosen(entry) for entry in ENTRIES}
    rows = [
        comparison.result(entry, epsilons[entry], seed, "test") for seed in plan.seeds for entry in ENTRIES
    ]
    text = table(rows, comparison.results, plan)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    if page:
        put(PAGE, "texts", text)
    print(text)


def train_one(
    entry: Entry,
    epsilon: float,
    study: StudyData,
    rows: Sequence[Row],
    encoder: str,
    passes: int,
    seed: int,
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
    fit(classifier.model, OnTexts(entry.make(len(rows), epsilon), classifier), rows, config=config)
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


def table(rows: Sequence[Result], all_rows: Sequence[Result], plan: Plan) -> str:
    """What was measured on test texts, and what epsilon was chosen by, in Markdown."""
    train = plan.train or "all"
    lines = [
        f"{plan.data}, {train} training texts, {plan.passes:,} passes of a minibatch of {BATCH}, "
        f"{plan.attacked} test texts attacked, {_seeds(plan)}. Seconds are processor time of training "
        f"on one thread ({platform.machine()}, torch {torch.__version__}).",
        "",
        f"| method | epsilon | clean | {' | '.join(plan.attacks)} | queries | seconds |",
        f"| --- | ---: | ---: |{' ---: |' * len(plan.attacks)} ---: | ---: |",
    ]
    for entry in ENTRIES:
        own = [row for row in rows if row.method == entry.name]
        under = [_spread([row.attacked[name] for row in own]) for name in plan.attacks]
        queries = fmean(value for row in own for value in row.queries.values())
        cells = [entry.name, str(own[0].epsilon) if entry.ball else "", _spread([row.clean for row in own]),
                 *under, f"{queries:.0f}", f"{fmean(row.seconds for row in own):.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    tried = [row for row in all_rows if row.part == "validation"]
    lines += [
        "",
        f"Epsilon was chosen by the mean accuracy under attack of {plan.validation} validation texts among "
        f"those within {MARGIN} of the best clean accuracy on all of them, seed {plan.seeds[0]}: "
        + "; ".join(
            f"{row.method}, {row.epsilon}: {fmean(row.attacked.values()):.3f} (clean {row.clean:.3f})"
            for row in tried
        )
        + ".",
    ]
    return "\n".join(lines)


def _seeds(plan: Plan) -> str:
    if len(plan.seeds) == 1:
        return "1 seed, so no spread"
    return f"mean ± standard deviation of {len(plan.seeds)} seeds"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
