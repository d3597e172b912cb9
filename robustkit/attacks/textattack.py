"""TextAttack 0.3.11 on our classifiers, and our classifiers as TextAttack's model wrappers.

TextAttack is no dependency: its own dependency flair forbids transformers 5, so it is installed beside the
rest with ``pip install --no-deps -r requirements-textattack.txt``. Nothing imports this module by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging.config
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["STOP_WORDS", "import_textattack"]

_WORDS = """
a about above after again against all am an and any are as at be because been before being below between
both but by can could did do does doing down during each few for from further had has have having he her
here hers herself him himself his how i if in into is it its itself just me might more most must my myself
no nor not now of off on once only or other our ours ourselves out over own same shall she should so some
such than that the their theirs them themselves then there these they this those through to too under until
up upon us very was we were what when where which while who whom whose why will with would you your yours
yourself yourselves
"""
STOP_WORDS = tuple(_WORDS.split())
"""English function words that stand in for NLTK's list where that is not installed. The choice is ours."""

_INSTALL = (
    "TextAttack is not installed. It is no extra because its dependency flair forbids transformers 5; run\n"
    "    pip install --no-deps -r requirements-textattack.txt\n"
    "with the requirements-textattack.txt at the root of this project's repository"
)
_folder: tempfile.TemporaryDirectory[str] | None = None  # holds the stop words while the process lives


def import_textattack(stopwords: Iterable[str] | None = None) -> ModuleType:
    """Import TextAttack beside transformers 5, without a download and without its side effects.

    A bare ``import textattack`` fails here: it imports flair, downloads NLTK data, and builds a constraint
    from NLTK's stop words. This gives it placeholders for flair while it imports (its two parts that need
    flair then raise `ModuleNotFoundError` when they are used) and a list of stop words, and undoes what the
    import changes elsewhere: environment variables (``HF_HOME``, ``TOKENIZERS_PARALLELISM`` and others),
    disabled loggers, log level. TextAttack's cache stays ``$TA_CACHE_DIR`` or ``~/.cache/textattack``.

    Args:
        stopwords: What NLTK, and so TextAttack, takes as English stop words from now on in this process. None
            means NLTK's own list if it is installed, else `STOP_WORDS`.

    Returns:
        The module ``textattack``. The first call takes about 5 seconds, later ones nothing.

    Raises:
        ImportError: TextAttack is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("textattack") is None or importlib.util.find_spec("nltk") is None:
        raise ImportError(_INSTALL, name="textattack")
    if isinstance(stopwords, str):
        raise TypeError("stopwords is one string; expected an iterable of words")
    _provide_stop_words(stopwords)
    if "textattack" not in sys.modules:
        # These read HF_HOME when they are imported, which must not happen while TextAttack changes it.
        for name in ("huggingface_hub", "datasets", "transformers"):
            importlib.import_module(name)
        cache = os.environ.get("TA_CACHE_DIR") or os.path.expanduser("~/.cache/textattack")
        with tempfile.TemporaryDirectory() as folder, _environment(), _without_log_settings(), _flair():
            Path(
                folder, "post_install_check_3"
            ).touch()  # by this mark TextAttack knows that all is downloaded
            os.environ["TA_CACHE_DIR"] = folder
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module("textattack")
        sys.modules["textattack.shared.utils.install"].TEXTATTACK_CACHE_DIR = cache  # type: ignore[attr-defined]
    return sys.modules["textattack"]


def _provide_stop_words(words: Iterable[str] | None) -> None:
    """Make ``nltk.corpus.stopwords`` give the words; leave it if they are None and NLTK has its list."""
    global _folder
    import nltk.corpus
    from nltk.corpus.reader import WordListCorpusReader

    if words is None:
        try:
            nltk.corpus.stopwords.words("english")
            return
        except LookupError:
            words = STOP_WORDS
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="robustkit-")
        nltk.data.path.append(_folder.name)  # NLTK reads no corpus outside the folders it knows
    Path(_folder.name, "english").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    nltk.corpus.stopwords = WordListCorpusReader(_folder.name, ["english"])


@contextmanager
def _environment() -> Iterator[None]:
    """Undo every change of an environment variable."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _without_log_settings() -> Iterator[None]:
    """Ignore `logging.config.dictConfig`, with which TextAttack's import disables every logger there is."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


@contextmanager
def _flair() -> Iterator[None]:
    """Placeholders for the names that TextAttack imports from flair, gone again afterwards."""

    def missing(*_: object) -> Any:
        raise ModuleNotFoundError(
            "flair is not installed: it does not work with transformers 5", name="flair"
        )

    tokens = {"Sentence": type("Sentence", (), {"__init__": missing}), "Tokenizer": type("Tokenizer", (), {})}
    tagger = {"SequenceTagger": type("SequenceTagger", (), {"load": staticmethod(missing)})}
    placeholders = {name: ModuleType(name) for name in ("flair", "flair.data", "flair.models")}
    vars(placeholders["flair.data"]).update(tokens)
    vars(placeholders["flair.models"]).update(tagger)
    vars(placeholders["flair"]).update(
        data=placeholders["flair.data"], models=placeholders["flair.models"], device=None
    )
    real = {name: sys.modules[name] for name in placeholders if name in sys.modules}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            del sys.modules[name]
        sys.modules.update(real)
