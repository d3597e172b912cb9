"""Weights and optimizer state as whole tensors, whether the model lies in one process or in many.

A sharded model is one that went through ``torch.distributed.fsdp.fully_shard`` (FSDP2). Every function here
that gets one must be called in all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from trainkit.checkpoints import load_tree, save_tree

__all__ = ["is_sharded", "load_optimizer", "load_weights", "save_optimizer", "save_weights"]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model went through ``fully_shard``."""
    return isinstance(model, FSDPModule)


def save_weights(model: nn.Module, path: Path, *, write: bool) -> None:
    """Writes all weights into one safetensors file; tied weights are written once.

    Args:
        model: The model.
        path: The file.
        write: Whether this process is the one that writes.
    """
    if is_sharded(model):
        state = get_model_state_dict(model, options=_WHOLE)
        if write:
            save_file(_without_twins(model, state), path)
    elif write:
        save_model(model, str(path))


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads a file that :func:`save_weights` wrote, from a sharded model or a whole one.

    Args:
        model: The model, sharded or not.
        path: The file; every process reads it.

    Raises:
        RuntimeError: The file's names or shapes are not the model's.
    """
    if not is_sharded(model):
        load_model(model, path)
        return
    state: dict[str, Any] = {**load_file(path)}
    for names in _tied(model):
        kept = next((name for name in names if name in state), None)
        if kept is not None:
            state |= {name: state[kept] for name in names}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def _tied(model: nn.Module) -> list[list[str]]:
    """All names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _without_twins(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    twins = {name for names in _tied(model) for name in names[1:]}
    return {name: value.contiguous() for name, value in state.items() if name not in twins}


def save_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, *, write: bool
) -> None:
    """Writes the optimizer's state as ``optimizer.safetensors`` and ``optimizer.json``.

    Args:
        model: The model it optimizes.
        optimizer: The optimizer.
        directory: An existing folder.
        write: Whether this process is the one that writes.
    """
    if is_sharded(model):
        state: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    else:
        state = optimizer.state_dict()
    if write:
        save_tree(directory, "optimizer", state)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Reads what :func:`save_optimizer` wrote for a model that was sharded if and only if this one is.

    Args:
        model: The model it optimizes.
        optimizer: The optimizer.
        directory: The folder; every process reads it.
    """
    state = load_tree(directory, "optimizer")
    if is_sharded(model):
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, state, options=options)
    else:
        optimizer.load_state_dict(state)
