"""What happens when the page is used, without a browser."""

import asyncio
import json
from collections.abc import Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from fastapi.testclient import TestClient

from dialogkit.chat import ChatSession
from dialogkit.dialogues import Turn
from dialogkit.pdp import Character
from dialogkit.serving import Engine, ServerSettings, create_app
from dialogkit.web import chat_page, mount_chat
from dialogkit.web.cast import UPLOADED, Cast
from dialogkit.web.confined import MAX_REQUEST
from dialogkit.web.conversation import Conversation
from dialogkit.web.evidence import NOTHING_YET
from dialogkit.web.page import _Page
from dialogkit.web.uploads import MAX_UPLOAD
from tests.dialogkit.web.people import WholeBot, WordsLM, pdp

HOSTILE = "<b>bold</b> & **strong**"
PATIENCE = 60.0


@cache
def built() -> _Page:
    page = _Page(Cast({"plum": pdp()[0], "whole": WholeBot()}), Engine(), PATIENCE)
    page.build()
    return page


def opened(says: str = "Aye, so it is.") -> tuple[_Page, WordsLM]:
    """A page and the model of its first bot; the pages of all tests share what they look like."""
    bot, model = pdp(says)
    page = copy(built())
    page.cast, page.engine = Cast({"plum": bot, "whole": WholeBot()}), Engine()
    return page, model


def send(page: _Page, text: str, conversation: Conversation, **controls: Any) -> list[dict[Any, Any]]:
    async def run() -> list[dict[Any, Any]]:
        matcher, temperature = controls.get("matcher"), controls.get("temperature", 1.0)
        return [step async for step in page.send(text, matcher, temperature, conversation)]

    return asyncio.run(run())


def texts(step: dict[Any, Any], page: _Page) -> list[str]:
    return [message["content"] for message in step[page.chat]]


def test_a_reply_comes_piece_by_piece_and_then_with_its_evidence() -> None:
    page, _ = opened()
    steps = send(page, "Will it rain?", Conversation("plum"))
    shown = [texts(step, page)[-1] for step in steps]
    assert shown == ["…", "Aye,", "Aye, so", "Aye, so it", "Aye, so it is.", "Aye, so it is."]
    assert [message["role"] for message in steps[0][page.chat]] == ["user", "assistant"]
    assert steps[0][page.message].stop_btn and steps[0][page.message].value == ""
    assert steps[-1][page.message].submit_btn and not steps[-1][page.message].stop_btn
    done = steps[-1][page.conversation]
    assert done.turns == (Turn("User", "Will it rain?"), Turn("Mrs Plum", "Aye, so it is."))
    for pair in done.replies[0].evidence["pairs"]:
        assert pair["context"] in steps[-1][page.why]
    assert all(page.conversation not in step for step in steps[:-1])


def test_the_next_message_knows_the_conversation() -> None:
    page, model = opened("Aye.")
    first = send(page, "Will it rain?", Conversation("plum"))[-1][page.conversation]
    then = send(page, "Sure?", first)[-1][page.conversation]
    assert [turn.text for turn in then.turns] == ["Will it rain?", "Aye.", "Sure?", "Aye."]
    assert "User: Will it rain?\nMrs Plum: Aye.\nUser: Sure?\nMrs Plum:" in str(model.prompts[-1])


def test_conversations_at_once_stay_apart() -> None:
    page, model = opened("Aye, so it is.")

    async def talk(text: str) -> Conversation:
        steps = [step async for step in page.send(text, None, 1.0, Conversation("plum"))]
        found: Conversation = steps[-1][page.conversation]
        return found

    async def both() -> list[Conversation]:
        return await asyncio.gather(*(talk(f"Visitor {i}?") for i in range(5)))

    for i, conversation in enumerate(asyncio.run(both())):
        assert conversation.turns == (Turn("User", f"Visitor {i}?"), Turn("Mrs Plum", "Aye, so it is."))
    assert all(str(prompt).count("Visitor") == 1 for prompt in model.prompts)


