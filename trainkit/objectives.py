"""How a method enters the training loop: as an objective, or as the owner of its step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

__all__ = ["Loss", "Number", "Objective", "StepContext", "StepMethod"]

logger = logging.getLogger(__name__)

Number = Tensor | float


@dataclass(frozen=True)
class Loss:
    """The loss of a batch as a sum, and what it is a sum over.

    Attributes:
        total: Sum of the losses of all units, a differentiable scalar.
        weight: Number (or total weight) of the units, for example target tokens or examples. The loss that
            is minimised and reported is ``sum of totals / sum of weights`` over the global batch.
        metrics: Further numbers to report by name: a pair ``(sum, weight)``, or a plain number, which counts
            as a mean over the loss's own units. Every call must give the same names.

    Raises:
        TypeError: ``total`` is no tensor.
        ValueError: ``total`` is no scalar.
    """

    total: Tensor
    weight: Number
    metrics: Mapping[str, tuple[Number, Number] | Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.total, Tensor):
            raise TypeError(f"total must be a tensor, got {type(self.total).__name__}")
        if self.total.numel() != 1:
            raise ValueError(
                f"total must be a scalar, the sum over units, got shape {list(self.total.shape)}"
            )


class Objective(Protocol):
    """Maps (model, batch) to a loss.

    An objective may also have ``collate(examples) -> batch``, which makes a batch of a list of examples;
    without it they are stacked by ``torch.utils.data.default_collate``.
    """

    def __call__(self, model: Any, batch: Any, /) -> Loss:
        """The loss of a batch whose tensors are on the model's device.

        With several processes ``model`` is the wrapped model: call it, and it averages gradients.
        """
        ...


@runtime_checkable
class StepMethod(Protocol):
    """Owns a whole training step: forwards, backwards and updates, in any number and order.

    It may have ``collate`` as an :class:`Objective` may. State that must survive a restart (perturbations
    beside the data, an adversary's optimizer) goes through ``state_dict`` and ``load_state_dict``: nested
    containers of tensors and plain values. Every process saves and gets back its own.
    """

    def step(self, model: Any, batch: Any, context: StepContext, /) -> Loss:
        """Trains on one batch: this process's whole share of the global batch.

        The method itself calls ``context.backward`` and ``context.optimizer_step``; the loss it returns is
        reported, and checked for NaN, and no more.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes back what :meth:`state_dict` returned."""
        ...


class StepContext:
    """What a :class:`StepMethod` needs of the loop during one step.

    Attributes:
        accelerator: The run's ``accelerate.Accelerator`` (device, autocast, communication).
        generator: This process's random numbers (a CPU generator); a resumed run continues them.
        step: Steps of the loop done before this one.
        epoch: Number of the epoch, from 0.
        example_ids: Positions in the data set of the batch's examples, int64 ``[n]`` on the CPU.
        shares: Number of examples of each process in this global batch.
        real: False if this process has no example left in an uneven batch. Then ``batch`` is a stand-in:
            run it through the same forwards and backwards as ever (the other processes wait for them, and
            they count as nothing), but store nothing for its example.
        grad_norm: L2 norm of the gradient in the last update, before clipping.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        generator: torch.Generator,
        max_grad_norm: float | None,
    ) -> None:
        self.accelerator = accelerator
        self.generator = generator
        self.step = 0
        self.epoch = 0
        self.example_ids = torch.empty(0, dtype=torch.int64)
        self.shares: Sequence[int] = (0,)
        self.real = True
        self.grad_norm = 0.0
        self._model = model
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._weights: list[Number] = []

    def backward(self, total: Tensor, weight: Number) -> None:
        """Adds the gradient of a sum of losses to the model's.

        Args:
            total: Sum over units, a scalar.
            weight: Number of units; the next update divides by the sum over calls and processes.
        """
        self._weights.append(weight if self.real else 0.0)
        if not self.real:
            total = total * 0.0
        if self._deepspeed:
            # DeepSpeed updates the model within backward: the division cannot wait.
            weight = self._take_weight()
            total = total * (self.accelerator.num_processes / weight if weight else 0.0)
        self.accelerator.backward(total)

    def without_communication(self) -> AbstractContextManager[Any]:
        """Keeps gradients in this process during backwards that others will follow before the update."""
        if isinstance(self._model, FSDPModule):
            return _unsynchronised(self._model)
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(self._model))

    def zero_grad(self) -> None:
        """Forgets the model's gradients, for example those that an attack on it left."""
        if not self._deepspeed:
            self._optimizer.optimizer.zero_grad(set_to_none=True)
        self._weights = []

    def optimizer_step(self, weight: float | None = None) -> None:
        """Updates the model: divides the gradient by the global weight, clips it, steps, forgets it.

        Args:
            weight: The weight over all processes where it is already known; ``None`` adds up what
                :meth:`backward` was given.

        Raises:
            FloatingPointError: The gradient is NaN or infinite (not with fp16, where the update is skipped).
            ValueError: The global weight is negative.
        """
        if self._deepspeed:
            self.grad_norm = float(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm() or 0.0)
            return
        weight = self._take_weight() if weight is None else weight
        if weight < 0:
            raise ValueError(f"step {self.step + 1}: the weight of a loss must not be negative, got {weight}")
        if weight == 0:
            logger.warning("step %d: the batch has weight 0, the model is not updated", self.step + 1)
            self.zero_grad()
            return
        scale = self.accelerator.num_processes / weight
        parameters = list(self._model.parameters())
        # Clipping the sum to limit / scale and scaling it then is clipping the mean to the limit, in one call
        # that also unscales fp16 gradients.
        limit = math.inf if self._max_grad_norm is None else self._max_grad_norm / scale
        norm = self.accelerator.clip_grad_norm_(parameters, limit)
        self.grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm) * scale
        if not math.isfinite(self.grad_norm) and self.accelerator.scaler is None:
            raise FloatingPointError(f"step {self.step + 1}: the norm of the gradient is {self.grad_norm}")
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, scale)
        self._optimizer.step()
        self.zero_grad()

    def exchange(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Collects rows that belong to examples from all processes.

        What lives beside the data must reach the process that sees the example next time, which may be
        another one.

        Args:
            values: One row for each of ``example_ids``, ``[n, ...]`` on the run's device.

        Returns:
            The example ids int64 ``[m]`` and the rows ``[m, ...]`` of the whole global batch, in its order
            and on the run's device, the same in every process. Stand-ins are left out.
        """
        ids = self.example_ids.to(values.device)
        if self.accelerator.num_processes == 1:
            return ids, values
        longest = max(self.shares)
        ids, values = (self.accelerator.gather(_padded(rows, longest)) for rows in (ids, values))
        kept = [rank * longest + row for rank, count in enumerate(self.shares) for row in range(count)]
        return ids[kept], values[kept]

    def _take_weight(self) -> float:
        """The weight since the last update, over all processes."""
        weight = sum(float(weight) for weight in self._weights)
        self._weights = []
        if self.accelerator.num_processes > 1:
            tensor = torch.tensor(weight, dtype=torch.float64, device=self.accelerator.device)
            weight = float(self.accelerator.reduce(tensor, reduction="sum"))
        return weight


def _padded(rows: Tensor, length: int) -> Tensor:
    padding = rows.new_zeros((length - len(rows), *rows.shape[1:]))
    return torch.cat([rows.detach(), padding])


@contextmanager
def _unsynchronised(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
