"""Perturbations that outlive the batch: one for each example, in memory or on disk."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["PerturbationBank", "TextBank"]

Storage = Literal["int8", "float16", "float32"]
_DTYPES = {"int8": torch.int8, "float16": torch.float16, "float32": torch.float32}


class PerturbationBank:
    """The perturbation of every example of a data set, by its position there.

    Perturbations are in the coordinates of the original example: `robustkit.training.FlipCrop` carries them
    to what the model sees and back. With several processes every one of them holds the whole bank (or maps
    the same file) and is told of all changes, so it does not matter who sees which example next.

    Args:
        size: Number of examples.
        shape: Shape of one perturbation, such as ``(3, 32, 32)``.
        epsilon: Largest absolute value of a number, the radius of the set; the scale of ``int8``.
        dtype: How numbers are kept. ``"int8"`` is off by at most ``epsilon / 254``, ``"float16"`` by half a
            thousandth of a number; project what comes back.
        path: A file to keep them in, mapped into memory; None for host memory. A file that is there already
            must have the right size and is used again, though nothing in it counts before it is put.

    Attributes:
        seen: bool ``(size,)``: examples that have a perturbation.

    Raises:
        ValueError: A size below 1, an epsilon that is not positive, an unknown dtype, or a file of another
            size.

    Example:
        >>> bank = PerturbationBank(50_000, (3, 32, 32), 8 / 255, dtype="int8")
        >>> bank.put(ids, delta)
        >>> delta = threat.project(bank.get(ids), inputs)
    """

    def __init__(
        self,
        size: int,
        shape: Sequence[int],
        epsilon: float,
        *,
        dtype: Storage = "float16",
        path: str | Path | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon}; expected a positive number")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
        self.size, self.shape, self.epsilon, self.dtype = size, tuple(shape), float(epsilon), dtype
        self.seen = torch.zeros(size, dtype=torch.bool)
        whole = (size, *self.shape)
        self._values = (
            torch.zeros(whole, dtype=_DTYPES[dtype]) if path is None else _mapped(Path(path), whole, dtype)
        )

    def get(self, ids: Tensor) -> Tensor:
        """The perturbations of some examples, float32 ``(n, *shape)`` on the CPU; 0 where none was put.

        Args:
            ids: Positions in the data set, int64 ``(n,)``.

        Raises:
            IndexError: A position is outside the data set.
        """
        ids = _inside(ids, self.size)
        values = self._values[ids].float()
        if self.dtype == "int8":
            values *= self.epsilon / 127
        # What an old file may hold is not ours.
        values[~self.seen[ids]] = 0
        return values

    def put(self, ids: Tensor, delta: Tensor) -> None:
        """Keeps the perturbations of some examples.

        Args:
            ids: Positions in the data set, int64 ``(n,)``, no position twice.
            delta: ``(n, *shape)`` on any device, absolute values at most epsilon.

        Raises:
            ValueError: Another shape, values that are NaN or beyond epsilon.
            IndexError: A position is outside the data set.
        """
        ids = _inside(ids, self.size)
        if delta.shape != (len(ids), *self.shape):
            raise ValueError(f"delta is {tuple(delta.shape)}; expected {(len(ids), *self.shape)}")
        delta = delta.detach().float().cpu()
        if len(ids) and not float(delta.abs().max()) <= self.epsilon * (1 + 1e-5):
            raise ValueError(
                f"delta goes to {float(delta.abs().max()):g}; expected at most epsilon, {self.epsilon:g}"
            )
        if self.dtype == "int8":
            delta = (delta * (127 / self.epsilon)).round().clamp(-127, 127)
        self._values[ids] = delta.to(self._values.dtype)
        self.seen[ids] = True

    def forget(self) -> None:
        """Starts anew: no example has a perturbation."""
        self.seen.zero_()

    def state_dict(self) -> Mapping[str, Any]:
        """Everything, for a checkpoint; as large as the bank."""
        return {"values": self._values, "seen": self.seen, "epsilon": self.epsilon}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            ValueError: The state is that of a bank of another size, dtype or epsilon.
        """
        values = state["values"]
        if values.shape != self._values.shape or values.dtype != self._values.dtype:
            raise ValueError(
                f"the state holds {values.dtype} {tuple(values.shape)}; "
                f"the bank is {self._values.dtype} {tuple(self._values.shape)}"
            )
        if state["epsilon"] != self.epsilon:
            raise ValueError(f"the state's epsilon is {state['epsilon']:g}, the bank's is {self.epsilon:g}")
        self._values.copy_(values)
        self.seen.copy_(state["seen"])


