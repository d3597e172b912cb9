"""Every recipe against the real TextAttack 0.3.11, choice for choice, on toy classifiers and resources."""

from __future__ import annotations

import functools
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.attacks.logs import AttackRecord
from robustkit.attacks.textattack import as_model_wrapper, import_textattack
from robustkit.attacks.words import recipes
from robustkit.attacks.words.constraints import (
    MinWordLength,
    RepeatModification,
    StopwordModification,
    modifiable_indices,
)
from robustkit.attacks.words.engine import WordAttack
from robustkit.attacks.words.goals import TargetedClassification
from robustkit.attacks.words.resources import MaskedLanguageModel, Neighbours, universal_tag
from robustkit.attacks.words.search import BeamSearch, GreedyWordSwap
from robustkit.attacks.words.text import WordText
from robustkit.attacks.words.transformations import NeighbourSwap
from robustkit.classifiers.text import TextClassifier
from tests.robustkit.attacks.words import toys
from tests.robustkit.tiny import SYNONYMS, tiny_masked_lm, toy_sentiment, trained_bert
from trainkit.seeding import derive_seed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: pip install --no-deps -r requirements-textattack.txt",
)

RECIPES = ("textfooler", "textfooler_adjusted", "pwws", "bae", "a2t", "deepwordbug")
VECTORS = toys.toy_vectors()
NEIGHBOURS = toys.toy_neighbours()


@pytest.fixture(scope="module")
def textattack() -> ModuleType:
    return import_textattack()


@functools.cache
def masked_lm() -> tuple[Any, Any]:
    return tiny_masked_lm([" ".join(toys.WORDS), "the and is of in"], max_length=64, lower=False)


@functools.cache
def stop_words() -> tuple[str, ...]:
    import nltk

    return tuple(nltk.corpus.stopwords.words("english"))


def count_errors(text: str) -> int:
    return text.count("a") % 3


def wrapper_of(classifier: toys.ToyClassifier) -> Any:
    """The toy as TextAttack sees models."""
    from textattack.models.wrappers import ModelWrapper

    class Wrapper(ModelWrapper):  # type: ignore[misc]
        def __init__(self) -> None:
            self.model = classifier
            self.max_length = classifier.max_length

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.from_numpy(classifier.logits(texts))

        def get_grad(self, text: str) -> dict[str, Any]:
            ((_, _, gradient),) = classifier.token_gradients([text], [int(classifier.predict([text])[0])])
            return {"gradient": gradient}

        def _tokenize(self, texts: list[str]) -> list[list[str]]:
            return [classifier.tokens(text) for text in texts]

    return Wrapper()


