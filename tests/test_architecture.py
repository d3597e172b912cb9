"""The rooms' import rules, read from the syntax tree of every module of the three packages.

All imports count: those inside functions, those under ``TYPE_CHECKING``, ``importlib.import_module`` with a
literal name, and the dotted names that a lazy ``__init__`` lists as strings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms from the ground floor up. A room may import lower floors only; rooms on one floor are strangers.
HOUSE: dict[str, tuple[frozenset[str], ...]] = {
    "trainkit": (),
    "dialogkit": (
        frozenset({"dialogues"}),
        frozenset({"embedded"}),
        frozenset({"generation"}),
        frozenset({"chat"}),
        frozenset({"retrieval"}),
        frozenset({"pdp", "g2r", "exemplar", "diversity"}),
        frozenset({"bots"}),
        frozenset({"evaluation"}),
        frozenset({"serving"}),
        frozenset({"web"}),
        frozenset(
            {
                "demo",
                "cli_diversity",
                "cli_dress",
                "cli_character",
                "cli_g2r",
                "cli_evaluate",
                "cli_exemplar",
                "cli_serve",
            }
        ),
        frozenset({"cli"}),
    ),
    "robustkit": (
        frozenset({"classifiers"}),
        frozenset({"attacks"}),
        frozenset({"detection", "training", "interpret"}),
        frozenset({"evaluation"}),
        frozenset({"cli_explain", "cli_train"}),
        frozenset({"cli"}),
    ),
}
# The shared package has no floors: its modules form one room and may import each other.
OPEN_PLAN = frozenset({"trainkit"})
MAY_IMPORT = {
    "trainkit": frozenset[str](),
    "dialogkit": frozenset({"trainkit"}),
    "robustkit": frozenset({"trainkit"}),
}
PICKLING = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})


@dataclass(frozen=True)
class Import:
    """One imported dotted name, such as ``dialogkit.pdp.matching.StaticMatcher``, and where it is written."""

    source: Path
    line: int
    name: str


def modules(root: Path) -> Iterator[Path]:
    """Every Python file of the packages under ``root``, in a stable order."""
    for package in HOUSE:
        yield from sorted((root / package).rglob("*.py"))


def dotted(path: Path, root: Path) -> str:
    """The module name of a file: ``root/dialogkit/pdp/__init__.py`` is ``dialogkit.pdp``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file as absolute dotted names, one for each imported name."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = dotted(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(path, node.lineno, f"{base}.{alias.name}")
        elif isinstance(node, ast.Call) and _name(node.func).split(".")[-1] in {
            "import_module",
            "__import__",
        }:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    name = argument.value
                    yield Import(
                        path, node.lineno, ".".join(package) + name if name.startswith(".") else name
                    )
        elif path.name == "__init__.py" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] in HOUSE and all(part.isidentifier() for part in parts):
                yield Import(path, node.lineno, node.value)


