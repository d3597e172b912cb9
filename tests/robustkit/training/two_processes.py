"""Runs in two processes (``torchrun --nproc_per_node 2``); what they train goes to the folder given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustkit.attacks.gradient import EmbeddingBall
from robustkit.classifiers import TextClassifier
from robustkit.training import (
    SIHG,
    TRADES,
    YOPO,
    Averaged,
    DynamicTraining,
    FreeTraining,
    OnTexts,
    PerturbationBank,
    PGDTraining,
    SIHGFull,
    SIHGTable,
    TextBank,
)
from tests.robustkit.tiny import tiny_classifier, toy_sentiment
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


def run_texts() -> dict[str, Any]:
    """SI-HG on texts of many lengths, so that the processes pad differently."""
    texts, labels = toy_sentiment(COUNT)
    data = [(" ".join(text.split()[: 3 + row]), labels[row]) for row, text in enumerate(texts)]
    model, tokenizer = tiny_classifier()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = TextClassifier(model.double(), tokenizer)  # type: ignore[no-untyped-call]
    texts_bank = TextBank(COUNT, dtype="float32")
    texts_bank.put(torch.arange(COUNT), torch.zeros(COUNT, 0, 32))
    method = OnTexts(SIHG(EmbeddingBall(0.3), texts_bank), found)
    _, result = train(method, model, data, max_steps=4)
    lines = [{key: line[key] for key in ("loss", "accuracy", "cost")} for line in result.history]
    beside = torch.cat([texts_bank.get(torch.tensor([row]))[0].flatten() for row in range(COUNT)])
    return {
        "processes": result.num_processes,
        "weights": weights(model).tolist(),
        "lines": lines,
        "beside": [beside.tolist()],
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """Trains one case; weights, history and what lives beside the data."""
    if name == "texts":
        return run_texts()
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
    for name in (*CASES, "texts"):
        found = run(name, folder)
        rank = torch.distributed.get_rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    _, result = train(TRADES(THREAT, 2), network(norm=True), Images(COUNT), max_steps=4)
    (folder / f"norm-{rank}.json").write_text(json.dumps([line["loss"] for line in result.history]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
