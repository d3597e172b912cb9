"""The application: paths, their answers, their errors."""

# No `from __future__ import annotations`: FastAPI reads the annotations of the functions inside `create_app`.

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from dialogkit.chat import Chatbot
from dialogkit.generation.endpoint import EndpointError
from dialogkit.generation.types import PromptError

from .chat_request import SAMPLING, ChatRequest, parse_request
from .connection import CLIENT_GONE, read_body, unless_gone
from .engine import Answer, Busy, Engine, FailedError, own_generation, takes_instruction
from .errors import ApiError
from .guard import Guard
from .metrics import SECONDS, Metrics
from .schema import Completion, components, event, model_entry, now, operation
from .settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_LAST_WORDS = 5.0
"""Seconds beyond the time limit in which a client may read why its reply ended."""

_METRICS = {
    "dialogkit_requests_total": "Chat completions by model and HTTP status; 499: the client went away.",
    "dialogkit_requests_active": "Chat completions that run or wait.",
    "dialogkit_requests_waiting": "Whole replies that wait for a batch.",
    "dialogkit_request_seconds": "Seconds from a chat completion's request to the end of its answer.",
    "dialogkit_first_piece_seconds": "Seconds from the request to the first piece of a streamed reply.",
    "dialogkit_batch_size": "Conversations answered by one call.",
    "dialogkit_kept_bytes": "Keys and values that models keep of prompts for reuse.",
    "dialogkit_prompt_tokens_total": "Tokens of prompts by model.",
    "dialogkit_completion_tokens_total": "Tokens of replies by model.",
}


