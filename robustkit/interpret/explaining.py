"""One call from a model and inputs to an attribution."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from robustkit.classifiers.text import TextClassifier

from .attribution import Attribution, Maps
from .backprop import Deconvolution, Gradient, GuidedBackprop, RectGrad
from .noise import SmoothGrad
from .paths import IntegratedGradients
from .regions import XRAI
from .subjects import GradientField, Score, Target, subject_of, undisturbed

__all__ = ["METHODS", "Method", "explain"]


@runtime_checkable
class Method(Protocol):
    """An attribution method: settings, and one function."""

    def attribute(self, field: GradientField) -> Maps:
        """The maps of all inputs of a field."""


METHODS: dict[str, Method] = {
    "gradient": Gradient(),
    "gradient_times_input": Gradient(times_input=True),
    "smoothgrad": SmoothGrad(),
    "smoothgrad_squared": SmoothGrad(statistic="square"),
    "vargrad": SmoothGrad(statistic="var"),
    "integrated_gradients": IntegratedGradients(),
    "guided_backprop": GuidedBackprop(),
    "deconvolution": Deconvolution(),
    "rectgrad": RectGrad(),
    "rectgrad_gated": RectGrad(rule="gated"),
    "xrai": XRAI(),
}
"""Methods by the name that `explain` knows, with their default settings."""


def explain(
    model: nn.Module | TextClassifier,
    inputs: Any,
    method: str | Method = "integrated_gradients",
    *,
    target: Target = None,
    score: Score = "logit",
    batch_size: int = 32,
    amp: bool = False,
) -> Attribution:
    """Say for each pixel or token what it has to do with the score of a class.

    The model is run in evaluation mode without being changed: weights, gradients, hooks, modes and random
    state are afterwards as they were.

    Args:
        model: A module that gives logits ``(n, C)``, alone, first in a tuple or as ``logits``, such as an
            `ImageClassifier` or a transformers image classifier; or a `TextClassifier`.
        inputs: Floats ``(n, channels, height, width)``, or ``(n, ...)`` in general; for an `ImageClassifier`
            with a processor also Pillow images; for a `TextClassifier` texts or pairs of texts.
        method: A name of `METHODS`, or a method with settings of its own, such as ``RectGrad(q=90)``.
        target: The class to explain, by number or name, for all or for each; None for the predicted one.
        score: The number of the class that is explained; see `class_scores`.
        batch_size: Inputs, noisy copies or steps in one forward pass at most. It bounds the memory, and
            changes nothing but rounding.
        amp: Whether forward passes run under bfloat16 autocast.

    Returns:
        The attribution; values are float32 or wider.

    Raises:
        TypeError: A model or inputs of the wrong kind.
        ValueError: No such class, method or score; a model in training mode, compiled or scripted; inputs
            that are no finite floats, a text without words; logits that are not finite; a network without
            an activation that the method's rule could be applied to, or with one that it is not made for.

    Example:
        >>> classifier = ImageClassifier.from_pretrained("microsoft/resnet-18")
        >>> explain(classifier, [image], RectGrad(q=95)).heatmap("rectgrad.png")
        >>> sentiment = TextClassifier.from_pretrained("textattack/bert-base-uncased-SST-2")
        >>> explain(sentiment, ["a fine film"]).to_html("words.html")
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}, or settings")
        method = METHODS[method]
    elif not isinstance(method, Method) or isinstance(method, type):
        raise TypeError(f"method is {method!r}; expected a name or settings such as RectGrad(q=90)")
    subject = subject_of(model, inputs)
    field = GradientField(subject, target, score, batch_size=batch_size, amp=amp)
    with undisturbed(subject.module):
        maps = method.attribute(field)
        target_numbers, output = field.target, field.output
    mask = None if subject.text is None else subject.text.mask.to(maps.values.device)
    return Attribution(
        values=maps.values if mask is None else maps.values * mask[:, :, None],
        target=target_numbers,
        output=output,
        method=type(method).__name__,
        params=_settings(method) | {"score": score},
        inputs=subject.inputs,
        delta=maps.delta,
        statistics=maps.statistics,
        labels=subject.labels,
        text=subject.text,
        activations=maps.activations,
    )


def _settings(method: Method) -> dict[str, Any]:
    """Fields of a dataclass; a method of the caller's own may be anything."""
    names = getattr(method, "__dataclass_fields__", {})
    return {name: getattr(method, name) for name in names}
