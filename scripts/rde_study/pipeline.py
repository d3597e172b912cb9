"""The stages of the study, from the data to the tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainkit import write_json
from trainkit.hub import write_bytes

from .attacks import AttackPlan, Lexicon, read_logs, run_attacks
from .choosing import combined
from .data import DATA, load_data
from .measure import Scores, Setting, settings_of, summary
from .scoring import SEEDS, Material, score_all
from .tables import compared, markdown, overall, pivot, write_csv
from .victims import VictimSettings, train_victim

if TYPE_CHECKING:
    from robustkit.classifiers import TextClassifier

__all__ = ["DATA", "STAGES", "run"]

logger = logging.getLogger(__name__)

STAGES = ("victims", "attack", "detect", "combine")
CACHED = 100_000  # results of a classifier that are kept: the far attack repeats the near one's questions


def run(
    stage: str,
    data: Sequence[str] = tuple(DATA),
    *,
    victim_seed: int = 0,
    encoder: str = "minilm",
    runs: Path = Path("runs/rde"),
    threads: int = 1,
    plan: AttackPlan | None = None,
) -> None:
    """Runs one stage or all (see ``scripts/rde_benchmark.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    study = Study(runs, tuple(data), victim_seed, plan or AttackPlan())
    if stage in ("victims", "all"):
        study.victims(VictimSettings(encoder=encoder))
    if stage in ("attack", "all"):
        study.attack()
    if stage in ("detect", "all"):
        study.detect()
    if stage in ("combine", "all"):
        study.combine()


class Study:
    """The stages over some data sets.

    Args:
        runs: Folder of everything written.
        data: Names of the data sets.
        seed: Of the victims' training.
        plan: Which texts are attacked.
    """

    def __init__(self, runs: Path, data: Sequence[str], seed: int, plan: AttackPlan) -> None:
        self.runs, self.data, self.seed, self.plan = runs, data, seed, plan

    def _folder(self, kind: str, name: str) -> Path:
        return self.runs / kind / f"{name}-{self.seed}"

    def _classifier(self, name: str, cache: int | Path) -> TextClassifier:
        from robustkit.classifiers import TextClassifier

        folder = self._folder("victims", name)
        return TextClassifier.from_pretrained(folder, name=f"minilm-{name}-{self.seed}", cache=cache)

    def victims(self, settings: VictimSettings) -> None:
        """Trains the victims that are not there."""
        for name in self.data:
            folder = self._folder("victims", name)
            if not folder.exists():
                logger.info("%s", train_victim(load_data(name), folder, seed=self.seed, settings=settings))

    def attack(self) -> None:
        """Attacks every victim."""
        lexicon = Lexicon.load()
        for name in self.data:
            run_attacks(
                load_data(name),
                self._classifier(name, CACHED),
                lexicon,
                self._folder("logs", name),
                self.plan,
            )

    def detect(self) -> None:
        """Scores all texts with all detectors and writes the tables ``detectors`` and ``attacks``."""
        sets, scores = self._sets("test"), self._scores()
        rows = summary(sets, scores)
        self._write("detectors", rows)
        attacked = []
        for name in self.data:
            for (attack, distance), log in read_logs(self._folder("logs", name), "test").items():
                found = log.summary()
                attacked.append(
                    {
                        "data": name,
                        "attack": attack,
                        "distance": distance,
                        "texts": found.texts,
                        "accuracy": found.accuracy,
                        "under attack": found.accuracy_under_attack,
                        "success": found.success_rate,
                        "queries": found.mean_queries,
                        "words changed": found.perturbed_word_rate,
                    }
                )
        self._write("attacks", attacked)
        print(markdown(attacked), overall(rows), pivot(rows), pivot(rows, scenario="s2"), sep="\n\n")
        print("\nRDE against max-softmax", leads_text(compared(rows, "RDE", ["max-softmax"])), sep="\n")

    def combine(self) -> None:
        """Chooses combinations on validation texts and writes ``combinations``: how they do on test texts."""
        scores = self._scores()
        validation, test = self._sets("validation"), self._sets("test")
        choices, with_combinations = combined(validation, scores)
        rows = summary(test, with_combinations)
        self._write("combinations", rows)
        write_json(self.runs / "tables" / "choices.json", choices)
        print(overall(rows), pivot(rows), pivot(rows, scenario="s2"), sep="\n\n")
        singles = list(next(iter(scores.values())))
        for name in choices:
            print(
                f"\n{name} against the best single one", leads_text(compared(rows, name, singles)), sep="\n"
            )

    def _sets(self, part: str) -> list[tuple[Setting, object]]:
        return [
            found
            for name in self.data
            for found in settings_of(name, read_logs(self._folder("logs", name), part), SEEDS)
        ]

    def _scores(self) -> dict[str, Mapping[str, Mapping[int, Scores]]]:
        from .detectors import entries

        lexicon = Lexicon.load()
        scores = {}
        for name in self.data:
            classifier = self._classifier(name, self.runs / "cache")
            material = Material(load_data(name), classifier, self._folder("logs", name), self.plan)
            scores[name] = score_all(material, entries(classifier, lexicon), self._folder("scores", name))
        return scores

    def _write(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        folder = self.runs / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", list(rows))
        write_csv(folder / f"{name}.csv", rows)
        write_bytes(folder / f"{name}.md", (markdown(rows) + "\n").encode())


def leads_text(found: Sequence[tuple[tuple[str, ...], float, str]]) -> str:
    """Leads in AUC points, one a line, after how many there are."""
    lines = [f"{' '.join(kind)}: {100 * lead:+.1f} ({best})" for kind, lead, best in found]
    return "\n".join(
        [f"at least equal in {sum(lead >= 0 for _, lead, _ in found)} of {len(found)} rows", *lines]
    )
