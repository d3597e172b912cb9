"""Characters: what a prompt can hold, and their files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit import embedded
from dialogkit.pdp import Blend, Character, load_character
from tests.dialogkit.pdp.helpers import UTTERANCES, character


@pytest.mark.parametrize("name", ["", "  ", "A\nB", "Bob:", " Bob", "Bob\x00", "A\u2028B", "A\tB"])
def test_names_that_break_the_format_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Character(name, ("Hi.",))
    with pytest.raises(ValueError, match="name"):
        Blend(name, (character(),), (1,))


def test_names_may_hold_anything_else() -> None:
    for name in ("Mr. O'Brien", "R2: D2", "Ægir", "先生", "🦊"):
        assert Character(name, ("Hi.",)).name == name


def test_utterances_are_put_on_one_line() -> None:
    who = Character("A", (" one\ntwo ", "x\r\n\ty\x00"), gold_contexts=("a\nb", "c"))
    assert who.utterances == ("one two", "x y") and who.gold_contexts == ("a b", "c")


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ('"Hello."', "Hello."),
        ('" Hello. "', "Hello."),
        ('""', '""'),
        ('" "', '" "'),
        ('"', '"'),
        ('"A" and "B"', '"A" and "B"'),
        ('He said "no"', 'He said "no"'),
        ("'Hello.'", "'Hello.'"),
    ],
)
def test_one_surrounding_pair_of_double_quotes_is_removed(given_text: str, kept: str) -> None:
    assert Character("A", (given_text,)).utterances == (kept,)


@given(st.text(min_size=1))
@settings(deadline=None)
def test_a_character_of_a_character_is_the_same(text: str) -> None:
    try:
        once = Character("A", (text,))
    except ValueError as error:
        assert "blank" in str(error)
        return
    assert "\n" not in once.utterances[0]
    if '"' not in text:
        assert Character("A", once.utterances) == once


@pytest.mark.parametrize("blank", ["", " \n", "\x00"])
def test_blank_utterances_are_refused(blank: str) -> None:
    with pytest.raises(ValueError, match=r"utterances\[1\] is blank"):
        Character("A", ("Hi.", blank))


def test_one_string_is_no_list_of_utterances() -> None:
    with pytest.raises(TypeError, match="utterances"):
        Character("A", "Hi.")  # type: ignore[arg-type]


def test_json_round_trip(tmp_path: Path) -> None:
    full = Character("Nora", ("Ä \U0001f98a", "b"), ("c", "d"), "A Doll's House", "n", "Wife.", "Apache-2.0")
    for who in (full, character(), Character("Silent Bob")):
        who.to_json(tmp_path / "who.json")
        again = Character.from_json(tmp_path / "who.json")
        assert again == who and again.fingerprint == who.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["who.json"]


def test_an_id_is_made_of_the_name() -> None:
    assert character().id == "mrs-plum"
    assert Character("Nora", id="n").id == "n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected a JSON object"),
        ({"name": "A"}, "utterances"),
        ({"name": "A", "utterances": "Hi."}, "list of strings"),
        ({"name": "A", "utterances": [1]}, "list of strings"),
        ({"name": 3, "utterances": []}, "'name' must be a string"),
        ({"name": "A:", "utterances": []}, "colon"),
        ({"name": "A", "utterances": [], "nmae": "B"}, "unknown keys"),
        ({"name": "A", "utterances": ["x"], "gold_contexts": []}, "gold_contexts"),
    ],
)
def test_a_bad_character_file_is_named_in_the_error(tmp_path: Path, record: object, message: str) -> None:
    path = tmp_path / "who.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        Character.from_json(path)
    assert "who.json" in str(caught.value)


def test_broken_json_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "who.json"
    for data in (b"{", b'{"name": "\xff"}'):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"who\.json"):
            Character.from_json(path)
    with pytest.raises(FileNotFoundError):
        Character.from_json(tmp_path / "nobody.json")


def test_tsv_reads_one_character_of_several(tmp_path: Path) -> None:
    path = tmp_path / "styles.tsv"
    path.write_text('style\tutterance\nBMO\t"I am tiny."\nFinn\tMathematical!\n\nBMO\tWho wants to play?\n')
    assert Character.from_tsv(path, "BMO").utterances == ("I am tiny.", "Who wants to play?")
    assert Character.from_tsv(path, "BMO", max_utterances=1).utterances == ("I am tiny.",)
    with pytest.raises(ValueError, match="say which: BMO, Finn"):
        Character.from_tsv(path)
    with pytest.raises(ValueError, match="no lines of 'Jake'"):
        Character.from_tsv(path, "Jake")
    with pytest.raises(ValueError, match="max_utterances"):
        Character.from_tsv(path, "BMO", max_utterances=0)


def test_tsv_contexts_become_gold_contexts(tmp_path: Path) -> None:
    path = tmp_path / "one.tsv"
    path.write_text("BMO\tI am tiny.\tHow tall?\nBMO\tPlay?\tI'm bored.\n")
    assert Character.from_tsv(path).gold_contexts == ("How tall?", "I'm bored.")
    path.write_text("BMO\tI am tiny.\tHow tall?\nBMO\tPlay?\n")
    assert Character.from_tsv(path).gold_contexts is None


@pytest.mark.parametrize(("data", "message"), [(b"BMO only\n", "line 1"), (b"A\t\xff\n", "UTF-8")])
def test_a_bad_tsv_is_named_in_the_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.tsv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        Character.from_tsv(path)
    assert "bad.tsv" in str(caught.value)


def test_fingerprints_follow_what_matching_sees() -> None:
    assert character().fingerprint == character(summary="Old.", licence="x").fingerprint
    others = [character(4), character(name="B"), character(gold_contexts=UTTERANCES)]
    assert len({who.fingerprint for who in [character(), *others]}) == 4
    assert Blend("B", (character(),), (1,)).fingerprint != Blend("B", (character(),), (2,)).fingerprint


def test_load_character_takes_objects_files_and_embedded_names(tmp_path: Path) -> None:
    who = character()
    assert load_character(who) is who
    who.to_json(tmp_path / "plum.json")
    assert load_character(tmp_path / "plum.json") == who == load_character(str(tmp_path / "plum.json"))
    names = embedded.character_names()
    assert names and all(isinstance(load_character(name), Character) for name in names)
    with pytest.raises(ValueError, match=f"no embedded character is called 'nobody'.*{names[0]}"):
        load_character("nobody")
    with pytest.raises(FileNotFoundError):
        load_character("nobody.json")
