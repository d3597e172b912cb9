"""Readers of replaced words, their training, and the detector."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from robustkit.attacks.words import Neighbours, NeighbourSwap
from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import (
    Detector,
    Edited,
    EnsembleDetector,
    MSPDetector,
    ReplacedWordsDetector,
    ReplacedWordsSettings,
    TextDetector,
    WordReader,
    detection_report,
    edited_copies,
    guard,
    train_replaced_words,
    typos,
)
from robustkit.detection import replaced as module
from robustkit.detection.replaced import ReplacedWordsObjective, text_log_odds
from tests.robustkit.tiny import (
    tiny_classifier,
    tiny_gpt2,
    tiny_image_classifier,
    tiny_reader,
    toy_sentiment,
    toy_words,
    trained_bert,
)

TEXTS = toy_sentiment(240, seed=2)[0]
ALIENS = ("zorb", "quell", "vyx", "drome", "plim")
SPARED = frozenset({"the", "and", "with", "found", "was", "very"})
SETTINGS = ReplacedWordsSettings(
    max_length=40, copies=2, batch_size=20, learning_rate=1e-2, mixed_precision="no"
)


# Control characters part words for Python and not for the tokenizer.
LETTERS = st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from(" \t\n")


def alien(word: str, rng: Random) -> list[str]:
    """A source whose words no text holds."""
    return [rng.choice(ALIENS)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's folder, whose head has another size than the reader's."""
    folder = tmp_path_factory.mktemp("encoder")
    model, tokenizer = tiny_classifier("bert", [*toy_words(), *ALIENS], labels=3, spread=0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(encoder: Path) -> ReplacedWordsDetector:
    # Half of them twice as long, so that every position is learned.
    texts = [*TEXTS[:120], *(f"{one} {other}" for one, other in zip(TEXTS[120:], TEXTS[:120], strict=True))]
    return train_replaced_words(texts, encoder, [alien], spared=SPARED, settings=SETTINGS, seed=1)


def of(texts: Any) -> Features:
    return Features.of(np.zeros((len(texts), 0)), np.zeros(len(texts), int), texts=tuple(texts))


def even(family: str = "bert", max_length: int = 32) -> WordReader:
    """A reader to which every token is replaced with probability one half."""
    reader = tiny_reader(family, max_length=max_length)
    for name, parameter in reader.model.named_parameters():
        if name.startswith("classifier"):
            torch.nn.init.zeros_(parameter)
    return reader


# The equation -----------------------------------------------------------------------------------------------


def test_the_log_odds_of_a_text_by_hand() -> None:
    logits = torch.tensor(
        [[0.0, math.log(3), 9.0], [-2.0, 5.0, 5.0], [-800.0, -800.0, 0.0]], dtype=torch.float64
    )
    counts = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    # Probabilities 1/2 and 3/4: none is replaced with probability 1/8.
    odds = text_log_odds(logits, counts)
    assert odds[:2].tolist() == pytest.approx([math.log(7), -2.0], rel=1e-14)
    assert math.isfinite(odds[2]) and odds[2] < -60
    assert math.isfinite(text_log_odds(torch.full((1, 3), 800.0), torch.ones(1, 3, dtype=torch.bool))[0])
    assert text_log_odds(logits[:1], counts[:1] & False).item() == pytest.approx(math.log(1e-30))


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12))
def test_it_is_the_log_odds_of_the_product(logits: list[float]) -> None:
    q = math.prod(1 - 1 / (1 + math.exp(-x)) for x in logits)
    found = text_log_odds(torch.tensor([logits], dtype=torch.float64), torch.ones(1, len(logits))).item()
    assert found == pytest.approx(math.log((1 - q) / q), rel=1e-9, abs=1e-9)


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_token_counts_once_also_of_a_text_longer_than_the_model(family: str, side: str) -> None:
    """With p = 1/2 everywhere a text of k tokens has the odds 2^k - 1; XLNet is padded on the left."""
    reader = even(family, max_length=17)
    reader.tokenizer.truncation_side = side
    counts = [*range(1, 50), 200, 3]
    odds = lambda n: n * math.log(2) + math.log1p(-(0.5**n))  # noqa: E731
    found = reader.log_odds([" ".join(["film"] * n) for n in counts])
    np.testing.assert_allclose(found, [odds(n) for n in counts], rtol=1e-9)
    cut = 17 - reader.tokenizer.num_special_tokens_to_add()
    assert reader.log_odds(["film " * 100], truncate=True) == pytest.approx([odds(cut)], rel=1e-9)


