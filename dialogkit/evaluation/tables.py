"""A comparison as a report: tables, bars and examples."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

import numpy as np

from trainkit.cards import clean_text, collect_versions
from trainkit.report import Bar, Bars, Cell, Example, Examples, Part, Report, Section, Table

from .measures import HUMAN

if TYPE_CHECKING:
    from .harness import Comparison

__all__ = ["comparison_csv", "comparison_report"]


def comparison_report(found: Comparison, title: str) -> Report:
    """The report of a comparison."""
    sections = [Section("figures", "Figures", _figures(found))]
    if found.kinds is not None:
        sections.append(Section("kinds", "Kinds of reply", _kinds(found)))
    if found.config.examples:
        sections.append(Section("replies", "Replies side by side", (_examples(found),)))
    sections.append(Section("differences", "Differences", _differences(found)))
    sections.append(Section("definitions", "Definitions", _definitions(found)))
    return Report(title, tuple(sections), _facts(found))


def comparison_csv(found: Comparison) -> str:
    """A row for each system, the human replies included; three columns for each figure."""
    keys = [measure.key for measure in found.measures]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    speed = ("replies", "failed", "latency p50 s", "latency p95 s", "batched s per reply")
    writer.writerow(["system", *(f"{key}{end}" for key in keys for end in ("", " low", " high")), *speed])
    for system in found.systems:
        cells: list[object] = [clean_text(system)]
        for key in keys:
            one = found.figures[system][key]
            cells += ["" if x is None or math.isnan(x) else x for x in (one.value, one.low, one.high)]
        cells += [_blank(_speed(found, system, name)) for name in speed]
        writer.writerow(cells)
    return file.getvalue()


def _speed(found: Comparison, system: str, name: str) -> float | int | None:
    """Counts and times of a system; None where there are none."""
    if system == HUMAN:
        return sum(bool(case.references) for case in found.cases) if name == "replies" else None
    one = next(each for each in found.collected if each.name == system)
    seconds = [answer.seconds for answer in one.answers if answer.text is not None]
    match name:
        case "replies":
            return len(seconds)
        case "failed":
            return len(one.answers) - len(seconds)
        case "batched s per reply":
            return float(np.mean(seconds)) if seconds else None
        case _ if one.latency is None:
            return None
        case "latency p50 s":
            return one.latency.p50
        case _:
            return one.latency.p95


def _blank(value: float | int | None) -> object:
    return "" if value is None else value


def _facts(found: Comparison) -> dict[str, Cell]:
    human = [len(case.references) for case in found.cases]
    facts: dict[str, Cell] = {
        "contexts": f"{len(found.cases)} (fingerprint {found.data_fingerprint[:12]})",
        "human replies": _range(human) if any(human) else "none",
        "seed": found.config.seed,
    }
    if found.encoder:
        users = ", ".join(found.not_held_out)
        held = f"NOT held out: also used by {users}" if users else "used by none of the chatbots"
        facts["encoder of relevance"] = f"{found.encoder}; {held}"
    if found.kinds is not None:
        facts["clusters"] = (
            f"{len(found.kinds.names)}, fitted on {found.kinds.fitted_on} "
            f"(fingerprint {found.kinds.fingerprint[:12]})"
        )
    for each in found.collected:
        facts[f"chatbot {each.name}"] = f"fingerprint {each.fingerprint[:12]}"
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in collect_versions().items())
    return facts


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low if low == high else f'{low} to {high}'} to a context"


def _figures(found: Comparison) -> tuple[Part, ...]:
    rows: list[tuple[Cell, ...]] = [
        ("replies", "", *(_speed(found, system, "replies") for system in found.systems)),
        ("failed", "lower", *(_speed(found, system, "failed") for system in found.systems)),
    ]
    rows += [
        (measure.key, measure.better, *(found.figures[system][measure.key] for system in found.systems))
        for measure in found.measures
    ]
    for name in ("latency p50 s", "latency p95 s", "batched s per reply"):
        rows.append((name, "lower", *(_speed(found, system, name) for system in found.systems)))
    table = Table(
        "All figures",
        ("figure", "better", *found.systems),
        tuple(rows),
        "In brackets 95 % intervals over contexts. A dash: not defined for this system, or no interval. "
        "Definitions are below; comparison.csv holds the same with a row for each system.",
    )
    failures = _failures(found)
    return (*found.notes, table, *([failures] if failures is not None else []))


def _failures(found: Comparison) -> Table | None:
    rows = tuple(
        (each.name, number, answer.error)
        for each in found.collected
        for number, answer in enumerate(each.answers)
        if answer.text is None
    )
    if not rows:
        return None
    shown = rows[:50]
    note = f"{len(shown)} of {len(rows)}. Figures are over the other contexts; a new run asks these again."
    return Table("Failures", ("chatbot", "context", "what it raised"), shown, note)


def _differences(found: Comparison) -> tuple[Part, ...]:
    rows = tuple(
        (one.measure, one.one, one.other, one.value, one.p, one.p_holm, one.p_holm < 0.05, one.contexts)
        for one in found.differences
    )
    return (
        Table(
            "Pairs of systems",
            ("figure", "A", "B", "A − B", "p", "p (Holm)", "below .05", "contexts"),
            rows,
            f"Two-sided paired permutation tests with {found.config.permutations:,} swappings of the two "
            "replies to a context; p-values are corrected by Holm's method over the pairs of one figure, not "
            "over the figures.",
        ),
    )


def _kinds(found: Comparison) -> tuple[Part, ...]:
    kinds = found.kinds
    assert kinds is not None
    systems = tuple(name for name in found.systems if name in kinds.shares)
    lead = kinds.shares[systems[0]]
    order = sorted(range(len(kinds.names)), key=lambda j: -lead[j])
    bars = tuple(
        Bar(str(j + 1), kinds.names[j], tuple(kinds.shares[name][j] for name in systems)) for j in order
    )
    return (
        *_never(found, systems),
        Bars(
            "Share of each kind",
            systems,
            bars,
            "never",
            "A kind is a semantic cluster; beside its number stand the responses nearest to its centre.",
        ),
    )


def _never(found: Comparison, systems: tuple[str, ...]) -> list[Part]:
    """What people say and a chatbot never does."""
    kinds = found.kinds
    assert kinds is not None
    if HUMAN not in systems:
        return []
    human = kinds.shares[HUMAN]
    rows = []
    for name in systems:
        if name != HUMAN:
            missing = [j for j, share in enumerate(kinds.shares[name]) if share == 0 and human[j] > 0]
            share = sum(human[j] for j in missing)
            rows.append((name, len(missing), share, ", ".join(str(j + 1) for j in missing) or None))
    return [
        Table(
            "Kinds that people give and a chatbot never",
            ("chatbot", "kinds", "share of human replies", "which"),
            tuple(rows),
            "Few contexts leave kinds out by chance.",
        )
    ]


def _examples(found: Comparison) -> Examples:
    count = min(found.config.examples, len(found.cases))
    rows = np.random.default_rng(found.config.seed).choice(len(found.cases), size=count, replace=False)
    examples = []
    for row in sorted(rows.tolist()):
        case = found.cases[row]
        texts = [(HUMAN, case.references[0])] if case.references else []
        for each in found.collected:
            answer = each.answers[row]
            texts.append(
                (each.name, answer.text or ("(empty)" if answer.text == "" else f"(failed) {answer.error}"))
            )
        caption = "\n".join(f"– {turn}" for turn in case.context[-4:])
        examples.append(Example(caption, tuple(texts)))
    return Examples(
        "Replies",
        tuple(examples),
        f"{count} of {len(found.cases)} contexts, drawn at random; up to four turns are shown.",
        marks=False,
    )


def _definitions(found: Comparison) -> tuple[Part, ...]:
    rows = [
        ("replies, failed", "Contexts that were answered, and those for which the chatbot raised an error.")
    ]
    rows += [(measure.key, measure.definition) for measure in found.measures]
    latency = next((each.latency for each in found.collected if each.latency is not None), None)
    if latency is not None:
        rows.append(
            (
                "latency",
                "Wall-clock time of a reply asked for alone, after a warm-up; median and 95th percentile of "
                f"{latency.replies} contexts, on the machine of the run; no interval.",
            )
        )
    rows.append(
        (
            "batched",
            f"Wall-clock time of a reply where up to {found.config.batch_size} are asked for together.",
        )
    )
    return (
        "Words are those of NLTK's casual_tokenize. Human replies: the first to each context is the system "
        f"'{HUMAN}', and the others are what every system is scored against in similarity and F1; where "
        "there is only one, it serves the chatbots alone.",
        "Intervals. Means and ratios: percentile bootstrap over contexts. Figures of a whole set of replies "
        "(dist, ent, self-BLEU, Sem-Ent, kinds): delete-half jackknife, as a resample with replacement "
        f"holds replies twice and so is less diverse by construction. {found.config.resamples:,} draws each. "
        "LF has none: in half of the replies more words are rare. "
        "Intervals cover the choice of contexts, not that of the seed.",
        Table("Figures and what they are", ("figure", "definition"), tuple(rows)),
    )
