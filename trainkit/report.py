"""A report in parts that anybody can add to: sections of text, tables, bars, figures and examples.

Whoever measures something returns a `Section`; `Report` puts sections together and writes them as
Markdown, JSON, CSV and one HTML page that needs no other file. Text is data throughout: nothing in it is
obeyed as markup.
"""

from __future__ import annotations

import csv
import io
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from xml.etree import ElementTree

from trainkit.cards import clean_text, markdown_line, markdown_paragraphs
from trainkit.hub import artefact_path, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "Bar",
    "Bars",
    "Cell",
    "Estimate",
    "Example",
    "Examples",
    "Figure",
    "Part",
    "Picture",
    "Pictures",
    "Report",
    "Section",
    "ShadedText",
    "Shades",
    "Table",
]

_JSON = "report.json"
_TEMPLATE = "templates/report.html.jinja"
_ABSENT = "–"
_MOST_BYTES = 256 * 1024
_MARKED = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
_HIDDEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069]")
# Stand-ins for the marks while a text is escaped; private characters of a text itself are removed first.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SVG = "{http://www.w3.org/2000/svg}"
_SVG_TAGS = frozenset(
    {"svg", "g", "defs", "title", "desc", "style", "use", "clipPath", "linearGradient", "stop", "pattern"}
    | {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "marker", "text", "tspan", "image"}
)


@dataclass(frozen=True)
class Estimate:
    """A figure with what is known of its uncertainty.

    Attributes:
        value: The figure; NaN means that there is none.
        sd: Standard deviation over repetitions, such as seeds.
        low: Lower end of an interval.
        high: Upper end of it.
    """

    value: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


