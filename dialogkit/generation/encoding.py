"""Prompts and responses as token ids."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from dialogkit.generation.types import Prompt

__all__ = ["PromptEncoder"]

_ROLES = ("system", "user", "assistant")


class PromptEncoder:
    """Encodes prompts and the responses that continue them.

    Args:
        tokenizer: The tokenizer; its padding and truncation settings play no role.
        name: What to call the model in messages.
        closed: End plain prompts with the special tokens the tokenizer puts after a text, as an encoder's
            input is; a prompt to be continued must not end with them.
        parse_special_tokens: Read control tokens spelled out in plain text as control tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        closed: bool,
        parse_special_tokens: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self._name = name
        self._split = not parse_special_tokens
        self._before, self._after = _special_frame(tokenizer)
        if not closed:
            self._after = []

    @property
    def supports_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, special tokens included.

        Raises:
            TypeError: If the prompt is neither text nor messages.
            ValueError: If it is empty, or is messages and there is no chat template for them.
        """
        if isinstance(prompt, str):
            ids = self._before + self.plain(prompt) + self._after
            if not ids and self.tokenizer.bos_token_id is not None:
                ids = [self.tokenizer.bos_token_id]
        else:
            ids = self._messages(prompt)
        if not ids:
            raise ValueError("prompt must hold at least one token, got an empty prompt")
        return ids

    def plain(self, text: str) -> list[int]:
        """Token ids of the text alone."""
        encoding = self.tokenizer(
            text,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=self._split,
            verbose=False,
        )
        return list(encoding["input_ids"])

    def continuation(self, prompt: Prompt, context: list[int], response: str) -> list[int]:
        """Token ids of a response that follows a prompt.

        Args:
            prompt: The prompt.
            context: Its token ids; they stay what they are.
            response: The response, every character of which counts.

        Returns:
            What the tokenizer adds to `context` for the response; where it would change `context` itself, the
            tokens the response has after another character.
        """
        if isinstance(prompt, str):
            joint = self._before + self.plain(prompt + response)
            if len(joint) > len(context) and joint[: len(context)] == context:
                return joint[len(context) :]
        # Tokenizers that put a space before a text's first word do not put it after another character.
        for anchor in ("\n", ":", "a"):
            alone, joint = self.plain(anchor), self.plain(anchor + response)
            if alone and joint[: len(alone)] == alone:
                return joint[len(alone) :]
        return self.plain(response)

    def shorten(self, ids: list[int], room: int | None) -> list[int]:
        """Take tokens from the beginning of a prompt until it fits; leading special tokens stay.

        Args:
            ids: Token ids of a prompt.
            room: Most tokens, None for any number.

        Returns:
            At most `room` token ids.
        """
        if room is None or len(ids) <= room:
            return ids
        warnings.warn(
            f"a prompt does not fit into the context window of {self._name!r} and loses its beginning",
            stacklevel=4,
        )
        size = len(self._before)
        head = self._before if size < room and ids[:size] == self._before else []
        return head + ids[len(ids) - room + len(head) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, white space as it is."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        checked = _checked_messages(messages)
        if not self.supports_chat:
            raise ValueError(
                f"prompt is a list of chat messages, but the tokenizer of {self._name!r} has no chat "
                "template: give plain text, or a tokenizer with a chat_template"
            )
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(  # type: ignore[assignment]
                checked,
                add_generation_prompt=True,
                return_dict=False,
                # A user who types a control token must not open a turn of another role.
                sanitize_control_tokens=True,
            )
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in checked]
            raise ValueError(
                f"the chat template of {self._name!r} refuses messages with roles {roles}: {error}"
            ) from error
        return list(ids)


def _checked_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence):
        raise TypeError(f"prompt must be a string or a list of chat messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("prompt must hold at least one chat message, got none")
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise TypeError(f"a chat message must be a mapping with 'role' and 'content', got {message!r}")
        role, content = message["role"], message["content"]
        # Templates write the role between control tokens, so it must not be free text.
        if role not in _ROLES:
            raise ValueError(f"the role of a chat message must be one of {_ROLES}, got {role!r}")
        if not isinstance(content, str):
            raise TypeError(f"the content of a chat message must be a string, got {type(content).__name__}")
        checked.append({"role": role, "content": content})
    return checked


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for begin in range(len(framed) - len(bare) + 1):
        if framed[begin : begin + len(bare)] == bare:
            return framed[:begin], framed[begin + len(bare) :]
    return [], []
