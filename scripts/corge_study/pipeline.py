"""The stages of the study, from DailyDialog to the tables of ``docs/corge.md``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from dress_study.data import Material, load_material
from dress_study.runs import train_base

from dialogkit.dialogues import Example
from dialogkit.exemplar import ExemplarPacker, exemplars_from
from dialogkit.generation import TransformersLM
from dialogkit.retrieval import ResponseIndex, Retriever, load_retriever
from trainkit import FitConfig, atomic_directory, write_json
from trainkit.hub import write_bytes

from .measure import SOURCES, Answers, answers, figures, summary, swap_test
from .picture import draw
from .runs import METHODS, Settings, budget_of, train_run

__all__ = ["METHODS", "STAGES", "run"]

logger = logging.getLogger(__name__)

STAGES = ("base", "train", "measure", "report")
DOCS = Path(__file__).parents[2] / "docs"


def run(
    stage: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = METHODS,
    runs: Path = Path("runs/corge"),
    threads: int = 1,
    settings: Settings | None = None,
) -> None:
    """Runs one stage or all (see ``scripts/corge_experiment.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    study = Study(runs, tuple(seeds), tuple(methods), settings or Settings())
    for name in STAGES:
        if stage in (name, "all"):
            getattr(study, name)()


class Study:
    """The stages; each leaves its files under ``folder`` and skips what is there.

    Args:
        folder: Folder of everything written.
        seeds: Of the runs.
        methods: Those of `METHODS` to run.
        settings: The scale.
    """

    def __init__(
        self, folder: Path, seeds: Sequence[int], methods: Sequence[str], settings: Settings
    ) -> None:
        self.folder, self.seeds, self.methods, self.settings = folder, seeds, methods, settings
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def material(self) -> Material:
        """The pairs."""
        return load_material(self.settings.start)

    @cached_property
    def retriever(self) -> Retriever:
        """MiniLM as it comes, for contexts and responses."""
        return load_retriever("minilm")

    @cached_property
    def index(self) -> ResponseIndex:
        """The first training responses."""
        path = self.folder / "index"
        if not path.exists():
            texts = dict.fromkeys(one.response for one in self.material.train)
            kept = list(texts)[: self.settings.responses]
            ResponseIndex.build(self.retriever, kept).save_pretrained(path)
        return ResponseIndex.from_pretrained(path)

    def base(self) -> None:
        """Trains the common start."""
        if not (self.folder / "base").exists():
            train_base(self.material, self.settings.start, self.folder / "base")

    @cached_property
    def test(self) -> list[Example]:
        """What is measured: the first test pairs are left out, as the rate was tried on them."""
        return self.material.test[self.settings.tried :]

    def _run(self, method: str, seed: int) -> Path:
        return self.folder / "runs" / f"{method}-{seed}"

    def train(self) -> None:
        """Trains every method with every seed."""
        for seed in self.seeds:
            for method in self.methods:
                folder = self._run(method, seed)
                if (folder / "generator").exists():
                    continue
                packer = train_run(
                    method,
                    seed,
                    self.material.train,
                    self.retriever,
                    self.index,
                    self.settings,
                    base=self.folder / "base",
                    folder=folder,
                )
                with atomic_directory(folder / "generator") as written:
                    packer.lm.model.save_pretrained(written)
                    packer.lm.tokenizer.save_pretrained(written)
                shutil.rmtree(folder / "fit")

    def measure(self) -> None:
        """Measures all runs that are there and have not been measured."""
        turns = self.settings.start.turns
        exemplars = {
            name: exemplars_from(name, self.test, self.retriever, self.index, max_turns=turns)
            for name in SOURCES
        }
        for seed in self.seeds:
            for method in METHODS:
                folder = self._run(method, seed)
                if not (folder / "generator").exists() or (folder / "run.json").exists():
                    continue
                lm = TransformersLM.from_pretrained(folder / "generator")
                packer = ExemplarPacker(lm, budget=budget_of(self.settings))
                given = Answers(
                    answers(packer, self.test, exemplars["context"]),
                    answers(packer, self.test, exemplars["random"]),
                )
                found = figures(packer, self.test, exemplars, given, self.retriever)
                write_json(
                    folder / "run.json", {"method": method, "seed": seed, **found, "answers": asdict(given)}
                )
                logger.info("%s, seed %d: %s", method, seed, found)

    def report(self) -> None:
        """Puts tables and figure into the page, between its marks."""
        rows: list[dict[str, Any]] = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self.folder / "runs").glob("*/run.json"))
        ]
        replies = {
            method: [Answers(**row["answers"]) for row in rows if row["method"] == method]
            for method in METHODS
        }
        lines = ["| changed more than | by | p |", "| --- | --- | --- |"]
        for one, other in (("corge", "retnref"), ("retnref-alpha", "retnref"), ("corge", "none")):
            difference, p = swap_test(replies[one], replies[other])
            lines.append(f"| {one} than {other} | {difference:+.3f} | {p:.1e} |")
        parts = {
            "plan": "```json\n" + json.dumps(plan(self.settings), indent=1) + "\n```",
            "figures": summary(rows, METHODS),
            "swap": "\n".join(lines),
        }
        page = DOCS / "corge.md"
        text = page.read_text(encoding="utf-8")
        for name, part in parts.items():
            head, rest = text.split(f"<!-- {name} -->\n", 1)
            tail = rest.split(f"<!-- end {name} -->", 1)[1]
            text = f"{head}<!-- {name} -->\n\n{part}\n\n<!-- end {name} -->{tail}"
        write_bytes(page, text.encode())
        draw(rows, METHODS, DOCS / "img" / "corge.svg")


def plan(settings: Settings) -> dict[str, Any]:
    """The settings that the runs use."""
    start = settings.start
    own = {name: value for name, value in asdict(settings).items() if name != "start"}
    base = {name: getattr(start, name) for name in ("turns", "base_pairs", "base_steps", "base_rate")}
    return {
        **base,
        **own,
        "max_grad_norm": FitConfig(epochs=1).max_grad_norm,
        "test": start.test - settings.tried,
    }
