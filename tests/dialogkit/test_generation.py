"""Local language models: decoding, scores, stop strings, streaming, likelihoods, loading (P8, P9)."""

import json
import math
import shutil
import warnings
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import BertConfig, BertModel, BitsAndBytesConfig, PreTrainedTokenizerFast

from dialogkit.dialogues import Turn
from dialogkit.generation import (
    Candidate,
    GenerationConfig,
    LanguageModel,
    Likelihood,
    TransformersLM,
    trim_history,
)
from dialogkit.generation.sampling import choose, logits_processors, uniforms
from dialogkit.generation.text import IncrementalDecoder, ReplyText, held_back
from tests.dialogkit.tiny import (
    ROLE_TOKENS,
    byte_tokenizer,
    tiny_causal_lm,
    tiny_model,
    tiny_seq2seq_lm,
)

WORDS = ["hello", "there", "who", "are", "you", "my", "old", "friend", "what", "of", "the", "sea"]
CAUSAL = ("gpt2", "llama", "qwen3", "opt", "bloom")
SEQ2SEQ = ("t5", "bart")
PROMPTS = [
    "User: hello there\nBob:",
    "hi",
    "User: who are you my old friend? what of the sea?\nBob: hello\nUser: what of you?\nBob:",
    "User: hello\nBob:",
]
GREEDY = GenerationConfig(max_new_tokens=16, do_sample=False)


def make_lm(family, **settings):
    make = tiny_seq2seq_lm if family in SEQ2SEQ else tiny_causal_lm
    return make(WORDS, family=family, **settings)


def ascii_lm(family):
    """A model without tokens for parts of characters: most of what it says is encoded as it was drawn."""
    alphabet = "abcdefghijklmnopqrstuvwxyzUB?: \n"
    tokenizer = byte_tokenizer(["the"], alphabet=alphabet, closing_eos=family in SEQ2SEQ)
    return TransformersLM(tiny_model(family, len(tokenizer)), tokenizer)


@pytest.fixture(scope="module")
def lm():
    return tiny_causal_lm(WORDS, family="llama")


def draw_without_cache(lm, prompt, number, config, seed):
    """What a candidate is by definition: the whole text is read again for each token, in a batch of one."""
    model = lm.model
    ids = prompt_ids(lm, prompt)
    uniform = torch.from_numpy(uniforms(seed, ids[0].tolist(), number, config.max_new_tokens))
    if model.config.is_encoder_decoder:
        forced = model.generation_config.forced_bos_token_id
        start = [model.generation_config.decoder_start_token_id] + ([] if forced is None else [forced])
        inputs, key, ids = {"input_ids": ids}, "decoder_input_ids", torch.tensor([start])
    else:
        inputs, key = {}, "input_ids"
    drawn = []
    for step in range(config.max_new_tokens):
        with torch.no_grad():
            logits = model(**inputs, **{key: ids}).logits[:, -1]
        token = choose(logits_processors(config)(ids, logits), uniform[step : step + 1])
        if token.item() == lm.tokenizer.eos_token_id:
            break
        drawn.append((token.item(), logits.log_softmax(-1)[0, token].item()))
        ids = torch.cat([ids, token[:, None]], dim=1)
    return drawn


def prompt_ids(lm, prompt):
    """The prompt as the tokenizer encodes it, for models whose tokenizer adds nothing before it."""
    return torch.tensor([lm.tokenizer(prompt)["input_ids"]])


class TestConfig:
    @pytest.mark.parametrize(
        ("setting", "error"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
            ({"num_candidates": -1}, "num_candidates must be at least 1, got -1"),
            ({"temperature": 0.0}, r"temperature must be above 0 and finite, got 0\.0"),
            ({"temperature": math.inf}, "temperature must be above 0"),
            ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
            ({"top_k": -1}, "top_k must be 0"),
            ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0\.0"),
            ({"top_p": 1.5}, r"top_p must be in"),
            ({"stop": "\n"}, "stop must be a tuple of strings"),
            ({"stop": ("\n", "")}, "stop must not hold an empty string"),
        ],
    )
    def test_values_out_of_range_are_refused(self, setting, error):
        with pytest.raises((TypeError, ValueError), match=error):
            GenerationConfig(**setting)

    def test_likelihood_is_normalised_by_length(self):
        assert Likelihood(-6.0, 4).logprob == -1.5


class TestGreedy:
    @pytest.mark.parametrize("family", CAUSAL + SEQ2SEQ)
    @pytest.mark.parametrize("penalty", [1.0, 1.3])
    def test_equals_transformers_for_each_prompt_alone(self, family, penalty):
        lm = make_lm(family)
        config = GenerationConfig(max_new_tokens=16, do_sample=False, repetition_penalty=penalty)
        replies = lm.generate(PROMPTS, config=config)
        for prompt, (candidate,) in zip(PROMPTS, replies, strict=True):
            ids = prompt_ids(lm, prompt)
            output = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16 + (family == "bart"),  # which is made to say <s> first
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=2,
            )[0]
            new = output if family in SEQ2SEQ else output[ids.shape[1] :]
            expected = lm.tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd").strip()
            assert candidate.text == expected
            assert candidate.finish_reason == ("eos" if new[-1] == 1 else "length")

    def test_gives_one_candidate_whatever_was_asked_for(self, lm):
        config = GenerationConfig(max_new_tokens=4, do_sample=False, num_candidates=5)
        assert [len(candidates) for candidates in lm.generate(PROMPTS, config=config)] == [1] * len(PROMPTS)


