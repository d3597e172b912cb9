"""Attribution maps: ours against captum's, time and peak memory, on the same model, inputs and samples.

    python benchmarks/attribution.py [--images 4] [--side 64] [--n 32] [--repeats 3] [--threads 1]

A randomly initialised transformers ResNet (basic blocks, four stages, 10 classes) explains its predicted
classes. Each side runs in a forked process of its own with the same number of threads, and reports CPU
seconds of one call (median of the repeats) and how far the process's peak memory rose above what it held
before the first call. The same work means: the same number of forward and backward passes of the same points.

- ``gradient``, ``integrated gradients`` (Gauss-Legendre, n nodes), ``guided backprop``: maps equal to 1e-4 of
  the largest value is asserted.
- ``SmoothGrad``: one map; noise is each library's own, so means are compared by their correlation only.
- ``all noise statistics``: SmoothGrad, SmoothGrad squared and VarGrad; captum needs a run for each.

captum is measured with its defaults, which put all n samples in one batch (``captum``), and with its own
chunks of the size that ours has (``captum, chunks``). RectGrad has no peer; its time is given beside the
gradient's. Without captum (extra ``experiments``) only our side is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from robustkit.interpret import Gradient, GuidedBackprop, IntegratedGradients, RectGrad, SmoothGrad, explain
from trainkit.hub import write_json

OURS, DEFAULTS, CHUNKS = "ours", "captum", "captum, chunks"
SIGMA = 0.15
BATCH = 16
WORKS = (
    "gradient",
    "guided backprop",
    "integrated gradients",
    "SmoothGrad",
    "all noise statistics",
    "RectGrad",
)
SAME = ("gradient", "guided backprop", "integrated gradients")
SIDES = {
    "gradient": (OURS, DEFAULTS),
    "guided backprop": (OURS, DEFAULTS),
    "integrated gradients": (OURS, DEFAULTS, CHUNKS),
    "SmoothGrad": (OURS, DEFAULTS, CHUNKS),
    "all noise statistics": (OURS, DEFAULTS, CHUNKS),
    "RectGrad": (OURS,),
}


class Logits(nn.Module):
    """What both sides explain: pixels to logits."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
            num_labels=10,
        )  # fmt: skip
        self.model = ResNetForImageClassification(config)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels).logits
        return logits


def ours(work: str, net: nn.Module, x: Tensor, target: Tensor, n: int) -> Tensor:
    noise = SmoothGrad(n=n, sigma=SIGMA, sigma_of="absolute")
    method = {
        "gradient": Gradient(),
        "guided backprop": GuidedBackprop(),
        "integrated gradients": IntegratedGradients(steps=n, baseline=0.0),
        "SmoothGrad": noise,
        "all noise statistics": noise,
        "RectGrad": RectGrad(),
    }[work]
    return explain(net, x, method, target=target, batch_size=max(BATCH, len(x))).values


def captums(work: str, net: nn.Module, x: Tensor, target: Tensor, n: int, chunks: bool) -> Tensor:
    from captum import attr

    saliency = attr.Saliency(net)
    if work == "gradient":
        return saliency.attribute(x, target=target, abs=False)
    if work == "guided backprop":
        return attr.GuidedBackprop(net).attribute(x, target=target)
    if work == "integrated gradients":
        size = {"internal_batch_size": max(BATCH, len(x))} if chunks else {}
        return attr.IntegratedGradients(net).attribute(x, target=target, n_steps=n, **size)
    size = {"nt_samples_batch_size": max(1, BATCH // len(x))} if chunks else {}
    kinds = ("smoothgrad",) if work == "SmoothGrad" else ("smoothgrad", "smoothgrad_sq", "vargrad")
    tunnel = attr.NoiseTunnel(saliency)
    found = [
        tunnel.attribute(x, target=target, nt_type=kind, nt_samples=n, stdevs=SIGMA, abs=False, **size)
        for kind in kinds
    ]
    return found[0]


def child(side: str, work: str, net: nn.Module, options: argparse.Namespace, back: Connection) -> None:
    """One side of one work, in a process of its own."""
    torch.set_num_threads(options.threads)
    x = torch.rand(options.images, 3, options.side, options.side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = net(x).argmax(dim=1)
    torch.manual_seed(1)

    def call() -> Tensor:
        if side == OURS:
            return ours(work, net, x, target, options.n)
        return captums(work, net, x, target, options.n, side == CHUNKS)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = call()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = []
    for _ in range(options.repeats):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    row = {"cpu_s": statistics.median(seconds), "all_cpu_s": seconds, "peak_mib": peak}
    back.send((row, values.detach().numpy()))


def measured(
    side: str, work: str, net: nn.Module, options: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """What a child measures; it is forked, so that libraries and weights count for no side."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(side, work, net, options, there))
    process.start()
    there.close()
    try:
        row, values = here.recv()
    except EOFError as error:
        raise RuntimeError(f"{side}, {work}: the process failed") from error
    process.join()
    return row, torch.from_numpy(values)


def compare(work: str, net: nn.Module, options: argparse.Namespace, sides: tuple[str, ...]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    maps: dict[str, Tensor] = {}
    for side in sides:
        rows[side], maps[side] = measured(side, work, net, options)
    for side in sides[1:]:
        rows[side]["times_ours"] = rows[side]["cpu_s"] / rows[OURS]["cpu_s"]
        rows[side]["memory_times_ours"] = rows[side]["peak_mib"] / rows[OURS]["peak_mib"]
        pair = torch.stack([maps[OURS].flatten(), maps[side].flatten()])
        rows[side]["correlation"] = torch.corrcoef(pair)[0, 1].item()
        if work in SAME:
            off = float((pair[0] - pair[1]).abs().max() / pair[1].abs().max())
            assert off < 1e-4, f"{work}: maps differ by {off:.2g} of the largest value"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--n", type=int, default=32, help="noise samples, and steps of integrated gradients")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/attribution.json"))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    # Forked processes must not inherit running threads.
    torch.set_num_threads(1)
    peer = find_spec("captum") is not None
    if not peer:
        print("captum is not installed: only our side is measured")
    else:
        import captum.attr  # noqa: F401 - before any fork
    net = Logits()
    print(f"{options.images} images of {options.side} x {options.side}, n = {options.n}, batches of {BATCH}")
    print(f"{'':22}{'':16}{'CPU s':>8}{'peak MiB':>10}{'time':>8}{'memory':>8}{'correlation':>13}")
    results = {}
    for work in options.works:
        results[work] = compare(work, net, options, SIDES[work] if peer else (OURS,))
        for side, row in results[work].items():
            ratios = ""
            if side != OURS:
                ratios = f"{row['times_ours']:8.2f}{row['memory_times_ours']:8.2f}{row['correlation']:13.4f}"
            print(f"{work:22}{side:16}{row['cpu_s']:8.2f}{row['peak_mib']:10.0f}{ratios}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        options.output,
        {
            "results": results,
            **{name: getattr(options, name) for name in ("images", "side", "n", "repeats", "threads")},
            "batch": BATCH,
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "captum": metadata.version("captum") if peer else None,
        },
    )
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
