"""Public data sets by name, and JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.datafiles import DATA_SETS, data_file, data_folder, read_jsonl

NAME = "dialogue/topical_chat.jsonl.gz"


def test_a_file_is_found_in_the_folder_that_kit_data_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dialogue").mkdir()
    (tmp_path / NAME).write_bytes(b"")
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    assert data_file(NAME) == tmp_path / NAME
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setenv("KIT_DATA", f"~/{tmp_path.name}")
    assert data_file(NAME) == tmp_path / NAME


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_folder_lies_beside_the_repository(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("KIT_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("KIT_DATA", value)
    root = Path(__file__).resolve().parents[2]
    assert data_folder() == root.parent / "shared" / "data"


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="KIT_DATA") as caught:
        data_file(NAME)
    assert (
        NAME in str(caught.value)
        and str(tmp_path) in str(caught.value)
        and "topical_chat" in str(caught.value)
    )


@pytest.mark.parametrize(
    "name", ["dialogue/topical_chat.jsonl", "topical chat", "../../etc/passwd", "/etc/passwd", ""]
)
def test_only_known_names_are_looked_for(name: str) -> None:
    with pytest.raises(ValueError, match="no data set has a file"):
        data_file(name)


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'dialogue/topical_chat\.jsonl\.gz'"):
        data_file("dialogue/topicalchat.jsonl.gz")


def test_the_table_holds_relative_names_each_once() -> None:
    assert all(name in entry.files for name, entry in DATA_SETS.items())
    assert sum(
        len(entry.files) for entry in {id(entry): entry for entry in DATA_SETS.values()}.values()
    ) == len(DATA_SETS)
    assert [name for name in DATA_SETS if name.startswith("/") or ".." in name or "\\" in name] == []


rows = st.lists(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=4), st.text(st.characters(codec="utf-8")), max_size=3
    ),
    max_size=5,
)


@given(rows=rows, compressed=st.booleans(), ascii_only=st.booleans())
@settings(max_examples=50, deadline=None)
def test_json_lines_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], compressed: bool, ascii_only: bool
) -> None:
    data = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()
    path = tmp_path_factory.getbasetemp() / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert list(read_jsonl(path)) == rows


def test_empty_lines_are_skipped_and_the_last_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"a": 1}\r\n  \n{"a": 2}')
    assert [row["a"] for row in read_jsonl(tmp_path / "a.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a":\n', r"a\.jsonl:2: not JSON: Expecting value"),
        (b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: expected a JSON object, got list"),
        (b'{"a": "\xff"}\n', r"a\.jsonl:1: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_jsonl(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("damage", ["cut", "not compressed", "changed"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(5000)))
    changed = whole[:200] + bytes(byte ^ 0xFF for byte in whole[200:400]) + whole[400:]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes({"cut": whole[:-20], "not compressed": b'{"a": 1}\n', "changed": changed}[damage])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        list(read_jsonl(path))


def test_reading_is_lazy_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\nbroken\n')
    assert next(read_jsonl(tmp_path / "a.jsonl")) == {"a": 1}
    with pytest.raises(FileNotFoundError):
        next(read_jsonl(tmp_path / "b.jsonl"))
