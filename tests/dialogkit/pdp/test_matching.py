"""P2 to P7: which context goes before which utterance, and in what order."""

import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.dialogues import Turn
from dialogkit.pdp import (
    Blend,
    Character,
    ContextIndex,
    ContextPool,
    DialogPrompt,
    DynamicMatcher,
    GoldMatcher,
    Matcher,
    PseudoDialog,
    RandomMatcher,
    StaticMatcher,
    dynamic_queries,
    order_scores,
    select_and_order,
    static_scores,
)
from tests.dialogkit.pdp.helpers import (
    CONTEXTS,
    DIM,
    UTTERANCES,
    HashRetriever,
    TableRetriever,
    character,
    index,
)

ASK = "What is your name?"


def by_utterance(pairs: list[PseudoDialog]) -> dict[str, PseudoDialog]:
    return {pair.utterance: pair for pair in pairs}


def contexts_of(pairs: list[PseudoDialog]) -> dict[str, str]:
    return {pair.utterance: pair.context for pair in pairs}


# P2 ---------------------------------------------------------------------------------------------------------


def test_p2_static_match_is_the_brute_force_argmax() -> None:
    retriever = HashRetriever()
    pairs = by_utterance(StaticMatcher(index(retriever)).match(character(), ASK))
    scores = static_scores(retriever.encode_context(CONTEXTS), retriever.encode_response(UTTERANCES))
    for utterance, row in zip(UTTERANCES, scores, strict=True):
        assert pairs[utterance].context_id == int(row.argmax())
        assert pairs[utterance].context == CONTEXTS[row.argmax()]
        assert pairs[utterance].match_score == pytest.approx(float(row.max()), abs=1e-5)


def test_p2_static_match_does_not_depend_on_the_input() -> None:
    matcher = StaticMatcher(index())
    first = contexts_of(matcher.match(character(), ASK))
    for text in ("Hello.", "Tell me of the sea?", "x" * 500):
        assert contexts_of(matcher.match(character(), text)) == first


def test_p2_permuting_the_pool_permutes_ids_and_not_texts() -> None:
    order = random.Random(3).sample(range(len(CONTEXTS)), len(CONTEXTS))
    before = by_utterance(StaticMatcher(index()).match(character(), ASK))
    after = by_utterance(StaticMatcher(index(texts=[CONTEXTS[i] for i in order])).match(character(), ASK))
    for utterance, pair in before.items():
        assert after[utterance].context == pair.context
        assert order[after[utterance].context_id or 0] == pair.context_id


def test_static_match_encodes_a_character_once() -> None:
    retriever = HashRetriever()
    matcher = StaticMatcher(index(retriever))
    retriever.calls.clear()
    for text in ("one", "two", "three"):
        matcher.match(character(), text)
    assert [side for side, _ in retriever.calls].count("response") == 1
    assert [texts for side, texts in retriever.calls if side == "context"] == [("one",), ("two",), ("three",)]


def test_dynamic_match_costs_one_encoding_of_the_input_per_turn() -> None:
    retriever = HashRetriever()
    matcher = DynamicMatcher(index(retriever))
    matcher.match(character(), "warm up")
    retriever.calls.clear()
    matcher.match(character(), "Hello.")
    assert retriever.calls == [("context", ("Hello.",))]


def test_cached_matches_belong_to_the_character_and_not_to_its_name() -> None:
    matcher = StaticMatcher(index())
    one = character(utterances=UTTERANCES[:2])
    other = character(utterances=UTTERANCES[3:])
    matcher.match(one, ASK)
    assert {pair.utterance for pair in matcher.match(other, ASK)} == set(UTTERANCES[3:])


# P3 ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0, 3))
@settings(max_examples=50, deadline=None)
def test_p3_one_search_with_the_sum_scores_both_terms(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    contexts, utterances, x = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 8), (4, 8), (8,)))
    summed = dynamic_queries(x, utterances, weight) @ contexts.T
    terms = weight * (contexts @ x)[None, :] + static_scores(contexts, utterances)
    np.testing.assert_allclose(summed, terms, atol=1e-4)


