"""The public data sets that the project trains and measures on.

The files lie outside the repository and are never part of it. `data_file` finds one by name; `DATA_SETS` says
which files make up which set, and each set that is used has a card under ``data_cards/``.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["DATA_SETS", "DataSet", "data_file", "data_folder", "read_jsonl"]


@dataclass(frozen=True)
class DataSet:
    """One public data set.

    Attributes:
        id: Short name; the card is ``data_cards/{id}.md``.
        files: Its files, relative to the data folder, with forward slashes.
    """

    id: str
    files: tuple[str, ...]


_SETS = (
    DataSet("dailydialog", ("dialogue/dailydialog.jsonl.gz",)),
    DataSet("dailydialog_pp", ("dialogue/dailydialog_pp.jsonl.gz",)),
    DataSet("topical_chat", ("dialogue/topical_chat.jsonl.gz",)),
    DataSet("empathetic_dialogues", ("dialogue/empathetic_dialogues.jsonl.gz",)),
    DataSet("shakespeare", ("dialogue/shakespeare.jsonl.gz",)),
    DataSet("personality_chat", ("dialogue/personality_chat.jsonl.gz",)),
    DataSet("fed", ("ratings/fed.json.gz",)),
    DataSet("sst2", tuple(f"text/sst2_{part}.jsonl.gz" for part in ("train", "dev", "test"))),
    DataSet("sentence_polarity", ("text/sentence_polarity.jsonl.gz",)),
    DataSet("movie_reviews", ("text/movie_reviews.jsonl.gz",)),
    DataSet("trec", ("text/trec_train.jsonl.gz", "text/trec_test.jsonl.gz")),
    DataSet("ag_news", ("text/ag_news_train.jsonl.gz", "text/ag_news_test.jsonl.gz")),
    DataSet(
        "attack_logs",
        (
            "attack_logs/bert-base-uncased-sst2_pwws.csv.gz",
            "attack_logs/bert-base-uncased-imdb_textfooler.csv.gz",
        ),
    ),
    DataSet("open_english_wordnet", ("lexicon/oewn_entries.json.gz", "lexicon/oewn_synsets.jsonl.gz")),
    DataSet("counterfitted_neighbors", ("lexicon/counterfitted_neighbors.json.gz",)),
    DataSet(
        "counterfitting_constraints",
        (
            "lexicon/ppdb_synonyms.txt.gz",
            "lexicon/ppdb_antonyms.txt.gz",
            "lexicon/wordnet_antonyms.txt.gz",
            "lexicon/SimLex-999.txt",
        ),
    ),
    DataSet("opinion_lexicon", ("lexicon/nltk/opinion_lexicon.zip",)),
    DataSet("vader_lexicon", ("lexicon/nltk/vader_lexicon.zip",)),
    DataSet("universal_tagset", ("lexicon/nltk/universal_tagset.zip",)),
    DataSet("mwa_ppdb", ("lexicon/nltk/mwa_ppdb.zip",)),
    DataSet("masc_tagged", ("lexicon/nltk/masc_tagged.zip",)),
    DataSet("averaged_perceptron_tagger", ("lexicon/averaged_perceptron_tagger.json.gz",)),
    DataSet("glove_twitter", ("lexicon/glove_twitter_25d_12k.txt.gz",)),
    DataSet("stopwords", ("lexicon/stopwords_en.txt",)),
    DataSet("gpt2_bpe", ("lexicon/gpt2_bpe/vocab.json", "lexicon/gpt2_bpe/merges.txt")),
    DataSet("mnist", ("image/mnist/t10k-images-idx3-ubyte.gz", "image/mnist/t10k-labels-idx1-ubyte.gz")),
    DataSet(
        "cifar10_jpeg",
        tuple(f"image/cifar10_jpeg/{part}.tar.xz" for part in ("test", "train_part0", "train_part1")),
    ),
    DataSet(
        "cifar10_resnet",
        (
            "weights/cifar10_resnet/resnet20-12fca82f.th",
            "weights/cifar10_resnet/resnet56-4bfd9763.th",
        ),
    ),
    DataSet(
        "mnist_lenet5",
        ("weights/mnist/mnist_lenet5_clntrained.pt", "weights/mnist/mnist_lenet5_advtrained.pt"),
    ),
    DataSet("mnist_trades", ("weights/mnist/trades_mnist_smallcnn.pt",)),
    DataSet(
        "tinystories260k",
        ("weights/tinystories260k/checkpoint_legacy.bin", "weights/tinystories260k/tokenizer.bin"),
    ),
)

DATA_SETS: Mapping[str, DataSet] = MappingProxyType({name: entry for entry in _SETS for name in entry.files})
"""The set that each file belongs to, by the file's name."""


def data_folder() -> Path:
    """The folder that holds the data: ``$KIT_DATA``, by default ``../shared/data`` beside the repository.

    Returns:
        The folder; whether it exists is not checked.
    """
    configured = os.environ.get("KIT_DATA")
    if configured:
        return Path(configured).expanduser()
    return Path(__file__).resolve().parents[2] / "shared" / "data"


def data_file(name: str) -> Path:
    """The path of a data file.

    Call it with a literal name: the test of the data cards finds the sets in use by reading the calls.

    Args:
        name: A key of `DATA_SETS`, such as ``"dialogue/topical_chat.jsonl.gz"``.

    Returns:
        The existing file.

    Raises:
        ValueError: No such name in `DATA_SETS`.
        FileNotFoundError: The file is not in the data folder; the message says how to name another folder.
    """
    if name not in DATA_SETS:
        near = get_close_matches(name, DATA_SETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known names: {', '.join(sorted(DATA_SETS))}"
        raise ValueError(f"no data set has a file {name!r}{hint}")
    path = data_folder() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"the data file {name!r} (set {DATA_SETS[name].id}) is missing from {data_folder()}; set the "
            "environment variable KIT_DATA to the folder that holds it"
        )
    return path


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines one at a time; memory stays bounded by the longest line.

    Args:
        path: A UTF-8 file with one JSON object a line, compressed with gzip if its name ends in ``.gz``.
            Empty lines are skipped.

    Yields:
        The objects.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not UTF-8, not JSON or not an object, or the compressed file is damaged; the
            message names file and line.
    """
    path = Path(path)
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as lines:
        try:
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, got {type(row).__name__}")
                yield row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged after line {number}: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
