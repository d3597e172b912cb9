"""Words, replacements, deletions, windows and marks are TextAttack's."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustkit.attacks.words import WordText, split_words
from tests.robustkit.attacks.words.peers import TA, pair, same
from tests.robustkit.attacks.words.samples import PIECES, no_chinese, plain, texts

words_from_text = TA.shared.utils.words_from_text
QUICK = settings(max_examples=80, deadline=None)
new_words = st.one_of(
    st.sampled_from(
        ["", "", "[UNK]", "[MASK]", "two words", "and three more", "...", "x-", "-", "Ünï", "‘", "a'b"]
    ),
    st.sampled_from(PIECES),
    st.text(max_size=6),
).filter(no_chinese)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("... -- '", ()),
        ("Don't stop.", ("Don't", "stop")),
        ("'a well-made film'", ("a", "well-made", "film")),
        ("--b-- _c_ *d* @e", ("b", "c", "d", "e")),
        ("3.5 stars/10%", ("3", "5", "stars", "10")),
        ("a`b 3×4", ("a`b", "3×4")),
        ("so 👍🏽 good", ("so", "good")),
    ],
)
def test_words_of_a_text(text: str, words: tuple[str, ...]) -> None:
    assert split_words(text) == words == tuple(words_from_text(text))


@settings(max_examples=300, deadline=None)
@given(st.one_of(texts, st.text(), st.text(alphabet="ab'-_*@. ˗`×Ⅿ")))
@example("中文 and 研究生命 x-y")
def test_words_are_those_of_textattack(text: str) -> None:
    assert list(split_words(text)) == words_from_text(text)


@QUICK
@given(texts, st.data())
def test_any_chain_of_replacements_is_that_of_textattack(text: str, data: st.DataObject) -> None:
    ours, theirs = pair(text)
    same(ours, theirs)
    for _ in range(4):
        if not ours.words:
            break
        index = data.draw(st.integers(0, len(ours.words) - 1))
        word = data.draw(new_words)
        ours, theirs = ours.replaced(index, word), theirs.replace_word_at_index(index, word)
        same(ours, theirs)
    assert ours.original.text == text


chinese = st.lists(
    st.sampled_from(["我来到北京清华大学", "研究生命起源", "他的", "，", " ", "good-ish", "film"])
)


@settings(max_examples=40, deadline=None)
@given(chinese.map("".join), st.data())
def test_chinese_texts_are_cut_as_textattack_does(text: str, data: st.DataObject) -> None:
    ours, theirs = pair(text)
    same(ours, theirs)
    if ours.words:
        index = data.draw(st.integers(0, len(ours.words) - 1))
        word = data.draw(st.sampled_from(["new", "", "研究生命", "two words"]))
        same(ours.replaced(index, word), theirs.replace_word_at_index(index, word))


@QUICK
@given(texts)
def test_every_deletion_is_that_of_textattack(text: str) -> None:
    ours, theirs = pair(text)
    for index in range(len(ours.words)):
        same(ours.deleted(index), theirs.delete_word_at_index(index))


@QUICK
@given(texts, st.data())
def test_several_replacements_at_once_are_those_of_textattack(text: str, data: st.DataObject) -> None:
    ours, theirs = pair(text)
    some = st.sampled_from([piece for piece in PIECES if len(split_words(piece)) == 1])
    changes = data.draw(st.dictionaries(st.integers(0, max(len(ours.words) - 1, 0)), some))
    changes = {index: word for index, word in changes.items() if index < len(ours.words)}
    same(ours.replaced(changes), theirs.replace_words_at_indices(list(changes), list(changes.values())))


@QUICK
@given(plain, plain, st.data())
def test_texts_of_two_parts_are_those_of_textattack(first: str, second: str, data: st.DataObject) -> None:
    ours, theirs = pair({"premise": first + ".", "hypothesis": "I " + second})
    for _ in range(3):
        index = data.draw(st.integers(0, len(ours.words) - 1))
        word = data.draw(st.sampled_from(["", "new", "two words"]))
        ours, theirs = ours.replaced(index, word), theirs.replace_word_at_index(index, word)
        same(ours, theirs)
        assert ours.model_input == theirs.tokenizer_input
        assert [list(words) for words in ours.words_per_input] == theirs.words_per_input
        if not ours.words:
            break


@QUICK
@given(st.one_of(texts, st.tuples(plain, plain)), st.data())
def test_marks_are_those_of_textattacks_logs(text: str | tuple[str, str], data: st.DataObject) -> None:
    ours, theirs = pair(
        text if isinstance(text, str) else dict(zip(("premise", "hypothesis"), text, strict=True))
    )
    start = theirs
    for _ in range(3):
        if not ours.words:
            break
        index = data.draw(st.integers(0, len(ours.words) - 1))
        word = data.draw(st.sampled_from(["new", "two words", "", "film"]))
        ours, theirs = ours.replaced(index, word), theirs.replace_word_at_index(index, word)
    result = SimpleNamespace(
        original_result=SimpleNamespace(attacked_text=start, get_text_color_input=lambda: "red"),
        perturbed_result=SimpleNamespace(attacked_text=theirs, get_text_color_perturbed=lambda: "green"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textattack.attack_results.attack_result.detect", lambda text: "en")
        expected = TA.attack_results.AttackResult.diff_color(result, "file")
    assert ours.marked() == expected


def test_a_replacement_leaves_the_text_around_it_alone() -> None:
    text = WordText("A 'good' film, isn't it?")
    new = text.replaced(1, "fine")
    assert new.text == "A 'fine' film, isn't it?"
    assert new.words == ("A", "fine", "film", "isn't", "it")
    assert (new.modified, new.newly_modified, new.previous) == ({1}, {1}, text)
    assert new.marked() == ("A '[[good]]' film, isn't it?", "A '[[fine]]' film, isn't it?")
    assert (text.text, text.modified) == ("A 'good' film, isn't it?", set())


def test_a_deletion_takes_one_blank_and_moves_what_follows() -> None:
    text = WordText("not a good film").replaced(2, "fine").deleted(1)
    assert text.text == "not fine film"
    assert text.modified == {1} and text.original_index_map == (0, -1, 1, 2)
    assert WordText("good film").deleted(0).text == "film"
    assert (
        WordText("good film").deleted(1).text == "good "
    )  # as in TextAttack: no text behind, the blank stays


def test_texts_are_equal_if_they_read_the_same() -> None:
    text = WordText("a good film")
    assert text.replaced(1, "bad").replaced(1, "good") == text
    assert len({text, WordText("a good film"), text.deleted(1)}) == 2
    assert text != "a good film"


def test_windows() -> None:
    text = WordText("(one two three four five six.)")
    assert text.window(2, 3) == "two three four"
    assert text.window(0, 3) == "one two three"
    assert text.window(5, 3) == "four five six"
    assert text.window(3, math.inf) == "one two three four five six"
    with pytest.raises(ValueError, match="no window"):
        WordText("...").window(0, 3)


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_such_word(index: int) -> None:
    with pytest.raises(IndexError, match=f"no word {index}"):
        WordText("a good film").replaced(index, "x")


@pytest.mark.parametrize("text", [None, 3, ["a"], {"a": 1}])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(TypeError, match="expected a string or a mapping"):
        WordText(text)  # type: ignore[arg-type]


def test_twenty_thousand_words() -> None:
    text = WordText("good film " * 10_000)
    assert text.replaced(19_999, "x").text == "good film " * 9_999 + "good x "


def test_chinese_without_jieba_is_one_word_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkit.attacks.words import text as module

    module._has_jieba.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="jieba is not installed"):
        assert split_words("我来到 x") == ("我来到", "x")
    monkeypatch.undo()
    module._has_jieba.cache_clear()
