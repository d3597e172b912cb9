"""The evaluation from end to end on a tiny classifier, and its figures by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from robustkit.attacks.logs import AttackLog, AttackRecord, ResultType
from robustkit.attacks.words import WordNet
from robustkit.attacks.words.recipes import pwws
from robustkit.classifiers import TextClassifier
from robustkit.detection import RDEDetector, detection_report, make_scenario, split_log, threshold_from_clean
from robustkit.detection.base import Detector
from robustkit.detection.softmax import MSPDetector
from robustkit.evaluation import (
    Estimate,
    EvaluationConfig,
    Examples,
    RobustnessReport,
    Table,
    evaluate_robustness,
)
from robustkit.evaluation.robustness import attack_section, detection_section, example_section
from tests.robustkit.tiny import SYNONYMS, toy_sentiment, trained_bert

TRAIN, TRAIN_LABELS = toy_sentiment(160, seed=5)
TEXTS, LABELS = toy_sentiment(60, seed=6)
DATA = list(zip(TEXTS, LABELS, strict=True))
CONFIG = EvaluationConfig(seeds=(0, 1), n_boot=20, examples=2)


def rde() -> RDEDetector:
    return RDEDetector(n_components=4, covariance="empirical")


def attack(goal_score: float | None = None):  # type: ignore[no-untyped-def]
    lexicon = WordNet(lambda word: [SYNONYMS.get(word, ())], fingerprint="toy")
    return pwws(wordnet=lexicon, stopwords=["the"], goal_score=goal_score)


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    model, tokenizer = trained_bert()
    return TextClassifier(model, tokenizer, name="toy")


@pytest.fixture(scope="module")
def run(
    classifier: TextClassifier, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RobustnessReport, Path]:
    """A finished run: its report, and the folder that holds its logs."""
    folder = tmp_path_factory.mktemp("run")
    report = evaluate_robustness(
        classifier,
        DATA,
        {"pwws": attack(), "pwws-far": attack(0.9)},
        {"RDE": rde()},
        train=list(zip(TRAIN, TRAIN_LABELS, strict=True)),
        folder=folder,
        dataset="toy reviews",
        config=CONFIG,
    )
    return report, folder


@pytest.fixture(scope="module")
def report(run: tuple[RobustnessReport, Path]) -> RobustnessReport:
    return run[0]


@pytest.fixture(scope="module")
def folder(run: tuple[RobustnessReport, Path]) -> Path:
    return run[1]


def row(table: Table, **wanted: object) -> dict[str, object]:
    """The one row with these cells."""
    rows = [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]
    (found,) = [one for one in rows if all(one[name] == value for name, value in wanted.items())]
    return found


def test_the_run_attacks_logs_and_reports(report: RobustnessReport, folder: Path, tmp_path: Path) -> None:
    assert [section.key for section in report.sections] == ["accuracy", "attacks", "detection", "examples"]
    assert sorted(path.name for path in (folder / "logs").glob("*.csv")) == ["pwws-far.csv", "pwws.csv"]
    assert report.facts["model"] == "toy"
    assert report.facts["data"] == "toy reviews"
    report.write(tmp_path)
    assert RobustnessReport.read(tmp_path).to_html() == report.to_html()
    assert "RDE" in (tmp_path / "report.md").read_text()


def test_attack_figures_are_the_logs(
    report: RobustnessReport, classifier: TextClassifier, folder: Path
) -> None:
    log = AttackLog.read_csv(folder / "logs" / "pwws.csv")
    found = row(report.section("attacks").table("Accuracy under attack"), attack="pwws")
    summary = log.summary()
    assert found["texts"] == len(DATA)
    assert isinstance(found["accuracy"], Estimate)
    assert found["accuracy"].value == pytest.approx(summary.accuracy)
    assert found["accuracy"].value == pytest.approx(np.mean(classifier.predict(TEXTS) == LABELS))
    assert isinstance(found["accuracy under attack"], Estimate)
    assert found["accuracy under attack"].value == pytest.approx(summary.accuracy_under_attack)
    assert found["accuracy under attack"].value < 0.5
    assert found["queries"] == pytest.approx(summary.mean_queries)
    assert found["words changed"] == pytest.approx(summary.perturbed_word_rate)
    low, high = found["accuracy under attack"].low, found["accuracy under attack"].high
    assert low is not None and high is not None and low <= summary.accuracy_under_attack <= high


def test_detection_figures_equal_those_taken_by_hand(
    report: RobustnessReport, classifier: TextClassifier, folder: Path
) -> None:
    log = AttackLog.read_csv(folder / "logs" / "pwws.csv")
    table = report.section("detection").table("Detection")
    for scenario in ("s1", "s2"):
        aucs, recalls = [], []
        for seed in CONFIG.seeds:
            detector = RDEDetector(n_components=4, covariance="empirical", random_state=seed)
            detector.fit(classifier.extract(TRAIN), TRAIN_LABELS)
            found = make_scenario(log, scenario, seed=seed)
            clean = [
                r.original_text.replace("[[", "").replace("]]", "") for r in split_log(log, 0.3, seed)[0]
            ]
            scores = detector.score_samples(classifier.extract(found.texts))
            threshold = threshold_from_clean(detector.score_samples(classifier.extract(clean)), 0.1)
            by_hand = detection_report(scores, found.is_adversarial, 0.1, threshold)
            aucs.append(by_hand.auc)
            recalls.append(by_hand.recall)
        shown = row(table, attack="pwws", scenario=scenario, boundary="any", detector="RDE")
        assert isinstance(shown["AUC"], Estimate)
        assert shown["AUC"].value == pytest.approx(np.mean(aucs), abs=2e-3)
        assert shown["AUC"].sd == pytest.approx(np.std(aucs, ddof=1), abs=2e-3)
        assert shown["AUC"].low is not None
        assert isinstance(shown["TPR"], Estimate)
        assert shown["TPR"].value == pytest.approx(np.mean(recalls), abs=0.06)
        assert shown["n clean"] == int((~make_scenario(log, scenario, seed=0).is_adversarial).sum())
        assert shown["needs adversarial data"] is False
        assert shown["extra forwards"] == "0"


def test_max_softmax_and_the_far_boundary_have_a_row_for_every_attack_and_scenario(
    report: RobustnessReport,
) -> None:
    table = report.section("detection").table("Detection")
    for name in ("pwws", "pwws-far"):
        for scenario in ("s1", "s2"):
            for boundary in ("any", "far (≥ 0.9)"):
                row(table, attack=name, scenario=scenario, boundary=boundary, detector="max-softmax")
    far = row(table, attack="pwws-far", scenario="s2", boundary="far (≥ 0.9)", detector="max-softmax")
    assert isinstance(far["n adversarial"], int) and far["n adversarial"] > 0
    overview = report.section("detection").table("AUC of all detectors")
    assert [cells[0] for cells in overview.rows] == ["max-softmax", "RDE"]
    assert overview.columns[1:3] == ("pwws s1", "pwws s1 far")


def test_a_max_softmax_of_the_callers_is_not_doubled(classifier: TextClassifier, folder: Path) -> None:
    log = AttackLog.read_csv(folder / "logs" / "pwws.csv")
    mine: dict[str, Detector] = {"MSP": MSPDetector(), "energy": MSPDetector("energy")}
    section = detection_section(classifier, {"pwws": log}, mine, train=[], config=CONFIG)
    assert [cells[0] for cells in section.table("AUC of all detectors").rows] == ["MSP", "energy"]
    # It is the logs' own scores that max-softmax sees: figures without a model are the same.
    found = make_scenario(log, "s2", seed=0)
    wrong = np.where(found.logged_output == found.ground_truth, found.logged_score, 1 - found.logged_score)
    auc = detection_report(wrong, found.is_adversarial).auc
    config = EvaluationConfig(seeds=(0,), n_boot=0, scenarios=("s2",))
    single = detection_section(classifier, {"pwws": log}, mine, train=[], config=config)
    shown = row(single.table("Detection"), detector="MSP", boundary="any")
    assert isinstance(shown["AUC"], Estimate)
    assert shown["AUC"].value == pytest.approx(auc, abs=1e-6)
    assert shown["AUC"].sd is None and shown["AUC"].low is None


def test_a_second_run_takes_the_logs_and_gives_the_same_report(
    report: RobustnessReport, classifier: TextClassifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkit.attacks.words import engine

    def never(*_: object) -> None:
        raise AssertionError("a finished example was attacked again")

    monkeypatch.setattr(engine, "_record", never)
    again = evaluate_robustness(
        classifier,
        DATA,
        {"pwws": attack(), "pwws-far": attack(0.9)},
        folder=folder,
        dataset="toy reviews",
        config=CONFIG,
    )
    assert again.section("attacks") == report.section("attacks")
    assert again.section("examples") == report.section("examples")
    assert [section.key for section in again.sections] == ["accuracy", "attacks", "examples"]


def test_logs_of_other_data_are_refused(classifier: TextClassifier, folder: Path) -> None:
    with pytest.raises(ValueError, match="belongs to another run"):
        evaluate_robustness(classifier, DATA[:40], {"pwws": attack()}, folder=folder)


def test_a_log_of_an_attack_on_another_classifier_is_refused(
    classifier: TextClassifier, folder: Path
) -> None:
    log = AttackLog.read_csv(folder / "logs" / "pwws.csv")
    other = AttackLog(log.records, log.name, log.model, {"classifier": "another"})
    with pytest.raises(ValueError, match="the log 'pwws' is of an attack on another classifier than toy"):
        evaluate_robustness(classifier, DATA, {"pwws": other})
    assert evaluate_robustness(classifier, DATA, {"pwws": log}, config=CONFIG).section("attacks").parts


def test_a_detector_that_needs_adversarial_examples_gets_those_of_the_validation_part(
    classifier: TextClassifier, folder: Path
) -> None:
    log = AttackLog.read_csv(folder / "logs" / "pwws.csv")
    seen: list[tuple[str, ...]] = []

    class Learner(MSPDetector):
        needs_adversarial = True
        needs_fit = True

        def _fit(self, clean: object, labels: object, adversarial: object) -> None:
            seen.append(adversarial.texts)  # type: ignore[attr-defined]

    train = list(zip(TRAIN, TRAIN_LABELS, strict=True))
    section = detection_section(classifier, {"pwws": log}, {"learner": Learner()}, train=train, config=CONFIG)
    validation, _ = split_log(log, 0.3, seed=0)
    wanted = {
        r.perturbed_text.replace("[[", "").replace("]]", "") for r in validation if r.outcome == "Successful"
    }
    assert set(seen[0]) == wanted
    assert len(seen) == len(CONFIG.seeds)
    assert row(section.table("Detection"), detector="learner", scenario="s1", boundary="any")[
        "needs adversarial data"
    ]


# Logs made by hand.


def record(
    original: str, perturbed: str, truth: int, after: int, kind: ResultType, score: float
) -> AttackRecord:
    before = truth if kind != "Skipped" else 1 - truth
    return AttackRecord(original, perturbed, 0.1, score, before, after, truth, 10, kind)


def test_rates_follow_the_predictions_and_failed_attacks_are_listed_apart(classifier: TextClassifier) -> None:
    rows = []
    for i, (text, label) in enumerate(DATA[:40]):
        changed = text.replace("the", "[[a]]", 1)
        if i % 4 == 0:
            rows.append(record(text, text, label, 1 - label, "Skipped", 0.9))
        elif i % 4 == 1:
            rows.append(record(text, changed, label, 1 - label, "Successful", 0.95))
        elif i % 4 == 2:
            rows.append(record(text, f"{text} [[!]]", label, label, "Failed", 0.2))
        else:
            rows.append(record(text, text, label, label, "Failed", 0.1))  # nothing could be changed
    log = AttackLog(rows, "made", "toy")
    found = row(attack_section({"made": log}, n_boot=0).table("Accuracy under attack"), attack="made")
    assert found["accuracy"] == Estimate(0.75)
    assert found["accuracy under attack"] == Estimate(0.5)
    assert found["success rate"] == pytest.approx(1 / 3)
    section = detection_section(
        classifier, {"made": log}, {}, train=[], config=EvaluationConfig(n_boot=0, seeds=(0,))
    )
    _, test = split_log(log, 0.3, 0)
    in_vain = sum("[[!]]" in r.perturbed_text for r in test)
    failed = row(section.table("Failed attacks"), detector="max-softmax")
    assert failed["n failed"] == in_vain
    assert isinstance(failed["AUC"], Estimate) and 0 <= failed["AUC"].value <= 1


def test_without_adversarial_texts_rows_are_empty_and_kept(classifier: TextClassifier) -> None:
    rows = [record(text, text, label, label, "Failed", 0.1) for text, label in DATA[:40]]
    log = AttackLog(rows, "vain", "toy")
    section = detection_section(classifier, {"vain": log}, {}, train=[], config=CONFIG)
    empty = row(section.table("Detection"), scenario="s1", boundary="any", detector="max-softmax")
    assert (empty["n adversarial"], empty["AUC"], empty["F1"]) == (0, None, None)
    assert example_section({"vain": log}, ["bad", "good"], 3).parts == ()


def test_similarity_is_the_mean_cosine_of_successful_pairs() -> None:
    class Encoder:
        def answer(self, payloads: list[str]) -> list[np.ndarray]:
            return [np.array([len(text), 1.0]) for text in payloads]

    log = AttackLog(
        [
            record("aa [[b]]", "aa [[bcd]]", 1, 0, "Successful", 0.9),
            record("aaaa", "bbbbbbbbb", 1, 1, "Failed", 0.1),
        ]
    )
    found = attack_section({"x": log}, encoder=Encoder(), n_boot=0).table("Accuracy under attack")
    wanted = (4 * 6 + 1) / math.sqrt((16 + 1) * (36 + 1))
    assert row(found, attack="x")["similarity"] == pytest.approx(wanted)


def test_examples_are_drawn_from_successes_with_their_story() -> None:
    rows = [record(f"text [[{i}]]", f"text [[{i}!]]", 1, 0, "Successful", 0.8) for i in range(9)]
    log = AttackLog([*rows, record("x", "y", 0, 0, "Failed", 0.1)])
    first = example_section({"a": log}, ["bad", "good"], 3, seed=0).parts[0]
    assert isinstance(first, Examples)
    assert len(first.examples) == 3
    assert first.examples[0].caption == "good → bad · probability of good: 0.90 → 0.20 · 10 queries"
    assert example_section({"a": log}, ["bad", "good"], 3, seed=1).parts[0] != first
    assert example_section({"a": log}, ["bad", "good"], 0).parts == ()


# Bad input.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seeds": ()}, "seeds is"),
        ({"seeds": (1, 1)}, "each once"),
        ({"scenarios": ("s3",)}, "'s3'"),
        ({"fpr": 1.0}, "fpr is 1.0"),
        ({"val_ratio": 0.0}, "val_ratio is 0.0"),
        ({"far_confidence": 2.0}, "far_confidence is 2.0"),
        ({"n_boot": -1}, "n_boot is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluationConfig(**settings)  # type: ignore[arg-type]


def test_bad_input_is_refused_before_any_attack(classifier: TextClassifier, tmp_path: Path) -> None:
    def run(data: list[tuple[str, int]], train: list[tuple[str, int]], name: str = "pwws") -> None:
        evaluate_robustness(classifier, data, {name: attack()}, {"RDE": rde()}, train=train, folder=tmp_path)

    train = list(zip(TRAIN, TRAIN_LABELS, strict=True))
    with pytest.raises(ValueError, match="data is empty"):
        run([], train)
    with pytest.raises(ValueError, match="label of data 1 is 2, toy knows 0 to 1"):
        run([*DATA[:1], ("x", 2)], train)
    with pytest.raises(ValueError, match="train is empty"):
        run(DATA, [])
    with pytest.raises(ValueError, match="train holds the class 'class 1' only"):
        run(DATA, [(text, 1) for text in TRAIN])
    with pytest.raises(ValueError, match=r"pwws has 20 texts.*at least 30"):
        run(DATA[:20], train)
    with pytest.raises(ValueError, match="cannot name a file"):
        run(DATA, train, "../pwws")
    assert list(tmp_path.iterdir()) == []
