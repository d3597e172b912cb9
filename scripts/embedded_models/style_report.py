"""Runs the style study and writes its tables."""

from __future__ import annotations

import csv
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dialogkit.embedded import biencoder_path, contexts_path, lm_path
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.retrieval import ContextPool, load_retriever
from trainkit import write_json

from .style import load_speakers, questions, run_study

__all__ = ["markdown", "run"]


def run(
    *,
    part: str,
    seeds: int,
    candidates: int,
    selection: str,
    temperature: float,
    max_dialogs: int,
    model: str,
    retriever: str | None,
    output: Path,
) -> None:
    """Runs the study, prints its tables, writes ``study.json``, ``study.md`` and every reply to a CSV."""
    started = time.monotonic()
    speakers = load_speakers()
    generation = GenerationConfig(num_candidates=candidates, max_new_tokens=40, temperature=temperature)
    study = run_study(
        speakers,
        questions(part),
        model=TransformersLM.from_pretrained(lm_path() if model == "embedded" else model),
        retriever=load_retriever(retriever or biencoder_path()),
        pool=ContextPool.from_lines(contexts_path()),
        seeds=range(1, seeds + 1),
        generation=generation,
        selection=selection,
        max_dialogs=max_dialogs,
    )
    seconds = time.monotonic() - started
    table, gaps = study.table(), study.differences()
    by_speaker = [
        {"speaker": speaker.id, **{method: probs[s].mean() for method, probs in study.probs.items()}}
        for s, speaker in enumerate(speakers)
    ]
    head = (
        f"{len(speakers)} speakers, {len(questions(part))} questions ({part}), {seeds} seeds; {candidates} "
        f"candidates, selection {selection}, temperature {temperature}, {max_dialogs} utterances shown. "
        f"Classifier accuracy on unseen lines {study.accuracy:.3f} (chance {1 / len(speakers):.3f}). "
        f"{seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores ({platform.machine()})."
    )
    text = "\n\n".join([head, markdown(table), markdown(gaps), markdown(by_speaker)]) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "study.md").write_text(text, encoding="utf-8")
    write_json(
        output / "study.json", {"head": head, "table": table, "differences": gaps, "speakers": by_speaker}
    )
    with (output / "replies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(study.replies[0]))
        writer.writeheader()
        writer.writerows(study.replies)
    print(text)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; floats with three decimals."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
