"""The command line and the detector of replaced words: trained, saved, used, in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkit.attacks.logs import AttackLog
from robustkit.detection import ReplacedWordsDetector, SuspectWordsDetector, TextDetector
from robustkit.evaluation import RobustnessReport, inputs
from robustkit.evaluation.inputs import Resources, train_reader
from tests.robustkit.test_cli import call, failure
from tests.robustkit.tiny import SYNONYMS, tiny_classifier, toy_sentiment, trained_bert

NAMES = ("bad", "good")
TRAINING = {"max_length": 32, "copies": 2, "learning_rate": 1e-2, "mixed_precision": "no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, texts, resources of attacks, and the encoder that a reader starts as."""
    folder = tmp_path_factory.mktemp("replaced")
    for name, (model, tokenizer) in {
        "model": trained_bert(),
        "encoder": tiny_classifier(spread=0.05, max_length=128),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, size, seed in (("train", 120, 5), ("test", 40, 6)):
        rows = zip(*toy_sentiment(size, seed=seed), strict=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    lexicon = folder / "lexicon"
    lexicon.mkdir()
    (lexicon / "stopwords_en.txt").write_text("the\nand\n")
    (lexicon / "counterfitted_neighbors.json").write_text(
        json.dumps({k: list(v) for k, v in SYNONYMS.items()})
    )
    return folder


def options(folder: Path, *, lexicon: str = "lexicon") -> list[str]:
    return ["--model", str(folder / "model"), "--resources", str(folder / lexicon)]


def fit(folder: Path, out: Path, *more: str, name: str = "replaced") -> list[str]:
    data = ["--data", str(folder / "train.jsonl"), "--detector", name, "--out", str(out)]
    return ["detect", "fit", *options(folder), *data, *more]


@pytest.fixture(scope="module")
def detector(folder: Path) -> Path:
    """Trained and saved by ``robustkit detect fit``."""
    out = folder / "detector"
    params = json.dumps({**TRAINING, "truncate": True})
    result = call(*fit(folder, out, "--encoder", str(folder / "encoder"), "--params", params))
    assert result.exit_code == 0, result.output
    assert "replaced fitted on 96 texts; threshold" in result.stdout
    return out


def test_fit_trains_a_reader_and_score_needs_nothing_else(folder: Path, detector: Path) -> None:
    saved = TextDetector.from_pretrained(detector).detector
    assert isinstance(saved, ReplacedWordsDetector)
    assert saved.truncate and saved.reader.max_length == 32
    shown = call("detect", "score", "--detector", str(detector), str(folder / "test.jsonl"))
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(rows) == 40
    wanted = saved.reader.log_odds([row["text"] for row in rows], truncate=True)
    assert [row["score_adversarial"] for row in rows] == pytest.approx(list(wanted), abs=1e-4)


def test_a_trained_reader_is_taken_as_it_is(folder: Path, detector: Path, tmp_path: Path) -> None:
    reader = str(detector / "detector" / "reader")
    result = call(*fit(folder, tmp_path / "out", "--reader", reader))
    assert "replaced needs no fitting; threshold" in result.stdout
    again = TextDetector.from_pretrained(tmp_path / "out").detector
    before = TextDetector.from_pretrained(detector).detector
    assert isinstance(again, ReplacedWordsDetector) and isinstance(before, ReplacedWordsDetector)
    assert again.reader.fingerprint == before.reader.fingerprint
    assert not (tmp_path / "out.run").exists()


def test_suspect_words_have_a_reader_too(folder: Path, detector: Path, tmp_path: Path) -> None:
    """One of their own, or a trained one; of the same texts and seed both are the same."""
    encoder = ["--encoder", str(folder / "encoder"), "--params", json.dumps(TRAINING)]
    result = call(*fit(folder, tmp_path / "own", *encoder, name="suspect"))
    assert "suspect fitted on 96 texts; threshold" in result.stdout, result.output
    reader = ["--reader", str(detector / "detector" / "reader")]
    result = call(*fit(folder, tmp_path / "given", *reader, name="suspect"))
    assert "suspect needs no fitting; threshold" in result.stdout, result.output
    own, given = (TextDetector.from_pretrained(tmp_path / name).detector for name in ("own", "given"))
    assert isinstance(own, SuspectWordsDetector) and isinstance(given, SuspectWordsDetector)
    assert own.reader.fingerprint == given.reader.fingerprint
    shown = call("detect", "score", "--detector", str(tmp_path / "own"), str(folder / "test.jsonl"))
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    words = own.suspects([row["text"] for row in rows])
    by_hand = [sum(word.score for word in of_text) for of_text in words]
    assert [row["score_adversarial"] for row in rows] == pytest.approx(by_hand, rel=1e-3, abs=1e-4)
    for path in (tmp_path / "own", detector):
        score = ["detect", "score", "--detector", str(path), str(folder / "test.jsonl")]
        plain, told = (
            [json.loads(line) for line in call(*score, *w).stdout.splitlines()] for w in ([], ["--words"])
        )
        for row, text, wanted in zip(told, plain, words, strict=True):
            found = row.pop("words")
            assert row == text
            assert [(w["word"], w["start"], w["end"]) for w in found] == [
                (w.word, w.start, w.end) for w in wanted
            ]
            assert [w["log_odds"] for w in found] == pytest.approx([w.log_odds for w in wanted], abs=1e-4)
            if path != detector:
                assert sum(w["score"] for w in found) == pytest.approx(
                    row["score_adversarial"], rel=1e-3, abs=1e-4
                )
                assert all(w["slope"] > 0 for w in found)
    call("detect", "fit", *options(folder), "--data", str(folder / "train.jsonl"), "--detector", "msp",
         "--out", str(tmp_path / "msp"))  # fmt: skip
    told = call("detect", "score", "--detector", str(tmp_path / "msp"), str(folder / "test.jsonl"), "--words")
    assert "holds a MSPDetector, which judges no words" in failure(told)
    said = failure(call(*fit(folder, tmp_path / "other", "--params", '{"words": 3}', name="suspect")))
    assert "suspect has no 'words'; it has truncate, max_length" in said


def test_the_report_has_a_row_for_it(folder: Path, detector: Path, tmp_path: Path) -> None:
    attack = ["--attacks", "deepwordbug", "--seeds", "1", "--n-boot", "0", "--detectors", "replaced,suspect"]
    start = ["evaluate", *options(folder), "--data", str(folder / "test.jsonl"), *attack]
    reader = str(detector / "detector" / "reader")
    result = call(*start, "--out", str(tmp_path / "report"), "--reader", reader)
    assert result.exit_code == 0, result.output
    overview = RobustnessReport.read(tmp_path / "report").section("detection").table("AUC of all detectors")
    assert [row[0] for row in overview.rows] == ["max-softmax", "replaced", "suspect"]
    assert len(AttackLog.read_csv(tmp_path / "report" / "logs" / "deepwordbug.csv")) == 40

    said = failure(call(*start, "--out", str(tmp_path / "other")))
    assert "replaced learns from clean texts: give --train, or a trained --reader" in said
    own = ["--train", str(folder / "train.jsonl"), "--encoder", str(folder / "encoder")]
    result = call(*start, "--out", str(tmp_path / "report"), *own)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report" / "reader" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["replaced", "suspect"])
def test_a_reader_learns_from_texts_of_one_class(folder: Path, tmp_path: Path, name: str) -> None:
    rows = [json.dumps({"text": text, "label": 1}) for text in toy_sentiment(60, seed=8)[0]]
    (tmp_path / "one.jsonl").write_text("\n".join(rows))
    start = ["evaluate", *options(folder), "--data", str(folder / "test.jsonl"), "--out", str(tmp_path / "o")]
    start += ["--attacks", "deepwordbug", "--seeds", "1", "--n-boot", "0", "--detectors", name]
    own = ["--train", str(tmp_path / "one.jsonl"), "--encoder", str(folder / "encoder")]
    result = call(*start, *own)
    assert result.exit_code == 0, result.output


def test_what_cannot_say_where_words_stand_is_refused_before_a_reader_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "train_reader", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(type(trained_bert()[1]), "is_fast", False)
    said = failure(call(*fit(folder, tmp_path / "out", name="suspect")))
    assert "does not say where tokens stand" in said
    start = ["evaluate", *options(folder), "--data", str(folder / "test.jsonl"), "--out", str(tmp_path / "o")]
    start += ["--attacks", "deepwordbug", "--detectors", "suspect", "--train", str(folder / "train.jsonl")]
    assert "does not say where tokens stand" in failure(call(*start))


def test_a_finished_run_of_another_training_is_refused_with_what_to_do(folder: Path, detector: Path) -> None:
    params = ["--params", json.dumps({**TRAINING, "learning_rate": 1e-3})]
    for change, said in (
        (["--encoder", str(folder / "encoder"), *params], "differs: settings"),
        (["--encoder", str(folder / "model"), "--params", json.dumps(TRAINING)], "differs: encoder"),
    ):
        told = failure(call(*fit(folder, detector, *change)))
        assert said in told and "detector.run" in told
        assert "remove this folder, or write elsewhere (output_dir, --out on the command line)" in told


def test_what_can_be_known_before_a_reader_of_the_report_is_trained_is_said_then(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "train_reader", lambda *_, **__: pytest.fail("trained"))
    start = ["evaluate", *options(folder), "--data", str(folder / "test.jsonl"), "--out", str(tmp_path / "o")]
    start += ["--attacks", "deepwordbug", "--train", str(folder / "train.jsonl")]
    for change, said in (
        (["--detectors", "replaced", "--fpr", "0.01"], "deepwordbug has 40 texts; a threshold"),
        (["--detectors", "replaced", "--explain", "xrai"], "explanations by xrai"),
        (["--detectors", "replaced,perplexity"], "'lm'"),
        (["--detectors", "replaced,wild"], "there is no detector 'wild'"),
    ):
        assert said in failure(call(*start, *change))
    assert not (tmp_path / "o").exists()


def test_what_is_missing_is_said_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encoder = ["--encoder", str(folder / "encoder")]
    for change, said in (
        (["--params", '{"copys": 3}'], "replaced has no 'copys'; it has truncate, max_length"),
        (["--params", '{"copies": 0}'], "copies is 0"),
        (["--params", '{"max_length": "9"}'], "max_length is '9'; expected an int"),
        (["--params", '{"truncate": "yes"}'], "truncate is 'yes'; expected true or false"),
        (["--encoder", str(folder / "none")], "no folder"),
        (["--reader", str(folder / "encoder")], "no trained reader"),
        ([*encoder, "--resources", str(tmp_path / "none")], "no folder of resources"),
    ):
        assert said in failure(call(*fit(folder, out, *change)))
        assert not out.exists()
    no_lexicon = tmp_path / "lexicon"
    no_lexicon.mkdir()
    with pytest.raises(FileNotFoundError, match=r"oewn_entries\.json is missing"):
        train_reader(["a film"], Resources((no_lexicon,), str(folder / "encoder")), output_dir=out)
    (no_lexicon / "counterfitted_neighbors.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"stopwords_en\.txt is missing"):
        train_reader(["a film"], Resources((no_lexicon,), str(folder / "encoder")), output_dir=out)
