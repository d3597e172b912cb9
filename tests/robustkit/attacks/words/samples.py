"""Texts to try word attacks on: punctuation, quotes, hyphens, digits, many scripts, emoji."""

from hypothesis import strategies as st

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
