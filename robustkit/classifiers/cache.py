"""Results of a classifier, kept in memory or on disk, one float32 vector for each text; digests of weights.

Keys are 32 bytes (a SHA-256 over everything that the result depends on), so one cache may serve many models.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainkit.hub import fingerprint

__all__ = ["DiskCache", "MemoryCache", "ResultCache", "WeightsDigest", "open_cache"]

Row: TypeAlias = NDArray[np.float32]

_FILE = "results.sqlite"
# SQLite allows 32,766 placeholders in one statement; fewer keep statements short.
_KEYS = 500


class ResultCache(Protocol):
    """Remembers vectors by key."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """What is known of the keys."""

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Remember vectors."""


class MemoryCache:
    """The vectors used last, in memory.

    Args:
        size: How many vectors are kept.

    Raises:
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"cache is {size}; expected the number of texts to remember, a folder, or None")
        self.size = size
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """What is known of the keys; these count as used now."""
        found = {}
        for key in keys:
            if key in self._rows:
                self._rows.move_to_end(key)
                found[key] = self._rows[key]
        return found

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Remember vectors and forget those not used for longest."""
        for key, row in rows.items():
            self._rows[key] = row.copy()
            self._rows.move_to_end(key)
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)


class DiskCache:
    """Vectors in a SQLite file; several processes may use it at once, and a crash loses one `put` at most.

    The file only grows: delete the folder to free its space. 25,000 texts of a model with 768 dimensions take
    about 100 MB. SQLite's locks need a local disk, not a network drive.

    Args:
        folder: Where the file ``results.sqlite`` is; made if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).expanduser() / _FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, row BLOB NOT NULL)")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # A new connection for each call: they may be shared by neither threads nor forked processes.
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise OSError(f"the cache {self.path} cannot be used ({error}); if damaged, delete it") from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """What is known of the keys.

        Raises:
            OSError: The file is damaged, or another process has kept it locked for a minute.
        """
        found = {}
        with self._connection() as connection:
            for start in range(0, len(keys), _KEYS):
                part = keys[start : start + _KEYS]
                places = ",".join("?" * len(part))
                query = f"SELECT key, row FROM results WHERE key IN ({places})"
                for key, row in connection.execute(query, part):
                    found[key] = np.frombuffer(row, dtype="<f4").astype(np.float32)
        return found

    def put(self, rows: Mapping[bytes, Row]) -> None:
        """Remember vectors, all of them or none.

        Raises:
            OSError: As for `get`, or the disk is full.
        """
        with self._connection() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?)",
                [(key, row.astype("<f4").tobytes()) for key, row in rows.items()],
            )


def open_cache(cache: int | str | Path | None) -> ResultCache | None:
    """The cache that an argument means: a number of texts in memory, a folder on disk, or none.

    Raises:
        TypeError: Something else.
        ValueError: A number below 1.
    """
    if cache is None:
        return None
    if isinstance(cache, int) and not isinstance(cache, bool):
        return MemoryCache(cache)
    if isinstance(cache, str | Path):
        return DiskCache(cache)
    raise TypeError(f"cache is {cache!r}; expected the number of texts to remember, a folder, or None")


class WeightsDigest:
    """SHA-256 over a model's parameters and buffers, taken anew after they were changed in place.

    Args:
        model: The model.

    Example:
        >>> digest = WeightsDigest(model)
        >>> digest()  # a second for half a gigabyte, later calls nothing
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: tuple[object, str] | None = None

    def __call__(self) -> str:
        """The digest: 64 hexadecimal digits."""
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        # Optimizers and load_state_dict count versions up; a conversion to another dtype gives other memory.
        state = [(name, tensor._version, tensor.dtype, tensor.data_ptr()) for name, tensor in tensors.items()]
        if self._known is None or self._known[0] != state:
            parts: list[str] = []
            for name, tensor in sorted(tensors.items()):
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                parts += [
                    name,
                    f"{tensor.dtype} {tuple(tensor.shape)}",
                    hashlib.sha256(flat.data).hexdigest(),
                ]
            self._known = (state, fingerprint(parts))
        return self._known[1]
