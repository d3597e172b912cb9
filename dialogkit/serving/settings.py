"""Limits and the key of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ServerSettings"]


@dataclass(frozen=True)
class ServerSettings:
    """What a server allows.

    Attributes:
        api_key: Clients must send it as bearer token; None asks for none.
        allowed_hosts: Names by which a server without a key may be called. A page that lets its own name
            point to 127.0.0.1 (DNS rebinding) then cannot use it. With a key any name will do.
        max_requests: Requests that are accepted and not answered, running and waiting together. One more is
            refused with 429.
        retry_after: Seconds that a refused client is told to wait.
        batch_size: Most candidates that a chatbot draws in one call, for as many conversations as that is.
        max_body: Most bytes of a request.
        max_messages: Most messages of a conversation.
        max_tokens: Most new tokens that a client may ask for.
        max_choices: Most choices (``n``) that a client may ask for.
        timeout: Seconds after which a request is given up, waiting included.

    Raises:
        ValueError: A value is out of its range, or the key is blank or no printable ASCII.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    max_requests: int = 64
    retry_after: int = 1
    batch_size: int = 64
    max_body: int = 1 << 18
    max_messages: int = 200
    max_tokens: int = 256
    max_choices: int = 20
    timeout: float = 300.0

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            raise ValueError("api_key must be printable ASCII characters without spaces")
        for name in (
            "max_requests",
            "retry_after",
            "batch_size",
            "max_body",
            "max_messages",
            "max_tokens",
            "max_choices",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
