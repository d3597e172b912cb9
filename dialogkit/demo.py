"""The demo: several characters answer the same questions, and one reply shows where it comes from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table

from dialogkit.chat import Chatbot, Reply
from trainkit.terminal import safe, table

if TYPE_CHECKING:
    from dialogkit.pdp import PDPChatbot

__all__ = ["CHARACTERS", "QUESTIONS", "demo_bots", "pairs_table", "run_demo"]

CHARACTERS = ("captain", "professor", "troll")
"""Embedded characters of the demo, chosen because their voices are far apart."""

QUESTIONS = (
    "Hello, who are you?",
    "What do you like to eat?",
    "Do you have any advice for me?",
)

SHOWN_PAIRS = 6
"""Most pairs of the evidence that the demo shows."""


def demo_bots(
    model: str = "embedded", *, retriever: str | None = None, pool: str | Path | None = None
) -> list[PDPChatbot]:
    """The chatbots of the demo; they share one language model, one encoder and one pool of contexts.

    Args:
        model: Folder or Hub id of a language model, or ``"embedded"``.
        retriever: Name of an encoder; see `dialogkit.retrieval.load_retriever`.
        pool: Text file with a context in each line; None takes the embedded one.

    Returns:
        One chatbot for each of `CHARACTERS`.

    Raises:
        FileNotFoundError: If something is missing.
        ValueError: If a file cannot be used.
    """
    from dialogkit.pdp import PDPChatbot

    first = PDPChatbot(model, CHARACTERS[0], retriever=retriever, pool=pool)
    return [
        first,
        *(
            PDPChatbot(first.model, name, matcher=first.matcher, config=first.config)
            for name in CHARACTERS[1:]
        ),
    ]


def run_demo(
    console: Console, bots: Sequence[Chatbot], *, questions: Sequence[str] = QUESTIONS, seed: int = 0
) -> list[list[Reply]]:
    """Ask every chatbot the same questions and print the answers side by side.

    Args:
        console: Where to print.
        bots: At least one; all are asked with the same seed, without history.
        questions: At least one.
        seed: Any integer for the same answers each time.

    Returns:
        For each question the reply of each chatbot.

    Raises:
        ValueError: If there is no chatbot or no question.
    """
    if not bots or not questions:
        raise ValueError(f"needs chatbots and questions, got {len(bots)} and {len(questions)}")
    begin = time.perf_counter()
    by_bot = [bot.reply_batch(questions, seed=seed) for bot in bots]
    seconds = time.perf_counter() - begin
    replies = [list(row) for row in zip(*by_bot, strict=True)]

    answers = Table(box=ROUNDED, show_lines=True, expand=True)
    answers.add_column(safe("You"), style="dim", ratio=2)
    for bot in bots:
        answers.add_column(safe(bot.name, "bold"), ratio=3)
    for question, row in zip(questions, replies, strict=True):
        answers.add_row(safe(question), *(safe(reply.text) for reply in row))
    console.print(answers)

    name, question, reply = bots[-1].name, questions[-1], replies[-1][-1]
    pairs = reply.evidence["pairs"]
    console.print()
    console.print(safe(f"Where {name}'s last reply comes from", "bold"))
    console.print(
        safe(
            f"The language model continued a dialogue in which {name} had already answered these turns, "
            f"matched to the question {question!r}. Of {len(pairs)} pairs the last ones, which stand closest "
            "to the question:"
        )
    )
    console.print()
    console.print(pairs_table(pairs, name, last=SHOWN_PAIRS))
    asked = len(questions) * len(bots)
    console.print(safe(f"{asked} replies in {seconds:.1f} s, seed {seed}", "dim"))
    return replies


def pairs_table(pairs: Sequence[Mapping[str, Any]], name: str, *, last: int | None = None) -> Table:
    """A table of matched pseudo-dialogues in the order of the prompt.

    Args:
        pairs: Mappings with ``context``, ``utterance``, ``match_score`` (may be None) and ``order_score``.
        name: The character's name.
        last: Show only so many of the last pairs, with the numbers that they have among all.

    Returns:
        The renderable: the last row stands next to the user's message in the prompt.
    """
    rows = [
        (
            str(number),
            pair["context"],
            pair["utterance"],
            "" if pair["match_score"] is None else f"{pair['match_score']:.3f}",
            f"{pair['order_score']:.3f}",
        )
        for number, pair in enumerate(pairs, start=1)
        if last is None or number > len(pairs) - last
    ]
    columns = ("#", "invented turn of the user", f"{name} answers", "match", "order")
    return table(columns, rows, numeric=("#", "match", "order"))
