"""Every transformation lists the candidates of TextAttack's with the same resources, in the same order."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from robustkit.attacks.words import (
    CharacterDeletion,
    CharacterInsertion,
    CharacterSubstitution,
    Composite,
    MaskedLanguageModel,
    MaskedLMSwap,
    NeighbouringCharacterSwap,
    Neighbours,
    NeighbourSwap,
    Transformation,
    WordNet,
    WordNetSwap,
    WordText,
    run,
)
from tests.robustkit.attacks.words import lexicon
from tests.robustkit.attacks.words.peers import TA, pair
from tests.robustkit.attacks.words.samples import plain, texts

QUICK = settings(max_examples=60, deadline=None)


def both(ours: Transformation, theirs: Any, text: str, in_order: bool = True) -> list[str]:
    """The candidates of both, which must be alike; returned as texts."""
    word_text, attacked = pair(text)
    indices = list(set(range(len(word_text.words))))
    found = [candidate.text for candidate in run(ours.candidates(word_text, indices))]
    expected = [candidate.text for candidate in theirs(attacked)]
    assert (found if in_order else sorted(found)) == (expected if in_order else sorted(expected))
    return found


# Five each, because TextAttack's table of neighbours has no gaps.
LISTS = {
    "film": ("movie", "FILM", "Film", "picture", "e-film"),
    "good": ("fine", "McGood", "well-made", "great", "nice"),
    "the": ("this", "that", "The", "a", "two words"),
    "i": ("me", "we", "I", "you", "they"),
    "ΟΔΟΣ".lower(): ("δρόμος", "straße", "via", "rue", "road"),
    "straße": ("weg", "gasse", "STRASSE", "pfad", "allee"),
    "well-made": ("good", "...", "made", "well", "sound"),
    "2": ("two", "3", "1", "½", "²"),
    "not": ("...", "two words", "n't", "never", "no"),
}
for _word in dict.fromkeys(near for lists in tuple(LISTS.values()) for near in lists):
    LISTS.setdefault(_word, ("good", "the", "2", "not", "i"))


def embedding() -> Any:
    rank = {word: index for index, word in enumerate(LISTS)}
    nearest = np.array([[rank[word], *(rank[near] for near in LISTS[word])] for word in rank])
    vectors = np.zeros((len(rank), 3))
    return TA.shared.WordEmbedding(vectors, rank, {index: word for word, index in rank.items()}, nearest)


@QUICK
@given(texts, st.integers(1, 6))
def test_neighbour_swap_is_that_of_textattack(text: str, count: int) -> None:
    theirs = TA.transformations.WordSwapEmbedding(max_candidates=count, embedding=embedding())
    both(NeighbourSwap(Neighbours(LISTS), count), theirs, text)


def test_neighbours_take_the_case_of_the_word() -> None:
    swap = NeighbourSwap(Neighbours({"film": ["movie", "McFilm"], "i": ["we"]}))
    assert swap.replacements("film") == ["movie", "mcfilm"]
    assert swap.replacements("FILM") == ["MOVIE", "MCFILM"]
    assert swap.replacements("Film") == ["Movie", "Mcfilm"]
    assert swap.replacements("fiLm") == ["movie", "McFilm"]
    assert swap.replacements("I") == ["we"]
    assert swap.replacements("unknown") == []


@pytest.fixture(scope="module")
def wordnets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WordNet, Any]]:
    import nltk

    home = tmp_path_factory.mktemp("nltk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [*nltk.data.path, str(home)])
        reader = lexicon.nltk_reader(home)
        patch.setattr("textattack.transformations.word_swaps.word_swap_wordnet.wordnet", reader)
        theirs = object.__new__(TA.transformations.WordSwapWordNet)  # its __init__ would download
        theirs.language = "eng"
        yield WordNet.from_files(*lexicon.write_json(home)), theirs


known = st.lists(
    st.sampled_from(
        [*lexicon.INFLECTED, *(m for members in lexicon.SYNSETS.values() for m in members), "x", ","]
    )
).map(" ".join)


@QUICK
@given(st.one_of(known, texts))
def test_wordnet_swap_is_that_of_textattack(wordnets: tuple[WordNet, Any], text: str) -> None:
    # TextAttack lists a word's synonyms in the order of a set of strings, which differs from run to run.
    both(WordNetSwap(wordnets[0]), wordnets[1], text, in_order=False)


WORDS = ("a", "the", "good", "bad", "film", "movie", "plot", "is", "very", "not", "I", "don't", "x@y", "1999")


def bert(spare: int = 0) -> tuple[Any, Any]:
    """A masked language model with WordPiece tokens, sub-words, punctuation and pieces of punctuation."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz'@0123456789"),
    ]
    marks = [
        ".",
        ",",
        "'",
        "-",
        "...",
        "``",
        "##,",
        "##.",
        "##ing",
        "##ly",
        "##film",
        "##good",
        "é",
        "##é",
        "½",
        "中",
    ]
    vocabulary = list(dict.fromkeys([*specials, *letters, *marks, *(word.lower() for word in WORDS)]))
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary) + spare,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config), tokenizer


