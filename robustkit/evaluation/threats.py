"""Threat models as words: ``linf:8/255``."""

from __future__ import annotations

import math

from robustkit.attacks.gradient.sets import L1, L2, EmbeddingBall, LInf, PerturbationSet

__all__ = ["THREATS", "parse_threat"]

THREATS = ("linf", "l2", "l1", "token", "sentence")
"""Kinds that `parse_threat` knows."""


def parse_threat(text: str) -> PerturbationSet:
    """A set of perturbations by its name and radius.

    Args:
        text: ``linf:8/255``, ``l2:0.5`` or ``l1:12`` for pixels in [0, 1]; ``token:0.2`` or ``sentence:0.2``
            for the embeddings of texts, whose radius is a share of the norm of a token's or a text's
            embedding.

    Raises:
        ValueError: Another kind, or no radius of at least 0.

    Warns:
        UserWarning: An l-infinity radius is larger than the box, as when 8 is given for 8/255.
    """
    kind, _, radius = text.partition(":")
    if kind not in THREATS:
        raise ValueError(f"threat is {text!r}; expected KIND:RADIUS with a kind of {', '.join(THREATS)}")
    epsilon = _number(text, radius)
    match kind:
        case "linf":
            return LInf(epsilon)
        case "l2":
            return L2(epsilon)
        case "l1":
            return L1(epsilon)
    return EmbeddingBall(epsilon, per="token" if kind == "token" else "sentence")


def _number(text: str, radius: str) -> float:
    """A number, or two with a slash between."""
    above, slash, below = radius.partition("/")
    try:
        found = float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"threat is {text!r}; its radius must be a number from 0, such as 8/255 or 0.5")
    return found
