"""The report: what it writes, that it reads it back, and that texts stay texts."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.report import (
    Bar,
    Bars,
    Estimate,
    Example,
    Examples,
    Figure,
    Picture,
    Pictures,
    Report,
    Section,
    ShadedText,
    Shades,
    Table,
)

EVIL = "<script>alert(1)</script>\"'&|`*_[x](javascript:alert(2))\n# {{ 7 * 7 }} <!-- -->"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0"/></svg>'


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A black picture, written by hand."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    body = zlib.compress(b"\x00" * (width + 1) * height)
    chunks = ((b"IHDR", head), *(((b"teXt", more),) if more else ()), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )


class Page(HTMLParser):
    """Tags with attributes, and the text a reader sees, of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = 0
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._silent else data


def full_report(word: str = EVIL) -> Report:
    """One of everything, with the same text wherever a text can stand."""
    table = Table(word, (word, "n"), ((word, 1), (word, math.nan)), word)
    figure = Figure(word, SVG, word)
    bars = Bars(word, (word, word, word), (Bar(word, word, (0.5, 0.0, math.nan)),), word, word)
    pair = Example(word, ((word, f"{word} [[{word}]]"), (word, word)))
    shades = Shades(word, ((word, (ShadedText(word, ((word, 0.5), (word, 0.0))),)),), word)
    pictures = Pictures(word, ((word, (Picture(word, png(3, 2), word),)),), word)
    parts = (word, table, bars, figure, Examples(word, (pair,), word), shades, pictures)
    return Report(word, (Section("one", word, parts), Section("two", word, (word,))), {word: word})


def test_all_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    table = Table("Accuracy under attack", ("a",), ((1,),))
    report = Report("R", (Section("attacks", "Attacks", (table, table)),))
    report.write(tmp_path / "new" / "folder")
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {
        "report.md",
        "report.json",
        "report.html",
        "attacks-accuracy-under-attack.csv",
        "attacks-accuracy-under-attack-2.csv",
    }


def test_tables_of_an_earlier_report_go_other_files_stay(tmp_path: Path) -> None:
    Report("R", (Section("a", "A", (Table("Old", ("x",), ((1,),)),)),)).write(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "mine.csv").write_text("kept")
    Report("R", (Section("a", "A", (Table("New", ("x",), ((1,),)),)),)).write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"a-new.csv", "mine.csv"}
    assert (tmp_path / "logs").is_dir()


def test_a_forged_list_of_tables_removes_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious.csv").write_text("kept")
    report = Report("R")
    report.write(tmp_path / "run")
    forged = json.loads((tmp_path / "run" / "report.json").read_text()) | {"csv": ["../precious.csv"]}
    (tmp_path / "run" / "report.json").write_text(json.dumps(forged))
    with pytest.raises(ValueError, match="not a plain name"):
        report.write(tmp_path / "run")
    assert (tmp_path / "precious.csv").read_text() == "kept"


def test_a_report_is_read_back_and_goes_on_growing(tmp_path: Path) -> None:
    report = Report(
        "R",
        (
            Section(
                "a",
                "A",
                (
                    "words",
                    Table(
                        "T",
                        ("x", "y"),
                        (("a", Estimate(0.5, sd=0.1, low=0.4, high=0.6)), ("b", None)),
                        "note",
                    ),
                    Figure("F", SVG, "note"),
                    Examples("E", (Example("c", (("before", "a [[b]]"), ("after", "a [[c]]"))),), "note"),
                    Bars("B", ("x", "y"), (Bar("1", "thanks", (0.25, 0.0)),), "never", "note"),
                ),
            ),
        ),
        {"n": 3, "share": 0.25, "yes": True, "none": None},
    )
    report.write(tmp_path)
    again = Report.read(tmp_path)
    assert again == report
    more = again.with_section(Section("b", "B", ("text",)))
    assert [section.key for section in more.sections] == ["a", "b"]
    changed = more.with_section(Section("a", "A2", ()))
    assert [section.title for section in changed.sections] == ["A2", "B"]
    assert again.section("a").table("T").rows[1] == ("b", None)
    with pytest.raises(KeyError, match="no section 'z'"):
        again.section("z")
    with pytest.raises(KeyError, match="no table 'z'"):
        again.section("a").table("z")


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Report.read(tmp_path)
    (tmp_path / "report.json").write_text('{"title": "x"}')
    with pytest.raises(ValueError, match="is no report"):
        Report.read(tmp_path)


