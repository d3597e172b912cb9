"""A run in a process of its own, which may kill itself: ``killed_run.py FOLDER [WHERE STEP]``.

``WHERE`` is ``step`` (right after an optimizer step), ``evaluate`` (right after an evaluation) or ``save``
(while the files of a checkpoint are being written). ``linger`` makes every step slow, for a parent that kills
from outside.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainkit.toys import AdversarialRegression, Points, lines
from trainkit import Callback, FitConfig, FitState, fit


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Callback):
    """Kills the process at one place of one step."""

    def __init__(self, where: str, step: int) -> None:
        self.where, self.step = where, step

    def on_step_end(self, state: FitState) -> None:
        if self.where == "linger":
            time.sleep(0.2)
        if (self.where, self.step) == ("step", state.step):
            kill()

    def on_evaluate(self, state: FitState, metrics: Mapping[str, float]) -> None:
        if (self.where, self.step) == ("evaluate", state.step):
            kill()


class FragileMethod(AdversarialRegression):
    """Dies when asked for its state: by then the model's and the optimizer's files are written."""

    def __init__(self, count: int, saves: int | None) -> None:
        super().__init__(count)
        self.saves = saves

    def state_dict(self) -> Mapping[str, Any]:
        if self.saves is not None:
            self.saves -= 1
            if self.saves == 0:
                kill()
        return super().state_dict()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def train(directory: Path, *, where: str = "", step: int = 0) -> tuple[nn.Module, FragileMethod, Any]:
    data, model = Points(19), network()
    method = FragileMethod(19, saves=step if where == "save" else None)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"loss": float(((model(data.inputs) - data.targets) ** 2).mean())}

    config = FitConfig(
        output_dir=directory,
        max_steps=23,
        batch_size=4,
        learning_rate=0.05,
        schedule="cosine",
        warmup_steps=3,
        eval_every=5,
        save_every=4,
        log_every=3,
        restore_best=True,
        resume=True,
    )
    result = fit(model, method, data, config=config, evaluate=evaluate, callbacks=[Killer(where, step)])
    return model, method, result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model, method, result = train(
        folder, where=sys.argv[2] if sys.argv[2:] else "", step=int(sys.argv[3]) if sys.argv[3:] else 0
    )
    document = {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "perturbations": method.perturbations.tolist(),
        "draw": method.last_draw,
        "history": lines(result.history),
        "best": [result.best_step, result.best_metric],
        "resumed_from": result.resumed_from,
    }
    (folder / "result.json").write_text(json.dumps(document))
