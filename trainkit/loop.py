"""One training loop on Accelerate for every method: a laptop's CPU, one GPU, or many processes.

A method enters in one of two ways. An :class:`Objective` maps (model, batch) to a :class:`Loss`; the loop
does the rest. A :class:`StepMethod` owns its whole step: several forwards, alternating updates,
perturbations that live beside the data.

Losses are sums with a weight. The loop back-propagates the sums and divides the gradient by the weight of the
whole global batch just before clipping, so micro batches, several processes and uneven last batches give the
same update as one large batch, also when examples weigh differently (tokens).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast, send_to_device
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from trainkit.batches import BatchPlan, MapDataset, MicroBatch, load_batches
from trainkit.checkpoints import CheckpointFolder, load_tree, save_tree
from trainkit.config import FitConfig, Schedule
from trainkit.metrics import MetricsLog, Sums, sum_losses
from trainkit.objectives import Loss, Objective, StepContext, StepMethod
from trainkit.optim import default_optimizer, schedule_factor
from trainkit.progress import Progress
from trainkit.seeding import derive_seed, preserved_rng, restore_rng_state, rng_state, seed_everything
from trainkit.weights import is_sharded, load_optimizer, load_weights, save_optimizer, save_weights

__all__ = [
    "Callback",
    "FitConfig",
    "FitResult",
    "FitState",
    "Loss",
    "Objective",
    "Schedule",
    "StepContext",
    "StepMethod",
    "fit",
]

logger = logging.getLogger(__name__)

Evaluate = Callable[[Any], Mapping[str, float]]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]

# What a resumed run may change without becoming another run.
_FREE_SETTINGS = frozenset(
    {
        "compile",
        "cpu",
        "expected_processes",
        "find_unused_parameters",
        "keep_checkpoints",
        "log_every",
        "micro_batch_size",
        "num_workers",
        "output_dir",
        "progress",
        "resume",
        "save_every",
        "tensorboard",
    }
)


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


def fit(
    model: nn.Module,
    objective: Objective | StepMethod,
    train: MapDataset,
    *,
    config: FitConfig,
    evaluate: Evaluate | None = None,
    callbacks: Sequence[Callback] = (),
    optimizer: MakeOptimizer | None = None,
    accelerator: Accelerator | None = None,
) -> FitResult:
    """Trains a model in place.

    The global random generators are seeded from ``config.seed``. Memory beyond model, optimizer and one batch
    does not grow with the data, except for the lines of metrics and the order of an epoch (8 bytes an
    example).

    Args:
        model: Any module; moved to the run's device and left in evaluation mode. It may have gone through
            ``torch.distributed.fsdp.fully_shard``.
        objective: What to minimise, or a method that owns its step.
        train: A map-style data set of at least one example.
        config: The run's settings.
        evaluate: Gives numbers for the model, which it gets in evaluation mode and with gradients off. Called
            in every process; the main process's numbers count. Its random numbers are its own: they do not
            change the run. The names must be the same every time.
        callbacks: Hooks, called in order.
        optimizer: Makes the optimizer; default ``trainkit.optim.default_optimizer``. The learning rates of
            its groups are the peaks of the schedule.
        accelerator: A prepared Accelerator, for example with a plugin; default: one made from ``config`` and
            the environment that ``accelerate launch`` or ``torchrun`` sets.

    Returns:
        Steps, history and best evaluation of the run.

    Raises:
        TypeError: ``train`` has no length, or the objective returns something else than a :class:`Loss`.
        ValueError: A setting does not fit the data, the checkpoint, the objective or the way of running.
        FloatingPointError: A loss or gradient is NaN or infinite; the message names the step.
    """
    if not hasattr(train, "__len__"):
        raise TypeError(f"train must be a map-style data set with a length, got {type(train).__name__}")
    if len(train) < 1:
        raise ValueError("train must hold at least one example")
    if config.patience is not None and evaluate is None:
        raise ValueError("patience needs evaluate")
    if isinstance(objective, StepMethod) and config.micro_batch_size is not None:
        raise ValueError("micro_batch_size is for objectives: a StepMethod gets its whole share at once")
    if accelerator is not None:
        return _Run(model, objective, train, config, evaluate, callbacks, optimizer, accelerator).complete()
    with _own_state():
        running = _make_accelerator(config)
        return _Run(model, objective, train, config, evaluate, callbacks, optimizer, running).complete()


@contextmanager
def _own_state() -> Iterator[None]:
    """Sets aside what Accelerate keeps for the process: another's precision, accumulation of gradients.

    A Trainer leaves such a state behind, and a loop of the caller's own may be in the middle of its steps.
    """
    states = (AcceleratorState._shared_state, GradientState._shared_state)
    others = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, other in zip(states, others, strict=True):
            state.clear()
            state.update(other)


def _make_accelerator(config: FitConfig) -> Accelerator:
    ddp = DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters)
    running = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu or not torch.accelerator.is_available(),
        kwargs_handlers=[ddp],
    )
    if config.cpu and running.device.type != "cpu":
        raise ValueError(
            f"cpu=True, but Accelerate already runs on {running.device} in this process; start another one"
        )
    return running


def _warn_of_missing_processes(expected: int | None, running: int) -> None:
    asked = expected or int(os.environ.get("WORLD_SIZE", "1"))
    if running < asked:
        logger.warning("only %d of %d expected processes take part in this run", running, asked)
    # Given --cpu and --num_processes N, accelerate launch names a meeting point and starts one process.
    elif (
        expected is None
        and running == 1
        and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
        and "WORLD_SIZE" not in os.environ
    ):
        logger.warning(
            "several processes were asked for but one is running, as accelerate launch --cpu does; "
            "start processes on the CPU with torchrun --nproc_per_node N"
        )


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | StepMethod,
        train: MapDataset,
        config: FitConfig,
        evaluate: Evaluate | None,
        callbacks: Sequence[Callback],
        optimizer: MakeOptimizer | None,
        accelerator: Accelerator,
    ) -> None:
        self.objective, self.train, self.config = objective, train, config
        self.method = objective if isinstance(objective, StepMethod) else None
        self.evaluate, self.callbacks, self.accelerator = evaluate, callbacks, accelerator
        accelerator.gradient_accumulation_steps = 1
        _warn_of_missing_processes(config.expected_processes, accelerator.num_processes)
        self.plan = BatchPlan(
            length=len(train),
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            drop_last=config.drop_last,
            seed=config.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        if self.plan.steps_per_epoch == 0:
            raise ValueError(
                f"drop_last leaves nothing of {len(train)} examples at batch_size {config.batch_size}"
            )
        steps = [config.max_steps, config.epochs and config.epochs * self.plan.steps_per_epoch]
        self.state = FitState(model=model, config=config, total_steps=min(filter(None, steps)))
        self.output = None if config.output_dir is None else Path(config.output_dir)
        if self.output is not None:
            if accelerator.distributed_type == DistributedType.DEEPSPEED:
                raise ValueError("DeepSpeed runs cannot write checkpoints: set output_dir=None, or use FSDP")
            self.checkpoints = CheckpointFolder(self.output / "checkpoints", keep=config.keep_checkpoints)
            self.best_folder = CheckpointFolder(self.output / "best")
        self.best_weights: dict[str, Tensor] | None = None
        self.bad_evaluations = 0
        self.window: Sums = {}

        self.generator = torch.Generator().manual_seed(derive_seed("method", config.seed, self.plan.rank))
        self.own_forward = "forward" in vars(model)
        made = default_optimizer(model, config) if optimizer is None else optimizer(model)
        self.peaks = [float(group["lr"]) for group in made.param_groups]
        self._wrap(model, made)

    def _wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Prepares both for the way of running: from here on ``model`` is called and ``bare`` is kept."""
        accelerator, config = self.accelerator, self.config
        if is_sharded(model):
            if config.mixed_precision != "no":
                raise ValueError("give a sharded model its precision with fully_shard(mp_policy=...)")
            self.model, self.optimizer = model, accelerator.prepare_optimizer(optimizer)
        else:
            if accelerator.distributed_type == DistributedType.DEEPSPEED:
                _settle_deepspeed(accelerator, config, max(self.plan.shares(0)))
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if isinstance(self.model, FullyShardedDataParallel):
            raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2 in the Accelerate config")
        self.bare = self.model if is_sharded(self.model) else model
        if config.compile:
            self.bare.compile()

    # The run

    def complete(self) -> FitResult:
        """Trains until the last step and returns the result."""
        state, config = self.state, self.config
        with ExitStack() as stack:
            stack.callback(self._unwrap)
            seed_everything(derive_seed("process", config.seed, self.plan.rank))
            self.bare.train()
            resumed_from = self._resume()
            self.log = MetricsLog(
                self.output,
                resumed_from=resumed_from,
                write=self.accelerator.is_main_process,
                tensorboard=config.tensorboard,
            )
            stack.callback(self.log.close)
            self.context = StepContext(
                self.accelerator, self.model, self.optimizer, self.generator, config.max_grad_norm
            )
            stopped = config.patience is not None and self.bad_evaluations >= config.patience
            watched = config.progress and self.accelerator.is_local_main_process
            bar = Progress(state.total_steps, "training", done=state.step, enabled=watched)
            stack.enter_context(bar)
            while state.step < state.total_steps and not stopped:
                stopped = self._epoch(bar)
        if config.keeps_best and state.best_step is not None:
            self._restore_best(state.best_step)
        self.bare.eval()
        result = FitResult(
            steps=state.step,
            history=tuple(self.log.history),
            best_metric=state.best_metric,
            best_step=state.best_step,
            stopped_early=stopped and state.step < state.total_steps,
            resumed_from=resumed_from,
            num_processes=self.plan.world,
        )
        for callback in self.callbacks:
            callback.on_end(state, result)
        return result

    def _unwrap(self) -> None:
        """Takes from the model what was put around its forward."""
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if not self.own_forward:
            vars(model).pop("forward", None)
        if self.config.compile:
            # There is no public way back from Module.compile; left in place, every new shape given to the
            # trained model would be compiled.
            self.bare._compiled_call_impl = None

    def _epoch(self, bar: Progress) -> bool:
        """Trains to the end of the epoch, of the run, or until something stops it; tells which."""
        state, config = self.state, self.config
        state.epoch, first = divmod(state.step, self.plan.steps_per_epoch)
        last = min(self.plan.steps_per_epoch, first + state.total_steps - state.step)
        batches = load_batches(
            self.train,
            self.plan,
            epoch=state.epoch,
            first=first,
            last=last,
            collate=getattr(self.objective, "collate", None),
            num_workers=config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        clock, clocked = time.perf_counter(), state.step
        for index, (micros, loaded) in enumerate(batches, start=first):
            self._set_learning_rates()
            self.context.shares = self.plan.shares(index)
            sums = self._step(micros, loaded)
            state.step += 1
            state.loss = _mean(sums["loss"])
            for name, (total, weight) in sums.items():
                before = self.window.get(name, (0.0, 0.0))
                self.window[name] = (before[0] + total, before[1] + weight)
            for callback in self.callbacks:
                callback.on_step_end(state)
            ends = self._agree(state.should_stop) or state.step == state.total_steps
            if ends or state.step % config.log_every == 0:
                now = time.perf_counter()
                self._log_window((now - clock) / (state.step - clocked))
                clock, clocked = now, state.step
            ends_epoch = index + 1 == self.plan.steps_per_epoch
            due = ends_epoch if config.eval_every is None else state.step % config.eval_every == 0
            if self.evaluate is not None and (due or ends):
                self._evaluate(self.evaluate)
                if self._agree(state.should_stop) and not ends:
                    ends = True
                    if self.window:
                        self._log_window((time.perf_counter() - clock) / max(1, state.step - clocked))
            if ends or (config.save_every is not None and state.step % config.save_every == 0):
                self._save()
            bar.advance(note=f"loss {state.loss:.4f}")
            if ends:
                return True
        return False

    def _set_learning_rates(self) -> None:
        config, total = self.config, self.state.total_steps
        warmup = config.warmup_steps or round(config.warmup_ratio * total)
        factor = schedule_factor(self.state.step, total, schedule=config.schedule, warmup=warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.state.learning_rate = self.peaks[0] * factor

    def _step(self, micros: Sequence[MicroBatch], loaded: Sequence[Any]) -> Sums:
        context, device = self.context, self.accelerator.device
        context.step, context.epoch = self.state.step, self.state.epoch
        losses = []
        for micro, batch in zip(micros, loaded, strict=True):
            batch = send_to_device(batch, device, non_blocking=device.type == "cuda")
            context.example_ids, context.real = torch.tensor(micro.ids), micro.real
            if self.method is not None:
                losses.append(_checked(self.method.step(self.model, batch, context)))
                continue
            with nullcontext() if micro.last else context.without_communication():
                loss = _checked(cast(Objective, self.objective)(self.model, batch))
                context.backward(loss.total, loss.weight)
            losses.append(loss)
        sums = sum_losses(losses, [micro.real for micro in micros], self.accelerator)
        if not math.isfinite(sums["loss"][0]):
            raise FloatingPointError(f"step {self.state.step + 1}: the loss is {sums['loss'][0]}")
        if self.method is None:
            context.optimizer_step(sums["loss"][1])
        return sums

    def _log_window(self, seconds_per_step: float) -> None:
        state = self.state
        values = {
            "epoch": state.epoch,
            **{name: _mean(sums) for name, sums in self.window.items() if sums[1]},
            "learning_rate": state.learning_rate,
            "grad_norm": self.context.grad_norm,
            "seconds_per_step": seconds_per_step,
        }
        self.window = {}
        self.log.write(state.step, "train", values)

    def _agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        if self.plan.world > 1 and self.callbacks:
            flag = torch.tensor(float(stop), device=self.accelerator.device)
            stop = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
            self.state.should_stop = stop
        return stop

    def _evaluate(self, evaluate: Evaluate) -> None:
        state, config = self.state, self.config
        modes = [(module, module.training) for module in self.bare.modules()]
        self.bare.eval()
        eager = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
        with torch.no_grad(), preserved_rng(), eager:
            results = {name: float(value) for name, value in evaluate(self.bare).items()}
        for module, training in modes:
            module.training = training
        if self.plan.world > 1 and results:
            values = torch.tensor(list(results.values()), dtype=torch.float64, device=self.accelerator.device)
            results = dict(zip(results, broadcast(values).tolist(), strict=True))
        self._note_best(results)
        self.log.write(state.step, "eval", {"epoch": state.epoch, **results})
        for callback in self.callbacks:
            callback.on_evaluate(state, results)

    def _note_best(self, results: Mapping[str, float]) -> None:
        state, config = self.state, self.config
        if config.metric_for_best not in results:
            if config.keeps_best:
                raise ValueError(
                    f"metric_for_best is {config.metric_for_best!r}, but evaluate gave {sorted(results)}"
                )
            return
        value = results[config.metric_for_best]
        sign = 1 if config.greater_is_better else -1
        if math.isfinite(value) and (state.best_metric is None or sign * value > sign * state.best_metric):
            state.best_metric, state.best_step = value, state.step
            self.bad_evaluations = 0
            if config.keeps_best:
                self._keep_best()
            return
        self.bad_evaluations += 1
        if config.patience is not None and self.bad_evaluations >= config.patience:
            state.stop()

    # The best weights

    def _keep_best(self) -> None:
        if self.output is None:
            state = self.bare.state_dict()
            self.best_weights = {
                name: value.detach().clone() if is_sharded(self.bare) else value.detach().to("cpu", copy=True)
                for name, value in state.items()
            }
            return
        directory = self._begin(self.best_folder)
        save_weights(self.bare, directory / "model.safetensors", write=self.accelerator.is_main_process)
        self._commit(self.best_folder)

    def _restore_best(self, step: int) -> None:
        if self.best_weights is not None:
            self.bare.load_state_dict(self.best_weights)
        elif self.output is not None and step in self.best_folder.steps():
            load_weights(self.bare, self.best_folder.directory(step) / "model.safetensors")
        else:
            logger.warning("the weights of the best step, %d, are lost: the model keeps the last ones", step)

    def _forget_old_best(self) -> None:
        """Removes best weights that neither this run nor any checkpoint refers to."""
        wanted = {self.state.best_step}
        for step in self.checkpoints.steps():
            wanted.add(_read_state(self.checkpoints.directory(step))["best_step"])
        self.best_folder.remove(step for step in self.best_folder.steps() if step not in wanted)

    # Checkpoints

    def _begin(self, folder: CheckpointFolder) -> Path:
        if self.accelerator.is_main_process:
            folder.begin(self.state.step)
        self.accelerator.wait_for_everyone()
        return folder.partial(self.state.step)

    def _commit(self, folder: CheckpointFolder) -> Path:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder.commit(self.state.step)
        self.accelerator.wait_for_everyone()
        return folder.directory(self.state.step)

    def _fixed(self) -> dict[str, Any]:
        """Settings without which the rest of a run would not be the rest of the same run."""
        return {
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "drop_last": self.config.drop_last,
            "train_length": self.plan.length,
        }

    def _save(self) -> None:
        if self.output is None:
            return
        state, main = self.state, self.accelerator.is_main_process
        directory = self._begin(self.checkpoints)
        save_weights(self.bare, directory / "model.safetensors", write=main)
        save_optimizer(self.bare, self.optimizer.optimizer, directory, write=main)
        if main:
            scaler = self.accelerator.scaler
            document = {
                "step": state.step,
                "fixed": self._fixed(),
                "config": _plain(self.config),
                "processes": self.plan.world,
                "sharded": is_sharded(self.bare),
                "best_metric": state.best_metric,
                "best_step": state.best_step,
                "evaluations_without_gain": self.bad_evaluations,
                "window": self.window,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            (directory / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        own: dict[str, Any] = {"rng": rng_state(), "generator": self.generator.get_state()}
        if self.method is not None:
            own["method"] = self.method.state_dict()
        save_tree(directory, f"process-{self.plan.rank}", own)
        path = self._commit(self.checkpoints)
        if main and self.config.keeps_best:
            self._forget_old_best()
        for callback in self.callbacks:
            callback.on_save(state, path)

    def _resume(self) -> int | None:
        if self.output is None:
            return None
        directory = self.checkpoints.latest()
        if directory is None:
            return None
        if not self.config.resume:
            raise ValueError(
                f"output_dir holds checkpoints of an earlier run ({directory}): "
                "set resume=True to continue it, or choose another folder"
            )
        document = _read_state(directory)
        self._check_same_run(directory, document)
        load_weights(self.bare, directory / "model.safetensors")
        load_optimizer(self.bare, self.optimizer.optimizer, directory)
        if self.accelerator.scaler is not None and document["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(document["scaler"])
        state = self.state
        state.step = document["step"]
        state.best_metric, state.best_step = document["best_metric"], document["best_step"]
        self.bad_evaluations = document["evaluations_without_gain"]
        self.window = {name: (sums[0], sums[1]) for name, sums in document["window"].items()}
        self._resume_process(directory, document["processes"])
        logger.info("resumed from %s", directory)
        return state.step

    def _check_same_run(self, directory: Path, document: Mapping[str, Any]) -> None:
        for name, value in self._fixed().items():
            if document["fixed"][name] != value:
                raise ValueError(
                    f"cannot resume from {directory}: {name} was {document['fixed'][name]}, now it is {value}"
                )
        if document.get("sharded", False) != is_sharded(self.bare):
            raise ValueError(f"cannot resume from {directory}: of the two models one is sharded")
        if document["step"] > self.state.total_steps:
            raise ValueError(
                f"cannot resume from {directory}: it is beyond the run's {self.state.total_steps} steps"
            )
        changed = [
            f"{name} from {document['config'].get(name)} to {value}"
            for name, value in _plain(self.config).items()
            if name not in _FREE_SETTINGS and document["config"].get(name) != value
        ]
        if changed:
            logger.warning(
                "resuming with changed settings: %s (betas and weight decay stay those of the checkpoint)",
                ", ".join(changed),
            )

    def _resume_process(self, directory: Path, processes: int) -> None:
        """Gives this process the random numbers and the method's state that it had."""
        if processes == self.plan.world:
            own = load_tree(directory, f"process-{self.plan.rank}")
            restore_rng_state(own["rng"])
            self.generator.set_state(own["generator"])
            if self.method is not None:
                self.method.load_state_dict(own["method"])
        elif self.method is not None:
            raise ValueError(
                f"cannot resume from {directory}: the method's state is that of {processes} process(es), "
                f"now there are {self.plan.world}"
            )
        else:
            logger.warning(
                "%s is of %d process(es), now there are %d: random numbers (dropout) start anew",
                directory,
                processes,
                self.plan.world,
            )
            seed_everything(derive_seed("process", self.config.seed, self.plan.rank, self.state.step))


def _settle_deepspeed(accelerator: Accelerator, config: FitConfig, share: int) -> None:
    """Fills in what DeepSpeed wants to know of the run, and refuses what it cannot do."""
    if config.micro_batch_size is not None and config.micro_batch_size < share:
        raise ValueError("DeepSpeed divides the loss before its sum is known: leave micro_batch_size unset")
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = share
    settings["gradient_accumulation_steps"] = 1
    settings["gradient_clipping"] = config.max_grad_norm or 0.0


def _checked(loss: object) -> Loss:
    if not isinstance(loss, Loss):
        raise TypeError(f"the objective must return a Loss, got {type(loss).__name__}")
    return loss


def _mean(sums: tuple[float, float]) -> float:
    total, weight = sums
    return total / weight if weight else math.nan


def _plain(config: FitConfig) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return cast(dict[str, Any], json.loads(json.dumps(asdict(config), default=str)))


def _read_state(directory: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((directory / "state.json").read_text(encoding="utf-8")))
