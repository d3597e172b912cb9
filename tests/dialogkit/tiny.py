"""Tiny language models with random weights, built at run time: nothing is downloaded or stored.

    from tests.dialogkit.tiny import tiny_causal_lm, tiny_seq2seq_lm
    lm = tiny_causal_lm(["hello", "who", "are", "you"])

The tokenizer is a byte-level BPE, so every text has tokens and decodes to itself exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dialogkit.generation import TransformersLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def byte_tokenizer(
    words: Sequence[str] = (),
    *,
    alphabet: str | None = None,
    bos: bool = False,
    closing_eos: bool = False,
    pad: bool = False,
    chat: bool = False,
    padding_side: str = "right",
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a token for each byte and each word (with and without a leading space).

    Args:
        words: Words to get tokens of their own.
        alphabet: Characters to have tokens for; None means every byte.
        bos: Whether ``<s>`` is put before a text.
        closing_eos: Whether ``</s>`` is put after a text.
        pad: Whether there is a pad token.
        chat: Whether there are role tokens and a chat template.
        padding_side: The setting that our code must not depend on.
        model_max_length: Context window.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    if alphabet is not None:
        letters = {piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(alphabet)}
        letters = set("".join(letters))
    special = ["<s>", "</s>", "<pad>", *(ROLE_TOKENS if chat else ())]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=sorted(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for word in words for text in (word, f" {word}")] * 2, trainer)
    if bos or closing_eos:
        frame = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * closing_eos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "padding_side": padding_side}
    if pad:
        settings["pad_token"] = "<pad>"
    if chat:
        settings["additional_special_tokens"] = list(ROLE_TOKENS)
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_model(
    family: str, vocabulary: int, *, seed: int = 0, max_length: int = 512, spread: float = 0.5
) -> PreTrainedModel:
    """A model of two layers and 32 dimensions with random weights, on the CPU in float32.

    Args:
        family: ``gpt2``, ``llama``, ``qwen3``, ``opt``, ``bloom``, ``t5`` or ``bart``.
        vocabulary: Number of tokens.
        seed: Of the weights; the global random state is left as it was.
        max_length: Positions, where the family has such a limit.
        spread: Standard deviation of the embeddings: with 0.02 every next token is about as likely as any.
    """
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False}
    decoder: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "vocab_size": vocabulary,
    }
    llama = decoder | {
        "intermediate_size": 64,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_length,
    }
    sides: dict[str, Any] = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if family == "gpt2":
            gpt2 = GPT2Config(
                vocab_size=vocabulary, n_layer=2, n_head=2, n_embd=32, n_positions=max_length, **ends
            )
            model = GPT2LMHeadModel(gpt2)
        elif family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**llama, **ends))
        elif family == "qwen3":
            window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
            model = Qwen3ForCausalLM(Qwen3Config(**llama, **ends, **window, head_dim=16))
        elif family == "opt":
            size: dict[str, Any] = {
                "ffn_dim": 64,
                "word_embed_proj_dim": 32,
                "max_position_embeddings": max_length,
            }
            model = OPTForCausalLM(OPTConfig(**decoder, **ends, **size, pad_token_id=2))
        elif family == "bloom":
            bloom = BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=2, **ends)
            model = BloomForCausalLM(bloom)
        elif family == "t5":
            t5 = T5Config(
                vocab_size=vocabulary, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                pad_token_id=2, decoder_start_token_id=2, **ends,
            )  # fmt: skip
            model = T5ForConditionalGeneration(t5)
        elif family == "bart":
            bart = BartConfig(
                vocab_size=vocabulary, d_model=32, **sides, **ends, max_position_embeddings=max_length,
                pad_token_id=2, decoder_start_token_id=1,
            )  # fmt: skip
            model = BartForConditionalGeneration(bart)
            model.generation_config.forced_bos_token_id = 0
            model.generation_config.forced_eos_token_id = None
        else:
            raise ValueError(f"family {family!r} is not known")
        with torch.no_grad():
            embedding = model.get_input_embeddings().weight
            embedding.normal_(0.0, spread)
            output = model.get_output_embeddings().weight
            if output is not embedding:
                output.normal_(0.0, spread)
    return model.eval()


def tiny_causal_lm(
    words: Sequence[str] = (),
    seed: int = 0,
    *,
    family: str = "gpt2",
    chat: bool = False,
    max_length: int = 512,
    batch_size: int = 64,
) -> TransformersLM:
    """A causal model and its tokenizer as a `LanguageModel`.

    Args:
        words: Words to get tokens of their own.
        seed: Of the weights.
        family: See `tiny_model`.
        chat: Whether it has a chat template.
        max_length: Context window in tokens.
        batch_size: Rows in one forward pass.
    """
    tokenizer = byte_tokenizer(words, chat=chat)
    model = tiny_model(family, len(tokenizer), seed=seed, max_length=max_length)
    return TransformersLM(model, tokenizer, batch_size=batch_size, name=f"tiny-{family}")


def tiny_seq2seq_lm(
    words: Sequence[str] = (), seed: int = 0, *, family: str = "t5", max_length: int = 512
) -> TransformersLM:
    """An encoder-decoder model and its tokenizer as a `LanguageModel`; arguments as for `tiny_causal_lm`."""
    tokenizer = byte_tokenizer(words, closing_eos=True, pad=True, model_max_length=max_length)
    model = tiny_model(family, len(tokenizer), seed=seed, max_length=max_length)
    return TransformersLM(model, tokenizer, name=f"tiny-{family}")
