"""Asking a chatbot, and keeping what it says: JSON lines that only grow, so that a stopped run goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dialogkit.bots import bot_fingerprint, sources_of
from dialogkit.chat import Chatbot, Latency, Reply, measure_latency
from dialogkit.dialogues import Turn, single_line
from dialogkit.generation.types import LanguageModel, Prompt
from trainkit.progress import Progress

from .cases import EvaluationCase, cases_fingerprint, history_of

__all__ = ["Answer", "Collected", "collect_replies"]

logger = logging.getLogger(__name__)

_FORMAT = 1

# What a chatbot may raise for one conversation and not for another. Anything else ends the run.
_FAILURES = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Answer:
    """What a chatbot said to one context.

    Attributes:
        text: The reply on one line, possibly empty; None if the chatbot failed.
        error: What it raised then.
        seconds: Its share of the time of its batch; NaN if it failed.
        sources: Texts that its evidence names; see :func:`dialogkit.bots.sources_of`.
        human_logprob: Sum of the natural log-probabilities of the first human reply; None if undefined.
        human_tokens: Number of its tokens.
    """

    text: str | None
    error: str = ""
    seconds: float = math.nan
    sources: tuple[str, ...] = ()
    human_logprob: float | None = None
    human_tokens: int = 0


@dataclass(frozen=True)
class Collected:
    """All that a chatbot said.

    Attributes:
        name: What it is called in the comparison.
        fingerprint: Of the chatbot.
        answers: One for each context.
        latency: Seconds of a reply that is asked for alone; None if it was not measured.
    """

    name: str
    fingerprint: str
    answers: tuple[Answer, ...]
    latency: Latency | None


def collect_replies(
    bot: Chatbot,
    cases: Sequence[EvaluationCase],
    path: str | Path | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    latency_contexts: int = 20,
) -> Collected:
    """Lets a chatbot answer every context.

    Each batch is on disk before the next one is asked for. Run again with the same file, the call asks only
    for what is missing: contexts not answered, and those that the chatbot failed for.

    A batch that fails is asked again one by one; what a context raises is then its answer. Every context gets
    the same seed, so a reply of a model that honours seeds does not depend on the batch.

    Args:
        bot: Who answers.
        cases: Contexts, at least one, with human replies; the first of these is scored by chatbots that have
            a language model and tell their prompt.
        path: JSON lines; None keeps the replies in memory only.
        name: What to call it; its own name by default.
        seed: Of the replies.
        batch_size: Contexts asked together. Not part of the settings: a run may go on with another one.
        latency_contexts: How many contexts are asked again one at a time to measure latency; 0 for none.

    Raises:
        ValueError: There are no contexts, or the file was written with another chatbot, data or settings, or
            is damaged.
        TypeError: The chatbot returns something else than replies.
    """
    if not cases:
        raise ValueError("there are no contexts to answer")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if latency_contexts < 0:
        raise ValueError(f"latency_contexts must be at least 0, got {latency_contexts}")
    histories = [history_of(case.context, bot.name) for case in cases]
    called, mark = name or bot.name, bot_fingerprint(bot)
    settings = {
        "format": _FORMAT,
        "bot": called,
        "fingerprint": mark,
        "data": cases_fingerprint(cases),
        "seed": seed,
        "latency_contexts": latency_contexts,
    }
    with _Log(None if path is None else Path(path), settings, len(cases)) as log:
        missing = [i for i in range(len(cases)) if i not in log.answers or log.answers[i].text is None]
        with Progress(len(cases), called, done=len(cases) - len(missing)) as progress:
            for start in range(0, len(missing), batch_size):
                rows = missing[start : start + batch_size]
                log.write(_ask(bot, {i: (histories[i], cases[i]) for i in rows}, seed))
                progress.advance(len(rows))
        failed = sum(answer.text is None for answer in log.answers.values())
        if failed:
            logger.warning("%s failed for %d of %d contexts", called, failed, len(cases))
        if log.latency is None and latency_contexts and failed < len(cases):
            answered = [history for i, history in enumerate(histories) if log.answers[i].text is not None]
            log.write_latency(_latency(bot, answered[:latency_contexts], seed))
        return Collected(called, mark, tuple(log.answers[i] for i in range(len(cases))), log.latency)


def _ask(
    bot: Chatbot, asked: dict[int, tuple[tuple[Turn, ...], EvaluationCase]], seed: int
) -> dict[int, Answer]:
    histories = [history for history, _ in asked.values()]
    begin = time.perf_counter()
    try:
        replies = bot.reply_batch(histories, seed=seed)
    except _FAILURES as error:
        if len(asked) == 1:
            return {i: Answer(None, f"{type(error).__name__}: {error}") for i in asked}
        one_by_one = (_ask(bot, {i: what}, seed) for i, what in asked.items())
        return {i: answer for answers in one_by_one for i, answer in answers.items()}
    seconds = (time.perf_counter() - begin) / len(asked)
    if len(replies) != len(asked) or not all(isinstance(reply, Reply) for reply in replies):
        raise TypeError(f"{bot.name} must return {len(asked)} replies for as many conversations")
    scores = _score_human(bot, replies, [case for _, case in asked.values()])
    return {
        i: Answer(single_line(reply.text), "", seconds, sources_of(reply.evidence), *score)
        for i, reply, score in zip(asked, replies, scores, strict=True)
    }


def _score_human(
    bot: Chatbot, replies: Sequence[Reply], cases: Sequence[EvaluationCase]
) -> list[tuple[float | None, int]]:
    """Log-probability and tokens of each first human reply, given the prompt that the chatbot answered."""
    model = getattr(bot, "model", None)
    found: list[tuple[float | None, int]] = [(None, 0)] * len(replies)
    prompts: list[Prompt | None] = [reply.evidence.get("prompt") for reply in replies]
    rows = [i for i, prompt in enumerate(prompts) if prompt and cases[i].references]
    if not rows or not isinstance(model, LanguageModel):
        return found
    human = [_continuation(prompts[i], single_line(cases[i].references[0])) for i in rows]
    try:
        likelihoods = model.log_likelihood([prompts[i] or "" for i in rows], human)
    except _FAILURES as error:
        logger.warning("%s gives no likelihood of human replies: %s", bot.name, error)
        return found
    for i, likelihood in zip(rows, likelihoods, strict=True):
        found[i] = (likelihood.sum_logprob, likelihood.num_tokens)
    return found


def _continuation(prompt: Prompt | None, reply: str) -> str:
    """A reply as it stands after a plain prompt that ends with a speaker's name and a colon."""
    return f" {reply}" if isinstance(prompt, str) and prompt.endswith(":") else reply


