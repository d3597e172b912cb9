"""The stages of the study, from the data to the table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dialogkit.g2r import AugmentConfig, RetrievalChatbot, augment, response_set, score
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.retrieval import ResponseIndex
from trainkit import write_json
from trainkit.hub import write_bytes

from .data import RatedContext, StudyData, load_data
from .measure import (
    Critics,
    TeacherBot,
    figures_of,
    histories,
    likelihood,
    measure_latency,
    milliseconds,
    random_replies,
    rated_hits,
    retriever_hits,
    teacher_hits,
)
from .models import Judge, train_judge, train_teacher
from .students import CONTROLS, STUDENTS, Student, StudentSettings, examples_of, human, train, untrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["STAGES", "StudyPlan", "run"]

logger = logging.getLogger(__name__)

STAGES = (
    "teacher",
    "augment",
    "score",
    "judge",
    "students",
    "controls",
    "answer",
    "measure",
    "latency",
    "report",
)
HITS = ("hits@1/10", "hits@1/100", "hits@1 adversarial", "hits@1 random")
PAGE = Path(__file__).parents[2] / "docs" / "g2r.md"
HUMAN_ONLY = "G2R-D, human responses"
"""The row of a G2R-D student that retrieves what the vanilla student does: what training alone changes."""


@dataclass(frozen=True)
class StudyPlan:
    """How large everything is.

    Attributes:
        pairs: Human pairs that students learn from, and whose responses they retrieve.
        held_out: Human pairs of validation and test.
        answered: Contexts of DailyDialog++ that are ranked and answered.
        teacher_epochs: Passes of the teacher over the training dialogues.
        judge_epochs: Passes of the judge.
        augmentation: How the teacher writes.
        students: Size and length of the students' training.
    """

    pairs: int = 1600
    held_out: int = 500
    answered: int = 300
    teacher_epochs: int = 1
    judge_epochs: int = 1
    augmentation: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(
            responses=5, generation=GenerationConfig(max_new_tokens=32, temperature=0.6, top_k=0, top_p=0.9)
        )
    )
    students: StudentSettings = field(default_factory=StudentSettings)


def run(
    stage: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    runs: Path = Path("runs/g2r"),
    threads: int = 1,
    plan: StudyPlan | None = None,
) -> None:
    """Runs one stage or all (see ``scripts/g2r_experiment.py``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    study = Study(runs, tuple(seeds), plan or StudyPlan())
    for name in STAGES if stage == "all" else (stage,):
        getattr(study, name)()


class Study:
    """The stages.

    Args:
        runs: Folder of everything written.
        seeds: Of the students.
        plan: How large everything is.
    """

    def __init__(self, runs: Path, seeds: Sequence[int], plan: StudyPlan) -> None:
        self.runs, self.seeds, self.plan = runs, seeds, plan
        runs.mkdir(parents=True, exist_ok=True)

    @cached_property
    def data(self) -> StudyData:
        """The data."""
        return load_data(self.plan.pairs, self.plan.held_out)

    @cached_property
    def lm(self) -> TransformersLM:
        """The teacher."""
        return TransformersLM.from_pretrained(self.runs / "teacher")

    def teacher(self) -> None:
        """Trains the teacher."""
        if not (self.runs / "teacher").exists():
            train_teacher(self.data.dialogues, self.runs / "teacher", epochs=self.plan.teacher_epochs)
        test = self.data.test
        scores = likelihood(self.lm, [e.context for e in test], [e.response for e in test])
        logger.info("teacher: LL of human test responses %.3f per token", scores.mean())

    def augment(self) -> None:
        """Lets the teacher write."""
        counts = augment(self.lm, self.data.pairs, self.runs / "written", config=self.plan.augmentation)
        logger.info("written: %s", counts)

    def score(self) -> None:
        """Lets the teacher score."""
        score(self.lm, self.runs / "written", self.runs / "scored")

    def judge(self) -> None:
        """Trains the judge and says how good it is."""
        if not (self.runs / "judge").exists():
            train_judge(self.data.rated_dev, self.runs / "judge", epochs=self.plan.judge_epochs)
        figures = rated_hits(self._rated, Judge(self.runs / "judge"))
        write_json(self.runs / "judge.json", figures)
        logger.info("judge: %s", figures)

    def students(self) -> None:
        """Trains the students that are not there; those from scratch, an ablation, with seed 0 only."""
        for seed in self.seeds:
            for student in STUDENTS:
                if not (student.scratch and seed):
                    self._student(student, seed)

    def controls(self) -> None:
        """Trains the controls that are not there and measures their hits."""
        found = []
        for student in CONTROLS:
            for seed in self.seeds:
                bot = RetrievalChatbot.from_pretrained(self._student(student, seed))
                figures = retriever_hits(bot, self.data.test, self._rated)
                found.append({"name": student.name, "seed": seed, "figures": figures})
                logger.info("%s seed %d: %s", student.name, seed, figures)
        write_json(self.runs / "controls.json", found)

    def _student(self, student: Student, seed: int) -> Path:
        """The folder of a student, trained if it is not there."""
        folder = self.runs / "students" / f"{student.folder}-{seed}"
        if not folder.exists():
            logger.info("training %s, seed %d", student.name, seed)
            examples = examples_of(student, self.runs / "scored", self.data.rated_dev)
            train(student, self.plan.students, examples, self.data.validation, folder, seed=seed)
        return folder

    @cached_property
    def _rated(self) -> tuple[RatedContext, ...]:
        return self.data.rated_test[: self.plan.answered]

    @cached_property
    def _contexts(self) -> list[tuple[str, ...]]:
        return [one.context for one in self._rated]

    def answer(self) -> None:
        """Lets students, the teacher, people and chance answer, and measures hits; what is there is kept."""
        all_examples = examples_of(STUDENTS[1], self.runs / "scored")
        people = response_set([human(example) for example in all_examples])
        written = sorted(set(response_set(all_examples)) - set(people))
        asked = histories(self._contexts)

        def keep(name: str, seed: int, make: Callable[[], tuple[list[str], dict[str, float]]]) -> None:
            path = self.runs / "replies" / f"{name}-{seed}.json"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                replies, figures = make()
                write_json(path, {"name": name, "seed": seed, "figures": figures, "replies": replies})
                logger.info("%s seed %d: %s", name, seed, figures)

        def of_bot(bot: RetrievalChatbot) -> tuple[list[str], dict[str, float]]:
            replies = [reply.text for reply in bot.reply_batch(asked)]
            generated = sum(reply not in known for reply in replies) / len(replies)
            found = retriever_hits(bot, self.data.test, self._rated)
            return replies, {**found, "generated": generated, "responses": float(len(bot.index))}

        known = set(people)
        keep("MiniLM, untrained", 0, lambda: of_bot(untrained(people, self.runs / "students" / "untrained")))
        for student in STUDENTS:
            for seed in self.seeds:
                folder = self.runs / "students" / f"{student.folder}-{seed}"
                if folder.exists():
                    keep(student.name, seed, lambda f=folder: of_bot(RetrievalChatbot.from_pretrained(f)))
                    if student.name == "G2R-D":
                        keep(HUMAN_ONLY, seed, lambda f=folder: of_bot(with_responses(f, people)))
        keep("people", 0, lambda: ([one.good[-1] for one in self._rated], {}))
        bot = TeacherBot(self.lm, self.plan.augmentation.generation)
        for seed in self.seeds:
            for name, texts in (("human", people), ("teacher's", written)):
                drawn = random_replies(texts, len(asked), seed)
                keep(f"chance, {name} responses", seed, lambda drawn=drawn: (drawn, {}))
            keep(
                "teacher",
                seed,
                lambda s=seed: (
                    [reply.text or "." for reply in bot.reply_batch(asked, seed=s)],
                    teacher_hits(self.lm, self.data.test, self._rated) if s == self.seeds[0] else {},
                ),
            )

    def measure(self) -> None:
        """Measures all replies that are there."""
        references = [one.good[:-1] for one in self._rated]
        critics = Critics(Judge(self.runs / "judge"), self.lm, references)
        found = []
        for path in sorted((self.runs / "replies").glob("*.json")):
            known = json.loads(path.read_text())
            figures, opinions = figures_of(self._contexts, known["replies"], critics)
            found.append(
                {"name": known["name"], "seed": known["seed"], "figures": {**known["figures"], **figures}}
                | {name: values.tolist() for name, values in opinions.items()}
            )
            logger.info("%s seed %d: %s", known["name"], known["seed"], figures)
        write_json(self.runs / "figures.json", found)

    def latency(self) -> None:
        """Measures how long one reply takes: students, the teacher, and a generator of a usual size."""
        asked = histories(self._contexts[:60])
        sampling = self.plan.augmentation.generation
        rows: list[dict[str, object]] = []
        for student in (STUDENTS[0], STUDENTS[1]):
            bot = RetrievalChatbot.from_pretrained(self.runs / "students" / f"{student.folder}-0")
            name = f"retriever, {len(bot.index)} responses"
            rows.append({"bot": name, **milliseconds(measure_latency(bot, asked))})
        teacher = TeacherBot(self.lm, sampling)
        rows.append({"bot": "teacher of this study, 4.3 M", **milliseconds(measure_latency(teacher, asked))})
        large = TransformersLM(usual_generator(), self.lm.tokenizer, name="usual generator")
        slow = TeacherBot(large, GenerationConfig(max_new_tokens=20, top_k=0, top_p=0.9))
        found = measure_latency(slow, asked[:12], warmup=1)
        rows.append({"bot": "GPT-2 medium's shape, 354 M, random weights, 20 tokens", **milliseconds(found)})
        write_json(self.runs / "latency.json", rows)
        logger.info("%s", rows)

    def report(self) -> None:
        """Puts the tables into ``docs/g2r.md``, between its marks."""
        found = json.loads((self.runs / "figures.json").read_text())
        names = (
            "chance, human responses",
            "chance, teacher's responses",
            "MiniLM, untrained",
            *(s.name for s in STUDENTS),
            HUMAN_ONLY,
            "teacher",
            "people",
        )
        by_name = {name: [one for one in found if one["name"] == name] for name in names}
        rows = [(name, by_name[name]) for name in names if by_name[name]]
        judge = json.loads((self.runs / "judge.json").read_text())
        controls = json.loads((self.runs / "controls.json").read_text())
        checks = [(s.name, [one for one in controls if one["name"] == s.name]) for s in CONTROLS]
        parts = {
            "hits": table(rows, HITS),
            "controls": table(checks, HITS),
            "replies": table(
                rows,
                (
                    "similarity",
                    "F1",
                    "judge",
                    "teacher LL",
                    "Dist-2 (n-grams)",
                    "Dist-3 (n-grams)",
                    "Dist-2 (tokens)",
                    "Dist-3 (tokens)",
                    "length",
                    "generated",
                ),
            ),
            "leads": leads(by_name, "vanilla", [*(s.name for s in STUDENTS[1:]), HUMAN_ONLY]),
            "judge": "; ".join(f"{name} {value:.3f}" for name, value in judge.items()),
            "latency": latency_table(json.loads((self.runs / "latency.json").read_text())),
            "plan": "```json\n" + json.dumps(plain(self.plan), indent=1) + "\n```",
        }
        text = PAGE.read_text(encoding="utf-8")
        for name, part in parts.items():
            head, rest = text.split(f"<!-- {name} -->\n", 1)
            tail = rest.split(f"<!-- end {name} -->", 1)[1]
            text = f"{head}<!-- {name} -->\n\n{part}\n\n<!-- end {name} -->{tail}"
        write_bytes(PAGE, text.encode())


def with_responses(folder: Path, responses: Sequence[str]) -> RetrievalChatbot:
    """A saved chatbot that retrieves from other responses."""
    bot = RetrievalChatbot.from_pretrained(folder)
    return RetrievalChatbot(bot.retriever, ResponseIndex.build(bot.retriever, responses), config=bot.config)


def plain(plan: StudyPlan) -> dict[str, Any]:
    """The plan's own numbers."""
    own = {name: value for name, value in asdict(plan).items() if isinstance(value, int)}
    generation = {
        name: getattr(plan.augmentation.generation, name)
        for name in ("max_new_tokens", "temperature", "top_p")
    }
    return {
        **own,
        "responses": plan.augmentation.responses,
        **generation,
        "students": asdict(plan.students),
    }


def table(rows: Sequence[tuple[str, Sequence[Any]]], figures: Sequence[str]) -> str:
    """Mean ± standard deviation over seeds."""
    lines = ["| | " + " | ".join(figures) + " |", "|" + " --- |" * (len(figures) + 1)]
    for name, runs in rows:
        cells = []
        for figure in figures:
            values = [run["figures"][figure] for run in runs if figure in run["figures"]]
            cell = f"{fmean(values):.3f}" if values else ""
            cells.append(cell + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def leads(
    runs: dict[str, list[Any]], base: str, others: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> str:
    """Leads over another student on the same contexts, with intervals over contexts and seeds."""
    rng = np.random.default_rng(seed)
    columns = ("similarity", "F1", "judge")
    lines = [f"| lead over {base} | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for name in others:
        pairs = [(a, b) for a in runs[name] for b in runs[base] if a["seed"] == b["seed"]]
        cells = []
        for column in columns if pairs else ():
            # [seeds, contexts]
            difference = np.stack([np.array(a[column]) - np.array(b[column]) for a, b in pairs])
            drawn = (rng.integers(0, n, (resamples, n)) for n in difference.shape)
            means = [difference[np.ix_(*rows)].mean() for rows in zip(*drawn, strict=True)]
            low, high = np.percentile(means, [2.5, 97.5])
            cells.append(f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        if cells:
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def latency_table(rows: Sequence[dict[str, Any]]) -> str:
    """Latencies, and how many times the first row's they are."""
    lines = ["| | p50 ms | p95 ms | times the retriever |", "| --- | --- | --- | --- |"]
    for row in rows:
        ratio = row["p50 ms"] / rows[0]["p50 ms"]
        lines.append(f"| {row['bot']} | {row['p50 ms']:.1f} | {row['p95 ms']:.1f} | {ratio:.1f} |")
    return "\n".join(lines)


def usual_generator() -> PreTrainedModel:
    """A causal model of GPT-2 medium's shape with random weights: speed does not depend on them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=24, n_head=16, n_embd=1024)).eval()
