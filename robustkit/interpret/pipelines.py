"""Maps where transformers users are: beside a pipeline's answers, and while a Trainer trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from robustkit.classifiers.images import ImageClassifier
from robustkit.classifiers.text import TextClassifier

from .attribution import Attribution
from .explaining import Method, explain

if TYPE_CHECKING:
    from transformers import Pipeline, TrainerCallback

__all__ = ["Answered", "ExplainedPipeline", "attribution_callback"]


class Answered(NamedTuple):
    """What a pipeline says of some inputs, and why.

    Attributes:
        answers: The pipeline's output for each input, as it is.
        attribution: Maps of the predicted classes.
    """

    answers: list[Any]
    attribution: Attribution


class ExplainedPipeline:
    """A transformers pipeline that explains its answers.

    Args:
        pipeline: For ``text-classification`` or ``image-classification``.
        method: See `explain`.
        batch_size: See `explain`.

    Raises:
        ValueError: A pipeline for another task, or one whose classifier cannot be explained; see
            `TextClassifier` and `ImageClassifier`.

    Example:
        ```python
        from transformers import pipeline

        sentiment = ExplainedPipeline(pipeline("text-classification", model="my-text-model"))
        answers, maps = sentiment(["a fine film", "a waste of time"])
        maps.to_html("words.html")
        ```
    """

    def __init__(
        self, pipeline: Pipeline, method: str | Method = "integrated_gradients", *, batch_size: int = 32
    ) -> None:
        if pipeline.task not in ("text-classification", "sentiment-analysis", "image-classification"):
            raise ValueError(
                f"the pipeline's task is {pipeline.task!r}; expected text-classification or "
                "image-classification"
            )
        self.pipeline = pipeline
        self.method = method
        self.batch_size = batch_size
        images = pipeline.task == "image-classification"
        self._classifier = classifier_of(
            pipeline.model, pipeline.image_processor if images else pipeline.tokenizer
        )

    def __call__(self, inputs: Sequence[Any]) -> Answered:
        """Answers and maps of texts, or of Pillow images.

        Args:
            inputs: n of them, at least one.

        Raises:
            TypeError: A single input; give a list.
            ValueError: See `explain`.
        """
        if isinstance(inputs, str) or not isinstance(inputs, Sequence):
            raise TypeError(f"inputs is a {type(inputs).__name__}; expected a list of texts or images")
        found = explain(self._classifier, list(inputs), self.method, batch_size=self.batch_size)
        return Answered(list(self.pipeline(list(inputs))), found)


def attribution_callback(
    inputs: Sequence[Any], folder: str | Path, method: str | Method = "integrated_gradients"
) -> TrainerCallback:
    """A callback of transformers' Trainer that shows how maps of the same inputs change while it trains.

    At each evaluation it writes ``step-NUMBER.html`` to a folder. The Trainer needs its ``processing_class``,
    a tokenizer or an image processor. The model's mode and the random state are afterwards as they were.

    Args:
        inputs: Texts, or Pillow images.
        folder: Where pages are written; created when missing.
        method: See `explain`.

    Example:
        ```python
        show = attribution_callback(["a fine film", "a waste of time"], "runs/maps")
        trainer = Trainer(model, arguments, callbacks=[show], processing_class=tokenizer, ...)
        ```
    """
    from transformers import TrainerCallback

    class Maps(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, *, model: Any = None, processing_class: Any = None,
            **others: Any,
        ) -> None:  # fmt: skip
            if not state.is_world_process_zero:
                return
            was_training = model.training
            model.eval()
            try:
                found = explain(classifier_of(model, processing_class), list(inputs), method)
            finally:
                model.train(was_training)
            Path(folder).mkdir(parents=True, exist_ok=True)
            found.to_html(Path(folder) / f"step-{state.global_step:06}.html")

    return Maps()


def classifier_of(model: Any, processor: Any) -> TextClassifier | ImageClassifier:
    """A transformers classifier with its tokenizer or image processor, as `explain` takes it."""
    if hasattr(processor, "convert_ids_to_tokens"):
        return TextClassifier(model, processor)
    if processor is None:
        raise ValueError(f"{type(model).__name__} came without a tokenizer or an image processor")
    return ImageClassifier(model, processor)
