"""Artefacts on disk: JSON, names from outside, atomic folders, fingerprints, `HubMixin` without a Hub."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hub_server import ROOT
from tests.trainkit.hub_clients import CARD, Notes
from trainkit import hub as hub_module
from trainkit.cards import ModelCard
from trainkit.hub import (
    MANIFEST,
    ArtefactError,
    HubOfflineError,
    artefact_path,
    atomic_directory,
    fingerprint,
    push_folder,
    read_json,
    resolve,
    write_bytes,
    write_json,
)


def tree(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    folder = Path(folder)
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


class OtherNotes(Notes):
    """Another kind of artefact with the same files."""


class NotesAgain(Notes):
    """A subclass that reads its parent's folders."""

    hub_kind = "Notes"


class CardedNotes(Notes):
    """Brings a card of its own."""

    hub_kind = "Notes"

    def _card(self) -> ModelCard:
        return ModelCard(title="Own card", method="m", summary="s", licence="MIT", versions={})


# JSON -------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=json_values)
@settings(max_examples=50, deadline=None)
def test_json_round_trips(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("value", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), ("\ud800", ValueError), (object(), TypeError)],
)
def test_what_json_cannot_express_leaves_the_old_file_alone(
    tmp_path: Path, value: object, error: type[Exception]
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(error):
        write_json(path, {"new": value})
    assert tree(tmp_path) == {"a.json": b'{\n  "old": true\n}\n'}


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"new")
    assert tree(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("data", "message"),
    [(b'{"a": 1,\n "b": }', "a.json:2:7: not JSON"), (b'"\xff"', "not UTF-8 text: byte 1 is 0xff")],
)
def test_a_broken_json_file_is_named_with_the_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")


# Names from outside -----------------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "/etc/passwd",
    "../up",
    "a/../../b",
    "a//b",
    "./a",
    "a/",
    "a\\b",
    "C:evil",
    "a\0b",
    "a\nb",
    "..",
    3,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_from_outside_is_never_a_path_out_of_the_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(ArtefactError, match="name"):
        artefact_path(tmp_path, name)


@given(name=st.text(st.sampled_from("ab./\\:~ \x00-é"), max_size=8))
@settings(max_examples=200, deadline=None)
def test_an_accepted_name_stays_inside_the_folder(name: str) -> None:
    folder = Path("/some/folder")
    try:
        path = artefact_path(folder, name)
    except ArtefactError:
        return
    assert os.path.normpath(path) == str(path)
    assert path != folder and path.is_relative_to(folder)


# Atomic folders ---------------------------------------------------------------------------------------------


def fill(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_a_folder_appears_when_complete_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_directory(target) as temporary:
        fill(temporary, x="1")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert tree(tmp_path) == {"a/b/x": b"1"}
    plain = tmp_path / "plain"
    plain.mkdir()
    assert target.stat().st_mode == plain.stat().st_mode


def test_an_error_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "a") as temporary:
        fill(temporary, x="1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    fill(tmp_path / "a", precious="1")
    entered = False
    with pytest.raises(FileExistsError, match="not empty"), atomic_directory(tmp_path / "a"):
        entered = True
    assert not entered
    assert tree(tmp_path) == {"a/precious": b"1"}


def test_a_folder_that_fills_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), atomic_directory(tmp_path / "a") as temporary:
        fill(temporary, x="1")
        fill(tmp_path / "a", other="2")
    assert tree(tmp_path) == {"a/other": b"2"}


def test_an_empty_folder_is_filled_and_a_file_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with atomic_directory(tmp_path / "a") as temporary:
        fill(temporary, x="1")
    assert tree(tmp_path / "a") == {"x": b"1"}
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(NotADirectoryError, match="is a file"),
        atomic_directory(tmp_path / "file", replace=True),
    ):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_folder_is_gone_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(hub_module, "_exchange", lambda one, other: False)
    fill(tmp_path / "a", old="1", both="1")
    with atomic_directory(tmp_path / "a", replace=True) as temporary:
        fill(temporary, new="2", both="2")
        assert tree(tmp_path / "a") == {"old": b"1", "both": b"1"}
    assert tree(tmp_path) == {"a/new": b"2", "a/both": b"2"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="folders are exchanged in one step on Linux only"
)
def test_linux_exchanges_folders_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "a", old="1")

    def forbidden(*args: object) -> None:
        raise AssertionError("the target was moved away, so that for a moment there was none")

    monkeypatch.setattr(os, "rename", forbidden)
    with atomic_directory(tmp_path / "a", replace=True) as temporary:
        fill(temporary, new="2")
    assert tree(tmp_path) == {"a/new": b"2"}


def test_a_failed_replacement_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_exchange", lambda one, other: False)
    fill(tmp_path / "a", old="1")
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="refused"), atomic_directory(tmp_path / "a", replace=True) as temporary:
        fill(temporary, new="2")
    assert tree(tmp_path) == {"a/old": b"1"}


