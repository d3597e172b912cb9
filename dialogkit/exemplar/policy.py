"""One object that spells every member of the family: which exemplars a generator is trained with, and how.

Han, Kim, Seo, Erdenee, Chang, "Understanding and Improving the Exemplar-based Generation for Open-domain
Conversation" (CORGE), NLP for ConvAI 2022, arXiv 2112.06723. Written from a specification of the method; the
released code was not copied.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

__all__ = ["PRESETS", "ExemplarPolicy", "JaccardFilter", "Mode", "preset"]

Mode = Literal["marginal", "nll", "nll_sum"]


@dataclass(frozen=True)
class JaccardFilter:
    """Which retrieved exemplars are lexically too close to the gold response, and what becomes of them.

    The decision depends on the two texts alone: not on the batch, nor on training or evaluation.

    Attributes:
        threshold: An exemplar is filtered where J >= threshold; 0.6 in the released code. 0 filters all, more
            than 1 none.
        on_filtered: ``"random"`` puts a random response in its place (the released code), ``"next"`` goes
            further down the hits, ``"mask"`` leaves its place empty.
        depth: Hits that ``"next"`` looks at, at most.
        count_end: Count an end token in the response, as the released code does: a copy of n distinct tokens
            then has J = n / (n + 1), and a copy of one token is never filtered at 0.6.

    Raises:
        ValueError: A value is out of its range.
    """

    threshold: float = 0.6
    on_filtered: Literal["random", "next", "mask"] = "random"
    depth: int = 50
    count_end: bool = False

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise ValueError(f"threshold must be 0 or more, got {self.threshold}")
        if self.on_filtered not in ("random", "next", "mask"):
            raise ValueError(f"on_filtered must be 'random', 'next' or 'mask', got {self.on_filtered!r}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")


@dataclass(frozen=True)
class ExemplarPolicy:
    """Which exemplars a generator is trained with, and how. The defaults are CORGE.

    Attributes:
        query: What the index is asked with in training: the gold response (kNE) or the context. In use there
            is no gold response, so it is always the context.
        k: Exemplars of an example; 0 trains without any. 5 in the released example command.
        filter: Which exemplars are too close to the gold response; None keeps all.
        weighting: ``"relevance"`` weights exemplars by their fit to the context (RS), ``"uniform"`` alike.
        loss: ``"marginal"`` as in CORGE and RAG-Sequence; ``"nll"`` the weighted mean of the exemplars' NLL;
            ``"nll_sum"`` k times that, the released criterion of RetNRef.
        temperature: T, which divides relevance scores; 1 in the released code, whose scores are 0.0036 times
            the plain inner product. For unit vectors 0.05 is a fair start (ours).
        alpha_blend: Probability that the first exemplar is the gold response itself (RetNRef-alpha).
        exclude_gold: A retrieved response that is the gold response is never an exemplar (ours; the filter
            catches it too).

    Raises:
        ValueError: A value is out of its range.
    """

    query: Literal["gold", "context"] = "gold"
    k: int = 5
    filter: JaccardFilter | None = JaccardFilter()
    weighting: Literal["relevance", "uniform"] = "relevance"
    loss: Mode = "marginal"
    temperature: float = 1.0
    alpha_blend: float = 0.0
    exclude_gold: bool = True

    def __post_init__(self) -> None:
        if self.query not in ("gold", "context"):
            raise ValueError(f"query must be 'gold' or 'context', got {self.query!r}")
        if self.weighting not in ("relevance", "uniform"):
            raise ValueError(f"weighting must be 'relevance' or 'uniform', got {self.weighting!r}")
        if self.loss not in ("marginal", "nll", "nll_sum"):
            raise ValueError(f"loss must be 'marginal', 'nll' or 'nll_sum', got {self.loss!r}")
        if self.k < 0:
            raise ValueError(f"k must be at least 0, got {self.k}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.alpha_blend <= 1:
            raise ValueError(f"alpha_blend must be in [0, 1], got {self.alpha_blend}")

    @property
    def depth(self) -> int:
        """Hits to ask an index for."""
        needed = self.k + self.exclude_gold
        if self.filter is not None and self.filter.on_filtered == "next":
            return max(needed, self.filter.depth)
        return needed

    @property
    def weighs(self) -> bool:
        """Whether relevance to the context plays a part."""
        return self.weighting == "relevance" and self.k > 0


_RETNREF = ExemplarPolicy(query="context", k=1, filter=None, weighting="uniform", loss="nll")
_CORGE = ExemplarPolicy()
_AS_RELEASED = replace(_CORGE, filter=JaccardFilter(count_end=True), exclude_gold=False)

PRESETS: Mapping[str, ExemplarPolicy] = MappingProxyType(
    {
        "none": replace(_RETNREF, k=0),
        "retnref": _RETNREF,
        "retnref-alpha": replace(_RETNREF, alpha_blend=0.5),
        "rag": ExemplarPolicy(query="context", filter=None),
        "corge": _CORGE,
        "corge-no-kne": replace(_CORGE, query="context"),
        "corge-no-jf": replace(_CORGE, filter=None),
        "corge-no-rs": replace(_CORGE, weighting="uniform"),
        "corge-released": _AS_RELEASED,
        # The released loss always asks with the gold response, so its RetNRef is not RetNRef's.
        "retnref-released": replace(_AS_RELEASED, weighting="uniform", loss="nll_sum"),
    }
)
"""Policies by name: the family, CORGE's ablations (without kNE, filter, relevance), the released code."""


def preset(name: str) -> ExemplarPolicy:
    """A policy of :data:`PRESETS`; ``dataclasses.replace`` changes single settings.

    Raises:
        ValueError: There is no such preset; the message names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no preset is called {name!r}; {guess}known: {', '.join(PRESETS)}")
