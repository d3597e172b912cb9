"""Character files of visitors."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from gradio.utils import get_upload_folder

from dialogkit.pdp import Character, write_card
from dialogkit.web.uploads import MAX_LINES, read_upload, upload_check

TOM = Character("Tom", ("Soup, always soup.", "Mind the stairs."))


@pytest.mark.parametrize("name", ["tom.json", "card.json", "card.png", "tom.tsv", "Tom.txt"])
def test_every_kind_of_character_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "tom.json":
        TOM.to_json(path)
    elif name.startswith("card"):
        write_card(TOM, path, spec=3)
    elif name.endswith(".tsv"):
        path.write_text("".join(f"Tom\t{line}\n" for line in TOM.utterances))
    else:
        path.write_text("\n".join(TOM.utterances))
    read = read_upload(path)
    assert (read.name, read.utterances) == (TOM.name, TOM.utterances)


def test_a_name_says_whose_lines_are_meant(tmp_path: Path) -> None:
    table, lines = tmp_path / "all.tsv", tmp_path / "lines.txt"
    table.write_text("Tom\tSoup.\nAnn\tTea.\n")
    lines.write_text("Soup.\n")
    assert read_upload(table, " Ann ").utterances == ("Tea.",)
    assert read_upload(lines, "Old Tom").name == "Old Tom"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.png", b"\x89PNG\r\n\x1a\n", ""),
        ("a.png", b"no picture", "no PNG picture"),
        ("a.tsv", b"Tom\tSoup.\nAnn\tTea.\n", "2 names"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.json", json.dumps({"name": "Tom", "utterances": []}).encode(), "says nothing"),
        ("a.txt", b"line\n" * (MAX_LINES + 1), "1,001 lines, more than the 1,000"),
    ],
)
def test_a_bad_file_is_named_without_its_folder(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_upload(path)
    message = str(caught.value)
    assert message.startswith(f"{name}") and told in message and str(tmp_path) not in message


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("{folder}/0a/tom.json", True),
        ("{folder}/../tom.json", False),
        ("{folder}-other/tom.json", False),
        ("/etc/passwd", False),
        ("tom.json", False),
        ("http://example.com/tom.json", False),
        (["{folder}/tom.json"], False),
        (None, False),
    ],
)
def test_a_request_may_name_uploaded_files_only(path: object, passes: bool) -> None:
    app = FastAPI(dependencies=[Depends(upload_check())])
    app.add_api_route("/join", lambda: "passed", methods=["POST"])
    if isinstance(path, str):
        path = path.format(folder=get_upload_folder())
    hidden = {"data": ["text", [[{"a": {"path": path, "meta": {}}}]]]}
    answer = TestClient(app).post("/join", json=hidden)
    assert answer.status_code == (200 if passes else 400)
    # Whatever it is called, it is JSON to somebody.
    answer = TestClient(app).post("/join", content=json.dumps(hidden), headers={"content-type": "x/y"})
    assert answer.status_code == (200 if passes else 400)


def test_other_requests_pass() -> None:
    app = FastAPI(dependencies=[Depends(upload_check())])
    app.add_api_route("/join", lambda: "passed", methods=["POST", "GET"])
    client = TestClient(app)
    assert client.get("/join").status_code == 200
    assert client.post("/join", json={"data": ["/etc/passwd", 1, None]}).status_code == 200
    assert client.post("/join", content=b"[" * 100_000).status_code == 200
    assert client.post("/join", files={"path": b"x"}).status_code == 200
