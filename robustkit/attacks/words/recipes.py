"""Known word attacks, each spelled as a composition of named parts.

Every choice is that of TextAttack 0.3.11's recipe unless a comment says otherwise. Resources are arguments:
`robustkit.attacks.words.resources` reads them from local files. Two departures are common to all recipes that
use a sentence encoder: TextAttack loads the Universal Sentence Encoder, which needs TensorFlow, where any
encoder is taken here; its thresholds were chosen for that encoder. And the attacker's goal can be changed
afterwards::

    attack = textfooler(...)
    attack.goal = TargetedClassification(target=0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from robustkit.attacks.words.asking import Service
from robustkit.attacks.words.constraints import (
    Constraint,
    GrammarErrors,
    IndexConstraint,
    InputColumnModification,
    LevenshteinDistance,
    MaxModificationRate,
    PartOfSpeech,
    RepeatModification,
    SentenceSimilarity,
    StopwordModification,
    WordEmbeddingDistance,
)
from robustkit.attacks.words.engine import WordAttack
from robustkit.attacks.words.goals import UntargetedClassification
from robustkit.attacks.words.resources import MaskedLanguageModel, Neighbours, Tagger, WordNet, WordVectors
from robustkit.attacks.words.search import GreedyWordSwap
from robustkit.attacks.words.transformations import (
    CharacterDeletion,
    CharacterInsertion,
    CharacterSubstitution,
    Composite,
    MaskedLMSwap,
    NeighbouringCharacterSwap,
    NeighbourSwap,
    WordNetSwap,
)

__all__ = ["a2t", "bae", "deepwordbug", "pwws", "textfooler", "textfooler_adjusted"]


def textfooler(
    *,
    neighbours: Neighbours,
    vectors: WordVectors | None,
    tagger: Tagger,
    encoder: Service,
    stopwords: Iterable[str],
    goal_score: float | None = None,
) -> WordAttack:
    """TextFooler: nearest neighbours in a space of word vectors, most important words first.

    Args:
        neighbours: Nearest neighbours by counter-fitted vectors; the first 50 are tried.
        vectors: Those vectors. None leaves out the least cosine of 0.5 between old and new word, for lists of
            neighbours whose vectors are not at hand.
        tagger: Part-of-speech tagger.
        encoder: Sentence encoder, such as a `SentenceEncoder`.
        stopwords: Words that stay.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack.

    Source: Jin et al., Is BERT Really Robust? (AAAI 2020), arXiv 1907.11932.
    """
    constraints: list[Constraint] = [
        *_near(vectors, 0.5),  # the paper says 0.7, its code does 0.5
        PartOfSpeech(tagger, allow_verb_noun_swap=True),
        SentenceSimilarity(
            encoder,
            0.840845057,  # 1 - 0.5 / pi: the paper's code forgets to divide the angle by pi
            metric="angular",
            window_size=15,
            skip_text_shorter_than_window=True,
            against_original=False,
        ),
    ]
    return WordAttack(
        NeighbourSwap(neighbours, 50),
        constraints,
        [*_usual(stopwords), _hypothesis_only()],
        UntargetedClassification(goal_score),
        GreedyWordSwap("delete"),
        name="textfooler",
    )


def textfooler_adjusted(
    *,
    neighbours: Neighbours,
    vectors: WordVectors | None,
    tagger: Tagger,
    encoder: Service,
    stopwords: Iterable[str],
    count_errors: Callable[[str], int] | None = None,
    goal_score: float | None = None,
) -> WordAttack:
    """TextFooler with thresholds at which people agree that the meaning stays.

    TextAttack has no such recipe; thresholds are those of the detection benchmark of Yoo et al. (Findings of
    ACL 2022). That the tagger stays and that words are ranked by deletion is taken over from TextFooler
    (reconstructed).

    Args:
        neighbours: See `textfooler`.
        vectors: See `textfooler`; the least cosine is 0.9 here. Without vectors this is a weaker restriction.
        tagger: Part-of-speech tagger.
        encoder: Sentence encoder. The benchmark's is a sentence-BERT; its least cosine is 0.98.
        stopwords: Words that stay.
        count_errors: Returns the number of grammatical errors of a text, which must not grow. None leaves the
            check out. The benchmark uses LanguageTool.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack.

    Source: Morris et al., Reevaluating Adversarial Examples in Natural Language (Findings of EMNLP 2020),
        arXiv 2004.14174.
    """
    constraints: list[Constraint] = [
        *_near(vectors, 0.9),
        PartOfSpeech(tagger, allow_verb_noun_swap=True),
        SentenceSimilarity(encoder, 0.98, window_size=15, against_original=False),
    ]
    if count_errors is not None:
        constraints.append(GrammarErrors(count_errors))
    return WordAttack(
        NeighbourSwap(neighbours, 50),
        constraints,
        [*_usual(stopwords), _hypothesis_only()],
        UntargetedClassification(goal_score),
        GreedyWordSwap("delete"),
        name="textfooler_adjusted",
    )


def pwws(*, wordnet: WordNet, stopwords: Iterable[str], goal_score: float | None = None) -> WordAttack:
    """PWWS: WordNet synonyms, words ordered by saliency times what replacing them gains.

    As in TextAttack without the swap of named entities, which needs all data beforehand.

    Args:
        wordnet: The lexicon.
        stopwords: Words that stay.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack.

    Source: Ren et al., Generating Natural Language Adversarial Examples through Probability Weighted Word
        Saliency (ACL 2019).
    """
    return WordAttack(
        WordNetSwap(wordnet),
        index_constraints=_usual(stopwords),
        goal=UntargetedClassification(goal_score),
        search=GreedyWordSwap("weighted-saliency"),
        name="pwws",
    )


def bae(
    *,
    masked_lm: MaskedLanguageModel,
    tagger: Tagger,
    encoder: Service,
    stopwords: Iterable[str],
    goal_score: float | None = None,
) -> WordAttack:
    """BAE-R: what a masked language model expects in the place of a word.

    Args:
        masked_lm: The language model. TextAttack's is bert-base-uncased.
        tagger: Part-of-speech tagger.
        encoder: Sentence encoder.
        stopwords: Words that stay.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack.

    Source: Garg and Ramakrishnan, BAE (EMNLP 2020), arXiv 2004.01970.
    """
    constraints: list[Constraint] = [
        PartOfSpeech(tagger, allow_verb_noun_swap=True),
        SentenceSimilarity(
            encoder,
            0.936338023,  # 1 - (1 - 0.8) / pi: the paper's 0.8, as if it were an angle
            window_size=15,
            skip_text_shorter_than_window=True,
        ),
    ]
    return WordAttack(
        MaskedLMSwap(masked_lm, 50),
        constraints,
        _usual(stopwords),
        UntargetedClassification(goal_score),
        GreedyWordSwap("delete"),
        name="bae",
    )


def a2t(
    *,
    neighbours: Neighbours,
    vectors: WordVectors | None,
    tagger: Tagger,
    encoder: Service,
    stopwords: Iterable[str],
    goal_score: float | None = None,
) -> WordAttack:
    """A2T: few and near replacements, words ordered by gradient; fast enough for adversarial training.

    Args:
        neighbours: Nearest neighbours by counter-fitted vectors; the first 20 are tried.
        vectors: Those vectors. None leaves out the least cosine of 0.8 between old and new word.
        tagger: Part-of-speech tagger.
        encoder: Sentence encoder. TextAttack's is the sentence-BERT stsb-distilbert-base.
        stopwords: Words that stay.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack. It needs a classifier that has gradients.

    Source: Yoo and Qi, Towards Improving Adversarial Training of NLP Models (Findings of EMNLP 2021), arXiv
        2109.00544.
    """
    constraints: list[Constraint] = [
        PartOfSpeech(tagger, allow_verb_noun_swap=False),
        *_near(vectors, 0.8),  # TextAttack checks it last; the same pass, but here fewer are encoded
        SentenceSimilarity(encoder, 0.9),
    ]
    return WordAttack(
        NeighbourSwap(neighbours, 20),
        constraints,
        [*_usual(stopwords), _hypothesis_only(), MaxModificationRate(0.1, min_threshold=4)],
        UntargetedClassification(goal_score),
        # TextAttack takes the gradient with dropout switched on, so that its order differs from run to run.
        # It stops two words short of the model's maximum length.
        GreedyWordSwap("gradient", max_words="model"),
        name="a2t",
    )


def deepwordbug(*, stopwords: Iterable[str], goal_score: float | None = None) -> WordAttack:
    """DeepWordBug: one typo a word, the worst of four kinds.

    Args:
        stopwords: Words that stay.
        goal_score: See `UntargetedClassification`.

    Returns:
        The attack. Its draws come from the seed of `WordAttack.attack` and the example's position;
        TextAttack's from the process's global generators.

    Source: Gao et al., Black-box Generation of Adversarial Text Sequences to Evade Deep Learning Classifiers
        (2018), arXiv 1801.04354.
    """
    typos = Composite(
        [
            NeighbouringCharacterSwap(),
            CharacterSubstitution(),
            CharacterDeletion(),
            CharacterInsertion(),
        ]
    )
    return WordAttack(
        typos,
        [LevenshteinDistance(30)],
        _usual(stopwords),
        UntargetedClassification(goal_score),
        GreedyWordSwap("unk"),
        name="deepwordbug",
    )


def _usual(stopwords: Iterable[str]) -> list[IndexConstraint]:
    return [RepeatModification(), StopwordModification(stopwords)]


def _hypothesis_only() -> IndexConstraint:
    return InputColumnModification(["premise", "hypothesis"], {"premise"})


def _near(vectors: WordVectors | None, least: float) -> list[Constraint]:
    return [] if vectors is None else [WordEmbeddingDistance(vectors, min_cosine=least)]