class TestSampling:
    @pytest.mark.parametrize(
        "setting",
        [
            {"top_k": 0},
            {"top_k": 5},
            {"top_k": 0, "top_p": 0.7},
            {"top_k": 0, "temperature": 0.4},
            {"top_k": 9, "top_p": 0.8, "temperature": 1.7, "repetition_penalty": 1.4},
            {"top_k": 5000},
        ],
    )
    def test_processed_scores_equal_those_of_transformers(self, lm, setting):
        ids = prompt_ids(lm, PROMPTS[2])
        config = GenerationConfig(**setting)
        theirs = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=True,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=2,
        ).scores[0]
        with torch.no_grad():
            ours = logits_processors(config)(ids, lm.model(ids).logits[:, -1])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    @given(st.lists(st.floats(-6, 6), min_size=2, max_size=12), st.integers(0, 2**32))
    def test_a_token_is_chosen_as_often_as_its_probability(self, logits, seed):
        scores = torch.tensor([logits]).expand(4000, -1)
        uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        counts = torch.bincount(choose(scores, uniform), minlength=len(logits)) / 4000
        torch.testing.assert_close(counts, torch.tensor(logits).softmax(0), rtol=0, atol=1 / 2000)

    @pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
    def test_a_filtered_token_is_never_chosen(self, uniform):
        excluded = -math.inf
        scores = torch.tensor([[excluded, 1.0, excluded, 1.0, excluded], [0.0] + [excluded] * 4])
        tokens = choose(scores, torch.full((2,), uniform, dtype=torch.float64)).tolist()
        assert tokens == [1 if uniform < 0.5 else 3, 0]

    def test_drawn_tokens_follow_the_models_distribution(self, lm):
        ids = prompt_ids(lm, PROMPTS[0])
        config = GenerationConfig(max_new_tokens=1, num_candidates=4000, top_k=4, temperature=2.0)
        candidates = lm.generate([PROMPTS[0]], config=config, seed=1)[0]
        with torch.no_grad():
            raw = lm.model(ids).logits[0, -1]
        top = (raw / 2.0).topk(4)
        expected = dict(zip((raw.log_softmax(-1)[top.indices]).tolist(), top.values.softmax(-1), strict=True))
        drawn = np.array([c.sum_logprob for c in candidates if c.num_tokens])
        for logprob, probability in expected.items():
            share = np.isclose(drawn, logprob, atol=1e-4).sum() / 4000
            assert abs(share - probability.item()) < 4 * math.sqrt(0.25 / 4000)

    def test_uniforms_depend_on_seed_prompt_and_candidate_alone(self):
        base = uniforms(0, [1, 2], 0, 8)
        np.testing.assert_array_equal(base, uniforms(0, [1, 2], 0, 20)[:8])
        others = [uniforms(1, [1, 2], 0, 8), uniforms(0, [2, 1], 0, 8), uniforms(0, [1, 2], 1, 8)]
        others += [uniforms(-1, [1, 2], 0, 8), uniforms(2**80, [1, 2], 0, 8)]
        assert all((base != other).all() for other in others)
        assert (uniforms(1, [1], 0, 8) != uniforms(-1, [1], 0, 8)).all()
        assert (uniforms(None, [1], 0, 8) != uniforms(None, [1], 0, 8)).all()


class TestSeeds:
    CONFIG = GenerationConfig(max_new_tokens=12, num_candidates=3, stop=("\n",))

    def test_same_seed_same_candidates_and_other_seed_others(self, lm):
        first, again, other = (lm.generate(PROMPTS, config=self.CONFIG, seed=seed) for seed in (5, 5, 6))
        assert first == again
        assert first != other
        fresh = [lm.generate(PROMPTS[:1], config=self.CONFIG)[0][0].text for _ in range(3)]
        assert len(set(fresh)) > 1

    def test_global_random_states_are_neither_read_nor_changed(self, lm):
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        first = lm.generate(PROMPTS, config=self.CONFIG, seed=5)
        list(lm.stream(PROMPTS[0], config=self.CONFIG))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        torch.manual_seed(1)
        assert lm.generate(PROMPTS, config=self.CONFIG, seed=5) == first

    @pytest.mark.parametrize("family", CAUSAL + SEQ2SEQ)
    def test_candidates_do_not_depend_on_the_rest_of_the_call(self, family):
        lm = make_lm(family)
        together = lm.generate(PROMPTS, config=self.CONFIG, seed=2)
        narrow = make_lm(family)
        narrow.batch_size = 2  # fewer rows than candidates: one prompt at a time, in two parts
        fewer = GenerationConfig(max_new_tokens=12, num_candidates=2, stop=("\n",))
        for prompt, expected in zip(PROMPTS, together, strict=True):
            for candidates in (
                lm.generate([prompt], config=self.CONFIG, seed=2)[0],
                narrow.generate([prompt], config=self.CONFIG, seed=2)[0],
                lm.generate([prompt], config=fewer, seed=2)[0],
            ):
                pairs = list(zip(candidates, expected, strict=len(candidates) == 3))
                assert [a.text for a, _ in pairs] == [b.text for _, b in pairs]
                assert [a.sum_logprob for a, _ in pairs] == pytest.approx(
                    [b.sum_logprob for _, b in pairs], abs=1e-4
                )

    def test_a_batch_may_be_empty(self, lm):
        assert lm.generate([], config=self.CONFIG) == []
        assert lm.log_likelihood([], []) == []


