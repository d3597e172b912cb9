"""What the Hub tests of retrieval run in processes of their own; arguments and answers are JSON."""

from pathlib import Path

import torch

from dialogkit.g2r import Provenance, RetrievalChatbot, RetrievalConfig
from dialogkit.retrieval import (
    BiEncoder,
    IndexConfig,
    ResponseIndex,
    StaleIndexError,
    build_biencoder,
    save_biencoder,
)
from tests.dialogkit.tiny import byte_tokenizer
from trainkit.cards import DataUse, Metric

RESPONSES = [f"answer {i}" for i in range(300)]
QUESTIONS = ("Hello.", "Will it rain?", "And then?")
Answers = list[list[tuple[str, float]]]


def _encoder(seed: int = 0) -> BiEncoder:
    folder = Path(f"biencoder-{seed}")
    if not folder.exists():
        torch.manual_seed(seed)
        made = build_biencoder(byte_tokenizer(pad=True), hidden_size=16, num_layers=1, num_heads=2)
        save_biencoder(made, folder)
    return BiEncoder(folder)


def _found(index: ResponseIndex) -> Answers:
    found = index.search(_encoder().encode_context(QUESTIONS), 3)
    return [
        [(text, float(score)) for text, score in zip(texts, scores, strict=True)]
        for texts, scores in zip(found.texts, found.scores, strict=True)
    ]


def push_index(repo_id: str, kind: str) -> tuple[str, Answers, dict[str, float]]:
    """Pushes an index; returns the commit, what it finds and its recall."""
    config = IndexConfig(kind=kind, lists=4, probes=2, refine=1)  # type: ignore[arg-type]
    index = ResponseIndex.build(_encoder(), RESPONSES, config=config, contexts=QUESTIONS)
    return index.push_to_hub(repo_id), _found(index), dict(index.recall)


def grow_index(repo_id: str) -> tuple[str, int]:
    """Adds a response to the index of a repository and pushes it again; returns the commit and the size."""
    index = ResponseIndex.from_pretrained(repo_id)
    index.add(_encoder(), ["something new", RESPONSES[0]])
    return index.push_to_hub(repo_id), len(index)


def search(repo_id: str, revision: str | None) -> Answers:
    """What the index of a repository finds."""
    return _found(ResponseIndex.from_pretrained(repo_id, revision=revision))


def check_with_other_weights(repo_id: str) -> str:
    """What the index of a repository says to another encoder."""
    try:
        ResponseIndex.from_pretrained(repo_id).check(_encoder(seed=1))
    except StaleIndexError as error:
        return str(error)
    return "nothing"


def _talk(bot: RetrievalChatbot) -> Answers:
    replies = [bot.reply(question).evidence["candidates"] for question in QUESTIONS]
    return [[(row["response"], row["score"]) for row in rows] for rows in replies]


def push_bot(repo_id: str) -> tuple[str, Answers]:
    """Pushes a chatbot with its origin; returns the commit and what the chatbot says."""
    encoder = _encoder()
    bot = RetrievalChatbot(
        encoder,
        ResponseIndex.build(encoder, RESPONSES),
        config=RetrievalConfig(candidates=2),
        name="Ann",
        provenance=Provenance(
            "G2R, alpha 0.25",
            (DataUse("Small Talk", "CC0-1.0"),),
            (Metric("hits@1/10", 0.8125, "validation examples", n=16),),
            seed=7,
            licence="CC-BY-4.0",
        ),
    )
    return bot.push_to_hub(repo_id), _talk(bot)


def talk(repo_id: str, revision: str | None) -> Answers:
    """What the chatbot of a repository says."""
    return _talk(RetrievalChatbot.from_pretrained(repo_id, revision=revision))


def push_again(repo_id: str, to: str) -> str:
    """Pushes the chatbot of one repository to another; returns the commit."""
    return RetrievalChatbot.from_pretrained(repo_id).push_to_hub(to)
