"""How robust a text classifier is: accuracy under word attacks, and how well detectors notice the attacks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from robustkit.attacks.logs import AttackLog, AttackRecord, strip_marks
from robustkit.detection.metrics import DetectionReport, detection_report, roc_curve, threshold_from_clean
from robustkit.detection.scenarios import DetectionSet, make_scenario, split_log
from robustkit.evaluation.figures import curves_figure
from robustkit.evaluation.report import RobustnessReport, attack_example, interval_note
from trainkit.cards import collect_versions
from trainkit.progress import Progress
from trainkit.report import Cell, Estimate, Examples, Figure, Part, Section, Table

if TYPE_CHECKING:
    from robustkit.attacks.words.asking import Service
    from robustkit.attacks.words.engine import WordAttack
    from robustkit.classifiers.features import Features
    from robustkit.classifiers.text import TextClassifier
    from robustkit.detection.base import Detector
    from robustkit.evaluation.explanations import ExplanationConfig

__all__ = [
    "EvaluationConfig",
    "attack_section",
    "check_evaluation",
    "detection_section",
    "evaluate_robustness",
    "example_section",
]

Scenario = Literal["s1", "s2"]
Scores = NDArray[np.float64]

_MSP = "max-softmax"


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of `evaluate_robustness`.

    Attributes:
        scenarios: How detection sets are drawn from an attack log, see `make_scenario`.
        seeds: Seeds of these draws and of detectors that sample; figures are means over them.
        fpr: Share of clean texts that a detector may flag.
        val_ratio: Share of attacked texts whose clean versions calibrate the threshold.
        far_confidence: Probability of the wrong class from which on an adversarial text lies far beyond the
            boundary; 0.9 is that of ADDMU (EMNLP 2022).
        n_boot: Bootstrap samples for the 95 % intervals; 0 for none.
        examples: Example pairs shown for each attack.
        lock_step: Texts attacked at the same time.
        query_budget: Texts that an attack may show the classifier for one example; None for any number.
    """

    scenarios: tuple[Scenario, ...] = ("s1", "s2")
    seeds: tuple[int, ...] = (0, 1, 2)
    fpr: float = 0.10
    val_ratio: float = 0.3
    far_confidence: float = 0.9
    n_boot: int = 1000
    examples: int = 5
    lock_step: int = 64
    query_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("scenarios", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}, expected at least one, each once")
        for scenario in self.scenarios:
            if scenario not in ("s1", "s2"):
                raise ValueError(f"scenarios holds {scenario!r}, expected 's1' or 's2'")
        for name in ("fpr", "val_ratio", "far_confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share between 0 and 1")
        for name in ("n_boot", "examples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")


