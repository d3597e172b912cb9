"""The command: from names of chatbots to a written report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dialogkit import bots
from dialogkit.cli import app

from .evaluation.stubs import Parrot, some_cases


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"context": case.context, "responses": case.references} for case in some_cases(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    return result.exit_code, result.output


def test_chatbots_are_compared_and_the_report_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def load(name: str, *, retriever: str | None = None) -> Parrot:
        asked.append((name, retriever))
        return Parrot(str.upper, name)

    monkeypatch.setattr(bots, "load_bot", load)
    (tmp_path / "words.txt").write_text("rain\n\nsnow\n")
    out = tmp_path / "out"
    code, said = run(
        "--bot", "one=runs/bot", "--bot", "character:captain", "--data", str(data), "--out", str(out),
        "--limit", "3", "--latency-contexts", "1", "--encoder", "none", "--clusters", "none",
        "--unsafe", str(tmp_path / "words.txt"), "--title", "My title", "--denominator", "tokens",
    )  # fmt: skip
    assert code == 0, said
    assert asked == [("runs/bot", "embedded"), ("character:captain", "embedded")]
    assert "dist-1" in said and "unsafe" in said and "captain" in said and "relevance" not in said
    report = json.loads((out / "report.json").read_text())
    assert report["title"] == "My title" and report["facts"]["contexts"].startswith("3 ")
    assert {path.name for path in (out / "replies").iterdir()} == {"one.jsonl", "captain.jsonl"}
    assert (out / "report.html").is_file() and (out / "comparison.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bot", "a=x", "--bot", "a=y"), "a name of its own"),
        (("--bot", "character:nobody"), "no character is called"),
        (("--bot", "lm:embedded", "--style", "nolabel"), "MODEL:LABEL"),
        (("--bot", "lm:embedded", "--limit", "0"), "Usage"),
    ],
)
def test_a_wrong_argument_is_explained(
    data: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, output = run(*arguments, "--data", str(data), "--out", str(tmp_path / "out"))
    assert code == 2 and said in output and "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_empty_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    code, output = run("--bot", "x", "--data", str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "out"))
    assert code == 2 and "holds no contexts" in output
    code, output = run("--bot", "x", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out"))
    assert code == 2 and "Invalid value for '--data'" in output


def test_names() -> None:
    assert bots.named_bots(["runs/my-bot/", "character:captain", "b=lm:embedded"]) == {
        "my-bot": "runs/my-bot/",
        "captain": "character:captain",
        "b": "lm:embedded",
    }