Cell: TypeAlias = str | int | float | bool | Estimate | None
"""A cell of a table: text is shown as it is, numbers with few decimals, None and NaN as a dash."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its title; the CSV file is named after it.
        columns: Headings.
        rows: One cell for each column.
        note: What a reader must know to read it, a sentence or two.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of the table {self.title!r} has {len(row)} cells "
                    f"for {len(self.columns)} columns"
                )

    def to_csv(self) -> str:
        """The table as CSV with all digits; an `Estimate` takes a column for each of its parts."""
        used = {
            index: [
                name
                for name in ("sd", "low", "high")
                if any(
                    isinstance(row[index], Estimate) and getattr(row[index], name) is not None
                    for row in self.rows
                )
            ]
            for index in range(len(self.columns))
        }
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            heading
            for index, column in enumerate(self.columns)
            for heading in (column, *(f"{column} {name}" for name in used[index]))
        )
        for row in self.rows:
            cells: list[object] = []
            for index, cell in enumerate(row):
                cells.append(_plain(cell.value if isinstance(cell, Estimate) else cell))
                cells += [_plain(getattr(cell, name, None)) for name in used[index]]
            writer.writerow(cells)
        return file.getvalue()


@dataclass(frozen=True)
class Figure:
    """A picture as SVG that becomes part of the page.

    Attributes:
        title: Its title.
        svg: The ``<svg>`` element. Shapes and text only: no script, no style sheet from elsewhere, images
            only as ``data:``. All its text takes the colour of the page's text, so that it can be read in the
            light and in the dark scheme; lines need colours that show on both.
        note: What a reader must know to read it.

    Raises:
        ValueError: ``svg`` is no SVG, or holds something that a page must not take over.
    """

    title: str
    svg: str
    note: str = ""

    def __post_init__(self) -> None:
        _check_svg(self.title, self.svg)


@dataclass(frozen=True)
class Bar:
    """One group of bars: a share for each series.

    Attributes:
        label: Its name.
        detail: What it stands for, in a line.
        values: A share in [0, 1] for each series; NaN where there is none.
    """

    label: str
    detail: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Bars:
    """Groups of horizontal bars side by side; a share of exactly 0 is marked.

    Attributes:
        title: Its title; the CSV file is named after it.
        series: Names of the bars of each group.
        bars: The groups.
        zero: What a share of 0 is called.
        note: What a reader must know to read it.

    Raises:
        ValueError: A group has not one share for each series, or a share is outside [0, 1].
    """

    title: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    zero: str = "none"
    note: str = ""

    def __post_init__(self) -> None:
        for bar in self.bars:
            if len(bar.values) != len(self.series):
                raise ValueError(
                    f"{bar.label!r} of the bars {self.title!r} has {len(bar.values)} values "
                    f"for {len(self.series)} series"
                )
            if any(value < 0 or value > 1 for value in bar.values):
                raise ValueError(
                    f"values of {bar.label!r} of the bars {self.title!r} must be shares in [0, 1], "
                    f"got {bar.values}"
                )

    @property
    def table(self) -> Table:
        """The same as a table."""
        rows: tuple[tuple[Cell, ...], ...] = tuple((bar.label, bar.detail, *bar.values) for bar in self.bars)
        return Table(self.title, ("", "what it is", *self.series), rows, self.note)

    @property
    def longest(self) -> float:
        """The largest share."""
        return max((value for bar in self.bars for value in bar.values if not math.isnan(value)), default=0)


@dataclass(frozen=True)
class Example:
    """Texts that belong together, such as one before and after a change, or the answers to one question.

    Attributes:
        caption: What they have in common; may have several lines.
        texts: Name and text of each.
    """

    caption: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Examples:
    """Examples.

    Attributes:
        title: Their title.
        examples: The examples.
        note: What a reader must know, such as how they were chosen.
        marks: Whether ``[[ ]]`` in the texts mark words; say False for texts from outside.
    """

    title: str
    examples: tuple[Example, ...]
    note: str = ""
    marks: bool = True


@dataclass(frozen=True)
class ShadedText:
    """A text whose words carry numbers, such as an attribution map.

    Attributes:
        name: What it is, in a few words.
        pieces: The text in pieces, each with a shade from -1 to 1; 0 for none.

    Raises:
        ValueError: A shade is outside [-1, 1].
    """

    name: str
    pieces: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for piece, shade in self.pieces:
            if not -1 <= shade <= 1:
                raise ValueError(f"the shade of {piece!r} is {shade}; expected -1 to 1")


@dataclass(frozen=True)
class Shades:
    """Texts in groups, their words shaded: orange for positive numbers, blue for negative ones.

    Attributes:
        title: Their title.
        groups: A caption, and the texts that belong together.
        note: What a reader must know, such as what the shades stand for.
    """

    title: str
    groups: tuple[tuple[str, tuple[ShadedText, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A small picture as a PNG file that becomes part of the page, as large as it is in pixels.

    Attributes:
        name: What it is, in a few words; shown below it.
        png: The file, 256 KiB at most: a page holds many.
        alt: What a reader who cannot see it must know.

    Raises:
        ValueError: The file is no PNG or too large, or there is no ``alt``.
    """

    name: str
    png: bytes
    alt: str

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n") or self.png[12:16] != b"IHDR" or len(self.png) < 24:
            raise ValueError(f"png of the picture {self.name!r} is no PNG file")
        if len(self.png) > _MOST_BYTES:
            raise ValueError(
                f"png of the picture {self.name!r} has {len(self.png)} bytes; at most {_MOST_BYTES} fit"
            )
        if not self.alt.strip():
            raise ValueError(f"alt of the picture {self.name!r} is empty")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")

    @property
    def base64(self) -> str:
        """The file as text."""
        return b64encode(self.png).decode()


@dataclass(frozen=True)
class Pictures:
    """Pictures in groups, side by side.

    Attributes:
        title: Their title.
        groups: A caption, and the pictures that belong together.
        note: What a reader must know, such as what colours stand for.
    """

    title: str
    groups: tuple[tuple[str, tuple[Picture, ...]], ...]
    note: str = ""


Part: TypeAlias = str | Table | Bars | Figure | Examples | Shades | Pictures
"""Text is a paragraph."""

