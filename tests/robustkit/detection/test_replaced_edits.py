"""Copies of texts with words replaced at random."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.attacks.words import (
    CharacterDeletion,
    MaskedLMSwap,
    Neighbours,
    NeighbourSwap,
    WordNet,
    WordNetSwap,
)
from robustkit.detection import Edited, edited_copies, typos
from robustkit.detection.replaced_edits import edited, offers_of

TEXT = "The Fine film , isn't it ? A fine plot\twith (FINE) acting !"


@given(st.text(alphabet="abcdefgh", min_size=2, max_size=9), st.integers(0, 1000))
def test_a_typo_is_one_edit(word: str, seed: int) -> None:
    (typo,) = typos(word, Random(seed))
    assert abs(len(typo) - len(word)) <= 1
    if len(typo) == len(word):
        assert sum(a != b for a, b in zip(word, typo, strict=True)) <= 2
    else:
        longer, shorter = sorted((word, typo), key=len, reverse=True)
        assert any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))
    assert typos(word[:1], Random(seed)) == []


def test_a_typo_leaves_the_end_of_a_word_but_for_a_swap() -> None:
    found = {typos("abcd", Random(seed))[0] for seed in range(4000)}
    assert {typo for typo in found if not typo.endswith("d")} == {"abdc"}
    # An added letter, even another d, stands before the third letter at the latest.
    assert {typo[-2:] for typo in found if len(typo) == 5} == {"cd"}
    assert {typo for typo in found if len(typo) == 3} == {"bcd", "acd", "abd"}


@given(st.integers(0, 1000))
def test_words_with_replacements_change_keep_their_capitals_and_nothing_else_changes(seed: int) -> None:
    offers = {"fine": ["decent"], "film": ["movie"]}
    new = edited(TEXT, lambda word: offers.get(word, []), frozenset({"film"}), Random(seed))
    assert new.text != TEXT
    back = new.text.replace("decent", "fine").replace("Decent", "Fine").replace("DECENT", "FINE")
    assert back == TEXT
    assert {new.text[start:end].lower() for start, end in new.places} == {"decent"}
    assert len(new.places) == new.text.lower().count("decent")


def test_a_word_in_its_own_place_is_not_replaced() -> None:
    assert edited(TEXT, lambda word: [], frozenset(), Random(0)) == Edited(TEXT)
    same = edited("Paris in spring", lambda word: {"paris": ["Paris"]}.get(word, []), frozenset(), Random(0))
    assert same == Edited("Paris in spring")
    lower = edited("paris in spring", lambda word: {"paris": ["Paris"]}.get(word, []), frozenset(), Random(0))
    assert lower == Edited("Paris in spring", ((0, 5),))


@given(st.text(max_size=60), st.integers(0, 100))
def test_places_name_the_new_words_in_any_script(text: str, seed: int) -> None:
    new = edited(text, lambda word: [word[::-1], word + "ß", "字"], frozenset(), Random(seed), rates=(1.0,))
    rest, end = [], 0
    for start, stop in new.places:
        assert end <= start < stop <= len(new.text)
        rest.append(new.text[end:start])
        end = stop
    rest.append(new.text[end:])
    # What is around the new words stands in the old text, in the same order.
    place = 0
    for piece in rest:
        place = text.index(piece, place) + len(piece)
    if not new.places:
        assert new.text == text


@given(st.sets(st.sampled_from(["fine", "film", "plot", "acting", "with"])), st.integers(0, 50))
def test_spared_words_are_never_replaced(spared: set[str], seed: int) -> None:
    sources = [lambda word, rng: [word.upper() + "x"], typos]
    for new in edited_copies([TEXT] * 4, sources, spared, seed=seed):
        for word in spared:
            assert new.text.lower().split().count(word) == TEXT.lower().split().count(word)


def test_copies_come_from_every_source_and_repeat_with_the_seed() -> None:
    sources = [lambda word, rng: ["decent"], lambda word, rng: ["awful", word]]
    texts = ["a fine film with fine acting", "so it is"] * 30
    copies = edited_copies(texts, sources, seed=3)
    assert copies == edited_copies(texts, sources, seed=3)
    assert copies != edited_copies(texts, sources, seed=4)
    words = Counter(new.text[start:end] for new in copies for start, end in new.places)
    assert set(words) == {"decent", "awful"}
    mixed = [len({new.text[start:end] for start, end in new.places}) for new in copies]
    assert max(mixed) == 2  # some texts have words of all sources


def test_the_swaps_of_attacks_are_sources() -> None:
    wordnet = WordNet(lambda word: [[word, "picture", "moving picture"]])
    neighbours = Neighbours({"film": ["Movie", "cinema", "footage"]})
    rng = Random(0)
    assert offers_of(WordNetSwap(wordnet))("film", rng) == ("picture",)
    assert offers_of(NeighbourSwap(neighbours, 2))("film", rng) == ["movie", "cinema"]
    assert rng.getstate() == Random(0).getstate()  # a swap that does not draw takes no random numbers
    deletion = offers_of(CharacterDeletion())
    found = [deletion("film", Random(seed))[0] for seed in range(30)]
    assert set(found) == {"ilm", "flm", "fim", "fil"}
    assert found == [deletion("film", Random(seed))[0] for seed in range(30)]


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(TypeError, match="a source is a dict; expected a WordSwap"):
        edited_copies(["a film"], [{"film": "movie"}], seed=0)
    # It needs the text around the word.
    with pytest.raises(TypeError, match="a source is a MaskedLMSwap"):
        offers_of(MaskedLMSwap(None))
