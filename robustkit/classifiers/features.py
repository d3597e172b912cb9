"""What one forward pass of a classifier says of texts: the vectors its head reads, logits, predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainkit.hub import ArtefactError, write_bytes

__all__ = ["Features", "Text"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts such as premise and hypothesis."""

_FORMAT = "robustkit.features.1"


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors, predictions and logits of n texts; make it with `of`, or with a classifier's ``extract``.

    Attributes:
        values: float32 ``(n, d)``: the vector that the classification head reads, or that of the chosen layer
            and pooling; d may be 0.
        predictions: int64 ``(n,)``: predicted classes.
        logits: float32 ``(n, C)``, or None.
        texts: The n texts, for detectors that read them, or None.
        source: Fingerprint of model, layer, pooling and maximum length; empty for arrays from elsewhere.
    """

    values: NDArray[np.float32]
    predictions: NDArray[np.int64]
    logits: NDArray[np.float32] | None = None
    texts: tuple[Text, ...] | None = None
    source: str = ""

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        predictions: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        texts: Sequence[Text] | None = None,
        source: str = "",
    ) -> Features:
        """Features from arrays, converted and checked.

        Args:
            values: Finite numbers ``(n, d)``.
            predictions: Integers ``(n,)``; by default the classes of the largest logits.
            logits: Finite numbers ``(n, C)``.
            texts: n texts, or pairs of texts.
            source: See the class.

        Raises:
            ValueError: A shape does not fit, a value is NaN or infinite, or there are neither predictions nor
                logits.
        """
        matrix = _finite("values", values)
        n = len(matrix)
        scores = None if logits is None else _finite("logits", logits, rows=n)
        if predictions is None:
            if scores is None or scores.shape[1] == 0:
                raise ValueError("give predictions (n,), or logits (n, C) whose largest are the predictions")
            classes = scores.argmax(axis=1).astype(np.int64)
        else:
            given = np.asarray(predictions)
            if given.shape != (n,):
                raise ValueError(f"predictions has shape {given.shape}; expected ({n},), one for each row")
            if n and given.dtype.kind not in "iu":
                raise ValueError(f"predictions must be integers, got {given.dtype}")
            classes = given.astype(np.int64)
        if isinstance(texts, str):
            raise TypeError("texts is one str; expected a sequence of texts")
        if texts is not None and len(texts) != n:
            raise ValueError(f"there are {len(texts)} texts for {n} rows of values")
        return cls(matrix, classes, scores, None if texts is None else tuple(texts), source)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]) -> Features:
        """Some of the rows, in the given order.

        Args:
            index: A slice, row numbers, or a boolean for each row.

        Raises:
            TypeError: A single number.
            IndexError: A row number out of range, or a boolean mask of another length.
        """
        rows = np.arange(len(self))[index if isinstance(index, slice) else _as_index(index)]
        return Features(
            self.values[rows],
            self.predictions[rows],
            None if self.logits is None else self.logits[rows],
            None if self.texts is None else tuple(self.texts[row] for row in rows),
            self.source,
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically.

        Args:
            path: The file; its folder must exist.
        """
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {"values": self.values, "predictions": self.predictions}
        if self.logits is not None:
            tensors["logits"] = self.logits
        if self.texts is not None:
            # A tensor and not metadata: the header of a safetensors file holds 100 MB at most.
            tensors["texts"] = np.frombuffer(json.dumps(self.texts).encode(), np.uint8)
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_bytes(path, save(tensors, {"format": _FORMAT, "source": self.source}))

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            ArtefactError: The file holds something else, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ArtefactError(f"{path} is no safetensors file, or is damaged: {error}") from error
        if metadata.get("format") != _FORMAT:
            raise ArtefactError(f"{path} holds no features (format {metadata.get('format')!r})")
        texts = None
        if "texts" in tensors:
            found = json.loads(tensors["texts"].tobytes())
            texts = [tuple(text) if isinstance(text, list) else text for text in found]
        return cls.of(
            tensors["values"], tensors["predictions"], tensors.get("logits"), texts, metadata["source"]
        )


def _finite(name: str, values: ArrayLike, rows: int | None = None) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim != 2 or rows not in (None, len(array)):
        expected = "(n, d)" if rows is None else f"({rows}, C)"
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {int((~finite).argmax())} holds NaN or infinite values")
    return array


def _as_index(index: object) -> NDArray[np.integer] | NDArray[np.bool_]:
    array = np.asarray(index)
    if array.ndim != 1:
        raise TypeError(f"features are indexed by a slice or a list of rows, got {index!r}")
    return array if array.size else array.astype(np.int64)