_KINDS: Mapping[str, type[Table | Bars | Figure | Examples | Shades | Pictures]] = {
    "table": Table,
    "bars": Bars,
    "figure": Figure,
    "examples": Examples,
    "shades": Shades,
    "pictures": Pictures,
}


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        key: Its name in files and links: lower-case letters, digits and hyphens.
        title: Its heading.
        parts: What it shows, in order.
    """

    key: str
    title: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.key):
            raise ValueError(
                f"key of the section {self.title!r} is {self.key!r}; "
                "expected lower-case letters, digits, hyphens"
            )

    def table(self, title: str) -> Table:
        """The table of that title.

        Raises:
            KeyError: There is none.
        """
        for part in self.parts:
            if isinstance(part, Table) and part.title == title:
                return part
        raise KeyError(f"the section {self.key!r} has no table {title!r}")


@dataclass(frozen=True)
class Report:
    """What was measured, section by section.

    Attributes:
        title: The report's title.
        sections: Its sections, each with a key of its own.
        facts: What the figures depend on (model, data, seeds, versions), shown at the top.

    Example:
        ```python
        report = Report("My model", facts={"model": "my-model"})
        report = report.with_section(Section("speed", "Speed", (table, figure)))
        report.write("runs/report")
        ```
    """

    title: str
    sections: tuple[Section, ...] = ()
    facts: Mapping[str, Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = [section.key for section in self.sections]
        if len(set(keys)) < len(keys):
            raise ValueError(f"sections of a report need keys of their own, got {keys}")

    def section(self, key: str) -> Section:
        """The section of that key.

        Raises:
            KeyError: There is none.
        """
        for section in self.sections:
            if section.key == key:
                return section
        raise KeyError(f"the report has no section {key!r}; it has {[s.key for s in self.sections]}")

    def with_section(self, section: Section) -> Self:
        """The report with a section more; one with the same key is replaced in its place."""
        sections = tuple(section if old.key == section.key else old for old in self.sections)
        return replace(self, sections=sections if section in sections else (*sections, section))

    def write(self, folder: str | Path) -> None:
        """Write ``report.md``, ``report.json``, ``report.html`` and a CSV file for each table.

        Each file is replaced as a whole. CSV files of an earlier report in the folder that this one has no
        table for are removed; other files stay.

        Args:
            folder: Folder to write into; created when missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {name: table.to_csv() for name, table in self._tables()}
        old = read_json(folder / _JSON).get("csv", []) if (folder / _JSON).is_file() else []
        for name, text in tables.items():
            write_bytes(folder / name, text.encode("utf-8", "replace"))
        write_bytes(folder / "report.md", self.to_markdown().encode())
        write_bytes(folder / "report.html", self.to_html().encode())
        write_json(folder / _JSON, self.to_json())
        for name in set(old) - set(tables):
            artefact_path(folder, name).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a report back, for example to add a section.

        Args:
            folder: Folder that `write` filled.

        Raises:
            FileNotFoundError: The folder holds no ``report.json``.
            ValueError: The file is no report.
        """
        path = Path(folder) / _JSON
        data = read_json(path)
        try:
            return cls(
                title=data["title"],
                sections=tuple(
                    Section(s["key"], s["title"], tuple(_part_from_json(part) for part in s["parts"]))
                    for s in data["sections"]
                ),
                facts={name: _cell_from_json(value) for name, value in data["facts"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no report: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values with all digits; NaN becomes null."""
        return {
            "title": clean_text(self.title),
            "facts": {clean_text(name): _cell_to_json(value) for name, value in self.facts.items()},
            "csv": [name for name, _ in self._tables()],
            "sections": [
                {
                    "key": section.key,
                    "title": clean_text(section.title),
                    "parts": [_part_to_json(part) for part in section.parts],
                }
                for section in self.sections
            ],
        }

    def to_markdown(self) -> str:
        """The report as Markdown; figures and pictures, which Markdown cannot hold, are named."""
        lines = [f"# {markdown_line(self.title)}", ""]
        if self.facts:
            lines += _markdown_table(("", ""), [(name, value) for name, value in self.facts.items()])
        for section in self.sections:
            lines += [f"## {markdown_line(section.title)}", ""]
            for part in section.parts:
                lines += _markdown_part(part)
        return "\n".join(lines)

    def to_html(self) -> str:
        """The report as one page: no script and no file beside it; light or dark as the reader's system."""
        return _template().render(report=self)

    def _tables(self) -> Iterator[tuple[str, Table]]:
        """Every table with the name of its CSV file."""
        used: set[str] = set()
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Table | Bars):
                    stem = name = f"{section.key}-{_slug(part.title)}"
                    number = 1
                    while name in used:
                        number += 1
                        name = f"{stem}-{number}"
                    used.add(name)
                    yield f"{name}.csv", part.table if isinstance(part, Bars) else part


# Cells ------------------------------------------------------------------------------------------------------


def _shown(cell: Cell) -> str:
    """A cell as a reader sees it."""
    match cell:
        case None:
            return _ABSENT
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}".replace(",", "\u202f")
        case float():
            return _number(cell)
        case Estimate():
            text = _number(cell.value)
            if text != _ABSENT and cell.sd is not None:
                text += f" ± {_number(cell.sd, like=cell.value)}"
            if text != _ABSENT and cell.low is not None and cell.high is not None:
                text += f" [{_number(cell.low, like=cell.value)}, {_number(cell.high, like=cell.value)}]"
            return text
        case str():
            return cell