def test_numbers_are_short_for_readers_and_whole_for_programs() -> None:
    cells = (0.123456789, 12.3456, 12345.678, 1234567, math.nan, None, True, math.inf, "x")
    shown = ("0.123", "12.3", "12\u202f346", "1\u202f234\u202f567", "–", "–", "yes", "inf", "x")
    table = Table("T", tuple("abcdefghi"), (cells,))
    report = Report("R", (Section("s", "S", (table,)),))
    row = report.to_markdown().splitlines()[-1]
    assert row == f"| {' | '.join(shown).replace(chr(0x202F), ' ')} |"
    for text in shown:
        assert f">{text}<" in report.to_html()
    values = report.to_json()["sections"][0]["parts"][0]["rows"][0]
    assert values == [0.123456789, 12.3456, 12345.678, 1234567, None, None, True, "inf", "x"]
    assert list(csv.reader(io.StringIO(table.to_csv())))[1] == [
        "0.123456789", "12.3456", "12345.678", "1234567", "", "", "True", "inf", "x",
    ]  # fmt: skip


def test_estimates_show_their_uncertainty_and_take_columns_of_their_own() -> None:
    rows = (
        ("a", Estimate(0.9512, sd=0.0123, low=0.9, high=0.99)),
        ("b", Estimate(math.nan)),
        ("c", Estimate(210.0, sd=3.25)),
    )
    table = Table("T", ("name", "AUC"), rows)
    markdown = Report("R", (Section("s", "S", (table,)),)).to_markdown()
    assert "0.951 ± 0.012 \\[0.900, 0.990\\]" in markdown
    assert "210.0 ± 3.2" in markdown
    assert "| --- | ---: |" in markdown
    read = list(csv.reader(io.StringIO(table.to_csv())))
    assert read[0] == ["name", "AUC", "AUC sd", "AUC low", "AUC high"]
    assert read[1] == ["a", "0.9512", "0.0123", "0.9", "0.99"]
    assert read[2] == ["b", "", "", "", ""]
    assert read[3] == ["c", "210.0", "3.25", "", ""]


def test_no_text_becomes_markup_and_every_text_is_shown() -> None:
    page = Page(full_report().to_html())
    assert not [tag for tag, _ in page.tags if tag in ("script", "b", "iframe")]
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [EVIL]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page.text and "49" not in page.text
    assert page.text.count("<script>alert(1)</script>") >= 15
    plain = full_report().to_markdown()
    assert "<script>" not in plain and "](javascript" not in plain.replace("\\]", "")


def test_the_page_needs_no_other_file() -> None:
    source = full_report("word").to_html()
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#" if tag != "img" else "data:image/png;base64,")
    assert not re.search(r"url\(\s*['\"]?(?!#)", source)
    assert "@import" not in source
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_light_and_dark_and_narrow_are_provided_for() -> None:
    source = full_report("word").to_html()
    assert "prefers-color-scheme: dark" in source
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert '<meta name="color-scheme" content="light dark">' in source


def test_bars_are_as_long_as_their_shares_and_a_missing_kind_is_named() -> None:
    bars = Bars("B", ("human", "bot", "new"), (Bar("1", "thanks", (0.25, 0.0, math.nan)),), "never")
    bars = Bars("B", bars.series, (*bars.bars, Bar("2", "bye", (0.5, 0.125, math.nan))), "never")
    report = Report("R", (Section("s", "S", (bars,)),))
    source = report.to_html()
    assert re.findall(r'style="width: ([0-9.]+)%', source) == ["50.00", "100.00", "25.00"]
    assert source.count(">never<") == 1 and source.count('class="absent">–<') == 2
    assert "25.0 %" in source and "12.5 %" in source
    assert bars.table.to_csv().splitlines() == [
        ",what it is,human,bot,new",
        "1,thanks,0.25,0.0,",
        "2,bye,0.5,0.125,",
    ]
    assert "| 1 | thanks | 0.250 | 0.000 | – |" in report.to_markdown()


@pytest.mark.parametrize("values", [(0.5,), (0.5, 1.5), (-0.1, 0.2)])
def test_bars_that_are_no_shares_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="of the bars 'B'"):
        Bars("B", ("x", "y"), (Bar("1", "", values),))


def test_changed_words_are_marked() -> None:
    pair = Example("c", (("before", "a [[fine]] film"), ("after", "a [[decent one]] film [single]")))
    report = Report("R", (Section("s", "S", (Examples("E", (pair,)),)),))
    source = report.to_html()
    assert "<bdi>a <mark>fine</mark> film</bdi>" in source
    assert "<bdi>a <mark>decent one</mark> film [single]</bdi>" in source
    assert "a **fine** film" in report.to_markdown()


def test_words_are_shaded_by_their_numbers(tmp_path: Path) -> None:
    text = ShadedText("map", (("a ", 0.0), ("fine", 1.0), (" [[, ", -0.25), ("dull", -0.5)))
    report = Report("R", (Section("s", "S", (Shades("Maps", (("first", (text,)),), "note"),)),))
    shades = [
        attributes for tag, attributes in Page(report.to_html()).tags if attributes.get("class") == "shade"
    ]
    assert [one["title"] for one in shades] == ["+1.00", "-0.25", "-0.50"]
    assert [one["style"] for one in shades] == [
        "background: rgba(226, 113, 29, 0.600)",
        "background: rgba(47, 129, 193, 0.150)",
        "background: rgba(47, 129, 193, 0.300)",
    ]
    assert "map: a **fine** \\[, **dull**" in report.to_markdown()
    report.write(tmp_path)
    assert Report.read(tmp_path) == report
    with pytest.raises(ValueError, match=r"shade of 'x' is 1.5"):
        ShadedText("map", (("x", 1.5),))


