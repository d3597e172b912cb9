"""The command ``dialogkit character``."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dialogkit.bots import find_character
from trainkit.terminal import output_console, plain_errors, quiet, safe, table

if TYPE_CHECKING:
    from dialogkit.pdp import Character, CharacterReport

__all__ = ["character"]

character = typer.Typer(help="Read, write and look at characters.", no_args_is_help=True)

SpecName = Literal["2", "3"]

WhoArgument = Annotated[
    str, typer.Argument(help="An embedded character, or a file: .json, .png (a card), .tsv or .txt.")
]


@character.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A character card (.json, .png), or lines (.tsv, .txt).", exists=True)
    ],
    out: Annotated[Path, typer.Argument(help="The .json file to write.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Whose lines of a .tsv; who says those of a .txt.")
    ] = None,
) -> None:
    """Make a character's own JSON of a card or of plain lines."""
    with plain_errors():
        from dialogkit.pdp import read_character

        if out.suffix.lower() != ".json":
            raise ValueError(f"a character is written to a .json file, not to {out}")
        who = read_character(source, name=name)
        who.to_json(out)
        gold = "with the turns they answer" if who.gold_contexts is not None else "without their contexts"
        output_console().print(safe(f"{who.name}: {len(who.utterances)} lines, {gold}, in {out}"))


@character.command()
def export(
    who: WhoArgument,
    out: Annotated[
        Path, typer.Argument(help="A card as .json or as a .png picture; .tsv or .txt for the lines alone.")
    ],
    spec: Annotated[SpecName, typer.Option("--spec", help="Version of the card.")] = "2",
    image: Annotated[
        Path | None, typer.Option("--image", help="PNG picture to put the card into.", exists=True)
    ] = None,
) -> None:
    """Write a character as a card for other programs, or as plain lines."""
    with plain_errors():
        from dialogkit.pdp import write_card, write_lines

        found = find_character(who)
        if out.suffix.lower() in (".tsv", ".txt"):
            write_lines(found, out)
        else:
            write_card(found, out, spec=3 if spec == "3" else 2, image=image)
        output_console().print(safe(f"{found.name} is written to {out}"))


@character.command()
def show(
    who: WhoArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show what is known of a character."""
    with plain_errors():
        found = find_character(who)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
            return
        console = output_console()
        for field in ("name", "id", "show", "summary", "licence"):
            if value := getattr(found, field):
                console.print(safe(f"{field}: {value}"))
        rows = list(zip_longest(found.gold_contexts or (), found.utterances, fillvalue=""))
        console.print(table(("answers", "line"), rows))


@character.command()
def test(
    who: WhoArgument,
    model: Annotated[
        str, typer.Option("--model", help="Language model: 'embedded', a folder or a Hub id.")
    ] = "embedded",
    retriever: Annotated[
        str, typer.Option("--retriever", help="Matches lines: 'embedded', 'minilm', a folder or a Hub id.")
    ] = "embedded",
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            help="A character it must not be taken for; may be repeated. Default: those that ship.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="File for the report as JUnit XML.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="Text file with the user's turns, one a line, instead of ours."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="Saved style classifier that knows the character and not the card's lines."
        ),
    ] = None,
    nli: Annotated[
        str | None,
        typer.Option("--nli", help="Model of natural-language inference that judges contradictions."),
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Drawn for each reply.")] = 1,
    sessions: Annotated[
        int, typer.Option("--sessions", min=1, help="Conversations with each half of the lines.")
    ] = 2,
    min_style: Annotated[
        float, typer.Option("--min-style", help="What the lead in StyleProb must exceed with its interval.")
    ] = 0.0,
    max_contradiction: Annotated[
        float, typer.Option("--max-contradiction", help="Highest share of contradicting replies.")
    ] = 0.05,
    max_drift: Annotated[
        float,
        typer.Option("--max-drift", help="Share of the lead that a conversation's second half may lose."),
    ] = 0.5,
    max_repeats: Annotated[
        float, typer.Option("--max-repeats", help="Highest share of turns that repeat an earlier one.")
    ] = 0.5,
    max_leakage: Annotated[
        float, typer.Option("--max-leakage", help="Highest share of replies with another's words.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Test a character: style, contradictions, drift, leakage. Exit status 1 if it fails."""
    with plain_errors():
        from dataclasses import replace

        from dialogkit.pdp import (
            NLIJudge,
            PDPConfig,
            RegressionConfig,
            StyleClassifier,
            embedded_config,
            examine_character,
        )
        from dialogkit.pdp.assembly import load_language_model
        from dialogkit.pdp.regression import QUESTIONS
        from dialogkit.retrieval import load_retriever

        quiet()
        config = RegressionConfig(
            questions=QUESTIONS if questions is None else _lines(questions),
            sessions=sessions,
            seed=seed,
            min_style=min_style,
            max_contradiction=max_contradiction,
            max_drift=max_drift,
            max_repeats=max_repeats,
            max_leakage=max_leakage,
        )
        tested = find_character(who)
        rivals = [find_character(name) for name in other] if other else _shipped()
        usual = embedded_config() if model == "embedded" else PDPConfig()
        generation = replace(usual.generation, num_candidates=candidates)
        report = examine_character(
            tested,
            load_language_model(model, None)[0],
            load_retriever(retriever),
            rivals,
            judge=None if judge is None else StyleClassifier.from_pretrained(judge),
            nli=None if nli is None else NLIJudge.from_pretrained(nli),
            bot=replace(usual, generation=generation),
            config=config,
        )
        if json_file is not None:
            report.write_json(json_file)
        if junit is not None:
            report.write_junit(junit)
        _print(report)
    if not report.passed:
        raise typer.Exit(1)


def _print(report: CharacterReport) -> None:
    console = output_console()
    for check in report.checks:
        style = "bold green" if check.passed else "bold red"
        console.print(safe(f"{'passed' if check.passed else 'FAILED'}  {check.name}", style))
        console.print(safe(f"  {check.message}"))
        if not check.passed:
            for example in check.examples:
                console.print(safe(f"    {example}"))


def _shipped() -> list[Character]:
    from dialogkit import embedded

    return [find_character(name) for name in embedded.character_names()]


def _lines(path: Path) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