def test_p3_dynamic_match_scores_are_the_sum_of_both_similarities() -> None:
    retriever = HashRetriever()
    pairs = DynamicMatcher(index(retriever)).match(character(), ASK)
    x = retriever.encode_context([ASK])[0]
    pool = retriever.encode_context(CONTEXTS)
    for pair in pairs:
        u = retriever.encode_response([pair.utterance])[0]
        scores = pool @ x + pool @ u
        assert pair.context_id == int(scores.argmax())
        assert pair.match_score == pytest.approx(float(scores.max()), abs=1e-5)


def test_p3_without_input_weight_dynamic_is_static() -> None:
    dynamic = DynamicMatcher(index(), input_weight=0).match(character(), ASK)
    assert dynamic == StaticMatcher(index()).match(character(), ASK)


def test_p3_a_zero_input_makes_dynamic_static() -> None:
    contexts = {text: [float(i), 5.0 - i] for i, text in enumerate(CONTEXTS[:6])}
    responses = {text: [float(i), 1.0] for i, text in enumerate(UTTERANCES)}
    table = TableRetriever(contexts, responses)
    built = index(table, CONTEXTS[:6])
    assert DynamicMatcher(built).match(character(), "unknown") == StaticMatcher(built).match(
        character(), "unknown"
    )


def test_p3_a_large_input_weight_gives_every_utterance_one_context() -> None:
    few = contexts_of(DynamicMatcher(index()).match(character(), ASK))
    one = contexts_of(DynamicMatcher(index(), input_weight=1e6).match(character(), ASK))
    assert len(set(few.values())) > 1
    assert len(set(one.values())) == 1


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_an_input_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="input_weight"):
        DynamicMatcher(index(), input_weight=weight)


def test_dynamic_match_does_not_answer_the_input_with_itself() -> None:
    # In this pool the input is by far the most similar context to itself.
    contexts = {"Me.": [9.0, 0.0], "You.": [1.0, 1.0], "They.": [0.0, 2.0]}
    table = TableRetriever(contexts, {text: [0.0, 1.0] for text in UTTERANCES})
    built = index(table, list(contexts))
    assert set(contexts_of(DynamicMatcher(built).match(character(), "Me.")).values()) == {"You."}
    same = DynamicMatcher(built, exclude_input=False).match(character(), "Me.")
    assert set(contexts_of(same).values()) == {"Me."}
    # Line breaks do not hide the equality.
    assert "Me." not in contexts_of(DynamicMatcher(built).match(character(), "\tMe.\n")).values()


def test_dynamic_match_uses_the_input_itself_when_the_pool_holds_nothing_else() -> None:
    pairs = DynamicMatcher(index(texts=["Hello.", "Hello."])).match(character(), "Hello.")
    assert set(contexts_of(pairs).values()) == {"Hello."}


def test_the_input_is_the_last_turn() -> None:
    matcher = DynamicMatcher(index())
    history = [Turn("User", "Something else."), Turn("Mrs Plum", "Yes."), Turn("User", ASK)]
    assert matcher.match(character(), history) == matcher.match(character(), ASK)


def test_matching_a_batch_is_matching_one_by_one() -> None:
    for matcher in (DynamicMatcher(index()), StaticMatcher(index()), random_matcher(per="turn")):
        texts = [ASK, "Hello.", CONTEXTS[0]]
        batch = matcher.match_batch(character(), texts)
        for pairs, text in zip(batch, texts, strict=True):
            for pair, single in zip(pairs, matcher.match(character(), text), strict=True):
                assert (pair.context, pair.utterance) == (single.context, single.utterance)
                assert pair.order_score == pytest.approx(single.order_score, abs=1e-5)


