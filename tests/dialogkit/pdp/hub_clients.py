"""What the Hub tests of chatbots run in processes of their own; arguments and answers are JSON."""

from pathlib import Path

from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import ContextIndex, ContextPool, DynamicMatcher, PDPChatbot
from dialogkit.retrieval import BiEncoder, build_biencoder, save_biencoder
from tests.dialogkit.pdp.helpers import CONTEXTS, character
from tests.dialogkit.tiny import byte_tokenizer, tiny_causal_lm

TEXTS = ("Hello.", "Will it rain?")
GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False)


def push_lm(repo_id: str, seed: int) -> str:
    """Makes a tiny language model with the seed the content of a repository; returns the commit."""
    lm = tiny_causal_lm(seed=seed, max_length=700)
    lm.tokenizer.push_to_hub(repo_id)
    return str(lm.model.push_to_hub(repo_id).oid)


def _talk(bot: PDPChatbot) -> list[list[str]]:
    replies = [bot.reply(text) for text in TEXTS]
    return [[str(reply.evidence["prompt"]), reply.text] for reply in replies]


def push_bot(repo_id: str, model: str | None, include_model: bool) -> tuple[str, list[list[str]]]:
    """Pushes a chatbot; returns the commit and what the chatbot says."""
    folder = Path("biencoder")
    if not folder.exists():
        made = build_biencoder(
            byte_tokenizer(pad=True), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16
        )
        save_biencoder(made, folder)
    matcher = DynamicMatcher(ContextIndex(BiEncoder(folder), ContextPool(CONTEXTS)))
    lm: TransformersLM | str = model or tiny_causal_lm(max_length=700)
    bot = PDPChatbot(lm, character(), matcher=matcher, generation=GREEDY)
    if not include_model:
        # Pushed first, so that the retriever has a name that anybody can load.
        from sentence_transformers import SentenceTransformer

        SentenceTransformer(str(folder), device="cpu").push_to_hub(f"{repo_id}-retriever", exist_ok=True)
        bot = PDPChatbot(
            lm, character(), retriever=f"{repo_id}-retriever", pool=ContextPool(CONTEXTS), generation=GREEDY
        )
    return bot.push_to_hub(repo_id, include_model=include_model), _talk(bot)


def talk(repo_id: str, revision: str | None) -> list[list[str]]:
    """What the chatbot of a repository says."""
    return _talk(PDPChatbot.from_pretrained(repo_id, revision=revision))


def push_local(repo_id: str) -> str:
    """Tries to push a chatbot that names a folder of this machine."""
    matcher = DynamicMatcher(ContextIndex(BiEncoder("biencoder"), ContextPool(CONTEXTS)))
    bot = PDPChatbot(tiny_causal_lm(max_length=700), character(), matcher=matcher, generation=GREEDY)
    return bot.push_to_hub(repo_id)
