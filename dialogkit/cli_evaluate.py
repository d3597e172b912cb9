"""The command ``dialogkit evaluate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainkit.terminal import output_console, plain_errors, quiet, safe, table

if TYPE_CHECKING:
    from dialogkit.diversity import SemanticClusters
    from dialogkit.evaluation import Comparison
    from dialogkit.evaluation.measures import Style

__all__ = ["evaluate"]


def evaluate(
    bot: Annotated[
        list[str],
        typer.Option(
            "--bot",
            help="Once for each chatbot, [NAME=]WHAT: a saved chatbot's folder or Hub id, character:NAME, "
            "lm:MODEL (lm:embedded), endpoint:MODEL@URL.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            exists=True,
            dir_okay=False,
            help='JSON lines of {"context": [...], "responses": [...]} or {"context": [...], '
            '"response": "..."}; .gz is read too.',
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for replies and report.")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Contexts drawn at random.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Contexts asked together.")] = 16,
    latency_contexts: Annotated[
        int, typer.Option("--latency-contexts", min=0, help="Contexts that latency is measured on.")
    ] = 20,
    retriever: Annotated[
        str,
        typer.Option("--retriever", help="Encoder of characters: 'embedded', 'minilm', a folder or Hub id."),
    ] = "embedded",
    encoder: Annotated[
        str, typer.Option("--encoder", help="Held-out encoder of relevance, or 'none'.")
    ] = "minilm",
    clusters: Annotated[
        str,
        typer.Option(
            "--clusters",
            help="Saved semantic clusters; 'references' fits them on the human replies; 'none'.",
        ),
    ] = "references",
    k: Annotated[int, typer.Option("--k", min=1, help="Clusters where they are fitted here.")] = 20,
    denominator: Annotated[
        Literal["ngrams", "tokens"], typer.Option("--denominator", help="Of dist-n.")
    ] = "ngrams",
    style: Annotated[
        list[str] | None,
        typer.Option("--style", help="MODEL:LABEL, a text classifier and a label of its; may be repeated."),
    ] = None,
    unsafe: Annotated[
        Path | None,
        typer.Option(
            "--unsafe",
            exists=True,
            dir_okay=False,
            help="Text file of words and phrases, one a line, to look for.",
        ),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Of the report.")] = "Chatbots compared",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Compare chatbots on the same contexts. Run it again to go on after a stop."""
    with plain_errors():
        from dialogkit.bots import load_bot, named_bots
        from dialogkit.evaluation import EvaluationConfig, compare, read_cases

        quiet()
        cases = read_cases(data, limit=limit, seed=seed)
        words = _lines(unsafe) if unsafe is not None else []
        given = _clusters(clusters)
        styles = dict(map(_style, style or []))
        named = named_bots(bot)
        found = compare(
            {name: load_bot(what, retriever=retriever) for name, what in named.items()},
            cases,
            out,
            config=EvaluationConfig(
                seed=seed,
                batch_size=batch_size,
                latency_contexts=latency_contexts,
                denominator=denominator,
                clusters=k,
            ),
            retriever=None if encoder == "none" else encoder,
            clusters=given,
            styles=styles,
            unsafe=words,
        )
        found.write(out, title=title)
        _print(found, out)


def _clusters(name: str) -> SemanticClusters | Literal["references"] | None:
    from dialogkit.diversity import SemanticClusters, load_encoder

    if name == "none":
        return None
    if name == "references":
        return "references"
    clusters = SemanticClusters.from_pretrained(name)
    if not clusters.encoder_name:
        raise ValueError(f"the clusters in {name} do not say which encoder they were fitted with")
    return clusters.attach(load_encoder(clusters.encoder_name))


def _style(given: str) -> tuple[str, Style]:
    """The mean probability of one label of a sequence classifier."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from dialogkit.pdp import classify_responses

    name, colon, label = given.rpartition(":")
    if not colon:
        raise ValueError(f"name a style as MODEL:LABEL, got {given!r}")
    model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(name)
    labels = {str(text): int(i) for i, text in model.config.id2label.items()}
    if label not in labels:
        raise ValueError(f"{name} has the labels {', '.join(labels)}, not {label!r}")
    return f"style {label}", lambda texts: classify_responses(model, tokenizer, texts)[:, labels[label]]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _print(found: Comparison, out: Path) -> None:
    console = output_console()
    rows = [
        (measure.key, *(_shown(found.figures[system][measure.key].value) for system in found.systems))
        for measure in found.measures
    ]
    console.print(table(("", *found.systems), rows, numeric=found.systems))
    for note in found.notes:
        console.print(safe(note))
    failed = sum(answer.text is None for each in found.collected for answer in each.answers)
    if failed:
        console.print(safe(f"{failed} replies failed; the report lists them", "bold red"))
    console.print(safe(f"The report is in {out}: report.html, report.md, report.json, comparison.csv"))


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
