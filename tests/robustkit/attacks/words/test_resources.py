"""Resources: what is read from files, what is said when a file is missing, and the tagger beside NLTK's."""

from __future__ import annotations

import gzip
import json
import string
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.attacks.words import (
    MaskedLanguageModel,
    MaskQuery,
    Neighbours,
    SentenceEncoder,
    Tagger,
    WordNet,
    WordVectors,
    read_stopwords,
    universal_tag,
)
from tests.robustkit.attacks.words import lexicon
from tests.robustkit.attacks.words.samples import PIECES, texts
from tests.robustkit.tiny import tiny_masked_lm
from trainkit.datafiles import data_file

Entry = tuple[str, Callable[[Path], object]]


def shared(name: Callable[[], Path]) -> Path:
    try:
        return name()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def packed(path: Path) -> Path:
    """The file, compressed, beside itself."""
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


MISSING: tuple[Entry, ...] = (
    ("one stop word a line", read_stopwords),
    ("word vectors as text", WordVectors.from_file),
    ("lists of neighbours", Neighbours.from_file),
    ("NLTK's averaged_perceptron_tagger_eng", Tagger.from_file),
    ("entries .* of Open English WordNet", lambda path: WordNet.from_files(path, path)),
    ("hf download", MaskedLanguageModel.from_pretrained),
    ("hf download", SentenceEncoder.from_pretrained),
)


@pytest.mark.parametrize(("hint", "load"), MISSING)
def test_what_is_missing_is_named_with_a_way_to_get_it(hint: str, load: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=hint) as caught:
        load(tmp_path / "nothing here")
    assert "nothing here" in str(caught.value)


@pytest.mark.parametrize(
    "load", [Neighbours.from_file, Tagger.from_file, lambda path: WordNet.from_files(path, path)]
)
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"weights": 3, "tagdict": 3, "classes": 3, "entries": 3}']
)
def test_broken_files_are_named(load: Any, content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file\.json"):
        load(path)


def test_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"good": ["fine"]}))
    packed(path).write_bytes(packed(path).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"file\.json\.gz: damaged"):
        Neighbours.from_file(tmp_path / "file.json.gz")


