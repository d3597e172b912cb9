"""Many clients talk with `dialogkit serve` at once: is everyone answered, how fast, does memory stay flat?

    python scripts/serve_load.py --clients 64 --seconds 60 --out runs/serve_load.json

Starts a server of the embedded characters on a free port (options of `dialogkit serve` may follow a `--`),
lets clients of the `openai` package hold conversations (every other one streamed) until the time is over and
their last reply is there, then stops it with SIGTERM in the middle of a streamed reply. Needs no network.
Conversations have up to ten turns, and every length is there from the beginning. The server's processor time
shows whether the machine had other work.

Memory is looked at over time, without what models keep of prompts for reuse, which has a bound of its own. A
batch of long prompts takes some hundred MiB for seconds, so it is the least of each quarter of the time that
counts: memory is flat if it is at most 5 % more in the last quarter than in the third.

The exit code is 1 if a request failed with anything but 429, if an accepted request was not answered, if the
last reply was not finished, or if memory was not flat.
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
import urllib.request
from collections import Counter
from collections.abc import Sequence
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
EARLIER = "I have never thought about that before, my friend."
TURNS = len(QUESTIONS)
SAMPLES = 240
MIB = 2**20


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
    well = figures["finished_after_sigterm"] and figures["memory"]["flat"]
    if figures["errors"] or figures["accepted_unanswered"] or not well:
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
            watch = Watch(process.pid, url)
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
        "memory": memory(watch.samples),
        "finished_after_sigterm": sigterm,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 100)}


@dataclass
class Sample:
    """The server's memory at some moment.

    Attributes:
        seconds: Since the load began.
        resident: Bytes of its memory.
        kept: Bytes of these that hold prompts for reuse.
    """

    seconds: float
    resident: int
    kept: int


def memory(samples: Sequence[Sample]) -> dict[str, Any]:
    """Memory over time in MiB, by quarters, and whether it is flat."""
    quarters = [quarter for quarter in np.array_split(np.arange(len(samples)), 4) if len(quarter)]
    besides = [(sample.resident - sample.kept) / MIB for sample in samples]
    least = [min(besides[i] for i in quarter) for quarter in quarters]
    growth = least[-1] - least[-2] if len(least) == 4 else float("inf")
    return {
        "over_time": [
            {
                "seconds": round(one.seconds),
                "mib": round(one.resident / MIB),
                "kept_mib": round(one.kept / MIB),
            }
            for one in samples
        ],
        "most_mib": round(max(one.resident for one in samples) / MIB),
        "most_kept_mib": round(max(one.kept for one in samples) / MIB),
        "besides_kept_least_mib_by_quarter": [round(size) for size in least],
        "flat": growth <= 0.05 * least[-1],
    }


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
    """Memory and processor time of the server, looked up every few seconds."""

    def __init__(self, pid: int, url: str) -> None:
        self.folder = Path(f"/proc/{pid}")
        self.url = url
        self.samples: list[Sample] = []
        self.done = threading.Event()
        self.length = 0.0
        self._begin = self._seconds()
        self._end = self._begin

    def run(self, every: float) -> None:
        begin = time.perf_counter()
        while not self.done.wait(every):
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
                found = re.search(r"^dialogkit_kept_bytes (\S+)$", answer.read().decode(), re.MULTILINE)
            if found is None:
                raise RuntimeError("the server does not say what it keeps")
            pages = int((self.folder / "statm").read_text().split()[1])
            passed = time.perf_counter() - begin
            self.samples.append(Sample(passed, pages * os.sysconf("SC_PAGE_SIZE"), int(float(found[1]))))
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
            await ask(client, model, [{"role": "user", "content": QUESTIONS[0]}], False, 1, Tally())
        tally = Tally()
        watcher = asyncio.create_task(asyncio.to_thread(watch.run, max(1.0, seconds / SAMPLES)))
        end = time.perf_counter() + seconds
        await asyncio.gather(
            *(talk(client, i, models[i % len(models)], end, max_tokens, tally) for i in range(clients))
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
    client: openai.AsyncOpenAI, number: int, model: str, end: float, max_tokens: int, tally: Tally
) -> None:
    """One client: conversations of ten turns, one after the other, the first one from somewhere within."""
    stream = number % 2 == 1
    messages: list[dict[str, str]] = []
    for question in QUESTIONS[: number % TURNS]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": EARLIER}]
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
