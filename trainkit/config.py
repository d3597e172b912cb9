"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["FitConfig", "Schedule"]

Schedule = Literal["linear", "cosine", "one_cycle", "constant"]


@dataclass(frozen=True)
class FitConfig:
    """Settings of one training run.

    Attributes:
        output_dir: Folder for checkpoints and metrics; processes on several machines must share it. ``None``
            writes nothing.
        max_steps: Optimizer steps at most. At least one of ``max_steps`` and ``epochs`` is needed.
        epochs: Passes over the data at most.
        batch_size: Examples of one optimizer step, over all processes and micro batches.
        micro_batch_size: Examples of one forward in one process; ``None``: the process's whole share.
        drop_last: Leave out the last batch of an epoch when it is not full.
        learning_rate: Peak learning rate, reached at the end of the warm-up.
        weight_decay: AdamW's decoupled weight decay; see ``trainkit.optim.default_optimizer`` for what it
            spares.
        betas: AdamW's two decay rates of gradient averages.
        decay_embeddings: Apply weight decay to embedding tables too.
        schedule: Course of the learning rate, see ``trainkit.optim.schedule_factor``.
        warmup_steps: Steps of the warm-up.
        warmup_ratio: The warm-up as a share of all steps, instead of ``warmup_steps``.
        max_grad_norm: Gradients are scaled down to this global L2 norm; ``None`` does not clip.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (the last on accelerators only). Evaluation runs
            in the same precision.
        compile: Compile the model with ``torch.compile`` for the time of the run; evaluation stays eager.
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
        tensorboard: Write the metrics for TensorBoard too, into ``output_dir/tensorboard``.
        progress: Show a progress bar when standard error is a terminal.

    Raises:
        ValueError: A setting is out of its range or contradicts another; the message names it.
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
            if not getattr(self, name) >= 0:
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
        if self.output_dir is None:
            for name in ("resume", "tensorboard", "save_every"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs an output_dir")

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best evaluation are wanted at the end."""
        return self.patience is not None if self.restore_best is None else self.restore_best
