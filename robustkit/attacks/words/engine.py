"""Word attacks on many texts at once.

TextAttack attacks one text after the other, so the classifier sees a few dozen texts at a time, each filled
up to 512 tokens. Here `lock_step` examples advance together: each is a generator that hands out what it wants
to know, the engine collects the questions of all, drops duplicates, and asks every model once per round. What
an example's attack does depends on the answers alone, so the result is the same for any number of examples in
lock step, up to the last bits of a classifier whose results depend on how its batches are filled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from robustkit.attacks.logs import AttackLog, AttackRecord, ResultType, RunLog
from robustkit.attacks.words.asking import Service, Steps
from robustkit.attacks.words.constraints import Constraint, IndexConstraint
from robustkit.attacks.words.goals import Goal, Gradients, Probabilities, UntargetedClassification
from robustkit.attacks.words.search import GreedyWordSwap, Search, Trial
from robustkit.attacks.words.text import WordText
from robustkit.attacks.words.transformations import Transformation
from trainkit.progress import Progress
from trainkit.seeding import derive_seed

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["Examples", "Tally", "WordAttack", "in_lock_step", "read_examples"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Examples = Iterable[tuple[str | Mapping[str, str], int] | Mapping[str, Any]]
"""Texts with labels: pairs, or mappings with ``text`` and ``label`` such as the rows of a
`datasets.Dataset`."""

_MEMORY = 2**26  # bytes of questions and answers that are remembered


class WordAttack:
    """An attack that changes words until a classifier is wrong.

    The functions of `robustkit.attacks.words.recipes` compose the known ones.

    Args:
        transformation: How words are changed.
        constraints: What a changed text must meet, checked in this order.
        index_constraints: Which words may be changed.
        goal: What the attack wants; by default any wrong class.
        search: How it gets there; by default greedily, the most important words first.
        name: Name for logs.

    Example:
        ```python
        attack = WordAttack(WordNetSwap(wordnet), index_constraints=[RepeatModification()])
        log = attack.attack(classifier, [("a fine film", 1)], query_budget=500, path="log.csv")
        print(log.summary().success_rate)
        ```
    """

    def __init__(
        self,
        transformation: Transformation,
        constraints: Sequence[Constraint] = (),
        index_constraints: Sequence[IndexConstraint] = (),
        goal: Goal | None = None,
        search: Search | None = None,
        name: str = "custom",
    ) -> None:
        self.transformation = transformation
        self.constraints = tuple(constraints)
        self.index_constraints = tuple(index_constraints)
        self.goal: Goal = goal or UntargetedClassification()
        self.search: Search = search or GreedyWordSwap()
        self.name = name

    def attack(
        self,
        classifier: TextClassifier,
        dataset: Examples,
        *,
        lock_step: int = 64,
        query_budget: int | None = None,
        n_best: int = 1,
        path: str | Path | None = None,
        progress: bool = True,
        seed: int = 0,
    ) -> AttackLog:
        """Attack every text of a data set.

        Args:
            classifier: The classifier under attack.
            dataset: Pairs of text and true class, or rows with ``text`` and ``label``.
            lock_step: Number of examples under attack at the same time.
            query_budget: Texts that the classifier may be shown for one example, the original included.
            n_best: Number of perturbed texts that a successful attack keeps at most; all but the first become
                the record's ``alternatives``. They cost no further query.
            path: CSV file that grows with each finished example. The same call again goes on where an
                interrupted one stopped; only finished examples count.
            progress: Whether a terminal shows a bar with success rate and queries.
            seed: For attacks that draw at random.

        Returns:
            One record for each example, in order.

        Raises:
            TypeError: An example is no text with a label.
            ValueError: An argument or a label is out of range, or the file at ``path`` belongs to another
                run.

        Cost: memory for ``lock_step`` examples with a few MB of texts each, 64 MB of remembered answers, and
            the records.
        """
        for name, value in (("lock_step", lock_step), ("query_budget", query_budget), ("n_best", n_best)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.goal.check(classifier.num_labels)
        examples = read_examples(dataset, classifier.num_labels)
        settings = {
            "attack": self.settings(),
            "classifier": classifier.fingerprint,
            "data": _digest(examples),
            "query_budget": query_budget,
            "n_best": n_best,
            "seed": seed,
        }
        run = None if path is None else RunLog(path, self.name, classifier.name, settings)
        done = {} if run is None else run.done
        probabilities, gradients = Probabilities(classifier), Gradients(classifier)

        def record(index: int) -> Steps[AttackRecord]:
            text, label = examples[index]
            trial = Trial(
                WordText(text),
                label,
                goal=self.goal,
                transformation=self.transformation,
                constraints=self.constraints,
                index_constraints=self.index_constraints,
                probabilities=probabilities,
                gradients=gradients,
                max_words=classifier.max_length,
                query_budget=query_budget,
                seed=derive_seed("word attack", seed, index) % 2**32,
            )
            return _record(trial, self.search, n_best)

        left = ((index, record(index)) for index in range(len(examples)) if index not in done)
        try:
            with Progress(len(examples), self.name, done=len(done), enabled=progress) as bar:
                tally = Tally(done.values())
                for index, finished in in_lock_step(left, lock_step):
                    if run is None:
                        done[index] = finished
                    else:
                        run.append(index, finished)
                    bar.advance(note=tally.note(finished))
        except KeyboardInterrupt:
            if run is not None:
                logger.warning(
                    "interrupted: %d of %d examples are in %s; the same call goes on from there",
                    len(done),
                    len(examples),
                    run.path,
                )
            raise
        return AttackLog(
            (done[index] for index in range(len(examples))), self.name, classifier.name, settings
        )

    def settings(self) -> dict[str, Any]:
        """What the attack is made of, as JSON values; large resources by fingerprint."""
        parts = ("transformation", "constraints", "index_constraints", "goal", "search")
        return {part: _describe(getattr(self, part)) for part in parts}


def in_lock_step(tasks: Iterable[tuple[int, Steps[T]]], width: int) -> Iterator[tuple[int, T]]:
    """Drive many computations at once, merging what they ask.

    Args:
        tasks: Numbered computations; taken only when there is room.
        width: Number of computations under way at the same time.

    Yields:
        The number of each computation and what it returned, in the order in which they end.
    """
    waiting = iter(tasks)
    asking: dict[int, tuple[Steps[T], Any]] = {}  # computation and what it is sent next
    answers = _Answers(_MEMORY)
    while True:
        for number, steps in islice(waiting, width - len(asking)):
            asking[number] = (steps, None)
        if not asking:
            return
        questions = {}
        for number, (steps, answer) in asking.items():
            try:
                questions[number] = steps.send(answer)
            except StopIteration as end:
                yield number, end.value
        wanted: dict[int, tuple[Service, dict[Hashable, None]]] = {}
        for question in questions.values():
            _, payloads = wanted.setdefault(id(question.service), (question.service, {}))
            payloads.update(dict.fromkeys(question.payloads))
        found = {key: answers.of(service, payloads) for key, (service, payloads) in wanted.items()}
        asking = {
            number: (
                asking[number][0],
                [found[id(question.service)][payload] for payload in question.payloads],
            )
            for number, question in questions.items()
        }


class _Answers:
    """Answers of services, remembered up to a number of bytes; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._known: OrderedDict[tuple[int, Hashable], tuple[Any, int]] = OrderedDict()

    def of(self, service: Service, payloads: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The answer to every payload; the service is asked for those that are not remembered."""
        found: dict[Hashable, Any] = {}
        new = []
        for payload in payloads:
            key = (id(service), payload)
            if key in self._known:
                self._known.move_to_end(key)
                found[payload] = self._known[key][0]
            else:
                new.append(payload)
        if new:
            for payload, answer in zip(new, service.answer(new), strict=True):
                found[payload] = answer
                size = _bytes(payload) + _bytes(answer)
                self._known[id(service), payload] = (answer, size)
                self._size += size
            while self._size > self._capacity:
                self._size -= self._known.popitem(last=False)[1][1]
        return found


def _bytes(value: object) -> int:
    """Roughly what a question or an answer takes in memory."""
    if isinstance(value, np.ndarray):
        return 100 + value.nbytes
    if isinstance(value, str):
        return 50 + len(value)
    if isinstance(value, Sequence):
        return 50 + sum(map(_bytes, value))
    return 100


def _record(trial: Trial, search: Search, n_best: int) -> Steps[AttackRecord]:
    """Attack one example."""
    attackable = yield from trial.begin()
    results = [trial.initial]
    kind: ResultType = "Skipped"
    if attackable:
        results = yield from search.find(trial)
        kind = "Successful" if results[0].reached else "Failed"
    best = results[0]
    original, perturbed = best.text.marked()
    distinct = list(dict.fromkeys(result.text for result in results))  # two ways may lead to one text
    return AttackRecord(
        original_text=original,
        perturbed_text=perturbed,
        original_score=float(trial.initial.score),
        perturbed_score=float(best.score),
        original_output=trial.initial.output,
        perturbed_output=best.output,
        ground_truth_output=trial.label,
        num_queries=trial.queries,
        result_type=kind,
        alternatives=tuple(text.marked()[1] for text in distinct[1:n_best]),
    )


class Tally:
    """What stands behind the bar of an attack run: success rate and queries so far.

    Args:
        records: What was done before.
    """

    def __init__(self, records: Iterable[AttackRecord] = ()) -> None:
        self._attacked = self._successes = self._queries = 0
        for record in records:
            self.note(record)

    def note(self, record: AttackRecord) -> str:
        """Count one more example; the text for the bar."""
        self._attacked += record.result_type != "Skipped"
        self._successes += record.result_type == "Successful"
        self._queries += record.num_queries
        share = f"{self._successes / self._attacked:.0%} successful" if self._attacked else "none attacked"
        return f"{share}, {self._queries:,} queries"


def read_examples(dataset: Examples, num_labels: int) -> list[tuple[str | Mapping[str, str], int]]:
    """The examples of a data set, checked.

    Args:
        dataset: Pairs of text and true class, or rows with ``text`` and ``label``.
        num_labels: Number of classes.

    Raises:
        TypeError: An example is no text with a label.
        ValueError: A label is out of range, or a text holds half a surrogate pair.
    """
    examples = []
    for number, row in enumerate(dataset):
        if isinstance(row, Mapping):
            missing = {"text", "label"} - set(row)
            if missing:
                raise TypeError(f"example {number} has no {' and no '.join(sorted(missing))}: {row!r:.80}")
            text, label = row["text"], row["label"]
        elif isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2:
            text, label = row
        else:
            raise TypeError(f"example {number} is {row!r:.80}, expected a text with its label")
        if not isinstance(label, int | np.integer) or isinstance(label, bool):
            raise TypeError(f"the label of example {number} is {label!r:.80}, expected a whole number")
        if not 0 <= label < num_labels:
            raise ValueError(
                f"the label of example {number} is {label}, but the classifier knows 0 to {num_labels - 1}"
            )
        try:
            WordText(text).text.encode()
        except TypeError as error:
            raise TypeError(f"example {number}: {error}") from error
        except UnicodeEncodeError as error:
            raise ValueError(f"example {number} is no text that UTF-8 can write: {error}") from error
        examples.append((text, int(label)))
    return examples


def _describe(part: object) -> Any:
    """A part by its kind and public attributes; what is no part of ours by its kind and fingerprint only."""
    if isinstance(part, float) and not np.isfinite(part):
        return str(part)  # JSON has no infinity
    if part is None or isinstance(part, str | int | float | bool):
        return part
    if isinstance(part, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()[:16]
    if isinstance(part, set | frozenset):
        return _short(sorted(map(str, part)))
    if isinstance(part, Mapping):
        return _short({str(key): _describe(value) for key, value in part.items()})
    if isinstance(part, Sequence):
        return _short([_describe(item) for item in part])
    described = {"kind": type(part).__qualname__}
    fingerprint = getattr(part, "fingerprint", None)
    if isinstance(fingerprint, str):
        return described | {"fingerprint": fingerprint}
    if type(part).__module__.startswith("robustkit."):
        public = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        described |= {name: _describe(value) for name, value in public.items()}
    return described


def _short(values: Any) -> Any:
    return values if len(values) <= 20 else {"items": len(values), "fingerprint": _digest(values)}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