def evaluate_robustness(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    attacks: Mapping[str, WordAttack | AttackLog],
    detectors: Mapping[str, Detector] | None = None,
    *,
    train: Sequence[tuple[str, int]] = (),
    encoder: Service | None = None,
    folder: str | Path | None = None,
    dataset: str = "",
    config: EvaluationConfig | None = None,
    explained: ExplanationConfig | None = None,
) -> RobustnessReport:
    """Attack a classifier, let detectors look at the attacked texts, report both.

    The detection table always has a row for the largest softmax probability, the detector that costs nothing,
    and rows for the adversarial texts that lie far beyond the decision boundary, where that detector fails.

    Args:
        classifier: The classifier.
        data: Held-out texts with labels, attacked one and all.
        attacks: Attacks, or logs of attacks on this classifier, by name.
        detectors: Detectors by name, fitted here; none for a report on the attacks alone.
        train: Texts with gold labels that detectors learn from, best those that the classifier was trained
            on.
        encoder: Sentence encoder, such as `SentenceEncoder`, for the similarity of texts before and after an
            attack; None leaves the column out.
        folder: Folder for attack logs, ``logs/NAME.csv`` in it. The same call again, also after an
            interruption, takes from them what is there.
        dataset: Name of the data, for the report.
        config: Settings.
        explained: Settings of explanations of texts and of successful attacks; None for none.

    Returns:
        The report; nothing is written but logs.

    Raises:
        ValueError: There is no data, a label is unknown, a log or the data is too short for a threshold, a
            detector has no training texts, the training texts have one class only, or a method of
            explanation does not suit the classifier. All but a broken log is found before any attack.

    Example:
        ```python
        attacks = {"pwws": pwws(wordnet=wordnet, stopwords=stopwords)}
        detectors = {"RDE": RDEDetector()}
        report = evaluate_robustness(classifier, test, attacks, detectors, train=train, folder="runs/pwws")
        report.write("runs/pwws")
        ```
    """
    config = config or EvaluationConfig()
    detectors = dict(detectors or {})
    check_evaluation(
        classifier, data, attacks, detectors.values(), train=train, config=config, explained=explained
    )
    logs = {
        name: attack
        if isinstance(attack, AttackLog)
        else attack.attack(
            classifier,
            list(data),
            lock_step=config.lock_step,
            query_budget=config.query_budget,
            path=None if folder is None else Path(folder) / "logs" / f"{name}.csv",
        )
        for name, attack in attacks.items()
    }
    facts: dict[str, Cell] = {
        "model": classifier.name,
        "fingerprint": classifier.fingerprint[:16],
        "data": dataset or "not named",
        "texts": len(data),
        "training texts of detectors": len(train) if detectors else None,
        "seeds": ", ".join(map(str, config.seeds)),
        "versions": ", ".join(f"{name} {version}" for name, version in collect_versions().items()),
    }
    sections = [
        _accuracy_section(classifier, data, config),
        attack_section(logs, encoder=encoder, n_boot=config.n_boot),
    ]
    if detectors:
        sections.append(
            detection_section(classifier, logs, detectors, train=train, dataset=dataset, config=config)
        )
    sections.append(example_section(logs, classifier.labels, config.examples, seed=config.seeds[0]))
    if explained is not None:
        from robustkit.evaluation.explained_texts import text_explanation_section

        sections.append(text_explanation_section(classifier, data, logs, explained))
    return RobustnessReport(
        f"Robustness of {classifier.name}",
        tuple(section for section in sections if section.parts),
        {name: value for name, value in facts.items() if value is not None},
    )


def check_evaluation(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    attacks: Mapping[str, WordAttack | AttackLog],
    detectors: Collection[Detector | type[Detector]],
    *,
    train: Sequence[tuple[str, int]],
    config: EvaluationConfig,
    explained: ExplanationConfig | None = None,
) -> None:
    """What `evaluate_robustness` refuses before any attack; cheap beside the training of a detector's model.

    Args:
        classifier: The classifier.
        data: See `evaluate_robustness`.
        attacks: See `evaluate_robustness`.
        detectors: Detectors; for one whose model is still to be trained, its class.
        train: See `evaluate_robustness`.
        config: Settings.
        explained: See `evaluate_robustness`.

    Raises:
        ValueError: See `evaluate_robustness`.
    """
    _check(classifier, data, attacks, train)
    if detectors:
        _check_detection(classifier, data, attacks, detectors, train, config)
    if explained is not None:
        from robustkit.evaluation.explained_texts import TextExplainer
        from robustkit.evaluation.explanations import Inputs, check_methods

        some = next((text for text, _ in data if text.strip()), "")
        check_methods(TextExplainer(classifier), Inputs("", [some], [0]), explained)


def _check(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    attacks: Mapping[str, WordAttack | AttackLog],
    train: Sequence[tuple[str, int]],
) -> None:
    if not data:
        raise ValueError("data is empty")
    for name, rows in (("data", data), ("train", train)):
        for number, (_, label) in enumerate(rows):
            if not 0 <= label < classifier.num_labels:
                raise ValueError(
                    f"the label of {name} {number} is {label}, {classifier.name} knows 0 to "
                    f"{classifier.num_labels - 1}"
                )
    for name, attack in attacks.items():
        if not name or any(letter in name for letter in "/\\\0") or name.startswith("."):
            raise ValueError(f"the attack name {name!r} cannot name a file; use letters, digits, '-' and '_'")
        if isinstance(attack, AttackLog):
            # Logs from elsewhere do not say; ours name the classifier by its fingerprint.
            victim = attack.settings.get("classifier", classifier.fingerprint)
            if victim != classifier.fingerprint:
                raise ValueError(
                    f"the log {name!r} is of an attack on another classifier than {classifier.name}"
                )


