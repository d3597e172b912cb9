"""The stages of the study, from the data to the tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainkit import write_json
from trainkit.hub import write_bytes

from .attacks import AttackPlan, Lexicon, read_logs, run_attacks
from .choosing import combined
from .combine import Compared, lead_interval
from .data import DATA, load_data
from .measure import Scores, Setting, at_seed, settings_of, summary
from .replaced import train_reader
from .scoring import SEEDS, Material, score_all
from .tables import averaged, compared, markdown, overall, pivot, reached, write_csv
from .victims import VictimSettings, train_victim

if TYPE_CHECKING:
    from robustkit.classifiers import TextClassifier
    from robustkit.detection.scenarios import DetectionSet

__all__ = ["DATA", "STAGES", "run"]

logger = logging.getLogger(__name__)

STAGES = ("victims", "readers", "attack", "detect", "combine", "report")
PAGE = Path(__file__).parents[2] / "docs" / "rde_benchmark.md"
LEAST = 20  # adversarial texts that a set of the results must have; half of them to choose by
OURS = ("edit probe", "edit probe (WordNet)", "replaced words", "suspect words", "spelling")
COMPARED = ("suspect words", "replaced words", "max-softmax", "RDE")  # beside the combinations
CACHED = 100_000  # results of a classifier that are kept: the far attack repeats the near one's questions


def run(
    stage: str,
    data: Sequence[str] = tuple(DATA),
    *,
    victim_seeds: Sequence[int] = (0,),
    encoder: str = "minilm",
    runs: Path = Path("runs/rde"),
    threads: int = 1,
    plan: AttackPlan | None = None,
) -> None:
    """Runs one stage or all (see ``scripts/rde_benchmark.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    study = Study(runs, tuple(data), tuple(victim_seeds), plan or AttackPlan())
    if stage in ("victims", "all"):
        study.victims(VictimSettings(encoder=encoder))
    if stage in ("readers", "all"):
        study.readers(encoder)
    if stage in ("attack", "all"):
        study.attack()
    if stage in ("detect", "all"):
        study.detect()
    if stage in ("combine", "all"):
        study.combine()
    if stage in ("report", "all"):
        study.report()


class Study:
    """The stages over some victims, each named after its data set and seed.

    Args:
        runs: Folder of everything written.
        data: Names of the data sets.
        seeds: Of the victims' training.
        plan: Which texts are attacked.
    """

    def __init__(self, runs: Path, data: Sequence[str], seeds: Sequence[int], plan: AttackPlan) -> None:
        self.runs, self.data, self.plan = runs, data, plan
        self.names = {f"{name}-{seed}": (name, seed) for name in data for seed in seeds}

    @cached_property
    def _attacked(self) -> dict[str, tuple[str, int]]:
        """The victims that have been attacked: the results are of those, and the others are named.

        Raises:
            FileNotFoundError: None has been.
        """
        found = {victim: one for victim, one in self.names.items() if (self.runs / "logs" / victim).is_dir()}
        if not found:
            raise FileNotFoundError(
                f"no victim has been attacked in {self.runs}: run the stage 'attack' first"
            )
        if missing := self.names.keys() - found.keys():
            logger.warning("not attacked, so left out: %s", ", ".join(sorted(missing)))
        return found

    def _classifier(self, victim: str, cache: int | Path) -> TextClassifier:
        from robustkit.classifiers import TextClassifier

        return TextClassifier.from_pretrained(
            self.runs / "victims" / victim, name=f"minilm-{victim}", cache=cache
        )

    def victims(self, settings: VictimSettings) -> None:
        """Trains the victims that are not there."""
        for victim, (name, seed) in self.names.items():
            folder = self.runs / "victims" / victim
            if not folder.exists():
                logger.info("%s", train_victim(load_data(name), folder, seed=seed, settings=settings))

    def readers(self, encoder: str) -> None:
        """Trains the readers of the data sets that are not there."""
        from .detectors import kinds_of_edit

        lexicon = Lexicon.load()
        for name in self.data:
            if not self._reader(name).exists():
                figures = train_reader(
                    load_data(name),
                    kinds_of_edit(lexicon),
                    lexicon.stopwords,
                    self._reader(name),
                    seed=0,
                    encoder=encoder,
                )
                logger.info("%s", figures)

    def _reader(self, name: str) -> Path:
        return self.runs / "readers" / name

    def attack(self) -> None:
        """Attacks every victim."""
        lexicon = Lexicon.load()
        for victim, (name, _) in self.names.items():
            run_attacks(
                load_data(name),
                self._classifier(victim, CACHED),
                lexicon,
                self.runs / "logs" / victim,
                self.plan,
            )

    def detect(self) -> None:
        """Scores all texts with all detectors and writes the tables ``detectors`` and ``attacks``."""
        sets, scores = self._sets("test", LEAST), self._scores()
        rows = summary(sets, scores)
        self._write("detectors", rows)
        attacked = []
        for victim, (name, _) in self._attacked.items():
            for (attack, distance), log in read_logs(self.runs / "logs" / victim, "test").items():
                found = log.summary()
                attacked.append(
                    {
                        "data": name,
                        "attack": attack,
                        "distance": distance,
                        "victims": 1,
                        "texts": found.texts,
                        "accuracy": found.accuracy,
                        "under attack": found.accuracy_under_attack,
                        "success": found.success_rate,
                        "queries": found.mean_queries,
                        "words changed": found.perturbed_word_rate,
                    }
                )
        self._write(
            "attacks", averaged(attacked, ("data", "attack", "distance"), counts=("victims", "texts"))
        )

    def combine(self) -> None:
        """Chooses combinations on validation texts and writes ``combinations``: how they do on test texts."""
        scores = self._scores()
        validation, test = self._sets("validation", LEAST // 2), self._sets("test", LEAST)
        choices, with_combinations = combined(validation, scores)
        rows = summary(test, with_combinations)
        self._write("combinations", rows)
        singles = list(next(iter(scores.values())))
        write_json(
            self.runs / "tables" / "leads.json",
            [
                {"row": list(kind), "combination": name, "against": best, "lead": lead}
                | {"interval": interval_of(kind, name, best, test, with_combinations)}
                for name in choices
                for kind, lead, best in compared(rows, name, singles)
            ],
        )
        write_json(self.runs / "tables" / "choices.json", choices)

    def report(self) -> None:
        """Puts the tables of the other stages into ``docs/rde_benchmark.md``, between its marks."""
        tables = self.runs / "tables"
        attacked, rows = (
            json.loads((tables / f"{name}.json").read_text()) for name in ("attacks", "combinations")
        )
        choices = json.loads((tables / "choices.json").read_text())
        folders = (self.runs / "victims" / victim for victim in sorted(self._attacked))
        known = [json.loads((folder / "figures.json").read_text()) for folder in folders]
        names = ("data", "seed", "train_texts", "epoch", "validation_accuracy", "test_accuracy")
        parts = {
            "victims": markdown([{name: victim[name] for name in names} for victim in known]),
            "attacks": markdown(attacked),
            "overall": overall(rows),
            "s1": pivot(rows),
            "s2": pivot(rows, scenario="s2"),
            "rde": leads_table({"RDE": compared(rows, "RDE", ["max-softmax"])}),
            "reached": reached(rows, [*choices, *COMPARED], _bars(rows, choices)),
            "choices": markdown([{"combination": name} | choice for name, choice in choices.items()]),
            "leads": intervals_table(json.loads((tables / "leads.json").read_text())),
        }
        text = PAGE.read_text(encoding="utf-8")
        for name, part in parts.items():
            head, rest = text.split(f"<!-- {name} -->\n", 1)
            tail = rest.split(f"<!-- end {name} -->", 1)[1]
            text = f"{head}<!-- {name} -->\n\n{part}\n\n<!-- end {name} -->{tail}"
        write_bytes(PAGE, text.encode())

    def _sets(self, part: str, least: int) -> list[tuple[Setting, DetectionSet]]:
        return [
            found
            for victim, (name, _) in self._attacked.items()
            for found in settings_of(
                name, victim, read_logs(self.runs / "logs" / victim, part), SEEDS, least=least
            )
        ]

    def _scores(self) -> dict[str, Mapping[str, Mapping[int, Scores]]]:
        from .detectors import entries

        for name, _ in self._attacked.values():
            if not self._reader(name).is_dir():
                raise FileNotFoundError(f"no {self._reader(name)}: run the stage 'readers' first")
        lexicon = Lexicon.load()
        scores = {}
        for victim, (name, _) in self._attacked.items():
            classifier = self._classifier(victim, self.runs / "cache")
            material = Material(load_data(name), classifier, self.runs / "logs" / victim, self.plan)
            detectors = entries(classifier, lexicon, self._reader(name))
            scores[victim] = score_all(material, detectors, self.runs / "scores" / victim)
        return scores

    def _write(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        folder = self.runs / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", list(rows))
        write_csv(folder / f"{name}.csv", rows)
        write_bytes(folder / f"{name}.md", (markdown(rows) + "\n").encode())


def _bars(rows: Sequence[Mapping[str, object]], combinations: Collection[str]) -> dict[str, list[str]]:
    """Whom a detector is compared with: published ones, all single ones without and with the newest."""
    singles = [name for name in dict.fromkeys(str(r["detector"]) for r in rows) if name not in combinations]
    published = [name for name in singles if name not in OURS]
    before = [name for name in singles if name != "suspect words"]
    return {
        f"against the {len(published)} published": published,
        f"the {len(before)} without suspect words": before,
        f"all {len(singles)} single ones": singles,
    }


def leads_table(by_detector: Mapping[str, Sequence[tuple[tuple[str, ...], float, str]]]) -> str:
    """Leads of detectors in AUC points, a line for each row, and in how many each is at least as good."""
    lines: dict[tuple[str, ...], dict[str, object]] = {}
    reached: dict[str, object] = {"row": "at least equal", "against": ""}
    for name, found in by_detector.items():
        for kind, lead, best in found:
            lines.setdefault(kind, {"row": " ".join(kind), "against": best})[name] = f"{100 * lead:+.1f}"
        reached[name] = f"{sum(lead >= 0 for _, lead, _ in found)} of {len(found)}"
    return markdown([*lines.values(), reached])


def intervals_table(leads: Sequence[Mapping[str, Any]]) -> str:
    """Leads of combinations with their intervals, a line for each row, and how many are clear."""
    lines: dict[tuple[str, ...], dict[str, object]] = {}
    for one in leads:
        line = lines.setdefault(
            tuple(one["row"]), {"row": " ".join(one["row"]), "best single": one["against"]}
        )
        low, high = one["interval"]
        line[one["combination"]] = f"{100 * one['lead']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    names = list(dict.fromkeys(one["combination"] for one in leads))
    counts: list[dict[str, object]] = []
    for title, holds in (
        ("at least equal", lambda one: one["lead"] >= 0),
        ("interval above 0", lambda one: one["interval"][0] > 0),
        ("interval below 0", lambda one: one["interval"][1] < 0),
    ):
        own = {name: [one for one in leads if one["combination"] == name] for name in names}
        found = {name: f"{sum(map(holds, rows))} of {len(rows)}" for name, rows in own.items()}
        counts.append({"row": title, "best single": "", **found})
    return markdown([*lines.values(), *counts])


def interval_of(
    kind: Sequence[str],
    one: str,
    other: str,
    sets: Sequence[tuple[Setting, DetectionSet]],
    scores: Mapping[str, Mapping[str, Mapping[int, Scores]]],
) -> tuple[float, float]:
    """The `lead_interval` of a row: of each victim the first draw that is large enough."""
    first: dict[str, tuple[Setting, DetectionSet]] = {}
    for setting, drawn in sets:
        if (setting.data, setting.attack, setting.distance, setting.scenario) == tuple(kind):
            first.setdefault(setting.victim, (setting, drawn))
    return lead_interval(
        [
            Compared(
                at_seed(scores[setting.victim][one], setting.seed).at(drawn.texts),
                at_seed(scores[setting.victim][other], setting.seed).at(drawn.texts),
                drawn.is_adversarial,
                np.asarray(drawn.source_id),
            )
            for setting, drawn in first.values()
        ]
    )
