"""The stages of the study, from the speakers to the table."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from g2r_study.models import encoder_path

from dialogkit.embedded import lm_path
from dialogkit.evaluation.replies import Collected
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import StyleClassifier
from dialogkit.retrieval import load_retriever
from trainkit import FitConfig, write_json

from .material import inputs, speakers
from .measure import Measured, measure
from .replies import Setting, ask, latency
from .report import write_report

__all__ = ["STAGES", "Plan", "run"]

logger = logging.getLogger(__name__)

STAGES = ("judge", "replies", "latency", "measure", "report")


@dataclass(frozen=True)
class Plan:
    """How large everything is and what is asked.

    Attributes:
        model: ``"embedded"``, or folder or Hub id of a language model.
        dtype: Its number type; ``"bf16"`` lets the encoders that judge replies compute in it, too.
        retriever: Matches and orders; the encoder of relevance must be another one.
        encoder: Of relevance.
        judge: Folder or Hub id of the encoder that the style judge is made of; None for MiniLM.
        speakers: How many, at most ten.
        inputs: Turns that each is asked.
        seeds: Draws of every reply.
        candidates: Replies drawn of which the likeliest is taken.
        max_new_tokens: Most tokens of a reply.
        temperature: Of sampling.
    """

    model: str = "embedded"
    dtype: str = "float32"
    retriever: str = "embedded"
    encoder: str = "minilm"
    judge: str | None = None
    speakers: int = 10
    inputs: int = 200
    seeds: int = 3
    candidates: int = 1
    max_new_tokens: int = 20
    temperature: float = 0.7


def run(stage: str, plan: Plan, *, runs: Path, threads: int, page: bool) -> None:
    """Runs one stage or all (see ``scripts/evaluate_pdp.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(threads)
    study = Study(plan, runs, threads, page)
    for name in STAGES if stage == "all" else (stage,):
        study.timed(name)


class Study:
    """The stages.

    Args:
        plan: How large everything is.
        runs: Folder of everything written; it belongs to one plan.
        threads: CPU threads, for the record.
        page: Put the tables into the documentation, too.
    """

    def __init__(self, plan: Plan, runs: Path, threads: int, page: bool) -> None:
        self.plan, self.runs, self.threads, self.page = plan, runs, threads, page
        if plan.encoder == plan.retriever:
            raise ValueError(f"the encoder of relevance must not be the retriever, {plan.encoder}")
        runs.mkdir(parents=True, exist_ok=True)
        known, written = runs / "plan.json", dict(vars(plan))
        if known.is_file() and json.loads(known.read_text()) != written:
            raise ValueError(f"{runs} holds a study with other settings; name another folder with --runs")
        write_json(known, written)
        self.voices = speakers(plan.speakers)
        self.cases = inputs(plan.inputs)
        self.seeds = range(plan.seeds)

    def timed(self, stage: str) -> None:
        """Runs a stage and keeps the seconds of the longest run of it: a resumed one has less to do."""
        wall, cpu = time.monotonic(), time.process_time()
        getattr(self, stage)()
        spent = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
        path = self.runs / "seconds.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if stage not in known or known[stage]["cpu"] < spent["cpu"]:
            write_json(path, {**known, stage: spent})
        logger.info("%s: %.0f s, %.0f s of processor time", stage, spent["wall"], spent["cpu"])

    @cached_property
    def setting(self) -> Setting:
        """Model and retriever."""
        plan = self.plan
        source = lm_path() if plan.model == "embedded" else plan.model
        return Setting(
            TransformersLM.from_pretrained(source, dtype=plan.dtype),
            load_retriever(plan.retriever),
            GenerationConfig(
                max_new_tokens=plan.max_new_tokens,
                num_candidates=plan.candidates,
                temperature=plan.temperature,
            ),
        )

    @cached_property
    def _found(self) -> dict[tuple[str, str, int], Collected]:
        return ask(self.setting, self.voices, self.cases, self.seeds, self.runs / "replies")

    @cached_property
    def _measured(self) -> dict[str, Measured]:
        return measure(
            self._found,
            self.voices,
            self.cases,
            self.seeds,
            judge=self._judge,
            encoder=load_retriever(self.plan.encoder),
            folder=self.runs / "figures",
        )

    @cached_property
    def _judge(self) -> StyleClassifier:
        return StyleClassifier.from_pretrained(self.runs / "judge")

    def judge(self) -> None:
        """Trains the judge of style on the speakers' other lines."""
        if not (self.runs / "judge").exists():
            judge = StyleClassifier.train(
                {voice.id: voice.lines for voice in self.voices},
                self.plan.judge or encoder_path(),
                training=FitConfig(
                    epochs=8, batch_size=16, learning_rate=2e-4, warmup_ratio=0.1, mixed_precision="bf16"
                ),
            )
            judge.save_pretrained(self.runs / "judge")

    def replies(self) -> None:
        """Lets every speaker answer every input in every row."""
        assert self._found

    def latency(self) -> None:
        """Measures replies asked for alone."""
        path = self.runs / "latency.json"
        if not path.is_file():
            latency(self.setting, self.voices[0], self.cases[:20], path)

    def measure(self) -> None:
        """Judges all replies, in the language model's precision."""
        half = self.plan.dtype in ("bf16", "bfloat16")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            assert self._measured

    def report(self) -> None:
        """Writes table and figure; with ``--page`` into the documentation, too."""
        write_report(
            self._measured,
            json.loads((self.runs / "latency.json").read_text()),
            head=self._head(json.loads((self.runs / "seconds.json").read_text())),
            voices=self.voices,
            folder=self.runs,
            page=self.page,
        )

    def _head(self, seconds: Mapping[str, Mapping[str, float]]) -> str:
        plan, judge = self.plan, self._judge
        minutes = {name: f"{name} {spent['cpu'] / 60:.1f}" for name, spent in seconds.items()}
        drawn = (
            f"{plan.candidates} candidates" if plan.candidates > 1 else "one draw"
        ) + f" of at most {plan.max_new_tokens} tokens at temperature {plan.temperature}"
        return (
            f"{plan.speakers} speakers × {plan.inputs} inputs × {plan.seeds} seeds = "
            f"{plan.speakers * plan.inputs * plan.seeds:,} replies a row; language model {plan.model} in "
            f"{plan.dtype}, {drawn}; retriever {plan.retriever}, relevance by {plan.encoder}. The judge's "
            f"accuracy on {judge.held_out} unseen lines is {judge.accuracy:.3f} (chance "
            f"{1 / len(judge.labels):.3f}). Minutes of processor time: {', '.join(minutes.values())}; "
            f"{self.threads} thread, {platform.machine()}, {os.cpu_count()} cores that did other work, too."
        )