class TextBank:
    """The perturbation of every text of a data set: rows for its own tokens, so padding takes no memory.

    It holds a row for each token that may change, however the text was padded when it was put. Memory:
    ``tokens * dimension * 2`` bytes in float16, that is 1.2 GB for 67,000 sentences of 12 tokens and 768
    dimensions. Several processes hold the whole bank each.

    Args:
        size: Number of texts.
        dtype: How numbers are kept.

    Attributes:
        seen: bool ``(size,)``: texts that have a perturbation.

    Raises:
        ValueError: A size below 1, or an unknown dtype.
    """

    def __init__(self, size: int, *, dtype: Literal["float16", "float32"] = "float16") -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is {dtype!r}; expected float16 or float32")
        self.size, self.dtype = size, dtype
        self.seen = torch.zeros(size, dtype=torch.bool)
        self._rows: dict[int, Tensor] = {}

    def get(self, ids: Tensor) -> Tensor:
        """The perturbations of some texts: float32 ``(n, K, d)``, K the most rows of one of them.

        Rows are 0 where a text has fewer, and where none was put.

        Args:
            ids: Positions in the data set, int64 ``(n,)``.

        Raises:
            IndexError: A position is outside the data set.
        """
        kept = [self._rows.get(place) for place in _inside(ids, self.size).tolist()]
        most = max((len(rows) for rows in kept if rows is not None), default=0)
        wide = next((rows.shape[1] for rows in kept if rows is not None), 0)
        found = torch.zeros(len(kept), most, wide)
        for row, rows in enumerate(kept):
            if rows is not None:
                found[row, : len(rows)] = rows
        return found

    def put(self, ids: Tensor, delta: Tensor) -> None:
        """Keeps the perturbations of some texts.

        Args:
            ids: Positions in the data set, int64 ``(n,)``.
            delta: ``(n, K, d)``, a text's own tokens first; rows of 0 behind the last other one are not kept.

        Raises:
            ValueError: Another shape, or values that are NaN or infinite in the bank's dtype.
            IndexError: A position is outside the data set.
        """
        ids = _inside(ids, self.size)
        if delta.ndim != 3 or len(delta) != len(ids):
            raise ValueError(f"delta is {tuple(delta.shape)}; expected ({len(ids)}, tokens, d)")
        delta = delta.detach().cpu().to(_DTYPES[self.dtype])
        if not delta.isfinite().all():
            raise ValueError(f"delta holds values that are no finite numbers in {self.dtype}")
        count = torch.arange(1, delta.shape[1] + 1)
        lengths = ((delta != 0).any(dim=2) * count).amax(dim=1) if len(count) else [0] * len(ids)
        for place, rows, length in zip(ids.tolist(), delta, lengths, strict=True):
            self._rows[place] = rows[: int(length)].clone()
        self.seen[ids] = True

    def forget(self) -> None:
        """Starts anew: no text has a perturbation."""
        self.seen.zero_()
        self._rows.clear()

    def state_dict(self) -> Mapping[str, Any]:
        """Everything, for a checkpoint; as large as the bank."""
        places = sorted(self._rows)
        rows = [self._rows[place] for place in places]
        return {
            "seen": self.seen,
            "dtype": self.dtype,
            "places": torch.tensor(places, dtype=torch.int64),
            "lengths": torch.tensor([len(each) for each in rows], dtype=torch.int64),
            "values": torch.cat(rows) if rows else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            ValueError: The state is that of a bank of another size or dtype.
        """
        if len(state["seen"]) != self.size or state["dtype"] != self.dtype:
            raise ValueError(
                f"the state is of {len(state['seen'])} texts in {state['dtype']}; "
                f"the bank is of {self.size} in {self.dtype}"
            )
        self.seen.copy_(state["seen"])
        places = state["places"].tolist()
        parts = state["values"].split(state["lengths"].tolist()) if places else []
        self._rows = {place: part.clone() for place, part in zip(places, parts, strict=True)}


def _inside(ids: Tensor, size: int) -> Tensor:
    ids = ids.cpu()
    if len(ids) and not (ids.min() >= 0 and ids.max() < size):
        raise IndexError(f"ids go from {ids.min()} to {ids.max()}; the bank has {size} examples")
    return ids


def _mapped(path: Path, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A file as a tensor, made if it is not there: by one of several processes, and found by the others."""
    length = math.prod(shape) * np.dtype(dtype).itemsize
    if not path.exists():
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.ftruncate(handle, length)
            os.link(name, path)
        except FileExistsError:
            pass
        finally:
            os.close(handle)
            os.unlink(name)
    if path.stat().st_size != length:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a bank {shape} of {dtype} has {length}")
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="r+", shape=shape))