def _number(value: float, *, like: float | None = None) -> str:
    """A number with three decimals, fewer where it is large; it shares the decimals of ``like``."""
    if not math.isfinite(value):
        return _ABSENT if math.isnan(value) else f"{value}"
    size = abs(value if like is None or not math.isfinite(like) else like)
    decimals = 3 if size < 10 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float | Estimate) and not isinstance(cell, bool))


def _plain(cell: object) -> object:
    """A cell for CSV: as it is, but nothing for None and NaN."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return clean_text(cell) if isinstance(cell, str) else cell


def _cell_to_json(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        return {name: _cell_to_json(value) for name, value in vars(cell).items() if value is not None}
    if isinstance(cell, float) and not math.isfinite(cell):
        return None if math.isnan(cell) else str(cell)
    return clean_text(cell) if isinstance(cell, str) else cell


def _cell_from_json(value: Any) -> Cell:
    if isinstance(value, dict):
        return Estimate(**{"value": math.nan, **{k: v for k, v in value.items() if v is not None}})
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a cell is a {type(value).__name__}")


# Parts ------------------------------------------------------------------------------------------------------


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"kind": "text", "text": clean_text(part)}
    kind = next(name for name, known in _KINDS.items() if isinstance(part, known))
    data: dict[str, Any] = {"kind": kind, "title": clean_text(part.title), "note": clean_text(part.note)}
    match part:
        case Table():
            data["columns"] = [clean_text(column) for column in part.columns]
            data["rows"] = [[_cell_to_json(cell) for cell in row] for row in part.rows]
        case Figure():
            data["svg"] = part.svg
        case Examples():
            data["marks"] = part.marks
            data["examples"] = [
                {
                    "caption": clean_text(example.caption),
                    "texts": [[clean_text(name), clean_text(text)] for name, text in example.texts],
                }
                for example in part.examples
            ]
        case Shades():
            data["groups"] = [
                {
                    "caption": clean_text(caption),
                    "texts": [
                        {
                            "name": clean_text(text.name),
                            "pieces": [[clean_text(piece), shade] for piece, shade in text.pieces],
                        }
                        for text in texts
                    ],
                }
                for caption, texts in part.groups
            ]
        case Pictures():
            data["groups"] = [
                {
                    "caption": clean_text(caption),
                    "pictures": [
                        {"name": clean_text(one.name), "alt": clean_text(one.alt), "png": one.base64}
                        for one in pictures
                    ],
                }
                for caption, pictures in part.groups
            ]
        case Bars():
            data["zero"] = clean_text(part.zero)
            data["series"] = [clean_text(name) for name in part.series]
            data["bars"] = [
                {
                    "label": clean_text(bar.label),
                    "detail": clean_text(bar.detail),
                    "values": [_cell_to_json(value) for value in bar.values],
                }
                for bar in part.bars
            ]
    return data


def _part_from_json(data: dict[str, Any]) -> Part:
    kind = data["kind"]
    if kind == "text":
        return str(data["text"])
    values = {name: value for name, value in data.items() if name != "kind"}
    if kind == "table":
        values["columns"] = tuple(values["columns"])
        values["rows"] = tuple(tuple(_cell_from_json(cell) for cell in row) for row in values["rows"])
    if kind == "examples":
        values["examples"] = tuple(
            Example(one["caption"], tuple((name, text) for name, text in one["texts"]))
            for one in values["examples"]
        )
    if kind == "shades":
        values["groups"] = tuple(
            (
                one["caption"],
                tuple(
                    ShadedText(text["name"], tuple((piece, float(shade)) for piece, shade in text["pieces"]))
                    for text in one["texts"]
                ),
            )
            for one in values["groups"]
        )
    if kind == "pictures":
        values["groups"] = tuple(
            (
                one["caption"],
                tuple(
                    Picture(picture["name"], b64decode(picture["png"], validate=True), picture["alt"])
                    for picture in one["pictures"]
                ),
            )
            for one in values["groups"]
        )
    if kind == "bars":
        values["series"] = tuple(values["series"])
        values["bars"] = tuple(
            Bar(
                one["label"],
                one["detail"],
                tuple(math.nan if value is None else float(value) for value in one["values"]),
            )
            for one in values["bars"]
        )
    return _KINDS[kind](**values)


def _markdown_part(part: Part) -> list[str]:
    if isinstance(part, str):
        return [markdown_paragraphs(part), ""]
    lines = [f"### {markdown_line(part.title)}", ""]
    match part:
        case Table():
            lines += _markdown_table(part.columns, part.rows)
        case Figure():
            lines += ["Figure: see `report.html`.", ""]
        case Examples():
            for example in part.examples:
                lines.append(f"- {markdown_line(example.caption)}")
                show = _markdown_marked if part.marks else markdown_line
                lines += [f"    - {markdown_line(name)}: {show(text)}" for name, text in example.texts]
            lines.append("")
        case Shades():
            for caption, texts in part.groups:
                lines.append(f"- {markdown_line(caption)}")
                lines += [f"    - {markdown_line(text.name)}: {_markdown_shaded(text)}" for text in texts]
            lines.append("")
        case Pictures():
            lines += ["Pictures: see `report.html`.", ""]
            for caption, pictures in part.groups:
                lines.append(f"- {markdown_line(_visible(caption))}")
                lines += [f"    - {markdown_line(_visible(one.alt))}" for one in pictures]
            lines.append("")
        case Bars():
            lines += _markdown_table(part.table.columns, part.table.rows)
    return [*lines, *([markdown_paragraphs(part.note), ""] if part.note else [])]


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    rows = list(rows)
    right = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    return [
        f"| {' | '.join(markdown_line(column) for column in columns)} |",
        f"| {' | '.join('---:' if one else '---' for one in right)} |",
        *(f"| {' | '.join(markdown_line(_shown(cell)) for cell in row)} |" for row in rows),
        "",
    ]


def _markdown_marked(text: str) -> str:
    text = _visible(text.replace(_OPEN, "").replace(_CLOSE, ""))
    # White space inside bold marks would end them.
    text = _MARKED.sub(lambda found: f"{_OPEN}{found[1].strip()}{_CLOSE}", text)
    return markdown_line(text).replace(_OPEN, "**").replace(_CLOSE, "**")


def _markdown_shaded(text: ShadedText) -> str:
    """The text with the words of at least half the full shade in bold."""
    pieces = [
        (piece.replace("[[", "[").replace("]]", "]"), abs(shade) >= 0.5) for piece, shade in text.pieces
    ]
    return _markdown_marked("".join(f"[[{piece}]]" if strong else piece for piece, strong in pieces))


def _visible(text: str) -> str:
    """A text that may be hostile: characters that reorder or hide what stands around them are named."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def _marked_pieces(text: str, marks: bool) -> list[tuple[str, bool]]:
    """The pieces of a text: what to show, and whether it is marked."""
    pieces = _MARKED.split(text) if marks else [text]
    return [(piece, bool(index % 2)) for index, piece in enumerate(pieces) if piece]


