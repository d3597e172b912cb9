"""Runs chatbots for many clients at once.

A language model has one thread, and its chatbots take turns there: its caches are safe so, and threads do not
fight for the same cores. Whole replies that wait for the same chatbot with the same settings are one call of
`reply_batch`; a streamed reply takes the thread for one piece at a time, in turn with all others. After a
batch the streams that run get as much time as it took, so neither kind keeps the other waiting for long.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar

from dialogkit.chat import Chatbot, Reply
from dialogkit.dialogues import Turn
from dialogkit.generation.endpoint import EndpointError
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.types import Candidate, GenerationConfig, PromptError

from .memory import Tidy

__all__ = [
    "Answer",
    "Busy",
    "Choice",
    "Engine",
    "FailedError",
    "adjusted",
    "own_generation",
    "takes_instruction",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Key = tuple[int, GenerationConfig | None, str, int | None]


class Busy(RuntimeError):
    """As many requests as allowed are being answered or wait."""


class FailedError(RuntimeError):
    """A chatbot raised an error that is not about the request; its cause, which is in the log."""


@dataclass(frozen=True)
class Choice:
    """One text that a client gets.

    Attributes:
        text: The words.
        finish_reason: ``"length"`` if the limit on new tokens cut it off. A text of a chatbot that does not
            say why it ended has ``"stop"``.
    """

    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """What a chatbot answered, and what it cost.

    Attributes:
        reply: The chatbot's reply with its evidence.
        choices: The reply's text first, then the next best candidates.
        prompt_tokens: Tokens of the prompt, 0 for a chatbot without a language model.
        completion_tokens: Tokens of the choices, 0 likewise.
    """

    reply: Reply
    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int


class Engine:
    """Answers conversations for many callers of one event loop.

    Args:
        max_requests: Most requests that run or wait; one more raises `Busy`.
        batch_size: Most candidates drawn by one call of `reply_batch`; a conversation that needs more is
            answered alone.
        on_batch: Told the size of each batch.

    Attributes:
        active: Requests that run or wait.
    """

    def __init__(
        self,
        *,
        max_requests: int = 64,
        batch_size: int = 64,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.max_requests = max_requests
        self.batch_size = batch_size
        self.active = 0
        self._on_batch = on_batch
        self._tidy = Tidy()
        self._lanes: dict[int, _Lane] = {}

    @property
    def waiting(self) -> int:
        """Whole replies that wait for a batch."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    async def reply(
        self,
        bot: Chatbot,
        history: Sequence[Turn],
        *,
        seed: int | None = None,
        generation: GenerationConfig | None = None,
        instruction: str = "",
        n: int = 1,
    ) -> Answer:
        """Answer a conversation, together with others that wait.

        Cancelling the call takes it out of the queue; what is being computed already is thrown away.

        Args:
            bot: Who answers.
            history: The conversation, the user's turn last.
            seed: Any integer for the same reply each time.
            generation: In place of the chatbot's own settings; see `adjusted`.
            instruction: For chatbots that take one; see `adjusted`.
            n: Most choices.

        Raises:
            Busy: There is no room.
            EndpointError: The model's own server failed.
            FailedError: The chatbot failed in any other way.
            PromptError: The chatbot cannot answer that.
        """
        with self._slot():
            key = (id(bot), generation, instruction, seed)
            job = _Job(key, adjusted(bot, generation, instruction), history, seed, n)
            return await self._lane(bot).reply(job)

    async def stream(
        self,
        bot: Chatbot,
        history: Sequence[Turn],
        *,
        seed: int | None = None,
        generation: GenerationConfig | None = None,
        instruction: str = "",
    ) -> AsyncGenerator[str | Answer, None]:
        """Answer a conversation piece by piece; close the generator to give up.

        Args:
            bot: Who answers.
            history: The conversation, the user's turn last.
            seed: Any integer for the same reply each time.
            generation: As for `reply`.
            instruction: As for `reply`.

        Yields:
            Pieces of text, then the whole answer.

        Raises:
            Busy: There is no room.
            EndpointError: The model's own server failed.
            FailedError: The chatbot failed in any other way.
            PromptError: The chatbot cannot answer that.
        """
        lane, view = self._lane(bot), adjusted(bot, generation, instruction)
        with self._slot(), lane.streaming():
            pieces = await lane.call(lambda: _pieces(view, history, seed))
            try:
                while True:
                    step = await lane.call(lambda: next(pieces))
                    yield step
                    if isinstance(step, Answer):
                        return
            finally:
                # A step may still be running there; the thread closes the chatbot's generator after it.
                lane.thread.submit(pieces.close)
                lane.thread.submit(lane.tidy)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self.active >= self.max_requests:
            raise Busy(f"{self.active} requests are being answered or wait")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def _lane(self, bot: Chatbot) -> _Lane:
        owner: object = getattr(bot, "model", bot)
        if id(owner) not in self._lanes:
            self._lanes[id(owner)] = _Lane(owner, self.batch_size, self._on_batch, self._tidy)
        return self._lanes[id(owner)]


