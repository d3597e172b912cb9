"""Adversarial training of text classifiers: perturbations of word embeddings, and FreeLB.

Source of FreeLB: `Zhu et al. 2020 <https://arxiv.org/abs/1909.11764>`_. Everything else here is the other
methods' own; only what a perturbation is added to differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient.sets import EmbeddingBall
from robustkit.attacks.gradient.victims import changeable_tokens
from robustkit.classifiers.features import Text
from robustkit.classifiers.text import TextClassifier
from trainkit.objectives import Loss, StepContext

from .game import Game
from .growing import Growing
from .methods import YOPO, FreeTraining, Natural, RobustMethod, at_least, positive
from .sihg import SIHG, SIHGFull, SIHGTable

__all__ = ["FreeLB", "OnTexts", "TextGame"]


class TextGame(Game):
    """The moves of both players on one batch of texts; see `Game`.

    A perturbation is added to what the model embeds, in the model itself: the table of embeddings gets its
    gradient, and positions, types and head follow from the ids, as ``inputs_embeds`` would not let them.

    Args:
        model: As for `Game`, which must be the classifier's own.
        texts: n texts or pairs.
        labels: int64 ``(n,)``.
        method: Whose threat, mode and count of passes these are.
        context: The loop's.
        classifier: The classifier.
        relative: Whether epsilon is a share of the norm of what it bounds.
        seed: Of dropout in all passes of the batch; None for dropout of its own in each.

    Attributes:
        mask: bool ``(n, T)``: tokens that may change, so neither padding nor special tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Text],
        labels: Tensor,
        method: RobustMethod,
        context: StepContext,
        classifier: TextClassifier,
        relative: bool,
        seed: int | None,
    ) -> None:
        self.classifier, self.seed = classifier, seed
        self.batch = classifier.encode(texts)
        embeddings = classifier.embeddings(self.batch["input_ids"])
        self.mask = changeable_tokens(classifier, self.batch["input_ids"], self.batch["attention_mask"])
        threat = method.threat_at(context.step)
        if isinstance(threat, EmbeddingBall):
            threat = threat.for_mask(self.mask)
            threat = threat.relative_to(embeddings) if relative else threat
        super().__init__(
            model, embeddings, labels, threat, context, method.cost, method.mode, method.label_smoothing
        )

    def _pass(self, model: nn.Module, delta: Tensor | None, rows: Tensor | None) -> Any:
        batch = self.batch
        if rows is not None:
            batch = {name: tensor[rows] for name, tensor in batch.items()}
        if delta is None:
            with self._dropout():
                return model(**batch)
        ids, types = batch["input_ids"], batch.get("token_type_ids")
        with self._dropout(), self.classifier.changing_embeddings(lambda found: found + delta, ids, types):
            return model(**batch)

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """The same random numbers in every pass of the batch, and the global ones as they were."""
        if self.seed is None:
            yield
            return
        device = self.labels.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield

    def packed(self, delta: Tensor) -> Tensor:
        """Rows of the tokens that may change, first to last, then 0: ``(n, K, d)``."""
        most = int(self.mask.sum(dim=1).amax())
        order = self.mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        rows = (delta * self.mask[..., None]).gather(1, order[..., None].expand(-1, -1, delta.shape[2]))
        # Processes exchange them, and each has its own longest text.
        everyones: Tensor = self.context.accelerator.pad_across_processes(rows, dim=1)
        return everyones

    def unpacked(self, kept: Tensor) -> Tensor:
        """Rows put back to their tokens, 0 elsewhere: ``(n, T, d)``.

        Raises:
            ValueError: There are rows for more tokens than a text has.
        """
        delta = torch.zeros_like(self.originals)
        if kept.shape[1] == 0:
            return delta
        kept = kept.to(delta)
        place = self.mask.cumsum(dim=1) - 1
        slots = torch.arange(kept.shape[1], device=kept.device)
        behind = slots[None, :] >= self.mask.sum(dim=1, keepdim=True)
        if kept.masked_select(behind[..., None]).any():
            raise ValueError(
                "the bank has perturbations for more tokens than a text has: it is of other texts or of "
                "another tokenizer or max_length"
            )
        there = self.mask & (place < kept.shape[1])
        where = place.clamp(0, kept.shape[1] - 1)[..., None].expand_as(delta)
        return kept.gather(1, where) * there[..., None]


