"""One step of CORGE's marginal over k exemplars: in chunks, all at once, and as a plain loop.

    python benchmarks/exemplar.py [--examples 16] [--exemplars 5] [--chunk 4] [--rounds 3]

A step is forward and backward without an update, with the embedded language model (4.3 million parameters) on
its own contexts; the retriever is the embedded one and stays as it is. Sides:

* ``chunked``: ``ExemplarMethod`` with fewer pairs in a forward pass than an example has exemplars, so that
  every pair is read twice (gradient caching);
* ``grouped``: as many pairs as the exemplars of an example, one forward and one backward pass for each;
* ``unchunked``: all pairs of the step in one forward pass;
* ``loop``: no code of ours but rows and loss: a forward pass for the j-th exemplars of all examples, k times,
  then one backward pass through all.

All see the same exemplars and must give the same loss and gradients: the greatest difference of an entry,
relative to the greatest entry, is printed and must be below 1e-5. Each side runs in a process of its own,
forked before any of them, so that the peak of the resident memory is its own; what was resident before the
step is subtracted. Figures are medians of CPU time with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import numpy.typing as npt
import torch

from dialogkit import embedded
from dialogkit.dialogues import Example
from dialogkit.exemplar import (
    ExemplarMethod,
    ExemplarModel,
    ExemplarPacker,
    ExemplarPolicy,
    ExemplarSelector,
    LengthBudget,
    exemplar_loss,
    relevance_scores,
)
from dialogkit.exemplar.selection import context_query
from dialogkit.generation import TransformersLM
from dialogkit.retrieval import ContextPool, ResponseIndex, load_retriever

Gradient = npt.NDArray[np.float32]

SIDES = ("chunked", "grouped", "unchunked", "loop")


class Step:
    """Stands in for the training loop: gradients are left on the model, nothing is updated."""

    def __init__(self, count: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.accelerator = SimpleNamespace(device=torch.device("cpu"))
        self.example_ids = torch.arange(count)

    def backward(self, total: torch.Tensor, weight: float) -> None:
        """The gradient of a part of the loss."""
        total.backward()  # type: ignore[no-untyped-call]

    def without_communication(self) -> Any:
        """There is one process."""
        return contextlib.nullcontext()

    def optimizer_step(self) -> None:
        """Nothing."""


class Material:
    """Models, examples and their hits, made once.

    Args:
        examples: Examples of a step.
        exemplars: Exemplars of an example.
    """

    def __init__(self, examples: int, exemplars: int) -> None:
        turns = list(ContextPool.from_lines(embedded.contexts_path()))
        self.rows = [Example(tuple(turns[4 * i : 4 * i + 3]), turns[4 * i + 3]) for i in range(examples)]
        lm = TransformersLM.from_pretrained(str(embedded.lm_path()), device="cpu")
        self.packer = ExemplarPacker(lm, budget=LengthBudget(96, 32, 32))
        retriever = load_retriever("embedded")
        index = ResponseIndex.build(retriever, turns)
        self.policy = ExemplarPolicy(k=exemplars, temperature=20.0)
        self.selector = ExemplarSelector(retriever, index, self.policy, lm.tokenizer)
        self.hits = self.selector.hits(self.rows)

    def step(self, side: str, chunk: int) -> Callable[[], float]:
        """What computes the loss of a side and its gradient."""
        k, count = self.policy.k, len(self.rows)
        if side == "loop":
            return self.loop
        size = {"chunked": chunk, "grouped": k, "unchunked": k * count}[side]
        method = ExemplarMethod(self.packer, self.selector, hits=self.hits, chunk_size=size)
        model = ExemplarModel(self.packer.lm.model, self.packer)

        def ours() -> float:
            found: Any = method.step(model, self.rows, Step(count))  # type: ignore[arg-type]
            return float(found.total) / count

        return ours

    def loop(self) -> float:
        """A loop over exemplars and one backward pass."""
        golds = [row.response for row in self.rows]
        chosen = self.selector.select(self.rows, torch.Generator().manual_seed(0), self.hits)
        queries = [context_query(row.context) for row in self.rows]
        asked = torch.from_numpy(self.selector.retriever.encode_context(queries))
        relevance = relevance_scores(asked, torch.from_numpy(self.selector.vectors(chosen.ids, golds)))
        columns = []
        for j in range(self.policy.k):
            packed = [
                self.packer.encode(row.context, chosen.texts[i][j], row.response)
                for i, row in enumerate(self.rows)
            ]
            columns.append(self.packer.log_likelihoods(self.packer.lm.model, self.packer.collate(packed)))
        found = exemplar_loss(torch.stack(columns, dim=1), relevance, temperature=self.policy.temperature)
        found.per_example.sum().backward()  # type: ignore[no-untyped-call]
        return float(found.loss.detach())


def resident(kind: str) -> int:
    """Resident bytes of this process, now ("VmRSS") or at their peak ("VmHWM"; Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def measured(material: Material, side: str, chunk: int) -> tuple[dict[str, float], Gradient]:
    """One step, in the process that calls it."""
    step = material.step(side, chunk)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, cpu = resident("VmRSS"), time.process_time()
    loss = step()
    seconds = time.process_time() - cpu
    peak = (resident("VmHWM") - before) / 2**20
    parts = [p.grad.flatten() for p in material.packer.lm.model.parameters() if p.grad is not None]
    return {"cpu_s": seconds, "peak_mb": peak, "loss": loss}, torch.cat(parts).numpy()


def in_a_fork(material: Material, side: str, chunk: int) -> tuple[dict[str, float], Gradient]:
    """The same in a process of its own."""
    forked = multiprocessing.get_context("fork")
    receive, send = forked.Pipe(duplex=False)
    child = forked.Process(target=lambda: send.send(measured(material, side, chunk)))
    child.start()
    send.close()
    found: tuple[dict[str, float], Gradient] = receive.recv()
    child.join()
    return found


def main() -> None:
    """Measures all sides, and prints and writes their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=16, help="examples of the step")
    parser.add_argument("--exemplars", type=int, default=5, help="exemplars of an example")
    parser.add_argument("--chunk", type=int, default=4, help="pairs in a forward pass of 'chunked'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/exemplar.json"))
    arguments = parser.parse_args()
    if not 0 < arguments.chunk < arguments.exemplars:
        parser.error("--chunk must be below --exemplars, or nothing is read in chunks")
    torch.set_num_threads(1)
    material = Material(arguments.examples, arguments.exemplars)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    gradients: dict[str, Gradient] = {}
    for _ in range(arguments.rounds):
        for side in SIDES:
            found, gradients[side] = in_a_fork(material, side, arguments.chunk)
            runs[side].append(found)
    sides = {
        side: {key: statistics.median(run[key] for run in own) for key in own[0]}
        for side, own in runs.items()
    }
    expected = gradients["loop"]
    for side in SIDES:
        off = float(np.abs(gradients[side] - expected).max() / np.abs(expected).max())
        sides[side]["gradient_off"] = off
        print(
            f"{side:>10}: {sides[side]['cpu_s']:6.2f} s CPU  {sides[side]['peak_mb']:6.0f} MB  "
            f"loss {sides[side]['loss']:.4f}  gradient off by {off:.1e}"
        )
        if off > 1e-5:
            raise SystemExit(f"the gradients of {side!r} are not those of the loop")
    ratio = {
        f"{one} / {other}": {key: sides[one][key] / sides[other][key] for key in ("cpu_s", "peak_mb")}
        for one, other in (
            ("chunked", "unchunked"),
            ("grouped", "unchunked"),
            ("chunked", "loop"),
            ("grouped", "loop"),
        )
    }
    for name, value in ratio.items():
        print(f"ratio {name}: time {value['cpu_s']:.2f}, memory {value['peak_mb']:.2f}")
    result = {
        "benchmark": "exemplar",
        "examples": arguments.examples,
        "exemplars": arguments.exemplars,
        "chunk": arguments.chunk,
        "rounds": arguments.rounds,
        "sides": sides,
        "ratio": ratio,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
