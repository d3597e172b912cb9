"""How a word attack looks for a text that meets its goal.

A search is a generator (see `robustkit.attacks.words.asking`): it yields what it wants to know and is sent
the answers, so that the engine can answer many examples at once. What it may do with its example is a
`Trial`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from robustkit.attacks.words.asking import Ask, Steps
from robustkit.attacks.words.constraints import Constraint, IndexConstraint, modifiable_indices
from robustkit.attacks.words.goals import Goal, Gradients, Probabilities
from robustkit.attacks.words.text import WordText
from robustkit.attacks.words.transformations import Transformation

__all__ = ["BeamSearch", "GreedyWordSwap", "Result", "Search", "Trial"]

_CHARACTERS = 2**21  # texts that an example may have under way at once; bounds the memory of very long ones

T = TypeVar("T")
Ranking = Literal["unk", "delete", "weighted-saliency", "gradient", "random"]


@dataclass(frozen=True, eq=False)
class Result:
    """What the classifier says of one text.

    Attributes:
        text: The text.
        output: Predicted class.
        score: The goal's score.
        reached: Whether the text meets the goal.
    """

    text: WordText
    output: int
    score: np.float32
    reached: bool


class Trial:
    """One example under attack: its rules, its queries so far and its budget.

    Args:
        original: The text under attack.
        label: Its true class.
        goal: What the attack wants.
        transformation: How it changes words.
        constraints: What candidates must meet, checked in this order.
        index_constraints: Which words may change.
        probabilities: The classifier.
        gradients: The classifier's gradients.
        max_words: Number of words that the classifier can read, at most.
        query_budget: Texts that the classifier may be shown; None means any number.
        seed: For transformations and searches that draw, below 2**32.

    Attributes:
        queries: Texts that the classifier was shown. A text counts each time, whether or not its answer was
            known already, as in TextAttack.
        initial: What the classifier says of the original, once `begin` has run.
    """

    initial: Result

    def __init__(
        self,
        original: WordText,
        label: int,
        *,
        goal: Goal,
        transformation: Transformation,
        constraints: Sequence[Constraint] = (),
        index_constraints: Sequence[IndexConstraint] = (),
        probabilities: Probabilities,
        gradients: Gradients,
        max_words: int,
        query_budget: int | None = None,
        seed: int = 0,
    ) -> None:
        self.original = original
        self.label = label
        self.max_words = max_words
        self.seed = seed
        self.queries = 0
        self._goal = goal
        self._transformation = transformation.seeded(seed)
        self._constraints = constraints
        self._index_constraints = index_constraints
        self._probabilities = probabilities
        self._gradients = gradients
        self._budget = query_budget

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.queries == self._budget

    def begin(self) -> Steps[bool]:
        """Query the original, which sets `initial`.

        Returns:
            Whether there is anything to attack.
        """
        self.queries += 1
        answers = yield Ask(self._probabilities, (self.original.model_input,))
        self.initial = self._judge(self.original, answers[0])
        return not self._goal.pointless(answers[0], self.label)

    def results(self, texts: Sequence[WordText]) -> Steps[list[Result]]:
        """Query texts, the first ones only where the budget does not suffice for all.

        Args:
            texts: Texts.

        Returns:
            One result for each text that was queried, in order.
        """
        if self._budget is not None:
            texts = texts[: self._budget - self.queries]
        self.queries += len(texts)
        found: list[Result] = []
        for part in _parts(texts, max((len(text.text) for text in texts), default=0)):
            answers = yield Ask(self._probabilities, tuple(text.model_input for text in part))
            found += [self._judge(text, answer) for text, answer in zip(part, answers, strict=True)]
        return found

    def gradient(self, text: str | tuple[str, ...]) -> Steps[tuple[list[str], np.ndarray]]:
        """The gradient of the predicted class's loss; costs no query, as in TextAttack.

        Args:
            text: The original, as the classifier reads it, or its beginning.

        Returns:
            The text's tokens and a float32 array ``(tokens, d)``.
        """
        answers = yield Ask(self._gradients, ((text, self.initial.output),))
        tokens, gradient = answers[0]
        return tokens, gradient

    def indices(self, text: WordText, chosen: Collection[int] | None = None) -> list[int]:
        """The words that may change, in the order in which TextAttack meets them, which decides ties.

        Args:
            text: The original or a changed text.
            chosen: Positions of words that are considered; None means all.

        Returns:
            Word positions.
        """
        return modifiable_indices(text, self._transformation, self._index_constraints, chosen)

    def candidates(self, text: WordText, chosen: Collection[int] | None = None) -> Steps[list[WordText]]:
        """Every changed text that the constraints let pass.

        Args:
            text: The text to change.
            chosen: Positions of words to change; None means all.

        Returns:
            The candidates, sorted by text.
        """
        found = yield from self._transformation.candidates(text, self.indices(text, chosen))
        found = [candidate for candidate in found if candidate.text != text.text]
        for constraint in self._constraints:
            if not found:
                break
            reference = self.original if constraint.against_original else text
            found = yield from constraint.keep(found, reference)
        return sorted(found, key=lambda candidate: candidate.text)

    def _judge(self, text: WordText, probabilities: np.ndarray) -> Result:
        return Result(
            text,
            int(probabilities.argmax()),
            self._goal.score(probabilities, self.label),
            self._goal.reached(probabilities, self.label),
        )


class Search(Protocol):
    """A way to look for a text that meets the goal."""

    def find(self, trial: Trial) -> Steps[list[Result]]:
        """Search from the original, which the trial has queried already.

        Args:
            trial: The example.

        Returns:
            Every result that meets the goal at the step where the search ended, best first; or one result
            that does not, the best that was found.
        """


@dataclass(frozen=True)
class GreedyWordSwap:
    """Rank the words of the original, then change one after the other for the better.

    This is TextAttack's ``GreedyWordSwapWIR``.

    A word's best candidate is kept if it raises the score. As soon as one meets the goal the search ends,
    with the candidate that is most similar to the original by the sentence constraint, if there is one, among
    those that meet it.

    Args:
        ranking: What makes a word important. ``"unk"`` and ``"delete"``: the score without it, replaced by
            ``unknown`` or deleted. ``"weighted-saliency"``: softmax of the former over all words times the
            best score that replacing the word reaches (PWWS). ``"gradient"``: the sum of the absolute
            gradient of the loss, averaged over the word's tokens. ``"random"``: nothing, a random order.
        unknown: Word that stands for a removed one.
        max_words: Change only the first so many words that may change at all; bounds the cost of very long
            texts. ``"model"`` means the classifier's maximum number of tokens; None means no limit.

    Raises:
        ValueError: The ranking is unknown, or fewer than 1 word.

    Cost: one query for each word to rank (none for ``"gradient"`` and ``"random"``; one for each candidate of
    each word more for ``"weighted-saliency"``), then one for each candidate of each word until the end.
    """

    ranking: Ranking = "delete"
    unknown: str = "[UNK]"
    max_words: int | Literal["model"] | None = None

    def __post_init__(self) -> None:
        rankings = ("unk", "delete", "weighted-saliency", "gradient", "random")
        if self.ranking not in rankings:
            raise ValueError(f"ranking is {self.ranking!r}, expected one of {', '.join(rankings)}")
        if isinstance(self.max_words, int) and self.max_words < 1:
            raise ValueError(f"max_words is {self.max_words}, expected at least 1, 'model' or None")

    def find(self, trial: Trial) -> Steps[list[Result]]:
        """See `Search.find`."""
        current = trial.initial
        order = yield from self._order(trial)
        for index in order:
            if trial.over:
                break
            candidates = yield from trial.candidates(current.text, [index])
            if not candidates:
                continue
            results = yield from trial.results(candidates)
            results.sort(key=lambda result: -result.score)
            if not results[0].score > current.score:
                continue
            current = results[0]
            if current.reached:
                return _most_similar_first(results)
        return [current]

    def _order(self, trial: Trial) -> Steps[list[int]]:
        text = trial.original
        indices = trial.indices(text)
        if self.max_words is not None:
            limit = trial.max_words if self.max_words == "model" else self.max_words
            indices = sorted(indices)[:limit]
        if self.ranking == "random":
            np.random.RandomState(trial.seed).shuffle(indices)  # TextAttack's generator
            return indices
        if not indices:
            return []
        if self.ranking == "gradient":
            scores = yield from self._gradient_norms(trial, indices)
        else:
            scores = yield from self._scores_without(trial, indices)
            if self.ranking == "weighted-saliency":
                scores = yield from _weigh(trial, indices, scores)
        # The unstable sort is TextAttack's, and so is the order of words with equal scores.
        return [int(index) for index in np.array(indices)[(-scores).argsort()]]

    def _scores_without(self, trial: Trial, indices: list[int]) -> Steps[np.ndarray]:
        """The score without each word: float32, shorter than ``indices`` if the budget ends."""
        text = trial.original
        scores: list[np.float32] = []
        for part in _parts(indices, len(text.text)):
            if trial.over:
                break
            if self.ranking == "delete":
                without = [text.deleted(index) for index in part]
            else:
                without = [text.replaced(index, self.unknown) for index in part]
            results = yield from trial.results(without)
            scores += [result.score for result in results]
        return np.array(scores, dtype=np.float32)

    def _gradient_norms(self, trial: Trial, indices: list[int]) -> Steps[np.ndarray]:
        text = trial.original
        if self.max_words is not None and isinstance(text.model_input, str):
            text = WordText(_beginning(text, max(indices) + 1))
        tokens, gradient = yield from trial.gradient(text.model_input)
        places = _token_places(text.words, tokens)
        norms = [np.abs(gradient[places[i]].mean(axis=0)).sum() if places[i] else 0.0 for i in indices]
        return np.array(norms, dtype=np.float64)


@dataclass(frozen=True)
class BeamSearch:
    """Change any one word, keep the best texts, and again (TextAttack's BeamSearch; width 1 is GreedySearch).

    It ends at the first step whose best text meets the goal, when nothing can be changed any more, or with
    the budget. Without a constraint against changing a word twice it may never end but by the budget.

    Args:
        width: Number of texts that are kept.

    Raises:
        ValueError: The width is below 1.

    Cost: one query for each candidate of each word of each kept text, at every step.
    """

    width: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}, expected at least 1")

    def find(self, trial: Trial) -> Steps[list[Result]]:
        """See `Search.find`."""
        best = trial.initial
        beam = [trial.original]
        while not trial.over:
            candidates: list[WordText] = []
            for text in beam:
                candidates += yield from trial.candidates(text)
            if not candidates:
                break
            results = yield from trial.results(candidates)
            scores = np.array([result.score for result in results])
            best = results[int(scores.argmax())]
            if best.reached:
                others = sorted((r for r in results if r.reached and r is not best), key=lambda r: -r.score)
                return [best, *others]
            beam = [candidates[i] for i in (-scores).argsort()[: self.width]]
        return [best]


def _weigh(trial: Trial, indices: list[int], saliency: np.ndarray) -> Steps[np.ndarray]:
    """Softmax of the saliency times the best score by replacing each word; words past the budget get 0."""
    weights = torch.softmax(torch.from_numpy(saliency), dim=0).numpy()
    best: dict[int, np.float32] = {}
    for part in _parts(indices, 16 * len(trial.original.text)):
        if trial.over:
            break
        candidates: list[WordText] = []
        owners: list[int] = []
        for index in part:
            found = yield from trial.candidates(trial.original, [index])
            candidates += found
            owners += [index] * len(found)
        results = yield from trial.results(candidates)
        for index, result in zip(owners, results, strict=False):  # the budget may cut the results
            best[index] = max(best.get(index, result.score), result.score)
    # Plain zeros make an array of 64 bits, as they do in TextAttack, which decides near ties.
    weighted: np.ndarray = weights * np.array([best.get(index, 0.0) for index in indices[: len(weights)]])
    return weighted


def _most_similar_first(results: list[Result]) -> list[Result]:
    """The results up to the first that misses the goal, by similarity where a constraint has measured it."""
    reached: list[Result] = []
    for result in results:
        if not result.reached:
            break
        reached.append(result)
    similarities = [result.text.similarity for result in reached]
    if None in similarities:
        return reached
    return [reached[i] for i in sorted(range(len(reached)), key=lambda i: -(similarities[i] or 0.0))]


def _beginning(text: WordText, count: int) -> str:
    """The text up to the end of its first words."""
    end = 0
    for word in text.words[:count]:
        end = text.text.index(word, end) + len(word)
    return text.text[:end]


def _token_places(words: Sequence[str], tokens: Sequence[str]) -> list[list[int]]:
    """Positions of the tokens that make up each word, none for words that the tokenizer does not spell out.

    TextAttack's alignment: tokens are looked for in order, case ignored, and those that do not continue the
    word are passed over; after a word without any token the search goes back to the last token that was
    found.
    """
    plain = [_spelled(token).lower() for token in tokens]
    places: list[list[int]] = []
    position = last = 0
    for word in words:
        rest, own = word, []
        while rest and position < len(plain):
            if rest.lower().startswith(plain[position]):
                rest = rest[len(plain[position]) :]
                own.append(position)
                last = position
            position += 1
        if not own:
            position = last
        places.append(own)
    return places


def _spelled(token: str) -> str:
    for mark in ("##", "Ġ", "__"):
        token = token.replace(mark, "")
    return token


def _parts(items: Sequence[T], characters: int) -> Iterator[Sequence[T]]:
    """The items in parts of a bounded number of characters, where one item has so many."""
    size = max(1, _CHARACTERS // max(1, characters))
    return (items[start : start + size] for start in range(0, len(items), size))
