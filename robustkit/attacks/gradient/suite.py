"""Several attacks in turn on what is still right: robust accuracy in the manner of AutoAttack.

Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020. The suite here lacks their FAB-T.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustkit.attacks.gradient.apgd import APGD
from robustkit.attacks.gradient.losses import cross_entropy, dlr, margin
from robustkit.attacks.gradient.search import (
    Attack,
    MixedPrecision,
    Search,
    check_arguments,
    check_count,
    check_precision,
    objective_of,
)
from robustkit.attacks.gradient.sets import L2, LInf, PerturbationSet
from robustkit.attacks.gradient.square import Square
from robustkit.attacks.gradient.victims import EmbeddedTexts, Model, judging
from trainkit.progress import Progress
from trainkit.seeding import derive_seed

__all__ = ["AttackSuite", "Stage", "SuiteResult", "strong_attack"]


@dataclass(frozen=True)
class Stage:
    """What one attack of a suite did.

    Attributes:
        name: Its name.
        attacked: Samples that were still right before it.
        fooled: Samples that it fooled.
        robust_accuracy: Share of all samples that are right after it.
        forwards: Forward passes of all samples together.
        backwards: Backward passes of all samples together.
        seconds: Wall-clock time.
    """

    name: str
    attacked: int
    fooled: int
    robust_accuracy: float
    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found for n samples.

    Attributes:
        perturbed: ``(n, ...)``: a point that fools the model, or what the last attack liked best; the input
            itself where that is misclassified.
        robust: bool ``(n,)``: right at the input and at all that was tried.
        clean_accuracy: Share that is right at the inputs.
        robust_accuracy: Share that is robust: an upper bound of the true one.
        stages: The attacks in order.
        doubts: Reasons to think that the model is less robust than it seems; empty if there are none.
    """

    perturbed: Tensor
    robust: Tensor
    clean_accuracy: float
    robust_accuracy: float
    stages: tuple[Stage, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class AttackSuite:
    """Attacks in turn; each sees only the samples that the model still gets right.

    Robust accuracy is at most that of the strongest member. See `strong_attack` for the usual members.

    Args:
        attacks: Names and attacks in order, none of them targeted.
        batch_size: Samples in one batch; those that are left over are gathered to full batches before each
            attack.

    Shape:
        inputs ``(n, ...)`` and labels ``(n,)`` to perturbed inputs ``(n, ...)``.

    Raises:
        ValueError: No attack, one that is targeted, or a batch size below 1.

    Example:
        >>> suite = strong_attack(LInf(8 / 255), classes=10)
        >>> found = suite.run(classifier, pixels, labels, seed=0)
        >>> found.robust_accuracy, found.doubts
    """

    attacks: tuple[tuple[str, Attack], ...]
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        if not self.attacks:
            raise ValueError("attacks is empty; expected at least one")
        for name, attack in self.attacks:
            if attack.targeted:
                raise ValueError(f"{name} is targeted; a suite asks whether labels stay")

    def perturb(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        progress: bool = False,
        mixed_precision: MixedPrecision = "no",
    ) -> Tensor:
        """Perturbs inputs so that the model gets them wrong; see `Attack.perturb`."""
        return self.run(
            model, inputs, labels, seed=seed, progress=progress, mixed_precision=mixed_precision
        ).perturbed

    def run(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        progress: bool = False,
        mixed_precision: MixedPrecision = "no",
    ) -> SuiteResult:
        """Attacks inputs one attack after the other.

        Args:
            model: See `Attack.perturb`.
            inputs: ``(n, ...)`` floats inside the boxes of all threats.
            labels: The true classes, int ``(n,)``.
            seed: Of all that is drawn.
            progress: Whether to show a bar.
            mixed_precision: See `Attack.perturb`.

        Raises:
            TypeError: Inputs, labels or model are of the wrong kind.
            ValueError: Inputs outside the box or empty, labels out of range, logits that are none.
        """
        check_precision(mixed_precision, inputs)
        for _, attack in self.attacks:
            check_arguments(inputs, labels, attack.threat)
        perturbed = inputs.detach().clone()
        clean, doubts = self._clean(model, inputs, labels)
        right, stages = clean.clone(), []
        for name, attack in self.attacks:
            began, before = time.perf_counter(), int(right.sum())
            forwards = backwards = 0
            rows = right.nonzero().squeeze(1)
            parts = [part for part in rows.split(self.batch_size) if len(part)]
            with Progress(len(rows), name, enabled=progress) as bar:
                for number, part in enumerate(parts):
                    drawn = derive_seed("suite", seed, name, number)
                    some = replace(attack, threat=attack.threat.take(part))  # type: ignore[type-var]
                    found = some.run(
                        _of(model, part),
                        inputs[part],
                        labels[part],
                        seed=drawn,
                        mixed_precision=mixed_precision,
                    )
                    perturbed[part] = found.perturbed
                    right[part] = ~found.success
                    forwards += int(found.forwards.sum())
                    backwards += int(found.backwards.sum())
                    bar.advance(len(part))
            left = int(right.sum())
            stages.append(
                Stage(
                    name, before, before - left, left / len(right), forwards, backwards,
                    time.perf_counter() - began,
                )
            )  # fmt: skip
        doubts += self._black_box(stages)
        return SuiteResult(
            perturbed, right, float(clean.double().mean()), stages[-1].robust_accuracy, tuple(stages),
            tuple(doubts),
        )  # fmt: skip

    def _clean(self, model: Model, inputs: Tensor, labels: Tensor) -> tuple[Tensor, list[str]]:
        """Which samples are right, and what the first batch says against gradients."""
        threat, objective = self.attacks[0][1].threat, objective_of(cross_entropy, targeted=False)
        wrong: list[Tensor] = []
        doubts: list[str] = []
        with judging(model):
            for number, part in enumerate(
                torch.arange(len(inputs), device=inputs.device).split(self.batch_size)
            ):
                search = Search(_of(model, part), inputs[part], labels[part], threat.take(part))
                rows = search.rows()
                loss = search.look(torch.zeros_like(rows.inputs), rows, objective)
                wrong.append(search.fooled)
                if number == 0:
                    again = search.look(torch.zeros_like(rows.inputs), rows, objective)
                    doubts += _randomness(loss, again)
                    doubts += _outputs(search.logits(rows))
                    if any(not isinstance(attack, Square) for _, attack in self.attacks):
                        doubts += _gradients(search)
        return ~torch.cat(wrong), doubts

    def _black_box(self, stages: list[Stage]) -> list[str]:
        attacks = dict(self.attacks)
        seen = [not isinstance(attacks[stage.name], Square) for stage in stages]
        return [
            f"{stage.name} asks for no gradients and fools {stage.fooled} of {stage.attacked} samples that "
            "gradients did not: they may be hidden"
            for place, stage in enumerate(stages)
            if not seen[place] and any(seen[:place]) and stage.fooled
        ]


def strong_attack(
    threat: PerturbationSet, classes: int, *, steps: int = 100, targets: int = 9, queries: int = 5000,
    batch_size: int = 128,
) -> AttackSuite:  # fmt: skip
    """APGD-CE, APGD on the ratio of logits towards each of several targets, and Square.

    The ratio needs four classes with targets; with three it is taken without targets, and with two APGD
    raises the margin. Square is left out of threats that it does not know. AutoAttack has FAB-T before
    Square, which is not here: its robust accuracies may be slightly lower.

    Args:
        threat: The perturbations that are allowed.
        classes: Classes of the model.
        steps: Steps of an APGD run.
        targets: Most targets that are tried for each sample.
        queries: Queries of Square.
        batch_size: See `AttackSuite`.

    Raises:
        ValueError: Fewer than two classes, or a count below 1.
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}; expected at least 2")
    check_count("targets", targets)
    attacks: list[tuple[str, Attack]] = [("APGD-CE", APGD(threat, steps))]
    if classes > 3:
        attacks.append(("APGD-T", APGD(threat, steps, targets=min(targets, classes - 1))))
    elif classes == 3:
        attacks.append(("APGD-DLR", APGD(threat, steps, loss=dlr)))
    else:
        attacks.append(("APGD-margin", APGD(threat, steps, loss=margin)))
    if isinstance(threat, LInf | L2):
        attacks.append(("Square", Square(threat, queries)))
    return AttackSuite(tuple(attacks), batch_size)


def _of(model: Model, rows: Tensor) -> Model:
    return model.take(rows) if isinstance(model, EmbeddedTexts) else model


def _randomness(loss: Tensor, again: Tensor) -> Iterator[str]:
    if not torch.allclose(loss, again, rtol=1e-3, atol=1e-5):
        yield "the model's outputs are random: attack the average of several passes"


def _outputs(logits: Tensor) -> Iterator[str]:
    ones = torch.ones_like(logits[:, 0])
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), ones, atol=1e-3):
        yield "the model gives probabilities instead of logits: gradients of the cross-entropy vanish"


def _gradients(search: Search) -> Iterator[str]:
    rows = search.left()
    if len(rows.index) == 0:
        return
    _, gradient = search.gradient(torch.zeros_like(rows.inputs), rows, objective_of(cross_entropy, False))
    none = (gradient.flatten(1) == 0).all(dim=1).double().mean().item()
    if none > 0.1:
        yield f"gradients are zero for {none:.0%} of the samples that are right"
