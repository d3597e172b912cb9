"""A request for a chat completion: checked, and turned into a conversation.

Roles say who speaks; no text does. Every message is put on one line, so nothing in it can look like a turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from dialogkit.chat import MAX_MESSAGE
from dialogkit.dialogues import USER, Turn, single_line
from dialogkit.generation.types import GenerationConfig

from .errors import ApiError
from .settings import ServerSettings

__all__ = ["SAMPLING", "ChatRequest", "parse_request"]

SAMPLING = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "stop",
    "seed",
)
"""Parameters that say how a reply is drawn."""

_INSTRUCTING = ("system", "developer")
_ROLES = (*_INSTRUCTING, "user", "assistant")
# What would change the reply's meaning if it were passed over. The values are those that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
_MAX_STOPS = 4
_MAX_STOP_LENGTH = 200


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered.

    Attributes:
        model: Who is asked.
        turns: Who spoke (``"user"`` or ``"assistant"``) and what, in alternation, the user last; texts are
            single lines that are not empty.
        instruction: The system messages, on one line; may be empty.
        stream: Whether the reply is wanted piece by piece.
        include_usage: Whether a stream ends with the numbers of tokens.
        n: How many choices are wanted.
        seed: Seed of the draw.
        max_tokens: Most new tokens; None leaves it to the chatbot, and so for all that follow.
        temperature: 0 is greedy decoding.
        top_p: As in `GenerationConfig`.
        top_k: As in `GenerationConfig`.
        repetition_penalty: As in `GenerationConfig`.
        stop: Further strings that end the reply.
        given: Names of the parameters that the request holds.
    """

    model: str
    turns: tuple[tuple[Literal["user", "assistant"], str], ...]
    instruction: str = ""
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()

    def history(self, name: str) -> tuple[Turn, ...]:
        """The conversation with a chatbot of this name."""
        return tuple(Turn(USER if role == "user" else name, text) for role, text in self.turns)

    def generation(self, own: GenerationConfig) -> GenerationConfig:
        """A chatbot's own settings with the request's in their place; stop strings are added."""
        changes: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.temperature is not None:
            changes["do_sample"] = self.temperature > 0
            changes["temperature"] = self.temperature or None
        changes = {key: value for key, value in changes.items() if value is not None}
        return replace(
            own,
            **changes,
            num_candidates=max(own.num_candidates, self.n),
            stop=tuple(dict.fromkeys((*own.stop, *self.stop))),
        )


