"""Clusters and scores of 100,000 responses, dist-n and ent-n of 1,000,000, beside other people's ways.

    python benchmarks/diversity.py [--responses 100000] [--lexical 1000000] [--repeats 3]

Semantic: the same embeddings, half of them "human", half "generated", from vectors to Sem-Ent and MAUVE over
20 clusters. `SemanticClusters` with the FAISS backend against the package mauve-text with the same clusters,
redos and iterations (left out, plainly, where it is not installed); and, learning from all vectors, against a
pipeline of scikit-learn's normalizer, PCA and KMeans. MAUVE must agree to 0.02, or the run fails.

Lexical: distinct-n and entropy-n for n = 1, 2, 3 of the same texts: `TokenTable` against the usual code with
`casual_tokenize`, `nltk.ngrams` and a `Counter`. Figures must be equal to 1e-9, or the run fails.

Each side runs in a process of its own, which reports CPU time, time by the clock and its peak memory; medians
over repeats. Needs the extra diversity.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

K, DIM, TOPICS = 20, 384, 60


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


def ours(points: npt.NDArray[np.float32], *, every: bool = False) -> dict[str, float]:
    from dialogkit.diversity import SemanticClusters, quantized_mauve, sem_ent

    clusters = SemanticClusters.fit(points, k=K, max_points_per_centroid=None if every else 256)
    half = len(points) // 2
    generated, human = (
        clusters.histogram(clusters.train_labels[part]) for part in (slice(half), slice(half, None))
    )
    return {"mauve": quantized_mauve(human, generated), "sem_ent": sem_ent(generated)}


def ours_on_all(points: npt.NDArray[np.float32]) -> dict[str, float]:
    return ours(points, every=True)


def mauve_text(points: npt.NDArray[np.float32]) -> dict[str, float]:
    from mauve import compute_mauve

    half = len(points) // 2
    found = compute_mauve(p_features=points[half:], q_features=points[:half], num_buckets=K)
    shares = found.q_hist[found.q_hist > 0]
    return {"mauve": float(found.mauve), "sem_ent": float(-(shares * np.log(shares)).sum())}


def scikit_learn(points: npt.NDArray[np.float32]) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    steps = KMeans(K, n_init=5, max_iter=500, random_state=27)
    pipeline = make_pipeline(Normalizer(), PCA(0.9, random_state=26), steps)
    labels = pipeline.fit_predict(points)[: len(points) // 2]
    shares = np.bincount(labels, minlength=K) / len(labels)
    return {"sem_ent": float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())}


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


SEMANTIC = {
    "dialogkit": ours,
    "mauve-text": mauve_text,
    "dialogkit, all vectors": ours_on_all,
    "scikit-learn": scikit_learn,
}
LEXICAL = {"dialogkit": token_table, "nltk": nltk_counter}


def side(task: str, name: str, n: int) -> None:
    """One side in this process: prints what it found and what it took."""
    material = vectors(n) if task == "semantic" else texts(n)
    run = SEMANTIC[name] if task == "semantic" else LEXICAL[name]  # type: ignore[index]
    run(material[:1000])  # type: ignore[operator]  # imports are not what is compared
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(material)  # type: ignore[operator]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "wall_s": time.perf_counter() - wall,
                "cpu_s": time.process_time() - cpu,
                "above_input_mb": (peak - before) / 1024,
                "found": found,
            }
        )
    )


def measured(task: str, name: str, n: int, repeats: int) -> dict[str, object]:
    """Medians over processes."""
    command = [sys.executable, __file__, "--side", task, name, str(n)]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{task}, {name}: {done.stderr.strip().splitlines()[-1]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    numbers = ("wall_s", "cpu_s", "above_input_mb")
    return {key: statistics.median(run[key] for run in runs) for key in numbers} | {"found": runs[0]["found"]}


def compare(task: str, one: str, other: str, results: dict[str, dict[str, object]]) -> dict[str, float]:
    """Ratios other / one, printed."""
    numbers = ("wall_s", "cpu_s", "above_input_mb")
    ratios = {key: float(results[other][key]) / max(float(results[one][key]), 1e-9) for key in numbers}  # type: ignore[arg-type]
    shown = ", ".join(f"{ratio:.2f} {key}" for key, ratio in ratios.items())
    print(f"{task}: {other} / {one}: {shown}")
    return ratios


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--responses", type=int, default=100_000, help="vectors to cluster, half of each kind"
    )
    parser.add_argument("--lexical", type=int, default=1_000_000, help="texts to count n-grams of")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/diversity.json"))
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side[0], arguments.side[1], int(arguments.side[2]))
        return

    pairs = {"semantic": [("dialogkit", "mauve-text"), ("dialogkit, all vectors", "scikit-learn")]}
    if importlib.util.find_spec("mauve") is None:
        print("mauve-text is not installed: left out")
        del pairs["semantic"][0]
    pairs["lexical"] = [("dialogkit", "nltk")]
    sizes = {"semantic": arguments.responses, "lexical": arguments.lexical}
    results: dict[str, dict[str, dict[str, object]]] = {}
    ratios = {}
    for task, sides in pairs.items():
        if not sizes[task]:
            continue
        names = [name for pair in sides for name in pair]
        results[task] = {name: measured(task, name, sizes[task], arguments.repeats) for name in names}
        for name, result in results[task].items():
            print(
                f"{task}, {name:>22}: {result['cpu_s']:.1f} s CPU, {result['wall_s']:.1f} s by the clock, "
                f"{result['above_input_mb']:.0f} MB above the input"
            )
        for one, other in sides:
            ratios[f"{task}: {other} / {one}"] = compare(task, one, other, results[task])
    check(results)
    packages = ("numpy", "faiss-cpu", "scikit-learn", "nltk", "mauve-text")
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "platform": platform.platform()}
    found = {
        "benchmark": "diversity",
        "sizes": sizes,
        "median": results,
        "ratio": ratios,
        "repeats": arguments.repeats,
        "versions": {name: version(name) for name in packages},
        "machine": machine,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def check(results: dict[str, dict[str, dict[str, object]]]) -> None:
    """The sides must have done the same work."""
    for task, peer, names, allowed in (
        ("semantic", "mauve-text", ("mauve",), 0.02),
        ("lexical", "nltk", tuple(f"{kind}-{n}" for kind in ("dist", "ent") for n in (1, 2, 3)), 1e-9),
    ):
        if peer not in results.get(task, {}):
            continue
        one, other = (results[task][name]["found"] for name in ("dialogkit", peer))
        for name in names:
            gap = abs(one[name] - other[name])  # type: ignore[index]
            if gap > allowed:
                raise SystemExit(f"{task}: {peer} disagrees on {name} by {gap:.2g}")


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
