"""Trains every method with every seed at several budgets of passes, attacks it and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from robustkit.attacks.gradient import PGD, margin, strong_attack
from robustkit.training import Growing
from trainkit import FitConfig, fit
from trainkit.hub import write_json

from .report import Result, write_report
from .studies import STUDIES, Entry, Split, Study

__all__ = ["run"]

ATTACKED_AT_ONCE = 250
"""Images; larger batches do not fit the processor's cache."""
HELD_OUT = 500
"""The last training images, at most a quarter of them, on which rates are chosen."""
CHOOSING_SEEDS = (100, 101)


@dataclass(frozen=True)
class Setting:
    """What a method may choose.

    Attributes:
        share: Of its usual learning rate.
        grow: Share of the steps in which the ball grows to its size.
    """

    share: float = 1.0
    grow: float = 0.0


def run(
    output: Path,
    *,
    data: str,
    methods: Sequence[str] | None,
    passes: Sequence[int],
    seeds: Sequence[int],
    rates: Sequence[float] = (),
    growth: Sequence[float] = (),
    attack_steps: int,
    test: int,
    threads: int,
    page: bool,
    gpu: bool = False,
) -> None:
    """Trains, attacks, writes results (a run that is there already is not repeated), tables and a figure.

    Args:
        output: Folder of the results.
        data: A key of `STUDIES`.
        methods: Names of the methods; None for all.
        passes: Budgets: forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds.
        rates: Shares of the learning rate of each method from which it chooses on training images that are
            held out, for each budget; none leaves the rates as they are.
        growth: Shares of the steps in which the ball grows, from which it chooses likewise; none is 0.
        attack_steps: Steps of PGD in the evaluation.
        test: Test images that are attacked.
        threads: CPU threads.
        page: Put tables and figure into ``docs/si_hg.md`` too.
        gpu: Train and attack on the GPU.
    """
    torch.set_num_threads(threads)
    study = replace(STUDIES[data], device="cuda" if gpu else "cpu")
    entries = [entry for entry in study.methods() if methods is None or entry.name in methods]
    train, whole = study.load()
    held_out = Split(whole.pixels[:test], whole.labels[:test])
    place = "-gpu" if gpu else ""
    file = output / f"{data}-{attack_steps}-{len(held_out)}{place}.json"
    output.mkdir(parents=True, exist_ok=True)
    known = [Result(**row) for row in json.loads(file.read_text())["results"]] if file.exists() else []
    settings = {(entry.name, budget): Setting() for entry in entries for budget in passes}
    if rates or growth:
        offered = [Setting(share, grow) for share in rates or (1.0,) for grow in growth or (0.0,)]
        for budget in passes:
            found = _chosen(study, entries, offered, budget, train, output / f"{data}-rates{place}.json")
            settings |= {(name, budget): setting for name, setting in found.items()}
    for seed in seeds:
        for budget in passes:
            for entry in entries:
                setting = settings[entry.name, budget]
                wanted = (entry.name, seed, budget, setting)
                if wanted in {
                    (row.method, row.seed, row.budget, Setting(row.share, row.grow)) for row in known
                }:
                    continue
                known.append(_one(study, entry, seed, budget, setting, attack_steps, train, held_out))
                write_json(file, {"epsilon": study.epsilon, "results": [asdict(row) for row in known]})
                print(known[-1], flush=True)
    chosen = [
        row
        for row in known
        if row.seed in seeds and settings.get((row.method, row.budget)) == Setting(row.share, row.grow)
    ]
    write_report(
        study,
        chosen,
        output,
        attack_steps=attack_steps,
        images=len(held_out),
        rates=rates,
        growth=growth,
        page=page,
    )


