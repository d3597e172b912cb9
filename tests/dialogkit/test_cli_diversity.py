"""``dialogkit diversity`` from files of responses to figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialogkit.cli import app
from dialogkit.diversity import SemanticClusters, SemEnt, distinct_n, load_encoder

pytest.importorskip("faiss", reason="FAISS is not installed")
pytest.importorskip("nltk", reason="NLTK is not installed")

TRAIN = [
    f"{start} {end}" for start in ("i like", "where is", "thanks for") for end in ("it", "tea", "you", "rain")
]
DIVERSE = ["i like you", "where is it", "thanks for rain", ""]
BLAND = ["i like it", "i like it", "i like tea", "i like it"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diversity")
    (root / "train.txt").write_text("".join(f"{text}\n" for text in TRAIN))
    (root / "diverse.txt").write_text("\n".join(DIVERSE) + "\n")
    (root / "bland.jsonl").write_text("".join(f'{{"context": ["so"], "response": "{t}"}}\n' for t in BLAND))
    done = run("diversity", "fit", root / "train.txt", "-o", root / "clusters", "-e", "embedded", "-k", 3)
    assert done.exit_code == 0, done.output
    assert "3 clusters of 12 responses" in done.output and "thanks for" in done.output
    return root


def test_fit_saves_what_the_class_fits(folder: Path) -> None:
    saved = SemanticClusters.from_pretrained(folder / "clusters")
    assert saved.fingerprint == SemanticClusters.fit(TRAIN, load_encoder("embedded"), k=3).fingerprint
    assert saved.encoder_name == "embedded"


def test_score(folder: Path) -> None:
    clusters = SemanticClusters.from_pretrained(folder / "clusters").attach(load_encoder("embedded"))
    arguments = ("diversity", "score", folder / "clusters", folder / "diverse.txt")
    result = run(*arguments, "--references", folder / "bland.jsonl", "--json")
    assert result.exit_code == 0, result.output
    found, expected = json.loads(result.output), SemEnt(clusters).compute(DIVERSE, BLAND)
    assert found["sem_ent"] == pytest.approx(expected.sem_ent)
    assert found["mauve"] == pytest.approx(expected.mauve)
    assert found["n"] == 4  # an empty line is an empty response
    assert found["dist-2"] == pytest.approx(distinct_n(DIVERSE, 2))
    shown = run(*arguments, "--encoder", "embedded").output
    assert f"{expected.sem_ent:.3f}" in shown and "for example" in shown and "MAUVE" not in shown


def test_compare_ranks_systems(folder: Path) -> None:
    files = (folder / "bland.jsonl", folder / "diverse.txt")
    shown = run("diversity", "compare", folder / "clusters", *files, "--references", files[0]).output
    assert shown.index("diverse.txt") < shown.index("bland.jsonl")
    assert "(references)" in shown
    found = json.loads(run("diversity", "compare", folder / "clusters", *files, "--json").output)
    assert list(found) == ["diverse.txt", "bland.jsonl"]
    assert found["diverse.txt"]["sem_ent"] > found["bland.jsonl"]["sem_ent"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score CLUSTERS nowhere.txt", "nowhere.txt"),
        ("score CLUSTERS empty.txt", "holds no responses"),
        ("score CLUSTERS latin.txt", "latin.txt is not UTF-8"),
        ("score CLUSTERS bad.jsonl", 'row 1 has no "response"'),
        ("score CLUSTERS diverse.txt -e lm:embedded", "fitted with another encoder"),
        ("compare CLUSTERS diverse.txt train.txt", "the same contexts"),
        ("fit diverse.txt -o out -e embedded -k 20", "k=20 clusters need at least 20 responses, got 4"),
    ],
)
def test_errors_are_one_line(
    folder: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n')
    (folder / "latin.txt").write_bytes("café\n".encode("latin-1"))
    monkeypatch.chdir(folder)
    result = run("diversity", *command.replace("CLUSTERS", "clusters").split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()