def test_the_controls_reach_the_model() -> None:
    page, model = opened()
    last = send(page, "Rain?", Conversation("plum"), matcher="static", temperature=0.25)[-1]
    assert last[page.conversation].replies[0].evidence["matcher"] == "static"
    assert model.configs[-1].temperature == 0.25 and model.configs[-1].do_sample
    send(page, "Rain?", Conversation("plum"), temperature=0)
    assert not model.configs[-1].do_sample


def test_a_bot_that_cannot_stream_answers_at_once() -> None:
    page, _ = opened()
    steps = send(page, "hello", Conversation("whole"))
    assert [texts(step, page)[-1] for step in steps] == ["…", "You said hello", "You said hello"]
    assert "score <b>1.250</b>" in steps[-1][page.why]


def test_texts_are_shown_as_they_are() -> None:
    page, _ = opened("<i>Aye</i>, so")
    steps = send(page, HOSTILE, Conversation("plum"))
    assert texts(steps[-1], page) == [
        "&lt;b&gt;bold&lt;/b&gt; &amp; **strong**",
        "&lt;i&gt;Aye&lt;/i&gt;, so",
    ]
    assert steps[-1][page.conversation].turns[0].text == HOSTILE


@pytest.mark.parametrize(
    ("who", "text", "told"),
    [
        ("plum", "   ", "the message is empty."),
        ("whole", "fail", "that is too hard."),
        ("nobody", "hello", "nobody of that name can be talked with here."),
    ],
)
def test_an_error_is_told_and_the_message_given_back(who: str, text: str, told: str) -> None:
    page, _ = opened()
    before = Conversation(who, turns=(Turn("User", "Hi."), Turn("X", "Yes?")))
    last = send(page, text, before)[-1]
    assert last[page.notice] == f'<p role="alert">That did not work: {told}</p>'
    assert last[page.message].value == text and last[page.message].submit_btn
    assert texts(last, page) == ["Hi.", "Yes?"] and page.conversation not in last


def test_an_inner_error_is_told_without_its_text() -> None:
    page, _ = opened()
    last = send(page, "break", Conversation("whole"))[-1]
    assert "went wrong on the machine" in last[page.notice] and "secret" not in last[page.notice]
    assert last[page.message].value == "break" and last[page.message].submit_btn


def test_a_reply_that_takes_too_long_is_given_up() -> None:
    page, model = opened()
    page.timeout = 0.05
    model.go.clear()  # after the first word
    try:
        *_, said, last = send(page, "Rain?", Conversation("plum"))
    finally:
        model.go.set()
    assert texts(said, page) == ["Rain?", "Aye,"] or texts(said, page) == ["Rain?", "…"]  # on a slow machine
    assert "took too long" in last[page.notice] and last[page.chat] == []
    assert last[page.message].value == "Rain?" and last[page.message].submit_btn
    assert page.engine.active == 0 and page.conversation not in last
    page.timeout = PATIENCE
    assert send(page, "Rain?", Conversation("plum"))[-1][page.conversation].turns


def test_the_page_has_the_servers_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Page] = []

    class Noted(_Page):
        def build(self) -> Any:
            made.append(self)
            return super().build()

    monkeypatch.setattr("dialogkit.web.page._Page", Noted)
    app = create_app({"whole": WholeBot()}, ServerSettings(timeout=7))
    mount_chat(app)
    assert [page.timeout for page in made] == [7] and made[0].engine is app.state.engine


def test_a_reply_without_words_is_an_error() -> None:
    page, _ = opened(" ")
    last = send(page, "Rain?", Conversation("plum"))[-1]
    assert "Mrs Plum found no words" in last[page.notice] and last[page.chat] == []


def test_a_full_engine_is_told() -> None:
    page, _ = opened()
    page.engine.active = page.engine.max_requests
    assert "Too many people" in send(page, "Rain?", Conversation("plum"))[-1][page.notice]


