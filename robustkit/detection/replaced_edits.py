"""Copies of texts with words replaced at random: what a reader of replaced words learns from.

Words are replaced whether a classifier minds or not, so no attack and no classifier is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

from robustkit.attacks.words.transformations import WordSwap
from trainkit.seeding import derive_seed

from .variants import cased_like

__all__ = ["RATES", "Edited", "Source", "edited", "edited_copies", "offers_of", "typos"]

Offers = Callable[[str, Random], Sequence[str]]

Source = Offers | WordSwap
"""Where replacements come from: a transformation of the attacks that looks at the word alone, such as
`NeighbourSwap` or `WordNetSwap`, or a function of a lower-case word and a generator; it may offer none."""

RATES = (0.1, 0.2, 0.35)
"""Shares of a text's words that are replaced, one drawn for each text; attacks replace 5 to 40 %."""
_ONE_SOURCE = 0.75
_WORD = re.compile(r"[^\W\d_]{3,}")


def typos(word: str, rng: Random) -> list[str]:
    """A source: the word with two neighbouring letters swapped, or one replaced, deleted or added.

    The last letter is never replaced or deleted, only swapped, and no letter is added beside it: nothing is
    appended. The attacks' own character swaps are sources, too, one kind each; this one draws the kind.

    Args:
        word: In lower case; one of less than two letters gets no typo.
        rng: Draws the kind, the place and the letter, one of a to z.

    Returns:
        One word, now and then the word itself.
    """
    if len(word) < 2:
        return []
    i, letter = rng.randrange(len(word) - 1), rng.choice("abcdefghijklmnopqrstuvwxyz")
    return [
        rng.choice(
            (
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + letter + word[i + 1 :],
                word[:i] + word[i + 1 :],
                word[:i] + letter + word[i:],
            )
        )
    ]


def offers_of(source: Source) -> Offers:
    """A source as a function of a lower-case word and a generator.

    Raises:
        TypeError: It is neither a `WordSwap` nor a function.
    """
    if isinstance(source, WordSwap):
        if source.deterministic:
            return lambda word, rng: source.replacements(word)
        return lambda word, rng: source.seeded(rng.getrandbits(32)).replacements(word)
    if callable(source):
        return source
    raise TypeError(
        f"a source is a {type(source).__name__}; expected a WordSwap, such as NeighbourSwap, or a function "
        "of a word and a random.Random"
    )


@dataclass(frozen=True)
class Edited:
    """A text with some words replaced.

    Attributes:
        text: The new text.
        places: First character of each new word, and the one after its last.
    """

    text: str
    places: tuple[tuple[int, int], ...] = ()


def edited(
    text: str,
    offers: Callable[[str], Sequence[str]],
    spared: Collection[str],
    rng: Random,
    rates: Sequence[float] = RATES,
) -> Edited:
    """Replaces some words of a text at random.

    Words are runs of at least three letters. A replacement takes over the capitals; one that equals the word
    leaves it as it is, and it does not count as replaced.

    Args:
        text: The text.
        offers: Replacements for a lower-case word, maybe none.
        spared: Lower-case words that stay.
        rng: Draws the number of words, the words and their replacements.
        rates: Shares of the text's words (split at blanks) to replace, one is drawn; at least one word is
            replaced where there are replacements.
    """
    words = [match for match in _WORD.finditer(text) if match[0].lower() not in spared]
    wanted = max(1, round(rng.choice(rates) * len(text.split())))
    changes: dict[int, tuple[int, str]] = {}
    for match in rng.sample(words, len(words)):
        if len(changes) == wanted:
            break
        if options := offers(match[0].lower()):
            changes[match.start()] = (match.end(), cased_like(match[0], rng.choice(options)))
    new, places, place = "", [], 0
    for start, (end, word) in sorted(changes.items()):
        new += text[place:start]
        if word != text[start:end]:
            places.append((len(new), len(new) + len(word)))
        new += word
        place = end
    return Edited(new + text[place:], tuple(places))


def edited_copies(
    texts: Sequence[str],
    sources: Sequence[Source],
    spared: Collection[str] = frozenset(),
    *,
    seed: int,
    rates: Sequence[float] = RATES,
) -> list[Edited]:
    """A copy of each text with words replaced, from one source or from all; unchanged ones are left out.

    Args:
        texts: The texts.
        sources: Where replacements come from; a quarter of the texts has words from all.
        spared: Lower-case words that stay.
        seed: Of the edits.
        rates: See `edited`.

    Raises:
        TypeError: A source is none.
    """
    kinds = [offers_of(source) for source in sources]
    found = []
    for number, text in enumerate(texts):
        rng = Random(derive_seed("replaced", seed, number))
        kind = rng.randrange(len(kinds)) if rng.random() < _ONE_SOURCE else None

        def offers(word: str, rng: Random = rng, kind: int | None = kind) -> Sequence[str]:
            return kinds[rng.randrange(len(kinds)) if kind is None else kind](word, rng)

        found.append(edited(text, offers, spared, rng, rates))
    return [new for new in found if new.places]
