"""Does the embedded language model follow a voice? StyleProb over speakers, questions, seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from dialogkit.embedded import character_names, character_path
from dialogkit.generation import GenerationConfig
from dialogkit.pdp import Character, NgramStyleClassifier, PDPChatbot, PDPConfig, style_prob
from dialogkit.pdp.style import split_lines

from .corpus import load_corpus

__all__ = [
    "METHODS",
    "Speaker",
    "StyleStudy",
    "copied",
    "interval",
    "load_speakers",
    "run_study",
    "train_classifier",
]

_EVALUATION = Path(__file__).parent.parent / "data" / "style_eval.json"
_PLAY_SPEAKERS = ("FALSTAFF", "ROSALIND")
_PERSONAS = ("humorous", "professional")

METHODS: dict[str, dict[str, str]] = {
    "zero-shot": {"matcher": "random", "prompt": "zero-shot"},
    "utterances only": {"matcher": "random", "prompt": "utterances"},
    "PDP random": {"matcher": "random", "prompt": "dialog"},
    "PDP static": {"matcher": "static", "prompt": "dialog"},
    "PDP dynamic": {"matcher": "dynamic", "prompt": "dialog"},
}


@dataclass(frozen=True)
class Speaker:
    """A voice under test: the lines its prompt shows, and others the classifier learns it from."""

    id: str
    character: Character
    lines: tuple[str, ...]


def load_speakers(*, prompt_lines: int = 16, max_lines: int = 60, seed: int = 29) -> list[Speaker]:
    """The shipped characters, two Shakespeare speakers and two personas, none of them trained on.

    Prompt lines and classifier lines of a speaker never overlap.
    """
    study = json.loads(_EVALUATION.read_text(encoding="utf-8"))
    speakers = []
    for name in character_names():
        character = Character.from_json(character_path(name))
        speakers.append(Speaker(name, character, tuple(study["speakers"][name]["lines"])))
    heldout = load_corpus("heldout")
    given: dict[str, list[str]] = {
        **{name.capitalize(): [item.response for item in heldout.plays[name]] for name in _PLAY_SPEAKERS},
        **{f"{name} assistant": [item.response for item in heldout.personas[name]] for name in _PERSONAS},
    }
    for name, lines in given.items():
        distinct = [line for line in dict.fromkeys(lines) if 3 <= len(line.split()) <= 20]
        Random(f"{seed}-{name}").shuffle(distinct)
        shown, rest = distinct[:prompt_lines], distinct[prompt_lines : prompt_lines + max_lines]
        title = name.title()
        speakers.append(
            Speaker(
                name.lower().replace(" ", "-"), Character(name=title, utterances=tuple(shown)), tuple(rest)
            )
        )
    return speakers


def questions(part: str) -> list[str]:
    """The study's own questions: ``"questions"`` (test) or ``"dev_questions"``."""
    return json.loads(_EVALUATION.read_text(encoding="utf-8"))[part]


def train_classifier(speakers: Sequence[Speaker], *, seed: int = 0) -> tuple[NgramStyleClassifier, float]:
    """Logistic regression on word and character n-grams; returns it with its accuracy on unseen lines.

    Accuracy comes from a fit on three quarters of each speaker's lines; the classifier returned uses all.
    """
    lines = {speaker.id: speaker.lines for speaker in speakers}
    train, test = split_lines(lines, 0.25, seed=seed)
    held = NgramStyleClassifier(train)
    right = [
        held.probabilities(unseen).argmax(axis=1) == held.labels.index(name) for name, unseen in test.items()
    ]
    return NgramStyleClassifier(lines), float(np.concatenate(right).mean())


def copied(reply: str, shown: Sequence[str], *, n: int = 5) -> bool:
    """Whether ``n`` words in a row (or the whole shorter reply) stand in a line of the prompt."""
    words = reply.lower().split()
    spans = [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]
    lines = [f" {' '.join(line.lower().split())} " for line in shown]
    return any(f" {span} " in line for span in spans for line in lines)


