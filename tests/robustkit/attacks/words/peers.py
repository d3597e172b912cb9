"""The real TextAttack beside our parts, and texts to compare them on."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import strategies as st

from robustkit.attacks import import_textattack
from robustkit.attacks.words import WordText

try:
    TA: Any = import_textattack()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

PIECES = (
    "the", "The", "film", "FILM", "fiLm", "I", "a", "A", "don't", "well-made", "rock-'n'-roll",
    "it's", "e-mail", "e_mail", "x@y", "2", "1999", "3.5", "10%", "$5", "Ünïcödé", "naïve",
    "İstanbul", "STRASSE", "straße", "ΟΔΟΣ", "привет", "مرحبا", "ﬁne", "a\u0301", "ⅳ", "`tick`",
    "3×4", "˗˗", "*bold*", "_it_", "'quoted'", '"said"', "“He”", "’tis", "rock’n’roll", "...", "--",
    "-", "'", "@", "!", "?", ",", ";", "(", ")", "[[", "]]", "<br/>", "🎬", "👍🏽", "good", "bad",
    "good", "bad", "very", "not", "is", "movie", "plot",
)  # fmt: skip
GAPS = (" ", " ", " ", "  ", "\n", "\t", "", ",", ", ", ".", "-", "'", "\u00a0", "/")


def no_chinese(text: str) -> bool:
    return not any("\u4e00" <= character <= "\u9fff" for character in text) and "<SPLIT>" not in text


@st.composite
def _made(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=14))
    return "".join(piece + gap for piece, gap in parts)


plain = st.lists(
    st.sampled_from([piece for piece in PIECES if piece.isalpha()]), min_size=1, max_size=24
).map(" ".join)
texts = st.one_of(_made(), plain, st.text(max_size=30)).filter(no_chinese)


def pair(text: str | dict[str, str]) -> tuple[WordText, Any]:
    """Our text and TextAttack's."""
    return WordText(text), TA.shared.AttackedText(text if isinstance(text, str) else OrderedDict(text))


def same(ours: WordText, theirs: Any) -> None:
    """Assert that two texts read alike and have the same history."""
    assert ours.text == theirs.text
    assert list(ours.words) == theirs.words
    assert ours.modified == theirs.attack_attrs["modified_indices"]
    assert list(ours.newly_modified) == list(theirs.attack_attrs.get("newly_modified_indices", ()))
    assert list(ours.original_index_map) == theirs.attack_attrs["original_index_map"].tolist()
    for index in range(len(ours.words)):
        for size in (4, 15, math.inf):
            assert ours.window(index, size) == theirs.text_window_around_index(index, size)