# P4 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StaticMatcher, DynamicMatcher])
def test_p4_numpy_and_faiss_agree(kind: type[StaticMatcher] | type[DynamicMatcher]) -> None:
    pytest.importorskip("faiss")
    pool = ContextPool(CONTEXTS)
    exact = kind(ContextIndex(HashRetriever(), pool))
    other = kind(ContextIndex(HashRetriever(), pool, backend="faiss"))
    for text in (ASK, CONTEXTS[3]):
        for a, b in zip(exact.match(character(), text), other.match(character(), text), strict=True):
            assert (a.context_id, a.utterance) == (b.context_id, b.utterance)
            assert a.match_score == pytest.approx(b.match_score, abs=1e-5)


def test_p4_in_a_pool_of_one_static_dynamic_and_random_agree() -> None:
    built = index(texts=["Only me."])
    matchers: list[Matcher] = [
        StaticMatcher(built), DynamicMatcher(built), RandomMatcher(built.pool, built.retriever)
    ]  # fmt: skip
    found = [[(p.context, p.utterance) for p in matcher.match(character(), ASK)] for matcher in matchers]
    assert found[0] == found[1] == found[2]
    assert {context for context, _ in found[0]} == {"Only me."}


def test_p4_an_empty_pool_is_a_clear_error_or_an_asked_for_fallback() -> None:
    empty = index(texts=[])
    for make in (
        lambda **kw: StaticMatcher(empty, **kw),
        lambda **kw: DynamicMatcher(empty, **kw),
        lambda **kw: RandomMatcher(empty.pool, empty.retriever, **kw),
    ):
        with pytest.raises(ValueError, match="pool of contexts is empty"):
            make()
        pairs = make(fallback_context="Hello.").match(character(), ASK)
        assert {pair.context for pair in pairs} == {"Hello."} and pairs[0].context_id is None
        with pytest.raises(ValueError, match="fallback_context"):
            make(fallback_context=" \n")


# P5 ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12), st.integers(1, 12))
@settings(deadline=None)
def test_p5_selection_keeps_exactly_the_highest_and_ascends(scores: list[float], most: int) -> None:
    kept = select_and_order(scores, most)
    chosen = [scores[i] for i in kept]
    assert chosen == sorted(chosen)
    assert sorted(chosen) == sorted(scores)[-most:]
    assert select_and_order(scores, most, "descending") == kept[::-1]
    assert select_and_order(scores, most, "given") == sorted(kept)


def random_matcher(**changes: object) -> RandomMatcher:
    return RandomMatcher(ContextPool(CONTEXTS), HashRetriever(), **changes)  # type: ignore[arg-type]


def gold_character(count: int = 5) -> Character:
    return character(count, gold_contexts=tuple(f"gold {i}" for i in range(count)))


def matchers(**changes: int) -> list[Matcher]:
    return [
        StaticMatcher(index(), **changes),
        DynamicMatcher(index(), **changes),
        random_matcher(**changes),
        GoldMatcher(HashRetriever(), **changes),
    ]


def test_p5_order_scores_ascend_and_the_best_pair_is_last() -> None:
    retriever = HashRetriever()
    scores = order_scores(retriever.encode_context([ASK])[0], retriever.encode_response(UTTERANCES))
    best = UTTERANCES[scores.argmax()]
    for matcher in matchers():
        pairs = matcher.match(gold_character(), ASK)
        found = [pair.order_score for pair in pairs]
        assert found == sorted(found) and len(found) == 5
        assert pairs[-1].utterance == best
        np.testing.assert_allclose(found, np.sort(scores), atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 4, 9])
def test_p5_max_dialogs_keeps_exactly_the_highest(most: int) -> None:
    for full, cut in zip(matchers(), matchers(max_dialogs=most), strict=True):
        assert cut.match(gold_character(), ASK) == full.match(gold_character(), ASK)[-most:]