def test_a_killed_process_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    fill(tmp_path / "a", old="1")
    script = (
        "import os, signal, sys\n"
        "from trainkit.hub import atomic_directory\n"
        "with atomic_directory(sys.argv[1], replace=True) as temporary:\n"
        "    (temporary / 'new').write_text('2')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert tree(tmp_path / "a") == {"old": b"1"}
    leftovers = [p.name for p in tmp_path.iterdir() if p.name != "a"]
    assert len(leftovers) == 1 and leftovers[0].startswith(".a.")


# Fingerprints -----------------------------------------------------------------------------------------------

parts = st.lists(st.text(max_size=4) | st.binary(max_size=4) | st.integers() | st.booleans(), max_size=4)


@given(one=parts, other=parts)
@settings(max_examples=200, deadline=None)
def test_fingerprints_are_equal_exactly_when_the_parts_are(one: list[Any], other: list[Any]) -> None:
    same = [(type(p), p) for p in one] == [(type(p), p) for p in other]
    assert (fingerprint(*one) == fingerprint(*other)) is same


def test_parts_do_not_run_into_each_other() -> None:
    assert (
        len({fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc"), fingerprint(["ab", "c"])})
        == 4
    )


def test_an_array_counts_with_values_dtype_and_shape_but_not_with_layout() -> None:
    array = np.arange(600_000, dtype=np.float32).reshape(300, 2000)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array)) == fingerprint(array.astype(">f4"))
    changed = array.copy()
    changed[-1, -1] += 1
    different: list[np.ndarray[Any, Any]] = [
        array,
        array.reshape(2000, 300),
        array.astype(np.float64),
        array.view(np.int32),
        changed,
    ]
    assert len({fingerprint(value) for value in different}) == len(different)


def test_a_path_counts_with_content_and_relative_names(tmp_path: Path) -> None:
    fill(tmp_path / "one", a="1", b="2")
    fill(tmp_path / "same", b="2", a="1")
    fill(tmp_path / "renamed", a="1", c="2")
    fill(tmp_path / "edited", a="1", b="3")
    prints = {name: fingerprint(tmp_path / name) for name in ("one", "same", "renamed", "edited")}
    assert prints["one"] == prints["same"]
    assert len(set(prints.values())) == 3
    assert fingerprint(tmp_path / "one" / "a") == fingerprint(tmp_path / "same" / "a")
    assert fingerprint(tmp_path / "one" / "a") != fingerprint("1")


def test_what_has_no_stable_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dict"):
        fingerprint({"a": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="objects"):
        fingerprint(np.array([object()]))
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "missing")


# Artefacts on disk ------------------------------------------------------------------------------------------


def test_an_artefact_round_trips_through_a_folder(tmp_path: Path) -> None:
    Notes("hello", np.array([1.5, -2], dtype=np.float16)).save_pretrained(tmp_path / "notes", card=CARD)
    again = Notes.from_pretrained(tmp_path / "notes")
    assert again.text == "hello"
    assert again.vector.dtype == np.float16 and again.vector.tolist() == [1.5, -2]
    assert (tmp_path / "notes" / "README.md").read_text() == CARD.render()
    manifest = read_json(tmp_path / "notes" / MANIFEST)
    assert manifest["kind"] == "Notes"
    assert set(manifest["files"]) == {"notes.json", "vector.safetensors", "README.md"}


def test_saving_again_replaces_the_artefact_and_drops_its_old_files(tmp_path: Path) -> None:
    Notes("one", extra={"nested/old.txt": "1"}).save_pretrained(tmp_path / "notes", card=CARD)
    Notes("two").save_pretrained(tmp_path / "notes")
    assert set(tree(tmp_path)) == {"notes/notes.json", "notes/vector.safetensors", f"notes/{MANIFEST}"}
    assert Notes.from_pretrained(tmp_path / "notes").text == "two"


def test_the_same_artefact_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Notes("same").save_pretrained(tmp_path / name, card=CARD)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_folder_with_other_content_is_replaced_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    fill(target, chapter="years of work")
    with pytest.raises(FileExistsError, match="was not written by save_pretrained"):
        Notes("x").save_pretrained(target)
    assert tree(target) == {"chapter": b"years of work"}
    Notes("x").save_pretrained(target, overwrite=True)
    assert Notes.from_pretrained(target).text == "x"
    fill(target, chapter="years of work")
    with pytest.raises(FileExistsError, match="also holds 'chapter'"):
        Notes("y").save_pretrained(target)
    assert Notes.from_pretrained(target).text == "x"
    (target / MANIFEST).write_text("{")
    with pytest.raises(FileExistsError, match="manifest is damaged"):
        Notes("y").save_pretrained(target)


def test_a_failure_while_saving_leaves_the_old_artefact(tmp_path: Path) -> None:
    Notes("old").save_pretrained(tmp_path / "notes")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="surrogates"):
        Notes("\ud800").save_pretrained(tmp_path / "notes")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["a.pkl", "a.PT", "deep/down/pytorch_model.bin", "a.pth", "a.joblib", "a.pickle"]
)
def test_pickles_are_never_saved_or_pushed(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match=r"pickles.*safetensors"):
        Notes("x", extra={name: "data"}).save_pretrained(tmp_path / "notes")
    assert list(tmp_path.iterdir()) == []
    fill((tmp_path / "plain" / name).parent, **{Path(name).name: "data"})
    with pytest.raises(ArtefactError, match="pickles"):
        push_folder(tmp_path / "plain", "tester/x")


