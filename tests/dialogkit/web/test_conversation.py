"""A visitor's conversation, and what a visitor is told of errors."""

import logging

import pytest

from dialogkit.chat import MAX_MESSAGE, Reply
from dialogkit.dialogues import Turn
from dialogkit.generation import Candidate, EndpointError
from dialogkit.pdp import Character
from dialogkit.serving import Busy
from dialogkit.web.conversation import MAX_EXCHANGES, Conversation, friendly

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


def test_errors_are_told_in_plain_words_and_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert friendly(ValueError("the message is empty")) == "That did not work: the message is empty."
    assert friendly(ValueError("no!")).endswith(": no!")
    assert friendly(ValueError()).endswith(": ValueError.")
    assert len(friendly(ValueError("x" * 5000))) < 330
    secret = "http://10.0.0.7:8000/v1 refused"
    assert "10.0.0.7" not in friendly(EndpointError(secret, url="http://10.0.0.7:8000/v1"))
    assert "/root/models" not in friendly(FileNotFoundError("/root/models/x"))
    assert "try again" in friendly(Busy("64 requests are being answered or wait"))
    assert "took too long" in friendly(TimeoutError())
    assert secret in caplog.text and "/root/models/x" in caplog.text