def create_app(bots: Mapping[str, Chatbot], settings: ServerSettings | None = None) -> "FastAPI":
    """An OpenAI-compatible server of chatbots, as an ASGI application.

    ``app.state.engine`` is the `Engine` that answers: what is mounted on the application must ask it for
    replies, too, since a language model serves one caller at a time. ``app.state.bots`` holds the chatbots
    by name, ``app.state.settings`` the settings. `run_app` calls the functions in ``app.state.on_shutdown``
    when the server is told to end: connections that would stay open for ever must be closed there.

    Args:
        bots: The chatbots by the names that clients know them by.
        settings: Limits and key.

    Returns:
        The application, for `run_app` or any ASGI server with one worker.

    Raises:
        ImportError: FastAPI is not installed (extra ``serve``).
        ValueError: There is no chatbot, or a name is blank.
    """
    try:
        from fastapi import Depends, FastAPI, Request, Response
        from fastapi.responses import JSONResponse, PlainTextResponse
    except ImportError as error:
        raise ImportError("serving needs FastAPI: pip install 'dialogkit-robustkit[serve]'") from error

    settings = settings or ServerSettings()
    if not bots or not all(name.strip() for name in bots):
        raise ValueError(f"bots must hold at least one chatbot, each with a name, got {list(bots)}")
    api = _Api(dict(bots), settings)

    # A page with a try-out form would load scripts from elsewhere; the schema is at /openapi.json.
    app = FastAPI(title="dialogkit", docs_url=None, redoc_url=None)
    app.state.engine, app.state.bots, app.state.settings = api.engine, api.bots, settings
    app.state.on_shutdown = []
    app.add_middleware(Guard, settings=settings)
    _answer_errors(app, settings)

    async def lease() -> AsyncIterator[AsyncExitStack]:
        # What is entered here ends with the response, also when the client goes or reads no further.
        async with asyncio.timeout(settings.timeout + _LAST_WORDS), AsyncExitStack() as stack:
            yield stack

    @app.post(
        "/v1/chat/completions",
        openapi_extra=operation(
            "ChatCompletion",
            request="ChatRequest",
            stream="ChatCompletionChunk",
            errors=(400, 401, 404, 413, 429, 500, 502, 504),
        ),
    )
    async def chat_completions(
        request: Request, stack: Annotated[AsyncExitStack, Depends(lease)]
    ) -> Response:
        """Answer a conversation."""
        return await api.complete(request, stack)

    @app.get("/v1/models", openapi_extra=operation("Models", errors=(401,)))
    async def models() -> Response:
        """List the chatbots."""
        return JSONResponse({"object": "list", "data": [api.model(name) for name in api.bots]})

    @app.get("/v1/models/{name:path}", openapi_extra=operation("Model", errors=(401, 404)))
    async def model(name: str) -> Response:
        """Look up a chatbot."""
        return JSONResponse(api.model(name))

    @app.get("/health", openapi_extra=operation("Health"))
    async def health() -> Response:
        """Say that the server is up. Needs no key."""
        return JSONResponse({"status": "ok", "models": len(api.bots), "active": api.engine.active})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(api.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _describe(app, settings)
    return app


class _Api:
    """What the paths do."""

    def __init__(self, bots: dict[str, Chatbot], settings: ServerSettings) -> None:
        self.bots = bots
        self.settings = settings
        self.started = now()
        self.engine = Engine(
            max_requests=settings.max_requests,
            batch_size=settings.batch_size,
            on_batch=lambda size: self.metrics.observe("dialogkit_batch_size", size),
        )
        self.metrics = Metrics(
            _METRICS,
            gauges={
                "dialogkit_requests_active": lambda: self.engine.active,
                "dialogkit_requests_waiting": lambda: self.engine.waiting,
                "dialogkit_kept_bytes": lambda: _kept_bytes(self.bots.values()),
            },
            buckets={
                "dialogkit_request_seconds": SECONDS,
                "dialogkit_first_piece_seconds": SECONDS,
                "dialogkit_batch_size": (1, 2, 4, 8, 16, 32, 64),
            },
        )

    def bot(self, name: str) -> Chatbot:
        if name not in self.bots:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; GET /v1/models lists them",
                param="model",
                code="model_not_found",
            )
        return self.bots[name]

    def model(self, name: str) -> dict[str, Any]:
        self.bot(name)
        return model_entry(name, self.started)

    async def complete(self, request: "Request", stack: AsyncExitStack) -> "Response":
        record = _Record(self.metrics, self.settings.timeout)
        stack.callback(record.close)
        with record.errors():
            async with record.in_time():
                asked = parse_request(await read_body(request, self.settings.max_body), self.settings)
                bot = self.bot(asked.model)
                record.model, record.stream = asked.model, asked.stream
                if asked.stream:
                    return await self._streamed(request, asked, bot, stack, record)
                return await self._whole(request, asked, bot, record)

    async def _whole(
        self, request: "Request", asked: ChatRequest, bot: Chatbot, record: "_Record"
    ) -> "Response":
        from fastapi.responses import JSONResponse

        own = own_generation(bot)
        reply = self.engine.reply(
            bot,
            asked.history(bot.name),
            seed=asked.seed,
            generation=None if own is None else asked.generation(own),
            instruction=asked.instruction if takes_instruction(bot) else "",
            n=asked.n,
        )
        answer = await unless_gone(request.receive, reply)
        record.answered(answer)
        return JSONResponse(_completion(asked).whole(answer), headers=_headers(asked, bot))

    async def _streamed(
        self,
        request: "Request",
        asked: ChatRequest,
        bot: Chatbot,
        stack: AsyncExitStack,
        record: "_Record",
    ) -> "Response":
        from fastapi.responses import StreamingResponse

        own = own_generation(bot)
        steps = self.engine.stream(
            bot,
            asked.history(bot.name),
            seed=asked.seed,
            generation=None if own is None else asked.generation(own),
            instruction=asked.instruction if takes_instruction(bot) else "",
        )
        await stack.enter_async_context(aclosing(steps))
        # What goes wrong before the first piece is still an error with a status.
        first = await unless_gone(request.receive, anext(steps))
        record.status = CLIENT_GONE  # until the end is reached
        record.first_piece()
        return StreamingResponse(
            _events(asked, first, steps, record), headers=_headers(asked, bot), media_type="text/event-stream"
        )


async def _events(
    asked: ChatRequest, first: str | Answer, steps: AsyncGenerator[str | Answer, None], record: "_Record"
) -> AsyncIterator[str]:
    """The events of a streamed reply."""
    completion = _completion(asked)
    yield event(completion.chunk({"role": "assistant", "content": ""}))
    step = first
    while isinstance(step, str):
        yield event(completion.chunk({"content": step}))
        try:
            with record.errors():
                async with record.in_time():
                    step = await anext(steps)
        except ApiError as error:
            yield event(error.body())
            return
    yield event(completion.chunk({}, step.choices[0].finish_reason))
    if asked.include_usage:
        yield event(completion.usage(step))
    yield event("[DONE]")
    record.answered(step)


