"""Tiny classifiers and language models with word-level tokenizers, built at run time: nothing is downloaded.

    from tests.robustkit.tiny import FAMILIES, tiny_classifier, toy_sentiment, trained_bert
    model, tokenizer = tiny_classifier("roberta", ["a good film", "a bad film"])
    model, tokenizer = trained_bert()          # about a second; knows good films from bad ones

Every model has two layers and 32 dimensions, is on the CPU in float32 and in evaluation mode. The global
random state is left as it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForTokenClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from robustkit.classifiers import ImageClassifier
from robustkit.detection import WordReader

FAMILIES = ("bert", "roberta", "distilbert", "electra", "deberta-v2", "bart", "xlnet", "gpt2", "t5")

# Which special tokens surround a text, and on which side a batch is padded.
_STYLE = {
    "bert": "bert",
    "distilbert": "bert",
    "electra": "bert",
    "deberta-v2": "bert",
    "roberta": "roberta",
    "bart": "roberta",
    "xlnet": "xlnet",
    "gpt2": "gpt2",
    "t5": "t5",
}

NOUNS = ("film", "movie", "plot", "story", "script", "cast", "music", "ending")
STRONG = {1: ("good", "great", "wonderful"), 0: ("bad", "awful", "boring")}
"""Adjectives that occur with one label only."""
WEAK = {1: ("decent", "fine", "solid"), 0: ("poor", "dull", "weak")}
"""Adjectives that occur in a fifth of the cases with the other label."""
UNSURE = ("average", "normal", "usual")
"""Adjectives that occur with both labels alike."""
SYNONYMS: dict[str, tuple[str, ...]] = {
    **{word: (*WEAK[label], *UNSURE, *WEAK[1 - label]) for label in (0, 1) for word in STRONG[label]},
    **{word: (*UNSURE, *WEAK[1 - label]) for label in (0, 1) for word in WEAK[label]},
    "film": ("movie",),
    "movie": ("film",),
    "plot": ("story", "script"),
    "story": ("plot", "script"),
}
"""What an attack on `trained_bert` may put for a word; the replacements of adjectives change its mind."""


def word_tokenizer(
    texts: Sequence[str],
    style: str = "bert",
    *,
    lower: bool = True,
    max_length: int = 64,
    extra: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token for each word and punctuation mark of the texts.

    Args:
        texts: What the vocabulary is taken from, in order of first occurrence.
        style: Special tokens as in ``bert`` ([CLS] a [SEP] b [SEP]), ``roberta`` (<s> a </s></s> b </s>),
            ``xlnet`` (a <sep> b <sep> <cls>, padded on the left), ``gpt2`` (none) or ``t5`` (a </s>).
        lower: Whether texts are lower-cased.
        max_length: ``model_max_length``.
        extra: Further words.
    """
    pad, unk, mask, first, last = {
        "bert": ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"),
        "roberta": ("<pad>", "<unk>", "<mask>", "<s>", "</s>"),
        "xlnet": ("<pad>", "<unk>", "<mask>", "<cls>", "<sep>"),
        "gpt2": ("<pad>", "<unk>", "<mask>", "<s>", "</s>"),
        "t5": ("<pad>", "<unk>", "<mask>", "<s>", "</s>"),
    }[style]
    vocabulary = {token: i for i, token in enumerate((pad, unk, mask, first, last))}
    split = pre_tokenizers.BertPreTokenizer()
    for text in (*texts, *extra):
        for word, _ in split.pre_tokenize_str(text.lower() if lower else text):
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = split
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    frames = {
        "bert": (f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1"),
        "roberta": (f"{first} $A {last}", f"{first} $A {last} {last} $B {last}"),
        "xlnet": (f"$A {last} {first}:2", f"$A {last} $B:1 {last}:1 {first}:2"),
        "t5": (f"$A {last}", f"$A {last} $B {last}"),
    }
    if style in frames:
        single, pair = frames[style]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
        )
    types = style in {"bert", "xlnet"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        mask_token=mask,
        cls_token=first,
        sep_token=last,
        bos_token=first,
        eos_token=last,
        padding_side="left" if style == "xlnet" else "right",
        model_max_length=max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )


