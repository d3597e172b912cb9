"""The stages of the study, from DailyDialog to the tables of ``docs/dress.md``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

from dialogkit.diversity.clusters import SemanticClusters
from dialogkit.diversity.dress import human_perplexity
from dialogkit.diversity.encoders import CausalLMEncoder, SentenceTransformerEncoder, load_encoder
from dialogkit.diversity.lexical import token_counts
from dialogkit.generation import TransformersLM
from trainkit import write_json
from trainkit.hub import write_bytes

from .data import Material, Settings, load_material
from .measure import figures, leads, summary
from .runs import METHODS, answers, train_base, train_run

__all__ = ["METHODS", "STAGES", "run"]

logger = logging.getLogger(__name__)

STAGES = ("base", "clusters", "train", "measure", "report")
PAGE = Path(__file__).parents[2] / "docs" / "dress.md"


def run(
    stage: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = METHODS,
    runs: Path = Path("runs/dress"),
    threads: int = 1,
    settings: Settings | None = None,
) -> None:
    """Runs one stage or all (see ``scripts/dress_experiment.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
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
        methods: What is trained.
        settings: The scale.
    """

    def __init__(
        self, folder: Path, seeds: Sequence[int], methods: Sequence[str], settings: Settings
    ) -> None:
        self.folder, self.seeds, self.methods, self.settings = folder, seeds, methods, settings

    @cached_property
    def material(self) -> Material:
        """The pairs."""
        return load_material(self.settings)

    def base(self) -> None:
        """Trains the common start."""
        if not (self.folder / "base").exists():
            train_base(self.material, self.settings, self.folder / "base")

    def clusters(self) -> None:
        """Fits the clusters that training uses and those that it never sees."""
        responses = [one.response for one in self.material.train[: self.settings.cluster_responses]]
        for name, encoder in (("training", self._own()), ("held-out", self._minilm())):
            path = self.folder / "clusters" / name
            if not path.exists():
                SemanticClusters.fit(responses, encoder).save_pretrained(path)

    def train(self) -> None:
        """Trains every method with every seed."""
        clusters = self._clusters("training")
        for seed in self.seeds:
            for method in self.methods:
                folder = self._run(method, seed)
                if not (folder / "run.json").exists():
                    train_run(
                        method,
                        seed,
                        self.material,
                        self.settings,
                        base=self.folder / "base",
                        clusters=clusters,
                        folder=folder,
                    )

    def measure(self) -> None:
        """Measures the replies of all runs, of the common start, and of people."""
        clusters, held_out = self._clusters("training"), self._clusters("held-out")
        test = self.material.test
        counts = token_counts([one.response for one in self.material.train])
        start = TransformersLM.from_pretrained(self.folder / "base")
        found: list[dict[str, object]] = [
            {"method": "people", "seed": 0, "replies": [one.response for one in test], "perplexity": None},
            {
                "method": "common start",
                "seed": 0,
                "replies": answers(start, test, self.settings),
                "perplexity": human_perplexity(start, test),
            },
        ]
        for seed in self.seeds:
            for method in self.methods:
                found.append(json.loads((self._run(method, seed) / "run.json").read_text(encoding="utf-8")))
        rows = [
            {"method": one["method"], "seed": one["seed"]}
            | figures(
                one["replies"],  # type: ignore[arg-type]
                test,
                clusters=clusters,
                held_out=held_out,
                encoder=self._minilm(),
                train_counts=counts,
                perplexity=one["perplexity"],  # type: ignore[arg-type]
            )
            for one in found
        ]
        facts = {
            "settings": asdict(self.settings),
            "top_five_share": sum(sorted(clusters.train_histogram)[-5:]),
            "rows": rows,
        }
        write_json(self.folder / "figures.json", facts)

    def report(self) -> None:
        """Puts the tables into ``docs/dress.md``, between its marks."""
        facts = json.loads((self.folder / "figures.json").read_text(encoding="utf-8"))
        rows = facts["rows"]
        parts = {
            "figures": _markdown(summary(rows, ("people", "common start", *METHODS))),
            "leads": _markdown(leads(rows, METHODS[1:])),
        }
        text = PAGE.read_text(encoding="utf-8")
        for name, part in parts.items():
            head, rest = text.split(f"<!-- {name} -->\n", 1)
            tail = rest.split(f"<!-- end {name} -->", 1)[1]
            text = f"{head}<!-- {name} -->\n\n{part}\n\n<!-- end {name} -->{tail}"
        write_bytes(PAGE, text.encode())

    def _run(self, method: str, seed: int) -> Path:
        return self.folder / "runs" / f"{method.replace(' ', '-')}-{seed}"

    def _own(self) -> CausalLMEncoder:
        """The last token of the common start: a copy that no run trains."""
        return CausalLMEncoder.from_pretrained(self.folder / "base")

    def _minilm(self) -> SentenceTransformerEncoder:
        encoder = load_encoder("minilm")
        assert isinstance(encoder, SentenceTransformerEncoder)
        return encoder

    def _clusters(self, name: str) -> SemanticClusters:
        encoder = self._own() if name == "training" else self._minilm()
        return SemanticClusters.from_pretrained(self.folder / "clusters" / name).attach(encoder)


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])
