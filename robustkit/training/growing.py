"""A set of perturbations that grows while training begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from robustkit.attacks.gradient.sets import PerturbationSet

__all__ = ["Growing"]

Ball = TypeVar("Ball", bound=PerturbationSet, covariant=True)


@dataclass(frozen=True)
class Growing(Generic[Ball]):
    """A threat for the methods of this room whose radius rises in a straight line, then stays.

    Networks that meet the whole ball with their first weights may never leave the start and give all inputs
    one class, the more so the larger ball and learning rate. Steps that are a share of epsilon grow with it;
    thresholds on gaps (of `DynamicTraining`, and ``stop`` of `SIHG`) do not. A `PerturbationBank` needs the
    last radius; in ``int8`` it keeps 0 of what is below a 254th of that.

    Args:
        threat: The set that training ends with.
        steps: Steps of the loop until it is reached; 0 for at once. The first step has ``1 / steps`` of the
            radius.

    Raises:
        TypeError: The threat grows already.
        ValueError: Steps are no whole number from 0.

    Example:
        >>> method = PGDTraining(Growing(LInf(8 / 255), steps=1000))
    """

    threat: Ball
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.threat, Growing):
            raise TypeError("threat is a Growing; expected the set of perturbations that it ends with")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps is {self.steps!r}; expected a whole number of steps from 0")

    def at(self, step: int) -> Ball:
        """The set after a number of the loop's steps."""
        done = step + 1
        return self.threat if done >= self.steps else self.threat.scaled(done / self.steps)
