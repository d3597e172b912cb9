"""Language models behind any OpenAI-compatible server (vLLM, TGI, llama.cpp, ``transformers serve``, ...)."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from dialogkit.generation.text import ReplyText
from dialogkit.generation.types import Candidate, FinishReason, GenerationConfig, Likelihood, Prompt

__all__ = ["EndpointError", "EndpointLM"]

_T = TypeVar("_T")
# OpenAI's own limit; further stop strings are applied to the answer here.
_MAX_STOPS = 4


class EndpointError(RuntimeError):
    """The server could not be reached, refused a request, or answered with something else than a completion.

    Attributes:
        url: What was asked.
        status: HTTP status; None if there was no answer.
    """

    def __init__(self, message: str, *, url: str, status: int | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.status = status


class EndpointLM:
    """A `LanguageModel` on a server. Chat messages go to ``/chat/completions``, text to ``/completions``.

    Log-probabilities are those the server reports; servers that report none leave ``nan`` in
    `Candidate.logprob` and `Candidate.sum_logprob`, and 0 in `num_tokens`. Whether they are of the model's
    raw distribution is up to the server (vLLM: yes, by default). Where the text of the reported tokens does
    not add up to the reply (a character in several tokens), all reported tokens count.

    Stop strings: the first four are sent, and all are applied to the answer.

    Args:
        base_url: Address up to the version, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name under which the server knows the model.
        api_key: Sent as bearer token; None sends a placeholder (no key is taken from the environment).
        timeout: Seconds to wait for an answer, and between two pieces of a stream.
        max_retries: How often a request is repeated that failed for a passing reason (no connection, status
            408, 409, 429 or 5xx).
        max_length: Context window in tokens, None if unknown.
        supports_chat: Whether the model behind the server takes chat messages.
        concurrency: Most requests at the same time.
        extensions: Settings that OpenAI's interface lacks, sent when they are on. Leave out what the server
            refuses: ``()`` for OpenAI's own.

    Raises:
        ImportError: If the `openai` package is not installed.
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        max_length: int | None = None,
        supports_chat: bool = True,
        concurrency: int = 8,
        extensions: Sequence[str] = ("top_k", "repetition_penalty"),
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, got {base_url!r}")
        if timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if unknown := set(extensions) - {"top_k", "repetition_penalty"}:
            raise ValueError(f"extensions may hold 'top_k' and 'repetition_penalty', got {sorted(unknown)}")
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "EndpointLM needs the openai package: pip install 'dialogkit-robustkit[endpoint]'"
            ) from error
        self._openai = openai
        self._client: Any = openai.OpenAI(
            base_url=base_url, api_key=api_key or "none", timeout=timeout, max_retries=max_retries
        )
        self.base_url = base_url.rstrip("/")
        self.name = model
        self.max_length = max_length
        self.supports_chat = supports_chat
        self.concurrency = concurrency
        self.extensions = tuple(extensions)

    def count_tokens(self, prompt: Prompt) -> int:
        """Estimate of the tokens of a prompt: the server's tokenizer is not at hand.

        Args:
            prompt: Plain text or chat messages.

        Returns:
            One token for each 3 bytes of UTF-8, and 4 for each message; English text takes fewer.
        """
        if isinstance(prompt, str):
            return -(-len(prompt.encode("utf-8", "replace")) // 3)
        return sum(4 + self.count_tokens(message["content"]) for message in prompt)

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        """Draw candidates for each prompt.

        A server that gives fewer choices than asked for is asked again for the rest, with the next seeds.

        Args:
            prompts: Plain texts or lists of chat messages.
            config: How to draw; with `do_sample` off, temperature 0 and a single candidate are asked for.
            seed: Passed on; how reproducible it makes the answer is up to the server.

        Returns:
            For each prompt its candidates.

        Raises:
            TypeError: If `prompts` is a string.
            ValueError: If messages are given and `supports_chat` is off, or a prompt is empty.
            EndpointError: If a request fails.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a sequence of prompts, got a single string")
        for prompt in prompts:
            self._check(prompt)
        return self._concurrently(lambda prompt: self._candidates(prompt, config, seed), prompts)

    def stream(
        self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None
    ) -> Generator[str, None, Candidate]:
        """Yield one reply piece by piece, by the rules of `TransformersLM.stream`.

        Args:
            prompt: Plain text or chat messages.
            config: How to draw; `num_candidates` is ignored.
            seed: As for `generate`.

        Yields:
            Pieces of text, none empty.

        Returns:
            The whole reply, without log-probabilities.

        Raises:
            ValueError: As for `generate`.
            EndpointError: If the request fails, or the stream ends before the reply does.
        """
        self._check(prompt)
        path, body = self._body(prompt, config, seed, 1)
        reply = ReplyText(config.stop)
        ended = False
        with self._errors(path), self._create(path, {**body, "stream": True}) as chunks:
            for chunk in chunks:
                # Servers send chunks without choices too, for usage counts.
                for choice in chunk.choices or ():
                    text = choice.delta.content if path == "chat/completions" else choice.text
                    if reply.push(text or ""):
                        ended = True
                    elif choice.finish_reason is not None:
                        ended, reply.finish_reason = True, _finish_reason(choice, config.stop)
                if ended:
                    break
                if piece := reply.take():
                    yield piece
        if not ended:
            raise EndpointError(
                f"{self._url(path)} ended its stream before the reply was complete", url=self._url(path)
            )
        if piece := reply.take():
            yield piece
        nothing = float("nan")
        return replace(reply.candidate(), logprob=nothing, sum_logprob=nothing)

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Likelihood]:
        """Score given responses on a server that echoes prompts with log-probabilities (vLLM does).

        Tokens that reach from the prompt into the response count as the response's. Positions are found by
        the length of the tokens' text, so they are exact where each character is in one token.

        Args:
            prompts: Plain texts.
            responses: As many responses, none empty.

        Returns:
            One likelihood for each pair.

        Raises:
            NotImplementedError: If the server does not score given text, or a prompt is chat messages.
            ValueError: If the lengths differ, or a prompt or response is empty.
            EndpointError: If a request fails for another reason.
        """
        if isinstance(prompts, str) or isinstance(responses, str):
            raise TypeError("prompts and responses must be sequences, got a single string")
        if len(prompts) != len(responses):
            raise ValueError(
                f"prompts and responses must be as many, got {len(prompts)} and {len(responses)}"
            )
        pairs = []
        for prompt, response in zip(prompts, responses, strict=True):
            if not isinstance(prompt, str):
                raise NotImplementedError(
                    "an endpoint scores responses to plain prompts only, not to messages"
                )
            self._check(prompt)
            if not response:
                raise ValueError("responses must not be empty, got ''")
            pairs.append((prompt, response))
        return self._concurrently(lambda pair: self._likelihood(*pair), pairs)

    def _check(self, prompt: Prompt) -> None:
        if not prompt:
            raise ValueError(f"prompt must not be empty, got {prompt!r}")
        if not isinstance(prompt, str) and not self.supports_chat:
            raise ValueError(f"prompt is a list of chat messages, but supports_chat is off for {self.name!r}")

    def _body(
        self, prompt: Prompt, config: GenerationConfig, seed: int | None, number: int
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of a request for a number of choices."""
        body: dict[str, Any] = {"model": self.name, "n": number, "max_tokens": config.max_new_tokens}
        extra: dict[str, Any] = {}
        if config.do_sample:
            body["temperature"] = config.temperature
            body["top_p"] = config.top_p
            if config.top_k:
                extra["top_k"] = config.top_k
        else:
            body["temperature"] = 0.0
        if config.repetition_penalty != 1.0:
            extra["repetition_penalty"] = config.repetition_penalty
        if extra := {key: value for key, value in extra.items() if key in self.extensions}:
            body["extra_body"] = extra
        if config.stop:
            body["stop"] = list(config.stop[:_MAX_STOPS])
        if seed is not None:
            body["seed"] = seed
        if isinstance(prompt, str):
            return "completions", body | {"prompt": prompt, "logprobs": 1}
        return "chat/completions", body | {"messages": [dict(m) for m in prompt], "logprobs": True}

    def _candidates(self, prompt: Prompt, config: GenerationConfig, seed: int | None) -> list[Candidate]:
        wanted = config.num_candidates if config.do_sample else 1
        candidates: list[Candidate] = []
        while len(candidates) < wanted:
            again = None if seed is None else seed + len(candidates)
            path, body = self._body(prompt, config, again, wanted - len(candidates))
            for choice in self._complete(path, body).choices:
                candidates.append(_candidate(choice, config.stop))
        return candidates[:wanted]

    def _likelihood(self, prompt: str, response: str) -> Likelihood:
        body = {
            "model": self.name,
            "prompt": prompt + response,
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
            "temperature": 0.0,
        }
        lacking = f"{self._url('completions')} does not score given text (echo with logprobs)"
        try:
            choice = self._complete("completions", body).choices[0]
        except EndpointError as error:
            if error.status in (400, 404, 405, 422, 501):
                raise NotImplementedError(f"{lacking}: {error}") from error
            raise
        tokens, values = _reported(choice)
        if not tokens or not (choice.text or "").endswith(response):
            raise NotImplementedError(lacking)
        # Counted from the end, so that a beginning-of-sequence token in the echo does no harm.
        boundary = sum(map(len, tokens)) - len(response)
        end, scores = 0, []
        for token, value in zip(tokens, values, strict=True):
            end += len(token)
            if end > boundary:
                if value is None:
                    raise NotImplementedError(f"{lacking}: no log-probability for the token {token!r}")
                scores.append(float(value))
        return Likelihood(sum(scores), len(scores))

    def _complete(self, path: str, body: Mapping[str, Any]) -> Any:
        with self._errors(path):
            answer = self._create(path, body)
        if not getattr(answer, "choices", None):
            raise EndpointError(
                f"{self._url(path)} answered without a completion: {str(answer)[:200]!r}", url=self._url(path)
            )
        return answer

    def _create(self, path: str, body: Mapping[str, Any]) -> Any:
        resource = self._client.chat if path == "chat/completions" else self._client
        return resource.completions.create(**body)

    def _url(self, path: str) -> str:
        return f"{self.base_url}/{path}"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Errors of the client as `EndpointError`."""
        url = self._url(path)
        try:
            yield
        except self._openai.APITimeoutError as error:
            raise EndpointError(f"{url} did not answer within {self._client.timeout} s", url=url) from error
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise EndpointError(f"{url} cannot be reached: {cause}", url=url) from error
        except self._openai.APIStatusError as error:
            raise EndpointError(
                f"{url} answered {error.status_code}: {error.message}", url=url, status=error.status_code
            ) from error
        except (self._openai.OpenAIError, json.JSONDecodeError) as error:
            raise EndpointError(
                f"{url} answered with something else than a completion: {error}", url=url
            ) from error

    def _concurrently(self, task: Callable[[Any], _T], items: Sequence[Any]) -> list[_T]:
        if len(items) <= 1:
            return [task(item) for item in items]
        with ThreadPoolExecutor(min(self.concurrency, len(items))) as pool:
            try:
                return list(pool.map(task, items))
            finally:
                # After an error nothing more is sent.
                pool.shutdown(cancel_futures=True)


def _reported(choice: Any) -> tuple[list[str], list[float | None]]:
    """The tokens of a choice and their log-probabilities; empty if the server reports none."""
    report = getattr(choice, "logprobs", None)
    if report is None:
        return [], []
    content = getattr(report, "content", None)
    if content is not None:
        return [entry.token for entry in content], [entry.logprob for entry in content]
    tokens, values = getattr(report, "tokens", None), getattr(report, "token_logprobs", None)
    if not tokens or not values or len(tokens) != len(values):
        return [], []
    return list(tokens), list(values)


def _candidate(choice: Any, stop: Sequence[str]) -> Candidate:
    text = choice.message.content if hasattr(choice, "message") else choice.text
    text = text or ""
    tokens, values = _reported(choice)
    known = bool(tokens) and None not in values
    aligned = known and "".join(tokens).startswith(text)
    reply = ReplyText(stop)
    stopped, at = False, 0
    if aligned:
        for token, value in zip(tokens, values, strict=True):
            piece = token[: len(text) - at]
            at += len(token)
            # What follows the text are tokens of a stop string or the end of the sequence.
            if stopped or not piece:
                break
            stopped = reply.push(piece, logprob=value)
    else:
        stopped = reply.push(text)
    reply.finish_reason = "stop" if stopped else _finish_reason(choice, stop)
    candidate = reply.candidate()
    if aligned:
        return candidate
    scores = [float(value) for value in values if value is not None] if known else []
    total = sum(scores) if scores else float("nan")
    mean = total / len(scores) if scores else total
    return Candidate(candidate.text, mean, total, len(scores), candidate.finish_reason)


def _finish_reason(choice: Any, stop: Sequence[str]) -> FinishReason:
    if choice.finish_reason == "length":
        return "length"
    # OpenAI's interface says "stop" for both ends; vLLM adds which string it was, or none.
    reported = getattr(choice, "stop_reason", "")
    if not stop or reported is None:
        return "eos"
    return "stop"