def adjusted(bot: Chatbot, generation: GenerationConfig | None, instruction: str = "") -> Chatbot:
    """A chatbot that differs in its settings and shares everything else.

    Args:
        bot: The chatbot; it is not changed.
        generation: Settings of generation, for a chatbot that has any (`own_generation`).
        instruction: Follows the chatbot's own instruction, for one that `takes_instruction`.

    Returns:
        A shallow copy.
    """
    view: Any = copy.copy(bot)
    if generation is not None:
        if isinstance(getattr(bot, "generation", None), GenerationConfig):
            view.generation = generation
        elif own_generation(bot) is not None:
            view.config = replace(view.config, generation=generation)
    if instruction and takes_instruction(bot):
        own = view.prompt.instruction
        view.prompt = replace(view.prompt, instruction=f"{own} {instruction}" if own else instruction)
    found: Chatbot = view
    return found


def own_generation(bot: Chatbot) -> GenerationConfig | None:
    """A chatbot's settings of generation: its ``generation`` or that of its ``config``; None without any."""
    config = getattr(bot, "config", None)
    for owner in (bot, config if is_dataclass(config) else None):
        found = getattr(owner, "generation", None)
        if isinstance(found, GenerationConfig):
            return found
    return None


def takes_instruction(bot: Chatbot) -> bool:
    """Whether a chatbot follows a client's system message: a plain language model does, no character does."""
    return isinstance(getattr(bot, "prompt", None), DialoguePrompt)


# One language model -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Job:
    """A whole reply that somebody waits for."""

    key: _Key
    bot: Chatbot
    history: Sequence[Turn]
    seed: int | None
    n: int

    def __post_init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        config = own_generation(self.bot)
        self.candidates = config.num_candidates if config is not None and config.do_sample else 1


