"""Several chatbots and the human replies, on the same contexts, in one table."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dialogkit.bots import encoders_of
from dialogkit.chat import Chatbot
from dialogkit.dialogues import single_line
from dialogkit.retrieval import Retriever, load_retriever
from dialogkit.retrieval.retriever import MINILM
from trainkit.hub import write_bytes
from trainkit.progress import Progress
from trainkit.report import Estimate, Report
from trainkit.seeding import derive_seed

from .cases import EvaluationCase, cases_fingerprint
from .measures import (
    HUMAN,
    Measure,
    Pool,
    Style,
    behaviour_measures,
    fit_measures,
    meaning_measures,
    relevance_vectors,
    style_measures,
    word_measures,
)
from .replies import Answer, Collected, collect_replies
from .resampling import holm
from .tables import comparison_csv, comparison_report

if TYPE_CHECKING:
    from dialogkit.diversity import SemanticClusters

__all__ = ["Comparison", "Difference", "EvaluationConfig", "Kinds", "compare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationConfig:
    """How chatbots are compared; all of it is our choice unless it says otherwise.

    Attributes:
        seed: Of replies, resampling and the examples shown.
        batch_size: Contexts that a chatbot is asked together.
        latency_contexts: How many contexts are asked again one at a time to measure latency; 0 for none.
        denominator: Of dist-n: ``"ngrams"`` (DRESS, G2R) or ``"tokens"`` (CORGE).
        relevance_turns: Turns of the context, the last ones, that relevance compares with the reply.
        clusters: Number of semantic clusters where they are fitted here; 20 in the paper of Sem-Ent.
        copied_run: Words in a row that count as copied.
        resamples: Of an interval.
        permutations: Of a test; the smallest p-value is 1 / (permutations + 1).
        examples: Contexts whose replies are shown side by side.

    Raises:
        ValueError: A number is out of range.
    """

    seed: int = 0
    batch_size: int = 16
    latency_contexts: int = 20
    denominator: Literal["ngrams", "tokens"] = "ngrams"
    relevance_turns: int = 3
    clusters: int = 20
    copied_run: int = 4
    resamples: int = 1000
    permutations: int = 1000
    examples: int = 12

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "relevance_turns",
            "clusters",
            "copied_run",
            "resamples",
            "permutations",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("latency_contexts", "examples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.denominator not in ("ngrams", "tokens"):
            raise ValueError(f"denominator must be 'ngrams' or 'tokens', got {self.denominator!r}")


@dataclass(frozen=True)
class Difference:
    """Two systems compared by one figure.

    Attributes:
        measure: Key of the figure.
        one: A system.
        other: Another one.
        value: Figure of ``one`` minus that of ``other``, on the contexts that both replied to.
        p: Two-sided p-value of the paired permutation test.
        p_holm: The same after Holm's correction for all pairs of systems by this figure.
        contexts: How many contexts that is.
    """

    measure: str
    one: str
    other: str
    value: float
    p: float
    p_holm: float
    contexts: int


@dataclass(frozen=True)
class Kinds:
    """The kinds of reply, which are semantic clusters.

    Attributes:
        names: Some central responses of each cluster.
        shares: Share of each cluster among a system's replies, by system.
        fingerprint: Of the clusters; figures of other clusters do not compare.
        fitted_on: What the clusters were fitted on.
    """

    names: tuple[str, ...]
    shares: Mapping[str, tuple[float, ...]]
    fingerprint: str
    fitted_on: str


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        systems: Names; the human replies first, where there are any.
        cases: The contexts.
        collected: What each chatbot said.
        measures: The figures, in the order of the table.
        figures: Each figure of each system with its 95 % interval, by system and key.
        differences: Every pair of systems by every figure that can be tested.
        kinds: Shares of the kinds of reply; None where there are no clusters.
        encoder: The encoder of relevance, in words; empty if there is none.
        not_held_out: Chatbots that use this encoder themselves.
        notes: What could not be measured, and why.
        config: The settings.
    """

    systems: tuple[str, ...]
    cases: tuple[EvaluationCase, ...]
    collected: tuple[Collected, ...]
    measures: tuple[Measure, ...]
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: tuple[Difference, ...]
    kinds: Kinds | None
    encoder: str
    not_held_out: tuple[str, ...]
    notes: tuple[str, ...]
    config: EvaluationConfig

    @cached_property
    def data_fingerprint(self) -> str:
        """Identifies contexts and human replies."""
        return cases_fingerprint(self.cases)

    def report(self, title: str = "Chatbots compared") -> Report:
        """The comparison as a report: table, differences, kinds of reply, examples, definitions."""
        return comparison_report(self, title)

    def write(self, folder: str | Path, *, title: str = "Chatbots compared") -> None:
        """Writes ``report.md``, ``report.html``, ``report.json``, a CSV file for each of its tables, and
        ``comparison.csv`` with a row for each system.

        Args:
            folder: Created when missing.
            title: Of the report.
        """  # noqa: D205 - one sentence
        self.report(title).write(folder)
        write_bytes(Path(folder) / "comparison.csv", comparison_csv(self).encode("utf-8", "replace"))


