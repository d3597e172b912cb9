"""Words that look replaced and matter: the score by hand, its parts, pairs, files, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.classifiers import Features, TextClassifier
from robustkit.detection import (
    Detector,
    EnsembleDetector,
    JudgedWord,
    MSPDetector,
    SuspectWordsDetector,
    TextDetector,
    WordReader,
    guard,
)
from tests.robustkit.tiny import (
    FAMILIES,
    tiny_classifier,
    tiny_image_classifier,
    tiny_reader,
    toy_sentiment,
    trained_bert,
)

TEXTS = [*toy_sentiment(8, seed=4)[0], "good", "", "the film"]
PAIRS = [("the film is good", "a plot"), ("good", "bad film and a bad plot"), ("", "a film"), ("a film", "")]


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return TextClassifier(*trained_bert(), name="toy")


@pytest.fixture(scope="module")
def detector(classifier: TextClassifier) -> SuspectWordsDetector:
    return SuspectWordsDetector(classifier, tiny_reader("bert"))


def suspecting(monkeypatch: pytest.MonkeyPatch, reader: WordReader, word: str, log_odds: float) -> None:
    """The reader suspects one word and no other."""
    plain = reader.word_log_odds

    def judged(texts: Any, *, truncate: bool = False) -> list[list[JudgedWord]]:
        return [
            [JudgedWord(w.word, w.start, w.end, log_odds if w.word == word else -40.0) for w in words]
            for words in plain(texts, truncate=truncate)
        ]

    monkeypatch.setattr(reader, "word_log_odds", judged)


def slopes_of(classifier: TextClassifier, text: Any, joined: str) -> dict[tuple[int, int], float]:
    """Another way to the slopes: ids into the model in float64, words by splitting, places by searching."""
    model = classifier.model
    sides = (text,) if isinstance(text, str) else text
    encoded = classifier.tokenizer(*sides, return_tensors="pt", return_offsets_mapping=True)
    batch = classifier.encode([text])
    embedded = classifier.embeddings(batch["input_ids"]).requires_grad_()
    logits = classifier.logits_from_embeddings(embedded, **batch)[0]
    first, second = logits.topk(2).indices.tolist()
    (gradient,) = torch.autograd.grad(logits[first] - logits[second], embedded)
    found: dict[tuple[int, int], float] = {}
    place = 0
    for word in joined.split():
        place = joined.index(word, place)
        found[place, place + len(word)] = 0.0
        place += len(word)
    shifts = (0, len(sides[0]) + 1)
    for side, (start, end), row in zip(
        encoded.sequence_ids(0), encoded["offset_mapping"][0].tolist(), gradient[0], strict=True
    ):
        if side is not None and end > start:
            (own,) = [w for w in found if w[0] < end + shifts[side] and w[1] > start + shifts[side]]
            found[own] += row.norm().item()
    assert model.dtype == torch.float64
    return found


# The equation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_by_hand(family: str) -> None:
    words = [*TEXTS, *(part for pair in PAIRS for part in pair)]
    c = TextClassifier(*tiny_classifier(family, words, labels=3))
    c.model.double()
    reader = tiny_reader("bert")
    texts = [*(text for text in TEXTS if text), *PAIRS[:2]]
    scores = SuspectWordsDetector(c, reader).score_samples(c.extract(texts))
    for text, score in zip(texts, scores, strict=True):
        joined = text if isinstance(text, str) else " ".join(text)
        judged = {(w.start, w.end): w.log_odds for w in reader.word_log_odds([joined])[0]}
        slopes = slopes_of(c, text, joined)
        assert slopes.keys() == judged.keys()
        # The surprise that the word is the writer's: -log(1 - p).
        chance = {place: 1 / (1 + np.exp(-odds)) for place, odds in judged.items()}
        by_hand = sum(-np.log(1 - chance[place]) * slope for place, slope in slopes.items())
        assert score == pytest.approx(by_hand, rel=1e-4, abs=1e-7)
        assert score > 0


def test_a_word_counts_where_it_is_suspect_and_matters(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = classifier.extract(["the film was good"])
    scores = {}
    for word in ("the", "film", "was", "good"):
        detector = SuspectWordsDetector(classifier, tiny_reader("bert"))
        with monkeypatch.context() as patched:
            suspecting(patched, detector.reader, word, 3.0)
            scores[word] = detector.score_samples(inputs)[0]
    slopes = {word.word: word.slope for word in detector.suspects(["the film was good"])[0]}
    for word, slope in slopes.items():
        assert scores[word] == pytest.approx(np.log1p(np.exp(3.0)) * slope, rel=1e-6)
    # The tiny classifier looks at adjectives: only there it matters who put the word.
    assert max(slopes, key=slopes.__getitem__) == "good"


def test_a_text_without_suspects_scores_nothing_and_more_suspicion_scores_more(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = classifier.extract(["the film was good"])
    detector = SuspectWordsDetector(classifier, tiny_reader("bert"))
    found = []
    for odds in (-40.0, -1.0, 0.0, 2.0, 700.0):
        with monkeypatch.context() as patched:
            suspecting(patched, detector.reader, "good", odds)
            found.append(detector.score_samples(inputs)[0])
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found == sorted(set(found)) and np.isfinite(found).all()


# Its parts --------------------------------------------------------------------------------------------------


def test_the_suspects_make_up_the_score(detector: SuspectWordsDetector, classifier: TextClassifier) -> None:
    texts = [*TEXTS, *PAIRS]
    scores = detector.score_samples(classifier.extract(texts))
    for text, words, score in zip(texts, detector.suspects(texts), scores, strict=True):
        joined = text if isinstance(text, str) else " ".join(text)
        assert [word.word for word in words] == joined.split()
        assert all(joined[word.start : word.end] == word.word for word in words)
        assert sum(word.score for word in words) == pytest.approx(score, rel=1e-6, abs=1e-9)
    assert scores[TEXTS.index("")] == 0
    assert detector.suspects([]) == []


def test_a_score_does_not_depend_on_the_others(
    detector: SuspectWordsDetector, classifier: TextClassifier
) -> None:
    texts = [*TEXTS, *PAIRS] * 30  # more than are held at a time
    together = detector.score_samples(classifier.extract(texts))
    alone = [detector.score_samples(classifier.extract([text]))[0] for text in texts[:15]]
    np.testing.assert_allclose(together, np.resize(alone, len(texts)), rtol=1e-4, atol=1e-6)


def test_words_that_the_classifier_does_not_see_count_nothing(classifier: TextClassifier) -> None:
    long = " ".join(["the film was good"] * 40)
    reader = tiny_reader("bert", max_length=32)
    with pytest.warns(UserWarning, match="sees their beginning only"):
        words = SuspectWordsDetector(
            TextClassifier(*trained_bert(), name="fresh"), reader
        ).suspects([long])[0]  # fmt: skip
    assert len(words) == classifier.max_length - 2
    short = SuspectWordsDetector(classifier, reader, truncate=True).suspects([long])[0]
    assert len(short) == 30


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1, max_size=3))
def test_any_text_has_a_finite_score(texts: list[str]) -> None:
    classifier = TextClassifier(*trained_bert())
    detector = SuspectWordsDetector(classifier, tiny_reader("bert"))
    scores = detector.score_samples(classifier.extract(texts))
    assert np.isfinite(scores).all() and (scores >= 0).all()
    for words, text in zip(detector.suspects(texts), texts, strict=True):
        assert all(text[word.start : word.end] == word.word for word in words)


# Use --------------------------------------------------------------------------------------------------------


def test_it_needs_no_fit_and_survives_saving(
    detector: SuspectWordsDetector, classifier: TextClassifier, tmp_path: Path
) -> None:
    inputs = classifier.extract(TEXTS)
    detector.calibrate(inputs, fpr=0.2)
    detector.save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved", classifier)
    assert isinstance(loaded, SuspectWordsDetector)
    np.testing.assert_array_equal(loaded.score_samples(inputs), detector.score_samples(inputs))
    assert loaded.threshold_ == detector.threshold_
    assert loaded.reader.fingerprint == detector.reader.fingerprint
    with pytest.raises(ValueError, match="was saved without its classifier; pass it"):
        Detector.from_pretrained(tmp_path / "saved")
    other = TextClassifier(*tiny_classifier("bert", TEXTS))
    with pytest.raises(ValueError, match="another classifier"):
        Detector.from_pretrained(tmp_path / "saved", other)


def test_it_is_a_member_of_an_ensemble_and_guards(
    detector: SuspectWordsDetector, classifier: TextClassifier, tmp_path: Path
) -> None:
    inputs = classifier.extract(TEXTS)
    ensemble = EnsembleDetector([MSPDetector(), detector], "fisher")
    ensemble.fit(inputs, np.zeros(len(TEXTS), int)).calibrate(inputs, fpr=0.2)
    ensemble.save_pretrained(tmp_path / "ensemble")
    loaded = Detector.from_pretrained(tmp_path / "ensemble", classifier)
    np.testing.assert_array_equal(loaded.score_samples(inputs), ensemble.score_samples(inputs))
    guarding = TextDetector(classifier, ensemble)
    assert {"adversarial", "score", "p_value"} <= guard(classifier, guarding)("the film was good")[0].keys()


def test_what_does_not_fit_is_refused(detector: SuspectWordsDetector, classifier: TextClassifier) -> None:
    with pytest.raises(TypeError, match="reader is a str; expected a WordReader"):
        SuspectWordsDetector(classifier, "my-reader")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="texts is a str"):
        detector.suspects("a film")
    with pytest.raises(ValueError, match="give features that carry them"):
        SuspectWordsDetector(classifier, tiny_reader("bert")).score_samples(
            Features.of(np.zeros((1, 2)), predictions=[0])
        )
    other = TextClassifier(*tiny_classifier("bert", TEXTS))
    with pytest.raises(ValueError, match="come from another classifier"):
        SuspectWordsDetector(classifier, tiny_reader("bert")).score_samples(other.extract(TEXTS))
    with pytest.raises(TypeError, match="classifier is a str; expected a TextClassifier"):
        detector.set_params(classifier="x")
    assert detector.classifier is classifier
    images = tiny_image_classifier(["cat", "dog"])
    with pytest.raises(TypeError, match="classifier is a ImageClassifier; expected a TextClassifier"):
        SuspectWordsDetector(images, tiny_reader("bert"))  # type: ignore[arg-type]


def test_a_tokenizer_that_does_not_know_places_is_refused(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader("bert")
    monkeypatch.setattr(type(classifier.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="tokenizer of toy does not say where tokens stand"):
        SuspectWordsDetector(classifier, reader)


def test_gradients_that_are_no_numbers_are_refused(
    classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, plain = classifier.extract(["a film", "good"]), classifier.token_gradients

    def broken(*arguments: Any, **options: Any) -> Any:
        return [one._replace(gradient=one.gradient * np.nan) for one in plain(*arguments, **options)]

    monkeypatch.setattr(classifier, "token_gradients", broken)
    with pytest.raises(ValueError, match="toy gives gradients that are no numbers for 'good'"):
        SuspectWordsDetector(classifier, tiny_reader("bert")).score_samples(inputs)
