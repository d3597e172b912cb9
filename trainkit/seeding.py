"""Seeds and random number generators: derived seeds, whole-process states, permutations of a data set."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = [
    "derive_seed",
    "epoch_permutation",
    "preserved_rng",
    "restore_rng_state",
    "rng_state",
    "seed_everything",
]


def derive_seed(*parts: int | str) -> int:
    """Mixes numbers and labels into one seed.

    Args:
        *parts: What the seed stands for, such as ``("permutation", seed, epoch)``. Different parts give
            unrelated seeds, which adding small numbers to a seed does not.

    Returns:
        An integer in ``[0, 2**63)``, the same on every machine.
    """
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds the global generators of ``random``, numpy and torch (every device).

    Args:
        seed: Any non-negative integer below ``2**63``.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of the global generators of this process.

    Returns:
        A tree of tensors and JSON values: python, numpy, torch and, where CUDA is in use, the current device.
    """
    version, numbers, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": {
            "key": numpy_state["state"]["key"].tolist(),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Sets the global generators of this process to a state from :func:`rng_state`.

    Args:
        state: What :func:`rng_state` returned, possibly in another process.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(saved["key"], dtype=np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Lets a block draw random numbers without any effect on the numbers drawn after it."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng_state(state)


def epoch_permutation(length: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order in which an epoch visits a data set.

    Args:
        length: Number of examples.
        seed: The run's seed.
        epoch: Number of the epoch, from 0.

    Returns:
        The numbers ``0 .. length - 1`` in an order that depends on the arguments alone, int64 ``[length]``.
    """
    generator = torch.Generator().manual_seed(derive_seed("permutation", seed, epoch))
    return torch.randperm(length, generator=generator)