def _chosen(
    study: Study,
    entries: Sequence[Entry],
    offered: Sequence[Setting],
    budget: int,
    train: Split,
    file: Path,
) -> dict[str, Setting]:
    """Each method's setting with the best accuracy on the held-out training images.

    PGD decides, to one percent, then clean accuracy, each the mean over `CHOOSING_SEEDS`; of natural training
    clean accuracy alone, since under PGD it is best where it has learned nothing. The file keeps what was
    tried.
    """
    cut = len(train) - min(HELD_OUT, len(train) // 4)
    rest = Split(train.pixels[:cut], train.labels[:cut])
    judges = Split(train.pixels[cut:], train.labels[cut:]).to(study.device)
    attack = PGD(study.threat, steps=20, step_size=study.epsilon / 5)
    rows = json.loads(file.read_text()) if file.exists() else []
    known = {
        (row["method"], row["budget"], Setting(row["share"], row.get("grow", 0.0)), row["seed"]): row
        for row in rows
    }
    best = {}
    for entry in entries:
        found: dict[Setting, list[dict[str, Any]]] = {}
        if entry.name == "natural":  # it has no ball
            settings = [Setting(share) for share in dict.fromkeys(setting.share for setting in offered)]
        else:
            settings = list(offered)
        for setting in settings:
            found[setting] = []
            for seed in CHOOSING_SEEDS:
                tried = (entry.name, budget, setting, seed)
                if tried not in known:
                    model, _, _ = _trained(study, entry, seed, budget, setting, rest)
                    with torch.inference_mode():
                        clean = (model(judges.pixels).argmax(dim=1) == judges.labels).double().mean().item()
                    known[tried] = {
                        "method": entry.name, "budget": budget, **asdict(setting), "seed": seed,
                        "clean": clean, "pgd": 1 - _fooled(attack, model, judges, seed),
                    }  # fmt: skip
                    write_json(file, list(known.values()))
                    print(known[tried], flush=True)
                found[setting].append(known[tried])
        judge = _clean if entry.name == "natural" else _merit
        best[entry.name] = max(found, key=lambda setting: judge(found[setting]))
    return best


def _clean(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    return fmean(row["clean"] for row in rows), 0.0


def _merit(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    return round(fmean(row["pgd"] for row in rows), 2), fmean(row["clean"] for row in rows)


def _trained(
    study: Study,
    entry: Entry,
    seed: int,
    budget: int,
    setting: Setting,
    train: Split,
) -> tuple[nn.Module, float, float]:
    """A network in evaluation mode, its units per step and image, and seconds of training.

    They are the processor's, with a GPU those of the clock.
    """
    steps = max(1, budget // entry.passes)
    growing = Growing(study.threat, round(setting.grow * steps))
    model, method = study.network(seed), entry.make(growing, len(train), steps)
    rate = study.rate * entry.rate * setting.share
    config = FitConfig(
        max_steps=steps,
        batch_size=study.batch,
        learning_rate=rate,
        schedule="linear",
        warmup_ratio=0.2,
        max_grad_norm=None,
        seed=seed,
        cpu=study.device == "cpu",
        progress=False,
        log_every=steps,
    )
    clock = time.process_time if study.device == "cpu" else time.perf_counter
    started = clock()
    fit(
        model,
        method,
        train,
        config=config,
        optimizer=lambda m: study.optimizer(m, rate),
    )
    seconds = clock() - started
    return model.eval(), method.cost.units / (steps * study.batch), seconds


def _one(
    study: Study,
    entry: Entry,
    seed: int,
    budget: int,
    setting: Setting,
    attack_steps: int,
    train: Split,
    test: Split,
) -> Result:
    model, units, seconds = _trained(study, entry, seed, budget, setting, train)
    test = test.to(study.device)
    steps = {"steps": attack_steps, "step_size": study.epsilon / 5, "restarts": 2}
    pgd, cw = (
        1 - _fooled(attack, model, test, seed)
        for attack in (PGD(study.threat, **steps), PGD(study.threat, loss=margin, **steps))
    )
    suite = strong_attack(study.threat, 10, steps=50, queries=500, batch_size=ATTACKED_AT_ONCE)
    found = suite.run(model, test.pixels, test.labels, seed=seed)
    return Result(
        method=entry.name,
        seed=seed,
        budget=budget,
        **asdict(setting),
        units=round(units, 2),
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
