"""Prompts and responses as token ids.

What people and characters say is data: no word of it becomes a control token, and a chat template never sees
it. The template is rendered with a mark in place of every message, and the messages are put in afterwards.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from dialogkit.generation.types import Prompt, PromptError

__all__ = ["PromptEncoder"]

_ROLES = ("system", "user", "assistant")

# Private-use characters stand for a message while its template is rendered.
_MARK = re.compile("\ue000([0-9]+)\ue001")
# How vocabularies with byte fallback spell a byte, such as the line break <0x0A>.
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class PromptEncoder:
    """Encodes prompts and the responses that continue them.

    Control tokens are the tokenizer's special tokens and all its other added tokens that are not white space:
    some models write roles with added tokens that nobody declared special.

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
        self._parse = parse_special_tokens
        # Whether control tokens are parsed is a state of the tokenizer: not two threads at a time.
        self._lock = threading.Lock()
        self._controls = _control_ids(tokenizer)
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
        """Token ids of the text alone, without any control token unless they are to be parsed."""
        return self._parsed(text) if self._parse else self._data(text)

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
        return _following(response, self.plain)

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
        with self._lock:
            text = self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return str(text)

    def _messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        checked = _checked_messages(messages)
        if not self.supports_chat:
            raise ValueError(
                f"prompt is a list of chat messages, but the tokenizer of {self._name!r} has no chat "
                "template: give plain text, or a tokenizer with a chat_template"
            )
        rendered = self._render(checked)
        # Text of the template and number of a message by turns; the template's text comes first and last.
        pieces = _MARK.split(rendered)
        for i in range(1, len(pieces), 2):
            pieces[i] = checked[int(pieces[i])]["content"].strip()
        expected = self._controls_in(self._parsed(rendered))
        text = "".join(pieces)
        ids = self._parsed(text)
        if self._controls_in(ids) == expected and not self._spells_bytes(text, ids):
            return ids
        # A message spells a control token. Encoded piece by piece, it cannot become one.
        ids = self._parsed(pieces[0])
        for i, piece in enumerate(pieces[1:], start=1):
            ids += self._data(piece, first=False) if i % 2 else _following(piece, self._parsed)
        if self._controls_in(ids) != expected:
            raise PromptError("a message holds what the tokenizer takes for control tokens")
        return ids

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat template with a mark in place of each message.

        Templates that treat the white space around a message in some way treat the mark's in the same.
        """
        marked = [
            {"role": message["role"], "content": _marked(i, message["content"])}
            for i, message in enumerate(messages)
        ]
        try:
            # Transformers renders templates in jinja2's immutable sandbox.
            rendered = str(
                self.tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
            )
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in messages]
            raise PromptError(
                f"the model's chat template refuses messages with roles {roles}: {error}"
            ) from error
        shown = {int(number) for number in _MARK.findall(rendered)}
        for i, message in enumerate(messages):
            if message["content"].strip() and i not in shown:
                warnings.warn(
                    f"the chat template of {self._name!r} leaves out message {i + 1}, role "
                    f"{message['role']!r}",
                    stacklevel=5,
                )
        return rendered

    def _tokens(self, text: str, *, parse: bool) -> list[int]:
        """Token ids as the tokenizer makes them; only those it declares special are surely not parsed."""
        with self._lock:
            encoding = self.tokenizer(
                text,
                add_special_tokens=False,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                split_special_tokens=not parse,
                verbose=False,
            )
        return list(encoding["input_ids"])

    def _parsed(self, text: str) -> list[int]:
        return self._tokens(text, parse=True)

    def _unparsed(self, text: str) -> list[int]:
        return self._tokens(text, parse=False)

    def _data(self, text: str, *, first: bool = True) -> list[int]:
        """Token ids without a control token: where one comes out, the text is encoded in two halves.

        So it does not matter how the tokenizer makes one: by an added token that is not declared special, by
        a vocabulary that holds its spelling, or by a normaliser that turns look-alikes into it. A character
        that is itself a control token is left out.
        """
        ids = self._unparsed(text) if first else _following(text, self._unparsed)
        if not self._controls_in(ids) and not self._spells_bytes(text, ids):
            return ids
        if len(text) == 1:
            return []
        middle = len(text) // 2
        return self._data(text[:middle], first=first) + self._data(text[middle:], first=False)

    def _controls_in(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._controls]

    def _spells_bytes(self, text: str, ids: Sequence[int]) -> bool:
        """Whether ``<0x0A>`` spelled out has become the byte."""
        spelled = set(_BYTE.findall(text))
        return bool(spelled) and not spelled.isdisjoint(self.tokenizer.convert_ids_to_tokens(list(ids)))


def _marked(number: int, content: str) -> str:
    """A message's mark, between the white space that the message begins and ends with."""
    said = content.strip()
    if not said:
        return content
    before, after = content.split(said, 1)
    return f"{before}\ue000{number}\ue001{after}"


def _following(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Token ids of a text that stands after another one.

    Tokenizers that put a space before a text's first word do not put it after another character.
    """
    for anchor in ("\n", ":", "a"):
        alone, joint = encode(anchor), encode(anchor + text)
        if alone and joint[: len(alone)] == alone:
            return joint[len(alone) :]
    return encode(text)


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


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    controls = set(tokenizer.all_special_ids)
    controls |= {
        token for token, added in tokenizer.added_tokens_decoder.items() if not added.content.isspace()
    }
    # Ordinary text may hold the unknown token; some models use the same one as an end of text.
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if tokenizer.unk_token_id not in ends:
        controls.discard(tokenizer.unk_token_id)
    return frozenset(controls)


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for begin in range(len(framed) - len(bare) + 1):
        if framed[begin : begin + len(bare)] == bare:
            return framed[:begin], framed[begin + len(bare) :]
    return [], []
