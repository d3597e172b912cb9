"""The page as a part of the server and of its command."""

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from typer.testing import CliRunner

from dialogkit import cli_serve
from dialogkit.cli import app as command
from tests.dialogkit.web.people import WholeBot

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("option", "pages"), [("--web", ["/chat"]), ("--no-web", [])])
def test_the_command_adds_the_page_when_asked(
    monkeypatch: pytest.MonkeyPatch, option: str, pages: list[str]
) -> None:
    served: list = []
    monkeypatch.setattr(cli_serve, "_bots", lambda *_: {"whole": WholeBot()})
    monkeypatch.setattr("dialogkit.serving.running.run_app", lambda app, **_: served.append(app))
    result = CliRunner().invoke(command, ["serve", option])
    assert result.exit_code == 0, result.output
    paths = [getattr(route, "path", "") for route in served[0].routes]
    assert [path for path in paths if path == "/chat"] == pages


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(cli_serve, "_bots", lambda *_: pytest.fail("loaded before it was checked"))
    result = CliRunner().invoke(command, ["serve", "--web"])
    assert result.exit_code == 2 and "pip install 'dialogkit-robustkit[web]'" in " ".join(
        result.output.split()
    )


@pytest.mark.slow
def test_an_open_page_does_not_keep_the_server_from_ending() -> None:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("chat_server.py"))],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on" in line)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        page = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        page.request("GET", "/chat/gradio_api/heartbeat/somebody")
        assert page.getresponse().readline() == b"data: ALIVE\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