@dataclass(frozen=True)
class StyleStudy:
    """Replies and probabilities of one study.

    Attributes:
        probs: StyleProb by method, ``float [speakers, questions, seeds]``.
        replies: One row per reply: method, speaker, question, seed, reply, prob, copied.
        accuracy: The classifier's accuracy on unseen lines.
    """

    probs: Mapping[str, np.ndarray]
    replies: Sequence[Mapping[str, object]]
    accuracy: float

    def table(self, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, object]]:
        """Mean, 95 % interval over resampled speakers and questions, seed spread, copy rate, by method."""
        rows = []
        for method, probs in self.probs.items():
            low, high = interval(probs, resamples, seed)
            mine = [row for row in self.replies if row["method"] == method]
            rows.append(
                {
                    "method": method,
                    "StyleProb": probs.mean(),
                    "low": low,
                    "high": high,
                    "seed sd": probs.mean(axis=(0, 1)).std(ddof=1) if probs.shape[2] > 1 else "one seed",
                    "copied": np.mean([row["copied"] for row in mine]),
                    "words": np.mean([len(str(row["reply"]).split()) for row in mine]),
                    "distinct-2": _distinct(mine, 2),
                }
            )
        return rows

    def differences(self, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, object]]:
        """Paired differences of each PDP variant to the two baselines, with two 95 % intervals.

        ``low`` and ``high`` ask what other speakers and questions would give; ``low here`` and ``high here``
        take the speakers as given and resample questions alone.
        """
        rows = []
        for method in [name for name in self.probs if name.startswith("PDP")]:
            for baseline in ("utterances only", "zero-shot"):
                gap = self.probs[method] - self.probs[baseline]
                low, high = interval(gap, resamples, seed)
                low_here, high_here = interval(gap, resamples, seed, speakers_given=True)
                rows.append(
                    {
                        "difference": f"{method} − {baseline}",
                        "mean": gap.mean(),
                        "low": low,
                        "high": high,
                        "low here": low_here,
                        "high here": high_here,
                    }
                )
        return rows


def _distinct(rows: Sequence[Mapping[str, object]], n: int) -> float:
    grams = [
        tuple(words[i : i + n])
        for words in (str(row["reply"]).lower().split() for row in rows)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def interval(
    values: np.ndarray, resamples: int, seed: int, *, speakers_given: bool = False
) -> tuple[float, float]:
    """Percentile bootstrap of the mean of ``[speakers, questions, seeds]``.

    Questions are resampled and, independently, speakers unless they are given.
    """
    rng = np.random.default_rng(seed)
    speakers, asked, _ = values.shape
    by_cell = values.mean(axis=2)
    means = [
        by_cell[
            np.ix_(
                np.arange(speakers) if speakers_given else rng.integers(speakers, size=speakers),
                rng.integers(asked, size=asked),
            )
        ].mean()
        for _ in range(resamples)
    ]
    return tuple(np.percentile(means, [2.5, 97.5]))


def run_study(
    speakers: Sequence[Speaker],
    asked: Sequence[str],
    *,
    model,
    retriever,
    pool,
    seeds: Sequence[int],
    generation: GenerationConfig,
    selection: str,
    methods: Mapping[str, Mapping[str, str]] = METHODS,
    max_dialogs: int = 8,
) -> StyleStudy:
    """Asks every speaker every question under every prompt; the same model, pool and seeds for all."""
    classifier, accuracy = train_classifier(speakers)
    labels = classifier.labels
    probs = {name: np.zeros((len(speakers), len(asked), len(seeds))) for name in methods}
    rows: list[dict[str, object]] = []
    for method, setting in methods.items():
        for s, speaker in enumerate(speakers):
            bot = PDPChatbot(
                model,
                speaker.character,
                matcher=setting["matcher"],
                prompt=setting["prompt"],
                retriever=retriever,
                pool=pool,
                config=PDPConfig(selection=selection, max_dialogs=max_dialogs, generation=generation),
            )
            for r, seed in enumerate(seeds):
                texts = [reply.text for reply in bot.reply_batch(list(asked), seed=seed)]
                table = classifier.probabilities(texts)
                probs[method][s, :, r] = [style_prob(row[None], labels.index(speaker.id)) for row in table]
                rows += [
                    {
                        "method": method,
                        "speaker": speaker.id,
                        "question": question,
                        "seed": seed,
                        "reply": text,
                        "prob": probs[method][s, q, r],
                        "copied": copied(text, speaker.character.utterances),
                    }
                    for q, (question, text) in enumerate(zip(asked, texts, strict=True))
                ]
        print(f"{method}: {probs[method].mean():.3f}", flush=True)
    return StyleStudy(probs, rows, accuracy)
