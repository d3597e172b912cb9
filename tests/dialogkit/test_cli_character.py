"""``dialogkit character`` and a card as the character of other commands."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from dialogkit.cli import app
from dialogkit.pdp import Character, read_character, write_card
from tests.dialogkit.tiny import byte_tokenizer, tiny_model

TOM = Character("Old [red]Tom", ("I live in a barrel.", "Soup, always soup."), ("Where?", "What?"), id="tom")


def call(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def failure(result: Result) -> str:
    """The one line on standard error of a command that refused its input."""
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_character_goes_out_as_a_card_and_comes_back(tmp_path: Path) -> None:
    TOM.to_json(tmp_path / "tom.json")
    for name, options in (("card.json", ()), ("card.png", ("--spec", "3"))):
        done = call("character", "export", tmp_path / "tom.json", tmp_path / name, *options)
        assert done.exit_code == 0 and "Old [red]Tom is written to" in done.stdout, done.output
        done = call("character", "import", tmp_path / name, tmp_path / "again.json")
        assert done.exit_code == 0, done.output
        assert "Old [red]Tom: 2 lines, with the turns they answer" in done.stdout
        assert Character.from_json(tmp_path / "again.json") == TOM
    assert json.loads((tmp_path / "card.json").read_text())["spec"] == "chara_card_v2"
    assert b"ccv3" in (tmp_path / "card.png").read_bytes()


def test_a_card_is_put_into_a_picture(tmp_path: Path) -> None:
    write_card(Character("Ann", ("Hi.",)), tmp_path / "ann.png")
    done = call("character", "export", "captain", tmp_path / "new.png", "--image", tmp_path / "ann.png")
    assert done.exit_code == 0 and read_character(tmp_path / "new.png").id == "captain"


def test_lines_are_written_and_read(tmp_path: Path) -> None:
    TOM.to_json(tmp_path / "tom.json")
    assert call("character", "export", tmp_path / "tom.json", tmp_path / "lines.txt").exit_code == 0
    done = call("character", "import", tmp_path / "lines.txt", tmp_path / "bo.json", "--name", "Bo")
    assert "Bo: 2 lines, without their contexts" in done.stdout
    assert Character.from_json(tmp_path / "bo.json") == Character("Bo", TOM.utterances)


def test_show_prints_text_as_text(tmp_path: Path) -> None:
    write_card(TOM, tmp_path / "tom.png")
    shown = call("character", "show", tmp_path / "tom.png").stdout
    assert all(text in shown for text in ("name: Old [red]Tom", "id: tom", "Where?", "Soup, always soup."))
    assert json.loads(call("character", "show", tmp_path / "tom.png", "--json").stdout) == TOM.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "{bad}", "{out}.json"], "bad.png: the PNG file is cut off"),
        (["import", "{good}", "{out}.png"], "a character is written to a .json file"),
        (["export", "nobody", "{out}.json"], "no character is called 'nobody'"),
        (["export", "captain", "{out}.jpg"], "a card is a .json or a .png file"),
        (["export", "captain", "{out}.json", "--image", "{good}"], "only be written to a .png file"),
        (["export", "captain", "{out}.png", "--image", "{bad}"], "bad.png: the PNG file is cut off"),
        (["show", "{bad}"], "bad.png: the PNG file is cut off"),
        (["show", "{out}.png"], "No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    good, bad, out = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "out"
    write_card(TOM, good)
    bad.write_bytes(good.read_bytes()[:-12])
    filled = [argument.format(good=good, bad=bad, out=out) for argument in arguments]
    assert message in failure(call("character", *filled))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "good.png"]


def test_chat_takes_a_card_for_a_character(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["soup"], pad=True)
    tiny_model("llama", len(tokenizer)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    write_card(TOM, tmp_path / "tom.png", spec=3)
    options = ("--model", tmp_path / "lm", "--prompt", "zero-shot", "--seed", "1")
    done = call("chat", "-c", tmp_path / "tom.png", *options, stdin="Hello.\n")
    assert done.exit_code == 0 and done.stdout.startswith("Old [red]Tom: "), done.output


def test_a_failing_character_is_reported_and_ends_with_status_1(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["soup", "barrel"], pad=True)
    tiny_model("llama", len(tokenizer), max_length=1024).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "asked.txt").write_text("Hello there!\n\nWhat is for lunch?\n")
    lines = tmp_path / "tom.txt"
    lines.write_text("I live in a barrel.\nSoup, always soup.\nThe harbour is my home.\nMy knees creak.\n")
    options = ("--model", tmp_path / "lm", "--questions", tmp_path / "asked.txt", "--sessions", 1)
    files = ("--json", tmp_path / "report.json", "--junit", tmp_path / "report.xml")
    done = call("character", "test", lines, *options, *files, "--other", "captain", "--min-style", 1)
    assert done.exit_code == 1, done.output
    assert "FAILED  style" in done.stdout and "passed  leakage" in done.stdout
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["character"] == "tom" and record["passed"] is False and len(record["replies"]) == 2 * 4
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert [case.attrib["name"] for case in suite.iter("testcase") if case.find("failure") is not None] == [
        check["name"] for check in record["checks"] if not check["passed"]
    ]
    lenient = ("--min-style", -1, "--max-contradiction", 1, "--max-drift", 99, "--max-repeats", 1)
    done = call("character", "test", lines, *options, "--other", "captain", *lenient, "--max-leakage", 1)
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.stdout


def test_a_character_that_cannot_be_tested_is_one_line(tmp_path: Path) -> None:
    TOM.to_json(tmp_path / "tom.json")
    assert "has 2 lines" in failure(call("character", "test", tmp_path / "tom.json"))
    assert "min_style must be in" in failure(call("character", "test", "captain", "--min-style", 2))
    assert "nothing" in failure(call("character", "test", "captain", "--judge", tmp_path / "nothing"))
