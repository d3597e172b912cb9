"""Attribution maps: ours against captum's and PAIR's, time and peak memory, same model, inputs and samples.

    python benchmarks/attribution.py [--images 4] [--side 64] [--n 32] [--repeats 3] [--threads 1]
        [--works XRAI "XRAI after the base" "XRAI selection"] [--xrai-side 224] [--steps 100]

A randomly initialised transformers ResNet (basic blocks, four stages, 10 classes) explains its predicted
classes. Each side runs in a forked process of its own with the same number of threads. Given are CPU seconds
of one call (median of the repeats, which the sides make in turn) and how far the process's peak memory rose
in the first call above what it held before. The same work means: the same number of forward and backward
passes of the same points.

- ``gradient``, ``integrated gradients`` (Gauss-Legendre, n nodes), ``guided backprop``: maps equal to 1e-4 of
  the largest value is asserted.
- ``SmoothGrad``: one map; noise is each library's own, so means are compared by their correlation only.
- ``all noise statistics``: SmoothGrad, SmoothGrad squared and VarGrad; captum needs a run for each.
- ``XRAI``: of one image, against the package ``saliency`` (PAIR), the same steps of integrated gradients from
  the same two baselines. ``XRAI after the base`` is what follows them, on an image of ``--xrai-side`` pixels:
  segments (each library's own), their growth, the choice; ``XRAI selection`` is the choice alone among the
  same segments, and equal maps are asserted. The image is a drawn scene, the base of the latter two noise.

captum is measured with its defaults, which put all n samples in one batch (``captum``), and with its own
chunks of the size that ours has (``captum, chunks``). RectGrad has no peer; its time is given beside the
gradient's. Without captum or saliency (extra ``experiments``) only our side is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from robustkit.interpret import (
    XRAI,
    Gradient,
    GuidedBackprop,
    IntegratedGradients,
    RectGrad,
    SmoothGrad,
    explain,
)
from robustkit.interpret.regions import dilated_masks, region_map, segments
from trainkit.hub import write_json

OURS, DEFAULTS, CHUNKS, PAIR = "ours", "captum", "captum, chunks", "PAIR"
PACKAGES = {DEFAULTS: "captum", CHUNKS: "captum", PAIR: "saliency"}
SIGMA = 0.15
BATCH = 32
"""Inputs of one pass at most, the default of `explain`."""
WORKS = (
    "gradient",
    "guided backprop",
    "integrated gradients",
    "SmoothGrad",
    "all noise statistics",
    "RectGrad",
    "XRAI",
    "XRAI after the base",
    "XRAI selection",
)
SAME = ("gradient", "guided backprop", "integrated gradients", "XRAI selection")
SIDES = {
    "gradient": (OURS, DEFAULTS),
    "guided backprop": (OURS, DEFAULTS),
    "integrated gradients": (OURS, DEFAULTS, CHUNKS),
    "SmoothGrad": (OURS, DEFAULTS, CHUNKS),
    "all noise statistics": (OURS, DEFAULTS, CHUNKS),
    "RectGrad": (OURS,),
    "XRAI": (OURS, PAIR),
    "XRAI after the base": (OURS, PAIR),
    "XRAI selection": (OURS, PAIR),
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


def scene(side: int, seed: int = 0) -> Tensor:
    """A picture (3, side, side) of overlapping discs of all sizes with a little noise."""
    drawn = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 0.5)
    y, x = np.mgrid[:side, :side] / side
    for radius in np.geomspace(0.4, 0.02, 120):
        down, right = drawn.random(2)
        pixels[(y - down) ** 2 + (x - right) ** 2 < radius**2] = drawn.random(3)
    pixels += drawn.normal(scale=0.02, size=pixels.shape)
    return torch.from_numpy(pixels.clip(0, 1)).permute(2, 0, 1).float()


def xrai(side: str, work: str, net: nn.Module, options: argparse.Namespace) -> Callable[[], Tensor]:
    """One side of a work on regions."""
    image = scene(options.side if work == "XRAI" else options.xrai_side)
    with torch.no_grad():
        target = int(net(image[None]).argmax())
    base = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    masks = dilated_masks(segments(image)) if work == "XRAI selection" else np.zeros(0)
    if side == OURS:
        settings = XRAI(steps=options.steps)

        def chosen() -> Tensor:
            flat = base.amax(dim=0).double().numpy().ravel()
            return torch.from_numpy(region_map(flat, masks.reshape(len(masks), -1))[0])

        return {
            "XRAI": lambda: explain(net, image[None], settings, target=target, batch_size=BATCH).map(),
            "XRAI after the base": lambda: settings.regions(image, base),
            "XRAI selection": chosen,
        }[work]
    from saliency import core

    def gradients(points: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.from_numpy(points).permute(0, 3, 1, 2).float().requires_grad_()
        (found,) = torch.autograd.grad(net(leaf)[:, target].sum(), leaf)
        return {core.INPUT_OUTPUT_GRADIENTS: found.permute(0, 2, 3, 1).numpy()}

    pixels = image.permute(1, 2, 0).numpy()
    given = {} if work == "XRAI" else {"base_attribution": base.permute(1, 2, 0).double().numpy()}
    given |= {"segments": list(masks)} if work == "XRAI selection" else {}
    parameters = core.XRAIParameters(steps=options.steps)
    return lambda: torch.from_numpy(
        core.XRAI().GetMask(pixels, gradients, batch_size=BATCH, extra_parameters=parameters, **given)
    ).flatten()


def child(side: str, work: str, net: nn.Module, options: argparse.Namespace, line: Connection) -> None:
    """One side of one work, in a process of its own: the first call for the peak, then one for each word."""
    torch.set_num_threads(options.threads)
    call = xrai(side, work, net, options) if work.startswith("XRAI") else pixel_map(side, work, net, options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = call()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    line.send((peak, values.detach().numpy()))
    while line.recv():
        began = time.process_time()
        call()
        line.send(time.process_time() - began)


def pixel_map(side: str, work: str, net: nn.Module, options: argparse.Namespace) -> Callable[[], Tensor]:
    """One side of a work on single pixels."""
    x = torch.rand(options.images, 3, options.side, options.side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = net(x).argmax(dim=1)
    torch.manual_seed(1)

    def call() -> Tensor:
        if side == OURS:
            return ours(work, net, x, target, options.n)
        return captums(work, net, x, target, options.n, side == CHUNKS)

    return call


def begun(
    side: str, work: str, net: nn.Module, options: argparse.Namespace
) -> tuple[Connection, dict[str, Any], Tensor]:
    """A child after its first call; it is forked, so that libraries and weights count for no side."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    context.Process(target=child, args=(side, work, net, options, there), daemon=True).start()
    there.close()
    peak, values = here.recv()
    return here, {"peak_mib": peak, "all_cpu_s": []}, torch.from_numpy(values)