def compare(
    bots: Mapping[str, Chatbot] | Sequence[Chatbot],
    cases: Sequence[EvaluationCase],
    folder: str | Path | None = None,
    *,
    config: EvaluationConfig | None = None,
    retriever: Retriever | str | None = MINILM,
    clusters: SemanticClusters | Literal["references"] | None = "references",
    styles: Mapping[str, Style] | None = None,
    unsafe: Sequence[str] = (),
) -> Comparison:
    """Lets chatbots answer the same contexts, and measures their replies and the human ones.

    Where there are human replies, the first to each context forms a system of its own, and the others are
    what all systems are scored against; a single one serves the chatbots alone.

    Cost: each chatbot's replies; one encoding of all texts; for figures of whole sets of replies
    ``resamples`` evaluations for each system and ``2 * permutations`` for each pair of systems.

    Args:
        bots: Chatbots by name, or chatbots with different names.
        cases: Contexts, at least one.
        folder: Replies are kept in its folder ``replies``, so that a stopped run goes on; None keeps nothing.
        config: The settings.
        retriever: Encoder of relevance, one that no chatbot should use: an object, or a name for
            :func:`~dialogkit.retrieval.load_retriever`. None leaves relevance and similarity out.
        clusters: Fitted on training responses, with an encoder. ``"references"`` fits them on all human
            replies at hand with the encoder of relevance; None leaves Sem-Ent out.
        styles: Callables by name, from n replies to n numbers.
        unsafe: Words and phrases to look for.

    Returns:
        The comparison; nothing but replies is written until its ``write``.

    Raises:
        ValueError: There are no chatbots or contexts, names are not unique, replies on disk are of other
            settings, vectors are not finite, or a style gives something else than numbers.
        ImportError: An extra is missing.
    """
    config = config or EvaluationConfig()
    named = _named(bots)
    if not cases:
        raise ValueError("there are no contexts")
    encoder = load_retriever(retriever) if isinstance(retriever, str) else retriever
    collected = [
        collect_replies(
            bot,
            cases,
            None if folder is None else Path(folder) / "replies" / f"{_slug(name)}.jsonl",
            name=name,
            seed=config.seed,
            batch_size=config.batch_size,
            latency_contexts=config.latency_contexts,
        )
        for name, bot in named.items()
    ]
    answers: dict[str, Sequence[Answer]] = {}
    if any(case.references for case in cases):
        answers[HUMAN] = [
            Answer(single_line(case.references[0]) if case.references else None) for case in cases
        ]
    pool = Pool(cases, answers | {each.name: each.answers for each in collected})
    notes: list[str] = []
    said = "" if encoder is None else _encoder_name(retriever, encoder)
    shared = [name for name, bot in named.items() if encoder and encoder.fingerprint in encoders_of(bot)]
    vectors = None if encoder is None else relevance_vectors(pool, encoder, config.relevance_turns)
    measures = word_measures(pool, config.denominator)
    fitted, origin = _clusters(clusters, cases, encoder, said, config, notes)
    kinds = None
    if fitted is not None:
        own = vectors is not None and encoder is not None and _embeds(fitted, encoder)
        meaning, labels = meaning_measures(pool, fitted, vectors.raw if own and vectors else None)
        measures += meaning
        kinds = Kinds(
            tuple(_examples_of(fitted, j) for j in range(fitted.k)),
            {
                name: tuple(fitted.histogram(labels[pool.rows(name)]).tolist())
                for name in pool.names
                if len(pool.rows(name))
            },
            fitted.fingerprint,
            origin,
        )
    measures += fit_measures(pool, vectors, said)
    measures += style_measures(pool, styles or {})
    measures += behaviour_measures(pool, unsafe, config.copied_run)
    figures, differences = _measured(pool, measures, config)
    return Comparison(
        systems=pool.names,
        cases=tuple(cases),
        collected=tuple(collected),
        measures=tuple(measures),
        figures=figures,
        differences=tuple(differences),
        kinds=kinds,
        encoder=said,
        not_held_out=tuple(shared),
        notes=tuple(notes),
        config=config,
    )