class _Lane:
    """The thread of one language model, and the whole replies that wait for it."""

    def __init__(
        self, owner: object, batch_size: int, on_batch: Callable[[int], None], tidy: Callable[[], None]
    ) -> None:
        self.owner = owner  # its id names the lane, so it must live as long
        self.batch_size = batch_size
        self.on_batch = on_batch
        self.tidy = tidy
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="dialogkit")
        self.waiting: deque[_Job] = deque()
        self.streams = 0
        self._no_streams = asyncio.Event()
        self._no_streams.set()
        self._worker: asyncio.Task[None] | None = None

    async def call(self, function: Callable[[], _T]) -> _T:
        """What a function returns on the thread.

        Raises:
            EndpointError: As the function raised it.
            FailedError: The function raised anything else; it is logged.
            PromptError: As the function raised it.
        """
        running = asyncio.get_running_loop().run_in_executor(self.thread, function)
        try:
            # Unlike awaiting it, this raises no error of the function's.
            await asyncio.wait([running])
        finally:
            running.cancel()
        error = running.exception()
        if error is not None:
            raise _known(error)
        return running.result()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        self.streams += 1
        self._no_streams.clear()
        try:
            yield
        finally:
            self.streams -= 1
            if not self.streams:
                self._no_streams.set()

    async def reply(self, job: _Job) -> Answer:
        self.waiting.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await job.answer
        finally:
            if job in self.waiting:
                self.waiting.remove(job)

    async def _work(self) -> None:
        while self.waiting:
            batch = self._next_batch()
            self.on_batch(len(batch))
            begin = time.perf_counter()
            outcomes: Sequence[Answer | BaseException]
            try:
                outcomes = await self.call(lambda jobs=batch: _answers(jobs))  # type: ignore[misc]
            except (EndpointError, FailedError, PromptError) as error:
                outcomes = [error] * len(batch)
            for job, outcome in zip(batch, outcomes, strict=True):
                if job.answer.done():
                    continue  # nobody waits any more
                if isinstance(outcome, BaseException):
                    job.answer.set_exception(_known(outcome))
                else:
                    job.answer.set_result(outcome)
            self.thread.submit(self.tidy)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._no_streams.wait(), time.perf_counter() - begin)

    def _next_batch(self) -> list[_Job]:
        """The oldest job, and those after it that one call can answer with it."""
        first = self.waiting[0]
        room = max(1, self.batch_size // first.candidates)
        batch = [job for job in self.waiting if job.key == first.key][:room]
        self.waiting = deque(job for job in self.waiting if job not in batch)
        return batch


def _known(error: BaseException) -> EndpointError | FailedError | PromptError:
    """An error as callers of an `Engine` know it. One that is not about the request is logged."""
    if isinstance(error, EndpointError | FailedError | PromptError):
        return error
    logger.error("a chatbot failed", exc_info=error)
    failed = FailedError("a chatbot failed")
    failed.__cause__ = error
    return failed


def _answers(jobs: Sequence[_Job]) -> list[Answer | ValueError]:
    """One answer or refusal for each job, by one call unless that is refused."""
    bot, seed = jobs[0].bot, jobs[0].seed
    try:
        replies = bot.reply_batch([job.history for job in jobs], seed=seed)
    except ValueError as error:
        # One conversation that cannot be answered must not take the others with it.
        return [error] if len(jobs) == 1 else [_answers([job])[0] for job in jobs]
    return [_answer(bot, reply, job.n) for job, reply in zip(jobs, replies, strict=True)]


def _pieces(bot: Chatbot, history: Sequence[Turn], seed: int | None) -> Generator[str | Answer, None, None]:
    """Pieces of a reply, then the answer. Nothing is computed before the first is asked for.

    A chatbot that cannot stream says its reply in one piece.
    """
    said: list[str] = []

    def told() -> Generator[str, None, Any]:
        try:
            # `yield from` hands on the value that a generator returns, and closes it with this one.
            return (yield from bot.stream(history, seed=seed))
        except NotImplementedError:
            if said:
                raise
        reply = bot.reply(history, seed=seed)
        yield reply.text
        return reply

    with closing(told()) as stream:
        while True:
            try:
                piece = next(stream)
            except StopIteration as stop:
                end = stop.value
                break
            said.append(piece)
            yield piece
    yield _answer(bot, end if isinstance(end, Reply) else Reply("".join(said)), 1)


def _answer(bot: Chatbot, reply: Reply, n: int) -> Answer:
    chosen = _chosen(reply, n)
    choices = tuple(_choice(text, candidate) for text, candidate in chosen)
    model = getattr(bot, "model", None)
    prompt = reply.evidence.get("prompt")
    if model is None or not prompt:
        return Answer(reply, choices, 0, 0)
    counted = sum(
        candidate.num_tokens if candidate is not None and candidate.num_tokens else model.count_tokens(text)
        for text, candidate in chosen
        if text
    )
    return Answer(reply, choices, model.count_tokens(prompt), counted)


def _chosen(reply: Reply, n: int) -> list[tuple[str, Candidate | None]]:
    """The reply, then the candidates that are not it, best first; as many as there are, at most ``n``."""
    rest = list(reply.candidates)
    chosen = next((one for one in rest if one.text == reply.text), None)
    if chosen is not None:
        rest.remove(chosen)
    # Where candidates have no log-probability, they stand in their order already.
    rest.sort(key=lambda one: -one.logprob if one.logprob == one.logprob else 0.0)
    others = [one for one in rest if one.text][: n - 1]
    return [(reply.text, chosen), *((one.text, one) for one in others)]


def _choice(text: str, candidate: Candidate | None) -> Choice:
    cut = candidate is not None and candidate.finish_reason == "length"
    return Choice(text, "length" if cut else "stop")
