"""The chat page in a browser: headless Chromium, driven by Playwright, against a server on this machine."""

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from dialogkit.chat import ChatSession
from dialogkit.pdp import Character
from dialogkit.serving import create_app
from dialogkit.web import mount_chat
from tests.dialogkit.web.people import WholeBot, WordsLM, pdp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30_000  # milliseconds
SAYS = "Aye, <b>rain</b> *it* is."
# Markup, Markdown, a template of JavaScript, one of Handlebars, an entity, a formula.
HOSTILE = '<img src=x onerror="window.forged=1"> **a** ${window.forged=2} {{user}} `b` &lt; $x$'


@dataclass
class Served:
    url: str
    model: WordsLM
    engine: Any


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    who = Character("Mrs Plum", (f"A line. {HOSTILE}", "Mind the third step."), summary="Lets <i>rooms</i>.")
    bot, model = pdp(SAYS, who=who)
    app = create_app({"plum": bot, "whole": WholeBot()})
    mount_chat(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", model, app.state.engine)
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """The page as a visitor sees it, and what it did besides."""

    page: Page
    asked: list[str]
    complaints: list[str]

    def send(self, text: str) -> None:
        box = self.page.get_by_label("Message", exact=True)
        box.fill(text)
        box.press("Enter")

    @property
    def bubbles(self) -> Any:
        return self.page.locator("#dk-chat [data-testid=user], #dk-chat [data-testid=bot]")

    @property
    def why(self) -> Any:
        return self.page.locator("#dk-why")

    def expect_talk(self, *texts: str) -> None:
        expect(self.bubbles).to_have_text(list(texts), use_inner_text=True)

    def check(self) -> None:
        """Nothing was asked of another machine, and the browser had nothing to complain about."""
        assert {urlsplit(url).hostname for url in self.asked if url.startswith("http")} == {"127.0.0.1"}
        assert self.complaints == []


@pytest.fixture
def visit(served: Served, chromium: Browser) -> Iterator[Any]:
    contexts: list[BrowserContext] = []

    def opened(width: int = 1280, height: int = 800) -> Tab:
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}))
        contexts[-1].set_default_timeout(PATIENCE)
        tab = Tab(contexts[-1].new_page(), [], [])
        tab.page.on("request", lambda request: tab.asked.append(request.url))
        tab.page.on("console", lambda line: line.type == "error" and tab.complaints.append(line.text))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.goto(served.url)
        expect(tab.page.get_by_label("Message", exact=True)).to_be_visible()
        return tab

    expect.set_options(timeout=PATIENCE)
    served.model.go.set()
    yield opened
    served.model.go.set()
    for context in contexts:
        context.close()


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_reply_comes_piece_by_piece_and_the_panel_says_why(served: Served, visit: Any) -> None:
    tab = visit()
    assert tab.page.url == f"{served.url}/chat/"
    expect(tab.page.get_by_role("heading", name="Mrs Plum")).to_be_visible()
    served.model.go.clear()
    tab.send("Will it rain?")
    tab.expect_talk("Will it rain?", "Aye,")
    served.model.go.set()
    tab.expect_talk("Will it rain?", SAYS)
    expect(tab.why.get_by_text("Mind the third step.", exact=True)).not_to_be_visible()
    tab.page.get_by_role("button", name="Why this reply").click()
    expect(tab.why.get_by_text("Mind the third step.", exact=True)).to_be_visible()
    expect(tab.why).to_contain_text(re.compile(r"fit to the message -?\d+\.\d{3}"))
    expect(tab.why).to_contain_text(re.compile(r"match of the pair -?\d+\.\d{3}"))
    tab.check()


def test_what_people_and_models_write_is_shown_as_text(visit: Any) -> None:
    tab = visit()
    tab.send(HOSTILE)
    tab.expect_talk(HOSTILE, SAYS)
    # A click on a reply opens the panel; the character's line and the prompt stand there, too.
    tab.bubbles.last.click()
    expect(tab.why.locator(".dk-line", has_text=HOSTILE)).to_be_visible()
    expect(tab.why.locator(".dk-quote")).to_have_text(HOSTILE)
    expect(tab.why.locator("pre")).to_contain_text(f"User: {HOSTILE}")
    expect(tab.page.locator(".dk-heading")).to_contain_text("Lets <i>rooms</i>.")
    assert tab.page.evaluate("window.forged") is None
    assert tab.page.locator("#dk-chat img, #dk-chat b, #dk-why img").count() == 0
    tab.check()


def test_the_browser_would_not_talk_to_another_server(visit: Any) -> None:
    tab = visit()
    stopped = tab.page.evaluate(
        """() => new Promise(done => {
          document.addEventListener("securitypolicyviolation", event => done(event.violatedDirective));
          fetch("http://localhost:9/").catch(() => setTimeout(() => done("nothing stopped it"), 2000));
        })"""
    )
    assert stopped == "connect-src"


