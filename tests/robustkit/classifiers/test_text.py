"""Logits, vectors and gradients of text classifiers: behaviours 18 to 20, and bad input."""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertForSequenceClassification,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    XLMConfig,
    XLMForSequenceClassification,
)

from robustkit.classifiers import Features, TextClassifier
from tests.robustkit.tiny import (
    FAMILIES,
    tiny_classifier,
    toy_sentiment,
    toy_words,
    trained_bert,
    word_tokenizer,
)
from trainkit.hub import HubOfflineError

TEXTS = [*toy_sentiment(12)[0], "good", "", "the film , the plot .", "quite unknown words"]


@cache
def parts(family: str) -> tuple[Any, Any]:
    return tiny_classifier(family)


def classifier(family: str = "bert", **options: Any) -> TextClassifier:
    return TextClassifier(*deepcopy(parts(family)), **options)


def one_by_one(c: TextClassifier, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([c.model(**c.tokenizer(t, return_tensors="pt")).logits.numpy() for t in texts])


def head_of(family: str, model: Any, vectors: torch.Tensor) -> torch.Tensor:
    """Logits from the vectors that the head reads, written from each architecture's own modules."""
    match family:
        case "bert":
            return model.classifier(torch.tanh(model.bert.pooler.dense(vectors)))
        case "roberta" | "electra":
            return model.classifier(vectors[:, None])
        case "distilbert":
            return model.classifier(torch.relu(model.pre_classifier(vectors)))
        case "deberta-v2":
            return model.classifier(model.pooler(vectors[:, None]))
        case "bart" | "t5":
            return model.classification_head(vectors)
        case "xlnet":
            return model.logits_proj(model.sequence_summary(vectors[:, None]))
        case "gpt2":
            return model.score(vectors)
    raise AssertionError(family)


# Behaviour 18 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_pooling_gives_the_vector_that_the_head_reads(family: str) -> None:
    """Behaviour 18: the head applied to the vectors gives the logits, for each architecture."""
    c = classifier(family)
    found = c.extract(TEXTS)
    assert found.values.shape == (len(TEXTS), 32) and found.values.dtype == np.float32
    with torch.no_grad():
        logits = head_of(family, c.model, torch.from_numpy(found.values)).numpy()
    assert found.logits is not None
    np.testing.assert_allclose(logits, found.logits, atol=2e-5)
    # The texts differ, so their vectors must.
    assert np.ptp(found.values, axis=0).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_models_own_without_padding(family: str) -> None:
    """Behaviour 18: logits equal ``model(**enc).logits``, padded or not."""
    texts = [text for text in TEXTS if text]
    np.testing.assert_allclose(
        classifier(family).logits(texts), one_by_one(classifier(family), texts), atol=2e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_results_depend_on_neither_batch_size_nor_order(family: str) -> None:
    """Behaviour 18: sorted by length inside, restored outside."""
    together, alone = classifier(family, batch_size=100), classifier(family, batch_size=1)
    want = alone.extract(TEXTS)
    np.testing.assert_allclose(together.extract(TEXTS).values, want.values, atol=1e-5)
    found = together.extract(TEXTS[::-1])
    np.testing.assert_allclose(found.values[::-1], want.values, atol=1e-5)
    assert found.texts == tuple(TEXTS[::-1])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(TEXTS) - 1), max_size=25), st.integers(1, 9))
def test_any_selection_of_texts_gives_its_rows(rows: list[int], batch_size: int) -> None:
    c = classifier(batch_size=batch_size)
    whole = c.logits(TEXTS)
    np.testing.assert_allclose(c.logits([TEXTS[i] for i in rows]), whole[rows], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "gpt2"])
def test_the_tokenizers_padding_side_does_not_matter(family: str, side: str) -> None:
    c = classifier(family)
    want = c.extract(TEXTS)
    c.tokenizer.padding_side = side
    np.testing.assert_array_equal(classifier(family).extract(TEXTS).values, want.values)


def test_bert_reads_the_first_position_of_the_last_hidden_state() -> None:
    """Specification, section 3: position 0, not the tanh pooler."""
    c = classifier()
    batch = c.encode(TEXTS)
    with torch.no_grad():
        output = c.model.bert(**batch)
    np.testing.assert_allclose(c.extract(TEXTS).values, output.last_hidden_state[:, 0], atol=1e-5)
    pooled = classifier(pooling="pooler").extract(TEXTS).values
    np.testing.assert_allclose(pooled, output.pooler_output, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, -2, -3])
