"""Token attributions of sentiment classifiers: deletion curves, and agreement with an opinion lexicon.

Deletion: words are taken out of the text itself, in the order of their numbers. Where the probability of the
predicted class falls fast if the largest go first, and stays if the smallest go first, the map shows what the
classifier needs. Agreement: words of the lexicon should have large numbers, and, in signed maps, numbers in
favour of the class that their polarity is. That is a statement about what people expect, not about the
classifier.
"""

from __future__ import annotations

import io
import json
import math
import random
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.classifiers import TextClassifier
from robustkit.interpret import Attribution, IntegratedGradients, RectGrad, SmoothGrad, explain, html_grid
from robustkit.interpret.attribution import Reduce
from robustkit.interpret.ranking import positions
from robustkit.interpret.tokens import Word
from trainkit.datafiles import data_file
from trainkit.hub import write_bytes, write_json
from trainkit.progress import Progress

__all__ = ["agreement", "deletion_areas", "interval", "opinion_words", "run", "without"]

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BATCH = 16
OURS, CAPTUM, RANDOM = "Integrated gradients, pad", "captum LayerIntegratedGradients, pad", "Random"
SIGNED = frozenset(
    {"Gradient × input", "SmoothGrad × input", OURS, "Integrated gradients, mask", CAPTUM}
    | {"RectGrad-gated × input", RANDOM}
)


@dataclass(frozen=True)
class Explained:
    """What a method says of one text.

    Attributes:
        scores: A number for each word.
        words: The words.
        target: The explained class.
    """

    scores: tuple[float, ...]
    words: tuple[Word, ...]
    target: int


def opinion_words() -> dict[str, int]:
    """1 for positive, -1 for negative words of the opinion lexicon; words in both lists are left out."""
    found: dict[str, list[int]] = {}
    with zipfile.ZipFile(data_file("lexicon/nltk/opinion_lexicon.zip")) as archive:
        for name, polarity in (("positive", 1), ("negative", -1)):
            with archive.open(f"opinion_lexicon/{name}-words.txt") as file:
                for line in io.TextIOWrapper(file, encoding="utf-8"):
                    word = line.strip()
                    if word and not word.startswith(";"):
                        found.setdefault(word, []).append(polarity)
    return {word: own[0] for word, own in found.items() if len(set(own)) == 1}


# Measures ---------------------------------------------------------------------------------------------------


def without(text: str, words: Sequence[Word], gone: Sequence[bool]) -> str:
    """A text from which some words are taken out.

    Args:
        text: One text, no pair.
        words: Its words, with the place where they start.
        gone: Which of them go.
    """
    kept, end = [], 0
    for word, is_gone in zip(words, gone, strict=True):
        assert word.start is not None
        kept.append(text[end : word.start])
        kept.append("" if is_gone else word.text)
        end = word.start + len(word.text)
    return "".join([*kept, text[end:]])


