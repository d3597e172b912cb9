"""Character cards (V2 and V3, a community's format) as characters, and back.

A card is data. Of its fields only the example messages and the greetings become lines of the character; a
card's system prompt, instructions, lorebook and scenario are never put into a prompt.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dialogkit.dialogues import single_line

from .characters import Character

__all__ = ["CardSpec", "card_of", "character_of", "example_messages", "fill_macros", "is_card"]

CardSpec = Literal[2, 3]
"""Version of the card format."""

_SPECS: dict[CardSpec, tuple[str, str]] = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}
_EXTENSION = "dialogkit"
_MAX_SUMMARY = 200

_CHAR = r"\{\{\s*char\s*\}\}|<BOT>"
_USER = r"\{\{\s*user\s*\}\}|<USER>"
_START = re.compile("<START>", re.IGNORECASE)


def is_card(record: object) -> bool:
    """Whether a JSON value claims to be a card, of whatever version."""
    return isinstance(record, Mapping) and "spec" in record


# From a card to a character ---------------------------------------------------------------------------------


def character_of(card: Mapping[str, Any]) -> Character:
    """Makes a character of a card.

    A card that :func:`card_of` wrote and that nobody changed gives the same character again. Otherwise the
    character's lines in the example messages become its utterances, and the user's message before each of
    them its gold context. Lines without such a message are left out, with a warning, where others have one. A
    card without example messages gives its greetings.

    Args:
        card: The JSON object.

    Raises:
        ValueError: It is no card of version 2 or 3, or one of the fields that are read is of a wrong type.
    """
    if card.get("spec") not in [name for name, _ in _SPECS.values()]:
        known = " or ".join(repr(name) for name, _ in _SPECS.values())
        raise ValueError(f"the 'spec' of a card must be {known}, got {card.get('spec')!r:.80}")
    data = card.get("data")
    if not isinstance(data, Mapping):
        raise ValueError(f"the 'data' of a card must be an object, got {type(data).__name__}")
    own = _own_character(data)
    if own is not None:
        return own
    name = single_line(_text(data, "name"))
    nickname = single_line(_text(data, "nickname"))
    said = example_messages(_text(data, "mes_example"), (name, nickname))
    pairs = [(context, line) for context, line in said if context is not None]
    if pairs and len(pairs) < len(said):
        warnings.warn(
            f"{len(said) - len(pairs)} of {len(said)} example messages of {name!r} answer nothing and are "
            "left out",
            stacklevel=2,
        )
    lines = [line for _, line in pairs or said]
    if not lines:
        greetings = [_text(data, "first_mes"), *_texts(data, "alternate_greetings")]
        lines = [line for greeting in greetings if (line := single_line(greeting))]
    if not lines:
        warnings.warn(f"the card of {name!r} has neither example messages nor a greeting", stacklevel=2)
    char = nickname or name
    return Character(
        name=name,
        utterances=tuple(fill_macros(line, char=char) for line in lines),
        gold_contexts=tuple(fill_macros(context, char=char) for context, _ in pairs) or None,
        summary=_summary(data),
    )


def example_messages(text: str, names: Sequence[str] = ()) -> list[tuple[str | None, str]]:
    """The character's messages in the examples of a card.

    Examples are blocks that ``<START>`` separates. A line that begins with ``{{user}}:`` or ``{{char}}:``
    (or ``<USER>:``, ``<BOT>:``, ``User:``, ``You:``, the character's name) begins a message, all other lines
    go on with the one before; what stands before the first message of a block is ignored.

    Args:
        text: The field ``mes_example``; macros in it stay as they are.
        names: Names of the character.

    Returns:
        For each message of the character the user's message before it in the block, None where there is none,
        and the message, each on one line.
    """
    own = "|".join([_CHAR, *(re.escape(name) for name in names if name)])
    label = re.compile(rf"\s*(?:(?P<char>{own})|(?P<user>{_USER}|user|you))\s*[:：]", re.IGNORECASE)
    found: list[tuple[str | None, str]] = []
    for block in _START.split(text):
        messages: list[tuple[bool, list[str]]] = []
        for line in block.splitlines():
            if match := label.match(line):
                messages.append((match["char"] is not None, [line[match.end() :]]))
            elif messages:
                messages[-1][1].append(line)
        context = None
        for by_character, lines in messages:
            said = single_line("\n".join(lines))
            if not by_character:
                context = said or None
            elif said:
                found.append((context, said))
    return found


def fill_macros(text: str, *, char: str, user: str = "User") -> str:
    """Puts names in place of ``{{char}}``, ``{{user}}``, ``<BOT>`` and ``<USER>``; other macros stay text.

    For the fields of a card that are meant to hold macros. What people type in a conversation is never
    passed through this.

    Args:
        text: A line of a card.
        char: The character's name; a macro inside it is not expanded.
        user: The user's label.
    """
    return re.sub(
        f"(?P<char>{_CHAR})|{_USER}",
        lambda match: char if match["char"] is not None else user,
        text,
        flags=re.IGNORECASE,
    )


def _own_character(data: Mapping[str, Any]) -> Character | None:
    """The character that :func:`card_of` put into the card, unless another program has changed the card."""
    extensions = data.get("extensions", {})
    if not isinstance(extensions, Mapping):
        raise ValueError(f"'extensions' must be an object, got {type(extensions).__name__}")
    record = extensions.get(_EXTENSION)
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise ValueError(f"'extensions.{_EXTENSION}' must be an object, got {type(record).__name__}")
    own = Character.from_dict(record)
    written = card_of(own)["data"]
    if all(data.get(field) == written[field] for field in ("name", "mes_example")):
        return own
    warnings.warn(
        f"the card of {own.name!r} was changed by another program; its own fields are read", stacklevel=3
    )
    return None


def _text(data: Mapping[str, Any], field: str) -> str:
    value = data.get(field, "")
    if not isinstance(value, str):
        raise ValueError(f"{field!r} of a card must be a string, got {type(value).__name__}")
    return value


def _texts(data: Mapping[str, Any], field: str) -> list[str]:
    value = data.get(field, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{field!r} of a card must be a list of strings")
    return value


def _summary(data: Mapping[str, Any]) -> str:
    whole = single_line(_text(data, "creator_notes")) or single_line(_text(data, "description"))
    return whole if len(whole) <= _MAX_SUMMARY else f"{whole[:_MAX_SUMMARY]}…"


# From a character to a card ---------------------------------------------------------------------------------


def card_of(character: Character, *, spec: CardSpec = 2) -> dict[str, Any]:
    """Makes a card of a character.

    The lines stand in the example messages, where other programs find them, and the whole character in
    ``extensions.dialogkit``, so that nothing is lost on the way back.

    Args:
        character: Who.
        spec: Version of the format.

    Returns:
        The JSON object.
    """
    if spec not in _SPECS:
        raise ValueError(f"spec must be 2 or 3, got {spec!r}")
    contexts = character.gold_contexts or [None] * len(character.utterances)
    blocks = [
        "<START>\n" + (f"{{{{user}}}}: {context}\n" if context else "") + f"{{{{char}}}}: {line}\n"
        for context, line in zip(contexts, character.utterances, strict=True)
    ]
    data: dict[str, Any] = {
        "name": character.name,
        "description": character.summary,
        "personality": "",
        "scenario": "",
        "first_mes": character.utterances[0] if character.utterances else "",
        "mes_example": "".join(blocks),
        "creator_notes": "",
        "system_prompt": "",
        "post_history_instructions": "",
        "alternate_greetings": [],
        "tags": [],
        "creator": "",
        "character_version": "",
        "extensions": {_EXTENSION: character.to_dict()},
    }
    if spec == 3:
        data["group_only_greetings"] = []
    name, version = _SPECS[spec]
    return {"spec": name, "spec_version": version, "data": data}
