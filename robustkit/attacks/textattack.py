"""TextAttack 0.3.11 on our classifiers, and our classifiers as TextAttack's model wrappers.

TextAttack is no dependency: its own dependency flair forbids transformers 5, so it is installed beside the
rest with ``pip install --no-deps -r requirements-textattack.txt``. Nothing imports this module by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging.config
import os
import re
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from robustkit.attacks.logs import AttackLog, AttackRecord, RunLog
from trainkit.hub import fingerprint
from trainkit.progress import Progress
from trainkit.seeding import derive_seed, preserved_rng, seed_everything

if TYPE_CHECKING:
    from robustkit.attacks.words.engine import Examples
    from robustkit.classifiers.text import TextClassifier

__all__ = ["STOP_WORDS", "as_model_wrapper", "as_record", "import_textattack", "run_attack"]

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
        cache_dir = os.environ.get("TA_CACHE_DIR") or os.path.expanduser("~/.cache/textattack")
        with tempfile.TemporaryDirectory() as folder, _environment(), _without_log_settings(), _flair():
            # By this mark TextAttack knows that nothing is left to download.
            Path(folder, "post_install_check_3").touch()
            os.environ["TA_CACHE_DIR"] = folder
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module("textattack")
        vars(sys.modules["textattack.shared.utils.install"])["TEXTATTACK_CACHE_DIR"] = cache_dir
    return sys.modules["textattack"]


def as_model_wrapper(classifier: TextClassifier) -> Any:
    """A classifier as a `textattack.models.wrappers.HuggingFaceModelWrapper`.

    It answers as TextAttack's own wrapper does, with two differences: batches are padded to their longest
    text instead of the model's maximal length, and the gradient that gradient attacks ask for is taken
    without dropout, so it is the same at every call.

    Args:
        classifier: The classifier.

    Returns:
        An object for TextAttack's goal functions, recipes and transformations.

    Raises:
        ImportError: TextAttack is not installed.
    """
    return _wrapper_class()(classifier)


def run_attack(
    attack: Any,
    classifier: TextClassifier,
    dataset: Examples,
    *,
    name: str | None = None,
    query_budget: int | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> AttackLog:
    """Attack a classifier with any TextAttack recipe or attack, one text after the other.

    Args:
        attack: A recipe (``textattack.attack_recipes.PWWSRen2019``), anything else that builds a
            ``textattack.Attack`` from a model wrapper, or such an attack, built on `as_model_wrapper` of this
            classifier.
        classifier: The classifier under attack.
        dataset: Pairs of text and true class, or rows with ``text`` and ``label``. A text may be a mapping
            from column names to texts.
        name: Name for the log; by default the recipe's.
        query_budget: Texts that the classifier may be shown for one example, the original included; None
            keeps the attack's own limit.
        path: CSV file that grows with each finished example. The same call again goes on where an interrupted
            one stopped.
        progress: Whether a terminal shows a bar with success rate and queries.
        seed: For attacks that draw at random; each example has its own, so an interruption changes nothing.

    Returns:
        One record for each example, in order.

    Raises:
        ImportError: TextAttack is not installed.
        TypeError: ``attack`` builds no attack, or an example is no text with a label.
        ValueError: The attack's goal is not about classes or it asks another model; an argument or a label is
            out of range; the file at ``path`` belongs to another run.
    """
    from robustkit.attacks.words.engine import Tally, read_examples

    textattack = import_textattack()
    if query_budget is not None and query_budget < 1:
        raise ValueError(f"query_budget is {query_budget}, expected at least 1")
    examples = read_examples(dataset, classifier.num_labels)
    built = attack
    if not isinstance(attack, textattack.Attack):
        built = getattr(attack, "build", attack)(as_model_wrapper(classifier))
    if not isinstance(built, textattack.Attack):
        raise TypeError(f"attack built a {type(built).__name__}, expected a textattack.Attack")
    goal = built.goal_function
    if not isinstance(goal, textattack.goal_functions.ClassificationGoalFunction):
        raise ValueError(f"the attack's goal is {type(goal).__name__}, expected one about classes")
    if getattr(goal.model, "classifier", None) is not classifier:
        raise ValueError("the attack asks another model; build it on as_model_wrapper(classifier)")
    if name is None:
        name = getattr(attack, "__name__", type(attack).__name__)
    settings = {
        # Custom parts may print their address in memory.
        "attack": re.sub(r" at 0x[0-9a-f]+", "", str(built)),
        "classifier": classifier.fingerprint,
        "data": fingerprint(*(part for text, label in examples for part in (repr(text), label)))[:16],
        "query_budget": query_budget,
        "seed": seed,
        "textattack": version("textattack"),
    }
    run = None if path is None else RunLog(path, name, classifier.name, settings)
    done = {} if run is None else run.done
    tally = Tally(done.values())
    with (
        Progress(len(examples), name, done=len(done), enabled=progress) as bar,
        preserved_rng(),
        _budget(goal, query_budget),
    ):
        for index, (text, label) in enumerate(examples):
            if index in done:
                continue
            seed_everything(derive_seed("textattack", seed, index))
            result = built.attack(text if isinstance(text, str) else OrderedDict(text), label)
            record = as_record(result)
            if run is None:
                done[index] = record
            else:
                run.append(index, record)
            bar.advance(note=tally.note(record))
    return AttackLog((done[index] for index in range(len(examples))), name, classifier.name, settings)


@contextmanager
def _budget(goal: Any, queries: int | None) -> Iterator[None]:
    """Another limit for the queries of a goal function, for a while."""
    before = goal.query_budget
    goal.query_budget = before if queries is None else queries
    try:
        yield
    finally:
        goal.query_budget = before


def as_record(result: Any) -> AttackRecord:
    """What TextAttack says of one attacked text as a record.

    Args:
        result: A `textattack.attack_results.AttackResult` of an attack on a classifier.

    Returns:
        The record. A search without a goal (``MaximizedAttackResult``) is judged by the predictions.
    """
    before, after = result.original_result, result.perturbed_result
    original, perturbed = _marked(before.attacked_text, after.attacked_text)
    kind = type(result).__name__.removesuffix("AttackResult")
    record = AttackRecord(
        original_text=original,
        perturbed_text=perturbed,
        original_score=float(before.score),
        perturbed_score=float(after.score),
        original_output=int(before.output),
        perturbed_output=int(after.output),
        ground_truth_output=int(before.ground_truth_output),
        num_queries=int(result.num_queries),
        result_type="Failed" if kind == "Maximized" else kind,  # type: ignore[arg-type]
    )
    return replace(record, result_type=record.outcome) if kind == "Maximized" else record


def _marked(original: Any, perturbed: Any) -> tuple[str, str]:
    """Both texts with marks; TextAttack's function first detects the language, which fails on some texts."""
    kept: dict[int, int] = {}  # the same word in both: its position in the original and in the perturbed text
    for before, after in enumerate(perturbed.attack_attrs["original_index_map"]):
        if after >= 0 and original.words[before] == perturbed.words[after]:
            kept[before] = int(after)

    def mark(text: Any, same: set[int]) -> str:
        changed = [index for index in range(text.num_words) if index not in same]
        text = text.replace_words_at_indices(changed, [f"[[{text.words[index]}]]" for index in changed])
        return str(text.printable_text(key_color=("bold", "underline"), key_color_method="file"))

    return mark(original, set(kept)), mark(perturbed, set(kept.values()))