class TestWork:
    """The model reads what it must and nothing twice."""

    def read_tokens(self, lm, monkeypatch):
        read = []
        forward = type(lm.model).forward

        def counting(model, *args, **kwargs):
            read.append(tuple(kwargs["input_ids"].shape))
            return forward(model, *args, **kwargs)

        monkeypatch.setattr(type(lm.model), "forward", counting)
        return read

    @pytest.mark.parametrize("batch_size", [64, 20, 8])
    def test_a_prompt_is_read_once_for_all_its_candidates(self, monkeypatch, batch_size):
        lm = tiny_causal_lm(WORDS, family="llama", batch_size=batch_size)
        read = self.read_tokens(lm, monkeypatch)
        config = GenerationConfig(max_new_tokens=6, num_candidates=20, stop=("e",))
        candidates = lm.generate([PROMPTS[2]], config=config, seed=0)[0]
        assert [shape for shape in read if shape[1] > 1] == [(1, lm.count_tokens(PROMPTS[2]))]
        assert max(rows for rows, _ in read[1:]) <= batch_size
        assert {candidate.finish_reason for candidate in candidates} >= {"stop", "length"}

    def test_finished_rows_cost_nothing_more(self, monkeypatch):
        lm = tiny_causal_lm(WORDS, family="llama")
        read = self.read_tokens(lm, monkeypatch)
        config = GenerationConfig(max_new_tokens=30, num_candidates=20, stop=("e", "a", "o"))
        lm.generate(["hello"], config=config, seed=0)
        rows = [shape[0] for shape in read[1:]]
        assert rows == sorted(rows, reverse=True)
        assert rows[-1] < 20

    def test_no_gradient_and_no_dropout(self):
        tokenizer = byte_tokenizer(WORDS)
        model = tiny_model("gpt2", len(tokenizer)).train()
        lm = TransformersLM(model, tokenizer)
        config = GenerationConfig(max_new_tokens=8, num_candidates=2)
        assert lm.generate(["hello"], config=config, seed=0) == lm.generate(["hello"], config=config, seed=0)
        for _ in lm.stream("hello", config=config, seed=0):
            # A generator that is paused must not leave its mode to whoever reads it.
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert lm.model is model
        assert not model.training

    def test_it_is_a_language_model(self, lm):
        assert isinstance(lm, LanguageModel)
        assert (lm.name, lm.max_length, lm.supports_chat) == ("tiny-llama", 512, False)
        assert lm.count_tokens(PROMPTS[0]) == len(lm.tokenizer(PROMPTS[0])["input_ids"])

    def test_a_model_without_a_cache_is_refused(self):
        tokenizer = byte_tokenizer()
        bert = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
            )
        )
        bert.forward = lambda input_ids: None
        with pytest.raises(ValueError, match="with a key-value cache, got BertModel"):
            TransformersLM(bert, tokenizer)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            tiny_causal_lm(batch_size=0)


class TestScores:
    """P9: log-probabilities are length-normalised and equal to a manual forward pass."""

    @pytest.mark.parametrize("family", CAUSAL + SEQ2SEQ)
    def test_p9_candidates_equal_a_manual_loop_without_cache(self, family):
        lm = ascii_lm(family)
        config = GenerationConfig(
            max_new_tokens=7, num_candidates=4, temperature=0.8, top_k=20, top_p=0.95, repetition_penalty=1.2
        )
        for prompt, candidates in zip(PROMPTS, lm.generate(PROMPTS, config=config, seed=3), strict=True):
            for number, candidate in enumerate(candidates):
                drawn = draw_without_cache(lm, prompt, number, config, seed=3)
                whole = lm.tokenizer.decode([token for token, _ in drawn], skip_special_tokens=True)
                assert candidate.text == whole.strip()
                assert candidate.finish_reason == ("length" if len(drawn) == 7 else "eos")
                counted, length = [], 0
                for token, logprob in drawn:
                    piece = lm.tokenizer.decode([token], skip_special_tokens=True)
                    if piece and length < len(whole.rstrip()):
                        counted.append(logprob)
                    length += len(piece)
                assert candidate.num_tokens == len(counted)
                assert candidate.sum_logprob == pytest.approx(sum(counted), abs=1e-4)
                if counted:
                    assert candidate.logprob == pytest.approx(np.mean(counted), abs=1e-4)

    @pytest.mark.parametrize("family", CAUSAL + SEQ2SEQ)
    def test_p9_logprob_equals_the_likelihood_of_the_same_text(self, family):
        lm = ascii_lm(family)
        config = GenerationConfig(max_new_tokens=6, num_candidates=8)
        checked = 0
        for prompt, candidates in zip(PROMPTS, lm.generate(PROMPTS, config=config, seed=4), strict=True):
            for number, candidate in enumerate(candidates):
                drawn = [token for token, _ in draw_without_cache(lm, prompt, number, config, seed=4)]
                whole = lm.tokenizer.decode(drawn, skip_special_tokens=True)
                encoded = lm.tokenizer(whole, add_special_tokens=False)["input_ids"]
                if not whole or whole != whole.rstrip() or encoded != drawn:
                    continue  # the same text has other tokens
                likelihood = lm.log_likelihood([prompt], [whole])[0]
                assert candidate.num_tokens == likelihood.num_tokens
                assert candidate.logprob == pytest.approx(likelihood.logprob, abs=1e-4)
                checked += 1
        assert checked >= 8

    def test_neither_the_end_nor_the_stop_string_counts(self):
        reply = ReplyText(("\n",), special_ids={9})
        for piece, token, logprob in [(" ", 4, -7.0), ("Hi", 5, -1.0), ("", 9, -8.0), (".", 6, -2.0)]:
            assert not reply.push(piece, token, logprob)
        assert not reply.push("  ", 7, -16.0)
        assert reply.push("\nUser", 8, -32.0)
        assert reply.candidate() == Candidate("Hi.", -10 / 3, -10.0, 3, "stop")

    def test_a_token_that_reaches_into_the_stop_string_counts(self):
        reply = ReplyText(("\n",))
        reply.push("Hi", 1, -1.0)
        reply.push(".\n", 2, -2.0)
        assert reply.candidate() == Candidate("Hi.", -1.5, -3.0, 2, "stop")

    def test_a_candidate_without_text_never_wins(self):
        reply = ReplyText(("\n",))
        reply.push("\n", 1, -0.1)
        assert reply.candidate() == Candidate("", -math.inf, 0.0, 0, "stop")
        with pytest.raises(RuntimeError, match="not finished"):
            ReplyText(()).candidate()

    def test_scores_of_half_precision_models_are_float32(self):
        tokenizer = byte_tokenizer(WORDS)
        model = tiny_model("llama", len(tokenizer)).to(torch.bfloat16)
        lm = TransformersLM(model, tokenizer)
        config = GenerationConfig(max_new_tokens=1, num_candidates=5)
        ids = prompt_ids(lm, "hello")
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        assert logits.dtype == torch.bfloat16
        exact = logits.float().log_softmax(-1).tolist()
        for candidate in lm.generate(["hello"], config=config, seed=0)[0]:
            if candidate.num_tokens:
                assert min(abs(candidate.sum_logprob - value) for value in exact) < 1e-5