def test_pictures_stand_in_the_page_with_their_size_and_what_they_show(tmp_path: Path) -> None:
    shown = Picture("clean: 7, 0.99", png(3, 2), "the clean image a\u202eb.png")
    report = Report("R", (Section("s", "S", (Pictures("Maps", (("7 → 3", (shown,)),), "note"),)),))
    ((_, image),) = [(tag, attributes) for tag, attributes in Page(report.to_html()).tags if tag == "img"]
    assert (image["width"], image["height"]) == ("3", "2")
    assert image["alt"] == "the clean image a⟨U+202E⟩b.png"
    source = image["src"]
    assert source is not None and b64decode(source.removeprefix("data:image/png;base64,")) == shown.png
    assert "- 7 → 3\n    - the clean image a⟨U+202E⟩b.png" in report.to_markdown()
    report.write(tmp_path)
    assert Report.read(tmp_path) == report
    written = json.loads((tmp_path / "report.json").read_text())
    written["sections"][0]["parts"][0]["groups"][0]["pictures"][0]["png"] = "no base 64"
    (tmp_path / "report.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="base64"):
        Report.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "alt", "message"),
    [
        (b"GIF89a", "a", "is no PNG file"),
        (png(3, 2)[:20], "a", "is no PNG file"),
        (png(3, 2, b"x" * 262_144), "a", "at most 262144"),
        (png(3, 2), " ", "alt of the picture 'p' is empty"),
    ],
)
def test_pictures_that_a_page_cannot_hold_are_refused(file: bytes, alt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Picture("p", file, alt)


def test_brackets_of_texts_from_outside_mark_nothing(tmp_path: Path) -> None:
    examples = Examples("E", (Example("c", (("bot", "a [[b]] c"),)),), marks=False)
    report = Report("R", (Section("s", "S", (examples,)),))
    assert "<bdi>a [[b]] c</bdi>" in report.to_html() and "**b**" not in report.to_markdown()
    report.write(tmp_path)
    assert Report.read(tmp_path) == report


def test_characters_that_hide_or_reorder_are_named() -> None:
    pair = Example("c", (("before", "a \u202eb"), ("after", "go\u200bod")))
    source = Report("R", (Section("s", "S", (Examples("E", (pair,)),)),)).to_html()
    assert "a ⟨U+202E⟩b" in source and "go⟨U+200B⟩od" in source
    assert "\u202e" not in source


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    table = Table("T", ("x",), ((text,),))
    pair = Example(text, (("before", text), ("after", text)))
    report = Report("R", (Section("s", "S", (table, text, Examples("E", (pair,)))),))
    source = report.to_html()
    empty = Report(
        "R",
        (
            Section(
                "s",
                "S",
                (
                    Table("T", ("x",), (("",),)),
                    "",
                    Examples("E", (Example("", (("before", ""), ("after", ""))),)),
                ),
            ),
        ),
    ).to_html()
    marks = sum(tag == "mark" for tag, _ in Page(source).tags)
    assert len(Page(source).tags) - marks == len(Page(empty).tags)
    source.encode()
    report.to_markdown().encode()
    json.dumps(report.to_json(), allow_nan=False).encode()
    table.to_csv().encode()


# Pictures.


@pytest.mark.parametrize(
    "body",
    [
        "<script>1</script>",
        '<path onload="x()"/>',
        '<image href="http://example.org/a.png"/>',
        '<use href="other.svg#a"/>',
        "<foreignObject/>",
        '<path style="fill: url(http://example.org/a)"/>',
        "<style>@import 'a.css';</style>",
        "<path>",
        '<a href="#x"/>',
    ],
)
def test_a_picture_that_a_page_must_not_take_over_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="svg of the figure 'F'"):
        Figure("F", SVG.replace("<path", f"{body}<path", 1))


@pytest.mark.parametrize("svg", ["", "<div/>", "<!DOCTYPE svg><svg/>", '<svg><!ENTITY a "b"></svg>'])
def test_what_is_no_svg_is_refused(svg: str) -> None:
    with pytest.raises(ValueError, match="svg of the figure 'F'"):
        Figure("F", svg)


def test_an_embedded_picture_is_allowed() -> None:
    image = '<image href="data:image/png;base64,AAAA"/>'
    assert image in Figure("F", SVG.replace("<path", f"{image}<path")).svg


# Bad input.


def test_misshapen_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 of the table 'T' has 1 cells for 2 columns"):
        Table("T", ("a", "b"), ((1, 2), (1,)))
    with pytest.raises(ValueError, match="key of the section"):
        Section("Two words", "S", ())
    with pytest.raises(ValueError, match="keys of their own"):
        Report("R", (Section("a", "A", ()), Section("a", "B", ())))
