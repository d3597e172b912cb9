"""Vectors of responses: the last token is the right one, and nothing beside the text plays a role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dialogkit.diversity import CausalLMEncoder, SentenceTransformerEncoder, load_encoder
from tests.dialogkit.tiny import byte_tokenizer, tiny_model

TEXTS = ["hello there", "no", "what do you mean by that", "", "안녕 😀", "hello there"]
FAMILIES = ("gpt2", "llama", "opt", "bloom")


def encoder(family: str = "gpt2", **settings: Any) -> CausalLMEncoder:
    tokenizer = byte_tokenizer(["hello", "there"], bos=True, closing_eos=True)
    model = tiny_model(family, len(tokenizer), max_length=300)
    return CausalLMEncoder(model, tokenizer, **settings)


def states(one: CausalLMEncoder, text: str, layer: int = -1) -> torch.Tensor:
    """Hidden states of the text alone, without any batch: ``[tokens, d]``."""
    ids = one.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        output = one.model(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[layer][0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_s5_batches_and_padding_change_nothing(family: str, batch_size: int) -> None:
    one = encoder(family, batch_size=batch_size)
    vectors = one.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (6, 32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = states(one, text or "</s>")
        np.testing.assert_allclose(vector, alone[-1].numpy(), atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[5], atol=1e-5)


def test_s5_the_last_token_is_none_of_padding() -> None:
    one = encoder()
    short, long = one.encode(["no", "what do you mean by that"])
    padded = one.tokenizer(["no", "what do you mean by that"], add_special_tokens=False)["input_ids"]
    ids = torch.zeros(2, len(padded[1]), dtype=torch.long)
    ids[0, : len(padded[0])], ids[1] = torch.tensor(padded[0]), torch.tensor(padded[1])
    with torch.inference_mode():
        wrong = one.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    assert np.abs(short - wrong.numpy()).max() > 0.1
    np.testing.assert_allclose(long, states(one, "what do you mean by that")[-1].numpy(), atol=1e-5)


def test_s5_long_texts_are_read_from_their_tail() -> None:
    one = encoder()
    text = "a b c " * 100
    assert len(one.tokenizer(text, add_special_tokens=False)["input_ids"]) > 256
    other_head = "x y z " + text[6:]
    np.testing.assert_array_equal(one.encode([text]), one.encode([other_head]))
    assert np.abs(one.encode([text]) - one.encode([text + "!"])).max() > 1e-3
    few = encoder(max_length=3)
    np.testing.assert_allclose(few.encode(["a b c d"]), few.encode(["x c d"]), atol=1e-6)


def test_pooling_and_layers() -> None:
    mean = encoder(pooling="mean")
    text = "what do you mean by that"
    vectors = mean.encode([text, "no"])
    np.testing.assert_allclose(vectors[0], states(mean, text).mean(dim=0).numpy(), atol=1e-5)
    middle = encoder(layer=1)
    np.testing.assert_allclose(middle.encode([text])[0], states(middle, text, 1)[-1].numpy(), atol=1e-5)


def test_an_empty_text_is_one_end_of_sequence_token() -> None:
    one = encoder()
    np.testing.assert_allclose(one.encode([""])[0], states(one, "</s>")[-1].numpy(), atol=1e-5)
    one.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="a text is empty"):
        one.encode(["a", ""])


def test_control_tokens_in_a_text_are_text() -> None:
    one = encoder()
    spelled = one.encode(["</s>"])
    assert np.abs(spelled - one.encode([""])).max() > 1e-3


def test_the_head_plays_no_role_and_the_fingerprint_knows_the_rest() -> None:
    one = encoder()
    bare = CausalLMEncoder(one.model.base_model, one.tokenizer)
    np.testing.assert_array_equal(one.encode(TEXTS), bare.encode(TEXTS))
    assert one.fingerprint == bare.fingerprint == encoder().fingerprint
    assert encoder(batch_size=2).fingerprint == one.fingerprint
    changed = encoder()
    with torch.no_grad():
        next(iter(changed.model.base_model.parameters())).add_(0.01)
    others = [encoder(pooling="mean"), encoder(layer=1), encoder(max_length=9), encoder("llama"), changed]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling must be"),
        ({"layer": 3}, "layer must be -3 to 2, got 3"),
        ({"max_length": 0}, "max_length must be 1 to 300"),
        ({"max_length": 301}, "got 301"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**settings)


def test_an_encoder_decoder_and_one_string_are_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="must be a causal language model, got T5"):
        CausalLMEncoder(tiny_model("t5", len(tokenizer)), tokenizer)
    with pytest.raises(TypeError, match="got one string"):
        encoder().encode("hello")
    assert encoder().encode([]).shape == (0, 32)


def test_load_encoder_finds_what_a_name_means(tmp_path: Path) -> None:
    one = encoder(name="")
    one.model.save_pretrained(tmp_path)
    one.tokenizer.save_pretrained(tmp_path)
    loaded = load_encoder(f"lm:{tmp_path}")
    assert isinstance(loaded, CausalLMEncoder)
    assert loaded.name == f"lm:{tmp_path}"
    np.testing.assert_allclose(loaded.encode(TEXTS), one.encode(TEXTS), atol=1e-6)
    own = load_encoder("lm:embedded")
    assert own.name == "lm:embedded" and own.encode(["hi"]).shape[0] == 1
    small = load_encoder("embedded")
    assert isinstance(small, SentenceTransformerEncoder)
    np.testing.assert_array_equal(small.encode(["hi"]), small.retriever.encode_response(["hi"]))
    assert small.fingerprint == small.retriever.fingerprint
    with pytest.raises(FileNotFoundError):
        load_encoder(str(tmp_path / "nowhere"))


def test_a_sentence_transformer_is_taken_as_it_is() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="not installed")
    from dialogkit import embedded

    model = sentence_transformers.SentenceTransformer(str(embedded.biencoder_path()), device="cpu")
    vectors = SentenceTransformerEncoder(model).encode(["hello", "who are you"])
    np.testing.assert_allclose(vectors, load_encoder("embedded").encode(["hello", "who are you"]), atol=1e-4)
