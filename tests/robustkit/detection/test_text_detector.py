"""Classifier and detector together, on a tiny classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from robustkit.classifiers import TextClassifier
from robustkit.detection import RDEDetector
from robustkit.detection.base import Detector
from robustkit.detection.softmax import MSPDetector
from robustkit.detection.text_detector import TextDetector
from tests.robustkit.tiny import tiny_classifier, toy_sentiment, trained_bert
from trainkit.hub import ArtefactError, read_json, write_json

TEXTS, LABELS = toy_sentiment(120, seed=5)


def rde() -> RDEDetector:
    return RDEDetector(n_components=4, covariance="empirical")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier on disk."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = trained_bert()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> TextDetector:
    detector = TextDetector(TextClassifier.from_pretrained(folder), rde())
    assert detector.fit(TEXTS[:80], LABELS[:80]) is detector
    detector.calibrate(TEXTS[80:], fpr=0.2)
    return detector


def test_it_is_the_detector_on_the_classifiers_features(fitted: TextDetector) -> None:
    features = fitted.classifier.extract(TEXTS)
    by_hand = rde().fit(features[:80], LABELS[:80])
    threshold = by_hand.calibrate(features[80:], fpr=0.2)
    np.testing.assert_allclose(fitted.score(TEXTS), by_hand.score_samples(features), rtol=1e-3)
    results = fitted.predict(TEXTS)
    scores = fitted.detector.score_samples(features)
    assert [r.score for r in results] == scores.tolist()
    assert [r.p_value for r in results] == fitted.detector.p_values(features).tolist()
    assert [r.is_adversarial for r in results] == fitted.detector.predict(features).tolist()
    assert {r.threshold for r in results} == {fitted.detector.threshold_}
    assert fitted.detector.threshold_ == pytest.approx(threshold, rel=1e-3)
    names = [fitted.classifier.labels[label] for label in features.predictions]
    assert [r.predicted_label for r in results] == names
    assert 0 < sum(r.is_adversarial for r in results[80:]) <= 0.2 * 40


def test_predict_scores_once(fitted: TextDetector) -> None:
    calls: list[int] = []

    class Counting(MSPDetector):
        def _score(self, inputs: object) -> np.ndarray:
            calls.append(1)
            return super()._score(inputs)  # type: ignore[arg-type]

    detector = TextDetector(fitted.classifier, Counting())
    detector.calibrate(TEXTS)
    calls.clear()
    assert len(detector.predict(TEXTS[:3])) == 3
    assert calls == [1]


def test_no_texts_give_no_results(fitted: TextDetector) -> None:
    assert fitted.predict([]) == []
    assert fitted.score([]).shape == (0,)


def test_unfitted_and_uncalibrated_use_is_refused(fitted: TextDetector) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        TextDetector(fitted.classifier, rde()).score(TEXTS[:1])
    with pytest.raises(ValueError, match="no threshold"):
        TextDetector(fitted.classifier, MSPDetector()).predict(TEXTS[:1])


def test_a_detector_of_another_classifier_is_refused(fitted: TextDetector) -> None:
    other = TextClassifier(*tiny_classifier("bert", seed=9))
    with pytest.raises(ValueError, match="another classifier"):
        TextDetector(other, fitted.detector)


def test_saved_and_loaded_it_says_the_same(fitted: TextDetector, folder: Path, tmp_path: Path) -> None:
    """Behaviour 21: bit-equal scores, no pickle."""
    fitted.save_pretrained(tmp_path / "detector")
    by_name = TextDetector.from_pretrained(tmp_path / "detector")
    given = TextDetector.from_pretrained(tmp_path / "detector", fitted.classifier)
    loaded = TextDetector.for_model(
        tmp_path / "detector", fitted.classifier.model, fitted.classifier.tokenizer
    )
    for detector in (by_name, given, loaded):
        assert detector.predict(TEXTS) == fitted.predict(TEXTS)
    assert by_name.classifier.name == str(folder)
    assert given.classifier is fitted.classifier
    suffixes = {path.suffix for path in (tmp_path / "detector").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}


def test_the_device_is_that_of_what_is_loaded(
    fitted: TextDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save_pretrained(tmp_path / "detector")
    moved: list[Any] = []
    move = PreTrainedModel.to
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, where: moved.append(where) or move(self, where))
    TextDetector.from_pretrained(tmp_path / "detector")
    assert moved == []
    TextDetector.from_pretrained(tmp_path / "detector", device="cpu")
    assert moved == ["cpu"]


def test_how_features_are_taken_is_saved(folder: Path, tmp_path: Path) -> None:
    classifier = TextClassifier.from_pretrained(folder, layer=1, pooling="mean", max_length=12)
    detector = TextDetector(classifier, rde())
    with pytest.warns(UserWarning, match="more than 12 tokens"):
        detector.fit(TEXTS[:80], LABELS[:80]).calibrate(TEXTS[80:])
    detector.save_pretrained(tmp_path / "detector")
    again = TextDetector.from_pretrained(tmp_path / "detector").classifier
    assert (again.layer, again.pooling, again.max_length) == (1, "mean", 12)
    with pytest.raises(ValueError, match="another classifier, layer, pooling or length"):
        TextDetector.from_pretrained(tmp_path / "detector", TextClassifier.from_pretrained(folder))


def test_loading_for_another_model_is_refused(fitted: TextDetector, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "detector")
    with pytest.raises(ValueError, match="another classifier"):
        TextDetector.for_model(tmp_path / "detector", *tiny_classifier("bert", seed=9))


def test_a_pooling_function_cannot_be_saved(fitted: TextDetector, tmp_path: Path) -> None:
    model, tokenizer = trained_bert()
    classifier = TextClassifier(model, tokenizer, pooling=lambda states, mask: states[:, 1])
    detector: Detector = MSPDetector()
    with pytest.raises(ValueError, match="pooling is a function"):
        TextDetector(classifier, detector).save_pretrained(tmp_path / "detector")
    assert not (tmp_path / "detector").exists()


def test_a_damaged_folder_is_refused(fitted: TextDetector, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "detector")
    config = read_json(tmp_path / "detector" / "config.json")
    del config["classifier"]["layer"]
    write_json(tmp_path / "detector" / "config.json", config)
    with pytest.raises(ArtefactError, match="names no classifier"):
        TextDetector.from_pretrained(tmp_path / "detector")
    fitted.detector.save_pretrained(tmp_path / "bare")
    with pytest.raises(ArtefactError, match="holds a Detector, not a TextDetector"):
        TextDetector.from_pretrained(tmp_path / "bare")