def _check_detection(
    classifier: TextClassifier,
    data: Sequence[tuple[str, int]],
    attacks: Mapping[str, WordAttack | AttackLog],
    detectors: Collection[Detector | type[Detector]],
    train: Sequence[tuple[str, int]],
    config: EvaluationConfig,
) -> None:
    least = math.ceil((1 / config.fpr - 1) / config.val_ratio - 1e-9)
    for name, attack in attacks.items():
        texts = len(attack) if isinstance(attack, AttackLog) else len(data)
        if texts < least:
            raise ValueError(
                f"{name} has {texts} texts; a threshold for a false positive rate of {config.fpr} from "
                f"{config.val_ratio:.0%} of them needs at least {least}"
            )
    if any(detector.needs_fit for detector in detectors):
        found = sorted({label for _, label in train})
        if not found:
            raise ValueError("train is empty, and detectors learn from training texts")
        if len(found) == 1:
            raise ValueError(
                f"train holds the class {classifier.labels[found[0]]!r} only; detectors need two or more"
            )


# Sections ---------------------------------------------------------------------------------------------------


def _accuracy_section(
    classifier: TextClassifier, data: Sequence[tuple[str, int]], config: EvaluationConfig
) -> Section:
    labels = np.array([label for _, label in data])
    right = classifier.predict([text for text, _ in data]) == labels
    rows: list[tuple[Cell, ...]] = [("all", len(right), _share(right, config.n_boot))]
    for label, name in enumerate(classifier.labels):
        if (labels == label).any():
            chosen = right[labels == label]
            rows.append((name, len(chosen), _share(chosen, config.n_boot)))
    table = Table("Accuracy", ("class", "texts", "accuracy"), tuple(rows), interval_note(config.n_boot))
    return Section("accuracy", "Accuracy without attack", (table,))


def attack_section(
    logs: Mapping[str, AttackLog], *, encoder: Service | None = None, n_boot: int = 1000
) -> Section:
    """What attacks did to the classifier's accuracy, and what they needed for it.

    Args:
        logs: Logs by name of the attack.
        encoder: Sentence encoder for the similarity of texts before and after; None leaves the column out.
        n_boot: Bootstrap samples for intervals.
    """
    rows = []
    for name, log in logs.items():
        by_goal, outcomes = log.summary(), [record.outcome for record in log]
        row: list[Cell] = [
            name,
            len(log),
            _share([outcome != "Skipped" for outcome in outcomes], n_boot),
            _share([outcome == "Failed" for outcome in outcomes], n_boot),
            by_goal.success_rate,
            by_goal.mean_queries,
            by_goal.perturbed_word_rate,
        ]
        if encoder is not None:
            row.append(_similarity(log, encoder))
        rows.append(tuple(row))
    if not rows:
        return Section("attacks", "Word attacks", ())
    columns: tuple[str, ...] = (
        "attack",
        "texts",
        "accuracy",
        "accuracy under attack",
        "success rate",
        "queries",
        "words changed",
    )
    note = (
        "Success rate: share of the texts predicted rightly for which the attack reached its goal. "
        "Queries: mean number of texts shown to the classifier for one attacked text. "
        "Words changed: mean share of changed words in successful attacks."
    )
    if encoder is not None:
        columns = (*columns, "similarity")
        note += " Similarity: mean cosine of sentence vectors before and after a successful attack."
    note = f"{note} {interval_note(n_boot)}".strip()
    return Section("attacks", "Word attacks", (Table("Accuracy under attack", columns, tuple(rows), note),))


