"""Runs in two processes (``torchrun --nproc_per_node 2``), whose results go to the folder given."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.trainkit.toys import (
    AdversarialRegression,
    Points,
    Sentences,
    TinyLM,
    TokenLoss,
    lines,
    regressor,
    squared_error,
)
from trainkit import Callback, FitConfig, FitResult, FitState, fit


class Interrupt(Exception):
    pass


class Interrupter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise Interrupt


class Stopper(Callback):
    """Only one process wants to stop."""

    def on_step_end(self, state: FitState) -> None:
        if state.step == 3 and torch.distributed.get_rank() == 1:
            state.stop()


def save(folder: Path, name: str, model: nn.Module, result: FitResult, rank: int, **extra: Any) -> None:
    whole = {
        key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in _items(model)
    }
    torch.distributed.barrier()
    document = {
        "processes": result.num_processes,
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "resumed_from": result.resumed_from,
        "best": [result.best_step, result.best_metric],
        "history": lines(result.history),
        "weights": {key: value.tolist() for key, value in whole.items()},
        **extra,
    }
    (folder / f"{name}-{rank}.json").write_text(json.dumps(document))


def _items(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def token_config(**settings: Any) -> FitConfig:
    """20 sentences in batches of 8, so the last batch of an epoch has 4."""
    return FitConfig(
        **{
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.02,
            "max_grad_norm": 0.5,
            "log_every": 1,
            "cpu": True,
            **settings,
        }
    )


def sparse_config(**settings: Any) -> FitConfig:
    """17 examples in batches of 8: the last batch of an epoch has one, so one process has none."""
    return FitConfig(epochs=2, batch_size=8, learning_rate=0.05, log_every=1, cpu=True, **settings)


def best_evaluation(step: int, rank: int) -> float:
    """Differs between processes: only the main one's counts. Best at step 4."""
    return {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}[step] + 100 * rank


def main(folder: Path) -> None:
    logging.basicConfig()

    model, objective = TinyLM(), TokenLoss()
    result = fit(model, objective, Sentences(20), config=token_config(expected_processes=2))
    rank = torch.distributed.get_rank()
    save(folder, "tokens", model, result, rank, sizes=objective.sizes)

    model, objective = TinyLM(), TokenLoss()
    result = fit(model, objective, Sentences(20), config=token_config(micro_batch_size=3))
    save(folder, "accumulated", model, result, rank, sizes=objective.sizes)

    plain = regressor()
    result = fit(plain, squared_error, Points(17), config=sparse_config())
    save(folder, "sparse", plain, result, rank)

    plain, method = regressor(), AdversarialRegression(17)
    result = fit(plain, method, Points(17), config=sparse_config())
    state = {"perturbations": method.perturbations.tolist(), "visits": method.visits.tolist()}
    save(folder, "minimax", plain, result, rank, **state)

    plain = regressor()
    result = fit(plain, squared_error, Points(17), config=sparse_config(), callbacks=[Stopper()])
    save(folder, "stopped", plain, result, rank)

    resumable(folder, rank)
    sharded(folder, rank)
    torch.distributed.destroy_process_group()


def resumable(folder: Path, rank: int) -> None:
    """Dropout differs between processes; the run is interrupted between two checkpoints and goes on."""

    def run(name: str, stop_at: int) -> tuple[nn.Module, FitResult]:
        model, steps = TinyLM(dropout=0.3), []

        class Watch(Callback):
            def on_step_end(self, state: FitState) -> None:
                steps.append(state.step)

        def evaluate(model: nn.Module) -> Mapping[str, float]:
            return {"loss": best_evaluation(steps[-1], rank)}

        config = token_config(
            output_dir=folder / name, resume=True, eval_every=2, save_every=3, patience=2, micro_batch_size=3
        )
        callbacks = [Watch(), Interrupter(stop_at)]
        result = fit(model, TokenLoss(), Sentences(20), config=config, evaluate=evaluate, callbacks=callbacks)
        return model, result

    model, result = run("whole", 0)
    save(folder, "whole", model, result, rank)
    try:
        run("parts", 5)
    except Interrupt:
        torch.distributed.barrier()
    model, result = run("parts", 0)
    save(folder, "parts", model, result, rank)

    # A run that one process will take over.
    model = TinyLM()
    config = token_config(output_dir=folder / "handed-over", resume=True, epochs=1, schedule="constant")
    fit(model, TokenLoss(), Sentences(20), config=config)
    if rank == 0:
        save_model(model, str(folder / "handed-over.safetensors"))


def sharded(folder: Path, rank: int) -> None:
    """FSDP2 over both processes, with tied weights, accumulation, a resume, and the best weights restored."""

    def run(name: str, stop_at: int) -> tuple[nn.Module, FitResult]:
        model = TinyLM()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        steps: list[int] = []

        class Watch(Callback):
            def on_step_end(self, state: FitState) -> None:
                steps.append(state.step)

        config = token_config(
            output_dir=folder / name, resume=True, save_every=2, eval_every=2, micro_batch_size=3, patience=2
        )
        result = fit(
            model,
            TokenLoss(),
            Sentences(20),
            config=config,
            evaluate=lambda _: {"loss": best_evaluation(steps[-1], rank)},
            callbacks=[Watch(), Interrupter(stop_at)],
        )
        return model, result

    model, result = run("sharded-whole", 0)
    local = {
        name: list(value.to_local().shape) for name, value in _items(model) if isinstance(value, DTensor)
    }
    save(folder, "sharded-whole", model, result, rank, local=local)
    try:
        run("sharded-parts", 5)
    except Interrupt:
        torch.distributed.barrier()
    model, result = run("sharded-parts", 0)
    save(folder, "sharded-parts", model, result, rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
