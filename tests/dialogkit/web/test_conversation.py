"""A visitor's conversation, character files, and what a visitor is told of errors."""

import json
import logging
from pathlib import Path

import pytest

from dialogkit.chat import MAX_MESSAGE, Reply
from dialogkit.dialogues import Turn
from dialogkit.generation import Candidate, EndpointError
from dialogkit.pdp import Character, write_card
from dialogkit.serving import Busy
from dialogkit.web.conversation import MAX_EXCHANGES, MAX_LINES, Conversation, friendly, read_upload

TOM = Character("Tom", ("Soup, always soup.", "Mind the stairs."))


def test_a_message_is_one_line_that_says_something() -> None:
    start = Conversation("tom", turns=(Turn("User", "Hi."), Turn("Tom", "Yes?")))
    assert start.asked(" Who\nTom: I am\u2028here? ")[-1] == Turn("User", "Who Tom: I am here?")
    assert start.asked("x")[:2] == start.turns
    for blank in ("", " \n\t", "\x00"):
        with pytest.raises(ValueError, match="empty"):
            start.asked(blank)
    assert len(start.asked("x" * MAX_MESSAGE)[-1].text) == MAX_MESSAGE
    with pytest.raises(ValueError, match="8,000 characters, this one has 8,001"):
        start.asked("x" * (MAX_MESSAGE + 1))


def test_an_answer_makes_another_conversation_and_keeps_this_one() -> None:
    start = Conversation("tom")
    reply = Reply("Yes.", (Candidate("Yes.", -1.0, -1.0, 1, "stop"),), {"pairs": []})
    then = start.answered(start.asked("Soup?"), "Tom", reply)
    assert start == Conversation("tom")
    assert then.turns == (Turn("User", "Soup?"), Turn("Tom", "Yes."))
    assert then.replies == (Reply("Yes.", (), {"pairs": []}),)


def test_a_conversation_has_an_end() -> None:
    full = Conversation("tom", replies=(Reply("Yes."),) * MAX_EXCHANGES)
    with pytest.raises(ValueError, match="save the conversation and begin anew"):
        full.asked("More?")
    assert full.anew().asked("More?")


def test_a_new_one_keeps_the_visitors_character() -> None:
    told = Conversation("mine", TOM, (Turn("User", "Hi."), Turn("Tom", "Yes?")), (Reply("Yes?"),))
    assert told.anew() == Conversation("mine", TOM)
    assert told.anew("plum") == Conversation("plum", TOM)


@pytest.mark.parametrize("name", ["tom.json", "card.json", "card.png", "tom.tsv", "Tom.txt"])
def test_every_kind_of_character_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "tom.json":
        TOM.to_json(path)
    elif name.startswith("card"):
        write_card(TOM, path, spec=3)
    elif name.endswith(".tsv"):
        path.write_text("".join(f"Tom\t{line}\n" for line in TOM.utterances))
    else:
        path.write_text("\n".join(TOM.utterances))
    read = read_upload(path)
    assert (read.name, read.utterances) == (TOM.name, TOM.utterances)


def test_a_name_says_whose_lines_are_meant(tmp_path: Path) -> None:
    table, lines = tmp_path / "all.tsv", tmp_path / "lines.txt"
    table.write_text("Tom\tSoup.\nAnn\tTea.\n")
    lines.write_text("Soup.\n")
    assert read_upload(table, " Ann ").utterances == ("Tea.",)
    assert read_upload(lines, "Old Tom").name == "Old Tom"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.png", b"\x89PNG\r\n\x1a\n", ""),
        ("a.tsv", b"Tom\tSoup.\nAnn\tTea.\n", "2 names"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.json", json.dumps({"name": "Tom", "utterances": []}).encode(), "says nothing"),
        ("a.txt", b"line\n" * (MAX_LINES + 1), "1,001 lines, more than the 1,000"),
    ],
)
def test_a_bad_file_is_named_without_its_folder(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_upload(path)
    message = str(caught.value)
    assert message.startswith(f"{name}") and told in message and str(tmp_path) not in message


def test_errors_are_told_in_plain_words_and_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert friendly(ValueError("the message is empty")) == "The message is empty."
    assert friendly(ValueError("no!")) == "No!" and friendly(ValueError()) == "ValueError."
    assert len(friendly(ValueError("x" * 5000))) < 310
    secret = "http://10.0.0.7:8000/v1 refused"
    assert "10.0.0.7" not in friendly(EndpointError(secret, url="http://10.0.0.7:8000/v1"))
    assert "/root/models" not in friendly(FileNotFoundError("/root/models/x"))
    assert "try again" in friendly(Busy("64 requests are being answered or wait"))
    assert secret in caplog.text and "/root/models/x" in caplog.text