@cache
def _wrapper_class() -> type:
    textattack = import_textattack()

    base = textattack.models.wrappers.HuggingFaceModelWrapper

    class ClassifierWrapper(base):  # type: ignore[misc,valid-type]
        """See `as_model_wrapper`."""

        def __init__(self, classifier: TextClassifier) -> None:
            super().__init__(classifier.model, classifier.tokenizer)
            self.classifier = classifier

        def __call__(self, text_input_list: Sequence[str | tuple[str, str]]) -> torch.Tensor:
            return torch.from_numpy(self.classifier.logits(text_input_list))

        def get_grad(self, text_input: str | tuple[str, str]) -> dict[str, Any]:
            """Token ids (1, tokens) and the loss of the predicted class by token embeddings (tokens, d)."""
            label = int(self.classifier.predict([text_input])[0])
            tokens, _, gradient = self.classifier.token_gradients([text_input], [label])[0]
            ids = self.tokenizer.convert_tokens_to_ids(list(tokens))
            return {"ids": torch.tensor([ids]), "gradient": gradient}

        def _tokenize(self, inputs: Sequence[str | tuple[str, str]]) -> list[list[str]]:
            encoded = self.tokenizer(list(inputs), truncation=True, max_length=self.classifier.max_length)
            return [self.tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]

    return ClassifierWrapper


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

    def missing(*_: object, **__: object) -> Any:
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
