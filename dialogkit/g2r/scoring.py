"""The teacher's opinion of a response: its likelihood, and what the context adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.generation.types import LanguageModel
from trainkit import fingerprint

from .shards import read_shards, shard_files, write_shards

__all__ = ["ScoreConfig", "TeacherScore", "read_scored", "score", "score_responses"]

ScoreKind = Literal["ll", "ll_sum", "mi", "mi_sum"]

_COLUMNS = {
    "context": "strings",
    "response": "string",
    "source": "string",
    "sum_logprob": "float",
    "null_sum_logprob": "float",
    "num_tokens": "int",
}


@dataclass(frozen=True)
class TeacherScore:
    r"""Log-likelihoods of a response under the teacher.

    .. math::

        LL(c, r) = \frac{1}{|r|} \sum_t \log P(r_t | r_{<t}, c) \qquad
        MI(c, r) = \frac{1}{|r|} \left( \log P(r | c) - \log P(r | c_0) \right)

    The forms, and the division by the length, are unconfirmed: the work released neither. Sums are there too.

    Attributes:
        sum_logprob: ``log P(r | c)``.
        null_sum_logprob: ``log P(r | c_0)`` with the null context.
        num_tokens: ``|r|``.
    """

    sum_logprob: float
    null_sum_logprob: float
    num_tokens: int

    def value(self, kind: ScoreKind) -> float:
        """LL or MI, per token or (``ll_sum``, ``mi_sum``) of the whole response."""
        total = self.sum_logprob
        if kind.startswith("mi"):
            total -= self.null_sum_logprob
        return total if kind.endswith("_sum") else total / self.num_tokens


@dataclass(frozen=True)
class ScoreConfig:
    """How the teacher reads.

    Attributes:
        prompt: How a context is laid out.
        null_context: The context that P(r) is conditioned on; none at all by default (our choice).
    """

    prompt: DialoguePrompt = field(default_factory=DialoguePrompt)
    null_context: tuple[str, ...] = ()


def score_responses(
    teacher: LanguageModel,
    contexts: Sequence[Sequence[str]],
    responses: Sequence[str],
    config: ScoreConfig | None = None,
) -> list[TeacherScore]:
    """Scores each response as the answer to the context at the same place.

    Equal pairs, and equal responses under the null context, are scored once.

    Args:
        teacher: Any language model that gives likelihoods.
        contexts: n contexts, each its turns from oldest to newest.
        responses: n responses, none blank.
        config: Prompt and null context.

    Raises:
        ValueError: The lengths differ, or a response is blank.
    """
    config = config or ScoreConfig()
    if len(contexts) != len(responses):
        raise ValueError(f"contexts and responses must be as many, got {len(contexts)} and {len(responses)}")
    answers = [config.prompt.answer(response) for response in responses]
    for number, answer in enumerate(answers):
        if not answer.strip():
            raise ValueError(f"response {number} is blank")
    pairs = [(tuple(context), answer) for context, answer in zip(contexts, answers, strict=True)]
    asked = list(dict.fromkeys([*pairs, *((config.null_context, answer) for answer in answers)]))
    likelihoods = teacher.log_likelihood(
        [config.prompt.build(context) for context, _ in asked], [answer for _, answer in asked]
    )
    known = dict(zip(asked, likelihoods, strict=True))
    return [
        TeacherScore(
            known[pair].sum_logprob, known[config.null_context, pair[1]].sum_logprob, known[pair].num_tokens
        )
        for pair in pairs
    ]


def score(
    teacher: LanguageModel, source: str | Path, folder: str | Path, *, config: ScoreConfig | None = None
) -> None:
    """Scores all responses that :func:`~dialogkit.g2r.augment` wrote, shard by shard; a stopped run goes on.

    Args:
        teacher: Gives likelihoods; the model that wrote the responses, or another one.
        source: Folder of :func:`~dialogkit.g2r.augment`, finished.
        folder: For the shards with the scores; not the source.
        config: Prompt and null context.

    Raises:
        FileNotFoundError: The source is not finished.
        ValueError: The folder is the source, or was made with other settings.
    """
    from pyarrow import parquet

    config = config or ScoreConfig()
    if Path(folder).resolve() == Path(source).resolve():
        raise ValueError(f"folder must not be the source, both are {folder}")
    files = shard_files(source)
    settings = {
        "teacher": teacher.name,
        "source": fingerprint(*files),
        "prompt": asdict(config.prompt),
        "null_context": list(config.null_context),
    }

    def make(number: int) -> list[dict[str, Any]]:
        rows = parquet.read_table(files[number]).to_pylist()
        scores = score_responses(
            teacher, [row["context"] for row in rows], [row["response"] for row in rows], config
        )
        return [{**row, **asdict(value)} for row, value in zip(rows, scores, strict=True)]

    write_shards(
        folder, len(files), make, settings=settings, columns=_COLUMNS, description="scoring responses"
    )


def read_scored(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The scored responses as records for :func:`~dialogkit.g2r.group_by_context`.

    Yields:
        ``context``, ``response``, ``source``, ``score_infos`` with ``ll``, ``ll_sum``, ``mi``, ``mi_sum``.

    Raises:
        FileNotFoundError: The folder is not finished.
    """
    kinds: tuple[ScoreKind, ...] = ("ll", "ll_sum", "mi", "mi_sum")
    for row in read_shards(folder):
        value = TeacherScore(row["sum_logprob"], row["null_sum_logprob"], row["num_tokens"])
        yield {
            "context": row["context"],
            "response": row["response"],
            "source": row["source"],
            "score_infos": {kind: value.value(kind) for kind in kinds},
        }