class OnTexts:
    """Any of the methods on a transformers text classifier: they perturb the embeddings of words.

    Embeddings of padding and of special tokens never change. With `SIHG` a text keeps the perturbation of its
    own tokens from epoch to epoch (`TextBank`), which is exact, since tokenization does not change and
    nothing is cropped or flipped. Examples are pairs of a text (or a pair of texts) and a label, or mappings
    with ``text`` and ``label``.

    Args:
        method: `Natural`, `FreeLB`, `SIHG` (with a `TextBank`, or ``init`` random or zero), `PGDTraining`,
            `FGSMRS`, `DynamicTraining`, `TRADES` (whose divergence from the clean output is as in ALUM and
            SMART) or `MART`; its threat an `EmbeddingBall`, without a mask.
        classifier: The classifier; `fit` gets its ``model``.
        relative: Whether epsilon is a share of the norm of a token's (or a text's) embedding, so that one
            number fits models of any scale; 0.1 to 0.3 for tokens.
        shared_dropout: Whether all passes over a batch drop the same units, so that both players see one
            function. Where samples leave the batch (`DynamicTraining`) the rest draw others.

    Raises:
        TypeError: A threat that is no `EmbeddingBall`.
        ValueError: A method that carries perturbations of one batch over to the next or needs inputs of one
            shape (`FreeTraining`, `YOPO`, `SIHGFull`, `SIHGTable`, ``init="carry"``), a threat that has a
            mask, or augmentation of images.

    Example:
        >>> classifier = TextClassifier.from_pretrained("folder", max_length=128)
        >>> method = SIHG(EmbeddingBall(0.2), TextBank(len(train)))
        >>> fit(classifier.model, OnTexts(method, classifier), train, config=FitConfig(epochs=3))
    """

    def __init__(
        self,
        method: RobustMethod,
        classifier: TextClassifier,
        *,
        relative: bool = True,
        shared_dropout: bool = True,
    ) -> None:
        carries = isinstance(method, SIHG) and method.init == "carry"
        if carries or isinstance(method, FreeTraining | YOPO | SIHGFull | SIHGTable):
            raise ValueError(
                f"{type(method).__name__} needs inputs of one shape, and texts have many lengths; take SIHG "
                "with a TextBank, or FreeLB"
            )
        if not isinstance(method, Natural):
            if not isinstance(method.threat, EmbeddingBall):
                raise TypeError(f"threat is {method.threat!r:.60}; texts need an EmbeddingBall")
            if method.threat.mask is not None:
                raise ValueError("the threat has a mask; here every batch gets its own")
        if method.augmentation is not None:
            raise ValueError("augmentation is of images; texts have none")
        self.method, self.classifier = method, classifier
        self.relative, self.shared_dropout = relative, shared_dropout
        # What a head reads is found out by a pass, best before there is anything to disturb.
        classifier.encode(["a"])

    def collate(self, examples: Sequence[Any]) -> tuple[list[Text], Tensor]:
        """Texts and labels ``(n,)``."""
        pairs = [
            (example["text"], example["label"]) if isinstance(example, Mapping) else tuple(example)
            for example in examples
        ]
        return [text for text, _ in pairs], torch.tensor([int(label) for _, label in pairs])

    def step(self, model: nn.Module, batch: tuple[list[Text], Tensor], context: StepContext) -> Loss:
        """Plays one batch.

        Raises:
            ValueError: The model in training is not the classifier's, or is compiled: a compiled model does
                not notice that its embeddings change.
        """
        bare = context.accelerator.unwrap_model(model)
        if bare is not self.classifier.model:
            raise ValueError("the model in training is not that of the classifier: give fit classifier.model")
        if bare._compiled_call_impl is not None:
            raise ValueError("a compiled model does not notice that its embeddings change: set compile=False")
        seed = int(torch.randint(2**62, (), generator=context.generator)) if self.shared_dropout else None
        game = TextGame(model, batch[0], batch[1], self.method, context, self.classifier, self.relative, seed)
        return self.method.play(game, context)

    def state_dict(self) -> Mapping[str, Any]:
        """The method's."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.method.load_state_dict(state)


class FreeLB(RobustMethod):
    """FreeLB of Zhu et al. 2020: gradients of all points on the way up are averaged for one step.

    A perturbation starts at random, and K passes give the gradients of both players; those of the weights
    are averaged over the K points, the perturbation moves along its own between them. Nothing is kept. Cost:
    ``3 K`` units. For texts only, in `OnTexts`; with ``relative=False``, ``EmbeddingBall(0.6,
    per="sentence")``, ``alpha=1/6`` and ``start=1/0.6`` the settings are those of the authors' SST-2 run with
    RoBERTa-large. They also have runs without any bound, which there is not here.

    Args:
        threat: An `EmbeddingBall`, of sentences in the paper.
        steps: K.
        alpha: Length of a step as a share of epsilon.
        start: Size of the start as a share of epsilon: numbers are uniform in
            ``start * epsilon / sqrt(numbers that may change) * [-1, 1]``, then projected.
        label_smoothing: See `RobustMethod`.

    Raises:
        ValueError: Fewer than one step, an alpha that is not positive, a negative start.
    """

    def __init__(
        self,
        threat: EmbeddingBall | Growing[EmbeddingBall],
        steps: int = 2,
        alpha: float = 0.25,
        start: float = 1.0,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(threat, label_smoothing=label_smoothing)
        if not start >= 0:
            raise ValueError(f"start is {start}; expected at least 0")
        self.steps, self.alpha, self.start = at_least("steps", steps, 1), positive(alpha), start

    def play(self, game: Game, context: StepContext) -> Loss:
        """K points, one step of the weights."""
        if not isinstance(game, TextGame):
            raise TypeError("FreeLB is for texts: fit OnTexts(FreeLB(...), classifier)")
        delta = self._first(game, context.generator)
        for turn in range(self.steps):
            last = turn == self.steps - 1
            delta = delta.detach().requires_grad_()
            with nullcontext() if last else context.without_communication():
                losses, logits = game.losses(delta)
                game.backward(losses)
            if not last:
                assert delta.grad is not None
                delta = game.move(delta, delta.grad, self.alpha)
        context.optimizer_step()
        return game.report(losses, logits, {})

    def _first(self, game: TextGame, generator: torch.Generator) -> Tensor:
        like = game.inputs
        signs = 2 * torch.rand(like.shape, generator=generator).to(like) - 1
        numbers = game.mask.sum(dim=1).clamp(min=1)[:, None, None] * like.shape[2]
        size = self.start * game.threat.radius(like) / numbers.to(like).sqrt()
        return game.threat.project(size * signs)