def test_stop_words(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("the\n\nand \r\n")
    assert read_stopwords(path) == read_stopwords(packed(path)) == {"the", "and"}
    path.write_text("\n")
    with pytest.raises(ValueError, match="no words"):
        read_stopwords(path)


# WordNet


@pytest.fixture(scope="module")
def small_wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet.from_files(*map(packed, lexicon.write_json(tmp_path_factory.mktemp("oewn"))))


@pytest.mark.parametrize(
    ("word", "synonyms"),
    [
        ("movies", ("film", "movie", "picture")),
        ("Men", ("man", "human")),
        ("hoping", ("hope", "trust", "desire", "hop", "jump")),
        ("better", ("good", "fine", "Fine", "sound", "well")),
        ("good", ("goodness", "fine", "Fine", "sound", "well")),
        ("ads", ("ad", "advertisement", "ad-lib", "AD")),
        ("moving picture", ()),
        ("unknown", ()),
        ("", ()),
    ],
)
def test_synonyms(small_wordnet: WordNet, word: str, synonyms: tuple[str, ...]) -> None:
    assert small_wordnet.synonyms(word) == synonyms


def test_wordnet_from_nltk_is_the_same_lexicon(
    small_wordnet: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("nltk.corpus")

    monkeypatch.setattr(nltk.data, "path", [*nltk.data.path, str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", lexicon.nltk_reader(tmp_path))
    theirs = WordNet.from_nltk()
    words = [*lexicon.INFLECTED, *(member for members in lexicon.SYNSETS.values() for member in members)]
    assert {word: theirs.synonyms(word) for word in words} == {w: small_wordnet.synonyms(w) for w in words}
    assert theirs.fingerprint != small_wordnet.fingerprint


def test_nltk_without_wordnet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("nltk.corpus")
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(
        nltk.corpus, "wordnet", LazyCorpusLoader("no such wordnet", WordNetCorpusReader, None)
    )
    with pytest.raises(LookupError, match=r"nltk\.download.*from_files"):
        WordNet.from_nltk()


def test_wordnet_with_a_sense_that_no_synset_explains(tmp_path: Path) -> None:
    entries, synsets = lexicon.write_json(tmp_path)
    synsets.write_text(synsets.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match="00000001-n"):
        WordNet.from_files(entries, synsets)
    synsets.write_text('{"id": 3}\n')
    with pytest.raises(ValueError, match=r"synsets\.jsonl:1: KeyError"):
        WordNet.from_files(entries, synsets)


def test_open_english_wordnet() -> None:
    entries = shared(lambda: data_file("lexicon/oewn_entries.json.gz"))
    synsets = shared(lambda: data_file("lexicon/oewn_synsets.jsonl.gz"))
    wordnet = WordNet.from_files(entries, synsets)
    assert {"movie", "picture"} <= set(wordnet.synonyms("films"))
    assert {"awful", "dreadful"} <= set(wordnet.synonyms("Terrible"))
    assert "go" in wordnet.synonyms("went") and "bad" in wordnet.synonyms("worst")
    assert not any(set(" _") & set(synonym) for synonym in wordnet.synonyms("take"))


# Neighbours and vectors


def test_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "near.json"
    path.write_text(json.dumps({"good": ["fine", "nice"], "br": []}))
    for file in (path, packed(path)):
        near = Neighbours.from_file(file)
        assert [near.of(word) for word in ("good", "br", "unknown")] == [["fine", "nice"], [], ()]
        assert near.fingerprint == Neighbours({"good": ("fine", "nice"), "br": ()}).fingerprint
    path.write_text(json.dumps({"good": [["fine", 0.5]]}))
    with pytest.raises(ValueError, match="the entry 'good'"):
        Neighbours.from_file(path)


def test_published_neighbours() -> None:
    near = Neighbours.from_file(shared(lambda: data_file("lexicon/counterfitted_neighbors.json.gz")))
    assert near.of("movie")[0] == "film" and "movie" not in near.of("movie")
    assert not near.of("qwertyuiop")


def test_vectors_by_hand() -> None:
    vectors = WordVectors(["x", "y", "xy", "-x"], np.array([[2.0, 0], [0, 1], [1, 1.5], [-3, 0]]))
    assert vectors.cosine("x", "y") == 0 and vectors.cosine("x", "-x") == pytest.approx(-1)
    assert vectors.cosine("x", "xy") == vectors.cosine("xy", "x") == pytest.approx(1 / 3.25**0.5)
    assert vectors.squared_distance("x", "y") == 5
    assert "x" in vectors and "z" not in vectors
    near = vectors.neighbours(2)
    assert [near.of(word) for word in ("x", "xy", "-x")] == [["xy", "y"], ["y", "x"], ["y", "xy"]]
    assert len(vectors.neighbours(50).of("x")) == 3
    with pytest.raises(KeyError):
        vectors.cosine("x", "z")


def test_neighbours_by_vectors_are_those_of_sorting_all_cosines() -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 5)).astype(np.float32)
    words = [f"w{index}" for index in range(700)]
    near = WordVectors(words, matrix).neighbours(4)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for index in (0, 511, 512, 699):
        cosines = unit @ unit[index]
        cosines[index] = -2
        assert near.of(words[index]) == [words[other] for other in np.argsort(-cosines)[:4]]


def test_vectors_from_text(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 0.5\nüber -1e-3 2 \ngood 9 9\n", encoding="utf-8")
    vectors = WordVectors.from_file(path)
    assert vectors.words == ("good", "über") and vectors.matrix.dtype == np.float32
    assert vectors.matrix.tolist() == [[1.0, 0.5], [np.float32(-1e-3), 2.0]]
    path.write_text("2 2\ngood 1 0.5\nbad 0 1\n")
    assert WordVectors.from_file(packed(path)).words == ("good", "bad")
    for content, message in (
        ("good 1 2\nbad 1\n", r"vectors\.txt:2: "),
        ("good 1 x\n", r"vectors\.txt:1: "),
        ("", "no vectors"),
        ("good\n", "0 numbers, not any"),
        ("good 1\nbad\n", "0 numbers, not"),
        ("3 2\nbad\n", "0 numbers, not any"),
        ("good 1 nan\n", "not finite"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            WordVectors.from_file(path)


def test_vectors_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(1, d\)"):
        WordVectors(["x"], np.zeros(3))
    with pytest.raises(ValueError, match="a word twice"):
        WordVectors(["x", "x"], np.zeros((2, 3)))


def test_glove_vectors() -> None:
    vectors = WordVectors.from_file(shared(lambda: data_file("lexicon/glove_twitter_25d_12k.txt.gz")))
    assert vectors.matrix.shape[1] == 25 and vectors.cosine("good", "great") > vectors.cosine("good", "paper")


# The tagger

FEATURES = (
    "bias", "i suffix ", "i pref1 ", "i-1 tag ", "i-2 tag ", "i tag+i-2 tag ", "i word ", "i-1 tag+i word ",
    "i-1 word ", "i-1 suffix ", "i-2 word ", "i+1 word ", "i+1 suffix ", "i+2 word ",
)  # fmt: skip
tags = ("NN", "VB", "JJ", "RB", "-START-", "-START2-")


def random_model(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, str], list[str]]:
    """Weights for many features of the texts below; small whole numbers, so that sums are often equal."""
    chance = np.random.default_rng(seed)
    shapes = [piece.lower() for piece in PIECES]
    values = [*shapes, *(word[-3:] for word in shapes), *(word[:1] for word in PIECES)]
    values += [
        "!YEAR",
        "!DIGITS",
        "!HYPHEN",
        "-END-",
        "-END2-",
        *tags,
        *(f"{a} {b}" for a in tags for b in tags),
    ]
    values += [f"{tag} {word}" for tag in tags for word in shapes]
    names = {feature + value if feature != "bias" else feature for feature in FEATURES for value in values}
    chosen = [name for name in sorted(names) if name == "bias" or chance.random() < 0.5]
    weights = {
        name: {
            tag: float(weight)
            for tag, weight in zip(tags[:4], chance.integers(-2, 3, 4), strict=True)
            if weight
        }
        for name in chosen
    }
    return weights, {"good": "JJ", "FILM": "NN"}, list(tags[:4])


def nltks(weights: Any, tagdict: Any, classes: Any) -> Any:
    perceptron = pytest.importorskip("nltk.tag.perceptron")
    theirs = perceptron.PerceptronTagger(load=False)
    theirs.decode_json_params((weights, tagdict, classes))
    return theirs


@cache
def both_taggers(number: int) -> tuple[Tagger, Any]:
    return Tagger(*MODELS[number]), nltks(*MODELS[number])


MODELS = [random_model(seed) for seed in range(3)]


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(0, 2))
def test_tagger_is_nltks(text: str, number: int) -> None:
    words = text.split()
    ours, theirs = both_taggers(number)
    expected = [tag for _, tag in theirs.tag(words)]
    assert ours.tag(words) == expected
    for count in range(len(words)):
        assert ours.tag(words, count) == expected[:count]


def test_trained_tagger_is_nltks() -> None:
    path = shared(lambda: data_file("lexicon/averaged_perceptron_tagger.json.gz"))
    ours = Tagger.from_file(path)
    model = json.loads(gzip.decompress(path.read_bytes()))
    theirs = nltks(model["weights"], model["tagdict"], model["classes"])
    chance = np.random.default_rng(0)
    vocabulary = [*PIECES, *list(model["tagdict"])[::20], "unheardof", "e-mails", "2026", "3rd", "-ish"]
    for _ in range(150):
        words = [vocabulary[i] for i in chance.integers(0, len(vocabulary), chance.integers(1, 12))]
        assert ours.tag(words) == [tag for _, tag in theirs.tag(words)]
    sentence = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    assert ours.tag(sentence) == ["DT", "JJ", "NN", "NN", "VBZ", "IN", "DT", "JJ", "NN"]


PENN = """
CC CONJ, CD NUM, DT DET, EX DET, FW X, IN ADP, JJ ADJ, JJR ADJ, JJS ADJ, LS X, MD VERB, NN NOUN, NNS NOUN,
NNP NOUN, NNPS NOUN, PDT DET, POS PRT, PRP PRON, PRP$ PRON, RB ADV, RBR ADV, RBS ADV, RP PRT, SYM X, TO PRT,
UH X, VB VERB, VBD VERB, VBG VERB, VBN VERB, VBP VERB, VBZ VERB, WDT DET, WP PRON, WP$ PRON, WRB ADV,
# ., $ ., '' ., `` ., ( ., ) ., . ., : ., -LRB- ., unheard X
"""


@pytest.mark.parametrize("pair", PENN.strip().replace("\n", " ").split(", "))
def test_universal_tags(pair: str) -> None:
    tag, universal = pair.split(" ")
    assert universal_tag(tag) == universal


def test_tagger_from_file(tmp_path: Path) -> None:
    weights, tagdict, classes = MODELS[0]
    path = tmp_path / "tagger.json"
    path.write_text(json.dumps({"weights": weights, "tagdict": tagdict, "classes": classes}))
    loaded, other = Tagger.from_file(packed(path)), Tagger(*MODELS[1])
    assert loaded.fingerprint == Tagger(*MODELS[0]).fingerprint != other.fingerprint
    assert loaded.tag(["the", "good", "film"]) == Tagger(*MODELS[0]).tag(["the", "good", "film"])
    assert loaded.tag([]) == []


# Models


def test_sentence_encoder_keeps_the_order_in_batches_of_like_lengths() -> None:
    batches = []

    def encode(texts: list[str]) -> np.ndarray:
        batches.append([len(text) for text in texts])
        return np.array([[len(text), ord(text[0])] for text in texts])

    asked = ["aaaa", "b", "cccccc", "dd", "e"]
    answers = SentenceEncoder(encode, batch_size=2).answer(asked)
    assert [vector.tolist() for vector in answers] == [[len(text), ord(text[0])] for text in asked]
    assert batches == [[1, 1], [2, 4], [6]]
    assert SentenceEncoder(encode).answer([]) == []


def test_bad_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        SentenceEncoder(lambda texts: texts, batch_size=0)
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 texts"):
        SentenceEncoder(lambda texts: np.zeros(3)).answer(["a", "b"])


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers model that averages tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("encoder")
    language_model, tokenizer = tiny_masked_lm(["a good film", "a bad film and a plot"])
    BertModel(language_model.config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=8)
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def test_sentence_encoder_is_that_of_sentence_transformers(sentence_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    asked = ["a good film", "bad", "", "a plot and a film and a plot and a bad film", "unknown words"]
    expected = SentenceTransformer(str(sentence_model), device="cpu").encode(asked)
    encoder = SentenceEncoder.from_pretrained(sentence_model, batch_size=2)
    np.testing.assert_allclose(np.stack(encoder.answer(asked)), expected, atol=1e-5)
    assert encoder.fingerprint == SentenceEncoder.from_pretrained(sentence_model).fingerprint != ""


def test_sentence_encoder_that_pools_otherwise_is_refused(sentence_model: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(sentence_model, other)
    for config in (
        {"pooling_mode": "cls"},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    ):
        (other / "1_Pooling" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="expected the mean of the tokens"):
            SentenceEncoder.from_pretrained(other)
    (other / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    assert len(SentenceEncoder.from_pretrained(other).answer(["a"])) == 1


def test_masked_language_model_by_hand(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked_lm(["a good film", "a bad plot , ."])
    lm = MaskedLanguageModel(model, tokenizer, batch_size=2)
    text = f"a {tokenizer.mask_token} film"
    with torch.inference_mode():
        inputs = tokenizer(text, return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        probabilities = model(**inputs).logits[0, place].softmax(-1).tolist()
    names = tokenizer.convert_ids_to_tokens(range(len(probabilities)))
    ranked = sorted(zip(probabilities, names, strict=True), reverse=True)
    words = [(p, word.strip("[]")) for p, word in ranked if not set(word) <= set(string.punctuation)]
    expected = [word.strip("[]") for _, word in words]
    longer = f"a good {tokenizer.mask_token} plot a good film"
    first, none, second, likely = lm.answer(
        [
            MaskQuery(text, 3, 0.0),
            MaskQuery("no mask", 3, 0.0),
            MaskQuery(longer, 2, 0.0),
            MaskQuery(text, 1000, words[2][0] - 1e-6),
        ]
    )
    assert [word.strip("[]") for word in first] == expected[:3]
    assert [word.strip("[]") for word in likely] == expected[:3]
    assert none == () and len(second) == 2
    assert lm.answer([]) == []

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = MaskedLanguageModel.from_pretrained(tmp_path)
    assert loaded.answer([MaskQuery(text, 3, 0.0)]) == [first]
    assert loaded.fingerprint == lm.fingerprint


def test_a_mask_beyond_the_last_token_gets_no_guesses() -> None:
    model, tokenizer = tiny_masked_lm(["a good film"])
    lm = MaskedLanguageModel(model, tokenizer, max_length=6)
    assert lm.answer([MaskQuery("good " * 10 + tokenizer.mask_token, 3, 0.0)]) == [()]


def test_bad_language_models_are_refused() -> None:
    model, tokenizer = tiny_masked_lm(["a good film"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        MaskedLanguageModel(model, tokenizer, batch_size=0)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        MaskedLanguageModel(model, tokenizer)
