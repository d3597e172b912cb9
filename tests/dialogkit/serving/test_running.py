"""Addresses, signals, and the command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

pytest.importorskip("fastapi")

from dialogkit import cli_serve
from dialogkit.cli import app as command
from dialogkit.generation import EndpointLM
from dialogkit.serving import ServerSettings, check_address, create_app, run_app
from dialogkit.serving.metrics import Metrics
from tests.dialogkit.serving.helpers import Running, Scripted, until

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_may_ask_without_a_key(host: str) -> None:
    check_address(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.org", ""])
def test_any_other_address_needs_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="an API key is needed"):
        check_address(host, None)
    with pytest.raises(ValueError, match="an API key is needed"):
        run_app(create_app({"echo": Scripted()}), host=host)
    check_address(host, "key")


def test_clients_give_up_idle_connections_before_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("openai")
    ran: list[uvicorn.Config] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server: ran.append(server.config))
    with pytest.raises(SystemExit):  # as it did not start
        run_app(create_app({"echo": Scripted()}), port=0)
    assert ran[0].timeout_keep_alive > 2 * openai.DEFAULT_CONNECTION_LIMITS.keepalive_expiry


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="api_key must be"):
        ServerSettings(api_key=key)


def test_settings_keep_the_key_to_themselves_and_their_ranges() -> None:
    assert "secret" not in repr(ServerSettings(api_key="secret"))
    for name in ("max_requests", "batch_size", "max_body", "max_messages", "max_tokens", "max_choices"):
        with pytest.raises(ValueError, match=name):
            ServerSettings(**{name: 0})
    with pytest.raises(ValueError, match="timeout"):
        ServerSettings(timeout=0)


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(tmp_path: Path) -> None:
    sign = tmp_path / "go"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("slow_server.py")), str(sign)],
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
        server = Running(int(found[1]))
        with ThreadPoolExecutor(3) as pool:
            # One streams, two wait behind it.
            asked = [
                pool.submit(server.complete, "hello", model="patient", stream=stream)
                for stream in (True, False, False)
            ]
            until(lambda: server.active() == 3)
            process.send_signal(signal.SIGTERM)
            until(lambda: _refuses(server))
            assert not any(one.done() for one in asked)
            sign.touch()
            streamed, *whole = [one.result() for one in asked]
        assert b'"Wait "' in streamed.body and streamed.body.endswith(b"data: [DONE]\n\n")
        for answered in whole:
            assert answered.json["choices"][0]["message"]["content"] == "Wait for me."
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


def _refuses(server: Running) -> bool:
    try:
        server.ask("GET", "/health")
    except ConnectionError:
        return True
    return False


# The command ------------------------------------------------------------------------------------------------


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> tuple[int, str, dict]:
    """Exit code, output, and what would have been served."""
    ran: dict = {}

    def run(app: object, *, host: str, port: int, drain_seconds: int) -> None:
        ran.update(app=app, host=host, port=port, drain=drain_seconds)

    monkeypatch.setattr("dialogkit.serving.running.run_app", run)
    result = CliRunner().invoke(command, ["serve", *arguments], env=environment)
    return result.exit_code, result.output, ran


def test_the_command_refuses_an_open_address_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "_bots", lambda *_: pytest.fail("loaded before it was checked"))
    code, output, ran = serve(monkeypatch, "--host", "0.0.0.0")
    assert code == 2 and "an API key is needed" in output and not ran


def test_the_command_takes_the_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "_bots", lambda *_: {"echo": Scripted()})
    code, output, ran = serve(
        monkeypatch, "--host", "0.0.0.0", "--port", "80", "--drain", "5", DIALOGKIT_API_KEY="open-sesame"
    )
    assert code == 0, output
    assert ran["app"].state.settings.api_key == "open-sesame"
    assert (ran["host"], ran["port"], ran["drain"]) == ("0.0.0.0", 80, 5)
    assert "open-sesame" not in serve(monkeypatch, "--help", DIALOGKIT_API_KEY="open-sesame")[1]


def test_characters_share_one_model_and_one_matcher(tmp_path: Path) -> None:
    tom = tmp_path / "tom.json"
    tom.write_text('{"name": "Old Tom", "utterances": ["I live in a barrel.", "Soup, always soup."]}')
    bots = cli_serve._bots(["captain", str(tom)], ["lm=lm:embedded"], None, None, "static", "embedded", None)
    captain, other = bots["captain"], bots["old-tom"]
    assert list(bots) == ["captain", "old-tom", "lm"]
    assert captain.model is other.model and captain.matcher is other.matcher
    assert other.config.matcher == "static" and other.config.max_dialogs == 8
    captain.reply("Hello.")
    assert captain.model.kept_prompts[0] == 1, "what conversations begin with is read once"
    assert other.name == "Old Tom"


def test_two_chatbots_of_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="the same name"):
        cli_serve._bots(["captain"], ["captain=lm:embedded"], None, None, "dynamic", None, None)


def test_characters_can_be_played_by_a_model_behind_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    bots = cli_serve._bots(["captain"], [], "some/model", url, "dynamic", "embedded", None)
    model = bots["captain"].model
    assert isinstance(model, EndpointLM) and (model.name, model.base_url) == ("some/model", url)
    code, output, ran = serve(monkeypatch, "--endpoint", url)
    assert code == 2 and "--endpoint needs --model" in output and not ran


# Metrics ----------------------------------------------------------------------------------------------------


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    metrics = Metrics(
        {"asked": "Requests.", "now": "Running.", "seconds": "Time."},
        gauges={"now": lambda: 3},
        buckets={"seconds": (0.5, 2.0)},
    )
    metrics.count("asked", {"model": 'a"b\\c\nd'})
    metrics.count("asked", {"model": 'a"b\\c\nd'}, by=2)
    for value in (0.5, 0.6, 1.0, 9.0):
        metrics.observe("seconds", value)
    assert metrics.text() == (
        "# HELP asked Requests.\n# TYPE asked counter\n"
        'asked{model="a\\"b\\\\c\\nd"} 3\n'
        "# HELP now Running.\n# TYPE now gauge\nnow 3\n"
        "# HELP seconds Time.\n# TYPE seconds histogram\n"
        'seconds_bucket{le="0.5"} 1\nseconds_bucket{le="2"} 3\nseconds_bucket{le="+Inf"} 4\n'
        "seconds_sum 11.1\nseconds_count 4\n"
    )