def test_a_layer_is_an_index_into_the_hidden_states(layer: int) -> None:
    c = classifier(layer=layer)
    batch = c.encode(TEXTS)
    with torch.no_grad():
        states = c.model.bert(**batch, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(c.extract(TEXTS).values, states[layer][:, 0], atol=1e-5)
    assert len(states) == 3


def test_poolings_first_last_mean_and_a_function_by_hand() -> None:
    batch = classifier().encode(TEXTS)
    mask = batch["attention_mask"]
    with torch.no_grad():
        state = classifier().model.bert(**batch).last_hidden_state
    lengths = mask.sum(dim=1)
    want = {
        "first": state[:, 0],
        "last": torch.stack([row[n - 1] for row, n in zip(state, lengths, strict=True)]),
        "mean": torch.stack([row[:n].mean(dim=0) for row, n in zip(state, lengths, strict=True)]),
    }
    for pooling, vectors in want.items():
        np.testing.assert_allclose(classifier(pooling=pooling).extract(TEXTS).values, vectors, atol=1e-5)

    def second(state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert mask.shape == state.shape[:2]
        return state[:, 1, :5]

    np.testing.assert_allclose(classifier(pooling=second).extract(TEXTS).values, state[:, 1, :5], atol=1e-5)


class MeanHead(BertForSequenceClassification):
    """Reads the mean over tokens, like ModernBERT with ``classifier_pooling="mean"``."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        output = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        weights = attention_mask[:, :, None].float()
        output.logits = self.classifier((output[0] * weights).sum(1) / weights.sum(1))
        return output


class OddHead(MeanHead):
    """Reads the second token and the third."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        output = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        output.logits = self.classifier(output[0][:, 1] + output[0][:, 2])
        return output


def test_a_head_that_reads_the_mean_is_recognized() -> None:
    model, tokenizer = tiny_classifier()
    c = TextClassifier(MeanHead(model.config).eval(), tokenizer)
    found = c.extract(TEXTS)
    with torch.no_grad():
        logits = c.model.classifier(torch.from_numpy(found.values)).numpy()
    np.testing.assert_allclose(logits, found.logits, atol=1e-5)


SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "initializer_range": 0.3,
}  # fmt: skip
OTHERS: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "albert": (AlbertConfig, AlbertForSequenceClassification, "bert", SMALL | {"embedding_size": 16}),
    "llama": (LlamaConfig, LlamaForSequenceClassification, "gpt2", SMALL | {"num_key_value_heads": 1}),
    "longformer": (
        LongformerConfig, LongformerForSequenceClassification, "roberta", SMALL | {"attention_window": 8},
    ),
    "modernbert": (
        ModernBertConfig, ModernBertForSequenceClassification, "roberta",
        SMALL | {"classifier_pooling": "mean"},
    ),
    "xlm": (XLMConfig, XLMForSequenceClassification, "bert", {"emb_dim": 32, "n_layers": 2, "n_heads": 2}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_need_no_code_of_their_own(kind: str) -> None:
    config, model_class, style, sizes = OTHERS[kind]
    tokenizer = word_tokenizer(toy_words(), style, max_length=60)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    model = model_class(
        config(vocab_size=len(tokenizer), max_position_embeddings=64, cls_token_id=3, **special, **sizes)
    )
    c = TextClassifier(model.eval(), tokenizer)
    found = c.extract(TEXTS)
    alone = np.concatenate([c.extract([text]).values for text in TEXTS])
    np.testing.assert_allclose(found.values, alone, atol=1e-5)
    position = {"llama": "last", "modernbert": "mean"}.get(kind, "first")
    want = TextClassifier(model, tokenizer, pooling=position)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.values, want.extract(TEXTS).values)
    batch = c.encode(TEXTS)
    logits = c.logits_from_embeddings(c.embeddings(batch["input_ids"]), **batch)
    np.testing.assert_allclose(logits.detach(), found.logits, atol=2e-5)


@pytest.mark.parametrize("kind", ["convbert", "fnet"])
def test_models_that_see_padding_get_none(kind: str) -> None:
    """Convolutions and Fourier transforms mix padding into the text: texts of one length share a batch."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    common = sizes | {"max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
    _, tokenizer = tiny_classifier()
    torch.manual_seed(0)
    model: Any
    if kind == "convbert":
        config = ConvBertConfig(vocab_size=len(tokenizer), num_attention_heads=2, **common)
        model = ConvBertForSequenceClassification(config)
    else:
        model = FNetForSequenceClassification(FNetConfig(vocab_size=len(tokenizer), **common))
        tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    c = TextClassifier(model.eval(), tokenizer)
    found = c.extract(TEXTS).values
    np.testing.assert_allclose(found, np.concatenate([c.extract([text]).values for text in TEXTS]), atol=1e-5)
    seen = Counted(c)
    c.logits(["good film", "bad film", "good"])
    assert seen.shapes == [(2, 4), (1, 3)]


def test_a_head_that_reads_something_else_needs_an_explicit_pooling() -> None:
    model, tokenizer = tiny_classifier()
    odd = OddHead(model.config).eval()
    texts = [text for text in TEXTS if text]
    with pytest.raises(ValueError, match=r"cannot be told.*pooling="):
        TextClassifier(odd, tokenizer).extract(texts)
    assert TextClassifier(odd, tokenizer).logits(texts).shape == (len(texts), 2)
    assert TextClassifier(odd, tokenizer, pooling="mean").extract(texts).values.shape == (len(texts), 32)


def test_a_text_that_ends_with_gpt2s_padding_token() -> None:
    """GPT-2's head passes over tokens that look like padding, and so does the vector."""
    c = classifier("gpt2")
    texts = ["the film is good <pad>", "a plot", "<pad>"]
    found = c.extract(texts)
    with torch.no_grad():
        logits = c.model.score(torch.from_numpy(found.values)).numpy()
    np.testing.assert_allclose(logits, found.logits, atol=2e-5)


def test_a_model_without_padding_token_runs_texts_one_at_a_time() -> None:
    want = classifier("gpt2").extract(TEXTS)
    c = classifier("gpt2")
    c.model.config.pad_token_id = None
    np.testing.assert_allclose(c.extract(TEXTS).values, want.values, atol=1e-5)


def test_eos_written_in_a_text_does_not_break_its_batch() -> None:
    """BART's head refuses batches whose texts have different numbers of <eos>."""
    texts = ["a good film", "a </s> film", "the plot"]
    c = classifier("bart")
    np.testing.assert_allclose(c.logits(texts), one_by_one(c, texts), atol=1e-5)


# Behaviour 19 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_text_pairs_work_beside_single_texts(family: str) -> None:
    """Behaviour 19."""
    c = classifier(family)
    items = ["a good film", ("a film", "the plot is bad"), ("", "good"), ("the plot is bad", "a film")]
    found = c.logits(items)
    with torch.no_grad():
        one = c.model(**c.tokenizer("a film", "the plot is bad", return_tensors="pt")).logits
    np.testing.assert_allclose(found[1], one[0], atol=1e-5)
    assert abs(found[1] - found[3]).max() > 1e-3
    assert c.extract(items).texts == tuple(items)


def test_model_mode_gradients_and_random_state_are_left_alone() -> None:
    """Behaviour 19: mixed modes stay mixed, no gradient appears or changes, no random number is drawn."""
    c = classifier()
    c.model.train()
    c.model.bert.embeddings.eval()
    modes = [module.training for module in c.model.modules()]
    c.model.classifier.weight.grad = torch.ones_like(c.model.classifier.weight)
    c.model.bert.encoder.requires_grad_(False)
    frozen = [parameter.requires_grad for parameter in c.model.parameters()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = c.extract(TEXTS)
    c.token_gradients(TEXTS[:2], [0, 1])
    np.testing.assert_array_equal(torch.get_rng_state(), state)
    assert [module.training for module in c.model.modules()] == modes
    assert [parameter.requires_grad for parameter in c.model.parameters()] == frozen
    grads = [p.grad for p in c.model.parameters() if p is not c.model.classifier.weight]
    assert grads == [None] * len(grads)
    assert (c.model.classifier.weight.grad == 1).all()
    # Dropout was off.
    np.testing.assert_array_equal(found.values, classifier().extract(TEXTS).values)


def test_it_works_inside_inference_mode_and_with_all_weights_frozen() -> None:
    c = classifier()
    c.model.requires_grad_(False)
    with torch.inference_mode():
        found = c.extract(TEXTS).values
        gradient = c.token_gradients(["good film"], [1])[0].gradient
    np.testing.assert_array_equal(found, classifier().extract(TEXTS).values)
    assert abs(gradient).max() > 0


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_empty_list_gives_no_rows(family: str) -> None:
    """Behaviour 19."""
    c = classifier(family)
    found = c.extract([])
    assert found.values.shape == (0, 32) and found.texts == () and found.source == c.source
    assert found.logits is not None and found.logits.shape == (0, 2)
    assert c.logits([]).shape == (0, 2) and c.predict([]).shape == (0,)
    assert c.token_gradients([], []) == []


def test_a_single_text() -> None:
    """Behaviour 19."""
    c = classifier()
    np.testing.assert_array_equal(c.logits("good"), c.logits(["good"]))


def test_a_long_text_is_cut_off_with_one_warning() -> None:
    """Behaviour 19."""
    c = classifier(max_length=8)
    long, short = "good film " * 50, "good film good film good film"
    with pytest.warns(UserWarning, match=r"1 of 2 texts have more than 8 tokens") as caught:
        found = c.logits([long, "a film"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        c.logits([long])
        # Six words and two special tokens just fit.
        np.testing.assert_allclose(c.logits([short])[0], found[0], atol=1e-5)


def test_a_text_of_20000_words() -> None:
    c = classifier()
    with pytest.warns(UserWarning, match="64 tokens"):
        found = c.extract(["good " * 20_000, "bad"])
    assert np.isfinite(found.values).all()


def test_max_length_is_what_model_and_tokenizer_take() -> None:
    for family in FAMILIES:
        assert classifier(family).max_length == 64
    for family, limit in (("bert", 64), ("roberta", 64), ("gpt2", 64), ("xlnet", 512)):
        model, tokenizer = tiny_classifier(family)
        tokenizer.model_max_length = int(1e30)
        assert TextClassifier(model, tokenizer).max_length == limit
    text = "good " * 70
    for family in FAMILIES:
        with pytest.warns(UserWarning):
            assert np.isfinite(classifier(family).logits([text])).all()


def test_probabilities_and_predictions_follow_from_the_logits() -> None:
    c = classifier()
    logits = c.logits(TEXTS).astype(np.float64)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(c.probabilities(TEXTS), want, atol=1e-6)
    np.testing.assert_array_equal(c.predict(TEXTS), logits.argmax(axis=1))
    assert c.predict(TEXTS).dtype == np.int64


def test_the_toy_task_is_learnt_and_leaves_room_for_attacks() -> None:
    c = TextClassifier(*trained_bert())
    texts, labels = toy_sentiment(200, seed=77)
    assert (c.predict(texts) == labels).mean() > 0.95


# Work that is not done --------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts rows and padded tokens that reach a model."""

    def __init__(self, c: TextClassifier) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        c.extract(["good"])  # the head is looked at now
        c.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: nn.Module, arguments: tuple[()], keywords: dict[str, torch.Tensor]) -> None:
        self.shapes.append(tuple(keywords["input_ids"].shape))


def test_equal_texts_are_computed_once() -> None:
    c = classifier()
    seen = Counted(c)
    found = c.logits(["good film", "bad", "good film", "good film"])
    assert seen.shapes == [(2, 4)]
    np.testing.assert_array_equal(found[[0, 0, 0]], found[[0, 2, 3]])


def test_batches_hold_texts_of_like_length() -> None:
    c = classifier(batch_size=2)
    seen = Counted(c)
    c.logits(["good " * 10, "bad", "good " * 11, "film"])
    assert seen.shapes == [(2, 13), (2, 3)]


def test_batches_hold_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        vars(__import__("robustkit.classifiers.text", fromlist=["_TOKENS"]))["_TOKENS"], "cpu", 30
    )
    c = classifier()
    seen = Counted(c)
    c.logits(["good " * 10, "bad", "good " * 11, "film", "plot", "good " * 40])
    assert seen.shapes == [(1, 42), (2, 13), (3, 3)]


@pytest.mark.parametrize("batch_size", ["auto", 16])
def test_batches_are_halved_when_memory_runs_out(batch_size: Any) -> None:
    c = classifier(batch_size=batch_size)
    want = c.extract(TEXTS)
    seen = Counted(c)

    def small_memory(module: nn.Module, arguments: tuple[()], keywords: dict[str, torch.Tensor]) -> None:
        if len(keywords["input_ids"]) > 3:
            raise torch.OutOfMemoryError("no memory left")

    c.model.register_forward_pre_hook(small_memory, with_kwargs=True)
    np.testing.assert_allclose(c.extract(TEXTS).values, want.values, atol=1e-5)
    failed = len(seen.shapes)
    c.extract(TEXTS)
    # The size is kept: the second time nothing fails that failed before.
    assert all(rows <= 3 for rows, _ in seen.shapes[failed : failed + 3])


def test_a_text_that_memory_does_not_hold_raises() -> None:
    c = classifier()
    Counted(c)

    def no_memory(module: nn.Module, arguments: tuple[()]) -> None:
        raise torch.OutOfMemoryError("no memory left")

    c.model.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        c.logits(TEXTS)


def test_bfloat16_comes_near_and_leaves_the_weights() -> None:
    c = classifier(dtype="bfloat16")
    found = c.extract(TEXTS)
    want = classifier(dtype=torch.float32).extract(TEXTS)
    assert found.values.dtype == np.float32
    assert 1e-5 < abs(found.values - want.values).max() < 0.2
    assert c.model.dtype == torch.float32
    np.testing.assert_array_equal(classifier(dtype="auto").extract(TEXTS).values, want.values)


# Gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_from_the_models_own_embeddings_are_its_logits(family: str) -> None:
    c = classifier(family)
    batch = c.encode(TEXTS)
    embedded = c.embeddings(batch["input_ids"])
    np.testing.assert_allclose(
        c.logits_from_embeddings(embedded, **batch).detach(), c.logits(TEXTS), atol=2e-5
    )
    assert abs(c.logits_from_embeddings(embedded * 0.5, **batch).detach() - c.logits(TEXTS)).max() > 1e-3


@pytest.mark.parametrize("of", ["loss", "margin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_gradients_equal_finite_differences(family: str, of: Literal["loss", "margin"]) -> None:
    """In float64, in a padded batch, against central differences of each text's own loss or margin."""
    c = classifier(family)
    c.model.double()
    texts = ["the film is good and the plot bad .", "a plot", "good"]
    labels = [1, 0, 1]
    found = c.token_gradients(texts, labels, of=of)
    chance = np.random.default_rng(0)
    for text, label, (tokens, offsets, gradient) in zip(texts, labels, found, strict=True):
        batch = c.encode([text])
        assert tokens == tuple(c.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()))
        embedded = c.embeddings(batch["input_ids"])
        assert gradient.shape == embedded.shape[1:] and gradient.dtype == np.float32
        words = [text[a:b] for a, b in offsets.tolist() if b > a]
        assert words == text.split()
        direction = torch.from_numpy(chance.normal(size=embedded.shape))

        def loss(step: float, e=embedded, b=batch, d=direction, y=label) -> float:
            with torch.no_grad():
                logits = c.logits_from_embeddings(e + step * d, **b)
            if of == "margin":
                return (logits[0, y] - np.delete(logits[0].detach().numpy(), y).max()).item()
            return -logits.log_softmax(dim=1)[0, y].item()

        # T5 normalizes in float32 whatever its weights are: smaller steps drown in rounding.
        step, error = (1e-4, 1e-2) if family == "t5" else (1e-5, 1e-3)
        slope = (loss(step) - loss(-step)) / (2 * step)
        assert slope == pytest.approx((direction[0].numpy() * gradient).sum(), rel=error, abs=1e-6)


def test_token_gradients_do_not_depend_on_the_batch() -> None:
    c = classifier(batch_size=2)
    texts = [text for text in TEXTS if text]
    found = c.token_gradients(texts, [i % 2 for i in range(len(texts))])
    for i, text in enumerate(texts):
        np.testing.assert_allclose(
            found[i].gradient, c.token_gradients([text], [i % 2])[0].gradient, atol=1e-5
        )


# Behaviour 20 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_cache_hit_gives_identical_arrays_without_a_forward_pass(kind: str, tmp_path: Path) -> None:
    """Behaviour 20."""
    c = classifier(cache=1000 if kind == "memory" else tmp_path / "results")
    seen = Counted(c)
    first = c.extract(TEXTS)
    passes = len(seen.shapes)
    second = c.extract(TEXTS[::-1])
    assert len(seen.shapes) == passes
    np.testing.assert_array_equal(second.values[::-1], first.values)
    np.testing.assert_array_equal(second.logits[::-1], first.logits)  # type: ignore[index]
    np.testing.assert_array_equal(c.logits(TEXTS), first.logits)
    # One new text costs one row.
    c.logits([*TEXTS, "a plot and a film"])
    assert len(seen.shapes) == passes + 1 and seen.shapes[-1][0] == 1
    if kind == "disk":
        again = classifier(cache=str(tmp_path / "results"))
        seen = Counted(again)
        np.testing.assert_array_equal(again.extract(TEXTS).values, first.values)
        assert seen.shapes == []


def test_the_cache_key_changes_with_all_that_matters(tmp_path: Path) -> None:
    """Behaviour 20: model revision, layer, pooling, text, pair, length, dtype."""
    model, tokenizer = tiny_classifier()
    folder = tmp_path / "results"
    seen = []
    settings: list[dict[str, Any]] = [
        {},
        {"layer": 1},
        {"pooling": "mean"},
        {"max_length": 20},
        {"dtype": "bfloat16"},
    ]
    for options in settings:
        c = TextClassifier(model, tokenizer, cache=folder, **options)
        seen.append(c.extract(["a good film"]).values)
        fresh = TextClassifier(model, tokenizer, **options).extract(["a good film"]).values
        np.testing.assert_array_equal(seen[-1], fresh)
    with torch.no_grad():
        model.classifier.bias += 1.0
    changed = TextClassifier(model, tokenizer, cache=folder).logits(["a good film"])
    np.testing.assert_array_equal(changed, TextClassifier(model, tokenizer).logits(["a good film"]))
    c = TextClassifier(model, tokenizer, cache=folder)
    pairs = [("a good", "film"), ("a", "good film"), "a good film"]
    assert len(np.unique(c.logits(pairs), axis=0)) == 3
    np.testing.assert_array_equal(
        c.logits(pairs), TextClassifier(model, tokenizer, cache=folder).logits(pairs)
    )


def test_training_in_between_is_noticed() -> None:
    c = classifier(cache=100)
    before, name = c.logits(TEXTS), c.fingerprint
    optimizer = torch.optim.SGD(c.model.parameters(), lr=0.1)
    c.model(**c.encode(TEXTS)).logits[:, 0].sum().backward()
    optimizer.step()
    assert c.fingerprint != name
    assert abs(c.logits(TEXTS) - before).max() > 1e-3


def test_fingerprint_and_source_say_what_the_vectors_depend_on() -> None:
    c = classifier()
    assert c.fingerprint == classifier(layer=1, pooling="mean", name="other").fingerprint
    assert c.fingerprint != TextClassifier(*tiny_classifier(seed=1)).fingerprint
    model, tokenizer = tiny_classifier()
    other = TextClassifier(model, tiny_classifier(lower=False)[1])
    assert c.fingerprint != other.fingerprint
    tokenizer(["a"], padding="max_length", truncation=True, max_length=9)
    assert c.fingerprint == TextClassifier(model, tokenizer).fingerprint
    sources = {
        classifier(**options).source
        for options in ({}, {"layer": 1}, {"pooling": "mean"}, {"max_length": 9}, {"pooling": np.mean})
    }
    assert len(sources) == 5
    assert classifier(batch_size=3, dtype="bfloat16").source == c.source == c.extract(["good"]).source


# Files ------------------------------------------------------------------------------------------------------


def test_from_pretrained_reads_a_folder(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier("bert", labels=3)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    c = TextClassifier.from_pretrained(tmp_path / "model", pooling="mean", max_length=30)
    assert c.name == str(tmp_path / "model") and c.max_length == 30 and c.pooling == "mean"
    assert c.labels == ("class 0", "class 1", "class 2") and c.num_labels == 3
    assert not c.model.training
    original = TextClassifier(model, tokenizer)
    np.testing.assert_array_equal(c.logits(TEXTS), original.logits(TEXTS))
    assert c.fingerprint == original.fingerprint
    with pytest.raises(ValueError, match="has no revision"):
        TextClassifier.from_pretrained(tmp_path / "model", revision="main")


def test_from_pretrained_refuses_what_is_no_classifier(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier()
    model.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights for classifier"):
        TextClassifier.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no safetensors weights"):
        TextClassifier.from_pretrained(tmp_path)
    with pytest.raises(HubOfflineError):
        TextClassifier.from_pretrained("nobody/no-such-classifier")
    with pytest.raises(FileNotFoundError):
        TextClassifier.from_pretrained(tmp_path / "missing")


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts", [[1], [None], [("a", "b", "c")], [("a",)], [["a", 2]], [b"bytes"], [math.nan], [[]]]
)
def test_what_is_no_text_raises(texts: Any) -> None:
    with pytest.raises(TypeError, match=r"texts\[0\] is .*expected a str or a pair"):
        classifier().logits(texts)


def test_half_a_surrogate_pair_raises() -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] holds half of a surrogate pair"):
        classifier().logits(["a \U0001f600", "a \ud83d"])


def test_odd_texts_work() -> None:
    texts = ["\x00", " \n\t", "😀" * 30, "ß\u0301", "\u202e", "[SEP]", "[PAD]"]
    assert np.isfinite(classifier().extract(texts).values).all()


@pytest.mark.parametrize("method", ["logits", "extract"])
def test_nan_in_the_weights_raises(method: str) -> None:
    c = classifier()
    c.extract(["good"])
    with torch.no_grad():
        c.model.classifier.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        getattr(c, method)(TEXTS)
    with pytest.raises(ValueError, match="NaN"):
        getattr(TextClassifier(c.model, c.tokenizer), method)(TEXTS)


def test_nothing_broken_gets_into_the_cache() -> None:
    c = classifier(cache=10)
    weight = c.model.classifier.weight
    with torch.no_grad():
        kept = weight.clone()
        weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        c.logits(["good"])
    with torch.no_grad():
        weight.copy_(kept)
    np.testing.assert_array_equal(c.logits(["good"]), classifier().logits(["good"]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pooling": "cls"}, "pooling is 'cls'"),
        ({"pooling": "pooler", "layer": 1}, "pooler"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 3}, "max_length is 3"),
        ({"max_length": 65}, "64 positions"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"cache": 0}, "cache is 0"),
        ({"cache": "x", "pooling": len}, "cache on disk"),
    ],
)
def test_bad_options_raise(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    if "pooling" in options and "cache" in options:
        options = options | {"cache": tmp_path}
    with pytest.raises(ValueError, match=reason):
        classifier(**options)


def test_wrong_kinds_raise() -> None:
    model, tokenizer = tiny_classifier()
    with pytest.raises(TypeError, match="model is a"):
        TextClassifier(object(), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tokenizer is a"):
        TextClassifier(model, "bert-base-uncased")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cache is"):
        classifier(cache=2.5)
    with pytest.raises(ValueError, match="1 labels"):
        TextClassifier(*tiny_classifier(labels=1))
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="no classifier of exclusive classes"):
        TextClassifier(model, tokenizer)


def test_a_layer_or_pooler_that_is_not_there_raises() -> None:
    with pytest.raises(ValueError, match="layer is 3; the model has hidden states -3 to 2"):
        classifier(layer=3).extract(["good"])
    with pytest.raises(ValueError, match="has no pooler"):
        classifier("roberta", pooling="pooler").extract(["good"])
    with pytest.raises(ValueError, match="pooling function must give"):
        classifier(pooling=lambda state, mask: state).extract(["good"])


@pytest.mark.parametrize("labels", [[0], [0, 2], [0, -1], [0.5, 1], "01"])
def test_gradients_of_labels_that_do_not_fit_raise(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels"):
        classifier().token_gradients(["good", "bad"], labels)


def test_gradients_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="of is 'logit'; expected 'loss' or 'margin'"):
        classifier().token_gradients(["good"], [0], of="logit")  # type: ignore[arg-type]


def test_embeddings_that_do_not_fit_raise() -> None:
    c = classifier()
    batch = c.encode(["good film", "bad"])
    with pytest.raises(ValueError, match="do not fit together"):
        c.logits_from_embeddings(torch.zeros(2, 3, 32), **batch)
    with pytest.raises(ValueError, match="empty"):
        c.encode([])


def test_repr_names_what_matters() -> None:
    assert "max_length=64" in repr(classifier(name="toy")) and "'toy'" in repr(classifier(name="toy"))


def test_features_of_a_classifier_survive_a_file(tmp_path: Path) -> None:
    found = classifier().extract([*TEXTS, ("a", "b")])
    found.save(tmp_path / "features.safetensors")
    loaded = Features.load(tmp_path / "features.safetensors")
    np.testing.assert_array_equal(loaded.values, found.values)
    assert loaded.texts == found.texts and loaded.source == found.source
