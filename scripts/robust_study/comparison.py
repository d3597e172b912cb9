"""Trains every method with every seed at the same number of passes, attacks it and writes the table."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch

from robustkit.attacks.gradient import PGD, margin
from trainkit import FitConfig, fit
from trainkit.hub import write_json

from .digits import EPSILON, METHODS, THREAT, Entry, Split, digits, network

__all__ = ["run"]

BATCH = 64


@dataclass(frozen=True)
class Result:
    """One trained network.

    Attributes:
        method: Its name.
        seed: Of network, order and attacks.
        passes: Minibatch passes spent.
        units: Forward 1, backward to the inputs 1, to the weights 2, per step and `BATCH` images; a little
            below the nominal figure, since an epoch's last batch is smaller.
        clean: Accuracy on test images.
        pgd: Accuracy under PGD-50 with two restarts.
        cw: Accuracy under the same attack with the margin loss.
        seconds: Of training.
    """

    method: str
    seed: int
    passes: int
    units: float
    clean: float
    pgd: float
    cw: float
    seconds: float


def run(
    output: Path, *, passes: int, seeds: Sequence[int], attack_steps: int, test: int, threads: int
) -> None:
    """Trains, attacks, writes ``results.json`` (a run that is there already is not repeated) and a table.

    Args:
        output: Folder of the results.
        passes: Forward-backward passes of a minibatch that every method may spend.
        seeds: Seeds.
        attack_steps: Steps of PGD in the evaluation.
        test: Test images that are attacked.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    train, whole = digits()
    held_out = Split(whole.pixels[:test], whole.labels[:test])
    file = output / f"digits-{passes}-{attack_steps}-{len(held_out)}.json"
    output.mkdir(parents=True, exist_ok=True)
    known = [Result(**row) for row in json.loads(file.read_text())["results"]] if file.exists() else []
    for seed in seeds:
        for entry in METHODS:
            if any(row.method == entry.name and row.seed == seed for row in known):
                continue
            known.append(_one(entry, seed, passes, attack_steps, train, held_out))
            write_json(file, {"epsilon": EPSILON, "results": [asdict(row) for row in known]})
            print(known[-1], flush=True)
    text = _table([row for row in known if row.seed in seeds], passes, attack_steps, len(held_out))
    (output / f"digits-{passes}.md").write_text(text, encoding="utf-8")
    print(text)


def _one(entry: Entry, seed: int, passes: int, attack_steps: int, train: Split, test: Split) -> Result:
    steps = max(1, passes // entry.passes)
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
    started = time.perf_counter()
    fit(
        model,
        method,
        train,
        config=config,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=entry.rate, momentum=0.9, weight_decay=5e-4),
    )
    seconds = time.perf_counter() - started
    settings = {"steps": attack_steps, "step_size": EPSILON / 5, "restarts": 2}
    with torch.no_grad():
        clean = float((model(test.pixels).argmax(1) == test.labels).float().mean())
    robust = [
        1 - float(attack.run(model, test.pixels, test.labels, seed=seed).success.float().mean())
        for attack in (PGD(THREAT, **settings), PGD(THREAT, loss=margin, **settings))
    ]
    units = method.cost.units / (steps * BATCH)
    return Result(
        entry.name, seed, steps * entry.passes, round(units, 2), clean, *robust, round(seconds, 1)
    )  # fmt: skip


def _table(rows: Sequence[Result], passes: int, attack_steps: int, images: int) -> str:
    seeds = sorted({row.seed for row in rows})
    pgd, cw = f"PGD-{attack_steps}", f"CW-{attack_steps}"
    lines = [
        f"{passes:,} passes of a minibatch of {BATCH}, seeds {', '.join(map(str, seeds))}; {pgd} and {cw}, "
        f"2 restarts, on {images} test images, epsilon {EPSILON}. {platform.machine()}, one thread of a "
        f"shared machine, torch {torch.__version__}.",
        "",
        f"| method | units / (steps · batch size) | clean | {pgd} mean (min to max) | {cw} | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in METHODS:
        own = [row for row in rows if row.method == entry.name]
        if own:
            robust = [row.pgd for row in own]
            cells = [
                entry.name,
                f"{fmean(row.units for row in own):.1f}",
                f"{fmean(row.clean for row in own):.3f}",
                f"{fmean(robust):.3f} ({min(robust):.3f} to {max(robust):.3f})",
                f"{fmean(row.cw for row in own):.3f}",
                f"{fmean(row.seconds for row in own):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