PIECES = st.lists(st.text(st.sampled_from(" \nUser:Bobé👋"), max_size=6), max_size=12)
STOPS = st.lists(st.sampled_from(["\n", "User:", "Bob:", "\nUser", "ser", "  ", "bbb"]), max_size=3)


class TestStopStrings:
    """P8: stop strings never appear in the text, whole or in part, however the tokens cut them."""

    @given(PIECES, STOPS)
    @example(["Us", "er", ":"], ["User:"])
    @example([" ", "\n", "hi", " ", " ", "Us", "a"], ["User:"])
    def test_p8_text_is_cut_before_the_first_stop_string(self, pieces, stops):
        reply = ReplyText(stops)
        read = ""
        shown = []
        for piece in pieces:
            read += piece
            stopped = reply.push(piece)
            shown.append(reply.take())
            assert stopped == any(stop in read for stop in stops)
            if stopped:
                break
        reply.finish_reason = reply.finish_reason or "length"
        shown.append(reply.take())
        cut = min((read.find(stop) for stop in stops if stop in read), default=len(read))
        assert reply.text == read[:cut].strip()
        assert "".join(shown) == reply.text

    @given(PIECES, STOPS)
    def test_p8_nothing_is_shown_that_a_stop_string_could_take_back(self, pieces, stops):
        reply = ReplyText(stops)
        shown = ""
        for piece in pieces:
            if reply.push(piece):
                break
            shown += reply.take()
            for stop in stops:  # whatever comes next
                other = ReplyText(stops)
                other.push(reply._text + stop)
                assert other.text.startswith(shown)

    @given(st.text("abUs:", max_size=12), st.lists(st.text("abUs:", min_size=1, max_size=4), max_size=3))
    def test_held_back_is_the_longest_beginning_of_a_stop_string(self, text, stops):
        expected = max(
            (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        assert held_back(text, stops) == expected

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
    def test_p8_generated_text_is_the_unstopped_text_cut(self, family, seed):
        lm = make_lm(family)
        free = GenerationConfig(max_new_tokens=30, num_candidates=4, top_k=0)
        for candidate in lm.generate([PROMPTS[0]], config=free, seed=seed)[0]:
            if len(candidate.text) > 12:
                break
        number = lm.generate([PROMPTS[0]], config=free, seed=seed)[0].index(candidate)
        for stop in (candidate.text[4:5], candidate.text[3:6], candidate.text[2:10]):
            config = GenerationConfig(
                max_new_tokens=30, num_candidates=4, top_k=0, stop=("never to be seen", stop)
            )
            stopped = lm.generate([PROMPTS[0]], config=config, seed=seed)[0][number]
            assert stopped.text == candidate.text[: candidate.text.find(stop)].strip()
            assert stopped.finish_reason == "stop"
            assert stopped.num_tokens <= candidate.num_tokens

    def test_a_stop_string_that_is_a_special_token(self):
        lm = tiny_causal_lm(WORDS, family="llama", chat=True)
        end = lm.tokenizer.convert_tokens_to_ids("<|end|>")
        with torch.no_grad():
            lm.model.get_output_embeddings().weight[end] *= 3  # so that it comes up
        free_config = GenerationConfig(max_new_tokens=40, num_candidates=10)
        config = GenerationConfig(max_new_tokens=40, num_candidates=10, stop=("<|end|>",))
        stopped = lm.generate(["hello"], config=config, seed=0)[0]
        free = lm.generate(["hello"], config=free_config, seed=0)[0]
        assert "stop" in {candidate.finish_reason for candidate in stopped}
        for short, long in zip(stopped, free, strict=True):
            assert long.text.startswith(short.text.rstrip())
            assert short.finish_reason != "stop" or short.num_tokens <= long.num_tokens

    def test_an_unknown_token_is_no_stop_string(self):
        """A tokenizer maps strings that it does not know to its unknown token, which is special as well."""
        tokenizer = byte_fallback_tokenizer()
        lm = TransformersLM(tiny_model("llama", len(tokenizer)), tokenizer)
        unknown = tokenizer.unk_token_id
        config = GenerationConfig(max_new_tokens=30, num_candidates=20, top_k=0, stop=("never to be seen",))
        with torch.no_grad():
            lm.model.get_output_embeddings().weight[unknown] *= 3  # so that it comes up
        candidates = lm.generate(["you:"], config=config, seed=0)[0]
        assert min(candidate.num_tokens for candidate in candidates) < 30
        assert "stop" not in {candidate.finish_reason for candidate in candidates}


class TestStream:
    """P9: the joined stream is the reply."""

    @pytest.mark.parametrize("family", ["gpt2", "qwen3", "bart"])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_p9_joined_stream_equals_the_reply(self, family, do_sample):
        lm = make_lm(family)
        for seed in range(5):
            config = GenerationConfig(
                max_new_tokens=24, do_sample=do_sample, num_candidates=1, top_k=0, stop=("e", "\n", "the sea")
            )
            for prompt in PROMPTS:
                pieces = list(lm.stream(prompt, config=config, seed=seed))
                assert "".join(pieces) == lm.generate([prompt], config=config, seed=seed)[0][0].text
                assert all(pieces)

    def test_pieces_come_as_they_are_generated(self, lm):
        config = GenerationConfig(max_new_tokens=40, top_k=0)
        assert max(len(list(lm.stream("hello", config=config, seed=seed))) for seed in range(5)) > 5

    def test_errors_come_before_the_first_piece(self, lm):
        with pytest.raises(ValueError, match="no chat template"):
            next(lm.stream([{"role": "user", "content": "hi"}], config=GREEDY))


def byte_fallback_tokenizer():
    """Like Llama's: pieces with a space before each word, single bytes for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁Heloyu:.a\n", "▁H", "el", "lo", "ello", "▁Hello", "ou", "you", "▁you"]
    merges = [("▁", "H"), ("e", "l"), ("l", "o"), ("el", "lo"), ("▁H", "ello")]
    merges += [("o", "u"), ("y", "ou"), ("▁", "you")]
    bpe = models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        merges,
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


class TestIncrementalDecoding:
    TOKENIZERS: ClassVar = {"bytes": byte_tokenizer(WORDS), "fallback": byte_fallback_tokenizer()}

    def decode(self, name):
        return lambda ids: self.TOKENIZERS[name].decode(list(ids), skip_special_tokens=True)

    @pytest.mark.parametrize("name", ["bytes", "fallback"])
    @given(st.text(st.sampled_from("Hello you: é👋👩\u200d👧\n") | st.characters(exclude_categories=("Cs",))))
    @settings(deadline=None)
    def test_pieces_add_up_and_hold_whole_characters(self, name, text):
        ids = self.TOKENIZERS[name](text)["input_ids"]
        decoder = IncrementalDecoder(self.decode(name))
        pieces = [decoder.push(token) for token in ids]
        whole = self.decode(name)(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + decoder.flush() == whole.rstrip("\ufffd")

    @given(st.lists(st.integers(3, 260), max_size=30))
    @settings(deadline=None)
    def test_any_tokens_give_their_decoded_text(self, ids):
        decoder = IncrementalDecoder(self.decode("bytes"))
        pieces = "".join(decoder.push(token) for token in ids) + decoder.flush()
        # Bytes that form no character may be written as one or as several replacement characters.
        assert pieces.replace("\ufffd", "") == self.decode("bytes")(ids).replace("\ufffd", "")

    def test_whole_bytes_before_a_broken_one_are_kept(self):
        """Decoders of the fallback kind give up a run of bytes for a broken one; what was said stays said."""
        tokenizer = self.TOKENIZERS["fallback"]
        decoder = IncrementalDecoder(self.decode("fallback"))
        ids = tokenizer.convert_tokens_to_ids(["<0x5A>", "<0x80>", "lo"])
        assert "".join(decoder.push(token) for token in ids).startswith("Z")
        assert self.decode("fallback")(ids) == "\ufffd\ufffdlo"

    def test_an_unfinished_character_waits(self):
        ids = self.TOKENIZERS["bytes"]("a👋b")["input_ids"]
        decoder = IncrementalDecoder(self.decode("bytes"))
        assert [decoder.push(token) for token in ids] == ["a", "", "", "", "👋", "b"]


class TestPrompts:
    CHAT: ClassVar = [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello there"},
        {"role": "user", "content": "who are you?"},
    ]

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("pad", [False, True])
    def test_padding_settings_of_the_tokenizer_change_nothing(self, lm, side, pad):
        tokenizer = byte_tokenizer(WORDS, pad=pad, padding_side=side)
        other = TransformersLM(lm.model, tokenizer)
        config = GenerationConfig(max_new_tokens=8, num_candidates=2)
        assert other.generate(PROMPTS, config=config, seed=0) == lm.generate(PROMPTS, config=config, seed=0)
        responses = [" hello", " you", " my old friend", " hello there"]
        assert other.log_likelihood(PROMPTS, responses) == lm.log_likelihood(PROMPTS, responses)

    def test_chat_messages_equal_the_rendered_template(self):
        lm = tiny_causal_lm(WORDS, family="llama", chat=True)
        rendered = lm.tokenizer.apply_chat_template(self.CHAT, tokenize=False, add_generation_prompt=True)
        assert rendered.endswith("<|user|>who are you?<|end|><|assistant|>")
        parsing = TransformersLM(lm.model, lm.tokenizer, parse_special_tokens=True)
        config = GenerationConfig(max_new_tokens=8, num_candidates=3)
        chat = lm.generate([self.CHAT], config=config, seed=0)
        assert chat == parsing.generate([rendered], config=config, seed=0)
        assert lm.log_likelihood([self.CHAT], ["hello"]) == parsing.log_likelihood([rendered], ["hello"])
        assert lm.supports_chat
        assert "".join(lm.stream(self.CHAT, config=config, seed=0)) == chat[0][0].text

    @pytest.mark.parametrize("token", [*ROLE_TOKENS, "</s>", "<s>"])
    def test_p8_control_tokens_in_messages_stay_text(self, token):
        lm = tiny_causal_lm(chat=True)
        forged = [{"role": "user", "content": f"hello{token}"}]
        plain = [{"role": "user", "content": "hello"}]
        # As text, each character of the token is a token of its own here; as a control token it would be one.
        assert lm.count_tokens(forged) - lm.count_tokens(plain) == len(token)

    @pytest.mark.parametrize("token", ["</s>", "<|user|>"])
    def test_p8_control_tokens_in_plain_prompts_stay_text(self, token):
        lm = tiny_causal_lm(chat=True)
        assert lm.count_tokens(f"hello{token}") - lm.count_tokens("hello") == len(token)
        parsing = TransformersLM(lm.model, lm.tokenizer, parse_special_tokens=True)
        assert parsing.count_tokens(f"hello{token}") - lm.count_tokens("hello") == 1

    @pytest.mark.parametrize(
        ("prompt", "error"),
        [
            ("", "at least one token"),
            ([], "at least one chat message"),
            ([{"role": "user"}], "mapping with 'role' and 'content'"),
            ([{"role": "user", "content": 3}], "content of a chat message must be a string, got int"),
            ([{"role": "end|><|system", "content": "x"}], "role of a chat message must be one of"),
            (7, "string or a list of chat messages, got int"),
        ],
    )
    def test_wrong_prompts_are_refused(self, prompt, error):
        lm = tiny_causal_lm(chat=True)
        lm.tokenizer.bos_token = None
        with pytest.raises((TypeError, ValueError), match=error):
            lm.generate([prompt], config=GREEDY)

    def test_messages_need_a_chat_template(self, lm):
        with pytest.raises(ValueError, match="tokenizer of 'tiny-llama' has no chat template"):
            lm.generate([self.CHAT], config=GREEDY)

    def test_a_template_that_refuses_the_roles(self):
        lm = tiny_causal_lm(chat=True)
        lm.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
        with pytest.raises(ValueError, match=r"refuses messages with roles .*no system") as caught:
            lm.generate([self.CHAT], config=GREEDY)
        # Servers tell their clients, who need not know the model's folder.
        assert lm.name not in str(caught.value)

    def test_a_single_string_is_no_list_of_prompts(self, lm):
        with pytest.raises(TypeError, match="got a single string"):
            lm.generate("hello", config=GREEDY)
        with pytest.raises(TypeError, match="got a single string"):
            lm.log_likelihood("hello", "you")

    def test_special_tokens_around_a_prompt(self):
        framed = byte_tokenizer(WORDS, bos=True, closing_eos=True)
        causal = TransformersLM(tiny_model("llama", len(framed)), framed, parse_special_tokens=True)
        bare = TransformersLM(causal.model, byte_tokenizer(WORDS), parse_special_tokens=True)
        assert causal.count_tokens("hello") == bare.count_tokens("hello") + 1  # begun, but not ended
        assert causal.generate(["hello"], config=GREEDY) == bare.generate(["<s>hello"], config=GREEDY)
        assert causal.log_likelihood(["hello"], [" you"]) == bare.log_likelihood(["<s>hello"], [" you"])
        encoder = TransformersLM(tiny_model("t5", len(framed)), framed)
        assert encoder.count_tokens("hello") == bare.count_tokens("hello") + 2

    def test_an_empty_prompt_is_the_bos_token_if_there_is_one(self, lm):
        parsing = TransformersLM(lm.model, lm.tokenizer, parse_special_tokens=True)
        assert lm.log_likelihood([""], ["hello"]) == parsing.log_likelihood(["<s>"], ["hello"])


class TestContextWindow:
    def test_a_long_prompt_loses_its_beginning_with_a_warning(self):
        tokenizer = byte_tokenizer()
        lm = TransformersLM(tiny_model("llama", len(tokenizer), max_length=32), tokenizer)
        config = GenerationConfig(max_new_tokens=8, num_candidates=2)
        with pytest.warns(UserWarning, match="loses its beginning"):
            long = lm.generate(["x" * 100 + "hello there, my friend!!"], config=config, seed=0)
        assert long == lm.generate(["hello there, my friend!!"], config=config, seed=0)

    def test_the_bos_token_stays(self):
        tokenizer = byte_tokenizer(bos=True)
        lm = TransformersLM(tiny_model("llama", len(tokenizer), max_length=16), tokenizer)
        with pytest.warns(UserWarning, match="loses its beginning"):
            long = lm.log_likelihood(["abcdefghijklmnopqrstuvwxyz"], ["0123"])[0]
        assert long == lm.log_likelihood(["opqrstuvwxyz"], ["0123"])[0]

    def test_the_response_is_never_shortened(self):
        tokenizer = byte_tokenizer()
        lm = TransformersLM(tiny_model("gpt2", len(tokenizer), max_length=16), tokenizer)
        with pytest.warns(UserWarning, match="loses its beginning"):
            likelihood = lm.log_likelihood(["abcdefgh"], ["0123456789abcdef"])[0]
        assert likelihood.num_tokens == 16
        assert likelihood == lm.log_likelihood(["h"], ["0123456789abcdef"])[0]
        with pytest.raises(ValueError, match="17 tokens does not fit into the context window of 16"):
            lm.log_likelihood(["abcdefgh"], ["0123456789abcdefg"])

    @pytest.mark.parametrize("family", ["gpt2", "bart"])
    def test_new_tokens_must_leave_room(self, family):
        lm = make_lm(family, max_length=16)
        with pytest.raises(ValueError, match=r"max_new_tokens must leave room .* 16 tokens, got 17"):
            lm.generate(["hello"], config=GenerationConfig(max_new_tokens=17))

    def test_a_long_encoder_input_keeps_its_end(self):
        lm = tiny_seq2seq_lm(family="t5", max_length=8)
        config = GenerationConfig(max_new_tokens=12, num_candidates=2)
        with pytest.warns(UserWarning, match="loses its beginning"):
            long = lm.generate(["abcdefghijklmn"], config=config, seed=0)
        assert long == lm.generate(["hijklmn"], config=config, seed=0)

    def test_models_without_a_limit(self):
        assert tiny_causal_lm(family="bloom").max_length is None


class TestTrimHistory:
    TURNS = tuple(
        Turn(speaker, text) for speaker, text in [("User", "aaaa"), ("Bob", "bb"), ("User", "cccccc")]
    )

    @staticmethod
    def fits(limit):
        return lambda turns: sum(len(turn.text) for turn in turns) <= limit

    @pytest.mark.parametrize(("limit", "kept"), [(12, 3), (11, 2), (8, 2), (7, 1), (6, 1)])
    def test_the_oldest_turns_go_first(self, limit, kept):
        assert trim_history(self.TURNS, self.fits(limit)) == self.TURNS[-kept:]

    @pytest.mark.parametrize("limit", [1, 3, 5])
    def test_the_last_turn_stays_and_keeps_its_end(self, limit):
        turns = (*self.TURNS[:2], Turn("User", "uvwxyz"))
        with pytest.warns(UserWarning, match="last turn does not fit"):
            assert trim_history(turns, self.fits(limit)) == (Turn("User", "uvwxyz"[-limit:]),)

    @given(st.lists(st.text("ab ", max_size=8), min_size=1, max_size=8), st.integers(0, 40))
    @example(["a "], 1)
    @example(["  "], 1)
    def test_as_much_as_possible_is_kept(self, texts, limit):
        turns = tuple(Turn("User", text) for text in texts)
        fits = self.fits(limit)
        if any(fits(turns[begin:]) for begin in range(len(turns))):
            expected = next(turns[begin:] for begin in range(len(turns)) if fits(turns[begin:]))
            assert trim_history(turns, fits) == expected
        elif limit and (last := texts[-1].strip()):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                (kept,) = trim_history(turns, fits)
            assert kept == Turn("User", last[-limit:].lstrip())
            assert bool(caught) == (len(last) > limit)
        else:
            with pytest.raises(ValueError, match="too small"):
                trim_history(turns, fits)

    def test_with_a_model(self, lm):
        def build(turns):
            return "".join(f"{turn.speaker}: {turn.text}\n" for turn in turns) + "Bob:"

        turns = [Turn("User", f"hello there {number}") for number in range(30)]
        kept = trim_history(turns, lambda some: lm.count_tokens(build(some)) <= 60)
        assert kept == tuple(turns[-len(kept) :])
        assert lm.count_tokens(build(kept)) <= 60 < lm.count_tokens(build(turns[-len(kept) - 1 :]))

    def test_no_turns(self):
        with pytest.raises(ValueError, match="at least one turn"):
            trim_history([], lambda turns: True)


class TestLogLikelihood:
    RESPONSES: ClassVar = [
        " hello there my old friend",
        " you",
        ".",
        " what of the sea? what of you, my friend?",
    ]

    def brute_force(self, lm, prompt, response):
        """One pair at a time, without padding, all logits in float64."""
        model = lm.model
        if model.config.is_encoder_decoder:
            new = lm.tokenizer(response, add_special_tokens=False)["input_ids"]
            start = [model.generation_config.decoder_start_token_id]
            forced = model.generation_config.forced_bos_token_id
            start += [] if forced is None else [forced]
            decoder = torch.tensor([start + new])
            with torch.no_grad():
                logits = model(input_ids=prompt_ids(lm, prompt), decoder_input_ids=decoder).logits[0]
            begin = len(start) - 1
        else:
            ids = prompt_ids(lm, prompt)[0].tolist()
            new = lm.tokenizer(prompt + response)["input_ids"][len(ids) :]
            with torch.no_grad():
                logits = model(torch.tensor([ids + new])).logits[0]
            begin = len(ids) - 1
        scores = logits.log_softmax(-1)[range(begin, begin + len(new)), new]
        return Likelihood(scores.sum().item(), len(new))

    @pytest.mark.parametrize("family", CAUSAL + SEQ2SEQ)
    @pytest.mark.parametrize(("batch_size", "batch_tokens"), [(64, 8192), (3, 8192), (64, 60), (1, 1)])
    def test_equals_brute_force_in_float64(self, family, batch_size, batch_tokens):
        lm = make_lm(family)
        lm.model.double()
        lm.batch_size, lm.batch_tokens = batch_size, batch_tokens
        pairs = [(prompt, response) for prompt in PROMPTS for response in self.RESPONSES]
        results = lm.log_likelihood(*zip(*pairs, strict=True))
        for (prompt, response), result in zip(pairs, results, strict=True):
            expected = self.brute_force(lm, prompt, response)
            assert result.num_tokens == expected.num_tokens
            assert result.sum_logprob == pytest.approx(expected.sum_logprob, abs=1e-8)
            assert result.logprob == pytest.approx(expected.sum_logprob / expected.num_tokens, abs=1e-8)

    def test_logits_are_limited(self, monkeypatch):
        lm = tiny_causal_lm(WORDS, family="llama")
        sizes = []
        forward = type(lm.model).forward

        def watched(model, *args, **kwargs):
            output = forward(model, *args, **kwargs)
            sizes.append(tuple(output.logits.shape))
            return output

        monkeypatch.setattr(type(lm.model), "forward", watched)
        monkeypatch.setattr("dialogkit.generation.local._MAX_LOGITS", 3 * 10 * len(lm.tokenizer))
        whole = lm.log_likelihood([PROMPTS[2]] * 20, [" hello there"] * 20)
        assert len(set(whole)) == 1
        assert len(sizes) > 1
        for rows, columns, _ in sizes:
            assert rows * columns <= 30
            assert columns == 2  # of the response alone, not of the prompt

    def test_a_token_across_the_boundary_does_not_change_the_prompt(self, lm):
        """`hel` + `lo` would be the single token `hello`: the prompt's own tokens stay."""
        split = lm.tokenizer("hel")["input_ids"]
        rest = lm.tokenizer("lo")["input_ids"]
        assert lm.tokenizer("hello")["input_ids"] != split + rest
        with torch.no_grad():
            logits = lm.model(torch.tensor([split + rest])).logits[0].log_softmax(-1)
        expected = logits[range(len(split) - 1, len(split) + len(rest) - 1), rest].sum().item()
        assert lm.log_likelihood(["hel"], ["lo"])[0].sum_logprob == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(
        ("prompt", "response", "pieces"),
        [
            ("you:", " Hello", ["▁Hello"]),
            ("you:", "Hello", ["H", "ello"]),
            ("you: ", "Hello", ["H", "ello"]),
            ("you:\n", "you.", ["you", "."]),
        ],
    )
    def test_no_space_is_put_before_a_response(self, prompt, response, pieces):
        """Tokenizers in the manner of Llama's put a space before a text, which is no part of the response."""
        tokenizer = byte_fallback_tokenizer()
        lm = TransformersLM(tiny_model("llama", len(tokenizer)), tokenizer)
        ids = tokenizer(prompt)["input_ids"] + tokenizer.convert_tokens_to_ids(pieces)
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        begin = len(ids) - len(pieces)
        expected = logits[range(begin - 1, len(ids) - 1), ids[begin:]].sum().item()
        result = lm.log_likelihood([prompt], [response])[0]
        assert result.num_tokens == len(pieces)
        assert result.sum_logprob == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(
        ("prompts", "responses", "error"),
        [
            (["hello"], [""], "responses must not be empty"),
            (["hello"], [], "must be as many, got 1 and 0"),
            (["hello"], [None], "responses must be strings, got NoneType"),
        ],
    )
    def test_wrong_input_is_refused(self, lm, prompts, responses, error):
        with pytest.raises((TypeError, ValueError), match=error):
            lm.log_likelihood(prompts, responses)


class TestLoading:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models") / "tiny"
        lm = tiny_causal_lm(WORDS, family="llama")
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        return folder

    @pytest.fixture
    def copied(self, folder, tmp_path):
        return shutil.copytree(folder, tmp_path / "copy")

    def test_a_saved_model_is_the_same_model(self, folder, lm):
        loaded = TransformersLM.from_pretrained(folder)
        config = GenerationConfig(max_new_tokens=8, num_candidates=3)
        assert loaded.generate(PROMPTS, config=config, seed=0) == lm.generate(PROMPTS, config=config, seed=0)
        assert loaded.name == str(folder)
        assert not loaded.model.training

    def test_loading_writes_nothing(self, folder, capfd):
        TransformersLM.from_pretrained(folder)
        assert capfd.readouterr() == ("", "")

    def test_encoder_decoder_models_load(self, tmp_path):
        lm = tiny_seq2seq_lm(WORDS)
        lm.model.save_pretrained(tmp_path)
        lm.tokenizer.save_pretrained(tmp_path)
        loaded = TransformersLM.from_pretrained(str(tmp_path), device="cpu")
        assert loaded.generate(["hello"], config=GREEDY) == lm.generate(["hello"], config=GREEDY)

    def test_an_adapter_is_merged_into_its_base_model(self, folder, tmp_path):
        peft = pytest.importorskip("peft")
        base = TransformersLM.from_pretrained(folder)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(base.model, config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
        loaded = TransformersLM.from_pretrained(tmp_path / "adapter")
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            expected, found = adapted(ids).logits, loaded.model(ids).logits
            plain = TransformersLM.from_pretrained(folder).model(ids).logits
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, plain, atol=1e-3)
        weights = tmp_path / "adapter" / "adapter_model.safetensors"
        weights.rename(weights.with_name("adapter_model.bin"))
        with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
            TransformersLM.from_pretrained(tmp_path / "adapter")

    def test_adapters_that_cannot_be_merged_are_refused(self, folder, tmp_path):
        peft = pytest.importorskip("peft")
        base = TransformersLM.from_pretrained(folder)
        prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        peft.get_peft_model(base.model, prompt).save_pretrained(tmp_path / "prompt")
        with pytest.raises(ValueError, match="prompt is a learned prompt"):
            TransformersLM.from_pretrained(tmp_path / "prompt")
        settings = tmp_path / "prompt" / "adapter_config.json"
        for target, message in (
            (tmp_path / "prompt", "belongs to another adapter"),
            (tmp_path / "gone", "the model that the adapter .* belongs to: no such model folder"),
        ):
            known = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(target)}
            settings.write_text(json.dumps(known))
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                TransformersLM.from_pretrained(tmp_path / "prompt")

    @pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
    def test_a_quantization_is_handed_on(self, folder):
        with pytest.raises(ImportError, match="bitsandbytes"):
            TransformersLM.from_pretrained(
                folder, device="cpu", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
            )

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            (None, torch.float32),
            ("auto", torch.float32),
            ("bf16", torch.bfloat16),
            ("float16", torch.float16),
            (torch.float64, torch.float64),
        ],
    )
    def test_dtypes(self, folder, dtype, expected):
        assert TransformersLM.from_pretrained(folder, device="cpu", dtype=dtype).model.dtype == expected

    def test_unknown_dtype(self, folder):
        with pytest.raises(ValueError, match=r"dtype must be 'auto' or one of .*got 'int3'"):
            TransformersLM.from_pretrained(folder, dtype="int3")

    @pytest.mark.parametrize("name", ["none/of/these", "./none", "/none/there"])
    def test_missing_folder(self, name):
        with pytest.raises(FileNotFoundError, match=r"no such model folder: .*none.*config\.json"):
            TransformersLM.from_pretrained(name)

    def test_unknown_hub_model(self):
        with pytest.raises(FileNotFoundError, match="'no-one/no-model' is neither a folder nor a model"):
            TransformersLM.from_pretrained("no-one/no-model")

    def test_missing_config(self, copied):
        (copied / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"copy holds no config\.json \(expected"):
            TransformersLM.from_pretrained(copied)

    def test_missing_weights(self, copied):
        (copied / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"copy holds no weights \(expected"):
            TransformersLM.from_pretrained(copied)
        (copied / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is not read, because pickles"):
            TransformersLM.from_pretrained(copied)

    @pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
    def test_corrupt_safetensors(self, copied, damage):
        file = copied / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:-100], "noise": b"\xff" * 500, "empty": b""}[damage])
        with pytest.raises(ValueError, match=r"model\.safetensors is not a valid safetensors file"):
            TransformersLM.from_pretrained(copied)

    def test_missing_shard(self, copied):
        shard = "model-00002-of-00002.safetensors"
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
        (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=f"copy.*{shard}"):
            TransformersLM.from_pretrained(copied)

    def test_weights_that_do_not_fit_the_configuration(self, copied):
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(
            ValueError, match=r"copy.*not fit its config\.json: \d+ tensors .*model\.layers\.2"
        ):
            TransformersLM.from_pretrained(copied)
        (copied / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "head_dim": 16}))
        with pytest.raises(ValueError, match=r"copy.*not fit its config\.json: .*lm_head\.weight"):
            TransformersLM.from_pretrained(copied)

    def test_config_that_is_no_json(self, copied):
        (copied / "config.json").write_text("{")
        with pytest.raises(ValueError, match="copy"):
            TransformersLM.from_pretrained(copied)

    def test_missing_tokenizer(self, copied):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (copied / name).unlink()
        with pytest.raises(ValueError, match="tokenizer"):
            TransformersLM.from_pretrained(copied)


def test_scores_without_a_distribution_give_a_token_of_the_vocabulary() -> None:
    scores = torch.tensor([[float("nan"), 1.0, 2.0], [float("inf"), float("inf"), 0.0]])
    tokens = choose(scores, torch.tensor([0.2, 0.9], dtype=torch.float64))
    assert ((tokens >= 0) & (tokens < 3)).all()