def test_p5_listing_the_utterances_differently_changes_no_prompt() -> None:
    order = (3, 0, 4, 1, 2)
    gold = gold_character()
    shuffled = character(
        utterances=tuple(UTTERANCES[i] for i in order), gold_contexts=tuple(f"gold {i}" for i in order)
    )
    history = (Turn("User", ASK),)
    for matcher in matchers(max_dialogs=4):
        prompts = [DialogPrompt().build(who, matcher.match(who, ASK), history) for who in (gold, shuffled)]
        assert prompts[0] == prompts[1]


def test_other_orders_on_request() -> None:
    ascending = StaticMatcher(index()).match(character(), ASK)
    assert StaticMatcher(index(), order="descending").match(character(), ASK) == ascending[::-1]
    given_order = StaticMatcher(index(), order="given").match(character(), ASK)
    assert [pair.utterance for pair in given_order] == list(UTTERANCES)
    with pytest.raises(ValueError, match="order"):
        StaticMatcher(index(), order="upwards")  # type: ignore[arg-type]


def test_arrange_orders_like_match_and_shows_no_contexts() -> None:
    matcher = StaticMatcher(index(), max_dialogs=3)
    arranged = matcher.arrange(character(), ASK)
    assert [pair.utterance for pair in arranged] == [p.utterance for p in matcher.match(character(), ASK)]
    assert all(pair.context == "" and pair.context_id is None for pair in arranged)


# P6 ---------------------------------------------------------------------------------------------------------


def test_p6_the_same_seed_gives_the_same_contexts() -> None:
    first = contexts_of(random_matcher().match(character(), ASK))
    assert contexts_of(random_matcher().match(character(), ASK)) == first
    assert contexts_of(random_matcher().match(character(), "Something else.")) == first
    assert contexts_of(random_matcher(seed=778).match(character(), ASK)) != first


def test_p6_contexts_are_not_repeated_while_the_pool_lasts() -> None:
    for seed in range(20):
        pairs = random_matcher(seed=seed).match(character(), ASK)
        assert len({pair.context_id for pair in pairs}) == len(UTTERANCES)
        assert all(CONTEXTS[pair.context_id or 0] == pair.context for pair in pairs)