def test_a_long_text_is_read_in_windows() -> None:
    """Each token has the logit of the window where it stands further from the edge, by hand."""
    reader = tiny_reader(max_length=17)  # 15 words a window, 3 of them shared with the next
    words = [Random(0).choice(toy_words()[:30]) for _ in range(61)]
    logits = np.empty(len(words))
    windows = range(0, len(words) - 3, 12)
    for number, start in enumerate(windows):
        part = words[start : start + 15]
        ids = reader.tokenizer.convert_tokens_to_ids(["[CLS]", *part, "[SEP]"])
        with torch.no_grad():
            row = reader.model(input_ids=torch.tensor([ids])).logits[0, 1:-1, 0].double().numpy()
        first = 0 if number == 0 else 1
        last = len(part) if number == len(windows) - 1 else 13
        logits[start + first : start + last] = row[first:last]
    judged = reader.word_log_odds([" ".join(words)])[0]
    assert [one.word for one in judged] == words
    np.testing.assert_allclose([one.log_odds for one in judged], logits, atol=1e-5)
    assert len(reader.word_log_odds([" ".join(words)], truncate=True)[0]) == 15


@settings(max_examples=50)
@given(st.lists(st.text(LETTERS, max_size=40), max_size=4))
def test_words_of_any_script_are_found_where_they_stand(texts: list[str]) -> None:
    reader = _even()
    for text, words in zip(texts, reader.word_log_odds(texts), strict=True):
        assert all(text[word.start : word.end] == word.word for word in words)
        assert {word.word for word in words} <= set(text.split())
        # Every token belongs to one word, so the words make up the text.
        none = sum(np.logaddexp(0, word.log_odds) for word in words)
        odds = math.log(math.expm1(none)) if words else math.log(1e-30)
        assert reader.log_odds([text])[0] == pytest.approx(odds, rel=1e-6)


_READERS: list[WordReader] = []


def _even() -> WordReader:
    """One reader for all examples."""
    if not _READERS:
        _READERS.append(even())
    return _READERS[0]


