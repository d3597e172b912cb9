"""Which examples a process sees at which step: a function of the settings, so a run can stop anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from trainkit.seeding import derive_seed, epoch_permutation, seed_everything

__all__ = ["BatchPlan", "MapDataset", "MicroBatch", "load_batches"]


class MapDataset(Protocol):
    """A map-style data set: a list, a ``torch.utils.data.Dataset``, a ``datasets.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward in one process.

    Attributes:
        ids: Their positions in the data set.
        real: False for a stand-in that must not count.
        last: Whether it is this process's last one of the step.
        seed: Seed of what is random in loading it.
    """

    ids: tuple[int, ...]
    real: bool
    last: bool
    seed: int


@dataclass(frozen=True)
class BatchPlan:
    """Cuts an epoch into global batches, those into shares of processes, and those into micro batches.

    Attributes:
        length: Examples in the data set.
        batch_size: Examples of a global batch.
        micro_batch_size: Examples of a micro batch; ``None``: a process's whole share.
        drop_last: Leave out an epoch's last batch when it is not full.
        seed: Seed of the order.
        rank: Number of this process.
        world: Number of processes.
    """

    length: int
    batch_size: int
    micro_batch_size: int | None
    drop_last: bool
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of one epoch."""
        full, rest = divmod(self.length, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of examples, int64 ``[length]``."""
        return epoch_permutation(self.length, seed=self.seed, epoch=epoch)

    def shares(self, index: int) -> list[int]:
        """Number of examples of each process in the ``index``-th global batch of an epoch."""
        count = min(self.batch_size, self.length - index * self.batch_size)
        bounds = [count * rank // self.world for rank in range(self.world + 1)]
        return [end - start for start, end in pairwise(bounds)]

    def micro_batches(self, order: Tensor, epoch: int, index: int) -> Iterator[MicroBatch]:
        """This process's part of the ``index``-th global batch of an epoch.

        Every process gets the same number of micro batches, because processes average their gradients in
        common: one that has run out of examples gets a stand-in that must count as nothing.

        Args:
            order: The epoch's order from :meth:`order`.
            epoch: Number of the epoch, from 0.
            index: Number of the batch within the epoch, from 0.

        Yields:
            The micro batches in order.
        """
        shares = self.shares(index)
        start = index * self.batch_size + sum(shares[: self.rank])
        own = order[start : start + shares[self.rank]].tolist()
        longest = max(shares)
        size = self.micro_batch_size or longest
        for offset in range(0, longest, size):
            ids = own[offset : offset + size]
            yield MicroBatch(
                ids=tuple(ids) or (int(order[index * self.batch_size]),),
                real=bool(ids),
                last=offset + size >= longest,
                seed=derive_seed("loading", self.seed, epoch, index, self.rank, offset),
            )


class _Sampler:
    """The micro batches of an epoch from one of its steps on."""

    def __init__(self, plan: BatchPlan, epoch: int, first: int, last: int) -> None:
        self.plan, self.epoch, self.first, self.last = plan, epoch, first, last

    def __iter__(self) -> Iterator[MicroBatch]:
        order = self.plan.order(self.epoch)
        for index in range(self.first, self.last):
            yield from self.plan.micro_batches(order, self.epoch, index)


class _Rows:
    """Lets a DataLoader fetch a whole micro batch with one key."""

    def __init__(self, data: MapDataset, collate: Callable[[list[Any]], Any]) -> None:
        self.data, self.collate = data, collate

    def __getitem__(self, micro: MicroBatch) -> tuple[MicroBatch, Any]:
        if torch.utils.data.get_worker_info() is not None:
            # Which worker loads a batch depends on where the run started; what it draws must not.
            seed_everything(micro.seed)
        several = getattr(self.data, "__getitems__", None)
        rows = [self.data[index] for index in micro.ids] if several is None else several(list(micro.ids))
        return micro, self.collate(list(rows))


def _as_fetched(fetched: Any) -> Any:
    """Keeps torch from converting what the collate function made."""
    return fetched


def load_batches(
    data: MapDataset,
    plan: BatchPlan,
    *,
    epoch: int,
    first: int,
    last: int,
    collate: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[list[MicroBatch], list[Any]]]:
    """Loads the batches of an epoch, one step after another.

    Args:
        data: The data set.
        plan: Who gets what.
        epoch: Number of the epoch.
        first: First step to load.
        last: End of the steps to load (exclusive).
        collate: Makes a batch of a list of examples; default ``torch.utils.data.default_collate``.
        num_workers: Loading processes. Random numbers drawn there depend on seed and position alone.
        pin_memory: Copy tensors to page-locked memory.

    Yields:
        For each step this process's micro batches and the loaded batch of each.
    """
    loader: DataLoader[Any] = DataLoader(
        _Rows(data, collate or default_collate),  # type: ignore[arg-type]
        sampler=_Sampler(plan, epoch, first, last),
        batch_size=None,
        collate_fn=_as_fetched,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own, so that starting an epoch draws nothing from the global one.
        generator=torch.Generator().manual_seed(derive_seed("loader", plan.seed, epoch)),
    )
    micros: list[MicroBatch] = []
    batches: list[Any] = []
    for micro, batch in loader:
        micros.append(micro)
        batches.append(batch)
        if micro.last:
            yield micros, batches
            micros, batches = [], []
