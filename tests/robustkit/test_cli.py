"""The command line, on a tiny classifier and resources that are written for the test."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from robustkit.attacks.logs import AttackLog
from robustkit.classifiers import TextClassifier
from robustkit.cli import app
from robustkit.detection import TextDetector
from robustkit.evaluation import RobustnessReport
from robustkit.evaluation.inputs import DETECTORS, RECIPES
from tests.robustkit.tiny import SYNONYMS, toy_sentiment, trained_bert
from trainkit.report import Shades

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("bad", "good")


@dataclass(frozen=True)
class Files:
    """What the commands are given."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / name.replace("_", "."))

    @property
    def attack(self) -> list[str]:
        return [
            "attack",
            "--model",
            self.model,
            "--data",
            self.test_jsonl,
            "--recipe",
            "pwws",
            *self.resources,
        ]

    @property
    def resources(self) -> list[str]:
        return ["--resources", str(self.folder / "lexicon")]

    @property
    def fit(self) -> list[str]:
        return ["detect", "fit", "--model", self.model, "--data", self.train_jsonl]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("cli")
    model, tokenizer = trained_bert()
    model.save_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder / "model")
    for name, size, seed in (("train", 120, 5), ("test", 40, 6)):
        rows = zip(*toy_sentiment(size, seed=seed), strict=True)
        lines = [json.dumps({"text": text, "label": NAMES[label]}) for text, label in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    lexicon = folder / "lexicon"
    lexicon.mkdir()
    (lexicon / "stopwords_en.txt").write_text("the\nand\n")
    senses = {word: {"a": [[word, "key"]]} for word in SYNONYMS}
    (lexicon / "oewn_entries.json").write_text(json.dumps({"entries": senses, "forms": {}}))
    synsets = [json.dumps({"id": word, "members": [word, *others]}) for word, others in SYNONYMS.items()]
    (lexicon / "oewn_synsets.jsonl").write_text("\n".join(synsets))
    return Files(folder)


@pytest.fixture(scope="module")
def log(files: Files) -> str:
    path = files.log_csv
    result = call(*files.attack, "--out", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def detector(files: Files) -> str:
    path = str(files.folder / "detector")
    params = '{"n_components": 4, "covariance": "empirical"}'
    result = call(*files.fit, "--detector", "rde", "--out", path, "--params", params)
    assert result.exit_code == 0, result.output
    assert re.search(r"rde fitted on 96 texts; threshold \S+ from 24 clean texts; saved in", result.stdout)
    return path


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def failure(result: Result) -> str:
    """The error line on standard error of a command that refused its input."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    return line


def test_help_names_every_command_and_version_is_shown() -> None:
    assert {"attack", "detect", "evaluate"} <= set(re.findall(r"\w+", call("--help").stdout))
    assert {"fit", "score"} <= set(re.findall(r"\w+", call("detect", "--help").stdout))
    assert re.fullmatch(r"robustkit (\S+|\(not installed\))\n", call("--version").stdout)


def test_help_loads_no_model_library() -> None:
    code = (
        "import sys; from robustkit.cli import app; "
        "from typer.testing import CliRunner; CliRunner().invoke(app, ['evaluate', '--help']); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_choice_of_recipes_is_the_evaluations() -> None:
    shown = call("attack", "--model", "m", "--data", "d", "--out", "o.csv", "--recipe", "none")
    assert shown.exit_code == 2
    assert all(name in shown.stderr for name in RECIPES)


# Attack.


def test_attack_writes_a_log_and_prints_its_summary(files: Files, log: str) -> None:
    found = AttackLog.read_csv(log)
    assert len(found) == 40
    assert found.name == "pwws"
    again = call(*files.attack, "--out", log, "--json")
    summary = json.loads(again.stdout)
    assert summary["successful"] == found.summary().successful > 0
    assert summary["accuracy_under_attack"] == pytest.approx(found.summary().accuracy_under_attack)
    shown = call(*files.attack, "--out", log).stdout
    assert f"successful             {summary['successful']}\n" in shown


def test_attack_takes_a_sample_and_a_goal(files: Files, tmp_path: Path) -> None:
    far = ["--sample", "9", "--seed", "3", "--goal-score", "0.9", "--query-budget", "200"]
    assert call(*files.attack, *far, "--out", str(tmp_path / "far.csv")).exit_code == 0
    found = AttackLog.read_csv(tmp_path / "far.csv")
    assert len(found) == 9
    assert all(r.perturbed_score >= 0.9 for r in found if r.result_type == "Successful")
    assert all(r.num_queries <= 200 for r in found)


def test_ctrl_c_is_said_in_a_line_and_the_log_goes_on(
    files: Files, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.csv"
    original = TextClassifier.logits
    calls = []

    def stop(self: TextClassifier, texts: list[str]) -> object:
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return original(self, texts)

    monkeypatch.setattr(TextClassifier, "logits", stop)
    result = call(*files.attack, "--out", str(path), "--lock-step", "4")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    monkeypatch.undo()
    done = len(AttackLog.read_csv(path))
    assert 0 < done < 40
    assert call(*files.attack, "--out", str(path)).exit_code == 0
    again, whole = AttackLog.read_csv(path), AttackLog.read_csv(log)
    # Scores differ in their last bits with the batch a text is in.
    assert [(r.perturbed_text, r.num_queries) for r in again] == [
        (r.perturbed_text, r.num_queries) for r in whole
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--out", "log.parquet"], "expected a name that ends in .csv"),
        (["--data", "{folder}/none.jsonl"], "no file '{folder}/none.jsonl'"),
        (
            ["--data", "{folder}/wrong.jsonl"],
            "example 2: label 'ugly' is unknown; the classifier knows 'bad'",
        ),
        (["--data", "{folder}/column.jsonl"], "no column 'text'; there are 'sentence'"),
        (["--data", "{folder}/empty.jsonl"], "the text is empty"),
        (["--model", "{folder}/nothing"], "nothing"),
        (["--resources", "{folder}/nothing"], "no folder of resources '{folder}/nothing'"),
        (["--recipe", "a2t"], "the resource counterfitted_neighbors.json is missing"),
        (["--goal-score", "2"], "goal_score is 2.0"),
        (["--sample", "41"], "--sample is 41"),
    ],
)
def test_bad_input_of_attack_is_one_line(files: Files, tmp_path: Path, change: list[str], said: str) -> None:
    (files.folder / "wrong.jsonl").write_text(
        '{"text": "x", "label": "bad"}\n{"text": "y", "label": "ugly"}\n'
    )
    (files.folder / "column.jsonl").write_text('{"sentence": "x", "label": "bad"}\n')
    (files.folder / "empty.jsonl").write_text('{"text": " ", "label": "bad"}\n')
    change = [part.format(folder=files.folder) for part in change]
    line = failure(call(*files.attack, "--out", str(tmp_path / "log.csv"), *change))
    assert said.format(folder=files.folder) in line
    assert not (tmp_path / "log.csv").exists()


def test_a_log_of_another_run_is_refused(files: Files, log: str) -> None:
    assert "belongs to another run" in failure(call(*files.attack, "--out", log, "--seed", "5"))


# Detect.


def test_score_prints_json_lines(files: Files, detector: str) -> None:
    texts = [json.loads(line)["text"] for line in Path(files.test_jsonl).read_text().splitlines()]
    wanted = TextDetector.from_pretrained(detector).predict(texts)
    shown = call("detect", "score", "--detector", detector, files.test_jsonl)
    assert shown.exit_code == 0, shown.output
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["adversarial"] for row in rows] == [result.is_adversarial for result in wanted]
    assert [row["score_adversarial"] for row in rows] == [result.score for result in wanted]
    assert [row["p_value"] for row in rows] == [result.p_value for result in wanted]
    assert {row["label"] for row in rows} == set(NAMES)


def test_score_reads_lines_from_standard_input(files: Files, detector: str) -> None:
    model = ["--model", files.model]
    text = 'A "good" film \u202e\x1b[31m!'
    shown = call("detect", "score", "--detector", detector, *model, stdin=f"{text}\n\n  \nawful plot\n")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["text"] for row in rows] == [text, "awful plot"]
    assert "\x1b" not in shown.stdout and "\u202e" not in shown.stdout
    assert call("detect", "score", "--detector", detector, stdin="").stdout == ""


def test_fit_takes_validation_texts_and_the_false_positive_rate(files: Files, tmp_path: Path) -> None:
    out = str(tmp_path / "msp")
    result = call(
        *files.fit, "--detector", "msp", "--validation", files.test_jsonl, "--fpr", "0.25", "--out", out
    )
    assert "msp needs no fitting; threshold" in result.stdout and "from 40 clean texts" in result.stdout
    saved = TextDetector.from_pretrained(out).detector
    assert saved.fpr_ == 0.25
    assert len(saved.clean_scores_) == 40


def test_fit_learns_from_an_attack_log_where_a_detector_needs_it(
    files: Files, log: str, tmp_path: Path
) -> None:
    wdr = [*files.fit, "--detector", "wdr", "--out", str(tmp_path / "wdr")]
    assert "learns from adversarial examples" in failure(call(*wdr))
    result = call(*wdr, "--adversarial", log, "--params", '{"n_trees": 3}')
    assert result.exit_code == 0, result.output
    scored = call(
        "detect", "score", "--detector", str(tmp_path / "wdr"), "--model", files.model, stdin="bad film"
    )
    assert len(scored.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--detector", "rede"], f"no detector 'rede'; there are {', '.join(DETECTORS)}"),
        (["--data", "{folder}/single.jsonl"], "holds the class 'bad' only"),
        (["--data", "{folder}/few.jsonl"], "needs at least 9 clean texts, there are 2"),
        (["--data", "{folder}/none.jsonl"], "no file"),
        (["--validation", "{folder}/none.txt"], "no file"),
        (["--params", "{{"], "--params is no JSON"),
        (["--params", "[]"], "--params is a JSON list"),
        (["--params", '{{"components": 3}}'], "'components'"),
        (["--detector", "perplexity"], "'lm'"),
        (["--detector", "fgws"], "a lexicon, neighbours, or both"),
        (["--fpr", "1.5"], "--fpr is 1.5"),
        (["--out", "{folder}/model"], "is no detector's folder"),
    ],
)
def test_bad_input_of_fit_is_one_line(files: Files, tmp_path: Path, change: list[str], said: str) -> None:
    rows = [json.dumps({"text": f"film {i}", "label": "bad"}) for i in range(60)]
    (files.folder / "single.jsonl").write_text("\n".join(rows))
    (files.folder / "few.jsonl").write_text("\n".join([*rows[:9], json.dumps({"text": "x", "label": 1})]))
    change = [part.format(folder=files.folder) for part in change]
    start = [*files.fit, "--detector", "rde", "--out", str(tmp_path / "out")]
    assert said in failure(call(*start, *change))
    assert not (tmp_path / "out").exists()


def test_bad_input_of_score_is_one_line(files: Files, detector: str, tmp_path: Path) -> None:
    assert "no file" in failure(call("detect", "score", "--detector", detector, str(tmp_path / "none.txt")))
    assert "nothing" in failure(call("detect", "score", "--detector", str(tmp_path / "nothing"), stdin="x"))
    other = tmp_path / "other"
    model, tokenizer = trained_bert(seed=1)
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    refused = call("detect", "score", "--detector", detector, "--model", str(other), stdin="x")
    assert "another classifier" in failure(refused)


# Evaluate.


@pytest.mark.parametrize(
    ("idle", "said"),
    [
        (["--mixed-precision", "bf16"], "--mixed-precision says how --threat works"),
        (["--pgd-steps", "50"], "--pgd-steps says how --threat works"),
        (["--queries", "7"], "--queries says how --threat works"),
        (["--explain-sample", "9"], "--explain-sample says how --explain works"),
        (["--threat", "token:0.1", "--explain-examples", "2"], "--explain-examples says how --explain works"),
    ],
)
def test_settings_of_what_is_not_evaluated_are_refused(
    files: Files, tmp_path: Path, idle: list[str], said: str
) -> None:
    start = ["--model", files.model, "--data", files.test_jsonl, "--out", str(tmp_path / "o"), "-a", "pwws"]
    assert said in failure(call("evaluate", *start, *files.resources, *idle))
    assert not (tmp_path / "o").exists()


def test_evaluate_writes_the_report_and_the_script_is_the_same(
    files: Files, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    arguments = ["--model", files.model, "--data", files.test_jsonl, "--out", str(out), "--attacks", "pwws"]
    arguments += ["--detectors", "energy,margin", "--seeds", "1", "--n-boot", "10", *files.resources]
    arguments += ["--log", f"given={log}"]
    result = call("evaluate", *arguments, "--far")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "report.html")
    report = RobustnessReport.read(out)
    under_attack = report.section("attacks").table("Accuracy under attack")
    assert [row[0] for row in under_attack.rows] == ["pwws", "pwws-far", "given"]
    assert under_attack.rows[0][1:] == under_attack.rows[2][1:]
    overview = report.section("detection").table("AUC of all detectors")
    assert [row[0] for row in overview.rows] == ["max-softmax", "energy", "margin"]
    assert report.facts["data"] == "test.jsonl"
    script = str(ROOT / "scripts" / "evaluate_robustness.py")
    shorter = [argument for argument in arguments if argument not in ("--detectors", "energy,margin")]
    monkeypatch.setattr(sys, "argv", [script, *shorter])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0
    again = RobustnessReport.read(out)
    assert [section.key for section in again.sections] == ["accuracy", "attacks", "examples"]
    assert again.section("attacks").table("Accuracy under attack").rows[0] == under_attack.rows[0]


def test_evaluate_explains_without_an_attack_and_with_a_log(files: Files, log: str, tmp_path: Path) -> None:
    start = [
        "evaluate",
        "--model",
        files.model,
        "--data",
        files.test_jsonl,
        "--n-boot",
        "0",
        "--sample",
        "12",
        "--explain",
    ]
    for extra, maps in (([], "Word maps"), (["--log", f"given={log}"], "Word maps: given, altered texts")):
        out = tmp_path / maps
        assert call(*start, "gradient_times_input", "--out", str(out), *extra).exit_code == 0
        section = RobustnessReport.read(out).section("explanations")
        assert section.table("Deletion").rows[0][2] == 12
        assert [part.title for part in section.parts if isinstance(part, Shades)] == [maps]
        assert 'class="shade"' in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "nothing to evaluate: give --attacks or --log"),
        (["--attacks", "pwwws"], "no recipe 'pwwws'"),
        (["--log", "log.csv"], "expected NAME=FILE"),
        (["--log", "x={folder}/none.csv"], "none.csv"),
        (["--attacks", "deepwordbug", "--detectors", "rde"], "train is empty"),
        (["--attacks", "deepwordbug", "--detectors", "rede"], "no detector 'rede'"),
        (["--attacks", "deepwordbug", "--fpr", "0"], "fpr is 0.0"),
        (["--attacks", "deepwordbug", "--explain", "wild"], "method is 'wild'"),
        (["--attacks", "deepwordbug", "--train", "{folder}/none.jsonl"], "no file"),
    ],
)
def test_bad_input_of_evaluate_is_one_line(
    files: Files, tmp_path: Path, change: list[str], said: str
) -> None:
    change = [part.format(folder=files.folder) for part in change]
    start = ["evaluate", "--model", files.model, "--data", files.test_jsonl, "--out", str(tmp_path / "out")]
    assert said in failure(call(*start, *files.resources, *change))
    assert not (tmp_path / "out").exists()
