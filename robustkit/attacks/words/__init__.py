"""Word attacks: named parts that are composed to recipes, and an engine that attacks many texts at once.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.words.asking import Ask as Ask
    from robustkit.attacks.words.asking import Service as Service
    from robustkit.attacks.words.asking import Steps as Steps
    from robustkit.attacks.words.asking import run as run
    from robustkit.attacks.words.constraints import Constraint as Constraint
    from robustkit.attacks.words.constraints import GrammarErrors as GrammarErrors
    from robustkit.attacks.words.constraints import IndexConstraint as IndexConstraint
    from robustkit.attacks.words.constraints import InputColumnModification as InputColumnModification
    from robustkit.attacks.words.constraints import LevenshteinDistance as LevenshteinDistance
    from robustkit.attacks.words.constraints import MaxModificationRate as MaxModificationRate
    from robustkit.attacks.words.constraints import MinWordLength as MinWordLength
    from robustkit.attacks.words.constraints import PartOfSpeech as PartOfSpeech
    from robustkit.attacks.words.constraints import RepeatModification as RepeatModification
    from robustkit.attacks.words.constraints import SentenceSimilarity as SentenceSimilarity
    from robustkit.attacks.words.constraints import StopwordModification as StopwordModification
    from robustkit.attacks.words.constraints import WordEmbeddingDistance as WordEmbeddingDistance
    from robustkit.attacks.words.constraints import modifiable_indices as modifiable_indices
    from robustkit.attacks.words.engine import Examples as Examples
    from robustkit.attacks.words.engine import WordAttack as WordAttack
    from robustkit.attacks.words.goals import Goal as Goal
    from robustkit.attacks.words.goals import TargetedClassification as TargetedClassification
    from robustkit.attacks.words.goals import UntargetedClassification as UntargetedClassification
    from robustkit.attacks.words.recipes import a2t as a2t
    from robustkit.attacks.words.recipes import bae as bae
    from robustkit.attacks.words.recipes import deepwordbug as deepwordbug
    from robustkit.attacks.words.recipes import pwws as pwws
    from robustkit.attacks.words.recipes import textfooler as textfooler
    from robustkit.attacks.words.recipes import textfooler_adjusted as textfooler_adjusted
    from robustkit.attacks.words.resources import MaskedLanguageModel as MaskedLanguageModel
    from robustkit.attacks.words.resources import MaskQuery as MaskQuery
    from robustkit.attacks.words.resources import Neighbours as Neighbours
    from robustkit.attacks.words.resources import SentenceEncoder as SentenceEncoder
    from robustkit.attacks.words.resources import Tagger as Tagger
    from robustkit.attacks.words.resources import WordNet as WordNet
    from robustkit.attacks.words.resources import WordVectors as WordVectors
    from robustkit.attacks.words.resources import read_stopwords as read_stopwords
    from robustkit.attacks.words.resources import universal_tag as universal_tag
    from robustkit.attacks.words.search import BeamSearch as BeamSearch
    from robustkit.attacks.words.search import GreedyWordSwap as GreedyWordSwap
    from robustkit.attacks.words.search import Result as Result
    from robustkit.attacks.words.search import Search as Search
    from robustkit.attacks.words.search import Trial as Trial
    from robustkit.attacks.words.text import WordText as WordText
    from robustkit.attacks.words.text import split_words as split_words
    from robustkit.attacks.words.transformations import CharacterDeletion as CharacterDeletion
    from robustkit.attacks.words.transformations import CharacterInsertion as CharacterInsertion
    from robustkit.attacks.words.transformations import CharacterSubstitution as CharacterSubstitution
    from robustkit.attacks.words.transformations import Composite as Composite
    from robustkit.attacks.words.transformations import Draws as Draws
    from robustkit.attacks.words.transformations import MaskedLMSwap as MaskedLMSwap
    from robustkit.attacks.words.transformations import NeighbouringCharacterSwap as NeighbouringCharacterSwap
    from robustkit.attacks.words.transformations import NeighbourSwap as NeighbourSwap
    from robustkit.attacks.words.transformations import Transformation as Transformation
    from robustkit.attacks.words.transformations import WordNetSwap as WordNetSwap
    from robustkit.attacks.words.transformations import WordSwap as WordSwap

_HOME = {
    "Ask": "asking",
    "BeamSearch": "search",
    "CharacterDeletion": "transformations",
    "CharacterInsertion": "transformations",
    "CharacterSubstitution": "transformations",
    "Composite": "transformations",
    "Constraint": "constraints",
    "Draws": "transformations",
    "Examples": "engine",
    "Goal": "goals",
    "GrammarErrors": "constraints",
    "GreedyWordSwap": "search",
    "IndexConstraint": "constraints",
    "InputColumnModification": "constraints",
    "LevenshteinDistance": "constraints",
    "MaskQuery": "resources",
    "MaskedLMSwap": "transformations",
    "MaskedLanguageModel": "resources",
    "MaxModificationRate": "constraints",
    "MinWordLength": "constraints",
    "NeighbourSwap": "transformations",
    "NeighbouringCharacterSwap": "transformations",
    "Neighbours": "resources",
    "PartOfSpeech": "constraints",
    "RepeatModification": "constraints",
    "Result": "search",
    "Search": "search",
    "SentenceEncoder": "resources",
    "SentenceSimilarity": "constraints",
    "Service": "asking",
    "Steps": "asking",
    "StopwordModification": "constraints",
    "Tagger": "resources",
    "TargetedClassification": "goals",
    "Transformation": "transformations",
    "Trial": "search",
    "UntargetedClassification": "goals",
    "WordAttack": "engine",
    "WordEmbeddingDistance": "constraints",
    "WordNet": "resources",
    "WordNetSwap": "transformations",
    "WordSwap": "transformations",
    "WordText": "text",
    "WordVectors": "resources",
    "a2t": "recipes",
    "bae": "recipes",
    "deepwordbug": "recipes",
    "modifiable_indices": "constraints",
    "pwws": "recipes",
    "read_stopwords": "resources",
    "run": "asking",
    "split_words": "text",
    "textfooler": "recipes",
    "textfooler_adjusted": "recipes",
    "universal_tag": "resources",
}

__all__ = [
    "Ask",
    "BeamSearch",
    "CharacterDeletion",
    "CharacterInsertion",
    "CharacterSubstitution",
    "Composite",
    "Constraint",
    "Draws",
    "Examples",
    "Goal",
    "GrammarErrors",
    "GreedyWordSwap",
    "IndexConstraint",
    "InputColumnModification",
    "LevenshteinDistance",
    "MaskQuery",
    "MaskedLMSwap",
    "MaskedLanguageModel",
    "MaxModificationRate",
    "MinWordLength",
    "NeighbourSwap",
    "NeighbouringCharacterSwap",
    "Neighbours",
    "PartOfSpeech",
    "RepeatModification",
    "Result",
    "Search",
    "SentenceEncoder",
    "SentenceSimilarity",
    "Service",
    "Steps",
    "StopwordModification",
    "Tagger",
    "TargetedClassification",
    "Transformation",
    "Trial",
    "UntargetedClassification",
    "WordAttack",
    "WordEmbeddingDistance",
    "WordNet",
    "WordNetSwap",
    "WordSwap",
    "WordText",
    "WordVectors",
    "a2t",
    "bae",
    "deepwordbug",
    "modifiable_indices",
    "pwws",
    "read_stopwords",
    "run",
    "split_words",
    "textfooler",
    "textfooler_adjusted",
    "universal_tag",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
