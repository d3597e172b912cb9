"""Trains every method with every seed at several budgets of passes, attacks it and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from robustkit.attacks.gradient import PGD, margin, strong_attack
from trainkit import FitConfig, fit
from trainkit.hub import write_json

from .report import Result, write_report
from .studies import STUDIES, Entry, Split, Study

__all__ = ["run"]

ATTACKED_AT_ONCE = 250
"""Images; larger batches do not fit the processor's cache."""


def run(
    output: Path,
    *,
    data: str,
    methods: Sequence[str] | None,
    passes: Sequence[int],
    seeds: Sequence[int],
    attack_steps: int,
    test: int,
    threads: int,
    page: bool,
) -> None:
    """Trains, attacks, writes results (a run that is there already is not repeated), tables and a figure.

    Args:
        output: Folder of the results.
        data: A key of `STUDIES`.
        methods: Names of the methods; None for all.
        passes: Budgets: forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds.
        attack_steps: Steps of PGD in the evaluation.
        test: Test images that are attacked.
        threads: CPU threads.
        page: Put tables and figure into ``docs/si_hg.md`` too.
    """
    torch.set_num_threads(threads)
    study = STUDIES[data]
    entries = [entry for entry in study.methods() if methods is None or entry.name in methods]
    train, whole = study.load()
    held_out = Split(whole.pixels[:test], whole.labels[:test])
    file = output / f"{data}-{attack_steps}-{len(held_out)}.json"
    output.mkdir(parents=True, exist_ok=True)
    known = [Result(**row) for row in json.loads(file.read_text())["results"]] if file.exists() else []
    for seed in seeds:
        for budget in passes:
            for entry in entries:
                if any((row.method, row.seed, row.budget) == (entry.name, seed, budget) for row in known):
                    continue
                known.append(_one(study, entry, seed, budget, attack_steps, train, held_out))
                write_json(file, {"epsilon": study.epsilon, "results": [asdict(row) for row in known]})
                print(known[-1], flush=True)
    names = {entry.name for entry in entries}
    chosen = [r for r in known if r.seed in seeds and r.budget in passes and r.method in names]
    write_report(study, chosen, output, attack_steps=attack_steps, images=len(held_out), page=page)


def _one(
    study: Study, entry: Entry, seed: int, budget: int, attack_steps: int, train: Split, test: Split
) -> Result:
    steps = max(1, budget // entry.passes)
    model, method = study.network(seed), entry.make(len(train), steps)
    rate = study.rate * entry.rate
    config = FitConfig(
        max_steps=steps,
        batch_size=study.batch,
        learning_rate=rate,
        schedule="linear",
        warmup_ratio=0.2,
        max_grad_norm=None,
        seed=seed,
        cpu=True,
        progress=False,
        log_every=steps,
    )
    started = time.process_time()
    fit(
        model,
        method,
        train,
        config=config,
        optimizer=lambda m: study.optimizer(m, rate),
    )
    seconds = time.process_time() - started
    settings = {"steps": attack_steps, "step_size": study.epsilon / 5, "restarts": 2}
    pgd, cw = (
        1 - _fooled(attack, model, test, seed)
        for attack in (PGD(study.threat, **settings), PGD(study.threat, loss=margin, **settings))
    )
    suite = strong_attack(study.threat, 10, steps=50, queries=500, batch_size=ATTACKED_AT_ONCE)
    found = suite.run(model, test.pixels, test.labels, seed=seed)
    return Result(
        method=entry.name,
        seed=seed,
        budget=budget,
        units=round(method.cost.units / (steps * study.batch), 2),
        clean=found.clean_accuracy,
        pgd=pgd,
        cw=cw,
        suite=found.robust_accuracy,
        seconds=round(seconds, 1),
    )


def _fooled(attack: PGD, model: nn.Module, test: Split, seed: int) -> float:
    """Share of the test images that an attack gets wrong, those misclassified without it among them."""
    parts = zip(test.pixels.split(ATTACKED_AT_ONCE), test.labels.split(ATTACKED_AT_ONCE), strict=True)
    return float(torch.cat([attack.run(model, *part, seed=seed).success for part in parts]).float().mean())