def deletion_areas(
    probabilities: Callable[[Sequence[str]], NDArray[np.float32]],
    texts: Sequence[str],
    explained: Sequence[Explained],
    *,
    first: Literal["most", "least"],
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The explained class's probability as words go in the order of their numbers.

    Args:
        probabilities: From m texts to ``(m, C)``.
        texts: n texts.
        explained: What is said of each.
        first: Whether the largest or the smallest numbers go first.
        seed: Of the order of equal numbers.

    Returns:
        Areas ``(n,)`` by trapezoids over shares of words from 0 to 1, and curves ``(n, k)`` at `FRACTIONS`.
    """
    changed = []
    for text, own in zip(texts, explained, strict=True):
        sign = 1 if first == "most" else -1
        place = positions(sign * torch.tensor([own.scores], dtype=torch.float64), seed)[0]
        for share in FRACTIONS:
            gone = (place < round(share * len(own.words))).tolist()
            changed.append(without(text, own.words, gone))
    found = probabilities(changed).reshape(len(texts), len(FRACTIONS), -1)
    curves = np.stack([found[row, :, own.target] for row, own in enumerate(explained)]).astype(np.float64)
    areas: NDArray[np.float64] = np.trapezoid(curves, FRACTIONS, axis=1)
    return areas, curves


def agreement(own: Explained, lexicon: Mapping[str, int], *, signed: bool) -> dict[str, float]:
    """How a map of one text agrees with a lexicon; NaN where that cannot be said.

    Args:
        own: The map; class 1 is the positive one.
        lexicon: 1 or -1 for words.
        signed: Whether numbers have a meaningful sign.

    Returns:
        ``auc``: the probability that a word of the lexicon has a larger absolute number than another word;
        ``first``: 1 if the word with the largest is one of the lexicon (a share, if several are equal);
        ``sign``: share of the lexicon's words whose sign is that of their polarity.
    """
    polarity = np.array([lexicon.get(word.text.lower(), 0) for word in own.words])
    scores = np.array(own.scores)
    sizes, known = np.abs(scores), polarity != 0
    if not known.any() or known.all():
        return {"auc": math.nan, "first": math.nan, "sign": math.nan}
    pairs = sizes[known][:, None] - sizes[~known][None, :]
    towards = np.where(own.target == 1, 1, -1) * scores[known]
    return {
        "auc": float(np.mean((pairs > 0) + 0.5 * (pairs == 0))),
        "first": float(np.mean(known[sizes == sizes.max()])),
        "sign": float(np.mean(np.sign(towards) == polarity[known])) if signed else math.nan,
    }


def interval(values: NDArray[np.float64], resamples: int = 2000) -> dict[str, float | None]:
    """The mean over texts with its 95 % bootstrap interval.

    Args:
        values: ``(classifiers, texts)``. A text is drawn with all its classifiers; texts without a value
            count for nothing.
        resamples: Bootstrap samples.

    Returns:
        ``mean``, ``low``, ``high``; None where there is no value.
    """
    means = values.mean(axis=0)
    means = means[~np.isnan(means)]
    if not len(means):
        return {"mean": None, "low": None, "high": None}
    drawn = np.random.default_rng(0).integers(len(means), size=(resamples, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
    return {"mean": float(means.mean()), "low": float(low), "high": float(high)}


# Maps -------------------------------------------------------------------------------------------------------


def captum_maps(
    classifier: TextClassifier, texts: Sequence[str], ours: Attribution, steps: int
) -> Attribution:
    """Layer integrated gradients by captum, from the same baseline and with the same nodes.

    Args:
        classifier: The classifier.
        texts: n texts.
        ours: Our map of the same texts, for target and words.
        steps: Gauss-Legendre nodes.
    """
    from captum.attr import LayerIntegratedGradients

    assert ours.text is not None
    batch = classifier.encode(texts)
    ids = batch.pop("input_ids")
    start = torch.where(ours.text.mask & ~ours.text.special, classifier.tokenizer.pad_token_id, ids)

    def logits(ids: Tensor, *others: Tensor) -> Tensor:
        named = dict(zip(batch, others, strict=True))
        found: Tensor = classifier.model(input_ids=ids, **named).logits
        return found

    layer = LayerIntegratedGradients(logits, classifier.model.get_input_embeddings())
    values = layer.attribute(
        ids, start, additional_forward_args=tuple(batch.values()), target=ours.target, n_steps=steps,
        internal_batch_size=2 * BATCH,
    )  # fmt: skip
    return replace(ours, values=values.detach() * ours.text.mask[:, :, None], method="captum")


def maps(
    classifier: TextClassifier, texts: list[str], steps: int
) -> Iterator[tuple[str, Attribution, Reduce, float]]:
    """Name, map, how tokens become words, and CPU seconds of each method."""

    def timed(call: Callable[[], Attribution]) -> tuple[Attribution, float]:
        began = time.process_time()
        return call(), time.process_time() - began

    def integrated(baseline: str) -> tuple[Attribution, float]:
        method = IntegratedGradients(baseline=baseline, steps=steps)
        return timed(lambda: explain(classifier, texts, method))

    gradient, seconds = timed(lambda: explain(classifier, texts, "gradient"))
    yield "Gradient, norm", gradient, "l2", seconds
    yield "Gradient × input", product(gradient), "sum", seconds
    noise, seconds = timed(lambda: explain(classifier, texts, SmoothGrad(n=steps)))
    yield "SmoothGrad, norm", noise, "l2", seconds
    yield "SmoothGrad × input", product(noise), "sum", seconds
    yield "VarGrad, sum", noise.of("var"), "sum", seconds
    ours, seconds = integrated("pad")
    yield OURS, ours, "sum", seconds
    yield "Integrated gradients, mask", *_with("sum", integrated("mask"))
    yield CAPTUM, *_with("sum", timed(lambda: captum_maps(classifier, texts, ours, steps)))
    gated = RectGrad(rule="gated", final="times_input")
    yield "RectGrad-gated × input", *_with("sum", timed(lambda: explain(classifier, texts, gated)))


def product(own: Attribution) -> Attribution:
    """The same map times the embeddings."""
    return replace(own, values=own.values * own.inputs)


def _with(reduce: Reduce, found: tuple[Attribution, float]) -> tuple[Attribution, Reduce, float]:
    return found[0], reduce, found[1]


# The study --------------------------------------------------------------------------------------------------


def run(output: Path, *, victims: Path, seeds: Sequence[int], texts: int, steps: int, threads: int) -> None:
    """Measures each classifier and writes ``results.json``, ``tables.md`` and ``page.html``.

    Args:
        output: Folder.
        victims: Folder of the classifiers, ``sst2-SEED`` in it.
        seeds: Of their training.
        texts: How many test texts.
        steps: Of integrals, and noisy copies.
        threads: CPU threads.
    """
    from scripts.rde_study.data import load_data
    from scripts.rde_study.victims import train_victim

    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    data = load_data("sst2")
    rows = random.Random(0).sample(data.test, min(texts, len(data.test)))
    file = output / "results.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {}
    for seed in seeds:
        name = f"sst2-{seed}, {len(rows)} texts, {steps} steps"
        if name not in kept:
            folder = victims / f"sst2-{seed}"
            if not (folder / "config.json").is_file():
                train_victim(data, folder, seed=seed)
            # Methods often begin with the same words: what was asked before is remembered.
            classifier = TextClassifier.from_pretrained(folder, cache=500_000)
            kept[name] = measured(classifier, rows, steps, opinion_words(), output / f"sst2-{seed}.html")
            write_json(file, kept)
        found[name] = kept[name]
    text = tables(found)
    write_bytes(output / "tables.md", text.encode())
    print(text)


def measured(
    classifier: TextClassifier,
    rows: Sequence[tuple[str, int]],
    steps: int,
    lexicon: Mapping[str, int],
    page: Path,
) -> dict[str, Any]:
    """All figures of one classifier, by method; values for each text, NaN as None.

    Args:
        classifier: The classifier; class 1 is the positive one.
        rows: Texts with labels.
        steps: Of integrals, and noisy copies.
        lexicon: See `opinion_words`.
        page: HTML file of the first texts.
    """
    rows = sorted(rows, key=lambda row: len(row[0]))
    texts = [text for text, _ in rows]
    explained: dict[str, list[Explained]] = {}
    seconds: dict[str, float] = {}
    gaps: list[float] = []
    off = 0.0
    with Progress(len(texts), "texts explained") as bar:
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            batch = {}
            for name, own, reduce, took in maps(classifier, part, steps):
                batch[name] = own
                assert own.text is not None
                seconds[name] = seconds.get(name, 0.0) + took
                explained.setdefault(name, []).extend(
                    Explained(tuple(score for _, score in scores), words, int(target))
                    for scores, words, target in zip(
                        own.word_scores(reduce), own.text.words, own.target, strict=True
                    )
                )
            ours = batch[OURS]
            assert ours.delta is not None
            gaps += (ours.delta.abs() / ours.values.sum(dim=(1, 2)).abs()).tolist()
            largest = ours.values.abs().amax(dim=(1, 2), keepdim=True)
            off = max(off, ((ours.values - batch[CAPTUM].values).abs() / largest).max().item())
            if start <= len(texts) // 2 < start + BATCH:
                html_grid(page, [batch[name] for name in ("Gradient, norm", OURS, "RectGrad-gated × input")])
            bar.advance(len(part))
    rng = np.random.default_rng(0)
    explained[RANDOM] = [
        replace(own, scores=tuple(rng.normal(size=len(own.words)))) for own in explained[OURS]
    ]
    seconds[RANDOM] = 0.0
    figures: dict[str, Any] = {}
    with Progress(len(explained), "methods measured") as bar:
        for name, all_of in explained.items():
            own_figures: dict[str, Any] = {"seconds": seconds[name] / len(texts)}
            for first in ("most", "least"):
                areas, curves = deletion_areas(classifier.probabilities, texts, all_of, first=first)  # type: ignore[arg-type]
                own_figures[first] = areas.tolist()
                own_figures[f"{first}, curve"] = curves.mean(axis=0).tolist()
            found = [agreement(own, lexicon, signed=name in SIGNED) for own in all_of]
            for key in ("auc", "first", "sign"):
                own_figures[key] = [None if math.isnan(one[key]) else one[key] for one in found]
            figures[name] = own_figures
            bar.advance()
    words = [[lexicon.get(word.text.lower(), 0) != 0 for word in own.words] for own in explained[OURS]]
    right = [own.target == label for own, (_, label) in zip(explained[OURS], rows, strict=True)]
    return {
        "methods": figures,
        "accuracy": float(np.mean(right)),
        "completeness_gap": float(np.median(gaps)),
        "off_captum": off,
        "words": float(np.mean([len(own) for own in words])),
        "lexicon_words": float(np.mean([sum(own) for own in words])),
    }


def tables(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown: means over classifiers and texts with 95 % bootstrap intervals."""
    runs = list(found.values())
    lines = [f"{'; '.join(found)}", ""]
    for key in ("accuracy", "completeness_gap", "off_captum", "words", "lexicon_words"):
        lines.append(f"- {key}: {', '.join(f'{one[key]:.3g}' for one in runs)}")

    def values(method: str, key: str) -> NDArray[np.float64]:
        return np.array([one["methods"][method][key] for one in runs], dtype=np.float64)

    def cell(values: NDArray[np.float64]) -> str:
        own = interval(values)
        if own["mean"] is None:
            return "–"
        by_run = ", ".join(f"{one:.3f}" for one in np.nanmean(values, axis=1))
        return f"{own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}] ({by_run})"

    methods = list(runs[0]["methods"])
    lines += ["", "### Words deleted: area under the probability of the predicted class", ""]
    lines += ["| map | most first | least first | least − most |", "| --- | ---: | ---: | ---: |"]
    for name in methods:
        most, least = values(name, "most"), values(name, "least")
        lines.append(f"| {name} | {cell(most)} | {cell(least)} | {cell(least - most)} |")
    lines += ["", "### The opinion lexicon, and time", ""]
    lines += ["| map | AUC | first word | sign | ms per text |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in methods:
        took = np.mean([one["methods"][name]["seconds"] for one in runs])
        cells = [cell(values(name, key)) for key in ("auc", "first", "sign")]
        lines.append(f"| {name} | {' | '.join(cells)} | {1000 * took:.0f} |")
    return "\n".join(lines) + "\n"
