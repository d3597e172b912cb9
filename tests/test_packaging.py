"""What a user gets by installing: quiet light imports, a complete wheel, pinned and declared dependencies."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dialogkit", "robustkit", "trainkit")
MAX_EMBEDDED_BYTES = 18_000_000


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(project: dict[str, Any], *, extras: bool) -> dict[str, Requirement]:
    lines = list(project["project"]["dependencies"])
    if extras:
        lines += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    parsed = (Requirement(line) for line in lines)
    own = canonicalize_name(project["project"]["name"])
    return {name: item for item in parsed if (name := canonicalize_name(item.name)) != own}


def run_python(code: str, *, path: Path = ROOT, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment, cwd=cwd or path
    )


# Importing.


def test_importing_the_packages_prints_nothing_and_loads_nothing_heavy() -> None:
    code = "import sys, dialogkit, robustkit, trainkit; sys.stdout.write(repr(sorted(sys.modules)))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    loaded = set(ast.literal_eval(result.stdout))
    assert set(PACKAGES) <= loaded
    heavy = {
        "torch",
        "transformers",
        "sentence_transformers",
        "faiss",
        "accelerate",
        "datasets",
        "numpy",
        "typer",
    }
    assert loaded & heavy == set()


def test_importing_the_cli_loads_no_model_library() -> None:
    result = run_python("import sys, dialogkit.cli; sys.stdout.write(repr(sorted(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert set(ast.literal_eval(result.stdout)) & {"torch", "transformers", "numpy", "faiss"} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_is_listed(package: str) -> None:
    code = (
        f"import json, {package} as p\n"
        "print(json.dumps([p.__all__, [n for n in p.__all__ if getattr(p, n) is None], dir(p)]))\n"
        "try:\n    p.no_such_name\nexcept AttributeError as error:\n    assert 'no_such_name' in str(error)\n"
        "else:\n    raise SystemExit('an unknown name was found')\n"
    )
    # Exported names may load third-party libraries, whose warnings are not ours: no -W error here.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    exported, missing, listed = json.loads(result.stdout)
    assert missing == []
    assert len(set(exported)) == len(exported)
    assert set(exported) <= set(listed)


# The wheel.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def package_files() -> set[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == package_files()
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside


def test_the_wheel_carries_licence_entry_point_and_version(
    wheel: zipfile.ZipFile, project: dict[str, Any]
) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert f"Version: {project['project']['version']}\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    info = metadata.removesuffix("/METADATA")
    assert "dialogkit = dialogkit.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")


def test_the_unpacked_wheel_works_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = "import sys, dialogkit.cli as cli; print(cli.__file__); sys.argv[1:] = ['--help']; cli.main()"
    result = run_python(code, path=tmp_path / "site", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(str(tmp_path))
    assert "characters" in result.stdout


def test_embedded_data_is_small_and_holds_no_pickle() -> None:
    files = [path for path in (ROOT / "dialogkit" / "embedded").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if "__pycache__" not in path.parts) <= MAX_EMBEDDED_BYTES
    assert [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npy"}] == []


# Dependencies.


def pins() -> dict[str, Version]:
    pattern = re.compile(r"([A-Za-z0-9._-]+)==([^\s;+]+)")
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = pattern.fullmatch(line)
            assert match is not None, f"not an exact pin: {line!r}"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


def test_constraints_pin_every_dependency_within_its_range(project: dict[str, Any]) -> None:
    pinned = pins()
    declared = requirements(project, extras=True)
    assert [name for name in declared if name not in pinned] == []
    assert [str(item) for name, item in declared.items() if pinned[name] not in item.specifier] == []


def third_party_imports() -> list[tuple[str, str, bool]]:
    """(file, distribution, whether importing the module itself runs it) for each third-party import."""
    distributions = packages_distributions()
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            # The library `evaluate` loads these files by path; the package never imports them.
            apart = "evaluate_modules" in path.parts
            lazy = {
                inner
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
                for inner in ast.walk(node)
            }
            for node in ast.walk(tree):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for top in {name.split(".")[0] for name in names}:
                    if top in sys.stdlib_module_names or top in PACKAGES:
                        continue
                    owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
                    runs = node not in lazy and not apart
                    found.extend((str(path.relative_to(ROOT)), owner, runs) for owner in owners)
    return found


def test_every_imported_library_is_declared_and_extras_are_imported_lazily(project: dict[str, Any]) -> None:
    core, every = requirements(project, extras=False), requirements(project, extras=True)
    imported = third_party_imports()
    # What an extra cannot say stands in a file of its own, and only word attacks may use it.
    apart = (ROOT / "requirements-textattack.txt").read_text(encoding="utf-8")
    beside = {canonicalize_name(name) for name in re.findall(r"^([\w-]+)==", apart, flags=re.M)}
    declared = [(file, owner) for file, owner, _ in imported if owner in every]
    declared += [
        (file, owner)
        for file, owner, _ in imported
        if file.startswith("robustkit/attacks/") and owner in beside
    ]
    assert [(file, owner) for file, owner, _ in imported if (file, owner) not in declared] == []
    assert [item for item in imported if item[2] and item[1] not in core] == []


def test_every_core_dependency_is_imported_somewhere(project: dict[str, Any]) -> None:
    imported = {distribution for _, distribution, _ in third_party_imports()}
    assert set(requirements(project, extras=False)) - imported == set()


# Documents that must agree.


def test_the_newest_change_log_entry_is_the_version(project: dict[str, Any]) -> None:
    headings = re.findall(
        r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M
    )
    released = [heading for heading in headings if heading.lower() != "unreleased"]
    assert released[0] == project["project"]["version"]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def test_the_makefile_has_the_promised_targets() -> None:
    assert {"demo", "test", "slow", "lint", "docs", "bench"} <= make_targets()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/index.md", "docs/quickstart.md"])
def test_every_make_command_in_the_documents_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|&& )make ([a-z]+)", text, flags=re.M))
    assert named, f"{document} names no make target"
    assert named <= make_targets()


def test_the_ci_script_runs_existing_targets() -> None:
    named = set(
        re.findall(r"^(?:step|make) ([a-z]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.M)
    )
    assert {"demo", "lint", "docs", "test"} <= named <= make_targets()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_benchmark_is_listed_in_their_readme() -> None:
    listed = set(re.findall(r"`(\w+\.py)`", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py")} == listed


def test_every_page_of_the_documentation_is_in_its_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r": (\S+\.md)$", navigation, flags=re.M)) == pages