def detection_section(
    classifier: TextClassifier,
    logs: Mapping[str, AttackLog],
    detectors: Mapping[str, Detector],
    *,
    train: Sequence[tuple[str, int]],
    dataset: str = "",
    config: EvaluationConfig | None = None,
) -> Section:
    """How well detectors tell attacked from clean texts.

    Each text is seen by the classifier once. Thresholds come from the clean texts of a log's validation part;
    detectors that need adversarial examples learn from the attacked texts of that part, so they know the
    attack beforehand.

    Args:
        classifier: The classifier that was attacked.
        logs: Logs of attacks on it, by name.
        detectors: Detectors by name; they are copied, not changed.
        train: Texts with gold labels to fit them on.
        dataset: Name of the data, for the table.
        config: Settings.
    """
    config = config or EvaluationConfig()
    if not logs:
        return Section("detection", "Detection of attacks", ())
    detectors = _with_max_softmax(detectors)
    start = perf_counter()
    pool = _Pool(classifier, logs)
    forward_ms = 1000 * (perf_counter() - start) / max(1, len(pool.features))
    scored = _Scores(classifier, pool, detectors, logs, train, config)

    rows: list[tuple[Cell, ...]] = []
    overview: dict[str, dict[str, Cell]] = {name: {} for name in detectors}
    figures: list[Figure] = []
    total = len(logs) * len(config.scenarios) * 2
    with Progress(total, "detection figures") as bar:
        for attack, log in logs.items():
            for scenario in config.scenarios:
                for least in (None, config.far_confidence):
                    bar.advance()
                    boundary = "any" if least is None else f"far (≥ {least:g})"
                    sets = {
                        seed: found
                        for seed in config.seeds
                        if (found := _detection_set(log, scenario, seed, least, config)) is not None
                    }
                    for name, detector in detectors.items():
                        cells = _figures(scored, name, attack, log, sets, config)
                        overview[name][f"{attack} {scenario}{'' if least is None else ' far'}"] = cells["AUC"]
                        rows.append(
                            (
                                attack,
                                scenario,
                                boundary,
                                name,
                                *cells.values(),
                                scored.ms[name],
                                detector.extra_forwards,
                                detector.needs_adversarial,
                                dataset,
                                classifier.name,
                            )
                        )
                    if sets and (least is None or scenario == config.scenarios[0]):
                        figures.append(_roc(scored, detectors, attack, scenario, boundary, sets))
    columns = ("attack", "scenario", "boundary", "detector", *_FIGURES, "ms per text", "extra forwards")
    parts: list[Part] = [
        "A detector sees clean and attacked texts and scores how adversarial each looks. In scenario s1 "
        "clean and attacked texts come from different sources, half and half; s2 holds clean texts and the "
        "successful attacks on them. Far: only attacked texts whose true class is left with a probability "
        f"of {1 - config.far_confidence:g} or less.",
        Table(
            "AUC of all detectors",
            ("detector", *next(iter(overview.values()))),
            tuple((name, *(_value(cell) for cell in cells.values())) for name, cells in overview.items()),
            "Mean over seeds. 0.5 is guessing.",
        ),
        Table(
            "Detection",
            (*columns, "needs adversarial data", "dataset", "model"),
            tuple(rows),
            f"Mean ± standard deviation over {len(config.seeds)} seeds; in brackets the 95 % bootstrap "
            f"interval of the first seed. TPR@FPR: largest share of attacked texts found while at most "
            f"{config.fpr:.0%} of these same clean texts are flagged, an oracle's figure. TPR, FPR and F1 at "
            "the threshold from clean validation texts. Milliseconds are those of the detector alone; one "
            f"forward pass of the classifier took {forward_ms:.2f} ms per text. A dash means that no text "
            "qualified.",
        ),
        *figures,
        *_failed_attacks(scored, detectors, logs, config),
    ]
    return Section("detection", "Detection of attacks", tuple(parts))


def example_section(
    logs: Mapping[str, AttackLog], labels: Sequence[str], count: int, seed: int = 0
) -> Section:
    """Successful attacks drawn at random.

    Args:
        logs: Logs by name of the attack.
        labels: Names of the classes.
        count: Pairs for each attack.
        seed: Seed of the draw.
    """
    parts = []
    for name, log in logs.items():
        won = [record for record in log if record.outcome == "Successful"]
        order = np.random.default_rng(seed).permutation(len(won))[:count]
        if len(order):
            pairs = tuple(
                attack_example(_caption(won[i], labels), won[i].original_text, won[i].perturbed_text)
                for i in sorted(order)
            )
            parts.append(
                Examples(name, pairs, f"{len(pairs)} of {len(won)} successful attacks, drawn at random.")
            )
    return Section("examples", "Examples", tuple(parts))


# Detection --------------------------------------------------------------------------------------------------

_FIGURES = ("n adversarial", "n clean", "AUC", "TPR@FPR", "TPR", "FPR", "F1")


class _Pool:
    """Every text that a detection set may hold, with features from one forward pass each."""

    def __init__(self, classifier: TextClassifier, logs: Mapping[str, AttackLog]) -> None:
        texts = _distinct(logs.values())
        self._row = {text: row for row, text in enumerate(texts)}
        self.features: Features = classifier.extract(texts)

    def rows_of(self, logs: Iterable[AttackLog]) -> NDArray[np.int64]:
        return self.rows(_distinct(logs))

    def rows(self, texts: Iterable[str]) -> NDArray[np.int64]:
        return np.array([self._row[text] for text in texts], dtype=np.int64)


