"""Trains every method with every seed at several budgets of passes, attacks it and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from robustkit.attacks.gradient import PGD, margin, strong_attack
from trainkit import FitConfig, fit
from trainkit.hub import write_json

from .digits import BATCH, EPSILON, METHODS, THREAT, Entry, Split, digits, network
from .report import Result, write_report

__all__ = ["run"]


def run(
    output: Path,
    *,
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
        passes: Budgets: forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds.
        attack_steps: Steps of PGD in the evaluation.
        test: Test images that are attacked.
        threads: CPU threads.
        page: Put tables and figure into ``docs/si_hg.md`` too.
    """
    torch.set_num_threads(threads)
    train, whole = digits()
    held_out = Split(whole.pixels[:test], whole.labels[:test])
    file = output / f"digits-{attack_steps}-{len(held_out)}.json"
    output.mkdir(parents=True, exist_ok=True)
    known = [Result(**row) for row in json.loads(file.read_text())["results"]] if file.exists() else []
    for budget in passes:
        for seed in seeds:
            for entry in METHODS:
                if any((row.method, row.seed, row.budget) == (entry.name, seed, budget) for row in known):
                    continue
                known.append(_one(entry, seed, budget, attack_steps, train, held_out))
                write_json(file, {"epsilon": EPSILON, "results": [asdict(row) for row in known]})
                print(known[-1], flush=True)
    chosen = [row for row in known if row.seed in seeds and row.budget in passes]
    write_report(chosen, output, attack_steps=attack_steps, images=len(held_out), page=page)


def _one(entry: Entry, seed: int, budget: int, attack_steps: int, train: Split, test: Split) -> Result:
    steps = max(1, budget // entry.passes)
    model, method = network(seed), entry.make(len(train), steps)
    config = FitConfig(
        max_steps=steps,
        batch_size=BATCH,
        learning_rate=entry.rate,
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
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=entry.rate, momentum=0.9, weight_decay=5e-4),
    )
    seconds = time.process_time() - started
    settings = {"steps": attack_steps, "step_size": EPSILON / 5, "restarts": 2}
    pgd, cw = (
        1 - float(attack.run(model, test.pixels, test.labels, seed=seed).success.float().mean())
        for attack in (PGD(THREAT, **settings), PGD(THREAT, loss=margin, **settings))
    )
    suite = strong_attack(THREAT, 10, steps=50, queries=500, batch_size=len(test))
    found = suite.run(model, test.pixels, test.labels, seed=seed)
    return Result(
        method=entry.name,
        seed=seed,
        budget=budget,
        units=round(method.cost.units / (steps * BATCH), 2),
        clean=found.clean_accuracy,
        pgd=pgd,
        cw=cw,
        suite=found.robust_accuracy,
        seconds=round(seconds, 1),
    )
