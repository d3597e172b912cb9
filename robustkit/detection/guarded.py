"""A classifier that says which of its inputs look adversarial: a drop-in for a transformers pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TextClassificationPipeline

from robustkit.classifiers.text import TextClassifier
from robustkit.detection.base import Detector, not_fitted
from robustkit.detection.text_detector import TextDetector

__all__ = ["GuardedPipeline", "guard"]

_TEXT = "guarded_text"
_ADDED = ("score_adversarial", "p_value")


def guard(
    pipeline_or_model: TextClassificationPipeline | TextClassifier | str | Path,
    detector: Detector | TextDetector | str | Path,
) -> GuardedPipeline:
    """Put a detector in front of a text classifier.

    Args:
        pipeline_or_model: A pipeline ``transformers.pipeline("text-classification")``, a `TextClassifier`, or
            folder or Hub id of a classifier.
        detector: A fitted and calibrated detector, or folder or Hub id of a saved `TextDetector`.

    Returns:
        A pipeline that is called like the one given and answers like it, three keys more in every result.

    Raises:
        TypeError: An argument of another kind.
        NotFittedError: The detector is not calibrated.
        ValueError: The detector was fitted on features of another classifier.

    Example:
        ```python
        pipe = guard(pipeline("text-classification", "my-model"), "my-detector")
        pipe("a fine film")
        # [{'label': 'positive', 'score': 0.99,
        #   'adversarial': False, 'score_adversarial': 41.3, 'p_value': 0.72}]
        ```
    """
    if isinstance(pipeline_or_model, str | Path):
        pipeline_or_model = TextClassifier.from_pretrained(pipeline_or_model)
    if isinstance(pipeline_or_model, TextClassifier):
        model = pipeline_or_model.model
        tokenizer: Any = pipeline_or_model.tokenizer
        pipeline = TextClassificationPipeline(
            model=model, tokenizer=tokenizer, device=model.device, task="text-classification"
        )
    elif isinstance(pipeline_or_model, TextClassificationPipeline):
        pipeline = pipeline_or_model
        model, tokenizer = pipeline.model, pipeline.tokenizer
    else:
        raise TypeError(
            f"pipeline_or_model is a {type(pipeline_or_model).__name__}; expected a text-classification "
            "pipeline, a TextClassifier, or folder or Hub id of a classifier"
        )
    if isinstance(detector, str | Path):
        detector = TextDetector.for_model(detector, model, tokenizer)
    # How features are taken was chosen when the detector was fitted; a bare detector was fitted on a
    # TextClassifier's defaults, unless a TextClassifier is given that says otherwise.
    like = pipeline_or_model if isinstance(pipeline_or_model, TextClassifier) else None
    if isinstance(detector, TextDetector):
        like, detector = detector.classifier, detector.detector
    if not isinstance(detector, Detector):
        raise TypeError(f"detector is a {type(detector).__name__}; expected a Detector or a TextDetector")
    classifier = TextClassifier(
        model,
        tokenizer,
        layer=-1 if like is None else like.layer,
        pooling="auto" if like is None else like.pooling,
        max_length=None if like is None else like.max_length,
        dtype="float32",  # as the pipeline runs it: without autocast
    )
    detector.check_classifier(classifier)
    if not hasattr(detector, "threshold_"):
        raise not_fitted(f"this {type(detector).__name__} has no threshold; call calibrate first")
    return GuardedPipeline(pipeline, classifier, detector)


class GuardedPipeline(TextClassificationPipeline):
    """What `guard` returns; a text-classification pipeline in every other respect.

    Inputs may be a text, a list, a generator, a data set, a dict of ``text`` and ``text_pair`` or a list of
    them; ``top_k``, ``batch_size``, ``function_to_apply`` and the tokenizer's options work as usual. Texts
    longer than the detector was fitted for are truncated unless the call says otherwise. Each result has
    in addition:

    - ``adversarial`` (bool): whether the text looks more adversarial than the detector's threshold allows,
    - ``score_adversarial`` (float): the detector's score, on its own scale,
    - ``p_value`` (float): share of clean texts that look at least as adversarial.

    The detector looks at the forward pass that classifies, so one that reads features or logits costs no
    further pass.
    """

    def __init__(
        self, pipeline: TextClassificationPipeline, classifier: TextClassifier, detector: Detector
    ) -> None:
        # Everything else about the pipeline (device, batch size, options) stays as its owner set it.
        vars(self).update(vars(pipeline))
        self.classifier = classifier
        self.detector = detector

    # The signatures are those of TextClassificationPipeline, which is freer than its own base class.
    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:  # type: ignore[override]
        """Tokenize one input, and keep its text for detectors that read it."""
        if "truncation" not in tokenizer_kwargs:
            limit = tokenizer_kwargs.get("max_length", self.classifier.max_length)
            tokenizer_kwargs |= {"truncation": True, "max_length": limit}
        encoded: Any = super().preprocess(inputs, **tokenizer_kwargs)
        encoded[_TEXT] = _text(inputs)
        return encoded

    def _forward(self, model_inputs: Any) -> Any:  # type: ignore[override]
        batch = dict(model_inputs)
        texts = batch.pop(_TEXT)
        # Only batches of several come as lists.
        texts = tuple(texts) if isinstance(texts, list) else (texts,)
        features = replace(self.classifier.extract_encoded(batch), texts=texts)
        scores = self.detector.score_samples(features)
        found = (scores, self.detector.p_values_of(scores))
        return {
            "logits": torch.from_numpy(features.logits),
            **{name: torch.from_numpy(values) for name, values in zip(_ADDED, found, strict=True)},
        }

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, function_to_apply: Any = None, top_k: Any = 1, _legacy: bool = True
    ) -> Any:
        """Labels and scores as usual, with what the detector says added to each."""
        results = super().postprocess(model_outputs, function_to_apply, top_k, _legacy)  # type: ignore[no-untyped-call]
        added = {name: model_outputs[name].item() for name in _ADDED}
        verdict = {"adversarial": added["score_adversarial"] > self.detector.threshold_, **added}
        if isinstance(results, dict):
            return results | verdict
        return [result | verdict for result in results]


def _text(inputs: Any) -> str | tuple[str, str]:
    """The text or pair of texts in one of the forms that the pipeline takes."""
    if isinstance(inputs, dict):
        pair = inputs.get("text_pair")
        return inputs["text"] if pair is None else (inputs["text"], pair)
    if isinstance(inputs, list):
        return (inputs[0][0], inputs[0][1])
    return str(inputs)