def test_giving_up_frees_the_engine() -> None:
    page, model = opened()
    model.go.clear()

    async def run() -> None:
        steps = page.send("Rain?", None, 1.0, Conversation("plum"))
        await anext(steps)
        await anext(steps)
        assert page.engine.active == 1
        await steps.aclose()
        assert page.engine.active == 0

    try:
        asyncio.run(run())
    finally:
        model.go.set()


def test_another_bot_and_a_new_conversation_begin_empty() -> None:
    page, _ = opened()
    talked = Conversation("plum", turns=(Turn("User", "Hi."), Turn("Mrs Plum", "Yes?")))
    for change in (page.pick("whole", talked), page.forget(talked)):
        assert change[page.chat] == [] and change[page.why] == NOTHING_YET
        assert change[page.conversation].turns == ()
    met = page.pick("whole", talked)
    assert met[page.conversation].who == "whole" and "<h1>whole</h1>" in met[page.heading]
    assert not met[page.matcher].visible and not met[page.temperature].visible and met[page.fixed].visible
    refused = page.pick("../secret", talked)
    assert "nobody of that name" in refused[page.notice] and refused[page.who].value == "plum"
    assert page.conversation not in refused


def test_an_uploaded_character_can_be_talked_with(tmp_path: Path) -> None:
    page, model = opened()
    file = tmp_path / "tom.json"
    who = Character("Tom <b>", ("Soup.",), gold_contexts=("Lunch?",), summary="A <i>cook</i>.")
    who.to_json(file)
    met = page.add(str(file), "", Conversation("plum"))
    assert met[page.conversation] == Conversation(UPLOADED, who)
    assert ("Tom <b> (your character file)", UPLOADED) in met[page.who].choices
    assert met[page.who].value == UPLOADED and "Tom &lt;b&gt;" in met[page.heading]
    assert "A &lt;i&gt;cook&lt;/i&gt;." in met[page.heading]
    assert ("gold", "gold") in met[page.matcher].choices
    last = send(page, "Rain?", met[page.conversation], matcher="gold")[-1]
    assert last[page.conversation].turns[-1].speaker == "Tom <b>"
    assert "User: Lunch?\nTom <b>: Soup." in str(model.prompts[-1])
    back = page.pick("plum", last[page.conversation])
    assert (f"{who.name} ({UPLOADED})", UPLOADED) in back[page.who].choices


def test_visitors_who_upload_the_same_file_do_not_need_each_other(tmp_path: Path) -> None:
    # Gradio puts files of the same name and content in one place.
    page, _ = opened()
    file = tmp_path / "tom.json"
    Character("Tom", ("Soup.",)).to_json(file)
    ann = page.add(str(file), "", Conversation("plum"))[page.conversation]
    bob = page.add(str(file), "", Conversation("plum"))[page.conversation]
    file.unlink()
    ann = page.forget(ann)[page.conversation]
    ann = page.pick("plum", ann)[page.conversation]
    for who, name in ((bob, "Tom"), (page.pick(UPLOADED, ann)[page.conversation], "Tom"), (ann, "Mrs Plum")):
        assert send(page, "Rain?", who)[-1][page.conversation].turns[-1].speaker == name
    late = page.add(str(file), "", bob)
    assert set(late) == {page.notice, page.file}
    assert "tom.json is not here any more; please choose it again" in late[page.notice]
    assert str(tmp_path) not in late[page.notice]


def test_a_bad_upload_changes_nothing(tmp_path: Path) -> None:
    page, _ = opened()
    file = tmp_path / "<img>.json"
    file.write_text("{")
    change = page.add(str(file), "", Conversation("plum"))
    assert set(change) == {page.notice, page.file}
    assert "&lt;img&gt;.json" in change[page.notice] and str(tmp_path) not in change[page.notice]
    file.write_text(json.dumps({"name": "User", "utterances": ["Hi."]}))
    assert "must not be called like the user" in page.add(str(file), "", Conversation("plum"))[page.notice]