# The page ---------------------------------------------------------------------------------------------------


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "untitled"


def _check_svg(title: str, svg: str) -> None:
    if not svg.startswith("<svg") or "<!" in svg:
        raise ValueError(f"svg of the figure {title!r} must be an <svg> element without a document type")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"svg of the figure {title!r} is no well-formed XML: {error}") from error
    for element in root.iter():
        if not element.tag.startswith(_SVG) or element.tag.removeprefix(_SVG) not in _SVG_TAGS:
            raise ValueError(
                f"svg of the figure {title!r} holds the element {element.tag}, which is not allowed"
            )
        for name, value in element.attrib.items():
            bare = name.rpartition("}")[2].lower()
            inside = value.startswith(("#", "data:image/png;", "data:image/jpeg;"))
            if bare.startswith("on") or (bare == "href" and not inside):
                raise ValueError(
                    f"svg of the figure {title!r} holds {bare}={value[:40]!r}, which is not allowed"
                )
        for style in (
            element.get("style", ""),
            (element.text or "") if element.tag == f"{_SVG}style" else "",
        ):
            if re.search(r"@import|url\(\s*['\"]?(?!#)", style):
                raise ValueError(f"svg of the figure {title!r} has a style that fetches another file")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        clean=clean_text,
        shown=lambda cell: clean_text(_shown(cell)),
        visible=lambda text: _visible(clean_text(text)),
        pieces=lambda text, marks: _marked_pieces(_visible(clean_text(text)), marks),
        width=lambda value, longest: f"{100 * value / longest:.2f}%" if longest else "0%",
        kind=lambda part: "text" if isinstance(part, str) else type(part).__name__.lower(),
        numeric=lambda table: [
            bool(table.rows) and all(_is_number(row[index]) for row in table.rows)
            for index in range(len(table.columns))
        ],
    )
    source = Path(__file__).parent / _TEMPLATE
    return environment.from_string(source.read_text(encoding="utf-8"))
