import numpy as np
import pytest
import torch

from robustkit.classifiers import Features
from robustkit.detection import Detector, PerplexityDetector
from robustkit.detection.perplexity import log_perplexities
from tests.robustkit.tiny import tiny_gpt2, toy_sentiment


@pytest.fixture(scope="module")
def gpt2():
    return tiny_gpt2()


TEXTS = toy_sentiment(12)[0]


def of(texts):
    return Features.of(np.zeros((len(texts), 0)), np.zeros(len(texts), int), texts=texts)


def own_loss(lm, tokenizer, text):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return lm(input_ids=ids, labels=ids).loss.item()


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_equals_the_models_own_loss_behaviour_23(gpt2, batch_tokens):
    texts = [*TEXTS, "good film", " ".join(TEXTS[:3])]
    expected = [own_loss(*gpt2, text) for text in texts]
    detector = PerplexityDetector(*gpt2, batch_tokens=batch_tokens)
    np.testing.assert_allclose(detector.score_samples(of(texts)), expected, atol=2e-6)
    np.testing.assert_allclose(detector.perplexities(texts), np.exp(expected), rtol=2e-6)


def test_long_texts_are_read_in_windows(gpt2):
    """Every token is predicted once, from all of its window before it."""
    lm, tokenizer = gpt2
    text = " ".join(TEXTS[:4])
    ids = tokenizer(text)["input_ids"]
    window, stride = 16, 5
    losses = []
    end = window
    for place in range(1, len(ids)):
        while place >= end:
            end = min(end + stride, len(ids))
        context = torch.tensor([ids[max(0, end - window) : place]])
        with torch.no_grad():
            losses.append(-lm(input_ids=context).logits[0, -1].log_softmax(-1)[ids[place]].item())
    found = log_perplexities(lm, tokenizer, [TEXTS[0], text], max_length=window, stride=stride)
    assert found[1] == pytest.approx(np.mean(losses), abs=2e-6)
    assert len(ids) > 2 * window


def test_a_text_longer_than_the_model_is_not_cut_off(gpt2):
    base = " ".join(TEXTS[:6])
    first, second = (log_perplexities(*gpt2, [f"{base} {end}"])[0] for end in ("good", "film"))
    assert first != second


def test_texts_without_a_second_token(gpt2):
    np.testing.assert_array_equal(log_perplexities(*gpt2, ["", "good", TEXTS[0]])[:2], [0, 0])
    assert log_perplexities(*gpt2, []).shape == (0,)


def test_pairs_are_read_one_after_the_other(gpt2):
    detector = PerplexityDetector(*gpt2)
    pair, joined = of([(TEXTS[0], TEXTS[1])]), of([f"{TEXTS[0]} {TEXTS[1]}"])
    assert detector.score_samples(pair) == detector.score_samples(joined)


def test_bad_input(gpt2):
    lm, tokenizer = gpt2
    with pytest.raises(ValueError, match="max_length is 65; expected 2 to 64"):
        PerplexityDetector(lm, tokenizer, max_length=65)
    with pytest.raises(ValueError, match="stride is 16"):
        PerplexityDetector(lm, tokenizer, max_length=16, stride=16)
    with pytest.raises(ValueError, match="reads texts"):
        PerplexityDetector(lm, tokenizer).score_samples(Features.of([[1.0]], [0]))
    training = tiny_gpt2()[0].train()
    with pytest.raises(ValueError, match="training mode"):
        PerplexityDetector(training, tokenizer)


def test_refuses_another_language_model(gpt2, tmp_path):
    lm, tokenizer = gpt2
    detector = PerplexityDetector(lm, tokenizer)
    detector.calibrate(of(TEXTS))
    detector.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="without its lm"):
        Detector.from_pretrained(tmp_path / "saved")
    other = {"lm": tiny_gpt2(seed=1)[0], "tokenizer": tokenizer}
    with pytest.raises(ValueError, match="another language model"):
        Detector.from_pretrained(tmp_path / "saved", parts=other)
