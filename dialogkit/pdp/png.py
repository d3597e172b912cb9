"""Texts inside PNG pictures (ISO/IEC 15948): chunks are read and written, pixels never decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

__all__ = ["is_png", "make_png", "read_texts", "replace_texts"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = (b"tEXt", b"zTXt", b"iTXt")


def is_png(data: bytes) -> bool:
    """Whether the data begin as a PNG file does."""
    return data.startswith(_SIGNATURE)


def read_texts(data: bytes, limit: int) -> dict[str, bytes]:
    """The texts of a picture.

    Args:
        data: The file.
        limit: Most bytes of a text once it is decompressed.

    Returns:
        Texts by their keywords in lower case; of several with one keyword the first.

    Raises:
        ValueError: The file is no PNG, ends early, or a chunk has a wrong checksum or a text that is damaged
            or too long.
    """
    texts: dict[str, bytes] = {}
    for kind, body in _chunks(data):
        if kind in _KINDS:
            keyword, _, rest = body.partition(b"\0")
            name = keyword.decode("latin-1").lower()
            if name not in texts:
                texts[name] = _text(kind, rest, limit)
    return texts


def replace_texts(data: bytes, texts: Mapping[str, bytes], *, instead_of: frozenset[str]) -> bytes:
    """Puts texts into a picture.

    Args:
        data: A PNG file.
        texts: Latin-1 texts by keyword.
        instead_of: Keywords, in lower case, of the texts to take out. Everything else stays as it is.

    Returns:
        The new file, with the texts right before its end.

    Raises:
        ValueError: The file is no PNG, ends early, or a chunk has a wrong checksum.
    """
    kept = [
        (kind, body)
        for kind, body in _chunks(data)
        if not (kind in _KINDS and body.partition(b"\0")[0].decode("latin-1").lower() in instead_of)
    ]
    added = [(b"tEXt", keyword.encode("latin-1") + b"\0" + text) for keyword, text in texts.items()]
    return _SIGNATURE + b"".join(_chunk(*each) for each in [*kept[:-1], *added, kept[-1]])


def make_png(colour: tuple[int, int, int], size: int = 64) -> bytes:
    """A square picture of one colour.

    Args:
        colour: Red, green, blue, each 0 to 255.
        size: Side in pixels.
    """
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(colour) * size) * size)
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk, from IHDR to IEND; what follows is ignored, as by all programs."""
    if not is_png(data):
        raise ValueError("not a PNG file: the signature is missing")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError(f"the PNG file is cut off at byte {len(data)}, before its end chunk")
        (length,) = struct.unpack_from(">I", data, at)
        first, kind = not kind, data[at + 4 : at + 8]
        if length > len(data) - at - 12:
            raise ValueError(
                f"the PNG chunk at byte {at} says it has {length:,} bytes, but the file ends before"
            )
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(kind + body) != checksum:
            raise ValueError(f"the PNG chunk at byte {at} has a wrong checksum: the file is damaged")
        if first and kind != b"IHDR":
            raise ValueError("not a PNG file: it does not begin with its header chunk")
        yield kind, body
        at += length + 12


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _text(kind: bytes, rest: bytes, limit: int) -> bytes:
    """The text after the keyword of a chunk."""
    compressed = kind == b"zTXt"
    if compressed:
        rest = rest[1:]  # compression method, of which there is one
    elif kind == b"iTXt":
        compressed, rest = rest[:1] == b"\1", rest[2:]
        _language, _, rest = rest.partition(b"\0")
        _translated, _, rest = rest.partition(b"\0")
    if compressed:
        stream = zlib.decompressobj()
        try:
            rest = stream.decompress(rest, limit + 1)
        except zlib.error as error:
            raise ValueError(f"a compressed text of the PNG file is damaged: {error}") from error
        if not stream.eof and len(rest) <= limit:
            raise ValueError("a compressed text of the PNG file is cut off")
    if len(rest) > limit:
        raise ValueError(f"a text of the PNG file is longer than {limit:,} bytes, the most that is read")
    return rest
