"""Characters in files: their own JSON, cards as JSON or inside pictures, plain lines."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

from dialogkit import embedded
from dialogkit.dialogues import single_line
from trainkit.hub import write_bytes, write_json

from .cards import CardSpec, card_of, character_of, is_card
from .characters import Blend, Character
from .png import is_png, make_png, read_texts, replace_texts
from .strict import MAX_FILE, MAX_JSON, parse_json, read_limited

__all__ = [
    "CHARACTER_FILES",
    "MAX_UTTERANCES",
    "SCHEMA_PATH",
    "load_character",
    "read_character",
    "write_card",
    "write_lines",
]

CHARACTER_FILES = (".json", ".png", ".tsv", ".txt")
"""Endings of the files that hold a character."""

SCHEMA_PATH = Path(__file__).with_name("character.schema.json")
"""JSON Schema of a character's own JSON."""

MAX_UTTERANCES = 10_000
"""Most utterances of a character in a file."""

# The keywords of cards in pictures: V3 programs write both and prefer the first.
_KEYWORDS: dict[CardSpec, str] = {3: "ccv3", 2: "chara"}


def load_character(character: Character | Blend | str | Path) -> Character | Blend:
    """Returns the character that is meant: itself, that of a file, or the embedded one of that name.

    Args:
        character: A name ending in one of `CHARACTER_FILES` and any ``Path`` is a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no valid character, or there is no embedded character of that name; the
            message lists the names.
    """
    if isinstance(character, Character | Blend):
        return character
    if isinstance(character, Path) or character.lower().endswith(CHARACTER_FILES):
        return read_character(character)
    return Character.from_json(embedded.character_path(character))


def read_character(path: str | Path, *, name: str | None = None) -> Character:
    """Reads a character from a file of any kind.

    Args:
        path: A character's own JSON; a card (V2 or V3) as JSON or in a PNG picture; ``.tsv`` as
            :meth:`Character.from_tsv` reads it; ``.txt`` with an utterance in each line.
        name: Whose lines of a ``.tsv`` to take, or who says those of a ``.txt``, by default the file's name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is larger than allowed, damaged, or no valid character; the message names it.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".tsv":
        character = Character.from_tsv(path, name)
    else:
        data = read_limited(path, MAX_FILE)
        try:
            character = _of_lines(data, name or path.stem) if kind == ".txt" else _of_json(data)
        except ValueError as error:
            misnamed = "no PNG picture, and as JSON: " if kind == ".png" and not is_png(data) else ""
            raise ValueError(f"{path}: {misnamed}{error}") from error
    if len(character.utterances) > MAX_UTTERANCES:
        raise ValueError(
            f"{path}: {len(character.utterances):,} utterances, more than the {MAX_UTTERANCES:,} allowed"
        )
    return character


def write_card(
    character: Character, path: str | Path, *, spec: CardSpec = 2, image: str | Path | None = None
) -> None:
    """Writes a character as a card that other programs read, whole or not at all.

    Args:
        character: Who.
        path: A ``.json`` file, or a ``.png`` picture with the card inside. A picture with a V3 card holds a
            V2 card, too.
        spec: Version of the card.
        image: The picture to put the card into, by default a small one of one colour. Cards that it holds
            already are taken out.

    Raises:
        FileNotFoundError: There is no such picture.
        ValueError: The file has another ending, a ``.json`` was given a picture, or the picture is no PNG or
            is damaged.
    """
    kind = Path(path).suffix.lower()
    if kind == ".json":
        if image is not None:
            raise ValueError(f"a picture can only be written to a .png file, not to {path}")
        write_json(path, card_of(character, spec=spec))
        return
    if kind != ".png":
        raise ValueError(f"a card is a .json or a .png file, not {path}")
    if image is None:
        red, green, blue = bytes.fromhex(character.fingerprint[:6])
        picture = make_png((red, green, blue))
    else:
        picture = read_limited(image, MAX_FILE)
    texts = {
        keyword: base64.b64encode(json.dumps(card_of(character, spec=version), allow_nan=False).encode())
        for version, keyword in _KEYWORDS.items()
        if version <= spec
    }
    try:
        written = replace_texts(picture, texts, instead_of=frozenset(_KEYWORDS.values()))
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error
    write_bytes(path, written)


def write_lines(character: Character, path: str | Path) -> None:
    """Writes a character's lines: as :meth:`Character.from_tsv` reads them, or an utterance in each line.

    Args:
        character: Who.
        path: A ``.tsv`` or ``.txt`` file.

    Raises:
        ValueError: The file has another ending.
    """
    kind = Path(path).suffix.lower()
    if kind == ".tsv":
        contexts = character.gold_contexts
        rows = [[character.name, line] for line in character.utterances]
        if contexts is not None:
            rows = [[*row, context] for row, context in zip(rows, contexts, strict=True)]
        lines = ["\t".join(row) for row in rows]
    elif kind == ".txt":
        lines = list(character.utterances)
    else:
        raise ValueError(f"lines are written to a .tsv or a .txt file, not to {path}")
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _of_json(data: bytes) -> Character:
    """The character of a JSON file or of a picture with a card in it."""
    if is_png(data):
        data = _card_in(data)
    elif len(data) > MAX_JSON:
        raise ValueError(f"the file is larger than {MAX_JSON:,} bytes, the most that is read")
    record = parse_json(data)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    return character_of(record) if is_card(record) else Character.from_dict(record)


def _card_in(picture: bytes) -> bytes:
    """The JSON of the card in a picture."""
    texts = read_texts(picture, limit=MAX_JSON * 4 // 3 + 4)
    found = next((texts[keyword] for keyword in _KEYWORDS.values() if keyword in texts), None)
    if found is None:
        raise ValueError("the picture holds no character card")
    try:
        # Some programs break the lines of base64.
        return base64.b64decode(b"".join(found.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the card in the picture is not base64: {error}") from error


def _of_lines(data: bytes, name: str) -> Character:
    if len(data) > MAX_JSON:
        raise ValueError(f"the file is larger than {MAX_JSON:,} bytes, the most that is read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {data[error.start]:#x}") from error
    return Character(name, tuple(line for line in text.split("\n") if single_line(line)))
