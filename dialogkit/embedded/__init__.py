"""Paths of the models, characters and contexts that ship with the package.

Nothing is loaded here: the functions return where a file or folder lies, or say what is missing.
"""

from pathlib import Path

__all__ = [
    "biencoder_path",
    "character_names",
    "character_path",
    "contexts_path",
    "index_paths",
    "lm_path",
]

_ROOT = Path(__file__).resolve().parent


def lm_path() -> Path:
    """Returns the folder of the small language model (transformers).

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    return _existing(_ROOT / "lm", "config.json")


def biencoder_path() -> Path:
    """Returns the folder of the small bi-encoder (sentence-transformers).

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    return _existing(_ROOT / "biencoder", "modules.json")


def contexts_path() -> Path:
    """Returns the pool of contexts: UTF-8 text, one context a line.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    return _existing(_ROOT / "contexts.txt")


def index_paths() -> list[Path]:
    """Returns the folders with ready embeddings of the pool, one for each encoder; may be empty."""
    return sorted(path.parent for path in (_ROOT / "indexes").glob("*/index.json"))


def character_names() -> list[str]:
    """Returns the names that :func:`character_path` knows, sorted; empty when the characters are missing."""
    return sorted(path.stem for path in (_ROOT / "characters").glob("*.json"))


def character_path(name: str) -> Path:
    """Returns the JSON file of a character.

    Args:
        name: One of :func:`character_names`.

    Raises:
        ValueError: There is no such character; the message lists the names.
    """
    names = character_names()
    if name not in names:
        raise ValueError(f"no embedded character is called {name!r}; there are {', '.join(names) or 'none'}")
    return _ROOT / "characters" / f"{name}.json"


def _existing(path: Path, marker: str | None = None) -> Path:
    wanted = path / marker if marker else path
    if not wanted.is_file():
        raise FileNotFoundError(
            f"{wanted} is missing from this installation of dialogkit; reinstall the package, "
            "or build the embedded models with scripts/train_embedded.py"
        )
    return path