def test_links_are_never_pushed(tmp_path: Path) -> None:
    fill(tmp_path, secret="password")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtefactError, match=r"link 'notes\.txt'"):
        push_folder(tmp_path / "plain", "tester/x")


def test_the_manifest_is_not_the_artefacts_to_write(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="name of the manifest"):
        Notes("x", extra={MANIFEST: "{}"}).save_pretrained(tmp_path / "notes")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    Notes("hello").save_pretrained(folder, card=CARD)
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = read_json(folder / MANIFEST)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_damaged_binary_file_is_noticed(saved: Path) -> None:
    path = saved / "vector.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"'vector\.safetensors' is damaged"):
        Notes.from_pretrained(saved)


def test_text_may_be_edited_by_hand_and_the_card_removed(saved: Path) -> None:
    (saved / "notes.json").write_text('{"text": "edited"}')
    (saved / "README.md").unlink()
    assert Notes.from_pretrained(saved).text == "edited"


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "notes.json").unlink()
    with pytest.raises(ArtefactError, match=r"incomplete: 'notes\.json' is missing"):
        Notes.from_pretrained(saved)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret"])
def test_a_manifest_cannot_name_files_outside(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_text("x")
    edit_manifest(saved, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(ArtefactError, match="not a plain name inside"):
        Notes.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=99), "format 99"),
        (lambda manifest: manifest.update(kind="Detector"), "holds a Detector, not a Notes"),
        (lambda manifest: manifest.update(files=["notes.json"]), "no table of files"),
        (lambda manifest: manifest.pop("files"), "no table of files"),
        (lambda manifest: manifest["files"].update({"notes.json": None}), "no table of files"),
    ],
)
def test_a_strange_manifest_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(saved, change)
    with pytest.raises(ArtefactError, match=message):
        Notes.from_pretrained(saved)


def test_a_folder_is_read_by_its_own_kind_only(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds a Notes, not a OtherNotes"):
        OtherNotes.from_pretrained(saved)
    assert type(NotesAgain.from_pretrained(saved)) is NotesAgain
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"was not written by Notes\.save_pretrained"):
        Notes.from_pretrained(tmp_path / "empty")


def test_a_class_may_bring_its_own_card_and_the_caller_may_replace_it(tmp_path: Path) -> None:
    CardedNotes("x").save_pretrained(tmp_path / "own")
    CardedNotes("x").save_pretrained(tmp_path / "given", card=CARD)
    assert "# Own card" in (tmp_path / "own" / "README.md").read_text()
    assert "# Notes" in (tmp_path / "given" / "README.md").read_text()


# Folder or repository ---------------------------------------------------------------------------------------


def test_an_existing_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "owner" / "name", a="1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("owner/name") == Path("owner/name")
    assert resolve("~/owner/name") == tmp_path / "owner" / "name"
    with pytest.raises(ValueError, match="no revision 'v1'"):
        resolve("owner/name", revision="v1")


@pytest.mark.parametrize(
    "name", ["./model", "/no/where", "a/b/c", "~/model", "model/", "../model", Path("model"), "a b"]
)
def test_a_missing_folder_that_looks_like_one_says_what_to_do(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="check the spelling, or give a Hub repository"):
        resolve(name)


def test_a_file_and_an_empty_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, file="")
    with pytest.raises(NotADirectoryError, match="give the folder that holds it"):
        resolve(tmp_path / "file")
    with pytest.raises(ValueError, match="empty"):
        resolve("")


def test_offline_without_a_cached_copy_is_said_at_once() -> None:
    with pytest.raises(HubOfflineError, match=r"no folder 'nobody/nothing'.*HF_HUB_OFFLINE") as caught:
        resolve("nobody/nothing")
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    ("folder", "repo_id", "revision", "error"),
    [
        ("missing", "tester/x", None, FileNotFoundError),
        ("empty", "tester/x", None, FileNotFoundError),
        ("full", "tester/x/y", None, ValueError),
        ("full", "../x", None, ValueError),
        ("full", "tester/x", "0" * 40, ValueError),
        ("full", "tester/x", None, HubOfflineError),
    ],
)
def test_a_push_that_cannot_work_fails_before_it_starts(
    tmp_path: Path, folder: str, repo_id: str, revision: str | None, error: type[Exception]
) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "full", a="1")
    with pytest.raises(error):
        push_folder(tmp_path / folder, repo_id, revision=revision)
