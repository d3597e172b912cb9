"""The command ``dialogkit diversity``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainkit.terminal import output_console, plain_errors, quiet, safe, table

if TYPE_CHECKING:
    from dialogkit.diversity import SemanticClusters, SemEntScore

__all__ = ["diversity"]

diversity = typer.Typer(
    help="Measure how diverse responses are, in words and in meaning.", no_args_is_help=True
)

BackendName = Literal["faiss", "sklearn"]

_ENCODERS = (
    "'minilm', 'embedded', folder or Hub id of a sentence-transformers model, or 'lm:' and a folder or "
    "Hub id for the last token of a causal model, such as lm:microsoft/DialoGPT-large"
)
_COMPARED = ("dist-1", "dist-2", "ent-2", "self-BLEU", "length")
_FILES = 'Text with a response a line, or JSON lines with "response" (.jsonl, .jsonl.gz).'

ClustersArgument = Annotated[str, typer.Argument(help="Folder or Hub id of clusters that 'fit' saved.")]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", "-e", help=f"Where the clusters' encoder has moved to: {_ENCODERS}."),
]
ReferencesOption = Annotated[
    Path | None, typer.Option("--references", help="Human responses to the same contexts.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@diversity.command()
def fit(
    responses: Annotated[Path, typer.Argument(help=f"Training responses. {_FILES}")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    encoder: Annotated[str, typer.Option("--encoder", "-e", help=f"{_ENCODERS}.")] = "minilm",
    k: Annotated[int, typer.Option("-k", min=1, help="Number of clusters.")] = 20,
    backend: Annotated[BackendName, typer.Option("--backend", help="Of the k-means.")] = "faiss",
    every: Annotated[
        bool, typer.Option("--all", help="Learn centroids on all responses, not on 256 for each cluster.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the k-means.")] = 25,
) -> None:
    """Cluster training responses by their meaning, and save the clusters."""
    with plain_errors():
        from dialogkit.diversity import SemanticClusters, load_encoder

        texts = _responses(responses)
        quiet()
        found = SemanticClusters.fit(
            texts,
            load_encoder(encoder),
            k=k,
            backend=backend,
            seed=seed,
            max_points_per_centroid=None if every else 256,
        )
        found.save_pretrained(out)
        console = output_console()
        console.print(_shares(found))
        console.print(safe(f"{found!r} is saved in {out}"))


@diversity.command()
def score(
    clusters: ClustersArgument,
    responses: Annotated[Path, typer.Argument(help=f"Responses of a model. {_FILES}")],
    references: ReferencesOption = None,
    encoder: EncoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the responses of a model, and show which clusters they fall in."""
    with plain_errors():
        texts, found = _responses(responses), _load(clusters, encoder)
        result = _score(found, texts, _optional(references))
        if as_json:
            typer.echo(json.dumps({**_lexical(texts), **asdict(result)}, indent=2))
            return
        rows = [(name, f"{value:.4g}") for name, value in _lexical(texts).items()]
        low, high = result.interval
        rows += [
            ("Sem-Ent (nats)", f"{result.sem_ent:.3f} ({low:.3f} to {high:.3f})"),
            ("Sem-Ent / ln k", f"{result.normalized:.3f}"),
            ("clusters without a response", f"{result.empty} of {result.k}"),
        ]
        if result.reference_sem_ent is not None:
            rows.append(("Sem-Ent of the references", f"{result.reference_sem_ent:.3f}"))
        if result.mauve is not None:
            rows.append(("quantised MAUVE", f"{result.mauve:.3f}"))
        console = output_console()
        console.print(table(("", "value"), rows, numeric=("value",)))
        console.print(_shares(found, result.histogram))


