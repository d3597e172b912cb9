"""Behaviours C13, C14 and C16: which exemplars are chosen; hits that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.dialogues import Example
from dialogkit.exemplar import (
    ContentTokens,
    ExemplarPolicy,
    Exemplars,
    ExemplarSelector,
    JaccardFilter,
    jaccard,
    preset,
    select_exemplars,
)
from dialogkit.retrieval import ResponseIndex, ResponseList, StaleIndexError
from tests.dialogkit.exemplar.toys import WordRetriever, examples, response_index, response_set
from tests.dialogkit.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer(pad=True, bos=True, closing_eos=True)
ROWS = st.lists(st.integers(0, 9), max_size=8)


def words(text: str) -> frozenset[int]:
    """A token for each word."""
    return frozenset(int.from_bytes(word.encode(), "big") for word in text.split())


def chosen(
    hits: Sequence[Sequence[int]],
    golds: Sequence[str],
    responses: Sequence[str],
    policy: ExemplarPolicy,
    seed: int = 0,
) -> Exemplars:
    generator = torch.Generator().manual_seed(seed)
    return select_exemplars(np.array(hits), golds, ResponseList(responses), policy, words, generator)


@given(a=ROWS, b=ROWS)
def test_c13_jaccard_is_symmetric_and_of_sets(a: list[int], b: list[int]) -> None:
    assert jaccard(a, b) == jaccard(b, a) == jaccard(a * 2, b[::-1])
    assert 0 <= jaccard(a, b) <= 1
    assert jaccard(a, a) == 1
    if a and not set(a) & set(b):
        assert jaccard(a, b) == 0
    assert jaccard([1, 2, 3], [2, 3, 4]) == 0.5


@given(text=st.text("ab ,.", min_size=1, max_size=12).filter(str.strip))
@settings(max_examples=50, deadline=None)
def test_c13_copies_of_any_length_are_filtered(text: str) -> None:
    tokens = ContentTokens(TOKENIZER)
    assert jaccard(tokens(text), tokens(f" {text}\n")) == 1
    found = select_exemplars(
        np.array([[0]]),
        [text],
        ResponseList([text, "zz"]),
        ExemplarPolicy(k=1, exclude_gold=False, filter=JaccardFilter(0.6, "mask")),
        tokens,
        torch.Generator(),
    )
    assert not found.mask.any()


def test_c13_special_tokens_are_no_content() -> None:
    tokens = ContentTokens(TOKENIZER)
    specials = set(TOKENIZER.all_special_ids)
    assert not tokens("hello") & specials
    assert not tokens("</s> hello <pad>") & specials
    assert tokens("hello") == frozenset(TOKENIZER("hello", add_special_tokens=False)["input_ids"])


def test_c13_the_released_end_token_lets_one_token_copies_through() -> None:
    for count_end, there in ((False, False), (True, True)):
        policy = ExemplarPolicy(
            k=1, exclude_gold=False, filter=JaccardFilter(0.6, "mask", count_end=count_end)
        )
        found = chosen([[0]], ["yes"], ["yes", "no"], policy)
        assert found.mask.tolist() == [[there]]
        assert found.jaccard[0, 0] == (0.5 if count_end else 1)


def test_c13_thresholds() -> None:
    golds, responses, hits = ["a b c"], ["a b c", "a b d", "x"], [[0, 1, 2]]
    for threshold, expected in ((1.01, [True] * 3), (0.0, [False] * 3), (0.5, [False, False, True])):
        policy = ExemplarPolicy(k=3, exclude_gold=False, filter=JaccardFilter(threshold, "mask"))
        assert chosen(hits, golds, responses, policy).mask.tolist() == [expected]


def test_c13_the_decision_does_not_depend_on_the_batch() -> None:
    policy = ExemplarPolicy(k=2, filter=JaccardFilter(0.4, "mask"))
    golds = ["a b", "a b c d e f g", "q"]
    responses = ["a b c", "a b x y", "q r s t u v", "z"]
    hits = [[0, 1, 2], [0, 1, 3], [2, 3, 0]]
    together = chosen(hits, golds, responses, policy)
    for row in range(3):
        alone = chosen([hits[row]], [golds[row]], responses, policy)
        assert alone.mask[0].tolist() == together.mask[row].tolist()
        assert alone.jaccard[0].tolist() == together.jaccard[row].tolist()


@given(seed=st.integers(0, 500), threshold=st.sampled_from([0.0, 0.3, 0.6, 1.1]))
@settings(max_examples=60, deadline=None)
def test_c14_what_becomes_of_filtered_exemplars(seed: int, threshold: float) -> None:
    draw = np.random.default_rng(seed)
    responses = list(dict.fromkeys(" ".join(draw.choice(list("abcdef"), 3)) for _ in range(9)))
    gold = responses[0]
    hits = [draw.permutation(len(responses))[:6].tolist()]
    for action in ("random", "next", "mask"):
        rule = JaccardFilter(threshold, action)
        found = chosen(hits, [gold], responses, ExemplarPolicy(k=3, filter=rule), seed)
        assert gold not in found.texts[0]
        true = [i for i in hits[0] if responses[i] != gold]
        closeness = [jaccard(words(responses[i]), words(gold)) for i in true]
        if action == "random":
            assert found.mask.all()
            for place in range(3):
                kept = place < len(true) and closeness[place] < threshold
                assert found.replaced[0, place] == (not kept)
                assert not kept or found.ids[0, place] == true[place]
        elif action == "next":
            fine = [i for i, j in zip(true, closeness, strict=True) if j < threshold]
            assert found.ids[0].tolist() == (fine + [-1] * 3)[:3]
            assert (found.jaccard[found.mask] < threshold).all()
        else:
            assert found.mask[0].tolist() == [j < threshold for j in closeness[:3]]
        assert (found.ids >= 0).tolist() == found.mask.tolist()
        for place in found.mask[0].nonzero()[0]:
            assert found.texts[0][place] == responses[found.ids[0, place]]


def test_c14_random_draws_are_uniform_over_the_others() -> None:
    policy = ExemplarPolicy(k=1, filter=JaccardFilter(0.0))
    responses = ["a", "b", "c", "d"]
    drawn = [chosen([[0]], ["b"], responses, policy, seed).texts[0][0] for seed in range(900)]
    counts = {text: drawn.count(text) for text in responses}
    assert counts["b"] == 0
    assert all(240 < counts[text] < 360 for text in "acd")
    assert not chosen([[0]], ["a"], ["a"], policy).mask.any()


def test_c16_the_gold_response_in_the_set() -> None:
    gold = "red it is gold"
    row = Example(("tell me of red",), gold)
    index = response_index()
    assert gold in list(index.responses)
    off = ExemplarPolicy(k=2, filter=None, exclude_gold=False)
    found = ExemplarSelector(WordRetriever(), index, off, TOKENIZER).select([row], torch.Generator())
    assert found.texts[0][0] == gold
    assert found.jaccard[0, 0] == 1
    for policy in (
        preset("corge"),
        replace(preset("corge"), exclude_gold=False),
        preset("corge-no-jf"),
        ExemplarPolicy(filter=JaccardFilter(on_filtered="next")),
        ExemplarPolicy(filter=JaccardFilter(on_filtered="mask")),
        preset("rag"),
    ):
        selector = ExemplarSelector(WordRetriever(), index, policy, TOKENIZER)
        for seed in range(20):
            found = selector.select([row], torch.Generator().manual_seed(seed))
            assert gold not in found.texts[0]


def test_alpha_blend_puts_the_gold_response_first() -> None:
    rows = examples()
    index = response_index()
    always = ExemplarSelector(WordRetriever(), index, ExemplarPolicy(k=2, alpha_blend=1.0), TOKENIZER)
    found = always.select(rows, torch.Generator())
    assert [texts[0] for texts in found.texts] == [row.response for row in rows]
    assert (found.ids[:, 0] == -2).all()
    vectors = always.vectors(found.ids, [row.response for row in rows])
    np.testing.assert_allclose(
        vectors[:, 0], WordRetriever().encode_response([row.response for row in rows]), rtol=1e-6
    )
    np.testing.assert_allclose(vectors[:, 1], index.vectors(found.ids[:, 1]))
    half = ExemplarSelector(WordRetriever(), index, preset("retnref-alpha"), TOKENIZER)
    generator = torch.Generator().manual_seed(0)
    shares = [(half.select(rows, generator).ids == -2).mean() for _ in range(100)]
    assert 0.43 < np.mean(shares) < 0.57


def test_queries_are_gold_responses_or_contexts() -> None:
    rows = examples()
    index = response_index()
    gold = ExemplarSelector(WordRetriever(), index, preset("corge-no-jf"), TOKENIZER).hits(rows)
    context = ExemplarSelector(WordRetriever(), index, preset("rag"), TOKENIZER).hits(rows)
    golds = WordRetriever().encode_response([row.response for row in rows])
    texts = WordRetriever().encode_context(["\n".join(row.context) for row in rows])
    np.testing.assert_array_equal(gold, index.search(golds, 6).ids)
    np.testing.assert_array_equal(context, index.search(texts, 6).ids)
    assert not np.array_equal(gold, context)


def test_empty_retrieval() -> None:
    blank = Example((" ", "\n"), "red it is")
    few = ResponseIndex.build(WordRetriever(), ["red it is", "a"])
    rag = ExemplarSelector(WordRetriever(), few, preset("rag"), TOKENIZER)
    assert not rag.select([blank], torch.Generator()).mask.any()
    found = rag.select([Example(("red",), "red it is")], torch.Generator())
    assert found.mask.sum() == 1
    corge = ExemplarSelector(WordRetriever(), few, preset("corge"), TOKENIZER)
    found = corge.select([blank], torch.Generator())
    assert found.mask.all()
    assert set(found.texts[0]) == {"a"}
    none = ExemplarSelector(WordRetriever(), few, preset("none"), TOKENIZER)
    assert none.select([blank], torch.Generator()).mask.shape == (1, 0)


class Counting(WordRetriever):
    def __init__(self) -> None:
        self.calls = 0

    def encode_response(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        self.calls += 1
        return super().encode_response(texts)


def test_hits_are_kept_until_something_changes(tmp_path: Path) -> None:
    rows, index = examples(), response_index()
    retriever = Counting()
    selector = ExemplarSelector(retriever, index, preset("corge"), TOKENIZER)
    first = selector.cached_hits(rows, tmp_path / "hits", batch_size=4)
    assert retriever.calls == 2
    np.testing.assert_array_equal(first, selector.hits(rows))
    calls = retriever.calls
    again = ExemplarSelector(retriever, index, preset("corge"), TOKENIZER).cached_hits(
        rows, tmp_path / "hits"
    )
    assert retriever.calls == calls
    np.testing.assert_array_equal(first, again)
    selector.cached_hits(rows[1:], tmp_path / "hits")
    assert retriever.calls > calls
    calls = retriever.calls
    other = ExemplarSelector(retriever, response_index(["new"]), preset("corge"), TOKENIZER)
    other.cached_hits(rows[1:], tmp_path / "hits")
    assert retriever.calls > calls
    assert sorted(path.name for path in (tmp_path / "hits").iterdir()) == ["hits.json", "hits.npy"]


def test_an_index_of_another_retriever_is_refused() -> None:
    class Other(WordRetriever):
        fingerprint = "other"

    with pytest.raises(StaleIndexError):
        ExemplarSelector(Other(), response_index(), preset("corge"), TOKENIZER)
    with pytest.raises(ValueError, match="hits must have a row"):
        chosen([[0]], ["a", "b"], ["x"], preset("corge"))
    assert len(response_set()) == len(set(response_set()))
