from __future__ import annotations

from typing import Any

import pytest

from robustkit.attacks.words import recipes
from robustkit.attacks.words.constraints import levenshtein
from robustkit.attacks.words.engine import WordAttack
from robustkit.attacks.words.resources import MaskedLanguageModel
from robustkit.attacks.words.text import WordText
from tests.robustkit.attacks.words import toys
from tests.robustkit.tiny import tiny_masked_lm

WORDS: Any = {"neighbours": toys.toy_neighbours(), "vectors": toys.toy_vectors()}
CHECKS: Any = {"tagger": toys.ToyTagger(), "encoder": toys.toy_encoder(), "stopwords": toys.STOP_WORDS}


def make(name: str, **more: Any) -> WordAttack:
    if name == "bae":
        model, tokenizer = tiny_masked_lm([" ".join(toys.WORDS)], lower=False)
        lm = MaskedLanguageModel(model, tokenizer, max_length=64)
        return recipes.bae(masked_lm=lm, **CHECKS, **more)
    if name == "pwws":
        return recipes.pwws(wordnet=toys.toy_wordnet(), stopwords=toys.STOP_WORDS, **more)
    if name == "deepwordbug":
        return recipes.deepwordbug(stopwords=toys.STOP_WORDS, **more)
    build: Any = getattr(recipes, name)
    return build(**WORDS, **CHECKS, **more)


@pytest.mark.parametrize("name", recipes.__all__)
def test_recipe_is_named_and_its_goal_score_reaches_the_goal(name: str) -> None:
    assert make(name).name == name
    assert make(name).goal.goal_score is None  # type: ignore[attr-defined]
    assert make(name, goal_score=0.9).goal.goal_score == 0.9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "transformation", "constraints", "search"),
    [
        (
            "textfooler",
            {"kind": "NeighbourSwap", "count": 50},
            [
                {"kind": "WordEmbeddingDistance", "min_cosine": 0.5, "against_original": True},
                {"kind": "PartOfSpeech", "allow_verb_noun_swap": True},
                {
                    "kind": "SentenceSimilarity",
                    "metric": "angular",
                    "threshold": 0.840845057,
                    "window_size": 15,
                    "skip_text_shorter_than_window": True,
                    "against_original": False,
                },
            ],
            {"kind": "GreedyWordSwap", "ranking": "delete"},
        ),
        (
            "textfooler_adjusted",
            {"kind": "NeighbourSwap", "count": 50},
            [
                {"kind": "WordEmbeddingDistance", "min_cosine": 0.9},
                {"kind": "PartOfSpeech", "allow_verb_noun_swap": True},
                {
                    "kind": "SentenceSimilarity",
                    "metric": "cosine",
                    "threshold": 0.98,
                    "window_size": 15,
                    "skip_text_shorter_than_window": False,
                },
            ],
            {"kind": "GreedyWordSwap", "ranking": "delete"},
        ),
        ("pwws", {"kind": "WordNetSwap"}, [], {"ranking": "weighted-saliency"}),
        (
            "bae",
            {"kind": "MaskedLMSwap", "count": 50, "min_probability": 0.0},
            [
                {"kind": "PartOfSpeech", "allow_verb_noun_swap": True},
                {"threshold": 0.936338023, "metric": "cosine", "window_size": 15, "against_original": True},
            ],
            {"ranking": "delete"},
        ),
        (
            "a2t",
            {"kind": "NeighbourSwap", "count": 20},
            [
                {"kind": "PartOfSpeech", "allow_verb_noun_swap": False},
                {"kind": "WordEmbeddingDistance", "min_cosine": 0.8},
                {"threshold": 0.9, "metric": "cosine", "against_original": True},
            ],
            {"ranking": "gradient", "max_words": "model"},
        ),
        (
            "deepwordbug",
            {"kind": "Composite"},
            [{"kind": "LevenshteinDistance", "max_distance": 30}],
            {"ranking": "unk", "unknown": "[UNK]"},
        ),
    ],
)
def test_recipe_has_the_settings_of_section_8(
    name: str, transformation: dict[str, Any], constraints: list[dict[str, Any]], search: dict[str, Any]
) -> None:
    settings = make(name).settings()
    assert transformation.items() <= settings["transformation"].items()
    assert search.items() <= settings["search"].items()
    assert len(settings["constraints"]) == len(constraints)
    for found, expected in zip(settings["constraints"], constraints, strict=True):
        assert expected.items() <= found.items()
    kinds = [rule["kind"] for rule in settings["index_constraints"]]
    assert kinds[:2] == ["RepeatModification", "StopwordModification"]
    assert ("MaxModificationRate" in kinds) == (name == "a2t")


def test_optional_parts_can_be_left_out() -> None:
    without: Any = {**WORDS, "vectors": None}
    for build in (recipes.textfooler, recipes.textfooler_adjusted, recipes.a2t):
        full, less = build(**WORDS, **CHECKS), build(**without, **CHECKS)
        assert len(less.constraints) == len(full.constraints) - 1
    adjusted = recipes.textfooler_adjusted(**WORDS, **CHECKS, count_errors=len)
    assert adjusted.settings()["constraints"][-1]["kind"] == "GrammarErrors"


@pytest.mark.parametrize("name", recipes.__all__)
def test_changes_keep_to_the_rules(name: str) -> None:
    examples = toys.toy_examples(25, seed=12, longest=16)
    log = make(name).attack(toys.ToyClassifier(), examples)
    changed = [record for record in log if record.original_text != record.perturbed_text]
    assert len(changed) > 5
    for record, (text, _) in zip(log, examples, strict=True):
        before = WordText(text).words
        after = WordText(record.perturbed_text.replace("[[", "").replace("]]", "")).words
        different = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert not any(old in toys.STOP_WORDS for old, _ in different)
        if name == "deepwordbug":
            assert sum(levenshtein(old, new) for old, new in different) <= 2 * len(different)
        if name == "a2t":
            assert len(different) <= max(4, -(-len(before) // 10))
