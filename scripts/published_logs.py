#!/usr/bin/env python
"""Max-softmax on published attack logs, beside known figures: ``python scripts/published_logs.py``.

The logs' own scores stand in for the classifier, so nothing is run but the log reader, the scenario builder,
the detector and the metrics. Needs the data folder (environment variable KIT_DATA); writes a Markdown table
and the same as JSON.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.attacks import AttackLog
from robustkit.classifiers.features import Features
from robustkit.detection import DetectionSet, detection_report, make_scenario, split_log
from robustkit.detection.softmax import MSPDetector
from trainkit.datafiles import data_file
from trainkit.hub import write_json

# Specification of the benchmark, table 10.3: five seeds, all rows, size of the adversarial side, figures.
KNOWN: Mapping[str, dict[str, Any]] = {
    "BERT SST-2 PWWS": {
        "file": lambda: data_file("attack_logs/bert-base-uncased-sst2_pwws.csv.gz"),
        "counts": (872, 698, 108, 66),
        "far": 0.504,
        "n_adv": 347,
        "figures": {"tpr_at_fpr": 0.585, "f1": 0.695, "auc": 0.878},
    },
    "BERT IMDB TextFooler": {
        "file": lambda: data_file("attack_logs/bert-base-uncased-imdb_textfooler.csv.gz"),
        "counts": (1000, 903, 10, 87),
        "far": 0.145,
        "n_adv": 451,
        "figures": {"tpr_at_fpr": 0.949, "f1": 0.929, "auc": 0.975},
    },
}


def features(outputs: np.ndarray, truth: np.ndarray, error: np.ndarray) -> Features:
    """What a classifier of two classes must have said, given 1 - p(true class)."""
    probabilities = np.stack([1 - error, error], axis=1)
    probabilities[truth == 1] = probabilities[truth == 1][:, ::-1]
    logits = np.log(np.maximum(probabilities, 1e-30))
    return Features.of(np.zeros((len(error), 0)), predictions=outputs, logits=logits)


def scores(found: DetectionSet) -> np.ndarray:
    """Max-softmax scores of a detection set."""
    said = features(found.logged_output, found.ground_truth, found.logged_score)
    assert said.logits is not None and (said.logits.argmax(axis=1) == said.predictions).all()
    return MSPDetector().score_samples(said)


def calibrated(log: AttackLog, seed: int) -> dict[str, float]:
    """TPR and FPR in scenario 1 at the threshold from the clean texts of the validation part."""
    validation = split_log(log, seed=seed)[0]
    detector = MSPDetector()
    columns = ("original_output", "ground_truth_output", "original_score")
    detector.calibrate(features(*(np.array([getattr(r, name) for r in validation]) for name in columns)))
    found = make_scenario(log, "s1", seed=seed)
    report = detection_report(scores(found), found.is_adversarial, threshold=detector.threshold_)
    return {"tpr": report.recall, "fpr": report.fpr}


def measure(name: str, seeds: int) -> dict[str, Any]:
    """All figures of one log: lists with one number for each seed."""
    known = KNOWN[name]
    log = AttackLog.read_csv(known["file"]())
    summary = log.summary()
    successful = [record for record in log.relabelled() if record.result_type == "Successful"]
    rows: dict[str, dict[str, list[float]]] = {}
    for row, scenario, options in (
        ("s1, as in the specification", "s1", {"n_adv": known["n_adv"]}),
        ("s1, all there is", "s1", {}),
        ("s2", "s2", {}),
        ("s1, far from the boundary", "s1", {"min_confidence": 0.9}),
        ("s2, far from the boundary", "s2", {"min_confidence": 0.9}),
    ):
        figures: dict[str, list[float]] = {key: [] for key in ("n_adv", "n_clean", *known["figures"])}
        for seed in range(seeds):
            found = make_scenario(log, scenario, seed=seed, val_ratio=0.0, **options)  # type: ignore[arg-type]
            report = detection_report(scores(found), found.is_adversarial)
            figures["n_adv"].append(int(found.is_adversarial.sum()))
            figures["n_clean"].append(int((~found.is_adversarial).sum()))
            for key in known["figures"]:
                figures[key].append(getattr(report, key))
        rows[row] = figures
    by_validation = [calibrated(log, seed) for seed in range(seeds)]
    return {
        "counts": (summary.texts, summary.successful, summary.failed, summary.skipped),
        "relabelled_rows": sum(a != b for a, b in zip(log, log.relabelled(), strict=True)),
        "far": sum(record.perturbed_score >= 0.9 for record in successful) / len(successful),
        "rows": rows,
        "calibrated": {key: [each[key] for each in by_validation] for key in ("tpr", "fpr")},
    }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| log | rows | successful / failed / skipped | wrong class at .9 or more |",
        "| --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        known, (texts, *kinds) = KNOWN[name], result["counts"]
        verdict = "as known" if result["counts"] == known["counts"] else f"known: {known['counts']}"
        counts = f"{' / '.join(map(str, kinds))} ({verdict})"
        lines.append(f"| {name} | {texts} | {counts} | {result['far']:.3f} (known: {known['far']:.3f}) |")
    lines += [
        "",
        "| log | scenario | adversarial + clean | TPR at FPR 10 % | F1 | AUC |",
        "| " + "--- | " * 6,
    ]
    for name, result in results.items():
        for row, figures in result["rows"].items():
            size = " + ".join(f"{statistics.fmean(figures[key]):.0f}" for key in ("n_adv", "n_clean"))
            cells = [spread(figures[key]) for key in ("tpr_at_fpr", "f1", "auc")]
            lines.append(f"| {name} | {row} | {size} | {' | '.join(cells)} |")
        known = KNOWN[name]
        cells = [f"{value:.3f}" for value in known["figures"].values()]
        lines.append(f"| {name} | *specification, 5 seeds* | {known['n_adv']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| log | TPR at the threshold from clean validation text | FPR there |",
        "| --- | --- | --- |",
    ]
    for name, result in results.items():
        lines.append(
            f"| {name} | {spread(result['calibrated']['tpr'])} | {spread(result['calibrated']['fpr'])} |"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    """Parses the arguments and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, at least 2")
    parser.add_argument("--output", type=Path, default=Path("runs/published_logs"))
    arguments = parser.parse_args()
    results = {name: measure(name, arguments.seeds) for name in KNOWN}
    text = table(results)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.platform()}
    write_json(arguments.output / "results.json", {"seeds": arguments.seeds, **machine, "logs": results})
    print(text)


if __name__ == "__main__":
    main()
