from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogkit.evaluation.overlap import copied_share, ngram_f1, split_words

WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


def test_words_are_without_case_and_of_each_text() -> None:
    assert split_words(["Hello, YOU!", "", "Ça va 👋"]) == [
        ["hello", ",", "you", "!"],
        [],
        ["ça", "va", "👋"],
    ]
    assert split_words([]) == []


def test_f1_by_hand() -> None:
    reply = ["the", "cat", "sat"]
    assert ngram_f1(reply, [["the", "cat", "ran", "away"]], 1) == pytest.approx(2 * 2 / (3 + 4))
    assert ngram_f1(reply, [["the", "cat", "ran", "away"]], 2) == pytest.approx(2 * 1 / (2 + 3))
    assert ngram_f1(["a", "a", "b"], [["a", "c"]], 1) == pytest.approx(2 * 1 / 5)  # each as often as in both
    assert ngram_f1(reply, [["no", "word"], ["the", "cat"]], 1) == pytest.approx(2 * 2 / 5)  # the best
    assert ngram_f1([], [["a"]], 1) == 0.0 and ngram_f1(["a"], [["a"]], 2) == 0.0


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 3))
def test_f1_is_a_share_and_one_for_the_same_words(
    words: list[str], references: list[list[str]], n: int
) -> None:
    assert 0.0 <= ngram_f1(words, references, n) <= 1.0
    assert ngram_f1(words, [*references, words], n) == (1.0 if len(words) >= n else pytest.approx(0.0))


def test_copying_by_hand() -> None:
    source = ["we", "went", "to", "the", "old", "house"]
    assert copied_share(["so", "we", "went", "to", "the", "sea"], [source]) == pytest.approx(4 / 6)
    assert copied_share(["we", "went", "to", "a", "house"], [source]) == 0.0  # no four in a row
    assert copied_share(["house"], [source]) == 1.0  # shorter than a run: as a whole
    assert copied_share(["old", "we"], [source]) == 0.0
    assert copied_share([], [source]) == 0.0 and copied_share(["a"], []) == 0.0
    # A run must stand in one source.
    assert copied_share(["a", "b", "c", "d"], [["a", "b"], ["c", "d"]]) == 0.0
    assert copied_share(["a", "b", "c", "d"], [["a", "b"], ["c", "d"]], run=2) == 1.0


@given(WORDS, WORDS, st.integers(1, 5))
def test_a_longer_run_copies_no_more(words: list[str], source: list[str], run: int) -> None:
    if len(words) > run:
        assert copied_share(words, [source], run + 1) <= copied_share(words, [source], run)
    assert copied_share(words, [words], run) == (1.0 if words else 0.0)
