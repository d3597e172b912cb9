"""Long work in pieces: each piece is a Parquet file, written whole, and what is there is not done again."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainkit import Progress, write_json
from trainkit.hub import read_json, write_bytes

__all__ = ["read_shards", "shard_files", "write_shards"]

_log = logging.getLogger(__name__)

_SETTINGS = "settings.json"


def write_shards(
    folder: str | Path,
    count: int,
    make: Callable[[int], list[dict[str, Any]]],
    *,
    settings: Mapping[str, Any],
    columns: Mapping[str, str],
    description: str,
) -> None:
    """Makes the shards of a folder that are not there yet.

    Under ``accelerate launch`` or ``torchrun`` the n processes share the missing shards, each makes every
    n-th, and all wait until the last is there (for a day at most).

    Args:
        folder: Where ``part-00000.parquet`` and so on go, with ``settings.json``.
        count: Number of shards.
        make: Gives the rows of shard i; must depend on i alone.
        settings: What the rows depend on, as JSON; a folder made with others is refused.
        columns: Name and Arrow type (``"string"``, ``"strings"``, ``"float"``, ``"int"``) of each column.
        description: For the progress bar.

    Raises:
        ValueError: The folder was made with other settings.
        ImportError: pyarrow is missing.
    """
    arrow = _arrow()
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    wanted = {**settings, "shards": count}
    if (root / _SETTINGS).is_file():
        found = read_json(root / _SETTINGS)
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if different:
            key = different[0]
            raise ValueError(
                f"{root} was made with {key}={found.get(key)!r}, now it is {wanted.get(key)!r}; "
                "use the same settings to go on, or another folder"
            )
    else:
        write_json(root / _SETTINGS, wanted)
    from accelerate import PartialState

    place = PartialState(timeout=timedelta(days=1))
    missing = [i for i in range(count) if not _is_whole(root / _name(i))]
    # Nobody writes before all have looked: else two processes would make the same shard.
    place.wait_for_everyone()
    mine = missing[place.process_index :: place.num_processes]
    schema = _schema(columns)
    total = len(mine) + (count - len(missing)) // place.num_processes
    with Progress(total, description, done=total - len(mine), enabled=place.is_main_process) as bar:
        for i in mine:
            block = io.BytesIO()
            arrow.parquet.write_table(arrow.Table.from_pylist(make(i), schema=schema), block)
            write_bytes(root / _name(i), block.getvalue())
            bar.advance()
    place.wait_for_everyone()


def shard_files(folder: str | Path) -> list[Path]:
    """The shards of a folder, in order.

    Raises:
        FileNotFoundError: The folder is none of ours, or shards are missing; the message says how many.
    """
    root = Path(folder)
    if not (root / _SETTINGS).is_file():
        raise FileNotFoundError(f"{root} holds no {_SETTINGS}: it was not written by augment or score")
    count = int(read_json(root / _SETTINGS)["shards"])
    files = [root / _name(i) for i in range(count)]
    missing = [file.name for file in files if not _is_whole(file)]
    if missing:
        raise FileNotFoundError(
            f"{root} is not finished: {len(missing)} of {count} shards are missing or cut off, "
            f"first {missing[0]}; run the same command again to go on"
        )
    return files


def read_shards(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of all shards, in order, one shard in memory at a time.

    Raises:
        FileNotFoundError: See :func:`shard_files`.
    """
    arrow = _arrow()
    for file in shard_files(folder):
        yield from arrow.parquet.read_table(file).to_pylist()


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _is_whole(file: Path) -> bool:
    arrow = _arrow()
    if not file.is_file():
        return False
    try:
        arrow.parquet.read_metadata(file)
    except (arrow.ArrowInvalid, OSError) as error:
        _log.warning("%s cannot be read and is made anew: %s", file, error)
        return False
    return True


def _schema(columns: Mapping[str, str]) -> Any:
    arrow = _arrow()
    types = {
        "string": arrow.string(),
        "strings": arrow.list_(arrow.string()),
        "float": arrow.float64(),
        "int": arrow.int64(),
    }
    return arrow.schema([(name, types[kind]) for name, kind in columns.items()])


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("shards need pyarrow: pip install 'dialogkit-robustkit[g2r]'") from error
    return pyarrow