def parse_request(body: bytes, settings: ServerSettings) -> ChatRequest:
    """Read the body of a request.

    Args:
        body: JSON.
        settings: Its limits.

    Returns:
        The request.

    Raises:
        ApiError: With status 400, at the first thing that is wrong.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise _wrong(None, f"the body must be a JSON object, got {_kind(data)}")
    # A null is as good as nothing, as in OpenAI's interface.
    fields = _Fields({key: value for key, value in data.items() if value is not None})
    for name, nothing in _REFUSED.items():
        if name in fields.values and fields.values[name] not in nothing:
            raise _wrong(name, f"{name} is not supported", code="unsupported_parameter")
    instruction, turns = _conversation(fields.values.get("messages"), settings)
    request = ChatRequest(
        model=_model(fields.values.get("model")),
        turns=turns,
        instruction=instruction,
        stream=fields.boolean("stream"),
        include_usage=_include_usage(fields.values.get("stream_options")),
        n=fields.integer("n", 1, settings.max_choices) or 1,
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        max_tokens=_max_tokens(fields, settings.max_tokens),
        temperature=_temperature(fields.number("temperature", 0, 2)),
        top_p=fields.number("top_p", 0, 1, above=True),
        top_k=fields.integer("top_k", 0, 2**31),
        repetition_penalty=fields.number("repetition_penalty", 0.1, 10),
        stop=_stop(fields.values.get("stop")),
        given=frozenset(fields.values),
    )
    if request.stream and request.n > 1:
        raise _wrong("n", "a streamed reply has one choice: n must be 1")
    return request


def _temperature(value: float | None) -> float | None:
    """Below a thousandth the likeliest token is all that is left, and scores would overflow."""
    return 0.0 if value is not None and value < 1e-3 else value


@dataclass(frozen=True)
class _Fields:
    """The values of a JSON object by name."""

    values: Mapping[str, Any]

    def boolean(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise _wrong(name, f"{name} must be true or false, got {_kind(value)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(name, f"{name} must be an integer from {low} to {high}, got {_short(value)}")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        # A comparison with NaN is false.
        within = isinstance(value, int | float) and low <= value <= high and not (above and value == low)
        if isinstance(value, bool) or not within:
            bounds = f"above {low} and at most {high}" if above else f"from {low} to {high}"
            raise _wrong(name, f"{name} must be a number {bounds}, got {_short(value)}")
        return float(value)


def _model(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong("model", "model must be the name of a model; GET /v1/models lists them")
    return value


def _include_usage(value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict):
        raise _wrong("stream_options", f"stream_options must be an object, got {_kind(value)}")
    return _Fields(value).boolean("include_usage")


def _max_tokens(fields: _Fields, most: int) -> int | None:
    old = fields.integer("max_tokens", 1, most)
    new = fields.integer("max_completion_tokens", 1, most)
    return old if new is None else new


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong("stop", "stop must be a string or a list of strings")
    if len(stops) > _MAX_STOPS or not all(0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops):
        raise _wrong(
            "stop", f"stop may hold up to {_MAX_STOPS} strings of 1 to {_MAX_STOP_LENGTH} characters"
        )
    return tuple(stops)


def _conversation(
    messages: object, settings: ServerSettings
) -> tuple[str, tuple[tuple[Literal["user", "assistant"], str], ...]]:
    """The instruction and the turns; messages that say nothing are left out, neighbours of a role joined."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages must be a list of at least one message")
    if len(messages) > settings.max_messages:
        raise _wrong(
            "messages", f"messages may hold at most {settings.max_messages} messages, got {len(messages)}"
        )
    said = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if said[-1][0] != "user" or not said[-1][1]:
        raise _wrong(
            f"messages[{len(said) - 1}]", "the last message must be the user's, and must say something"
        )
    talking = next(i for i, (role, _) in enumerate(said) if role not in _INSTRUCTING)
    if late := [i for i, (role, _) in enumerate(said) if role in _INSTRUCTING and i > talking]:
        raise _wrong(f"messages[{late[0]}].role", "system messages must come before all others")
    instruction = " ".join(text for role, text in said[:talking] if text)
    spoken = [(role, text) for role, text in said[talking:] if text]
    turns: list[tuple[Literal["user", "assistant"], str]] = []
    for role, group in groupby(spoken, key=lambda message: message[0]):
        turns.append(("user" if role == "user" else "assistant", " ".join(text for _, text in group)))
    for text in (instruction, *(text for _, text in turns)):
        if len(text) > MAX_MESSAGE:
            raise _wrong(
                "messages",
                f"a message may hold at most {MAX_MESSAGE:,} characters, got {len(text):,}",
                code="string_above_max_length",
            )
    return instruction, tuple(turns)


def _message(message: object, place: str) -> tuple[str, str]:
    """Role and text of a message."""
    if not isinstance(message, dict):
        raise _wrong(place, f"{place} must be an object with role and content, got {_kind(message)}")
    role = message.get("role")
    if role not in _ROLES:
        raise _wrong(f"{place}.role", f"role must be one of {', '.join(_ROLES)}, got {_short(role)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise _wrong(f"{place}.tool_calls", "tools are not supported", code="unsupported_parameter")
    return role, single_line(_text(message.get("content"), f"{place}.content"))


def _text(content: object, place: str) -> str:
    if isinstance(content, str):
        return content
    parts: Sequence[object] = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise _wrong(place, f"content must be text, got {_short(kind) if kind else _kind(part)}")
        texts.append(part["text"])
    return "\n".join(texts)


def _wrong(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: object) -> str:
    if not isinstance(value, str | int | float | None):
        return _kind(value)
    # An integer of JSON may have thousands of digits, and Python refuses to write those out.
    shown = "a very large number" if isinstance(value, int) and abs(value) > 2**64 else repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