def test_scores_do_not_depend_on_the_texts_beside() -> None:
    reader = tiny_reader()
    texts = ["", *TEXTS[:70], " ".join(TEXTS[:12]), "film"]
    together = reader.log_odds(texts)
    alone = np.concatenate([reader.log_odds([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert reader.log_odds([]).shape == (0,)
    with pytest.raises(TypeError, match="texts is a str"):
        reader.log_odds("a film")


def test_what_is_no_reader_is_refused(tmp_path: Path, encoder: Path) -> None:
    model, tokenizer = tiny_classifier(labels=2)
    with pytest.raises(ValueError, match="has 2 labels; expected a token classifier with one"):
        WordReader(model, tokenizer)
    with pytest.raises(ValueError, match="holds a BertForSequenceClassification, no trained reader"):
        WordReader.from_pretrained(encoder)
    reader = tiny_reader()
    with pytest.raises(ValueError, match="adds no special tokens"):
        WordReader(reader.model, tiny_gpt2()[1])
    boundless = copy.deepcopy(reader.tokenizer)
    boundless.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="model_max_length is not set"):
        WordReader(reader.model, boundless)
    with pytest.raises(FileNotFoundError, match="no folder"):
        WordReader.from_pretrained(tmp_path / "none")
    with pytest.raises(TypeError, match="reader is a str; expected a WordReader"):
        ReplacedWordsDetector("reader")
    with pytest.raises(TypeError, match="truncate is 'yes'; expected a bool"):
        ReplacedWordsDetector(reader, "yes")


# Training ---------------------------------------------------------------------------------------------------


def test_tokens_of_replaced_words_are_marked() -> None:
    _, tokenizer = tiny_classifier("bert", ["a fine plot is mended"])
    objective = ReplacedWordsObjective(tokenizer, 6, 0.1)
    long = Edited("a plot a plot a plot", ((2, 6), (16, 20)))
    batch = objective.collate([[Edited("a fine plot", ((2, 6),)), Edited("a plot")], [long]])
    marked = [
        tokenizer.convert_ids_to_tokens(ids[mark.bool()])
        for ids, mark in zip(batch["input_ids"], batch["replaced"], strict=True)
    ]
    assert marked == [["fine"], [], ["plot"]]  # of the long text four words are read
    read = [
        tokenizer.decode(ids[keep]) for ids, keep in zip(batch["input_ids"], batch["is_token"], strict=True)
    ]
    assert read == ["a fine plot", "a plot", "a plot a plot"]


def test_the_loss_by_hand() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> Any:
            return type("Output", (), {"logits": logits[..., None]})

    batch = {
        "logits": torch.tensor([[9.0, 0.0, math.log(3)], [9.0, -1.0, 9.0], [9.0, 9.0, 9.0]]),
        "is_token": torch.tensor([[False, True, True], [False, True, False], [False, False, False]]),
        "replaced": torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    }
    loss = ReplacedWordsObjective(None, 8, 0.5)(Fixed(), batch)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    first = (math.log(2) - math.log(0.75)) / 2 - 0.5 * math.log(7 / 8)
    second = -1.5 * math.log(1 - sigmoid(-1.0))
    assert float(loss.total) == pytest.approx(first + second, rel=1e-5)  # a text without tokens costs nothing
    assert loss.weight == 3


def test_it_finds_words_of_another_vocabulary(detector: ReplacedWordsDetector) -> None:
    clean = toy_sentiment(60, seed=9)[0]
    altered = edited_copies(clean, [alien], SPARED, seed=5)
    scores = detector.score_samples(of([*clean, *(new.text for new in altered)]))
    assert detection_report(scores, np.arange(len(scores)) >= len(clean)).auc > 0.99
    judged = detector.word_log_odds([new.text for new in altered])
    right = [
        (word.log_odds > 0) == ((word.start, word.end) in new.places)
        for new, words in zip(altered, judged, strict=True)
        for word in words
    ]
    assert np.mean(right) > 0.97
    # Far behind what the model takes at once.
    long = " ".join([*TEXTS[:8], "a zorb film ."])
    found = {word.word: word.log_odds for word in detector.word_log_odds([long])[0]}
    assert found["zorb"] > 0 > found["a"]
    first = ReplacedWordsDetector(detector.reader, truncate=True).word_log_odds([long])[0]
    assert "zorb" not in {word.word for word in first}


def test_a_swap_of_the_attacks_and_the_same_seed_give_the_same_reader(encoder: Path) -> None:
    swap = NeighbourSwap(Neighbours({"film": ["zorb", "quell"], "plot": ["vyx"]}))
    runs = [
        train_replaced_words(TEXTS[:40], encoder, [swap, typos], settings=SETTINGS, seed=seed)
        for seed in (3, 3, 4)
    ]
    one, again, other = (run.score_samples(of(TEXTS[:8])) for run in runs)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_an_interrupted_run_goes_on_and_a_finished_one_costs_nothing(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY", 3)

    def train(folder: Path, texts: list[str] = TEXTS[:40]) -> np.ndarray:
        found = train_replaced_words(texts, encoder, [alien], settings=SETTINGS, output_dir=folder)
        return found.score_samples(of(TEXTS[:8]))

    wanted = train(tmp_path / "whole")
    steps, whole = [], ReplacedWordsObjective.__call__

    def counted(self: ReplacedWordsObjective, model: Any, batch: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == 6:
            raise KeyboardInterrupt
        return whole(self, model, batch)

    monkeypatch.setattr(ReplacedWordsObjective, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    np.testing.assert_array_equal(train(tmp_path / "stopped"), wanted)
    assert len(steps) == 6 + 8 - 3  # 160 texts are 8 steps, 3 of them were saved
    np.testing.assert_array_equal(train(tmp_path / "stopped"), wanted)
    assert len(steps) == 11
    with pytest.raises(ValueError, match=r"\(what differs: texts or sources\); remove this folder"):
        train(tmp_path / "stopped", TEXTS[40:80])


def test_a_run_of_another_training_is_refused_and_one_of_the_same_encoder_elsewhere_is_not(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(own: Path = encoder, seed: int = 0, **change: Any) -> ReplacedWordsDetector:
        return train_replaced_words(
            TEXTS[:10], own, [alien], settings=replace(SETTINGS, **change), output_dir=tmp_path / "run",
            seed=seed,
        )  # fmt: skip

    wanted = train().reader.fingerprint
    other, moved = tmp_path / "other", tmp_path / "moved"
    for folder in (other, moved):
        shutil.copytree(encoder, folder)
    (moved / "README.md").write_text("says nothing of what is computed")
    weights = load_file(other / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][5] += 0.25
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    for change, said in (
        ({"own": other}, "encoder"),
        ({"learning_rate": 2e-2}, "settings"),
        ({"text_weight": 0.2}, "settings"),
        ({"own": other, "batch_size": 10}, "encoder, settings"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(ValueError, match=rf"another encoder, .*\(what differs: {said}\); remove"):
            train(**change)
    monkeypatch.undo()
    assert train(moved).reader.fingerprint == wanted


def test_long_training_texts_are_cut_with_a_warning(encoder: Path) -> None:
    texts = [*TEXTS[:8], " ".join(TEXTS[:4])]
    with pytest.warns(UserWarning, match="1 of 9 texts have more than 40 tokens"):
        train_replaced_words(texts, encoder, [alien], settings=SETTINGS)


def test_input_that_cannot_be_learned_from_is_refused(encoder: Path, tmp_path: Path) -> None:
    for texts, error, said in (
        ([], ValueError, "texts is empty"),
        ("a film", TypeError, "texts is a str"),
        (["a film", ("a", "b")], TypeError, r"texts\[1\] is a tuple"),
        (["it is", "42 !"], ValueError, "no word of the 2 texts was replaced"),
        (["The and WITH"], ValueError, "no word of the 1 texts was replaced"),
    ):
        with pytest.raises(error, match=said):
            train_replaced_words(texts, encoder, [alien], spared=SPARED, settings=SETTINGS)
    with pytest.raises(ValueError, match="sources is empty"):
        train_replaced_words(TEXTS, encoder, [], settings=SETTINGS)
    with pytest.raises(TypeError, match="a source is a dict"):
        train_replaced_words(TEXTS, encoder, [typos, {"film": "movie"}], settings=SETTINGS)
    with pytest.raises(ValueError, match="no word of the 240 texts was replaced"):
        train_replaced_words(TEXTS, encoder, [lambda word, rng: [word]], settings=SETTINGS)
    with pytest.raises(ValueError, match=r"max_length is 65; .* 2 special tokens and at most 64"):
        train_replaced_words(TEXTS, encoder, [alien], settings=ReplacedWordsSettings(max_length=65))
    tiny_image_classifier(["cat", "dog"]).model.save_pretrained(tmp_path / "images")
    with pytest.raises(ValueError, match="holds a vit, of which transformers makes no token classifier"):
        train_replaced_words(TEXTS, tmp_path / "images", [alien])
    model, tokenizer = tiny_gpt2()
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="adds no special tokens"):
        train_replaced_words(TEXTS, tmp_path / "gpt2", [alien], settings=SETTINGS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no safetensors weights"):
        train_replaced_words(TEXTS, tmp_path / "empty", [alien])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"copies": 0}, "copies is 0"),
        ({"rates": ()}, "rates is"),
        ({"rates": (0.0,)}, "rates is"),
        ({"text_weight": -1.0}, "text_weight is -1.0"),
        ({"text_weight": math.inf}, "text_weight is inf"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0"),
        ({"warmup_ratio": -0.1}, "warmup_ratio is -0.1"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; expected no, bf16 or fp16"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReplacedWordsSettings(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_length": "9"}, "max_length is '9'; expected an int"),
        ({"copies": 2.0}, "copies is 2.0; expected an int"),
        ({"batch_size": True}, "batch_size is True; expected an int"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; expected a number"),
        ({"warmup_ratio": None}, "warmup_ratio is None"),
        ({"text_weight": False}, "text_weight is False"),
        ({"rates": 0.1}, "rates is 0.1; expected a sequence of numbers"),
        ({"rates": "0.1"}, "rates is '0.1'"),
        ({"rates": (0.1, None)}, "rates is "),
    ],
)
def test_settings_of_another_type_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        ReplacedWordsSettings(**change)


# The detector -----------------------------------------------------------------------------------------------


def test_pairs_are_read_one_after_the_other(detector: ReplacedWordsDetector) -> None:
    pair, joined = of([(TEXTS[0], TEXTS[1])]), of([f"{TEXTS[0]} {TEXTS[1]}"])
    np.testing.assert_array_equal(detector.score_samples(pair), detector.score_samples(joined))
    with pytest.raises(ValueError, match="reads texts"):
        detector.score_samples(Features.of([[1.0]], [0]))


def test_saved_and_loaded_it_is_the_same_without_anything_else(
    detector: ReplacedWordsDetector, tmp_path: Path
) -> None:
    own = ReplacedWordsDetector(detector.reader, truncate=True)
    own.fit(of(TEXTS[:4]), [0, 1, 0, 1]).calibrate(of(TEXTS[:60]), fpr=0.05)
    own.save_pretrained(tmp_path / "saved")
    files = [file for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}
    loaded = Detector.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, ReplacedWordsDetector) and loaded.truncate
    assert repr(loaded) == repr(own)
    np.testing.assert_array_equal(loaded.score_samples(of(TEXTS)), own.score_samples(of(TEXTS)))
    assert loaded.threshold_ == own.threshold_
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["params"] == {"truncate": True}

    reader = WordReader.from_pretrained(tmp_path / "saved" / "reader")
    assert reader.max_length == 40 and reader.model.config.id2label == {0: "replaced"}
    reader.save_pretrained(tmp_path / "plain")
    reader.save_pretrained(tmp_path / "plain")
    again = WordReader.from_pretrained(tmp_path / "plain", device="cpu")
    assert again.fingerprint == detector.reader.fingerprint
    np.testing.assert_array_equal(again.log_odds(TEXTS[:9]), detector.reader.log_odds(TEXTS[:9]))
    (tmp_path / "saved" / "reader" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        Detector.from_pretrained(tmp_path / "saved")


def test_it_is_a_member_of_an_ensemble(detector: ReplacedWordsDetector, tmp_path: Path) -> None:
    classifier = TextClassifier(*trained_bert())
    clean = classifier.extract(TEXTS[:60])
    ensemble = EnsembleDetector([ReplacedWordsDetector(detector.reader), MSPDetector()])
    ensemble.calibrate(clean, fpr=0.1)
    ensemble.save_pretrained(tmp_path / "ensemble")
    loaded = Detector.from_pretrained(tmp_path / "ensemble", classifier)
    new = classifier.extract([edit.text for edit in edited_copies(TEXTS[60:90], [alien], SPARED, seed=0)])
    np.testing.assert_array_equal(loaded.score_samples(new), ensemble.score_samples(new))
    assert ensemble.predict(new).mean() > 0.9


def test_it_guards_a_pipeline(detector: ReplacedWordsDetector, tmp_path: Path) -> None:
    classifier = TextClassifier(*trained_bert())
    guarding = TextDetector(classifier, ReplacedWordsDetector(detector.reader))
    guarding.calibrate(TEXTS[:60], fpr=0.1)
    guarding.save_pretrained(tmp_path / "guard")
    for saved in (guarding, tmp_path / "guard"):
        pipe = guard(classifier, saved)
        results = pipe([TEXTS[100], "the film is good and the zorb is vyx"])
        assert [result["adversarial"] for result in results] == [False, True]
        scores = [result["score_adversarial"] for result in results]
        assert scores[0] == pytest.approx(detector.reader.log_odds([TEXTS[100]])[0], abs=1e-4)