def test_p6_every_context_can_be_drawn() -> None:
    drawn = {
        pair.context_id for seed in range(60) for pair in random_matcher(seed=seed).match(character(), ASK)
    }
    assert drawn == set(range(len(CONTEXTS)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_p6_a_pool_that_is_too_small_is_used_up_before_it_repeats(size: int) -> None:
    matcher = RandomMatcher(ContextPool(CONTEXTS[:size]), HashRetriever())
    counts = [sum(pair.context_id == i for pair in matcher.match(character(), ASK)) for i in range(size)]
    assert sum(counts) == 5 and max(counts) - min(counts) <= 1


def test_p6_per_turn_draws_anew_for_each_turn_and_repeats_for_the_same() -> None:
    matcher = random_matcher(per="turn")
    first = contexts_of(matcher.match(character(), ASK))
    assert contexts_of(matcher.match(character(), ASK)) == first
    assert contexts_of(matcher.match(character(), "Hello.")) != first
    later = [Turn("User", "Hi."), Turn("Mrs Plum", "Hm."), Turn("User", ASK)]
    assert contexts_of(matcher.match(character(), later)) != first


def test_p6_two_characters_do_not_share_their_draw() -> None:
    one = random_matcher().match(character(), ASK)
    other = random_matcher().match(character(name="Mr Fig"), ASK)
    assert contexts_of(one) != contexts_of(other)


@pytest.mark.parametrize(("argument", "value"), [("per", "week"), ("seed", -1)])
def test_random_match_refuses_bad_settings(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        random_matcher(**{argument: value})


# P7 ---------------------------------------------------------------------------------------------------------


def test_p7_gold_match_uses_the_true_contexts() -> None:
    pairs = GoldMatcher(HashRetriever()).match(gold_character(), ASK)
    assert contexts_of(pairs) == {text: f"gold {i}" for i, text in enumerate(UTTERANCES)}
    assert all(pair.match_score is None and pair.context_id is None for pair in pairs)


def test_p7_gold_match_needs_a_context_for_every_utterance() -> None:
    with pytest.raises(ValueError, match="Mrs Plum"):
        GoldMatcher(HashRetriever()).match(character(), ASK)
    with pytest.raises(ValueError, match=r"as many as the utterances \(5\), got 2"):
        character(gold_contexts=("a", "b"))


@pytest.mark.parametrize("most", [0, -1])
def test_p7_showing_no_pairs_is_never_silent(most: int) -> None:
    for make in (
        lambda: StaticMatcher(index(), max_dialogs=most),
        lambda: random_matcher(max_dialogs=most),
        lambda: Blend("Both", (character(),), (most,)),
    ):
        with pytest.raises(ValueError, match="max_dialogs"):
            make()


def test_p7_an_empty_list_of_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="one count for each of the 1 characters, got 0"):
        Blend("Nobody", (character(),), ())


def test_a_character_without_utterances_cannot_be_matched() -> None:
    for matcher in matchers():
        with pytest.raises(ValueError, match="no utterances"):
            matcher.match(Character("Silent Bob"), ASK)


@pytest.mark.parametrize("history", ["", "\n", [], [Turn("User", " ")]])
def test_an_empty_input_is_refused(history: str | list[Turn]) -> None:
    with pytest.raises(ValueError, match="history"):
        StaticMatcher(index()).match(character(), history)


# Blends -----------------------------------------------------------------------------------------------------


def test_a_blend_takes_the_best_of_each_and_sorts_them_together() -> None:
    fig = Character("Mr Fig", ("Figs are fine.", "I fell off a tree.", "Bees owe me money."))
    blend = Blend("Plum and Fig", (character(), fig), (2, 1))
    for matcher in (StaticMatcher(index()), DynamicMatcher(index()), random_matcher()):
        pairs = matcher.match(blend, ASK)
        alone = matcher.match(character(), ASK)[-2:] + matcher.match(fig, ASK)[-1:]
        assert sorted(map(repr, pairs)) == sorted(map(repr, alone))
        assert [pair.order_score for pair in pairs] == sorted(pair.order_score for pair in alone)
        assert sorted(pair.character for pair in pairs) == ["Mr Fig", "Mrs Plum", "Mrs Plum"]


# Re-entrance and warnings -----------------------------------------------------------------------------------


def test_queries_change_neither_character_nor_pool() -> None:
    who, built = character(), index()
    before = (who.utterances, built.pool.texts, built.embeddings.copy())
    matcher = DynamicMatcher(built, max_dialogs=2)
    first = matcher.match(who, ASK)
    matcher.match(who, "Hello.")
    assert matcher.match(who, ASK) == first
    assert (who.utterances, built.pool.texts) == before[:2]
    np.testing.assert_array_equal(built.embeddings, before[2])
    with pytest.raises(ValueError, match="read-only"):
        built.embeddings[0, 0] = 1


def test_a_symmetric_retriever_is_warned_about_once_per_matcher() -> None:
    alike = index(HashRetriever(symmetric=True))
    with pytest.warns(UserWarning, match="paraphrase"):
        matcher = StaticMatcher(alike)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matcher.match(character(), ASK)
        DynamicMatcher(alike, allow_symmetric=True)
        StaticMatcher(index())


def test_utterance_embeddings_that_are_not_finite_are_refused() -> None:
    table = TableRetriever({}, {UTTERANCES[0]: [float("nan"), 0.0]})
    with pytest.raises(ValueError, match="not finite"):
        GoldMatcher(table).match(character(1, gold_contexts=("a",)), ASK)


def test_dimensions_are_the_retrievers() -> None:
    assert index().embeddings.shape == (len(CONTEXTS), DIM)
