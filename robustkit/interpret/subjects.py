"""What is explained: any model with its inputs as a differentiable point, scores and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient.victims import changeable_tokens
from robustkit.classifiers.features import Text
from robustkit.classifiers.images import ImageClassifier
from robustkit.classifiers.text import TextClassifier
from trainkit.seeding import preserved_rng

from .frugal import Frugal
from .interception import ActivationSummary, Interception
from .tokens import TokenizedTexts, tokenized

__all__ = ["GradientField", "Score", "Subject", "Target", "class_scores", "subject_of"]

Score = Literal["logit", "prob", "logprob", "margin"] | Callable[[Tensor, Tensor], Tensor]
"""The number that is explained, of logits ``(n, C)`` and targets ``(n,)``: `class_scores`, or a function."""

Target = int | str | Sequence[int | str] | Tensor | None
"""A class for all inputs or one for each, by number or name; None for the class that is predicted."""


def class_scores(logits: Tensor, target: Tensor, score: Score = "logit") -> Tensor:
    """The number that is explained.

    Args:
        logits: ``(n, C)``.
        target: int64 ``(n,)``.
        score: ``"logit"``; ``"prob"`` and ``"logprob"``: of the softmax; ``"margin"``: the logit less the
            largest other one. Or a function of both. ``"logprob"`` with the predicted class is minus the
            cross-entropy at the prediction, the loss whose gradient "Bridging Adversarial Robustness and
            Gradient Interpretability" (arXiv 1903.11626) draws.

    Returns:
        ``(n,)``.
    """
    if callable(score):
        found = score(logits, target)
        if found.shape != target.shape:
            raise ValueError(
                f"score gives {tuple(found.shape)} for {len(target)} inputs; expected one number each"
            )
        return found
    if score == "prob":
        logits = logits.softmax(dim=1)
    elif score == "logprob":
        logits = logits.log_softmax(dim=1)
    own = logits.gather(1, target[:, None])[:, 0]
    if score == "margin":
        return own - logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    return own


@dataclass(frozen=True)
class Subject:
    """A model with inputs: what every attribution method asks.

    Attributes:
        module: The model, for its state and its activations.
        inputs: ``(B, ...)``: pixels, or the embeddings of tokens ``(B, T, d)``.
        reference: What the network's first layer sees as zero, to be broadcast to an input: the mean for
            pixels that are normalized inside, 0 otherwise. Maps "times input" multiply by the distance.
        forward: Points ``(m, ...)`` and the inputs that they belong to, int64 ``(m,)``, to the output.
        labels: Names of the classes.
        text: The tokens.
        substitutes: Embeddings ``(d,)`` that a baseline may put for words, by name.
    """

    module: nn.Module
    inputs: Tensor
    reference: Tensor
    forward: Callable[[Tensor, Tensor], Any]
    labels: tuple[str, ...] | None = None
    text: TokenizedTexts | None = None
    substitutes: Mapping[str, Tensor] = field(default_factory=dict)

    def baseline(self, wanted: float | str | Tensor | None) -> Tensor:
        """Where integrated gradients start, ``(B, ...)``.

        Args:
            wanted: None: the reference, or for texts the pad token. For texts ``"zero"``, ``"pad"`` or
                ``"mask"``; special tokens stay wherever they are. For images a number or a tensor that can be
                broadcast to the inputs.

        Raises:
            ValueError: No such substitute, or a shape that does not fit.
        """
        if self.text is None:
            if isinstance(wanted, str):
                raise ValueError(f"baseline is {wanted!r}; that is for texts, expected a number or a tensor")
            start = torch.as_tensor(self.reference if wanted is None else wanted, dtype=self.inputs.dtype)
            try:
                return start.to(self.inputs).expand_as(self.inputs)
            except RuntimeError as error:
                raise ValueError(
                    f"baseline {tuple(start.shape)} does not fit inputs {tuple(self.inputs.shape)}"
                ) from error
        name = next(iter(self.substitutes)) if wanted is None else wanted
        if not isinstance(name, str) or name not in self.substitutes:
            raise ValueError(f"baseline is {wanted!r}; expected one of {', '.join(self.substitutes)}")
        words = (self.text.mask & ~self.text.special).to(self.inputs.device)
        return torch.where(words[:, :, None], self.substitutes[name].to(self.inputs), self.inputs)


def subject_of(model: nn.Module | TextClassifier, inputs: Any) -> Subject:
    """Check a model and inputs and bring them together.

    Args:
        model: See `robustkit.interpret.explain`.
        inputs: See `robustkit.interpret.explain`.

    Raises:
        TypeError: See `robustkit.interpret.explain`.
        ValueError: See `robustkit.interpret.explain`.
    """
    module = model.model if isinstance(model, TextClassifier) else model
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a module, ImageClassifier or TextClassifier"
        )
    _check_state(module)
    return (
        _text_subject(model, inputs) if isinstance(model, TextClassifier) else _image_subject(module, inputs)
    )


def _check_state(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{type(module).__name__} is scripted or traced: what it calls inside cannot be seen or "
                "replaced; explain the module that it was made from"
            )
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{type(module).__name__} is compiled: what it calls inside cannot be seen or replaced; "
                "explain the module before torch.compile (its _orig_mod)"
            )
        if part.training:
            raise ValueError(
                f"{type(module).__name__} is in training mode, where dropout and batch statistics change "
                "what is explained; call model.eval() first"
            )


def _image_subject(model: nn.Module, inputs: Any) -> Subject:
    if isinstance(model, ImageClassifier):
        if not isinstance(inputs, Tensor):
            inputs = model.pixels(inputs)
        named, reference = model.labels, model.mean
    else:
        config = getattr(model, "config", None)
        found = getattr(config, "id2label", None)
        named = None if not found else tuple(str(found[i]) for i in sorted(found))
        reference = torch.zeros(1)
        if getattr(model, "main_input_name", "pixel_values") == "input_ids":
            raise TypeError(
                f"{type(model).__name__} reads tokens; give TextClassifier(model, tokenizer) and texts"
            )
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs is a {type(inputs).__name__}; expected a tensor (n, ...) of floats")
    if not inputs.is_floating_point() or inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(
            f"inputs is {inputs.dtype} {tuple(inputs.shape)}; expected floats (n, ...), n 1 or more"
        )
    bad = (~inputs.detach().isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise ValueError(f"input {int(bad[0])} has NaN or infinite numbers")
    device = next((weight.device for weight in model.parameters()), inputs.device)
    points = inputs.detach().to(device)
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    return Subject(model, points, reference.to(points), lambda x, rows: model(x), named)


def _text_subject(classifier: TextClassifier, texts: Sequence[Text]) -> Subject:
    items = [texts] if isinstance(texts, str) else list(texts)
    batch = classifier.encode(items)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    words = changeable_tokens(classifier, ids, mask)
    empty = (~words.any(dim=1)).nonzero()
    if len(empty):
        row = int(empty[0])
        raise ValueError(f"text {row} ({items[row]!r:.40}) has no words: there is nothing to explain")
    embedded = classifier.embeddings(ids)
    tokenizer = classifier.tokenizer
    known = {"pad": tokenizer.pad_token_id, "mask": tokenizer.mask_token_id}
    substitutes = {
        name: classifier.embeddings(torch.tensor([[token]], device=ids.device))[0, 0]
        for name, token in known.items()
        if token is not None
    }

    def forward(points: Tensor, rows: Tensor) -> Any:
        own = {name: tensor[rows] for name, tensor in batch.items()}
        return classifier.logits_from_embeddings(points, **own)

    points = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
    return Subject(
        classifier.model, points, torch.zeros_like(points[0, 0]), forward, classifier.labels,
        tokenized(classifier, items, ids, mask, words),
        substitutes | {"zero": torch.zeros_like(points[0, 0])},
    )  # fmt: skip


class GradientField:
    """Scores of a subject's classes and their gradients, at any points, in batches of bounded size.

    Args:
        subject: The model and its inputs.
        target: The explained classes.
        score: The explained number.
        batch_size: Points in one forward pass, at most; halved when memory does not suffice.
        amp: Whether forward passes run under bfloat16 autocast; gradients are float32 in any case.

    Attributes:
        subject: See above.
        batch_size: See above.

    Raises:
        ValueError: A target that is no class, an unknown score; logits that are none, or not finite.
    """

    def __init__(
        self, subject: Subject, target: Target = None, score: Score = "logit", *, batch_size: int = 32,
        amp: bool = False,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        if not callable(score) and score not in ("logit", "prob", "logprob", "margin"):
            raise ValueError(f"score is {score!r}; expected logit, prob, logprob, margin or a function")
        self.subject = subject
        self.batch_size = batch_size
        self._score = score
        self._amp = amp
        self._wanted = _target_numbers(target, len(subject.inputs), subject.labels)
        self._target: Tensor | None = None
        self._output: Tensor | None = None
        self._classes: int | None = None
        self._dtype = next((w.dtype for w in subject.module.parameters() if w.is_floating_point()), None)

    @property
    def inputs(self) -> Tensor:
        """The inputs ``(B, ...)``, in float32 or wider."""
        return self.subject.inputs

    @property
    def rows(self) -> Tensor:
        """0 to B - 1."""
        return torch.arange(len(self.inputs), device=self.inputs.device)

    @property
    def target(self) -> Tensor:
        """The explained classes, int64 ``(B,)``; needs a forward pass if none has been."""
        if self._target is None:
            self._look()
        assert self._target is not None
        return self._target

    @property
    def output(self) -> Tensor:
        """The score at the inputs, ``(B,)``; needs a forward pass if none has been."""
        if self._output is None:
            self._look()
        assert self._output is not None
        return self._output

    @property
    def class_count(self) -> int:
        """How many classes the model has; needs a forward pass if none has been."""
        if self._classes is None:
            self._look()
        assert self._classes is not None
        return self._classes

    def _look(self) -> None:
        self._settle(self._plain_logits(self.inputs, self.rows))

    def _plain_logits(self, points: Tensor, rows: Tensor) -> Tensor:
        parts = zip(points.split(self.batch_size), rows.split(self.batch_size), strict=True)
        with torch.no_grad():
            # A copy each: nothing stops a network here from writing into what it is given.
            return torch.cat([self._logits(part.clone(), own) for part, own in parts])

    def _settle(self, logits: Tensor) -> None:
        """Choose the targets by the logits ``(B, C)`` at the inputs."""
        self._classes = classes = logits.shape[1]
        if self._wanted is None:
            self._target = logits.argmax(dim=1)
        else:
            wrong = (self._wanted < 0) | (self._wanted >= classes)
            if wrong.any():
                raise ValueError(
                    f"target is {int(self._wanted[wrong][0])}; the model has {classes} classes, from 0"
                )
            self._target = self._wanted.to(logits.device)
        if self._score == "margin" and classes < 2:
            raise ValueError("score='margin' needs two classes or more")
        self._output = class_scores(logits, self._target, self._score).detach()

    def scores(self, points: Tensor) -> Tensor:
        """The score at a point for each input, ``(B, ...)`` to ``(B,)``, without gradient."""
        if self._output is None:
            # One pass for points and inputs: weights are made ready once.
            both = self._plain_logits(torch.cat([self.inputs, points]), self.rows.repeat(2))
            own, logits = both.chunk(2)
            self._settle(own)
        else:
            logits = self._plain_logits(points, self.rows)
        return class_scores(logits, self.target, self._score).detach()

    def gradients(self, points: Tensor, rows: Tensor) -> Tensor:
        """Gradients of the score by points ``(m, ...)`` of the inputs int64 ``(m,)``; of the same shape."""
        parts = zip(points.split(self.batch_size), rows.split(self.batch_size), strict=True)
        found = [self._gradient(part, own, self.target[own])[0] for part, own in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def gradients_at_inputs(
        self, intercepted: Callable[[int, Tensor | None], Interception] | None = None
    ) -> tuple[Tensor, ActivationSummary | None]:
        """Gradients by the inputs from a single forward pass, which also gives target and output.

        Args:
            intercepted: From the number of rows and their token mask to the interception of a forward pass.

        Returns:
            ``(B, ...)``, and what was intercepted; counts are those of one forward pass.
        """
        found, logits, summary = [], [], None
        for part in self._parts(self.rows):
            mask = None if self.subject.text is None else self.subject.text.mask[part.cpu()].to(part.device)
            mode = None if intercepted is None else intercepted(len(part), mask)
            wanted = None if self._wanted is None else self._wanted[part.cpu()].to(part.device)
            gradient, own = self._gradient(self.inputs[part], part, wanted, mode)
            found.append(gradient)
            logits.append(own)
            if mode is not None:
                summary = ActivationSummary(dict(mode.treated), dict(mode.left_alone))
        self._settle(torch.cat(logits))
        return torch.cat(found), summary

    def _gradient(
        self, points: Tensor, rows: Tensor, target: Tensor | None, mode: Interception | None = None
    ) -> tuple[Tensor, Tensor]:
        leaf = points.detach().requires_grad_()
        with Frugal(), nullcontext() if mode is None else mode.watching(self.subject.module):
            logits = self._logits(leaf, rows)
        if target is None:
            target = logits.detach().argmax(dim=1)
        elif int(target.max()) >= logits.shape[1]:
            raise ValueError(
                f"target is {int(target.max())}; the model has {logits.shape[1]} classes, from 0"
            )
        (gradient,) = torch.autograd.grad(class_scores(logits, target, self._score).sum(), leaf)
        return gradient, logits.detach()

    def _logits(self, points: Tensor, rows: Tensor) -> Tensor:
        given = points if self._dtype is None else points.to(self._dtype)
        with torch.autocast(points.device.type, torch.bfloat16, enabled=self._amp):
            logits = _logits_of(self.subject.forward(given, rows))
        name = type(self.subject.module).__name__
        if logits.ndim != 2 or len(logits) != len(points):
            raise ValueError(
                f"{name} gives {tuple(logits.shape)} for {len(points)} inputs; expected (n, classes)"
            )
        if not logits.isfinite().all():
            raise ValueError(f"{name} gives logits that are NaN or infinite")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _parts(self, order: Tensor) -> Iterator[Tensor]:
        """Indices in parts of the batch size."""
        return iter(order.split(self.batch_size))


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Weights take no gradient, random state and what required gradients come back afterwards."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    with ExitStack() as stack:
        stack.callback(lambda: [weight.requires_grad_(True) for weight in trained])
        for weight in trained:
            weight.requires_grad_(False)
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise ValueError(f"the model gives a {type(output).__name__}; expected logits, alone or as .logits")
    return found


def _target_numbers(target: Target, count: int, labels: tuple[str, ...] | None) -> Tensor | None:
    """Classes by number, int64 (B,) on the processor; None if they are still to be predicted."""
    if target is None:
        return None
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f"target is a tensor of {target.dtype}; expected integers")
        target = target.tolist() if target.ndim else int(target)
    each = [target] * count if isinstance(target, int | str) else list(target)
    if len(each) != count:
        raise ValueError(f"target has {len(each)} classes for {count} inputs")
    numbers = []
    for one in each:
        if isinstance(one, str):
            if labels is None or one not in labels:
                known = "it names none" if labels is None else f"expected one of {', '.join(labels)}"
                raise ValueError(f"target is {one!r}; the model has no class of that name, {known}")
            one = labels.index(one)
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise ValueError(f"target is {one!r}; expected the number of a class, from 0, or its name")
        numbers.append(one)
    return torch.tensor(numbers)
