"""What a process that talks with the Hub does, for `test_hub.py`; it runs there by name."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dialogkit.exemplar import ExemplarBotConfig, ExemplarChatbot, ExemplarPacker, LengthBudget
from dialogkit.generation import GenerationConfig
from dialogkit.retrieval import BiEncoder, ResponseIndex, build_biencoder
from dialogkit.retrieval.saving import Provenance
from tests.dialogkit.exemplar.toys import WORDS, lm, response_set
from tests.dialogkit.tiny import byte_tokenizer
from trainkit.cards import DataUse, Metric

__all__ = ["push_bot", "talk"]


def push_bot(name: str) -> tuple[str, list[str]]:
    """Pushes a chatbot; the commit, and what it says."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = Path(folder) / "encoder"
        build_biencoder(
            byte_tokenizer(WORDS, pad=True), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
        ).save_pretrained(str(encoder), create_model_card=False)
        retriever = BiEncoder(encoder)
        bot = ExemplarChatbot(
            ExemplarPacker(lm(), budget=LengthBudget(40, 16, 24)),
            retriever,
            ResponseIndex.build(retriever, response_set()),
            config=ExemplarBotConfig(exemplars=2, generation=GenerationConfig(max_new_tokens=8)),
            name="Ann",
            provenance=Provenance("CORGE", (DataUse("Colours", "CC0-1.0"),), (Metric("ppl", 3.0, "x"),), 7),
        )
        return bot.push_to_hub(name), _said(bot)


def talk(name: str, revision: str | None) -> list[str]:
    """What the pushed chatbot says."""
    return _said(ExemplarChatbot.from_pretrained(name, revision=revision))


def _said(bot: ExemplarChatbot) -> list[str]:
    replies = bot.reply_batch(["tell me of red", "hello"], seed=3)
    return [text for reply in replies for text in (reply.text, *reply.evidence["exemplars"])]
