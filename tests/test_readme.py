"""The documents' code does what it says.

The Python samples of the README and the quick start run; those of the other documents, which may leave out
what a reader has (a model, data), compile and import names that exist. Commands exist,
with their options, and links lead somewhere.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dialogkit.cli import app as dialogkit_app
from robustkit.cli import app as robustkit_app

APPS = {"dialogkit": dialogkit_app, "robustkit": robustkit_app}
GROUPS = {("robustkit", "detect")} | {
    ("dialogkit", name) for name in ("character", "diversity", "dress", "exemplar", "g2r", "index")
}
ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
RUN = ("README.md", "docs/quickstart.md")
# A sample says so in its first line when a test without network cannot run it.
OUTSIDE = ("# needs a download", "# needs a server")


def blocks(language: str) -> list[tuple[str, str]]:
    """(place, text) of every fenced block of a language in the documents."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{document.relative_to(ROOT)}:{line}", match[1]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(place, words) of every call of our commands in the shell samples, the program's name first."""
    return [
        (place, shlex.split(call.strip().removeprefix(".venv/bin/"), comments=True))
        for place, text in blocks("bash")
        for line in text.replace("\\\n", " ").splitlines()
        for call in line.split("|")
        if re.match(r"\s*(\.venv/bin/)?(dialogkit|robustkit) ", call)
    ]


PYTHON = blocks("python")
RUNNABLE = [(place, code) for place, code in PYTHON if place.split(":")[0] in RUN]


@pytest.mark.parametrize(("place", "code"), RUNNABLE, ids=[place for place, _ in RUNNABLE])
def test_every_sample_of_readme_and_quick_start_runs(place: str, code: str, tmp_path: Path) -> None:
    if code.startswith(OUTSIDE):
        pytest.skip(code.splitlines()[0].removeprefix("# "))
    # A process of its own, as a reader would run it, in a folder that may be written to.
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert result.returncode == 0, f"{place}\n{result.stdout}{result.stderr}"
    if "print(" in code:
        assert result.stdout.strip()


@pytest.mark.parametrize(("place", "code"), PYTHON, ids=[place for place, _ in PYTHON])
def test_every_sample_compiles_and_imports_names_that_exist(place: str, code: str) -> None:
    tree = ast.parse(code, filename=place)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{place}: {node.module} has no {missing}"


def test_the_samples_are_found() -> None:
    documents = {place.split(":")[0] for place, _ in PYTHON}
    assert {"README.md", "docs/quickstart.md"} <= documents
    called = {tuple(words[:2]) for _, words in commands()}
    assert {("dialogkit", name) for name in ("chat", "characters", "match", "demo")} <= called
    assert {("robustkit", name) for name in ("attack", "detect", "evaluate")} <= called


COMMANDS = commands()


@pytest.mark.parametrize(
    ("place", "words"), COMMANDS, ids=[f"{place} {' '.join(words)}" for place, words in COMMANDS]
)
def test_every_command_in_the_documents_parses(place: str, words: list[str]) -> None:
    # Everything is parsed before --help, which is put last, shows its text: an unknown option is an error.
    depth = 3 if tuple(words[:2]) in GROUPS else 2
    asked = [*words[1:depth], "--help"]
    known = CliRunner().invoke(APPS[words[0]], asked, env={"COLUMNS": "300", "TERM": "dumb"})
    assert known.exit_code == 0, f"{place}: there is no command {words[:depth]}"
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", known.output))
    assert {word for word in words[depth:] if word.startswith("-")} <= options


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []
