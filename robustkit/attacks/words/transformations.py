"""What an attack may write in place of a word: neighbours, synonyms, a language model's guesses, typos.

Each transformation lists the same candidates as TextAttack 0.3.11's transformation of the same purpose with
the same resources.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from robustkit.attacks.words.asking import Ask, Steps
from robustkit.attacks.words.resources import MaskedLanguageModel, MaskQuery, Neighbours, WordNet
from robustkit.attacks.words.text import WordText, split_words

__all__ = [
    "CharacterDeletion",
    "CharacterInsertion",
    "CharacterSubstitution",
    "Composite",
    "Draws",
    "MaskedLMSwap",
    "NeighbourSwap",
    "NeighbouringCharacterSwap",
    "Transformation",
    "WordNetSwap",
    "WordSwap",
]


class Draws:
    """The random numbers of the character swaps: as many generators as TextAttack draws from, seeded alike.

    Args:
        seed: Seed of both; the draws equal those of TextAttack after its ``set_seed(seed)``.
    """

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.RandomState(seed)
        self._letters = random.Random(seed)

    def below(self, end: int) -> int:
        """A whole number from 0 to ``end - 1``."""
        return int(self._numbers.randint(0, end))

    def letter(self) -> str:
        """One of the 52 letters a to z and A to Z."""
        return self._letters.choice(string.ascii_letters)


class Transformation(Protocol):
    """Lists what may be written in place of words."""

    @property
    def deterministic(self) -> bool:
        """Whether the same text always gets the same candidates."""
        ...

    def seeded(self, seed: int | Draws) -> Transformation:
        """This transformation for one attack, with random numbers of its own.

        Args:
            seed: Where the random numbers come from.

        Returns:
            A transformation; a deterministic one returns itself.
        """
        ...

    def candidates(self, text: WordText, indices: Sequence[int]) -> Steps[list[WordText]]:
        """List changed texts.

        Args:
            text: The text to change.
            indices: Words that may be changed, in the order in which they are tried.

        Returns:
            Texts with one of the words replaced, never by itself; may hold duplicates.
        """
        ...


class WordSwap:
    """A transformation that finds the replacements of a word from the word alone."""

    deterministic: bool = True

    def replacements(self, word: str) -> Sequence[str]:
        """What may be written in place of a word.

        Args:
            word: As it stands in the text.

        Returns:
            Replacements, best first where there is an order.
        """
        raise NotImplementedError

    def seeded(self, seed: int | Draws) -> WordSwap:
        """See `Transformation.seeded`."""
        return self

    def candidates(self, text: WordText, indices: Sequence[int]) -> Steps[list[WordText]]:
        """See `Transformation.candidates`."""
        yield from ()
        return [
            text.replaced(index, new)
            for index in indices
            for new in self.replacements(text.words[index])
            if new != text.words[index]
        ]


class NeighbourSwap(WordSwap):
    """Nearest neighbours in a space of word vectors, in the case of the word that they replace.

    Args:
        neighbours: Looked up in lower case.
        count: Most neighbours per word.

    Source: TextFooler (arXiv 1907.11932) with 50 neighbours, A2T (arXiv 2109.00544) with 20.
    """

    def __init__(self, neighbours: Neighbours, count: int = 50) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1")
        self.neighbours = neighbours
        self.count = count

    def replacements(self, word: str) -> list[str]:
        """See `WordSwap.replacements`."""
        return [_in_case_of(word, new) for new in self.neighbours.of(word.lower())[: self.count]]


def _in_case_of(word: str, new: str) -> str:
    if word.islower():
        return new.lower()
    if word.isupper() and len(word) > 1:
        return new.upper()
    if word[0].isupper() and word[1:].islower():
        return new.capitalize()
    return new


class WordNetSwap(WordSwap):
    """Synonyms in WordNet that are one word, in the case that WordNet writes them in.

    Args:
        wordnet: The lexicon.

    Source: PWWS (ACL 2019, P19-1103).
    """

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet

    def replacements(self, word: str) -> tuple[str, ...]:
        """See `WordSwap.replacements`."""
        return self.wordnet.synonyms(word)


class MaskedLMSwap:
    """What a masked language model expects in the word's place.

    Args:
        model: The language model.
        count: Most guesses per word.
        min_probability: Least probability of a guess.

    Source: BAE's replacement (arXiv 2004.01970) with 50 guesses of any probability; A2T's variant with 20.
    """

    deterministic = True

    def __init__(self, model: MaskedLanguageModel, count: int = 50, min_probability: float = 0.0) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1")
        self.model = model
        self.count = count
        self.min_probability = min_probability

    def seeded(self, seed: int | Draws) -> MaskedLMSwap:
        """See `Transformation.seeded`."""
        return self

    def candidates(self, text: WordText, indices: Sequence[int]) -> Steps[list[WordText]]:
        """See `Transformation.candidates`."""
        mask = self.model.mask_token
        masked = (text.replaced(index, mask).text for index in indices)
        queries = tuple(MaskQuery(context, self.count, self.min_probability) for context in masked)
        guesses = yield Ask(self.model, queries)
        return [
            text.replaced(index, new)
            for index, words in zip(indices, guesses, strict=True)
            for new in words
            if new != text.words[index] and re.search("[a-zA-Z]", new) and len(split_words(new)) == 1
        ]


class _CharacterSwap(WordSwap):
    """One random typo per word of two letters or more.

    Args:
        seed: Where the random numbers come from.

    Source: DeepWordBug (arXiv 1801.04354).
    """

    deterministic = False

    def __init__(self, seed: int | Draws = 0) -> None:
        self.draws = seed if isinstance(seed, Draws) else Draws(seed)

    def seeded(self: Swap, seed: int | Draws) -> Swap:
        """See `Transformation.seeded`."""
        return type(self)(seed)

    def replacements(self, word: str) -> list[str]:
        """See `WordSwap.replacements`."""
        return [self._typo(word)] if len(word) > 1 else []

    def _typo(self, word: str) -> str:
        raise NotImplementedError


Swap = TypeVar("Swap", bound=_CharacterSwap)


class NeighbouringCharacterSwap(_CharacterSwap):
    """Two neighbouring characters change places."""

    def _typo(self, word: str) -> str:
        i = self.draws.below(len(word) - 1)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


class CharacterSubstitution(_CharacterSwap):
    """A character becomes a random letter."""

    def _typo(self, word: str) -> str:
        i = self.draws.below(len(word))
        return word[:i] + self.draws.letter() + word[i + 1 :]


class CharacterDeletion(_CharacterSwap):
    """A character disappears."""

    def _typo(self, word: str) -> str:
        i = self.draws.below(len(word))
        return word[:i] + word[i + 1 :]


class CharacterInsertion(_CharacterSwap):
    """A random letter comes before a character."""

    def _typo(self, word: str) -> str:
        i = self.draws.below(len(word))
        return word[:i] + self.draws.letter() + word[i:]


class Composite:
    """The candidates of several transformations, one after the other, without duplicates.

    Args:
        transformations: At least one.
    """

    def __init__(self, transformations: Sequence[Transformation]) -> None:
        if not transformations:
            raise ValueError("transformations is empty; expected at least one")
        self.transformations = tuple(transformations)

    @property
    def deterministic(self) -> bool:
        """Whether all the transformations are."""
        return all(part.deterministic for part in self.transformations)

    def seeded(self, seed: int | Draws) -> Composite:
        """See `Transformation.seeded`; the transformations share their random numbers."""
        draws = seed if isinstance(seed, Draws) else Draws(seed)
        return Composite([part.seeded(draws) for part in self.transformations])

    def candidates(self, text: WordText, indices: Sequence[int]) -> Steps[list[WordText]]:
        """See `Transformation.candidates`."""
        found: dict[WordText, None] = {}
        for part in self.transformations:
            found |= dict.fromkeys((yield from part.candidates(text, indices)))
        return list(found)