def test_a_click_shows_the_evidence_of_that_reply() -> None:
    page, _ = opened()
    first = send(page, "Will it rain?", Conversation("plum"))[-1][page.conversation]
    talked = send(page, "And snow?", first)[-1][page.conversation]
    for place, asked in enumerate(("Will it rain?", "Will it rain?", "And snow?", "And snow?")):
        change = page.explain(talked, place)
        assert f'dk-quote">{asked}<' in change[page.why] and change[page.panel].open
    for place in (-1, 4, 5):  # what waits for its reply, or was made up
        assert page.explain(talked, place)[page.why] == NOTHING_YET


def test_the_saved_conversation_can_be_read_again() -> None:
    page, _ = opened()
    bot, _ = pdp()
    turns = (Turn("User", HOSTILE), Turn("Mrs Plum", "Yes?"))
    saved = page.export(Conversation("plum", turns=turns))
    assert ChatSession.from_json(saved, bot).history == list(turns)


def test_the_page_sends_nothing_home_and_offers_no_interface() -> None:
    bot, _ = pdp()
    built = chat_page({"plum": bot})
    assert not built.analytics_enabled and not built.api_open
    assert all(function.api_visibility == "private" for function in built.fns.values())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app({"plum": pdp()[0]}, ServerSettings(api_key="secret"))
    mount_chat(app)
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as client:
        yield client


def test_the_page_stands_on_the_server_behind_its_key(client: TestClient) -> None:
    asked = client.get("/", follow_redirects=False)
    assert asked.status_code == 307 and asked.headers["location"] == "/chat/"
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert "Content-Security-Policy" in client.get("/chat/").text
    assert client.get("/v1/models").json()["data"][0]["id"] == "plum"
    for path in ("/", "/chat/", "/chat/config", "/chat/gradio_api/info"):
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/chat/", headers={"Authorization": ""}, auth=("me", "secret")).status_code == 200


def test_the_server_gives_away_no_file_and_takes_no_large_one(client: TestClient, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("A secret line.")
    upload = next(
        entry["id"]
        for entry in client.get("/chat/config").json()["dependencies"]
        if any(trigger == "upload" for _, trigger in entry["targets"])
    )
    for forged in (str(victim), "http://127.0.0.1:9/victim.txt"):
        file = {"path": forged, "meta": {"_type": "gradio.FileData"}}
        data = {"data": [file, "", None], "fn_index": upload, "session_hash": "forger"}
        for path in ("queue/join", "run/add"):
            assert client.post(f"/chat/gradio_api/{path}", json=data).status_code == 400
    assert client.get(f"/chat/gradio_api/file={victim}").status_code == 403
    large = {"files": ("large.txt", b"x" * (MAX_UPLOAD + 1))}
    assert client.post("/chat/gradio_api/upload", files=large).status_code == 413


def test_nothing_of_gradio_is_open_but_what_the_page_uses(client: TestClient) -> None:
    closed = ("file=https://example.org/x.png", "file/x", "proxy=https://example.org", "call/add")
    more = ("deep_link", "process_recording", "component_server", "stream/x", "login", "monitoring/summary")
    for path in (*closed, *more):
        for prefix in ("/chat/gradio_api/", "/chat/", "/chat/gradio_api//"):
            assert client.get(prefix + path).status_code == 403, prefix + path
            assert client.post(prefix + path, json={}).status_code == 403, prefix + path


def test_requests_that_upload_nothing_are_small(client: TestClient) -> None:
    path = "/chat/gradio_api/queue/join"
    assert client.post(path, content=b"x" * (MAX_REQUEST + 1)).status_code == 413

    def unsized() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * (MAX_REQUEST // 2)

    assert client.post(path, content=unsized()).status_code in (400, 413)
    two = [("files", ("a.txt", b"x" * MAX_UPLOAD)), ("files", ("b.txt", b"x" * MAX_UPLOAD))]
    assert client.post("/chat/gradio_api/upload", files=two).status_code == 413
