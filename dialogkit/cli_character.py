"""The command ``dialogkit character``."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

import typer

from dialogkit.bots import find_character
from trainkit.terminal import output_console, plain_errors, safe, table

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