class _Scores:
    """Scores of the pool by every detector.

    A detector is fitted once for each seed if it draws, and for each attack if it learns from attacked texts.

    Attributes:
        ms: Milliseconds per scored text, by detector.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        pool: _Pool,
        detectors: Mapping[str, Detector],
        logs: Mapping[str, AttackLog],
        train: Sequence[tuple[str, int]],
        config: EvaluationConfig,
    ) -> None:
        self.pool = pool
        self.ms: dict[str, float] = {}
        self._scores: dict[tuple[str, int, str], Scores] = {}
        fitted = any(detector.needs_fit for detector in detectors.values())
        clean = classifier.extract([text for text, _ in train]) if fitted else None
        labels = [label for _, label in train]
        with Progress(len(detectors), "detectors") as bar:
            for name, detector in detectors.items():
                seconds, count = 0.0, 0
                draws = "random_state" in detector.get_params()
                for seed in config.seeds:
                    for attack, log in logs.items():
                        same = (
                            name,
                            seed if draws or detector.needs_adversarial else config.seeds[0],
                            attack if detector.needs_adversarial else next(iter(logs)),
                        )
                        if same not in self._scores:
                            copy = _copy(detector, seed if draws else None)
                            if clean is not None and detector.needs_fit:
                                copy.fit(clean, labels, self._adversarial(detector, log, seed, config))
                            # One that learned from an attack is asked about that attack only.
                            about = [log] if detector.needs_adversarial else logs.values()
                            rows = pool.rows_of(about)
                            start = perf_counter()
                            scores = copy.score_samples(pool.features[rows])
                            seconds += perf_counter() - start
                            count += len(rows)
                            self._scores[same] = np.full(len(pool.features), math.nan)
                            self._scores[same][rows] = scores
                        self._scores[name, seed, attack] = self._scores[same]
                self.ms[name] = 1000 * seconds / max(1, count)
                bar.advance(note=name)

    def _adversarial(
        self, detector: Detector, log: AttackLog, seed: int, config: EvaluationConfig
    ) -> Features | None:
        if not detector.needs_adversarial:
            return None
        validation, _ = split_log(log, config.val_ratio, seed)
        texts = [strip_marks(r.perturbed_text) for r in validation if r.outcome == "Successful"]
        return self.pool.features[self.pool.rows(texts)]

    def of(self, detector: str, seed: int, attack: str, texts: Iterable[str]) -> Scores:
        return self._scores[detector, seed, attack][self.pool.rows(texts)]


def _copy(detector: Detector, seed: int | None) -> Detector:
    copy = type(detector)(**detector.get_params())
    return copy if seed is None else copy.set_params(random_state=seed)


def _with_max_softmax(detectors: Mapping[str, Detector]) -> dict[str, Detector]:
    """The detectors, with one that scores by the largest softmax probability."""
    from robustkit.detection.softmax import MSPDetector

    if any(isinstance(d, MSPDetector) and d.get_params()["kind"] == "max" for d in detectors.values()):
        return dict(detectors)
    return {_MSP: MSPDetector(), **detectors}


def _detection_set(
    log: AttackLog, scenario: Scenario, seed: int, least: float | None, config: EvaluationConfig
) -> DetectionSet | None:
    try:
        return make_scenario(log, scenario, seed=seed, val_ratio=config.val_ratio, min_confidence=least)
    except ValueError:
        return None  # the settings were checked, so the log holds no adversarial text of that kind


def _figures(
    scored: _Scores,
    detector: str,
    attack: str,
    log: AttackLog,
    sets: Mapping[int, DetectionSet],
    config: EvaluationConfig,
) -> dict[str, Cell]:
    """The cells of one row, by the names of `_FIGURES`."""
    if not sets:
        return {name: 0 if name.startswith("n ") else None for name in _FIGURES}
    reports: list[DetectionReport] = []
    for seed, found in sets.items():
        validation, _ = split_log(log, config.val_ratio, seed)
        clean = scored.of(detector, seed, attack, (strip_marks(r.original_text) for r in validation))
        reports.append(
            detection_report(
                scored.of(detector, seed, attack, found.texts),
                found.is_adversarial,
                config.fpr,
                threshold_from_clean(clean, config.fpr),
                n_boot=0 if reports else config.n_boot,
                source_id=found.source_id,
                seed=seed,
            )
        )
    first = next(iter(sets.values()))
    return {
        "n adversarial": int(first.is_adversarial.sum()),
        "n clean": int((~first.is_adversarial).sum()),
        "AUC": _mean([report.auc for report in reports], reports[0].ci.get("auc")),
        "TPR@FPR": _mean([report.tpr_at_fpr for report in reports]),
        "TPR": _mean([report.recall for report in reports]),
        "FPR": _mean([report.fpr for report in reports]),
        "F1": _mean([report.f1 for report in reports]),
    }


def _roc(
    scored: _Scores,
    detectors: Iterable[str],
    attack: str,
    scenario: str,
    boundary: str,
    sets: Mapping[int, DetectionSet],
) -> Figure:
    seed, found = next(iter(sets.items()))
    curves = {}
    for name in detectors:
        scores = scored.of(name, seed, attack, found.texts)
        curve = roc_curve(scores, found.is_adversarial)
        auc = float(np.trapezoid(curve.tpr, curve.fpr))
        curves[f"{name} ({auc:.3f})"] = (curve.fpr, curve.tpr)
    return curves_figure(
        f"ROC: {attack}, {scenario}{'' if boundary == 'any' else ', far'}",
        curves,
        x_label="clean texts flagged (FPR)",
        y_label="attacked texts flagged (TPR)",
        diagonal=True,
        unit_square=True,
        note=f"Seed {seed}; in brackets the AUC.",
    )


def _failed_attacks(
    scored: _Scores, detectors: Iterable[str], logs: Mapping[str, AttackLog], config: EvaluationConfig
) -> list[Table]:
    """AUC on attacked texts that did not fool the classifier, against the clean texts of the test part."""
    rows: list[tuple[Cell, ...]] = []
    for attack, log in logs.items():
        parts = {}
        for seed in config.seeds:
            _, test = split_log(log, config.val_ratio, seed)
            failed = [strip_marks(r.perturbed_text) for r in test if _changed_in_vain(r)]
            if failed:
                parts[seed] = ([strip_marks(r.original_text) for r in test], failed)
        for name in detectors if parts else ():
            values = []
            for seed, (clean, failed) in parts.items():
                scores = scored.of(name, seed, attack, [*clean, *failed])
                values.append(detection_report(scores, np.arange(len(scores)) >= len(clean)).auc)
            rows.append((attack, name, len(next(iter(parts.values()))[1]), _mean(values)))
    if not rows:
        return []
    note = (
        "Texts that an attack changed without changing the prediction, against the clean texts of the test "
        "part. They are no adversarial examples of the tables above."
    )
    return [Table("Failed attacks", ("attack", "detector", "n failed", "AUC"), tuple(rows), note)]


# Figures ----------------------------------------------------------------------------------------------------


def _texts(record: AttackRecord) -> tuple[str, ...]:
    return (strip_marks(record.original_text), strip_marks(record.perturbed_text))


def _distinct(logs: Iterable[AttackLog]) -> list[str]:
    """The texts of logs, each once."""
    return list(dict.fromkeys(text for log in logs for record in log for text in _texts(record)))


def _changed_in_vain(record: AttackRecord) -> bool:
    original, perturbed = _texts(record)
    return record.outcome == "Failed" and original != perturbed


def _caption(record: AttackRecord, labels: Sequence[str]) -> str:
    true, wrong = labels[record.ground_truth_output], labels[record.perturbed_output]
    return (
        f"{true} → {wrong} · probability of {true}: {1 - record.original_score:.2f} → "
        f"{1 - record.perturbed_score:.2f} · {record.num_queries} queries"
    )


def _similarity(log: AttackLog, encoder: Service) -> float:
    pairs = [_texts(record) for record in log if record.outcome == "Successful"]
    if not pairs:
        return math.nan
    before, after = (
        np.asarray(encoder.answer(texts), dtype=np.float64) for texts in zip(*pairs, strict=True)
    )
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(np.mean((before * after).sum(axis=1) / lengths))


def _share(values: Sequence[bool] | NDArray[np.bool_], n_boot: int) -> Estimate:
    """A share with its 95 % bootstrap interval."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan)
    share = float(np.mean(values))
    if n_boot == 0:
        return Estimate(share)
    # The number of hits in a resample of n values.
    draws = np.random.default_rng(0).binomial(n, share, size=n_boot) / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(share, low=float(low), high=float(high))


def _mean(values: Sequence[float], interval: tuple[float, float] | None = None) -> Estimate:
    low, high = interval or (None, None)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), sd, low, high)


def _value(cell: Cell) -> Cell:
    return cell.value if isinstance(cell, Estimate) else cell