@pytest.fixture
def reference(textattack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Any]:
    """Builds TextAttack's own recipes on our resources: only what they would download is replaced."""
    from textattack import attack_recipes
    from textattack.attack_recipes import a2t_yoo_2021, bae_garg_2019, textfooler_jin_2019
    from textattack.constraints import Constraint
    from textattack.constraints.grammaticality import PartOfSpeech
    from textattack.constraints.pre_transformation import (
        InputColumnModification,
        RepeatModification,
        StopwordModification,
    )
    from textattack.constraints.semantics import WordEmbeddingDistance
    from textattack.constraints.semantics.sentence_encoders.sentence_encoder import (
        SentenceEncoder,
    )
    from textattack.shared import WordEmbedding
    from textattack.transformations import WordSwapEmbedding, WordSwapMaskedLM

    index = {word: i for i, word in enumerate(VECTORS.words)}
    nearest = [[index[word], *(index[other] for other in NEIGHBOURS.of(word))] for word in VECTORS.words]
    embedding = WordEmbedding(VECTORS.matrix, index, dict(enumerate(VECTORS.words)), np.array(nearest))

    class ToyEncoder(SentenceEncoder):  # type: ignore[misc]
        def __init__(self, model_name: str = "", **settings: Any) -> None:
            super().__init__(**settings)

        def encode(self, sentences: Sequence[str]) -> torch.Tensor:
            return torch.from_numpy(toys.encode(sentences))

    class Grammar(Constraint):  # type: ignore[misc]
        def _check_constraint(self, transformed: Any, reference: Any) -> bool:
            return count_errors(transformed.text) <= count_errors(reference.text)

    def pos_tag(words: list[str], tagset: str, lang: str) -> list[tuple[str, str]]:
        return [(word, universal_tag(toys.toy_tag(word))) for word in words]

    swap = functools.partial(WordSwapEmbedding, embedding=embedding)
    distance = functools.partial(WordEmbeddingDistance, embedding=embedding)
    model, tokenizer = masked_lm()
    guess = functools.partial(
        WordSwapMaskedLM, masked_language_model=model, tokenizer=tokenizer, max_length=64
    )
    for module, names in (
        (textfooler_jin_2019, {"WordSwapEmbedding": swap, "WordEmbeddingDistance": distance}),
        (textfooler_jin_2019, {"UniversalSentenceEncoder": ToyEncoder}),
        (bae_garg_2019, {"WordSwapMaskedLM": guess, "UniversalSentenceEncoder": ToyEncoder}),
        (a2t_yoo_2021, {"WordSwapEmbedding": swap, "WordEmbeddingDistance": distance, "SBERT": ToyEncoder}),
        (
            importlib.import_module("textattack.transformations.word_swaps.word_swap_wordnet"),
            {"wordnet": toys.nltk_wordnet()},
        ),
        (importlib.import_module("nltk"), {"pos_tag": pos_tag, "download": lambda *_: True}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)

    def adjusted(wrapper: Any) -> Any:
        return textattack.Attack(
            textattack.goal_functions.UntargetedClassification(wrapper),
            [
                RepeatModification(),
                StopwordModification(stopwords=stop_words()),
                InputColumnModification(["premise", "hypothesis"], {"premise"}),
                distance(min_cos_sim=0.9),
                PartOfSpeech(allow_verb_noun_swap=True),
                ToyEncoder(threshold=0.98, window_size=15, compare_against_original=False),
                Grammar(compare_against_original=True),
            ],
            swap(max_candidates=50),
            textattack.search_methods.GreedyWordSwapWIR("delete"),
        )

    build = {
        "textfooler": attack_recipes.TextFoolerJin2019.build,
        "textfooler_adjusted": adjusted,
        "pwws": attack_recipes.PWWSRen2019.build,
        "bae": attack_recipes.BAEGarg2019.build,
        "a2t": attack_recipes.A2TYoo2021.build,
        "deepwordbug": attack_recipes.DeepWordBugGao2018.build,
        "swap": lambda count: swap(max_candidates=count),
    }
    return lambda name, argument: build[name](argument)


def ours(name: str, goal_score: float | None = None) -> WordAttack:
    """Our recipe on the same resources."""
    words: Any = {"neighbours": NEIGHBOURS, "vectors": VECTORS}
    checks: Any = {"tagger": toys.ToyTagger(), "encoder": toys.toy_encoder()}
    common: Any = {"stopwords": stop_words(), "goal_score": goal_score}
    match name:
        case "textfooler":
            from textattack.attack_recipes import TextFoolerJin2019

            attack = TextFoolerJin2019.build(wrapper_of(toys.ToyClassifier()))  # its list is in its code
            common["stopwords"] = attack.pre_transformation_constraints[1].stopwords
            return recipes.textfooler(**words, **checks, **common)
        case "textfooler_adjusted":
            return recipes.textfooler_adjusted(**words, **checks, **common, count_errors=count_errors)
        case "pwws":
            return recipes.pwws(wordnet=toys.toy_wordnet(), **common)
        case "bae":
            model, tokenizer = masked_lm()
            lm = MaskedLanguageModel(model, tokenizer, max_length=64)
            return recipes.bae(masked_lm=lm, **checks, **common)
        case "a2t":
            return recipes.a2t(**words, **checks, **common)
        case _:
            return recipes.deepwordbug(**common)


def theirs(attack: Any, examples: Sequence[tuple[str, int]], seed: int = 0) -> list[AttackRecord]:
    """TextAttack's results as records; before each example it draws from the seed that ours draws from."""
    from textattack.shared.utils import set_seed

    records = []
    for index, (text, label) in enumerate(examples):
        set_seed(derive_seed("word attack", seed, index) % 2**32)
        result = attack.attack(text, label)
        original, perturbed = result.diff_color("file")
        records.append(
            AttackRecord(
                original_text=original,
                perturbed_text=perturbed,
                original_score=float(result.original_result.score),
                perturbed_score=float(result.perturbed_result.score),
                original_output=result.original_result.output,
                perturbed_output=result.perturbed_result.output,
                ground_truth_output=label,
                num_queries=result.num_queries,
                result_type=type(result).__name__.removesuffix("AttackResult"),
            )
        )
    return records


Reference = Callable[[str, Any], Any]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_textattacks(name: str, reference: Reference) -> None:
    examples = toys.toy_examples(30, seed=len(name), longest=20)
    classifier = toys.ToyClassifier()
    log = ours(name).attack(classifier, examples)
    assert list(log) == theirs(reference(name, wrapper_of(classifier)), examples)
    assert {record.result_type for record in log} == {"Successful", "Failed", "Skipped"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("budget", [1, 9, 30])
def test_recipe_with_a_query_budget_equals_textattacks(name: str, budget: int, reference: Reference) -> None:
    examples = toys.toy_examples(10, seed=budget)
    classifier = toys.ToyClassifier()
    attack = reference(name, wrapper_of(classifier))
    attack.goal_function.query_budget = budget
    log = ours(name).attack(classifier, examples, query_budget=budget)
    if (name, budget) == ("a2t", 1):
        # TextAttack fails where the budget ends before a search that ranks without queries has begun.
        assert {record.num_queries for record in log} == {1}
        with pytest.raises(IndexError):
            theirs(attack, examples)
        return
    assert list(log) == theirs(attack, examples)
    if budget < 10:
        assert max(record.num_queries for record in log) == budget


@pytest.mark.parametrize("name", ["textfooler", "pwws", "deepwordbug"])
def test_far_boundary_attack_on_two_classes_equals_textattacks_target_max_score(
    name: str, reference: Reference
) -> None:
    classifier = toys.ToyClassifier()
    examples = [e for e in toys.toy_examples(40, seed=2) if classifier.predict([e[0]])[0] == e[1]][:16]
    attack = reference(name, wrapper_of(classifier))
    attack.goal_function.target_max_score = 0.1
    log = ours(name, goal_score=0.9).attack(classifier, examples)
    assert list(log) == theirs(attack, examples)
    assert all(r.perturbed_score >= 0.9 for r in log if r.result_type == "Successful")
    assert {record.result_type for record in log} == {"Successful", "Failed"}


def test_three_classes_and_a_target_equal_textattacks(textattack: ModuleType, reference: Reference) -> None:
    examples = toys.toy_examples(20, seed=3, longest=16, num_labels=3)
    classifier = toys.ToyClassifier(num_labels=3)
    attack = reference("textfooler", wrapper_of(classifier))
    mine = ours("textfooler")
    assert list(mine.attack(classifier, examples)) == theirs(attack, examples)

    attack.goal_function = textattack.goal_functions.TargetedClassification(
        wrapper_of(classifier), target_class=2
    )
    attack.search_method.goal_function = attack.goal_function
    attack.search_method.get_goal_results = attack.goal_function.get_results
    mine.goal = TargetedClassification(2)
    log = mine.attack(classifier, examples)
    assert list(log) == theirs(attack, examples)
    assert {record.result_type for record in log} == {"Successful", "Failed", "Skipped"}


def composed(
    textattack: ModuleType, reference: Reference, search: Any, classifier: toys.ToyClassifier
) -> Any:
    """TextAttack's parts: nearest neighbours, no word twice, no stop words."""
    from textattack.constraints.pre_transformation import RepeatModification, StopwordModification

    return textattack.Attack(
        textattack.goal_functions.UntargetedClassification(wrapper_of(classifier)),
        [RepeatModification(), StopwordModification(stopwords=toys.STOP_WORDS)],
        reference("swap", 8),
        search,
    )


def swap_attack(search: Any) -> WordAttack:
    """Ours of the same parts."""
    rules = [RepeatModification(), StopwordModification(toys.STOP_WORDS)]
    return WordAttack(NeighbourSwap(NEIGHBOURS, 8), index_constraints=rules, search=search)


@pytest.mark.parametrize("ranking", ["unk", "delete", "weighted-saliency", "gradient", "random"])
@pytest.mark.parametrize("max_words", [None, 3])
def test_every_ranking_equals_textattacks(
    ranking: Any, max_words: int | None, textattack: ModuleType, reference: Reference
) -> None:
    classifier = toys.ToyClassifier()
    examples = toys.toy_examples(15, seed=4)
    search = textattack.search_methods.GreedyWordSwapWIR(ranking, truncate_words_to=max_words)
    attack = composed(textattack, reference, search, classifier)
    log = swap_attack(GreedyWordSwap(ranking, max_words=max_words)).attack(classifier, examples, seed=5)
    assert list(log) == theirs(attack, examples, seed=5)


@pytest.mark.parametrize("width", [1, 3])
def test_beam_search_equals_textattacks(width: int, textattack: ModuleType, reference: Reference) -> None:
    classifier = toys.ToyClassifier()
    examples = toys.toy_examples(8, seed=6, longest=10)
    search = textattack.search_methods.BeamSearch(width)
    attack = composed(textattack, reference, search, classifier)
    for budget in (None, 50):
        attack.goal_function.query_budget = float("inf") if budget is None else budget
        log = swap_attack(BeamSearch(width)).attack(classifier, examples, query_budget=budget)
        assert list(log) == theirs(attack, examples)


@pytest.mark.parametrize("ranking", ["delete", "unk", "weighted-saliency"])
def test_ties_are_broken_as_in_textattack(ranking: Any, textattack: ModuleType, reference: Reference) -> None:
    # Words beyond the maximum length and saturated probabilities leave many words with the same score.
    classifier = toys.ToyClassifier(max_length=12, gain=40.0)
    examples = toys.toy_examples(5, seed=7, longest=90)
    search = textattack.search_methods.GreedyWordSwapWIR(ranking)
    attack = composed(textattack, reference, search, classifier)
    log = swap_attack(GreedyWordSwap(ranking)).attack(classifier, examples)
    assert list(log) == theirs(attack, examples)


def test_order_of_indices_is_that_of_textattacks_sets(textattack: ModuleType) -> None:
    from textattack.constraints import pre_transformation
    from textattack.transformations import WordSwapRandomCharacterDeletion

    swap = WordSwapRandomCharacterDeletion()
    unordered = 0
    for text, _ in toys.toy_examples(60, seed=8, longest=600):
        stops = [word for word in set(text.split()) if toys.toy_tag(word) != "NN"]
        expected = swap(
            textattack.shared.AttackedText(text),
            [
                pre_transformation.RepeatModification(),
                pre_transformation.StopwordModification(stopwords=stops),
                pre_transformation.MinWordLength(4),
            ],
            return_indices=True,
        )
        rules = [RepeatModification(), StopwordModification(stops), MinWordLength(4)]
        indices = modifiable_indices(WordText(text), NeighbourSwap(NEIGHBOURS), rules)
        assert indices == list(expected)
        unordered += indices != sorted(indices)
    assert unordered > 0


def test_pair_of_texts_equals_textattacks(reference: Reference) -> None:
    classifier = toys.ToyClassifier()
    texts = [text for text, _ in toys.toy_examples(16, seed=9, longest=8)]
    pairs = [OrderedDict(premise=a, hypothesis=b) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    labels = classifier.predict([tuple(pair.values()) for pair in pairs])
    examples: list[Any] = [(pair, int(label)) for pair, label in zip(pairs, labels, strict=True)]
    log = ours("textfooler").attack(classifier, examples)
    assert list(log) == theirs(reference("textfooler", wrapper_of(classifier)), examples)
    assert any(record.result_type == "Successful" for record in log)


@pytest.mark.parametrize("ranking", ["delete", "weighted-saliency", "gradient"])
def test_a_transformer_equals_textattacks_own_wrapper(ranking: Any, textattack: ModuleType) -> None:
    # TextAttack pads each text to the model's maximum length, so the last bits differ, but no choice does.
    from textattack.constraints.pre_transformation import RepeatModification as NoRepeat
    from textattack.transformations import WordSwap

    class Swap(WordSwap):  # type: ignore[misc]
        def _get_replacement_words(self, word: str) -> Sequence[str]:
            return SYNONYMS.get(word, ())

    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer)
    examples = list(zip(*toy_sentiment(20, seed=9), strict=True))
    gradient = ranking == "gradient"  # TextAttack's own takes it with dropout
    wrapper = (
        as_model_wrapper(classifier)
        if gradient
        else textattack.models.wrappers.HuggingFaceModelWrapper(model, tokenizer)
    )
    attack = textattack.Attack(
        textattack.goal_functions.UntargetedClassification(wrapper),
        [NoRepeat()],
        Swap(),
        textattack.search_methods.GreedyWordSwapWIR(ranking),
    )
    mine = WordAttack(
        NeighbourSwap(Neighbours(SYNONYMS)),
        index_constraints=[RepeatModification()],
        search=GreedyWordSwap(ranking),
    )
    expected = theirs(attack, examples)
    for lock_step in (1, 64):
        log = mine.attack(classifier, examples, lock_step=lock_step)
        for record, other in zip(log, expected, strict=True):
            scores = {"original_score": other.original_score, "perturbed_score": other.perturbed_score}
            assert replace(record, **scores) == other  # type: ignore[arg-type]
            assert record.perturbed_score == pytest.approx(other.perturbed_score, abs=1e-5)
    assert sum(record.result_type == "Successful" for record in expected) > 10