def _name(node: ast.expr) -> str:
    """``torch.load`` for the attribute or name node that spells it, the empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}".lstrip(".")
    return ""


def _floor(package: str, room: str) -> int | None:
    return next((floor for floor, rooms in enumerate(HOUSE[package]) if room in rooms), None)


def import_violations(root: Path) -> list[str]:
    """Every import under ``root`` that goes up, sideways or across packages, as ``file:line: reason``."""
    found = []
    for path in modules(root):
        own = dotted(path, root).split(".")
        package, room = own[0], own[1] if len(own) > 1 else None
        where = path.relative_to(root)
        if room is not None and package not in OPEN_PLAN and _floor(package, room) is None:
            found.append(f"{where}:1: room {room!r} has no floor in {package}; give it one in HOUSE")
            continue
        for item in imports(path, root):
            target = item.name.split(".")
            if target[0] not in HOUSE:
                continue
            reason = None
            if target[0] != package:
                if target[0] not in MAY_IMPORT[package]:
                    reason = f"{package} must not import {target[0]}"
            elif room is None or package in OPEN_PLAN:
                continue  # the face of a package shows every room, and an open plan has no walls
            elif len(target) == 1 or (_floor(package, target[1]) is None and target[1] != room):
                reason = f"import the room that defines {item.name}, not the package's face"
            elif target[1] != room:
                here, there = _floor(package, room), _floor(package, target[1])
                assert here is not None and there is not None
                if there > here:
                    reason = f"{room} must not import the higher room {target[1]}"
                elif there == here:
                    reason = f"{room} and {target[1]} must not import each other"
            if reason is not None:
                found.append(f"{where}:{item.line}: {reason}")
    return found


def forbidden_calls(root: Path) -> list[str]:
    """Every use of pickle, of remote code, or of an unrestricted ``torch.load``, as ``file:line: reason``."""
    found = []
    for path in modules(root):
        where = path.relative_to(root)
        for item in imports(path, root):
            if item.name.split(".")[0] in PICKLING:
                found.append(f"{where}:{item.line}: imports {item.name.split('.')[0]}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            for flag in ("trust_remote_code", "allow_pickle"):
                value = keywords.get(flag)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{where}:{node.lineno}: sets {flag}")
            if _name(node.func) == "torch.load":
                value = keywords.get("weights_only")
                if not (isinstance(value, ast.Constant) and value.value is True):
                    found.append(f"{where}:{node.lineno}: torch.load without weights_only=True")
    return found


def face_violations(path: Path) -> list[str]:
    """Every statement of a package's ``__init__`` beyond docstring, ``__all__`` and lazy exports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else ["no docstring"]
    assigned = set()
    for node in tree.body[1:]:
        match node:
            case ast.Import() | ast.ImportFrom():
                names = [alias.name for alias in node.names]
                module = node.module if isinstance(node, ast.ImportFrom) else names[0]
                if (module or "").split(".")[0] in {"torch", "transformers", "numpy", *HOUSE}:
                    found.append(f"line {node.lineno}: imports {module} eagerly")
            case ast.If(test=test) if _name(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                pass
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                assigned.update(_name(target) for target in targets)
            case ast.FunctionDef(name="__getattr__" | "__dir__"):
                pass
            case _:
                found.append(f"line {node.lineno}: {type(node).__name__} does not belong in a package's face")
    if "__all__" not in assigned:
        found.append("no __all__")
    found += [f"defines {name}" for name in assigned if not name.startswith("_")]
    return found


def test_no_room_imports_a_higher_room_a_neighbour_or_another_package() -> None:
    assert import_violations(ROOT) == []


def test_no_pickle_no_remote_code_no_unrestricted_torch_load() -> None:
    assert forbidden_calls(ROOT) == []


@pytest.mark.parametrize("package", sorted(HOUSE))
def test_a_packages_init_holds_a_docstring_all_and_lazy_exports_only(package: str) -> None:
    assert face_violations(ROOT / package / "__init__.py") == []


def test_the_checks_see_every_module() -> None:
    seen = {dotted(path, ROOT) for path in modules(ROOT)}
    assert {"dialogkit", "robustkit", "trainkit", "dialogkit.cli"} <= seen


# The checker itself, on small synthetic houses.


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for package in HOUSE:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""Face."""\n__all__: list[str] = []\n')
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("trainkit/loop.py", "import dialogkit.chat", "trainkit must not import dialogkit"),
        ("trainkit/loop.py", "from robustkit import classifiers", "trainkit must not import robustkit"),
        ("dialogkit/chat.py", "import robustkit", "dialogkit must not import robustkit"),
        (
            "robustkit/classifiers.py",
            "from dialogkit.chat import Reply",
            "robustkit must not import dialogkit",
        ),
        (
            "dialogkit/chat.py",
            "from dialogkit.pdp import Character",
            "chat must not import the higher room pdp",
        ),
        ("dialogkit/chat.py", "from dialogkit import pdp", "chat must not import the higher room pdp"),
        ("dialogkit/chat.py", "from . import cli", "chat must not import the higher room cli"),
        ("dialogkit/chat.py", "from .pdp.prompts import X", "chat must not import the higher room pdp"),
        (
            "dialogkit/chat.py",
            "def f():\n    import dialogkit.cli",
            "chat must not import the higher room cli",
        ),
        (
            "dialogkit/chat.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dialogkit.pdp import X",
            "chat must not import the higher room pdp",
        ),
        (
            "dialogkit/chat.py",
            "import importlib\nimportlib.import_module('dialogkit.pdp')",
            "chat must not import the higher room pdp",
        ),
        (
            "dialogkit/pdp/bot.py",
            "from dialogkit.g2r.loss import f",
            "pdp and g2r must not import each other",
        ),
        ("dialogkit/pdp/bot.py", "from ..exemplar import x", "pdp and exemplar must not import each other"),
        (
            "dialogkit/pdp/__init__.py",
            "_LAZY = {'X': 'dialogkit.g2r'}",
            "pdp and g2r must not import each other",
        ),
        ("dialogkit/pdp/bot.py", "from dialogkit import PDPChatbot", "not the package's face"),
        ("dialogkit/attic.py", "", "room 'attic' has no floor"),
        ("robustkit/attacks/pixel.py", "from robustkit.training import x", "the higher room training"),
        ("robustkit/training/pgd.py", "import robustkit.detection", "must not import each other"),
    ],
)
def test_the_checker_catches_an_import_violation(house: Path, name: str, text: str, reason: str) -> None:
    write(house, name, text)
    found = import_violations(house)
    assert len(found) == 1 and found[0].startswith(name) and reason in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dialogkit/cli.py", "import dialogkit.pdp, trainkit.hub\nfrom dialogkit import demo"),
        (
            "dialogkit/pdp/bot.py",
            "from .matching import M\nfrom dialogkit.pdp.prompts import P\nfrom ..chat import Reply",
        ),
        (
            "trainkit/loop.py",
            "from trainkit.hub import write_json\nfrom .cards import ModelCard\nimport torch",
        ),
        ("robustkit/training/pgd.py", "from robustkit.attacks import pixel\nfrom trainkit.loop import fit"),
        ("dialogkit/__init__.py", '"""Face."""\n__all__ = ["X"]\n_LAZY = {"X": "dialogkit.cli"}'),
    ],
)
def test_the_checker_accepts_an_import_downwards(house: Path, name: str, text: str) -> None:
    write(house, name, text)
    assert import_violations(house) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import pickle", "imports pickle"),
        ("def f():\n    from joblib import dump", "imports joblib"),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", "sets trust_remote_code"),
        ("load('x', trust_remote_code=flag)", "sets trust_remote_code"),
        ("np.load('x', allow_pickle=True)", "sets allow_pickle"),
        ("torch.load('x')", "torch.load without weights_only=True"),
        ("torch.load('x', weights_only=False)", "torch.load without weights_only=True"),
    ],
)
def test_the_checker_catches_a_forbidden_call(house: Path, text: str, reason: str) -> None:
    write(house, "trainkit/loop.py", text)
    assert forbidden_calls(house) == [f"trainkit/loop.py:{text.count(chr(10)) + 1}: {reason}"]


def test_the_checker_accepts_a_restricted_torch_load(house: Path) -> None:
    write(house, "trainkit/loop.py", "torch.load('x', weights_only=True)\nload('x', trust_remote_code=False)")
    assert forbidden_calls(house) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__all__ = []", "no docstring"),
        ('"""Face."""', "no __all__"),
        ('"""Face."""\n__all__ = []\nimport torch', "line 3: imports torch eagerly"),
        (
            '"""Face."""\n__all__ = []\nfrom dialogkit.chat import Reply',
            "line 3: imports dialogkit.chat eagerly",
        ),
        ('"""Face."""\n__all__ = []\nprint("hello")', "line 3: Expr does not belong in a package's face"),
        (
            '"""Face."""\n__all__ = []\ndef helper(): ...',
            "line 3: FunctionDef does not belong in a package's face",
        ),
        ('"""Face."""\n__all__ = []\nlimit = 3', "defines limit"),
    ],
)
def test_the_checker_catches_a_crowded_face(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "__init__.py"
    path.write_text(text)
    assert reason in face_violations(path)