def roberta() -> tuple[Any, Any]:
    """A masked language model with byte-level BPE tokens."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(
        [" ".join(WORDS), "a good film, isn't it? very good... café"] * 3,
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    core = core._tokenizer
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=32,
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=34,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        type_vocab_size=1,
        initializer_range=0.5,
    )
    return RobertaForMaskedLM(config), tokenizer


@pytest.fixture(scope="module", params=[bert, roberta])
def language_model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return request.param()


sentences = st.lists(
    st.sampled_from([*WORDS, "GOOD", "Film", "[MASK]", ",", "...", "“said”", "🎬"]), max_size=40
).map(" ".join)


@settings(max_examples=12, deadline=None)
@given(sentences, st.sampled_from([1, 5, 50, 1000]), st.sampled_from([0.0, 1e-3, 0.05]))
def test_masked_lm_swap_is_that_of_textattack(
    language_model: tuple[Any, Any], text: str, count: int, least: float
) -> None:
    model, tokenizer = language_model
    theirs = TA.transformations.WordSwapMaskedLM(
        method="bae",
        masked_language_model=model,
        tokenizer=tokenizer,
        max_length=32,
        max_candidates=count,
        min_confidence=least,
        batch_size=7,
    )
    ours = MaskedLanguageModel(model, tokenizer, max_length=32, batch_size=5)
    # TextAttack fills texts up to max_length, whose rounding can swap guesses of almost the same probability.
    both(MaskedLMSwap(ours, count, least), theirs, text, in_order=False)


def test_masked_lm_swap_proposes_words_only() -> None:
    model = MaskedLanguageModel(*bert(), max_length=32)
    text = WordText("a good film")
    found = run(MaskedLMSwap(model, 1000).candidates(text, [1]))
    words = {candidate.words[1] for candidate in found}
    assert {"bad", "ing", "film", "CLS"} <= words and not words & {"good", ".", "½", "7"}
    assert run(MaskedLMSwap(model, 1000).candidates(text, [])) == []


def test_rows_of_the_model_that_name_no_token_are_no_guesses() -> None:
    text = WordText("a good film")
    found = run(MaskedLMSwap(MaskedLanguageModel(*bert(spare=5), max_length=32), 1000).candidates(text, [1]))
    expected = run(MaskedLMSwap(MaskedLanguageModel(*bert(), max_length=32), 1000).candidates(text, [1]))
    assert sorted(candidate.text for candidate in found) == sorted(candidate.text for candidate in expected)


TYPOS = (
    (NeighbouringCharacterSwap, "WordSwapNeighboringCharacterSwap"),
    (CharacterSubstitution, "WordSwapRandomCharacterSubstitution"),
    (CharacterDeletion, "WordSwapRandomCharacterDeletion"),
    (CharacterInsertion, "WordSwapRandomCharacterInsertion"),
)


@pytest.mark.parametrize(("ours", "theirs"), TYPOS)
@QUICK
@given(texts, st.integers(0, 2**32 - 1))
def test_typos_are_those_of_textattack_after_the_same_seed(
    ours: type[NeighbouringCharacterSwap], theirs: str, text: str, seed: int
) -> None:
    random.seed(seed)
    np.random.seed(seed)
    both(ours(seed), getattr(TA.transformations, theirs)(), text)


@QUICK
@given(plain, st.integers(0, 2**32 - 1))
def test_composite_of_typos_draws_as_textattack_does(text: str, seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    theirs = TA.transformations.CompositeTransformation(
        [getattr(TA.transformations, name)() for _, name in TYPOS]
    )
    ours = Composite([kind() for kind, _ in TYPOS]).seeded(seed)
    both(ours, theirs, text)
    both(ours, theirs, text)  # and goes on drawing
    assert not ours.deterministic


def test_seeds_decide_typos() -> None:
    text = WordText("a wonderful film with an excellent cast")
    swap = CharacterSubstitution()

    def typos(seed: int) -> list[WordText]:
        return run(swap.seeded(seed).candidates(text, range(7)))

    assert typos(1) == typos(1) != typos(2)
    deterministic = NeighbourSwap(Neighbours({}))
    assert deterministic.seeded(3) is deterministic and deterministic.deterministic


def test_composite_lists_a_text_once() -> None:
    text = WordText("good film")
    same = NeighbourSwap(Neighbours({"good": ["fine"], "film": ["movie"]}))
    other = NeighbourSwap(Neighbours({"good": ["great", "fine"]}))
    found = run(Composite([same, other]).candidates(text, [0, 1]))
    assert [candidate.text for candidate in found] == ["fine film", "good movie", "great film"]


@pytest.mark.parametrize("make", [lambda: NeighbourSwap(Neighbours({}), 0), lambda: Composite([])])
def test_bad_arguments_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        make()


def test_empty_text_has_no_candidates(tmp_path: Path) -> None:
    everything = Composite([kind() for kind, _ in TYPOS])
    assert run(everything.candidates(WordText(""), [])) == []
