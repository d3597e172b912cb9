"""Clusters and scores of 100,000 responses, dist-n and ent-n of 1,000,000, beside other people's ways.

    python benchmarks/diversity.py [--responses 100000] [--lexical 1000000] [--repeats 5]

Semantic: the same embeddings, half of them "human", half "generated", from vectors to Sem-Ent and MAUVE over
20 clusters. `SemanticClusters` with the FAISS backend against the package mauve-text with the same clusters,
redos and iterations (left out, plainly, where it is not installed); and, learning from all vectors, against a
pipeline of scikit-learn's normalizer, PCA and KMeans. MAUVE must agree to 0.02, and the sum of squared
distances to the clusters' means must be at most 0.5 % above scikit-learn's, or the run fails.

Lexical: distinct-n and entropy-n for n = 1, 2, 3 of the same texts: `TokenTable` against the usual code with
`casual_tokenize`, `nltk.ngrams` and a `Counter`. Figures must be equal to a relative 1e-9, or the run fails.

One thread. The sides take turns, each run in a fork of the process that holds the input, which reports CPU
time, time by the clock and its peak memory above the input; ratios are taken turn by turn, and their medians
reported. Needs the extra diversity and an operating system that forks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when NumPy and FAISS are imported

import numpy as np
import numpy.typing as npt

K, DIM, TOPICS = 20, 384, 60
NUMBERS = ("cpu_s", "wall_s", "above_input_mb")
Side = Callable[[Any], dict[str, Any]]


def vectors(n: int) -> npt.NDArray[np.float32]:
    """Overlapping uneven topics, the second half with another mix: ``float32 [n, 384]``.

    The spectrum falls about as that of MiniLM's embeddings of replies: 90 % of the variance needs half of the
    dimensions.
    """
    draw = np.random.default_rng(0)
    spectrum = np.geomspace(1, 0.2, DIM, dtype=np.float32)
    centres = draw.standard_normal(size=(TOPICS, DIM), dtype=np.float32)
    shares = draw.dirichlet(np.full(TOPICS, 0.7), size=2)
    topics = np.concatenate([draw.choice(TOPICS, size=n // 2, p=mix) for mix in shares])
    noise = draw.standard_normal(size=(len(topics), DIM), dtype=np.float32)
    return (centres[topics] + 1.5 * noise) * spectrum


def texts(n: int) -> list[str]:
    """Replies of 1 to 20 words of Zipf's frequencies, with punctuation."""
    draw = random.Random(0)
    vocabulary = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(20_000)
    ]
    weights = list(np.cumsum(1.0 / np.arange(1, len(vocabulary) + 1)))
    replies = []
    for _ in range(n):
        words = draw.choices(vocabulary, cum_weights=weights, k=draw.randint(1, 20))
        words[len(words) // 2] += draw.choice(["", "", ",", "'s", " ..."])
        replies.append(" ".join(words) + draw.choice([".", "?", "!", ""]))
    return replies


def ours(points: npt.NDArray[np.float32], *, every: bool = False) -> dict[str, Any]:
    from dialogkit.diversity import SemanticClusters, quantized_mauve, sem_ent

    clusters = SemanticClusters.fit(points, k=K, max_points_per_centroid=None if every else 256)
    half = len(points) // 2
    generated, human = (
        clusters.histogram(clusters.train_labels[part]) for part in (slice(half), slice(half, None))
    )
    found = {"mauve": quantized_mauve(human, generated), "sem_ent": sem_ent(generated)}
    return found | ({"labels": clusters.train_labels.tolist()} if every else {})


def ours_on_all(points: npt.NDArray[np.float32]) -> dict[str, Any]:
    import sklearn.cluster  # noqa: F401 - imported for many vectors only: at the latest in the warm-up

    return ours(points, every=True)


def mauve_text(points: npt.NDArray[np.float32]) -> dict[str, float]:
    from mauve import compute_mauve

    half = len(points) // 2
    found = compute_mauve(p_features=points[half:], q_features=points[:half], num_buckets=K)
    shares = found.q_hist[found.q_hist > 0]
    return {"mauve": float(found.mauve), "sem_ent": float(-(shares * np.log(shares)).sum())}


def scikit_learn(points: npt.NDArray[np.float32]) -> dict[str, Any]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    steps = KMeans(K, n_init=5, max_iter=500, random_state=27)
    pipeline = make_pipeline(Normalizer(), PCA(0.9, random_state=26), steps)
    labels = pipeline.fit_predict(points)
    shares = np.bincount(labels[: len(points) // 2], minlength=K) / (len(points) // 2)
    entropy = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return {"sem_ent": entropy, "labels": labels.tolist()}


def spread(points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Sum of squared distances of the unit vectors to the means of their clusters."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    groups = (unit[labels == j].astype(np.float64) for j in range(K))
    return float(sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups))


def token_table(responses: list[str]) -> dict[str, float]:
    from dialogkit.diversity import TokenTable, distinct_n, entropy_n

    table = TokenTable(responses)
    found = {f"dist-{n}": distinct_n(table, n) for n in (1, 2, 3)}
    return found | {f"ent-{n}": entropy_n(table, n) for n in (1, 2, 3)}


def nltk_counter(responses: list[str]) -> dict[str, float]:
    from nltk import ngrams
    from nltk.tokenize.casual import casual_tokenize

    tokens = [casual_tokenize(response) for response in responses]
    found = {}
    for n in (1, 2, 3):
        counts = Counter(gram for words in tokens for gram in ngrams(words, n))
        total = sum(counts.values())
        found[f"dist-{n}"] = len(counts) / total
        found[f"ent-{n}"] = -sum(c / total * math.log2(c / total) for c in counts.values())
    return found


PAIRS: dict[str, list[tuple[str, Side, str, Side]]] = {
    "semantic": [
        ("dialogkit", ours, "mauve-text", mauve_text),
        ("dialogkit, all vectors", ours_on_all, "scikit-learn", scikit_learn),
    ],
    "lexical": [("dialogkit", token_table, "nltk", nltk_counter)],
}


def measured(run: Side, material: Any) -> dict[str, Any]:
    """What one run found and took, in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, material, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{run.__name__} failed") from None
    process.join()
    return found


def _work(run: Side, material: Any, sender: Any) -> None:
    run(material[:6000])  # imports and buffers are not what is compared
    for _ in material:  # counting references copies the pages of a fork: not during the measurement
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(material)
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "labels" in found:
        found["spread"] = spread(material, np.array(found.pop("labels")))
    sender.send({**took, "above_input_mb": (peak - before) / 1024, "found": found})


def taking_turns(task: str, pair: tuple[str, Side, str, Side], material: Any, repeats: int) -> dict[str, Any]:
    """Medians of both sides, and of the ratios of each turn."""
    one, ours_side, other, theirs = pair
    runs: dict[str, list[dict[str, Any]]] = {one: [], other: []}
    for turn in range(repeats):
        order = [(one, ours_side), (other, theirs)]
        for name, run in order if turn % 2 == 0 else order[::-1]:
            runs[name].append(measured(run, material))
            print(f"  turn {turn + 1}, {name}: {runs[name][-1]['cpu_s']:.2f} s CPU", flush=True)
    median = {
        name: {key: statistics.median(run[key] for run in each) for key in NUMBERS}
        | {"found": each[0]["found"]}
        for name, each in runs.items()
    }
    turns = list(zip(runs[one], runs[other], strict=True))
    ratio = {
        key: statistics.median(theirs[key] / max(mine[key], 1e-9) for mine, theirs in turns)
        for key in NUMBERS
    }
    for name, each in median.items():
        print(
            f"{task}, {name:>22}: {each['cpu_s']:.2f} s CPU, {each['wall_s']:.2f} s by the clock, "
            f"{each['above_input_mb']:.0f} MB above the input, {each['found']}"
        )
    shown = ", ".join(f"{value:.2f} {key}" for key, value in ratio.items())
    print(f"{task}: {other} / {one}: {shown}", flush=True)
    check(median[one]["found"], median[other]["found"], f"{task}, {other}")
    return {"median": median, "ratio": ratio, "turns": runs}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--responses", type=int, default=100_000, help="vectors to cluster, half of each kind; 0: none"
    )
    parser.add_argument("--lexical", type=int, default=1_000_000, help="texts to count n-grams of; 0: none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lexical-repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/diversity.json"))
    arguments = parser.parse_args()

    sizes = {"semantic": arguments.responses, "lexical": arguments.lexical}
    repeats = {"semantic": arguments.repeats, "lexical": arguments.lexical_repeats}
    results: dict[str, Any] = {}
    for task, pairs in PAIRS.items():
        if not sizes[task]:
            continue
        material = vectors(sizes[task]) if task == "semantic" else texts(sizes[task])
        for pair in pairs:
            if pair[2] == "mauve-text" and importlib.util.find_spec("mauve") is None:
                print("mauve-text is not installed: left out")
                continue
            results[f"{task}: {pair[2]} / {pair[0]}"] = taking_turns(task, pair, material, repeats[task])
    packages = ("numpy", "faiss-cpu", "scikit-learn", "nltk", "mauve-text")
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "platform": platform.platform()}
    found = {
        "benchmark": "diversity",
        "sizes": sizes,
        "results": results,
        "repeats": repeats,
        "versions": {name: version(name) for name in packages},
        "machine": machine,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def check(ours: dict[str, float], theirs: dict[str, float], name: str) -> None:
    """The sides must have done the same work."""
    for key in ours.keys() & theirs.keys():
        gap = abs(ours[key] - theirs[key])
        exact = key.startswith(("dist", "ent-"))
        if key == "spread" and ours[key] > 1.005 * theirs[key]:
            raise SystemExit(f"{name}: clusters are worse, {ours[key]:.6g} to {theirs[key]:.6g}")
        if (key == "mauve" and gap > 0.02) or (exact and gap > 1e-9 * theirs[key]):
            raise SystemExit(f"{name} disagrees on {key} by {gap:.2g}")


def version(name: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
