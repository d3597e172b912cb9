"""A server in a thread, chatbots that do what a test tells them, and bare HTTP."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from dialogkit.chat import Chatbot, Reply
from dialogkit.dialogues import Turn
from dialogkit.generation import PromptError
from dialogkit.serving import ServerSettings, create_app

PATIENCE = 60.0
"""Seconds after which something that must happen has not happened."""


class Scripted:
    """Says the last words of the user back; waits at a gate before it does, if the test has shut one."""

    def __init__(self, name: str = "Echo") -> None:
        self.name = name
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[str]] = []
        self.histories: list[tuple[Turn, ...]] = []
        self.seeds: list[int | None] = []
        self.closed = threading.Event()

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        return self.reply_batch([history], seed=seed)[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        said = [self._last(history) for history in histories]
        self.batches.append(said)
        self.seeds.append(seed)
        assert self.gate.wait(PATIENCE)
        if "refuse me" in said:
            raise PromptError("I will not answer that")
        if "bad value" in said:
            raise ValueError("secret of the inside")
        if "break" in said:
            raise RuntimeError("secret of the inside")
        return [Reply(f"You said {text}") for text in said]

    def stream(
        self, history: Sequence[Turn] | str, *, seed: int | None = None
    ) -> Generator[str, None, Reply]:
        text = self._last(history)
        self.seeds.append(seed)
        if text == "refuse me":
            raise PromptError("I will not answer that")
        if text == "bad value":
            raise ValueError("secret of the inside")
        try:
            yield "You "
            if text == "break":
                raise RuntimeError("secret of the inside")
            assert self.gate.wait(PATIENCE)
            yield "said "
            yield text
            while text == "for ever":
                time.sleep(0.01)
                yield "!"
        finally:
            self.closed.set()
        return Reply(f"You said {text}")

    def _last(self, history: Sequence[Turn] | str) -> str:
        assert not isinstance(history, str)
        self.histories.append(tuple(history))
        return history[-1].text


@dataclass
class Running:
    """A server that runs.

    Attributes:
        port: Where it listens.
    """

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """One request with bare HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        answered = Answered(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answered

    def complete(self, text: str = "hello", **more: Any) -> Answered:
        """Asks for a chat completion."""
        body = {"model": "echo", "messages": [{"role": "user", "content": text}], **more}
        return self.ask("POST", "/v1/chat/completions", body)

    def active(self) -> int:
        """Requests that run or wait."""
        return int(self.ask("GET", "/health").json["active"])


@dataclass
class Answered:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is checked."""
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@contextmanager
def serving(bots: Mapping[str, Chatbot], settings: ServerSettings | None = None) -> Iterator[Running]:
    """Runs a server in a thread, on a free port of this machine."""
    app = create_app(bots, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def until(holds: Callable[[], bool]) -> None:
    """Waits for something that must happen."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
