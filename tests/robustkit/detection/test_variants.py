import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.classifiers import TextClassifier
from robustkit.detection import variants
from robustkit.detection.variants import Words, mask_word, softmax, variant_logits
from tests.robustkit.tiny import tiny_classifier, toy_sentiment


@settings(deadline=None)
@given(st.text(alphabet="ab \n\t.'", max_size=20), st.sampled_from([r"\S+", r"\w+(?:['’\-]\w+)*"]))
def test_what_is_not_replaced_stays(text, pattern):
    words = Words(text, pattern)
    assert words.replaced({}) == text
    for index in range(len(words)):
        changed = Words(words.replaced({index: "zzz"}), pattern).words
        assert changed == (*words.words[:index], "zzz", *words.words[index + 1 :])


def test_words_between_blanks_are_those_of_split():
    text = " A fine,  fine\nfilm\t. "
    assert Words(text).words == tuple(text.split())
    assert Words(text).replaced({1: "X", 4: "Y"}) == " A X  fine\nfilm\tY "


def test_pairs_stay_pairs():
    words = Words(("a man", "a good man"))
    assert len(words) == 5
    assert words.replaced({1: "X", 3: "Y"}) == ("a X", "a Y man")


def test_logits_are_those_of_each_copy_and_equal_copies_are_asked_once(monkeypatch):
    classifier = TextClassifier(*tiny_classifier())
    texts = toy_sentiment(6)[0]
    copies = [texts[:2], [], [texts[0], texts[0], texts[3]], texts[4:]]
    asked = []
    logits = classifier.logits

    def watched(items):
        asked.append(list(items))
        return logits(items)

    monkeypatch.setattr(classifier, "logits", watched)
    for chunk in (1, 3, 1000):
        monkeypatch.setattr(variants, "_CHUNK", chunk)
        asked.clear()
        found = list(variant_logits(classifier, iter(copies)))
        assert all(len(items) == len(set(items)) for items in asked)
        for rows, one in zip(found, copies, strict=True):
            np.testing.assert_allclose(rows, logits(one).reshape(len(one), 2), atol=1e-5)
    assert len(asked) == 1 and len(asked[0]) == 5


def test_softmax_does_not_overflow():
    np.testing.assert_allclose(softmax(np.array([[1e30, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


def test_mask_word():
    bert, t5 = (TextClassifier(*tiny_classifier(family)) for family in ("bert", "roberta"))
    assert mask_word(bert, None) == "[MASK]"
    assert mask_word(t5, None) == "<mask>"
    assert mask_word(bert, "***") == "***"
    bert.tokenizer.mask_token = None
    assert mask_word(bert, None) == "[UNK]"
    bert.tokenizer.unk_token = None
    with pytest.raises(ValueError, match="pass mask="):
        mask_word(bert, None)
