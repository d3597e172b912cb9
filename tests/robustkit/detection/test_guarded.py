"""The guard, beside transformers' own pipeline on tiny classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import TextClassificationPipeline, pipeline

from robustkit.classifiers import TextClassifier
from robustkit.detection import Detector, RDEDetector, guard
from robustkit.detection.softmax import MSPDetector
from robustkit.detection.text_detector import TextDetector
from tests.robustkit.tiny import tiny_classifier, toy_sentiment, trained_bert

TEXTS, LABELS = toy_sentiment(120, seed=5)
ADDED = ("adversarial", "score_adversarial", "p_value")


@pytest.fixture(scope="module")
def pipe() -> TextClassificationPipeline:
    model, tokenizer = trained_bert()
    return pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    classifier = TextClassifier(*trained_bert())
    found = TextDetector(classifier, RDEDetector(n_components=4, covariance="empirical"))
    found.fit(TEXTS[:80], LABELS[:80]).calibrate(TEXTS[80:], fpr=0.1)
    return found


def without(result: dict[str, Any]) -> dict[str, Any]:
    assert set(ADDED) < set(result)
    return {key: value for key, value in result.items() if key not in ADDED}


def same(ours: Any, theirs: Any) -> None:
    """Labels equal, scores to 1e-6: a batch of another width sums in another order."""
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
        return
    ours = without(ours)
    assert ours["label"] == theirs["label"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
    assert set(ours) == set(theirs)


class Texts(Dataset[str]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> str:
        return TEXTS[index]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": None},
        {"top_k": 1},
        {"top_k": 2, "function_to_apply": "sigmoid"},
        {"batch_size": 4},
        {"batch_size": 3, "top_k": None},
        {"truncation": True, "max_length": 6},
    ],
)
def test_answers_are_the_pipelines_with_three_keys_more(
    pipe: TextClassificationPipeline, detector: TextDetector, options: dict[str, Any]
) -> None:
    guarded = guard(pipe, detector)
    same(guarded(TEXTS[0], **options), pipe(TEXTS[0], **options))
    same(guarded(TEXTS[:7], **options), pipe(TEXTS[:7], **options))
    same(list(guarded(iter_texts(), **options)), list(pipe(iter_texts(), **options)))
    same(list(guarded(Texts(), **options)), list(pipe(Texts(), **options)))


def iter_texts() -> Iterator[str]:
    yield from TEXTS[:5]


def test_pairs_are_taken_in_the_pipelines_forms(pipe: TextClassificationPipeline) -> None:
    seen: list[Any] = []

    class Reader(MSPDetector):
        def _score(self, inputs: Any) -> np.ndarray:
            seen.extend(inputs.texts)
            return super()._score(inputs)

    reader = Reader()
    reader.calibrate(TextClassifier(pipe.model, pipe.tokenizer).extract(TEXTS))
    guarded = guard(pipe, reader)
    seen.clear()
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    same(guarded(pair), pipe(pair))
    same(guarded([pair, pair], batch_size=2), pipe([pair, pair], batch_size=2))
    same(guarded([[[TEXTS[0], TEXTS[1]]]]), pipe([[[TEXTS[0], TEXTS[1]]]]))
    same(guarded({"text": TEXTS[2]}), pipe({"text": TEXTS[2]}))
    assert seen == [(TEXTS[0], TEXTS[1])] * 4 + [TEXTS[2]]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_verdicts_are_the_detectors(
    pipe: TextClassificationPipeline, detector: TextDetector, batch_size: int
) -> None:
    guarded = guard(pipe, detector)(TEXTS, batch_size=batch_size)
    for result, wanted in zip(guarded, detector.predict(TEXTS), strict=True):
        assert result["label"] == wanted.predicted_label
        assert result["score_adversarial"] == pytest.approx(wanted.score, rel=1e-3)
        assert result["adversarial"] is (result["score_adversarial"] > wanted.threshold)
    assert any(result["adversarial"] for result in guarded)
    p_values = [result["p_value"] for result in guarded]
    assert p_values == pytest.approx([r.p_value for r in detector.predict(TEXTS)], abs=0.03)
    assert type(p_values[0]) is float


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_feature_detector_costs_no_further_forward(
    pipe: TextClassificationPipeline, detector: TextDetector, batch_size: int
) -> None:
    guarded = guard(pipe, detector)
    guarded(TEXTS[0])  # finds out once what the head reads
    rows: list[int] = []
    handle = pipe.model.register_forward_hook(lambda m, a, output: rows.append(len(output.logits)))
    try:
        pipe(TEXTS[:8], batch_size=batch_size)
        plain = list(rows)
        rows.clear()
        guarded(TEXTS[:8], batch_size=batch_size)
    finally:
        handle.remove()
    assert rows == plain == [batch_size] * (8 // batch_size)


def test_a_long_text_is_cut_as_when_the_detector_was_fitted(
    pipe: TextClassificationPipeline, detector: TextDetector
) -> None:
    long = " ".join(TEXTS)
    with pytest.warns(UserWarning, match="more than 64 tokens"):
        wanted = TextDetector(TextClassifier(*trained_bert()), detector.detector).predict([long])[0]
    (result,) = guard(pipe, detector)(long)
    assert result["score_adversarial"] == pytest.approx(wanted.score, rel=1e-4)


def test_the_given_pipeline_stays_as_it_was_and_its_options_hold(detector: TextDetector) -> None:
    model, tokenizer = trained_bert()
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    guarded = guard(plain, detector)
    same(guarded(TEXTS[:2]), plain(TEXTS[:2]))
    assert set(plain([TEXTS[0]])[0][0]) == {"label", "score"}
    assert isinstance(guarded, TextClassificationPipeline)


def test_a_model_by_folder_and_a_detector_by_folder(
    pipe: TextClassificationPipeline, detector: TextDetector, tmp_path: Path
) -> None:
    pipe.model.save_pretrained(tmp_path / "model")
    pipe.tokenizer.save_pretrained(tmp_path / "model")
    detector.save_pretrained(tmp_path / "detector")
    for model in (str(tmp_path / "model"), TextClassifier.from_pretrained(tmp_path / "model"), pipe):
        for found in (detector, str(tmp_path / "detector"), detector.detector):
            same(guard(model, found)(TEXTS[:2]), pipe(TEXTS[:2]))


def test_how_features_are_taken_comes_from_the_detector(pipe: TextClassificationPipeline) -> None:
    classifier = TextClassifier(pipe.model, pipe.tokenizer, pooling="mean", layer=1, max_length=20)
    mean = TextDetector(classifier, RDEDetector(n_components=4, covariance="empirical"))
    mean.fit(TEXTS[:80], LABELS[:80]).calibrate(TEXTS[80:])
    scores = [result["score_adversarial"] for result in guard(pipe, mean)(TEXTS[:4])]
    assert scores == pytest.approx(mean.score(TEXTS[:4]), rel=1e-4)
    with pytest.raises(ValueError, match="another classifier, layer, pooling or length"):
        guard(pipe, mean.detector)


def test_a_detector_of_another_model_is_refused(detector: TextDetector) -> None:
    other = TextClassifier(*tiny_classifier("bert", seed=9))
    with pytest.raises(ValueError, match="another classifier"):
        guard(other, detector)


def test_what_is_no_calibrated_detector_or_no_classifier_is_refused(
    pipe: TextClassificationPipeline, detector: TextDetector
) -> None:
    with pytest.raises(ValueError, match="call calibrate first"):
        guard(pipe, MSPDetector())
    with pytest.raises(TypeError, match="pipeline_or_model is a int"):
        guard(3, detector)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="detector is a int"):
        guard(pipe, 3)  # type: ignore[arg-type]


def test_the_model_is_left_in_its_mode(detector: TextDetector) -> None:
    model, tokenizer = tiny_classifier("bert", seed=3)
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    scorer: Detector = MSPDetector()
    scorer.calibrate(TextClassifier(model, tokenizer).extract(TEXTS))
    guard(plain, scorer)(TEXTS[0])
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
