"""The numbers of a run: added up over processes, written as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trainkit.objectives import Loss, Number

__all__ = ["MetricsLog", "Sums", "sum_losses"]

logger = logging.getLogger(__name__)

Sums = dict[str, tuple[float, float]]
"""Sum and weight by name; their quotient is the mean."""


def sum_losses(losses: Sequence[Loss], real: Sequence[bool], accelerator: Accelerator) -> Sums:
    """Adds up the losses and metrics of one step, over micro batches and processes.

    Args:
        losses: The losses of this process's micro batches, at least one.
        real: Which of them count.
        accelerator: The run's Accelerator.

    Returns:
        Sums and weights of the metrics and of the loss itself, which is named ``loss``.

    Raises:
        ValueError: The losses do not all name the same metrics.
    """
    names = sorted(losses[0].metrics)
    for loss in losses:
        if sorted(loss.metrics) != names:
            raise ValueError(
                f"a loss must always name the same metrics: {names}, then {sorted(loss.metrics)}"
            )
    rows = [
        _numbers(loss, names) if counts else [0.0] * (2 + 2 * len(names))
        for loss, counts in zip(losses, real, strict=True)
    ]
    values = _to_floats([value for row in rows for value in row])
    sums = [sum(values[column :: len(rows[0])]) for column in range(len(rows[0]))]
    if accelerator.num_processes > 1:
        vector = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
        sums = accelerator.reduce(vector, reduction="sum").tolist()
    return {name: (sums[2 * i], sums[2 * i + 1]) for i, name in enumerate(("loss", *names))}


def _numbers(loss: Loss, names: Sequence[str]) -> list[Number]:
    numbers: list[Number] = [loss.total, loss.weight]
    for name in names:
        value = loss.metrics[name]
        numbers += value if isinstance(value, tuple) else (value * loss.weight, loss.weight)
    return numbers


def _to_floats(values: Sequence[Number]) -> list[float]:
    """Reads all tensors in one transfer from the device."""
    tensors = [value.detach().reshape(()) for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    # Apple's devices know no float64.
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    read = iter(torch.stack([tensor.to(tensors[0].device, wide) for tensor in tensors]).tolist())
    return [next(read) if isinstance(value, Tensor) else float(value) for value in values]


class MetricsLog:
    """Lines of metrics: in memory, in ``metrics.jsonl`` and for TensorBoard.

    Args:
        directory: Folder of the run; ``None`` keeps the lines in memory only.
        resumed_from: Step of the checkpoint that the run continues from. Lines of later steps are cut off
            the file, because they will be written again; without a checkpoint all are.
        write: Whether this process writes; others only remember.
        tensorboard: Also write for TensorBoard.

    Raises:
        ValueError: ``tensorboard`` is set and the package is not installed.
    """

    def __init__(
        self, directory: Path | None, *, resumed_from: int | None, write: bool, tensorboard: bool
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self._path: Path | None = None
        self._board: Any = None
        if directory is None:
            return
        path = directory / "metrics.jsonl"
        if resumed_from is not None and path.exists():
            self.history = _read_until(path, resumed_from)
        if not write:
            return
        if tensorboard:
            self._board = _open_board(directory / "tensorboard", resumed_from)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / ".metrics.jsonl.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")
        partial.replace(path)
        self._path = path

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds one line.

        Args:
            step: Steps done.
            split: ``"train"`` or ``"eval"``.
            values: Numbers by name. One that is NaN or infinite becomes ``None``, as JSON has no word for it.
        """
        line: dict[str, Any] = {"step": step, "split": split}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.history.append(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Writes out what is held back for TensorBoard."""
        if self._board is not None:
            self._board.close()


def _read_until(path: Path, step: int) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            logger.warning("%s, line %d: dropping a half-written line", path, number)
            continue
        if line["step"] <= step:
            lines.append(line)
    return lines


def _open_board(directory: Path, resumed_from: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the package tensorboard") from error
    return SummaryWriter(str(directory), purge_step=None if resumed_from is None else resumed_from + 1)
