"""The bodies of requests and answers: their OpenAPI schemas, and the answers themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .engine import Answer
from .settings import ServerSettings

__all__ = ["Completion", "components", "event", "model_entry", "operation"]

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


@dataclass(frozen=True)
class Completion:
    """What every part of one answer says of itself.

    Attributes:
        id: Its name.
        model: Who answered.
        created: Unix time.
    """

    id: str
    model: str
    created: int

    def whole(self, answer: Answer) -> dict[str, Any]:
        """A ``chat.completion``."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(answer.choices)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": _usage(answer)}

    def chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A ``chat.completion.chunk``."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The chunk that ends a stream with numbers of tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(answer)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: Mapping[str, Any] | str) -> str:
    """A server-sent event. JSON is ASCII here, so no character of a reply can end the line."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def model_entry(name: str, created: float) -> dict[str, Any]:
    """A chatbot as a model of ``/v1/models``."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": "dialogkit"}


def now() -> int:
    """Unix time in whole seconds."""
    return int(time.time())


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


# OpenAPI ----------------------------------------------------------------------------------------------------


def operation(
    answer: str, *, request: str | None = None, errors: Sequence[int] = (), stream: str | None = None
) -> dict[str, Any]:
    """What an OpenAPI document says of a path.

    Args:
        answer: Name of the schema of its answer.
        request: Name of the schema of its request.
        errors: Further statuses, all with the same schema.
        stream: Name of the schema of an event, if the answer may come as events.
    """
    content = {"application/json": {"schema": _named(answer)}}
    if stream is not None:
        content["text/event-stream"] = {"schema": _named(stream)}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status in errors:
        responses[str(status)] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": _named("Error")}},
        }
    described: dict[str, Any] = {"responses": responses}
    if request is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _named(request)}},
        }
    return described


def components(settings: ServerSettings) -> dict[str, Any]:
    """The named schemas, with a server's limits in them."""
    text_part = _object({"type": {"const": "text"}, "text": _TEXT}, required=("type", "text"))
    message = _object(
        {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {"oneOf": [_TEXT, {"type": "array", "items": text_part}]},
        },
        required=("role", "content"),
    )
    tokens = {"type": "integer", "minimum": 1, "maximum": settings.max_tokens}
    stops = {"type": "array", "items": _TEXT, "maxItems": 4}
    request = _object(
        {
            "model": _TEXT,
            "messages": {
                "type": "array",
                "items": _named("Message"),
                "minItems": 1,
                "maxItems": settings.max_messages,
                "description": "System messages first, the user's message last.",
            },
            "stream": {"type": "boolean", "default": False},
            "stream_options": _object({"include_usage": {"type": "boolean"}}),
            "n": {"type": "integer", "minimum": 1, "maximum": settings.max_choices, "default": 1},
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "temperature": {"type": "number", "minimum": 0, "maximum": 2, "description": "0 is greedy."},
            "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "top_k": {"type": "integer", "minimum": 0, "description": "0 keeps all tokens."},
            "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
            "stop": {"oneOf": [_TEXT, stops]},
            "seed": {"type": "integer"},
        },
        required=("model", "messages"),
    )
    return {
        "Message": message,
        "ChatRequest": request,
        "ChatCompletion": _completion("message", "chat.completion"),
        "ChatCompletionChunk": _completion("delta", "chat.completion.chunk"),
        "Model": _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT}),
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _named("Model")}}),
        "Health": _object({"status": {"const": "ok"}, "models": _COUNT, "active": _COUNT}),
        "Error": _object(
            {
                "error": _object(
                    {
                        "message": _TEXT,
                        "type": _TEXT,
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    }
                )
            }
        ),
    }


_STATUSES = {
    400: "The request is malformed or asks for what is not supported",
    401: "The key is missing or wrong",
    404: "There is no such model",
    413: "The request is too large",
    429: "The server is busy; Retry-After says how long to wait",
    500: "The chatbot failed; the server's log says how",
    502: "The model's own server failed",
    504: "The reply took too long",
}


def _completion(part: str, kind: str) -> dict[str, Any]:
    said = _object({"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}})
    reason = {"enum": ["stop", "length", None]}
    choice = _object({"index": _COUNT, part: said, "logprobs": {"type": "null"}, "finish_reason": reason})
    usage = _object({f"{name}_tokens": _COUNT for name in ("prompt", "completion", "total")})
    return _object(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "choices": {"type": "array", "items": choice},
            "usage": usage,
        }
    )


def _object(properties: Mapping[str, Any], *, required: Sequence[str] = ()) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    return described | ({"required": list(required)} if required else {})


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