@diversity.command()
def compare(
    clusters: ClustersArgument,
    responses: Annotated[
        list[Path], typer.Argument(help=f"A file for each system, to the same contexts. {_FILES}")
    ],
    references: ReferencesOption = None,
    encoder: EncoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score several systems with one set of clusters, the most diverse first."""
    with plain_errors():
        distinct = len({path.name for path in responses}) == len(responses)
        texts = {path.name if distinct else str(path): _responses(path) for path in responses}
        human = _optional(references)
        if human is not None:
            texts["(references)"] = human
        sizes = {name: len(lines) for name, lines in texts.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"systems must answer the same contexts, got numbers of responses {sizes}")
        found = _load(clusters, encoder)
        scores = {name: _score(found, lines, human) for name, lines in texts.items()}
        order = sorted(scores, key=scores.__getitem__, reverse=True)
        if as_json:
            rows = {name: {**_lexical(texts[name]), **asdict(scores[name])} for name in order}
            typer.echo(json.dumps(rows, indent=2))
            return
        # What fits beside each other; --json has the rest.
        shown = [name for name in _lexical(texts[order[0]]) if name in _COMPARED]
        columns = ["system", "Sem-Ent", "95 %", "/ ln k", *shown]
        cells = []
        for name in order:
            one, (low, high) = scores[name], scores[name].interval
            words = _lexical(texts[name])
            meaning = [f"{one.sem_ent:.3f}", f"{low:.3f}-{high:.3f}", f"{one.normalized:.3f}"]
            cells.append([name, *meaning, *(f"{words[figure]:.3g}" for figure in shown)])
        output_console().print(table(columns, cells, numeric=columns[1:], unbroken=("system",)))


def _responses(path: Path) -> list[str]:
    from trainkit.datafiles import read_jsonl

    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = list(read_jsonl(path))
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("response"), str):
                raise ValueError(f'{path}: row {number} has no "response" that is text')
        found = [row["response"] for row in rows]
    else:
        try:
            found = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
        # What follows the last line break is no response; an empty line is one.
        found = found[:-1] if not found[-1] else found
    if not found:
        raise ValueError(f"{path} holds no responses")
    return found


def _optional(path: Path | None) -> list[str] | None:
    return None if path is None else _responses(path)


def _load(folder: str, encoder: str | None) -> SemanticClusters:
    from dialogkit.diversity import SemanticClusters, load_encoder

    quiet()
    found = SemanticClusters.from_pretrained(folder)
    name = encoder or found.encoder_name
    if not name:
        raise ValueError(f"the clusters in {folder} do not name their encoder; give --encoder")
    return found.attach(load_encoder(name))


def _score(clusters: SemanticClusters, texts: list[str], human: list[str] | None) -> SemEntScore:
    from dialogkit.diversity import SemEnt

    return SemEnt(clusters).compute(texts, human)


def _lexical(texts: list[str]) -> dict[str, float]:
    from dialogkit.diversity import TokenTable, distinct_n, entropy_n, low_frequency, mean_length, self_bleu

    words = TokenTable(texts)
    figures = {f"dist-{n}": distinct_n(words, n) for n in (1, 2, 3)}
    figures |= {f"ent-{n}": entropy_n(words, n) for n in (1, 2, 3)}
    figures["LF"] = low_frequency(words)
    if len(words) > 1:
        figures["self-BLEU"] = self_bleu(words)
    return figures | {"length": mean_length(words)}


def _shares(clusters: SemanticClusters, histogram: tuple[float, ...] | None = None) -> object:
    """A line for each cluster, the largest among the training responses first."""
    train = clusters.train_histogram
    columns = ["cluster", "training", *(["these"] if histogram else []), "for example"]
    rows = []
    for j in sorted(range(clusters.k), key=lambda j: -train[j]):
        own = [f"{100 * histogram[j]:.1f} %"] if histogram else []
        try:
            shown = " | ".join(clusters.examples(j, 2))
        except ValueError:
            shown = ""
        rows.append([str(j), f"{100 * train[j]:.1f} %", *own, shown[:70]])
    return table(columns, rows, numeric=columns[:-1])