def _kept_bytes(bots: Iterable[Chatbot]) -> int:
    """Bytes that the models of some chatbots keep of prompts for reuse."""
    models = {id(model): model for bot in bots if (model := getattr(bot, "model", None)) is not None}
    return sum(getattr(model, "kept_prompts", (0, 0))[1] for model in models.values())


def _completion(asked: ChatRequest) -> Completion:
    return Completion(f"chatcmpl-{uuid.uuid4().hex}", asked.model, now())


def _headers(asked: ChatRequest, bot: Chatbot) -> dict[str, str]:
    """Which parts of a request did nothing: better said than passed over in silence."""
    useless = ("logprobs", "top_logprobs", *(SAMPLING if own_generation(bot) is None else ()))
    ignored = [name for name in useless if name in asked.given]
    if asked.instruction and not takes_instruction(bot):
        ignored.append("system messages")
    return {"X-Dialogkit-Ignored": ", ".join(ignored)} if ignored else {}


# Requests ---------------------------------------------------------------------------------------------------


class _Record:
    """What becomes of one request, for the metrics, and how long it may take."""

    def __init__(self, metrics: Metrics, timeout: float) -> None:
        self.metrics = metrics
        self.timeout = timeout
        self.model = ""
        self.stream = False
        self.status = 500
        self.begin = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + timeout

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors that a client should know into `ApiError`, and notes their status."""
        try:
            yield
        except ApiError as error:
            self.status = error.status
            raise
        except Busy:
            self.status = 429
            raise
        except PromptError as error:
            self.status = 400
            raise ApiError(400, str(error), code="cannot_answer") from error
        except EndpointError as error:
            self.status = 502
            logger.warning("%s", error)
            raise ApiError(502, "the model's own server failed", code="upstream_error") from error
        except FailedError as error:
            # The engine has logged what happened; a client learns nothing of the server's inside.
            self.status = 500
            raise ApiError(500, "the server failed", code="internal_error") from error

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Gives up what happens inside when the request has taken too long."""
        try:
            async with asyncio.timeout_at(self.deadline):
                yield
        except TimeoutError as error:
            raise ApiError(504, f"no reply within {self.timeout:g} s", code="timeout") from error

    def first_piece(self) -> None:
        self.metrics.observe("dialogkit_first_piece_seconds", time.perf_counter() - self.begin)

    def answered(self, answer: Answer) -> None:
        self.status = 200
        labels = {"model": self.model}
        self.metrics.count("dialogkit_prompt_tokens_total", labels, answer.prompt_tokens)
        self.metrics.count("dialogkit_completion_tokens_total", labels, answer.completion_tokens)

    def close(self) -> None:
        if self.status == CLIENT_GONE and asyncio.get_running_loop().time() >= self.deadline:
            self.status = 504  # the client is there, and does not read
        self.metrics.count("dialogkit_requests_total", {"model": self.model, "status": str(self.status)})
        if self.status == 200:
            seconds = time.perf_counter() - self.begin
            self.metrics.observe("dialogkit_request_seconds", seconds, {"stream": str(self.stream).lower()})


# The application's manners ----------------------------------------------------------------------------------


def _answer_errors(app: "FastAPI", settings: ServerSettings) -> None:
    """Gives every error the form that OpenAI's clients read."""
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        headers = {"Retry-After": str(settings.retry_after)}
        return answer(ApiError(429, "the server is busy; try again later", code="busy", headers=headers))

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # The server logs what happened; a client learns nothing of its inside. uvicorn closes the connection
        # after an unexpected error, and a client that is not told would send its next request into nothing.
        headers = {"Connection": "close"}
        return answer(ApiError(500, "the server failed", code="internal_error", headers=headers))


def _describe(app: "FastAPI", settings: ServerSettings) -> None:
    """Adds the named schemas to the OpenAPI document, and the key where one is asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for methods in document["paths"].values():
                for described in methods.values():
                    # What FastAPI says of its own validation, which has nothing to do here.
                    described["responses"].pop("422", None)
            parts = document.setdefault("components", {})
            parts["schemas"] = components(settings)
            if settings.api_key is not None:
                parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
