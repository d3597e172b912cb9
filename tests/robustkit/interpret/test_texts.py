"""Token and word attributions of text classifiers (H1, H2, H3, H5, D8)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from robustkit.classifiers import TextClassifier
from robustkit.interpret import Gradient, IntegratedGradients, RectGrad, SmoothGrad, explain
from tests.robustkit.tiny import tiny_classifier, toy_words, word_tokenizer

TEXTS = ["the film is great .", "a boring plot and a bad , bad ending !"]
FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "llama")


def classifier(family: str, spread: float = 0.3) -> TextClassifier:
    if family != "llama":
        return TextClassifier(*tiny_classifier(family, spread=spread))
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = word_tokenizer(toy_words(), "gpt2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
        initializer_range=spread,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextClassifier(LlamaForSequenceClassification(config).eval(), tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_h1_gradients_by_embeddings_are_autograds_and_padding_has_none(family: str) -> None:
    model = classifier(family)
    a = explain(model, TEXTS, "gradient", target=1)
    assert a.text is not None and a.map().shape == a.text.mask.shape
    for row, text in enumerate(TEXTS):
        batch = model.encode([text])
        embedded = model.model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        if family in ("gpt2", "llama"):
            logits = model.logits_from_embeddings(embedded, **batch)
        else:
            logits = model.model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
        (wanted,) = torch.autograd.grad(logits[0, 1], embedded)
        found = a.values[row][a.text.mask[row]]
        assert torch.allclose(found, wanted[0], atol=2e-4 * float(wanted.abs().max()))
        scores = a.token_scores()[row]
        assert [score for _, score in scores] == pytest.approx(wanted[0].norm(dim=1).tolist(), rel=1e-2)
    assert a.values[~a.text.mask].eq(0).all() and (~a.text.mask).any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "method",
    [SmoothGrad(n=4), IntegratedGradients(steps=4), RectGrad(rule="gated", q=80)],
    ids=["smoothgrad", "integrated_gradients", "rectgrad_gated"],
)
def test_h2_padding_changes_no_map(family: str, method: Any) -> None:
    model = classifier(family)
    model.model.double()  # in float32 rounding could move a unit over the threshold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        alone = explain(model, TEXTS[:1], method, target=1)
        beside = explain(model, TEXTS, method, target=1)
    assert beside.text is not None and not beside.text.mask[0].all()
    found = beside.values[0][beside.text.mask[0]]
    assert torch.allclose(found, alone.values[0], atol=1e-4 * float(found.abs().max()))
    assert found.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_h5_maps_of_texts_in_bfloat16(family: str) -> None:
    """Autocast is held to float32; a narrow model to its own gradient.

    Rounding the weights is the model's doing: with the large random weights of this DistilBERT it alone turns
    the float32 gradient to a cosine of .96.
    """
    model = classifier(family)
    wanted = explain(model, TEXTS, "gradient", target=1).values
    found = explain(model, TEXTS, "gradient", target=1, amp=True).values
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.98
    model.model.bfloat16()
    narrow = explain(model, TEXTS, "gradient", target=1)
    batch = model.encode(TEXTS)
    embedded = model.model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model.logits_from_embeddings(embedded, **batch)
    (own,) = torch.autograd.grad(logits[:, 1].float().sum(), embedded)
    assert narrow.text is not None and narrow.values.dtype == torch.float32
    rows = narrow.text.mask
    assert torch.cosine_similarity(narrow.values[rows].flatten(), own[rows].float().flatten(), dim=0) > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_h5_every_familys_map_is_the_same_in_bfloat16(family: str) -> None:
    wide, narrow = classifier(family, spread=0.1), classifier(family, spread=0.1)
    narrow.model.bfloat16()
    for method in (Gradient(), IntegratedGradients(steps=4)):
        wanted = explain(wide, TEXTS, method, target=1).values
        for found in (
            explain(narrow, TEXTS, method, target=1).values,
            explain(wide, TEXTS, method, target=1, amp=True).values,
        ):
            assert found.dtype == torch.float32
            assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.98


def test_llama_says_what_the_gated_rule_leaves() -> None:
    with pytest.warns(UserWarning, match="leaves product, rsqrt, scaled_dot_product_attention as they are"):
        a = explain(classifier("llama"), TEXTS, "rectgrad_gated")
    assert a.activations is not None and sum(a.activations.treated.values()) == 2


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("baseline", ["pad", "mask", "zero"])
def test_d8_a_baseline_keeps_special_tokens_and_the_map_is_complete(family: str, baseline: str) -> None:
    model = classifier(family, spread=0.1)
    a = explain(model, TEXTS, IntegratedGradients(baseline=baseline, steps=64), target=0)
    assert a.text is not None and a.delta is not None
    assert a.values[a.text.special].eq(0).all()
    assert a.text.special.sum().item() == (0 if family == "gpt2" else 4)
    batch = model.encode(TEXTS)
    ids = batch["input_ids"].clone()
    words = a.text.mask & ~a.text.special
    tokenizer: Any = model.tokenizer
    embedded = model.embeddings(ids)
    substitute = {"pad": tokenizer.pad_token_id, "mask": tokenizer.mask_token_id}.get(baseline)
    embedded[words] = 0.0 if substitute is None else model.embeddings(torch.tensor([[substitute]]))[0, 0]
    rise = a.output - model.logits_from_embeddings(embedded, **batch)[:, 0].detach()
    assert torch.allclose(a.values.sum(dim=(1, 2)), rise, atol=2e-3 * float(rise.abs().max()))
    assert rise.abs().min() > 1e-3


def test_h3_token_maps_are_captums_layer_integrated_gradients() -> None:
    attr = pytest.importorskip("captum.attr")
    model = classifier("bert")
    batch = model.encode(TEXTS[:1])
    layer = attr.LayerIntegratedGradients(
        lambda ids, mask: model.model(input_ids=ids, attention_mask=mask).logits,
        model.model.get_input_embeddings(),
    )
    ids = batch["input_ids"]
    words = explain(model, TEXTS[:1], "gradient").text
    assert words is not None
    start = torch.where(words.special, ids, model.tokenizer.pad_token_id)
    wanted = layer.attribute(
        ids,
        start,
        additional_forward_args=(batch["attention_mask"],),
        target=1,
        n_steps=32,
        method="gausslegendre",
    )
    found = explain(model, TEXTS[:1], IntegratedGradients(baseline="pad", steps=32), target=1)
    assert torch.allclose(found.values, wanted, atol=1e-5)


def word_pieces() -> TextClassifier:
    """A BERT whose tokenizer cuts words into pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "un",
        "##forget",
        "##table",
        "film",
        ",",
        "a",
        "<",
        "script",
        ">",
        "alert",
    ]
    cut = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    cut.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cut.normalizer = normalizers.Lowercase()
    cut.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=cut, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(vocab_size=len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=32, initializer_range=0.3)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextClassifier(BertForSequenceClassification(config).eval(), tokenizer)


