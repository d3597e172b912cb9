"""The stages of the study, from the data to the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from .data import DATA, load_data
from .victims import VictimSettings, train_victim

__all__ = ["DATA", "STAGES", "run"]

logger = logging.getLogger(__name__)

STAGES = ("victims", "attack", "detect", "combine")


def run(
    stage: str,
    data: Sequence[str] = tuple(DATA),
    *,
    victim_seed: int = 0,
    encoder: str = "minilm",
    runs: Path = Path("runs/rde"),
    threads: int = 1,
) -> None:
    """Runs one stage or all (see ``scripts/rde_benchmark.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    for name in data:
        if stage in ("victims", "all"):
            victims(name, runs, victim_seed, encoder)


def victim_folder(runs: Path, name: str, seed: int) -> Path:
    """Where the victim of a data set lies."""
    return runs / "victims" / f"{name}-{seed}"


def victims(name: str, runs: Path, seed: int, encoder: str) -> None:
    """Trains the victim of one data set unless it is there."""
    folder = victim_folder(runs, name, seed)
    if not folder.exists():
        figures = train_victim(load_data(name), folder, seed=seed, settings=VictimSettings(encoder=encoder))
        logger.info("%s", figures)
