"""Checkpoints that exist as a whole or not at all: safetensors for tensors, JSON for everything else.

A checkpoint is a folder ``step-00000250``. It is written under a hidden name and renamed when all its files
are on disk, so a process killed at any moment leaves either the whole folder or none. Optimizer and method
state are flattened into safetensors and JSON (:func:`save_tree`), never pickled: reading a checkpoint from a
stranger runs no code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["CheckpointFolder", "load_tree", "save_tree"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"


def save_tree(directory: Path, name: str, tree: Any) -> None:
    """Writes nested containers of tensors and plain values as ``name.safetensors`` and ``name.json``.

    Args:
        directory: An existing folder.
        name: File name without extension.
        tree: Dictionaries (keys: str or int), lists and tuples of tensors, strings, numbers, booleans and
            ``None``, as an optimizer's ``state_dict`` is.

    Raises:
        TypeError: The tree holds something else; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    document = _flatten(tree, name, tensors)
    save_file(tensors, directory / f"{name}.safetensors")
    _write_text(directory / f"{name}.json", json.dumps(document))


def load_tree(directory: Path, name: str) -> Any:
    """Reads what :func:`save_tree` wrote, tensors on the CPU.

    Args:
        directory: The folder.
        name: File name without extension.

    Returns:
        An equal tree: dictionary keys and the kinds of containers are kept.
    """
    tensors = load_file(directory / f"{name}.safetensors")
    return _unflatten(json.loads((directory / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _flatten(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            # A private copy: safetensors refuses tensors that share memory.
            key = str(len(tensors))
            tensors[key] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": key}
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            for key in value:
                if type(key) not in (str, int):
                    raise TypeError(f"{where}: a key must be str or int, got {key!r}")
            return {
                "dict": [[key, _flatten(item, f"{where}[{key!r}]", tensors)] for key, item in value.items()]
            }
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [_flatten(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]}
    raise TypeError(f"{where}: expected tensors, numbers, strings and containers, got {type(value).__name__}")


def _unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in value}
    items = [_unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class CheckpointFolder:
    """The checkpoints of one run.

    Writing has three parts so that several processes can take part: one calls :meth:`begin`, all write their
    files into the folder it returned, one calls :meth:`commit`.

    Args:
        path: Folder that holds the checkpoints; made when the first one is written.
        keep: How many to keep; older ones are removed when a new one is complete. ``None`` keeps all.

    Raises:
        ValueError: ``keep`` is below 1.
    """

    def __init__(self, path: str | Path, *, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1 or None, got {keep}")
        self.path = Path(path)
        self.keep = keep

    def directory(self, step: int) -> Path:
        """Where the checkpoint of a step lies once it is complete."""
        return self.path / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f".step-{step:08d}.partial"

    def begin(self, step: int) -> Path:
        """Makes an empty folder for the files of a step.

        Args:
            step: Number of optimizer steps done.

        Returns:
            The folder to write to; rubbish that a killed process left there is gone.
        """
        partial = self.partial(step)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int) -> Path:
        """Makes the folder from :meth:`begin` a checkpoint, all at once, and removes old ones.

        Args:
            step: The step given to :meth:`begin`.

        Returns:
            The checkpoint's folder.
        """
        partial, final = self.partial(step), self.directory(step)
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        for file in partial.iterdir():
            _sync(file)
        _write_text(partial / _MANIFEST, json.dumps({"step": step, "files": sizes}, indent=1))
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for left in self.path.glob(".step-*.partial"):
            shutil.rmtree(left)
        _sync(self.path)
        if self.keep is not None:
            self.remove(sorted(self._steps())[: -self.keep])
        return final

    def remove(self, steps: Iterable[int]) -> None:
        """Deletes checkpoints.

        Args:
            steps: Their step numbers.
        """
        for step in steps:
            shutil.rmtree(self.directory(step))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [step for step in sorted(self._steps()) if self._problem(self.directory(step)) is None]

    def latest(self) -> Path | None:
        """The newest complete checkpoint, if there is one; warns of newer ones that are not complete."""
        for partial in sorted(self.path.glob(".step-*.partial")):
            logger.warning("ignoring the half-written checkpoint %s", partial)
        for step in sorted(self._steps(), reverse=True):
            directory = self.directory(step)
            problem = self._problem(directory)
            if problem is None:
                return directory
            logger.warning("ignoring the incomplete checkpoint %s: %s", directory, problem)
        return None

    def _steps(self) -> list[int]:
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return [int(match[1]) for match in matches if match]

    def _problem(self, directory: Path) -> str | None:
        """What is wrong with a folder, as far as names and sizes tell."""
        try:
            manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
            files = dict(manifest["files"])
        except FileNotFoundError:
            return f"no {_MANIFEST}"
        except (ValueError, KeyError, TypeError):
            return f"{_MANIFEST} is damaged"
        for name, size in files.items():
            file = directory / name
            if not file.is_file():
                return f"no {name}"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, expected {size}"
        return None


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