def test_word_pieces_make_words_as_they_are_written() -> None:
    model = word_pieces()
    a = explain(model, ["An Unforgettable film, a film", ("a film", "unforgettable")], "integrated_gradients")
    assert a.tokens[0] == ("[CLS]", "[UNK]", "un", "##forget", "##table", "film", ",", "a", "film", "[SEP]")
    words = a.word_scores()
    assert [word for word, _ in words[0]] == ["An", "Unforgettable", "film", ",", "a", "film"]
    assert [word for word, _ in words[1]] == ["a", "film", "unforgettable"]
    tokens = a.token_scores()
    assert words[0][1][1] == pytest.approx(sum(score for _, score in tokens[0][2:5]), abs=1e-6)
    norm = explain(model, ["An Unforgettable film, a film"], "gradient")
    joint = norm.values[0, 2:5].norm().item()
    assert norm.word_scores()[0][1][1] == pytest.approx(joint, rel=1e-5)
    assert norm.word_scores("max_abs")[0][1][1] == pytest.approx(norm.values[0, 2:5].abs().max().item())


@pytest.mark.parametrize("text", ["", "  \n "])
def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"text 1 .* has no words"):
        explain(classifier("bert"), ["a film", text])


def test_other_mistakes_with_texts() -> None:
    model = classifier("bert")
    with pytest.raises(TypeError, match="give TextClassifier"):
        explain(model.model, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="baseline is 'nan'; expected one of pad, mask, zero"):
        explain(model, TEXTS, IntegratedGradients(baseline="nan"))
    model.model.train()
    with pytest.raises(ValueError, match="training mode"):
        explain(model, TEXTS)
    model.model.eval()
    with pytest.raises(ValueError, match="no images"):
        explain(model, TEXTS).heatmap("x.png")
