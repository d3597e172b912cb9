"""From a fresh process to the first embedding: dialogkit's light loader against sentence-transformers.

    python benchmarks/retriever_start.py [--model FOLDER] [--repeats 5]

Both sides load the same folder and embed the same sentence, in processes of their own, in turns. Wall-clock
and CPU seconds are those of the whole process, its imports included. Both print their vector, and the run
fails if the two differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

OURS = """
import sys, json
from dialogkit.retrieval import load_retriever
print(json.dumps(load_retriever(sys.argv[1]).encode_context(["Where do you live?"])[0].tolist()))
"""
PEER = """
import sys, json
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(json.dumps(model.encode_query(["Where do you live?"])[0].tolist()))
"""


def run(code: str, model: str) -> tuple[float, float, list[float]]:
    """(wall-clock seconds, CPU seconds, vector) of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, model], capture_output=True, text=True, check=True, env=environment
    )
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(result.stdout)


def default_model() -> Path:
    """The encoder that ships with the package."""
    from dialogkit import embedded

    return embedded.biencoder_path()


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="sentence-transformers folder; default: the embedded bi-encoder"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/retriever_start.json"))
    arguments = parser.parse_args()
    model = str(arguments.model or default_model())

    sides = {"dialogkit": OURS, "sentence-transformers": PEER}
    vectors = {name: run(code, model)[2] for name, code in sides.items()}  # warms the file cache, too
    difference = max(abs(a - b) for a, b in zip(*vectors.values(), strict=True))
    if difference > 1e-4:
        raise SystemExit(f"the two sides disagree by {difference:.2g}")
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, code in sides.items():
            measured[name].append(run(code, model)[:2])

    medians = {
        name: {
            "wall_s": statistics.median(wall for wall, _ in runs),
            "cpu_s": statistics.median(cpu for _, cpu in runs),
        }
        for name, runs in measured.items()
    }
    ratio = {
        unit: medians["sentence-transformers"][unit] / medians["dialogkit"][unit]
        for unit in ("wall_s", "cpu_s")
    }
    packages = ("torch", "transformers", "sentence-transformers")
    result = {
        "benchmark": "retriever_start",
        "median": medians,
        "ratio": ratio,
        "max_difference": difference,
        "repeats": arguments.repeats,
        "versions": {name: metadata.version(name) for name in packages},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
        },
    }
    for name, median in medians.items():
        print(f"{name:>22}: {median['wall_s']:.2f} s wall clock, {median['cpu_s']:.2f} s CPU")
    print(
        f"ratio sentence-transformers / dialogkit: {ratio['wall_s']:.2f} wall clock, {ratio['cpu_s']:.2f} CPU"
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
