"""Replies from an index of up to a million responses, and one step of G2R's loss, against peers.

    python benchmarks/retrieval.py [--sizes 10000 100000 1000000] [--hnsw-up-to 100000] [--no-loss]

**Replies.** Ours is ``RetrievalChatbot`` with ten candidates on a flat, HNSW and IVF-PQ index; the peers are
``sentence_transformers.util.semantic_search`` and a torch product with ``topk``, ten each. All read the same
texts with the same MiniLM and search the same vectors, one query at a time (latency) and 64 together
(throughput). The responses' vectors are synthetic: each is a blend of two of MiniLM's embeddings of 1,317
real turns, ``a + b / 2``, plus noise of half a unit's length, scaled to length 1, so that there are
neighbourhoods as in real text and no two are alike. The queries are 100 other real turns. Exact search must
agree with torch.

**Loss.** A step (forward and backward, no update) on the same pairs with the same MiniLM: ``G2RMethod`` with
in-batch negatives alone, whose loss is then the in-batch softmax, against sentence-transformers'
``MultipleNegativesRankingLoss``, each with and without gradient caching (chunks of 32). All must give the
same loss. Then G2R's own case, 512 random negatives. Each side runs in processes of its own, so that the peak
of the resident memory is its own; what the process held before the step is subtracted.

Sides alternate and figures are medians of CPU time with one thread, on a machine without other work the same
as wall clock; on a busy one they stay comparable.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt
import torch

from dialogkit import embedded
from dialogkit.g2r import G2RConfig, G2RMethod, RetrievalChatbot, RetrievalConfig, ScoredContext, g2r_loss
from dialogkit.g2r.training import draw_batch
from dialogkit.retrieval import ContextPool, IndexConfig, ResponseIndex, Retriever, load_retriever

Vectors = npt.NDArray[np.float32]

K = 10
TOGETHER = 64
QUERIES = 100
LOSSES = ("g2r cached", "mnrl cached", "g2r plain", "mnrl plain")
OWN_CASE = ("g2r-512 cached", "g2r-512 plain")


class Blends:
    """MiniLM for contexts; for the response with the number n its synthetic vector n."""

    symmetric = True

    def __init__(self, encoder: Retriever, vectors: Vectors) -> None:
        self.encode_context = encoder.encode_context
        self.vectors = vectors
        self.dim = encoder.dim
        self.fingerprint = f"blends of {encoder.fingerprint}"

    def encode_response(self, texts: Sequence[str]) -> Vectors:
        """The vectors whose numbers the texts end with."""
        return self.vectors[[int(text.rsplit(" ", 1)[1]) for text in texts]]


def blends(base: Vectors, count: int) -> Vectors:
    """Synthetic embeddings ``[count, d]`` of length 1."""
    draw = np.random.default_rng(0)
    made = np.empty((count, base.shape[1]), dtype=np.float32)
    for start in range(0, count, 65_536):
        rows = made[start : start + 65_536]
        draw.standard_normal(out=rows, dtype=np.float32)
        rows *= 0.5 / np.sqrt(base.shape[1])
        rows += base[draw.integers(len(base), size=len(rows))]
        rows += base[draw.integers(len(base), size=len(rows))] / 2
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall-clock seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_size(size: int, hnsw_up_to: int, model: Any, turns: Sequence[str]) -> dict[str, Any]:
    """Latency, throughput and recall of all sides with one number of responses."""
    from sentence_transformers.util import dot_score, semantic_search

    encoder = load_retriever("minilm")
    queries, base = turns[:QUERIES], encoder.encode_context(turns[QUERIES:])
    vectors = blends(base, size)
    retriever = Blends(encoder, vectors)
    kinds = [kind for kind in ("flat", "hnsw", "ivfpq") if kind != "hnsw" or size <= hnsw_up_to]
    bots, build = {}, {}
    for kind in kinds:
        begin = time.process_time()
        index = ResponseIndex.build(
            retriever,
            (f"response {i}" for i in range(size)),
            config=IndexConfig(kind=kind),  # type: ignore[arg-type]
            contexts=queries,
            vectors=vectors,
        )
        build[kind] = time.process_time() - begin
        bots[kind] = RetrievalChatbot(retriever, index, config=RetrievalConfig(candidates=K))
        print(f"  {size:>9,} {kind}: built in {build[kind]:.1f} s CPU", flush=True)
    corpus = torch.from_numpy(vectors)

    def encoded(texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = model.encode_query(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return found

    def by_torch(texts: Sequence[str]) -> torch.Tensor:
        return (encoded(texts) @ corpus.T).topk(K).indices

    replies: dict[str, Callable[[Sequence[str]], object]] = {
        **{kind: bot.reply_batch for kind, bot in bots.items()},
        "semantic_search": lambda texts: semantic_search(
            encoded(texts), corpus, top_k=K, score_function=dot_score
        ),
        "torch topk": by_torch,
    }
    exact = bots["flat"].index.search(encoder.encode_context(queries), K).ids
    if not np.array_equal(exact, by_torch(queries).numpy()):
        raise SystemExit(f"exact search and torch disagree on {size:,} vectors")
    repeats = max(20, min(QUERIES, 20_000_000 // size))
    single: dict[str, list[tuple[float, float]]] = {name: [] for name in replies}
    for query in [queries[0], *queries[:repeats]]:
        for name, reply in replies.items():
            single[name].append(timed(lambda reply=reply, query=query: reply([query])))  # type: ignore[misc]
    batch: dict[str, list[float]] = {name: [] for name in replies}
    for _ in range(3):
        for name, reply in replies.items():
            batch[name].append(timed(lambda reply=reply: reply(queries[:TOGETHER]))[0])  # type: ignore[misc]
    encode = [timed(lambda query=query: encoder.encode_context([query]))[0] for query in queries]  # type: ignore[misc]
    sides = {}
    for name, times in single.items():
        cpu = [seconds for seconds, _ in times[1:]]
        sides[name] = {
            "p50_ms": 1000 * statistics.median(cpu),
            "p95_ms": 1000 * float(np.quantile(cpu, 0.95)),
            "wall_p50_ms": 1000 * statistics.median(wall for _, wall in times[1:]),
            "replies_per_s": TOGETHER / statistics.median(batch[name]),
            "recall": dict(bots[name].index.recall) if name in bots else {},
            "build_s": build.get(name),
        }
    return {
        "size": size,
        "queries": repeats,
        "encode_p50_ms": 1000 * statistics.median(encode),
        "sides": sides,
        "latency_ratio": {
            peer: {kind: sides[peer]["p50_ms"] / sides[kind]["p50_ms"] for kind in kinds}
            for peer in ("semantic_search", "torch topk")
        },
        "throughput_ratio": {
            peer: {kind: sides[kind]["replies_per_s"] / sides[peer]["replies_per_s"] for kind in kinds}
            for peer in ("semantic_search", "torch topk")
        },
    }


def print_size(found: dict[str, Any]) -> None:
    """The table of one size."""
    print(
        f"{found['size']:,} responses, {found['queries']} queries, encoding {found['encode_p50_ms']:.1f} ms; "
        "CPU time, semantic_search's and torch's latency / ours, our throughput / theirs",
        flush=True,
    )
    for name, side in found["sides"].items():
        recall = " ".join(f"{key} {value:.3f}" for key, value in side["recall"].items())
        ratios = "  ".join(
            f"{found[kind][peer][name]:5.2f}x"
            for kind in ("latency_ratio", "throughput_ratio")
            for peer in found[kind]
            if name in found[kind][peer]
        )
        print(
            f"  {name:>15}: p50 {side['p50_ms']:8.1f} ms  p95 {side['p95_ms']:8.1f} ms  "
            f"{side['replies_per_s']:7.1f} replies/s  {ratios}  {recall}"
        )


# One step of a loss -----------------------------------------------------------------------------------------


class Step:
    """Stands in for the training loop: gradients are left on the model, nothing is updated."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.accelerator = type("Accelerator", (), {"device": torch.device("cpu")})

    def backward(self, total: torch.Tensor, weight: float) -> None:
        """The gradient of a part of the loss."""
        total.backward()  # type: ignore[no-untyped-call]

    def without_communication(self) -> Any:
        """There is one process."""
        import contextlib

        return contextlib.nullcontext()

    def optimizer_step(self) -> None:
        """Nothing."""


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Contexts of five turns and responses of two, distinct."""
    turns = list(ContextPool.from_lines(embedded.contexts_path()))
    contexts = ["\n".join(turns[5 * i : 5 * i + 5]) for i in range(count)]
    responses = [" ".join(turns[2 * i : 2 * i + 2]) for i in range(count)]
    return contexts, responses


def step_of(side: str, count: int, model: Any) -> Callable[[], float]:
    """What computes the loss of a side and its gradient."""
    from sentence_transformers.sentence_transformer import losses

    name, caching = side.split()
    if name == "mnrl":
        contexts, responses = pairs(count)
        loss: Any = (
            losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=32)
            if caching == "cached"
            else losses.MultipleNegativesRankingLoss(model)
        )

        def step() -> float:
            features = [
                {key: value for key, value in model.preprocess(texts).items() if key in INPUTS}
                for texts in (contexts, responses)
            ]
            value = loss(features, torch.empty(0))
            value.backward()
            return float(value.detach())

        return step
    if name == "g2r":
        contexts, responses = pairs(count)
        pool, config = responses, G2RConfig(negatives=0, in_batch_negatives=True, chunk_size=32)
    else:
        contexts, pool = pairs(min(700, count + 560))
        contexts, responses = contexts[:16], pool[:16]
        config = G2RConfig(negatives=512, chunk_size=32)
    rows = [
        ScoredContext((context,), (response,), (0.0,), ("original",))
        for context, response in zip(contexts, responses, strict=True)
    ]
    method = G2RMethod(model.tokenizer, pool, config)

    def cached() -> float:
        found: Any = method.step(model, rows, Step())  # type: ignore[arg-type]
        return float(found.total) / found.weight

    def plain() -> float:
        drawn = draw_batch(rows, pool, config, torch.Generator().manual_seed(0))
        queries, documents = (
            model({key: value for key, value in model.preprocess(list(texts)).items() if key in INPUTS})[
                "sentence_embedding"
            ]
            for texts in (drawn.contexts, drawn.texts)
        )
        value = g2r_loss(
            config.score_scale * queries @ documents.T,
            drawn.positive_mask,
            drawn.negative_mask,
            drawn.teacher_scores,
            in_batch_negatives=config.in_batch_negatives,
        ).loss
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return cached if caching == "cached" else plain


INPUTS = ("input_ids", "attention_mask")


def resident(kind: str) -> int:
    """Resident bytes of this process, now ("VmRSS") or at their peak ("VmHWM"; Linux).

    ``getrusage`` would count the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def run_step(side: str, count: int) -> None:
    """Measures one step in this process and prints it as JSON."""
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SentenceTransformer(str(load_retriever("minilm").path), device="cpu").eval()  # type: ignore[attr-defined]
    step_of(side, 2, model)()
    model.zero_grad()
    gc.collect()
    step = step_of(side, count, model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    cpu = time.process_time()
    loss = step()
    seconds = time.process_time() - cpu
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    print(
        json.dumps(
            {
                "cpu_s": seconds,
                "peak_mb": (resident("VmHWM") - before) / 2**20,
                "loss": loss,
                "norm": float(norm),
            }
        )
    )


def measure_losses(sides: Sequence[str], count: int, rounds: int) -> dict[str, Any]:
    """Runs the sides in turn, each in its own process."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, "--step", side, "--pairs", str(count)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr}")
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
    found = {
        side: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for side, measured in runs.items()
    }
    losses = [side["loss"] for side in found.values()]
    if max(losses) - min(losses) > 1e-3 * max(losses):
        raise SystemExit(f"the sides disagree on the loss: { {s: f['loss'] for s, f in found.items()} }")
    for name, side in found.items():
        print(
            f"  {name:>15}: {side['cpu_s']:6.2f} s CPU  {side['peak_mb']:7.0f} MB  loss {side['loss']:.4f}",
            flush=True,
        )
    return found


def ratios(found: dict[str, Any], one: str, other: str) -> dict[str, float]:
    """Time and memory of one side in units of the other's."""
    return {key: found[one][key] / found[other][key] for key in ("cpu_s", "peak_mb")}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--hnsw-up-to", type=int, default=100_000, help="larger HNSW graphs take long to build"
    )
    parser.add_argument("--pairs", type=int, default=64, help="batch of the loss")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side of the loss")
    parser.add_argument("--no-loss", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/retrieval.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.pairs)
        return

    import faiss
    from sentence_transformers import SentenceTransformer

    begin = time.perf_counter()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    model = SentenceTransformer(str(load_retriever("minilm").path), device="cpu")  # type: ignore[attr-defined]
    turns = list(ContextPool.from_lines(embedded.contexts_path()))
    result: dict[str, Any] = {"benchmark": "retrieval", "replies": []}
    with torch.inference_mode():
        for size in arguments.sizes:
            found = measure_size(size, arguments.hnsw_up_to, model, turns)
            result["replies"].append(found)
            print_size(found)
    if not arguments.no_loss:
        print(f"one step on {arguments.pairs} pairs, CPU time and peak memory of the step")
        losses = measure_losses(LOSSES, arguments.pairs, arguments.rounds)
        print("one step on 16 contexts with 512 random negatives")
        own = measure_losses(OWN_CASE, 16, 1)
        result["loss"] = {**losses, **own}
        result["ratio"] = {
            "g2r cached / mnrl cached": ratios(losses, "g2r cached", "mnrl cached"),
            "g2r cached / g2r plain": ratios(losses, "g2r cached", "g2r plain"),
            "mnrl cached / mnrl plain": ratios(losses, "mnrl cached", "mnrl plain"),
            "512 negatives, cached / plain": ratios(own, *OWN_CASE),
        }
        for name, ratio in result["ratio"].items():
            print(f"ratio {name}: time {ratio['cpu_s']:.2f}, memory {ratio['peak_mb']:.2f}")
    packages = ("torch", "faiss-cpu", "sentence-transformers", "transformers", "numpy")
    result["versions"] = {name: metadata.version(name) for name in packages}
    result["machine"] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    }
    result["seconds"] = time.perf_counter() - begin
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