def test_a_character_file_is_dropped_in_and_talked_with(visit: Any, tmp_path: Path) -> None:
    tab = visit()
    tab.send("Will it rain?")
    tab.expect_talk("Will it rain?", SAYS)
    file = tmp_path / "tom.json"
    Character("Old Tom", ("Soup.",), gold_contexts=("Lunch?",), summary="A sailor.").to_json(file)
    tab.page.get_by_role("button", name="Your own character").click()
    tab.page.locator("#dk-own input[type=file]").set_input_files(file)
    expect(tab.page.get_by_role("heading", name="Old Tom")).to_be_visible()
    expect(tab.bubbles).to_have_count(0)
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.get_by_label("gold").check()
    tab.send("Hello.")
    tab.expect_talk("Hello.", SAYS)
    tab.page.get_by_role("button", name="Why this reply").click()
    expect(tab.why).to_contain_text("an invented exchange with Old Tom, chosen by gold match")
    expect(tab.why.locator(".dk-context")).to_have_text("Lunch?")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    tab.page.locator("#dk-own input[type=file]").set_input_files(bad)
    expect(tab.page.get_by_role("alert")).to_contain_text("did not work: bad.png: ")
    tab.expect_talk("Hello.", SAYS)
    tab.check()


def test_two_visitors_save_and_reset_each_their_own(visit: Any, tmp_path: Path) -> None:
    ann, bob = visit(), visit()
    ann.send("I am Ann.")
    bob.send("I am Bob.")
    ann.expect_talk("I am Ann.", SAYS)
    bob.expect_talk("I am Bob.", SAYS)
    with ann.page.expect_download() as download:
        ann.page.get_by_role("button", name="Save as JSON").click()
    assert download.value.suggested_filename == "conversation.json"
    download.value.save_as(tmp_path / "saved.json")
    session = ChatSession.load(tmp_path / "saved.json", pdp()[0])
    assert [turn.text for turn in session.history] == ["I am Ann.", SAYS]
    ann.page.get_by_role("button", name="New conversation").click()
    expect(ann.bubbles).to_have_count(0)
    bob.send("fail")
    bob.expect_talk("I am Bob.", SAYS, "fail", SAYS)
    ann.check()


def test_two_visitors_upload_the_same_file(visit: Any, tmp_path: Path) -> None:
    file = tmp_path / "tom.json"
    Character("Old Tom", ("Soup.",)).to_json(file)
    ann, bob = visit(), visit()
    for tab in (ann, bob):
        tab.page.get_by_role("button", name="Your own character").click()
        tab.page.locator("#dk-own input[type=file]").set_input_files(file)
        expect(tab.page.get_by_role("heading", name="Old Tom")).to_be_visible()
    ann.page.get_by_role("button", name="New conversation").click()
    for tab in (bob, ann):
        tab.send("Hello.")
        tab.expect_talk("Hello.", SAYS)
        tab.check()


def test_another_bot_is_picked_and_its_error_is_told(visit: Any) -> None:
    tab = visit()
    tab.page.get_by_label("Talk with").click()
    tab.page.get_by_role("option", name="whole").click()
    expect(tab.page.get_by_role("heading", name="whole")).to_be_visible()
    tab.send("fail")
    expect(tab.page.get_by_role("alert")).to_have_text("That did not work: that is too hard.")
    expect(tab.page.get_by_label("Message", exact=True)).to_have_value("fail")
    tab.send("hello")
    tab.expect_talk("hello", "You said hello")
    expect(tab.page.get_by_role("alert")).to_have_count(0)
    tab.check()


def test_a_reply_can_be_stopped(served: Served, visit: Any) -> None:
    tab = visit()
    served.model.go.clear()
    tab.send("Will it rain?")
    tab.expect_talk("Will it rain?", "Aye,")
    assert served.engine.active == 1
    tab.page.get_by_test_id("stop-button").click()
    expect(tab.bubbles).to_have_count(0)
    served.model.go.set()
    until(lambda: served.engine.active == 0)
    tab.send("And now?")
    tab.expect_talk("And now?", SAYS)


def test_a_closed_tab_frees_the_engine(served: Served, visit: Any) -> None:
    tab = visit()
    served.model.go.clear()
    tab.send("Will it rain?")
    tab.expect_talk("Will it rain?", "Aye,")
    assert served.engine.active == 1
    tab.page.close()
    served.model.go.set()
    until(lambda: served.engine.active == 0)


def test_it_fits_a_phone(visit: Any) -> None:
    tab = visit(390, 844)
    tab.send("Will it rain? " + "x" * 100)
    tab.expect_talk("Will it rain? " + "x" * 100, SAYS)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    for part in (tab.page.get_by_label("Message", exact=True), tab.bubbles.last):
        expect(part).to_be_in_viewport()
    tab.bubbles.last.click()
    expect(tab.why.locator(".dk-quote")).to_be_in_viewport()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
