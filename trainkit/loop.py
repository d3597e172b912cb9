"""One training loop on Accelerate for every method: a laptop's CPU, one GPU, or many processes.

A method enters in one of two ways. An :class:`Objective` maps (model, batch) to a :class:`Loss`; the loop
does the rest. A :class:`StepMethod` owns its whole step: several forwards, alternating updates,
perturbations that live beside the data.

Losses are sums with a weight. The loop back-propagates the sums and divides the gradient by the weight of the
whole global batch just before clipping, so micro batches, several processes and uneven last batches give the
same update as one large batch, also when examples weigh differently (tokens).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, send_to_device
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from trainkit.checkpoints import CheckpointFolder, load_tree, save_tree
from trainkit.progress import Progress
from trainkit.seeding import (
    derive_seed,
    epoch_permutation,
    preserved_rng,
    restore_rng_state,
    rng_state,
    seed_everything,
)

__all__ = [
    "Callback",
    "FitConfig",
    "FitResult",
    "FitState",
    "Loss",
    "Objective",
    "StepContext",
    "StepMethod",
    "fit",
    "schedule_factor",
]

logger = logging.getLogger(__name__)

Schedule = Literal["linear", "cosine", "one_cycle", "constant"]


class Dataset(Protocol):
    """A map-style data set: a list, a ``torch.utils.data.Dataset``, a ``datasets.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class FitConfig:
    """Settings of one training run.

    Attributes:
        output_dir: Folder for checkpoints and metrics. ``None`` writes nothing.
        max_steps: Optimizer steps at most. At least one of ``max_steps`` and ``epochs`` is needed.
        epochs: Passes over the data at most.
        batch_size: Examples of one optimizer step, over all processes and micro batches.
        micro_batch_size: Examples of one forward in one process; ``None``: the process's whole share.
        drop_last: Leave out the last batch of an epoch when it is not full.
        learning_rate: Peak learning rate, reached at the end of the warm-up.
        weight_decay: AdamW's decoupled weight decay; see :func:`default_optimizer` for what it spares.
        betas: AdamW's two decay rates of gradient averages.
        decay_embeddings: Apply weight decay to embedding tables too.
        schedule: Course of the learning rate after the warm-up, see :func:`schedule_factor`.
        warmup_steps: Steps of the warm-up.
        warmup_ratio: The warm-up as a share of all steps, instead of ``warmup_steps``.
        max_grad_norm: Gradients are scaled down to this global L2 norm; ``None`` does not clip.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (the last on accelerators only).
        compile: Compile the model in place with ``torch.compile`` (evaluation stays eager).
        seed: Seed of the order of the data, of dropout and of everything else random in the run.
        num_workers: Processes that load data; 0 loads in the training process.
        cpu: Stay on the CPU even where an accelerator is present.
        expected_processes: Number of processes that the run should have; fewer give a warning.
        find_unused_parameters: Tell DistributedDataParallel that some parameters get no gradient in a step.
        eval_every: Optimizer steps between evaluations; ``None``: at the end of every epoch. The last step
            is always followed by an evaluation.
        save_every: Optimizer steps between checkpoints; ``None``: only after the last step.
        keep_checkpoints: How many checkpoints to keep; ``None`` keeps all.
        patience: Stop after this many evaluations in a row without a better metric; ``None`` never stops.
        metric_for_best: Name of the evaluation metric that decides what is best.
        greater_is_better: Whether a higher value of that metric is better.
        restore_best: Give the model the weights of the best evaluation at the end; ``None``: exactly if
            ``patience`` is set.
        log_every: Optimizer steps between lines of metrics; each line averages over the steps since the
            last one.
        resume: Continue from the newest complete checkpoint in ``output_dir``, if there is one.
        tensorboard: Write the metrics for TensorBoard too (``output_dir/tensorboard``).
        progress: Show a progress bar when standard error is a terminal.
    """

    output_dir: str | Path | None = None
    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    drop_last: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    decay_embeddings: bool = False
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    seed: int = 0
    num_workers: int = 0
    cpu: bool = False
    expected_processes: int | None = None
    find_unused_parameters: bool = False
    eval_every: int | None = None
    save_every: int | None = None
    keep_checkpoints: int | None = 2
    patience: int | None = None
    metric_for_best: str = "loss"
    greater_is_better: bool = False
    restore_best: bool | None = None
    log_every: int = 10
    resume: bool = False
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.max_steps is None and self.epochs is None:
            raise ValueError("one of max_steps and epochs must be given")
        for name in (
            "max_steps",
            "epochs",
            "batch_size",
            "micro_batch_size",
            "eval_every",
            "save_every",
            "keep_checkpoints",
            "patience",
            "log_every",
            "expected_processes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("weight_decay", "warmup_steps", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive or None, got {self.max_grad_norm}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.schedule not in ("linear", "cosine", "one_cycle", "constant"):
            raise ValueError(f"schedule must be linear, cosine, one_cycle or constant, got {self.schedule!r}")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be no, bf16 or fp16, got {self.mixed_precision!r}")
        if self.output_dir is None and (self.resume or self.tensorboard or self.save_every):
            raise ValueError("resume, tensorboard and save_every need an output_dir")


@dataclass(frozen=True)
class Loss:
    """The loss of a batch as a sum, and what it is a sum over.

    Attributes:
        total: Sum of the losses of all units, a differentiable scalar.
        weight: Number (or total weight) of the units, for example target tokens or examples. The loss that
            is minimised and reported is ``sum of totals / sum of weights`` over the global batch.
        metrics: Further numbers to report by name: a pair ``(sum, weight)``, or a plain number, which counts
            as a mean over the loss's own units. Every call must give the same names.
    """

    total: Tensor
    weight: Tensor | float
    metrics: Mapping[str, tuple[Tensor | float, Tensor | float] | Tensor | float] = field(
        default_factory=dict
    )


class Objective(Protocol):
    """Maps (model, batch) to a loss.

    An objective may also have ``collate(examples) -> batch``, which makes a batch of a list of examples;
    without it they are stacked by ``torch.utils.data.default_collate``.
    """

    def __call__(self, model: Any, batch: Any, /) -> Loss:
        """The loss of a batch whose tensors are on the model's device."""
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

        The returned loss is only reported (and checked for NaN), the method itself calls
        ``context.backward`` and ``context.optimizer_step``.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes back what :meth:`state_dict` returned."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What came of a run.

    Attributes:
        steps: Optimizer steps done, those before a resume included.
        history: The lines of metrics, those before a resume included (if ``output_dir`` was given).
        best_metric: Best value of the deciding evaluation metric, ``None`` without an evaluation.
        best_step: Steps done at that value.
        stopped_early: Whether patience or a callback ended the run.
        resumed_from: Steps of the checkpoint that the run continued from, ``None`` for a fresh start.
        num_processes: Processes that took part.
    """

    steps: int
    history: tuple[Mapping[str, Any], ...]
    best_metric: float | None
    best_step: int | None
    stopped_early: bool
    resumed_from: int | None
    num_processes: int


@dataclass
class FitState:
    """What a callback sees of the run.

    Attributes:
        model: The model in training, as given to :func:`fit`.
        config: The run's settings.
        total_steps: Optimizer steps of the whole run.
        step: Optimizer steps done.
        epoch: Number of the current epoch, from 0.
        loss: Mean loss of the last step's global batch.
        learning_rate: Learning rate of the last step (of the first parameter group).
        best_metric: Best value of the deciding evaluation metric so far.
        best_step: Steps done at that value.
        should_stop: Whether the run ends after this step.
    """

    model: nn.Module
    config: FitConfig
    total_steps: int
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    learning_rate: float = 0.0
    best_metric: float | None = None
    best_step: int | None = None
    should_stop: bool = False

    def stop(self) -> None:
        """Ends the run after this step; the usual last evaluation and checkpoint still happen."""
        self.should_stop = True


class Callback:
    """Hooks into the loop; override what is needed. Hooks are called in every process."""

    def on_step_end(self, state: FitState) -> None:
        """Called after every optimizer step."""

    def on_evaluate(self, state: FitState, metrics: Mapping[str, float]) -> None:
        """Called after every evaluation with its numbers."""

    def on_save(self, state: FitState, path: Path) -> None:
        """Called when the checkpoint in ``path`` is complete."""

    def on_end(self, state: FitState, result: FitResult) -> None:
        """Called once, after the last evaluation, the last checkpoint and the best weights' return."""


def schedule_factor(step: int, total: int, *, schedule: Schedule, warmup: int) -> float:
    """The learning rate of a step as a multiple of the peak.

    The warm-up rises linearly: step ``s`` (from 0) uses ``(s + 1) / warmup``. After it, with
    ``p = (s - warmup) / (total - warmup)``, the factor is ``1 - p`` (linear), ``(1 + cos(pi p)) / 2``
    (cosine) or 1 (constant); so the peak is reached and no step is wasted on a rate of zero.
    ``one_cycle`` is ``torch.optim.lr_scheduler.OneCycleLR`` with its defaults: a cosine rise from 1/25
    during the warm-up (30 % of the steps if ``warmup`` is 0) and a cosine fall to 1/250,000.

    Args:
        step: Steps done before this one.
        total: Steps of the whole run.
        schedule: One of the four names.
        warmup: Steps of the warm-up.

    Returns:
        A factor in ``[0, 1]``.
    """
    if schedule == "one_cycle":
        low, lowest = 1 / 25, 1 / 25 / 1e4
        peak = (warmup if warmup else 0.3 * total) - 1
        last = total - 1
        if step <= peak:
            return _cosine(low, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, lowest, (step - peak) / (last - peak) if last > peak else 1.0)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1 - progress)
    if schedule == "cosine":
        return _cosine(1.0, 0.0, min(1.0, progress))
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def default_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW whose weight decay spares biases, normalisation weights and (by default) embeddings.

    Args:
        model: The model; parameters that need no gradient are left out.
        config: Learning rate, betas, weight decay and ``decay_embeddings``.

    Returns:
        The optimizer, with up to two parameter groups.

    Raises:
        ValueError: No parameter needs a gradient.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_spared = parameter.ndim < 2 or (id(parameter) in embeddings and not config.decay_embeddings)
        (spared if is_spared else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if parameters
    ]
    if not groups:
        raise ValueError("model has no parameter that needs a gradient")
    fused = all(p.device.type in ("cpu", "cuda") for p in (*decayed, *spared))
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


