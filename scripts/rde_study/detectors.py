"""Which detectors the study measures, and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustkit.detection import (
    ADDMUDetector,
    FGWSDetector,
    GradMaskDetector,
    KNNDetector,
    LIDDetector,
    MahalanobisDetector,
    MLEDetector,
    MSPDetector,
    PerplexityDetector,
    RDEDetector,
    ReplacedWordsDetector,
    SharpnessDetector,
    SuspectWordsDetector,
    WDRDetector,
    WordReader,
    typos,
)
from robustkit.detection.replaced_edits import Source
from trainkit.datafiles import data_file

from .attacks import Lexicon
from .spelling import SpellingDetector
from .substitution import SubstitutionDetector

if TYPE_CHECKING:
    from robustkit.classifiers import TextClassifier
    from robustkit.detection import Detector

__all__ = ["Entry", "entries", "kinds_of_edit"]


@dataclass(frozen=True)
class Entry:
    """A detector of the study.

    Attributes:
        name: What tables call it.
        make: Makes it from a seed.
        seeds: Whether it depends on the seed; one that does and is cheap is fitted once for each.
    """

    name: str
    make: Callable[[int], Detector]
    seeds: bool = False


def kinds_of_edit(lexicon: Lexicon) -> list[Source]:
    """Words that the study's own detectors put into clean texts: synonyms, neighbours, typos."""
    from robustkit.attacks.words import NeighbourSwap, WordNetSwap

    return [WordNetSwap(lexicon.wordnet), NeighbourSwap(lexicon.neighbours), typos]


def entries(classifier: TextClassifier, lexicon: Lexicon, reader: Path) -> list[Entry]:
    """All detectors for one victim; ``reader`` is the folder of its data set's `train_reader`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dialogkit.embedded import lm_path
    from robustkit.attacks.words import WordVectors

    glove = WordVectors.from_file(data_file("lexicon/glove_twitter_25d_12k.txt.gz")).neighbours(10)
    lm = AutoModelForCausalLM.from_pretrained(lm_path()).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(lm_path())
    kinds = kinds_of_edit(lexicon)
    word_reader = WordReader.from_pretrained(reader)
    return [
        Entry("max-softmax", lambda seed: MSPDetector()),
        Entry("energy", lambda seed: MSPDetector("energy")),
        Entry("MLE", lambda seed: MLEDetector()),
        Entry("RDE(-MCD)", lambda seed: RDEDetector(covariance="empirical", random_state=seed), True),
        Entry("RDE", lambda seed: RDEDetector(random_state=seed), True),
        Entry("Mahalanobis", lambda seed: MahalanobisDetector()),
        Entry("kNN", lambda seed: KNNDetector()),
        Entry("LID", lambda seed: LIDDetector()),
        Entry("perplexity", lambda seed: PerplexityDetector(lm, tokenizer)),
        Entry("FGWS", lambda seed: FGWSDetector(classifier, lexicon.wordnet, glove)),
        Entry("edit probe", lambda seed: SubstitutionDetector(classifier, kinds, lexicon.stopwords)),
        Entry(
            "edit probe (WordNet)",
            lambda seed: SubstitutionDetector(classifier, kinds[:1], lexicon.stopwords),
        ),
        # As much of a text as the victim sees.
        Entry("replaced words", lambda seed: ReplacedWordsDetector(word_reader, truncate=True)),
        Entry("suspect words", lambda seed: SuspectWordsDetector(classifier, word_reader, truncate=True)),
        Entry("spelling", lambda seed: SpellingDetector()),
        Entry("GradMask", lambda seed: GradMaskDetector(classifier)),
        Entry("sharpness", lambda seed: SharpnessDetector(classifier)),
        Entry("WDR", lambda seed: WDRDetector(classifier)),
        # A tenth of the published number of passes: 20 a text, and a reference of 200 texts.
        Entry(
            "ADDMU",
            lambda seed: ADDMUDetector(classifier, copies=10, dropout_copies=2, passes=5, max_samples=200),
        ),
    ]