def _measured(
    pool: Pool, measures: Sequence[Measure], config: EvaluationConfig
) -> tuple[dict[str, dict[str, Estimate]], list[Difference]]:
    pairs = list(combinations(pool.names, 2))
    figures: dict[str, dict[str, Estimate]] = {name: {} for name in pool.names}
    differences: list[Difference] = []
    with Progress(len(measures) * (len(pool.names) + len(pairs)), "measuring") as progress:
        for measure in measures:
            seed = derive_seed("evaluation", config.seed, measure.key)
            for name in pool.names:
                rows = pool.rows(name)
                value = measure.figure.value(rows)
                ends = measure.figure.interval(rows, config.resamples, seed)
                low, high = ends if ends is not None and not math.isnan(value) else (None, None)
                figures[name][measure.key] = Estimate(value, low=low, high=high)
                progress.advance()
            if measure.tested:
                differences += _differences(pool, measure, pairs, config.permutations, seed)
            progress.advance(len(pairs))
    return figures, differences


def _differences(
    pool: Pool, measure: Measure, pairs: Sequence[tuple[str, str]], permutations: int, seed: int
) -> list[Difference]:
    found = []
    for one, other in pairs:
        rows, others = pool.paired(one, other)
        defined = getattr(measure.figure, "defined", None)
        if defined is not None:
            both = defined(rows) & defined(others)
            rows, others = rows[both], others[both]
        value = measure.figure.value(rows) - measure.figure.value(others)
        if not math.isnan(value):
            p = measure.figure.p_value(rows, others, permutations, seed)
            found.append(Difference(measure.key, one, other, value, p, math.nan, len(rows)))
    corrected = holm([each.p for each in found])
    return [
        Difference(each.measure, each.one, each.other, each.value, each.p, p, each.contexts)
        for each, p in zip(found, corrected, strict=True)
    ]


def _named(bots: Mapping[str, Chatbot] | Sequence[Chatbot]) -> dict[str, Chatbot]:
    named = list(bots.items()) if isinstance(bots, Mapping) else [(bot.name, bot) for bot in bots]
    if not named:
        raise ValueError("there are no chatbots to compare")
    names = [name for name, _ in named]
    if len({_slug(name) for name in names}) < len(names):
        raise ValueError(f"chatbots need different names, also as file names; got {names}")
    for name in names:
        if not single_line(name) or not _slug(name) or name == HUMAN:
            raise ValueError(f"a chatbot cannot be called {name!r}")
    return dict(named)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name.casefold()).strip("-.")


def _encoder_name(given: Retriever | str | None, encoder: Retriever) -> str:
    name = given if isinstance(given, str) else type(encoder).__name__
    return f"{name} ({encoder.fingerprint[:12]})"


def _clusters(
    given: SemanticClusters | Literal["references"] | None,
    cases: Sequence[EvaluationCase],
    encoder: Retriever | None,
    encoder_name: str,
    config: EvaluationConfig,
    notes: list[str],
) -> tuple[SemanticClusters | None, str]:
    """The clusters to use and what they were fitted on; a note where there can be none."""
    from dialogkit.diversity import SemanticClusters, SentenceTransformerEncoder

    if given is None:
        return None, ""
    if isinstance(given, SemanticClusters):
        return (
            given,
            f"{len(given.train_labels):,} responses, by {given.encoder_name or 'an unnamed encoder'}",
        )
    human = [single_line(text) for case in cases for text in case.references]
    if encoder is None or not human:
        notes.append(
            "Sem-Ent: no clusters were given, and without human replies and an encoder none are made."
        )
        return None, ""
    try:
        fitted = SemanticClusters.fit(human, SentenceTransformerEncoder(encoder), k=config.clusters)
    except ValueError as error:  # too few replies, or too few different ones
        notes.append(f"Sem-Ent: {error}.")
        logger.warning("no semantic clusters: %s", error)
        return None, ""
    return fitted, f"the {len(human):,} human replies of this data, by {encoder_name}"


def _embeds(clusters: SemanticClusters, encoder: Retriever) -> bool:
    return clusters.encoder_fingerprint == encoder.fingerprint


def _examples_of(clusters: SemanticClusters, j: int) -> str:
    try:
        return " · ".join(text if len(text) <= 60 else f"{text[:59]}…" for text in clusters.examples(j, 3))
    except ValueError:  # fitted on vectors without texts
        return ""
