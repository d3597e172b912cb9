"""Runs in two processes (``torchrun --nproc_per_node 2``); what they train goes to the folder given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustkit.training import (
    SIHG,
    TRADES,
    YOPO,
    Averaged,
    DynamicTraining,
    FreeTraining,
    PerturbationBank,
    PGDTraining,
    SIHGFull,
    SIHGTable,
)
from tests.robustkit.training.toys import EPSILON, SHAPE, THREAT, Images, network, train, weights

COUNT = 17
"""Images in batches of 8: the last batch of an epoch has one, so one of two processes has none."""


def bank(path: Path | None = None) -> PerturbationBank:
    """Zeros for every example, so that nothing is drawn: random numbers differ between processes."""
    made = PerturbationBank(COUNT, SHAPE, EPSILON, dtype="float32", path=path)
    made.put(torch.arange(COUNT), torch.zeros(COUNT, *SHAPE))
    return made


# Name, method, images, settings of the run. Free carries rows over, so its batches must be full.
CASES: dict[str, tuple[Callable[[Path], Any], int, dict[str, Any]]] = {
    "pgd": (lambda folder: PGDTraining(THREAT, 2, random_start=False), COUNT, {}),
    "dynamic": (
        lambda folder: DynamicTraining(THREAT, 4, c_max=0.02, horizon=20, random_start=False),
        COUNT,
        {},
    ),
    "free": (lambda folder: FreeTraining(THREAT, 2), 16, {}),
    "yopo": (lambda folder: YOPO(THREAT, 2, 2, random_start=False), COUNT, {}),
    "sihg": (lambda folder: SIHG(THREAT, bank(), replays=2, eta=0.5), COUNT, {}),
    "fused": (lambda folder: SIHG(THREAT, bank(folder / "fused.bank"), order="fused"), COUNT, {}),
    "table": (lambda folder: SIHGTable(THREAT, COUNT, 0.1, random_start=False), COUNT, {}),
    "full": (lambda folder: SIHGFull(THREAT, COUNT, 0.1, random_start=False), COUNT, {"batch_size": COUNT}),
    "averaged": (
        lambda folder: Averaged(PGDTraining(THREAT, 1, random_start=False), decay=0.5),
        COUNT,
        {},
    ),
}


def run(name: str, folder: Path) -> dict[str, Any]:
    """Trains one case; weights, history and what lives beside the data."""
    make, count, settings = CASES[name]
    method = make(folder)
    model, result = train(method, network(), Images(count), max_steps=7, **settings)
    beside: Any = None
    if isinstance(method, SIHG) and method.bank is not None:
        beside = method.bank.get(torch.arange(COUNT)).tolist()
    elif isinstance(method, SIHGFull | SIHGTable):
        assert method.delta is not None
        beside = method.delta.tolist()
    elif isinstance(method, Averaged):
        beside = [value.tolist() for value in method.average.values()]
    lines = [{key: line[key] for key in ("loss", "accuracy", "cost")} for line in result.history]
    return {
        "processes": result.num_processes,
        "weights": weights(model).tolist(),
        "lines": lines,
        "beside": beside,
    }


def main(folder: Path) -> None:
    """Every case, then TRADES with batch norm, whose statistics are each process's own."""
    for name in CASES:
        found = run(name, folder)
        rank = torch.distributed.get_rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    _, result = train(TRADES(THREAT, 2), network(norm=True), Images(COUNT), max_steps=4)
    (folder / f"norm-{rank}.json").write_text(json.dumps([line["loss"] for line in result.history]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
