"""What the training loop costs: ``trainkit.fit`` beside a plain torch loop and ``transformers.Trainer``.

The same tiny Llama learns from the same rows with AdamW, clipping, a linear schedule and a logged loss; the
second and third end by writing the model. The three take turns, so that a busy machine disturbs all alike,
and CPU seconds of the process are reported beside wall clock.

    python benchmarks/fit_overhead.py [--steps 100] [--repeats 3] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import accelerate
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from trainkit import FitConfig, Loss, fit
from trainkit.hub import write_json

BATCH, LENGTH, VOCABULARY, RATE, LOG_EVERY = 16, 64, 1024, 1e-3, 10


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random tokens with a pattern: each repeats the one four places before it."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        block = torch.randint(VOCABULARY, (count, 4), generator=generator)
        self.ids = block.repeat(1, LENGTH // 4)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
        )
    )


def plain(model: nn.Module, rows: Rows, steps: int) -> list[float]:
    """The least that does the same work."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True)
    losses, window, step = [], 0.0, 0
    while True:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            window += loss.item()
            step += 1
            if step % LOG_EVERY == 0:
                losses.append(window / LOG_EVERY)
                window = 0.0
            if step == steps:
                return losses


def with_fit(model: nn.Module, rows: Rows, steps: int) -> list[float]:
    def objective(model: Any, batch: dict[str, Tensor]) -> Loss:
        tokens = batch["labels"][:, 1:].numel()
        return Loss(model(**batch).loss * tokens, tokens)

    with tempfile.TemporaryDirectory() as directory:
        config = FitConfig(
            output_dir=directory, max_steps=steps, batch_size=BATCH, learning_rate=RATE, log_every=LOG_EVERY
        )
        result = fit(model, objective, rows, config=config)
    return [line["loss"] for line in result.history]


def with_trainer(model: nn.Module, rows: Rows, steps: int) -> list[float]:
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(directory)  # fit ends with a checkpoint
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


CONTENDERS: dict[str, Callable[[nn.Module, Rows, int], list[float]]] = {
    "plain torch": plain,
    "trainkit.fit": with_fit,
    "transformers.Trainer": with_trainer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/fit_overhead.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = Rows(BATCH * 25)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    losses: dict[str, float] = {}
    for contender in CONTENDERS.values():
        contender(network(), rows, LOG_EVERY)  # imports and allocations of the first use
    for _ in range(arguments.repeats):
        for name, contender in CONTENDERS.items():
            model = network()
            wall, cpu = time.perf_counter(), time.process_time()
            losses[name] = contender(model, rows, arguments.steps)[-1]
            runs[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})

    table = {}
    for name in CONTENDERS:
        row = {key: statistics.median(run[key] for run in runs[name]) for key in ("wall", "cpu")}
        reference = {key: statistics.median(run[key] for run in runs["plain torch"]) for key in row}
        table[name] = {
            "cpu_ms_per_step": 1000 * row["cpu"] / arguments.steps,
            "wall_ms_per_step": 1000 * row["wall"] / arguments.steps,
            "cpu_ratio_to_plain": row["cpu"] / reference["cpu"],
            "wall_ratio_to_plain": row["wall"] / reference["wall"],
            "last_loss": losses[name],
        }
    print(f"{'':22}{'CPU ms/step':>12}{'ratio':>8}{'wall ms/step':>14}{'ratio':>8}{'last loss':>11}")
    for name, row in table.items():
        print(
            f"{name:22}{row['cpu_ms_per_step']:12.2f}{row['cpu_ratio_to_plain']:8.3f}"
            f"{row['wall_ms_per_step']:14.2f}{row['wall_ratio_to_plain']:8.3f}{row['last_loss']:11.4f}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output,
        {
            "steps": arguments.steps,
            "repeats": arguments.repeats,
            "batch": BATCH,
            "tokens_per_row": LENGTH,
            "parameters": sum(p.numel() for p in network().parameters()),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "table": table,
            "runs": runs,
        },
    )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
