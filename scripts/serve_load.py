"""Many clients talk with `dialogkit serve` at once: is everyone answered, how fast, does memory stay flat?

    python scripts/serve_load.py --clients 64 --seconds 60 --out runs/serve_load.json

Starts a server of the embedded characters on a free port (options of `dialogkit serve` may follow a `--`),
lets clients of the `openai` package hold conversations (every other one streamed) until the time is over and
their last reply is there, then stops it with SIGTERM in the middle of a streamed reply. Needs no network. The
exit code is 1 if a request failed with anything but 429, if an accepted request was not answered, or if the
last reply was not finished. The server's processor time shows whether the machine had other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai

from trainkit.hub import write_json

QUESTIONS = (
    "Hello, who are you?", "What do you eat?", "Are you happy?", "Tell me a story.", "Do you like the sea?",
    "What is your name?", "Where do you live?", "Will it rain?", "What do you think of me?", "Good bye.",
)  # fmt: skip
TURNS = len(QUESTIONS)


@dataclass
class Tally:
    """What the clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"whole": [], "streamed": []})
    first_piece: list[float] = field(default_factory=list)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0

    @property
    def answered(self) -> int:
        return sum(map(len, self.seconds.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--max-requests", type=int, default=48, help="below --clients, so that some are refused"
    )
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("serve", nargs="*", help="options for `dialogkit serve`, after --")
    arguments = parser.parse_args()
    figures = measure(
        arguments.clients, arguments.seconds, arguments.max_requests, arguments.max_tokens, arguments.serve
    )
    print(json.dumps(figures, indent=2))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, figures)
    if figures["errors"] or figures["accepted_unanswered"] or not figures["finished_after_sigterm"]:
        sys.exit(1)


def measure(
    clients: int, seconds: float, max_requests: int, max_tokens: int, options: list[str]
) -> dict[str, Any]:
    """Starts a server, loads it, stops it; the figures."""
    command = [sys.executable, "-c", "from dialogkit.cli import main; main()", "serve", "--port", "0"]
    command += ["--max-requests", str(max_requests), *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            url = address(process, log)
            watch = Watch(process.pid)
            tally, sigterm = asyncio.run(load(process, url, clients, seconds, max_tokens, watch))
            process.wait(120)
        finally:
            process.kill()
    return {
        "serve": options,
        "clients": clients,
        "seconds": seconds,
        "max_requests": max_requests,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[1],
        "server_cpu_seconds": round(watch.cpu(), 1),
        "answered": tally.answered,
        "replies_per_second": round(tally.answered / watch.length, 2),
        "refused_429": tally.refused,
        "errors": dict(tally.errors),
        "accepted_unanswered": tally.unfinished,
        **{f"{kind}_seconds": quantiles(values) for kind, values in tally.seconds.items()},
        "first_piece_seconds": quantiles(tally.first_piece),
        "memory_mib": [round(size / 2**20) for size in watch.sizes],
        "finished_after_sigterm": sigterm,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 100)}


def address(process: subprocess.Popen[bytes], log: Any) -> str:
    """Where the server listens, once it says so."""
    while process.poll() is None:
        log.seek(0)
        if found := re.search(r"running on (http://[\d.]+:\d+)", log.read()):
            return found[1]
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()}")


class Watch:
    """Memory and processor time of the server, read from /proc every few seconds."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")
        self.sizes: list[int] = []
        self.done = threading.Event()
        self.length = 0.0
        self._begin = self._seconds()
        self._end = self._begin

    def run(self, every: float) -> None:
        begin = time.perf_counter()
        while not self.done.wait(every):
            pages = int((self.folder / "statm").read_text().split()[1])
            self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self._end, self.length = self._seconds(), time.perf_counter() - begin

    def cpu(self) -> float:
        return self._end - self._begin

    def _seconds(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(
    process: subprocess.Popen[bytes], url: str, clients: int, seconds: float, max_tokens: int, watch: Watch
) -> tuple[Tally, bool]:
    """Runs the clients, then asks the server to stop while one request runs; whether that was answered."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        models = [model.id async for model in client.models.list()]
        # What is loaded at the first use is not the load's.
        for model in models:
            await ask(client, model, [{"role": "user", "content": QUESTIONS[0]}], False, max_tokens, Tally())
        tally = Tally()
        watcher = asyncio.create_task(asyncio.to_thread(watch.run, max(1.0, seconds / 20)))
        end = time.perf_counter() + seconds
        await asyncio.gather(
            *(
                talk(client, models[i % len(models)], i % 2 == 1, end, max_tokens, tally)
                for i in range(clients)
            )
        )
        watch.done.set()
        await watcher
        return tally, await finishes(process, client, models[0])


async def finishes(process: subprocess.Popen[bytes], client: openai.AsyncOpenAI, model: str) -> bool:
    """Asks the server to stop after the first event of a streamed reply; whether the reply has its end."""
    ended, told = False, False
    messages: Any = [{"role": "user", "content": QUESTIONS[0]}]
    async for chunk in await client.chat.completions.create(model=model, messages=messages, stream=True):
        if not told:
            process.send_signal(signal.SIGTERM)
            told = True
        ended = chunk.choices[0].finish_reason is not None
    return ended


async def talk(
    client: openai.AsyncOpenAI, model: str, stream: bool, end: float, max_tokens: int, tally: Tally
) -> None:
    """One client: conversations of ten turns, one after the other."""
    messages: list[dict[str, str]] = []
    while time.perf_counter() < end:
        if len(messages) >= 2 * TURNS:
            messages = []
        question = {"role": "user", "content": QUESTIONS[len(messages) // 2]}
        try:
            text = await ask(client, model, [*messages, question], stream, max_tokens, tally)
        except openai.RateLimitError as error:
            tally.refused += 1
            await asyncio.sleep(float(error.response.headers["retry-after"]))
        except openai.APIError as error:
            tally.errors[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            messages += [question, {"role": "assistant", "content": text or "..."}]


async def ask(
    client: openai.AsyncOpenAI,
    model: str,
    messages: list[dict[str, str]],
    stream: bool,
    max_tokens: int,
    tally: Tally,
) -> str:
    """One request, timed; its text."""
    begin = time.perf_counter()
    asked: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens}
    if not stream:
        answer = await client.chat.completions.create(**asked)
        tally.seconds["whole"].append(time.perf_counter() - begin)
        return str(answer.choices[0].message.content)
    said, ended = "", False
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        if choice.delta.content and not said:
            tally.first_piece.append(time.perf_counter() - begin)
        said += choice.delta.content or ""
        ended = ended or choice.finish_reason is not None
    if not ended:
        tally.unfinished += 1
        return said
    tally.seconds["streamed"].append(time.perf_counter() - begin)
    return said


if __name__ == "__main__":
    main()