def tiny_classifier(
    family: str = "bert",
    texts: Sequence[str] = (),
    *,
    labels: int = 2,
    max_length: int = 64,
    seed: int = 0,
    spread: float = 0.3,
    lower: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A sequence classifier with random weights, and its tokenizer.

    Args:
        family: One of `FAMILIES`.
        texts: For the vocabulary; by default the words of `toy_sentiment`.
        labels: Number of classes.
        max_length: Longest text in tokens, special tokens included.
        seed: Of the weights.
        spread: Standard deviation of the weights; small values make all logits alike.
        lower: Whether texts are lower-cased.
    """
    tokenizer = word_tokenizer(texts or toy_words(), _STYLE[family], lower=lower, max_length=max_length)
    if family == "distilbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    names = {i: f"class {i}" for i in range(labels)}
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    encoder = common | {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": max_length,
        "initializer_range": spread,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        match family:
            case "bert":
                model = BertForSequenceClassification(BertConfig(**encoder))
            case "roberta":
                # RoBERTa counts positions from the one after the pad token's id.
                positions = {"max_position_embeddings": max_length + 1 + tokenizer.pad_token_id}
                model = RobertaForSequenceClassification(RobertaConfig(**encoder | ends | positions))
            case "distilbert":
                distil = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
                kept = {"max_position_embeddings": max_length, "initializer_range": spread}
                model = DistilBertForSequenceClassification(DistilBertConfig(**common, **distil, **kept))
            case "electra":
                model = ElectraForSequenceClassification(ElectraConfig(**encoder, embedding_size=16))
            case "deberta-v2":
                relative: dict[str, Any] = {
                    "relative_attention": True,
                    "pos_att_type": ["p2c", "c2p"],
                    "position_biased_input": False,
                    "max_relative_positions": 16,
                    "type_vocab_size": 2,
                }
                model = DebertaV2ForSequenceClassification(DebertaV2Config(**encoder, **relative))
            case "bart":
                sides = {
                    f"{side}_{key}": n
                    for side in ("encoder", "decoder")
                    for key, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
                }
                start: dict[str, Any] = {"decoder_start_token_id": tokenizer.eos_token_id, "d_model": 32}
                model = BartForSequenceClassification(
                    BartConfig(**common, **ends, **sides, **start,
                               max_position_embeddings=max_length, init_std=spread)
                )  # fmt: skip
            case "xlnet":
                xlnet = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": spread}
                model = XLNetForSequenceClassification(XLNetConfig(**common, **ends, **xlnet))
            case "gpt2":
                gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": max_length}
                model = GPT2ForSequenceClassification(
                    GPT2Config(**common, **ends, **gpt2, initializer_range=spread)
                )
            case "t5":
                t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
                start = {"decoder_start_token_id": tokenizer.pad_token_id}
                model = T5ForSequenceClassification(T5Config(**common, **ends, **t5, **start))
            case _:
                raise ValueError(f"family {family!r} is not known; there are {FAMILIES}")
        if family == "gpt2":
            # Its head has no bias, and a random head alone gives much the same logits for every text.
            torch.nn.init.normal_(model.score.weight, std=1.0)
    return model.eval(), tokenizer


def toy_words() -> list[str]:
    """A vocabulary for the texts of `toy_sentiment`, synonyms included."""
    words = {word for group in (*STRONG.values(), *WEAK.values(), UNSURE, NOUNS) for word in group}
    return [*sorted(words), "the", "is", "and", "with", "a", "very", "i", "found", "it", "was", ".", ",", "!"]


def toy_sentiment(n: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Film reviews from templates: texts of 9 to 14 words and their labels, 0 for bad and 1 for good.

    Args:
        n: How many.
        seed: Other seeds give other reviews.
    """
    chance = random.Random(seed)
    texts, labels = [], []
    for i in range(n):
        label = i % 2
        words = []
        for _ in range(3):
            draw = chance.random()
            if draw < 0.5:
                words.append(chance.choice(STRONG[label]))
            elif draw < 0.8:
                words.append(chance.choice(WEAK[label if chance.random() < 0.8 else 1 - label]))
            else:
                words.append(chance.choice(UNSURE))
        if not any(word in STRONG[label] for word in words):
            words[chance.randrange(3)] = chance.choice(STRONG[label])
        nouns = chance.sample(NOUNS, 3)
        texts.append(
            chance.choice(
                (
                    "the {0} is {3} and the {1} is {4} , with a {5} {2} .",
                    "a {3} {0} with {4} {1} and a {5} {2} .",
                    "I found the {0} {3} , the {1} was {4} and it was a very {5} {2} !",
                )
            ).format(*nouns, *words)
        )
        labels.append(label)
    return texts, labels


@cache
def trained_bert(family: str = "bert", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny classifier trained on `toy_sentiment` for about a second: over 95 % right, and easy to attack.

    The same objects come back at every call: do not change them.

    Args:
        family: One of `FAMILIES`.
        seed: Of weights and batches.
    """
    model, tokenizer = tiny_classifier(family, seed=seed, spread=0.05)
    texts, labels = toy_sentiment(512, seed=seed + 1)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    gold = torch.tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for _ in range(3):
            for rows in torch.randperm(len(texts), generator=generator).split(32):
                logits = model(**{key: value[rows] for key, value in batch.items()}).logits
                torch.nn.functional.cross_entropy(logits, gold[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return model.eval(), tokenizer


def tiny_image_classifier(labels: Sequence[str], *, size: int = 8, seed: int = 0) -> ImageClassifier:
    """A vision transformer with random weights and its processor, which resizes and normalizes images."""
    names = dict(enumerate(labels))
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=size,
        patch_size=4, id2label=names, label2id={name: i for i, name in names.items()}, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return ImageClassifier(model, processor)


def tiny_masked_lm(
    texts: Sequence[str] = (), *, seed: int = 0, max_length: int = 64, lower: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A BERT masked language model with random weights; arguments as for `tiny_classifier`."""
    tokenizer = word_tokenizer(texts or toy_words(), "bert", lower=lower, max_length=max_length)
    config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=max_length,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
    return model.eval(), tokenizer


def tiny_reader(
    family: str = "bert", texts: Sequence[str] = (), *, seed: int = 0, max_length: int = 64
) -> WordReader:
    """A reader of replaced words with random weights; arguments as for `tiny_classifier`."""
    model, tokenizer = tiny_classifier(family, texts, labels=1, seed=seed, max_length=max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WordReader(AutoModelForTokenClassification.from_config(model.config), tokenizer)


def tiny_gpt2(
    texts: Sequence[str] = (), *, seed: int = 0, max_length: int = 64, lower: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A GPT-2 language model with random weights; arguments as for `tiny_classifier`."""
    tokenizer = word_tokenizer(texts or toy_words(), "gpt2", lower=lower, max_length=max_length)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=max_length,
        initializer_range=0.3, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    return model.eval(), tokenizer