@dataclass(frozen=True)
class _MicroBatch:
    """Examples of one forward; ``real`` is false for a stand-in that must not count."""

    ids: list[int]
    real: bool
    seed: int


@dataclass(frozen=True)
class _Plan:
    """Which examples a process sees at which step, from the run's settings alone."""

    length: int
    config: FitConfig
    rank: int
    world: int
    whole_share: bool

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.length, self.config.batch_size)
        return full + (1 if rest and not self.config.drop_last else 0)

    @property
    def total_steps(self) -> int:
        limits = [self.config.max_steps]
        if self.config.epochs is not None:
            limits.append(self.config.epochs * self.steps_per_epoch)
        return min(limit for limit in limits if limit is not None)

    def micro_batches(self, order: Tensor, epoch: int, index: int) -> list[_MicroBatch]:
        """This process's micro batches of the ``index``-th step of an epoch; as many in every process."""
        batch = order[index * self.config.batch_size : (index + 1) * self.config.batch_size].tolist()
        bounds = [len(batch) * rank // self.world for rank in range(self.world + 1)]
        share = batch[bounds[self.rank] : bounds[self.rank + 1]]
        largest = max(end - start for start, end in itertools.pairwise(bounds))
        size = largest if self.whole_share else self.config.micro_batch_size or largest
        result = []
        for start in range(0, largest, size):
            ids = share[start : start + size]
            seed = derive_seed("loading", self.config.seed, epoch, index, self.rank, start)
            # Every process must run as many backward passes as the others: one that has run out of examples
            # repeats the first of the batch with weight zero.
            result.append(_MicroBatch(ids or batch[:1], real=bool(ids), seed=seed))
        return result


class _PlannedBatches:
    """Batch sampler: the micro batches of an epoch from one of its steps on."""

    def __init__(self, plan: _Plan, epoch: int, first: int, last: int) -> None:
        self.plan, self.epoch, self.first, self.last = plan, epoch, first, last

    def __iter__(self) -> Iterator[_MicroBatch]:
        order = epoch_permutation(self.plan.length, seed=self.plan.config.seed, epoch=self.epoch)
        for index in range(self.first, self.last):
            yield from self.plan.micro_batches(order, self.epoch, index)


class _Rows:
    """Lets a DataLoader fetch a whole micro batch at once."""

    def __init__(self, data: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.data, self.collate = data, collate

    def __getitems__(self, micro: _MicroBatch) -> tuple[_MicroBatch, Any]:
        if torch.utils.data.get_worker_info() is not None:
            # Which worker loads a batch depends on where the run started; what it draws must not.
            seed_everything(micro.seed)
        several = getattr(self.data, "__getitems__", None)
        rows = several(micro.ids) if several is not None else [self.data[index] for index in micro.ids]
        return micro, self.collate(list(rows))


def _as_fetched(fetched: Any) -> Any:
    return fetched


class _Totals:
    """Sums of loss, weight and metrics of one step: over micro batches, then over processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._names: tuple[str, ...] | None = None
        self._rows: list[list[Tensor | float]] = []

    def add(self, loss: Loss, *, real: bool) -> None:
        """Takes the numbers of one micro batch; a stand-in counts as nothing."""
        row: list[Tensor | float] = [_detached(loss.total), _detached(loss.weight)]
        names = tuple(sorted(loss.metrics))
        for name in names:
            value = loss.metrics[name]
            if isinstance(value, tuple):
                row += [_detached(value[0]), _detached(value[1])]
            else:
                row += [_detached(value) * row[1], row[1]]
        if self._names is None:
            self._names = names
        elif names != self._names:
            raise ValueError(
                f"the objective must always report the same metrics: {list(self._names)}, then {list(names)}"
            )
        self._rows.append(row if real else [0.0] * len(row))

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Sum and weight by name over all processes; ``loss`` among them."""
        flat = [value for row in self._rows for value in row]
        tensors = [value.to(torch.float64) for value in flat if isinstance(value, Tensor)]
        # All device values in one transfer.
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        values = [next(numbers) if isinstance(value, Tensor) else float(value) for value in flat]
        width = len(self._rows[0])
        sums = [sum(values[column::width]) for column in range(width)]
        self._rows = []
        if self._accelerator.num_processes > 1:
            vector = torch.tensor(sums, dtype=torch.float64, device=self._accelerator.device)
            sums = self._accelerator.reduce(vector, reduction="sum").tolist()
        keys = ("loss", *(self._names or ()))
        return {key: (sums[2 * i], sums[2 * i + 1]) for i, key in enumerate(keys)}


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach().reshape(()) if isinstance(value, Tensor) else float(value)


class StepContext:
    """What a :class:`StepMethod` needs of the loop during one step.

    Attributes:
        accelerator: The run's ``accelerate.Accelerator`` (device, autocast, communication).
        step: Optimizer steps done before this one.
        epoch: Number of the epoch, from 0.
        generator: This process's random numbers (CPU), continued after a resume.
        example_ids: Positions in the data set of the batch's examples, int64 ``[n]``.
        real: False if this process has no example left in an uneven batch: then ``batch`` is a stand-in
            whose gradient counts as zero, and nothing must be stored for its example.
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
        self.real = True
        self.grad_norm = 0.0
        self._model = model
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._weights: list[Tensor | float] = []
        self._shares: list[int] = []

    def backward(self, total: Tensor, weight: Tensor | float) -> None:
        """Adds the gradient of a sum of losses.

        Args:
            total: Sum over units, a scalar.
            weight: Number of units, by whose global sum :meth:`optimizer_step` divides.
        """
        if self.real:
            self._weights.append(_detached(weight))
        else:
            total = total * 0.0
        self.accelerator.backward(total)

    def zero_grad(self) -> None:
        """Forgets the gradients, for example those that an attack left on the model."""
        self._optimizer.zero_grad(set_to_none=True)
        self._weights = []

    def optimizer_step(self) -> None:
        """Divides the gradients by the global weight, clips them, updates the model and forgets them."""
        weight = torch.tensor(
            sum(float(weight) for weight in self._weights),
            dtype=torch.float64,
            device=self.accelerator.device,
        )
        if self.accelerator.num_processes > 1:
            weight = self.accelerator.reduce(weight, reduction="sum")
        self._update(float(weight))

    def _update(self, weight: float) -> None:
        if not weight > 0:
            if weight == 0:
                logger.warning("step %d: the batch has weight 0, the model is not updated", self.step + 1)
                self.zero_grad()
                return
            raise ValueError(f"step {self.step + 1}: a loss's weight must not be negative, got {weight}")
        scale = self.accelerator.num_processes / weight
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        # Clipping the sum to limit / scale and scaling afterwards is clipping the mean to the limit, with one
        # call that also unscales fp16 gradients and knows sharded models.
        limit = math.inf if self._max_grad_norm is None else self._max_grad_norm / scale
        norm = float(self.accelerator.clip_grad_norm_(self._model.parameters(), limit)) * scale
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise FloatingPointError(f"step {self.step + 1}: the gradient norm is {norm}")
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
        self._optimizer.step()
        self.grad_norm = norm
        self.zero_grad()


class _Metrics:
    """Lines of metrics in memory, as JSON lines and for TensorBoard."""

    def __init__(self, config: FitConfig, *, resumed_from: int | None, write: bool) -> None:
        self.history: list[dict[str, Any]] = []
        self._path: Path | None = None
        self._board: Any = None
        if config.output_dir is None:
            return
        directory = Path(config.output_dir)
        path = directory / "metrics.jsonl"
        if resumed_from is not None and path.exists():
            self.history = _lines_until(path, resumed_from)
        if not write:
            return
        directory.mkdir(parents=True, exist_ok=True)
        # Lines after the checkpoint will be written again.
        temporary = path.with_suffix(".jsonl.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")
        temporary.replace(path)
        self._path = path
        if config.tensorboard:
            self._board = _summary_writer(directory / "tensorboard", purge_step=resumed_from)

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line; it must hold ``step`` and ``split``."""
        self.history.append(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name not in ("step", "split"):
                    self._board.add_scalar(f"{line['split']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flushes what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def _lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            logger.warning("dropping a half-written line of %s", path)
            continue
        if line["step"] <= step:
            lines.append(line)
    return lines


def _summary_writer(directory: Path, *, purge_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the package tensorboard") from error
    return SummaryWriter(str(directory), purge_step=None if purge_step is None else purge_step + 1)


def fit(
    model: nn.Module,
    objective: Objective | StepMethod,
    train: Dataset,
    *,
    config: FitConfig,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    callbacks: Sequence[Callback] = (),
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    accelerator: Accelerator | None = None,
) -> FitResult:
    """Trains a model in place.

    Args:
        model: Any module; moved to the run's device. It is left in evaluation mode.
        objective: What to minimise, or a method that owns its step.
        train: A map-style data set of at least one example.
        config: The run's settings.
        evaluate: Gives numbers for the model (in evaluation mode, without gradients); called in every
            process, the main process's numbers count. It cannot disturb the run's random numbers.
        callbacks: Hooks, called in order.
        optimizer: Makes the optimizer; default :func:`default_optimizer`. Its groups' learning rates are
            the peaks of the schedule.
        accelerator: A prepared Accelerator, for example with a plugin; default: one made from ``config``.

    Returns:
        Steps, history and best evaluation of the run.

    Raises:
        ValueError: A setting does not fit the data, the checkpoint or the objective.
        FloatingPointError: A loss or gradient is NaN or infinite; the message names the step.
    """
    return _Run(model, objective, train, config, evaluate, callbacks, optimizer, accelerator).fit()


def _make_accelerator(config: FitConfig) -> Accelerator:
    if AcceleratorState._shared_state:
        # Accelerate keeps one state per process; a second run may want another precision.
        AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu or not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters)],
    )


def _warn_of_missing_processes(config: FitConfig, running: int) -> None:
    expected = config.expected_processes
    if expected is not None and running < expected:
        logger.warning("the run has %d process(es), %d were expected", running, expected)
    elif running == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        # accelerate launch --cpu --num_processes N sets the address of a group it never starts.
        logger.warning(
            "several processes were asked for but only one is running (accelerate launch --cpu does that); "
            "start CPU processes with torchrun --nproc_per_node N"
        )


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | StepMethod,
        train: Dataset,
        config: FitConfig,
        evaluate: Callable[[Any], Mapping[str, float]] | None,
        callbacks: Sequence[Callback],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None,
        accelerator: Accelerator | None,
    ) -> None:
        if len(train) < 1:
            raise ValueError("train must hold at least one example")
        self.config, self.train_data, self.evaluate, self.callbacks = config, train, evaluate, callbacks
        self.method = objective if isinstance(objective, StepMethod) else None
        self.objective = objective
        if self.method is not None and config.micro_batch_size is not None:
            raise ValueError("micro_batch_size is for objectives; a StepMethod gets its whole share at once")
        if config.patience is not None and evaluate is None:
            raise ValueError("patience needs evaluate")
        self.accelerator = accelerator or _make_accelerator(config)
        self.accelerator.gradient_accumulation_steps = 1
        _warn_of_missing_processes(config, self.accelerator.num_processes)
        self.plan = _Plan(
            length=len(train),
            config=config,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            whole_share=self.method is not None,
        )
        if self.plan.steps_per_epoch == 0:
            raise ValueError(
                f"drop_last leaves nothing of {len(train)} examples at batch_size {config.batch_size}"
            )
        self.folder = None
        if config.output_dir is not None:
            self.folder = CheckpointFolder(
                Path(config.output_dir) / "checkpoints", keep=config.keep_checkpoints
            )
        self.state = FitState(model=model, config=config, total_steps=self.plan.total_steps)
        self.evaluations_without_gain = 0
        self.finished = False
        self.stopped_early = False
        self.last_evaluated = -1
        self.best_weights: dict[str, Tensor] | None = None
        self.window: dict[str, tuple[float, float]] = {}
        self.bare = model
        seed_everything(derive_seed("process", config.seed, self.plan.rank))
        self.generator = torch.Generator().manual_seed(derive_seed("method", config.seed, self.plan.rank))
        if config.compile:
            model.compile()
        made = default_optimizer(model, config) if optimizer is None else optimizer(model)
        self.peaks = [float(group["lr"]) for group in made.param_groups]
        model.train()
        self.model, self.optimizer = self.accelerator.prepare(model, made)
        self.resumed_from = self._resume()
        self.metrics = _Metrics(
            config, resumed_from=self.resumed_from, write=self.accelerator.is_main_process
        )
        self.context = StepContext(
            self.accelerator, self.model, self.optimizer, self.generator, config.max_grad_norm
        )

    # The run

    def fit(self) -> FitResult:
        """Trains until the last step and returns the result."""
        state, plan = self.state, self.plan
        bar = Progress(
            state.total_steps,
            "training",
            done=state.step,
            enabled=self.config.progress and self.accelerator.is_local_main_process,
        )
        try:
            with bar:
                while state.step < state.total_steps and not self.finished:
                    self._epoch(bar)
        finally:
            self.metrics.close()
            # Takes the precision wrapper off again, also when a step fails.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self._restore_best()
        self.bare.eval()
        result = FitResult(
            steps=state.step,
            history=tuple(self.metrics.history),
            best_metric=state.best_metric,
            best_step=state.best_step,
            stopped_early=self.stopped_early,
            resumed_from=self.resumed_from,
            num_processes=plan.world,
        )
        for callback in self.callbacks:
            callback.on_end(state, result)
        self.accelerator.free_memory()
        return result

    def _epoch(self, bar: Progress) -> None:
        state, plan, config = self.state, self.plan, self.config
        state.epoch, first = divmod(state.step, plan.steps_per_epoch)
        last = min(plan.steps_per_epoch, first + state.total_steps - state.step)
        collate = getattr(self.objective, "collate", None) or default_collate
        loader: DataLoader[Any] = DataLoader(
            _Rows(self.train_data, collate),  # type: ignore[arg-type]
            batch_sampler=_PlannedBatches(plan, state.epoch, first, last),  # type: ignore[arg-type]
            collate_fn=_as_fetched,
            num_workers=config.num_workers,
            # A generator of its own: a resumed epoch must not draw from the restored global one.
            generator=torch.Generator().manual_seed(derive_seed("loader", config.seed, state.epoch)),
        )
        batches = iter(loader)
        count = -1
        started, seen = time.perf_counter(), state.step
        for index in range(first, last):
            examples = min(config.batch_size, plan.length - index * config.batch_size)
            share = -(-examples // plan.world)
            count = 1 if self.method is not None else -(-share // (config.micro_batch_size or share))
            factor = self._set_learning_rate()
            totals = self._step([next(batches) for _ in range(count)])
            state.step += 1
            state.loss = totals["loss"][0] / totals["loss"][1] if totals["loss"][1] else math.nan
            state.learning_rate = factor * self.peaks[0]
            for name, (total, weight) in totals.items():
                before = self.window.get(name, (0.0, 0.0))
                self.window[name] = (before[0] + total, before[1] + weight)
            if state.step % config.log_every == 0 or state.step == state.total_steps:
                elapsed, done = time.perf_counter() - started, state.step - seen
                self._log(elapsed / done)
                started, seen = time.perf_counter(), state.step
            for callback in self.callbacks:
                callback.on_step_end(state)
            self._agree_to_stop()
            ends_epoch = index + 1 == plan.steps_per_epoch
            ends_run = state.step == state.total_steps or state.should_stop
            due = ends_epoch if config.eval_every is None else state.step % config.eval_every == 0
            if self.evaluate is not None and (due or ends_run):
                self._evaluate()
                ends_run = ends_run or state.should_stop
            self.finished = ends_run
            self.stopped_early = state.should_stop and state.step < state.total_steps
            if ends_run or (config.save_every is not None and state.step % config.save_every == 0):
                self._save()
            bar.advance(note=f"loss {state.loss:.4f}")
            if ends_run:
                return

    def _set_learning_rate(self) -> float:
        config, total = self.config, self.state.total_steps
        warmup = config.warmup_steps or round(config.warmup_ratio * total)
        factor = schedule_factor(self.state.step, total, schedule=config.schedule, warmup=warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return factor

    def _step(self, fetched: list[tuple[_MicroBatch, Any]]) -> dict[str, tuple[float, float]]:
        context, totals = self.context, _Totals(self.accelerator)
        context.step, context.epoch = self.state.step, self.state.epoch
        for position, (micro, batch) in enumerate(fetched):
            batch = send_to_device(batch, self.accelerator.device)
            context.example_ids, context.real = torch.tensor(micro.ids), micro.real
            if self.method is not None:
                loss = self.method.step(self.model, batch, context)
            else:
                is_last = position == len(fetched) - 1
                quiet: AbstractContextManager[Any] = (
                    nullcontext() if is_last else self.accelerator.no_sync(self.model)
                )
                with quiet:
                    loss = self.objective(self.model, batch)  # type: ignore[operator]
                    context.backward(loss.total, loss.weight)
            totals.add(loss, real=micro.real)
        sums = totals.reduce()
        for name, (total, _) in sums.items():
            if name == "loss" and not math.isfinite(total):
                raise FloatingPointError(f"step {self.state.step + 1}: the loss is {total}")
        if self.method is None:
            context._update(sums["loss"][1])
        return sums

    def _log(self, seconds: float) -> None:
        line = {
            "step": self.state.step,
            "split": "train",
            "epoch": self.state.epoch,
            "learning_rate": self.state.learning_rate,
            "grad_norm": self.context.grad_norm,
            "seconds_per_step": seconds,
        }
        line |= {name: total / weight for name, (total, weight) in self.window.items() if weight}
        self.window = {}
        self.metrics.write(line)

    def _agree_to_stop(self) -> None:
        if self.callbacks and self.plan.world > 1:
            flag = torch.tensor(float(self.state.should_stop), device=self.accelerator.device)
            self.state.should_stop = bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        state, config = self.state, self.config
        modes = [(module, module.training) for module in self.bare.modules()]
        self.bare.eval()
        eager = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
        with torch.no_grad(), preserved_rng(), eager:
            results = {name: float(value) for name, value in self.evaluate(self.bare).items()}
        for module, mode in modes:
            module.training = mode
        if self.plan.world > 1 and results:
            values = torch.tensor(list(results.values()), dtype=torch.float64, device=self.accelerator.device)
            results = dict(zip(results, broadcast(values).tolist(), strict=True))
        self.last_evaluated = state.step
        self._note_best(results)
        self.metrics.write({"step": state.step, "split": "eval", "epoch": state.epoch, **results})
        for callback in self.callbacks:
            callback.on_evaluate(state, results)
        self._agree_to_stop()

    def _note_best(self, results: Mapping[str, float]) -> None:
        state, config = self.state, self.config
        name = config.metric_for_best
        if name not in results:
            if self.keeps_best:
                raise ValueError(f"metric_for_best is {name!r}, but evaluate gave {sorted(results)}")
            return
        value = results[name]
        sign = 1 if config.greater_is_better else -1
        if math.isfinite(value) and (state.best_metric is None or sign * value > sign * state.best_metric):
            state.best_metric, state.best_step = value, state.step
            self.evaluations_without_gain = 0
            if self.keeps_best:
                self._keep_best()
            return
        self.evaluations_without_gain += 1
        if config.patience is not None and self.evaluations_without_gain >= config.patience:
            state.stop()

    # Best weights

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights are needed at the end."""
        if self.config.restore_best is not None:
            return self.config.restore_best
        return self.config.patience is not None

    def _keep_best(self) -> None:
        self.best_weights = {
            name: value.detach().to("cpu", copy=True) for name, value in self.bare.state_dict().items()
        }

    def _restore_best(self) -> None:
        if self.keeps_best and self.best_weights is not None:
            self.bare.load_state_dict(self.best_weights)

    # Checkpoints

    def _fixed(self) -> dict[str, Any]:
        """Settings without which the rest of a run would not be the rest of the same run."""
        config = self.config
        return {
            "batch_size": config.batch_size,
            "seed": config.seed,
            "drop_last": config.drop_last,
            "train_length": self.plan.length,
        }

    def _save(self) -> None:
        if self.folder is None:
            return
        state, main = self.state, self.accelerator.is_main_process
        directory = self.folder.begin(state.step) if main else self.folder.partial(state.step)
        self.accelerator.wait_for_everyone()
        if main:
            save_model(self.bare, str(directory / "model.safetensors"))
            save_tree(directory, "optimizer", self.optimizer.state_dict())
            scaler = self.accelerator.scaler
            document = {
                "step": state.step,
                "fixed": self._fixed(),
                "processes": self.plan.world,
                "config": json.loads(json.dumps(asdict(self.config), default=str)),
                "best_metric": state.best_metric,
                "best_step": state.best_step,
                "evaluations_without_gain": self.evaluations_without_gain,
                "stopped_early": self.stopped_early,
                "window": {name: list(sums) for name, sums in self.window.items()},
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            (directory / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        own = {"rng": rng_state(), "generator": self.generator.get_state()}
        if self.method is not None:
            own["method"] = dict(self.method.state_dict())
        save_tree(directory, f"process-{self.plan.rank}", own)
        self.accelerator.wait_for_everyone()
        final = self.folder.commit(state.step) if main else self.folder.directory(state.step)
        self.accelerator.wait_for_everyone()
        for callback in self.callbacks:
            callback.on_save(state, final)

    def _resume(self) -> int | None:
        if self.folder is None:
            return None
        directory = self.folder.latest()
        if directory is None:
            return None
        if not self.config.resume:
            raise ValueError(
                f"output_dir holds checkpoints of an earlier run ({directory}): "
                "set resume=True to continue it, or choose another folder"
            )
        document = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        for name, value in self._fixed().items():
            if document["fixed"][name] != value:
                raise ValueError(
                    f"cannot resume from {directory}: {name} was {document['fixed'][name]}, now it is {value}"
                )
        load_model(self.bare, directory / "model.safetensors")
        self.optimizer.load_state_dict(load_tree(directory, "optimizer"))
        if self.accelerator.scaler is not None and document["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(document["scaler"])
        state = self.state
        state.step = document["step"]
        state.best_metric, state.best_step = document["best_metric"], document["best_step"]
        self.evaluations_without_gain = document["evaluations_without_gain"]
        self.stopped_early = self.finished = document["stopped_early"]
        self.window = {name: (sums[0], sums[1]) for name, sums in document["window"].items()}
        own = load_tree(directory, f"process-{self.plan.rank}")
        restore_rng_state(own["rng"])
        self.generator.set_state(own["generator"])
        if self.method is not None:
            self.method.load_state_dict(own["method"])
        logger.info("resumed from %s", directory)
        return state.step