def _latency(bot: Chatbot, histories: Sequence[tuple[Turn, ...]], seed: int) -> Latency | None:
    try:
        return measure_latency(bot, histories, seed=seed)
    except _FAILURES as error:
        logger.warning("latency of %s was not measured: %s", bot.name, error)
        return None


class _Log:
    """The file of replies; without a path the same in memory.

    The first line holds the settings, each further one an answer or the latency. A later line about the same
    context takes the place of an earlier one. A line cut off by a crash is removed.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], count: int) -> None:
        self.answers: dict[int, Answer] = {}
        self.latency: Latency | None = None
        self._path = path
        self._file: IO[bytes] | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(path, settings, count) if path.is_file() else 0
        self._file = path.open("r+b" if path.is_file() else "xb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._append([settings])

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, answers: dict[int, Answer]) -> None:
        self._append([{"i": i, **_record(answer)} for i, answer in answers.items()])
        self.answers |= answers

    def write_latency(self, latency: Latency | None) -> None:
        if latency is not None:
            self._append([{"latency": asdict(latency)}])
        self.latency = latency

    def _append(self, records: Sequence[dict[str, Any]]) -> None:
        if self._file is not None:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            self._file.write(lines.encode("utf-8", "replace"))
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, path: Path, settings: dict[str, Any], count: int) -> int:
        """Takes over what is there; returns the length of its whole lines in bytes."""
        whole = 0
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    _check_settings(path, record, settings)
                elif "latency" in record:
                    self.latency = Latency(**record["latency"])
                elif 0 <= record["i"] < count:
                    self.answers[record["i"]] = _answer(record)
                else:
                    raise KeyError(f"there is no context {record['i']}")
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: not a line of replies ({error!r})") from error
            whole += len(line)
        return whole


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _check_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"{path} was written with {key}={found.get(key)!r}, now it is {wanted[key]!r}; "
            "use the same settings to go on, or another folder"
        )


def _record(answer: Answer) -> dict[str, Any]:
    if answer.text is None:
        return {"error": answer.error}
    record: dict[str, Any] = {"text": answer.text, "seconds": answer.seconds}
    if answer.sources:
        record["sources"] = list(answer.sources)
    if answer.human_logprob is not None:
        record["human"] = [answer.human_logprob, answer.human_tokens]
    return record


def _answer(record: dict[str, Any]) -> Answer:
    if "error" in record:
        return Answer(None, record["error"])
    logprob, tokens = record.get("human", (None, 0))
    return Answer(record["text"], "", record["seconds"], tuple(record.get("sources", ())), logprob, tokens)