def compare(work: str, net: nn.Module, options: argparse.Namespace, sides: tuple[str, ...]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    maps: dict[str, Tensor] = {}
    lines: dict[str, Connection] = {}
    for side in sides:
        lines[side], rows[side], maps[side] = begun(side, work, net, options)
    # In turn, so that what else the machine does weighs on all sides alike.
    for _ in range(options.repeats):
        for side in sides:
            lines[side].send(True)
            rows[side]["all_cpu_s"].append(lines[side].recv())
    for side in sides:
        lines[side].send(False)
        rows[side]["cpu_s"] = statistics.median(rows[side]["all_cpu_s"])
    for side in sides[1:]:
        rows[side]["times_ours"] = rows[side]["cpu_s"] / rows[OURS]["cpu_s"]
        rows[side]["memory_times_ours"] = rows[side]["peak_mib"] / max(rows[OURS]["peak_mib"], 1)
        pair = torch.stack([maps[OURS].flatten(), maps[side].flatten()]).double()
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
    parser.add_argument("--xrai-side", type=int, default=224, help="pixels, of regions after the base")
    parser.add_argument("--steps", type=int, default=100, help="of each integrated gradient of XRAI")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/attribution.json"))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    # Forked processes must not inherit running threads.
    torch.set_num_threads(1)
    missing = {name for name in set(PACKAGES.values()) if find_spec(name) is None}
    for name in sorted(missing):
        print(f"{name} is not installed (extra experiments): only our side is measured")
    if "captum" not in missing:
        import captum.attr  # noqa: F401 - before any fork
    if "saliency" not in missing:
        import saliency.core  # noqa: F401
    net = Logits()
    print(f"{options.images} images of {options.side} x {options.side}, n = {options.n}, batches of {BATCH}")
    print(f"{'':22}{'':16}{'CPU s':>8}{'peak MiB':>10}{'time':>8}{'memory':>8}{'correlation':>13}")
    results = {}
    for work in options.works:
        sides = tuple(side for side in SIDES[work] if PACKAGES.get(side) not in missing)
        results[work] = compare(work, net, options, sides)
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
            **{name: value for name, value in vars(options).items() if name not in ("output", "works")},
            "batch": BATCH,
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            **{name: metadata.version(name) for name in set(PACKAGES.values()) - missing},
        },
    )
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
