"""Keys and values that are kept between prompts: same candidates, fewer tokens read, bounded memory."""

import copy
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.generation.decoding import Decoding
from dialogkit.generation.encoding import PromptEncoder
from dialogkit.generation.forward import Forward
from dialogkit.generation.reuse import KeptPrompts, longest_kept
from tests.dialogkit.tiny import byte_tokenizer, tiny_causal_lm, tiny_model, tiny_seq2seq_lm

WORDS = ["hello", "there", "who", "are", "you", "This", "is", "conversation", "between", "User", "and", "Bob"]
START = "This is conversation between User and Bob.\nUser: hello there\nBob: who are you\n"
TURNS = (f"{START}User: who?\nBob:", f"{START}User: who?\nBob: you there\nUser: hello\nBob:")
OTHERS = (f"{START}User: who are you then, and who is Bob?\nBob:", "hi", f"{START}User: hello\nBob:")
GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False)
SAMPLED = GenerationConfig(max_new_tokens=6, num_candidates=5, top_k=0, repetition_penalty=1.2)
PLENTY = 2**24
FAMILIES = ("gpt2", "llama", "opt", "bloom", "qwen3", "gemma3")


def gemma(window: int) -> Gemma3ForCausalLM:
    """Every second layer attends to a window, the others to all tokens."""
    config = Gemma3TextConfig(
        vocab_size=len(byte_tokenizer(WORDS)), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        sliding_window=window, layer_types=["sliding_attention", "full_attention"],
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0.0, 0.5)
    return model.eval()


def model_of(family: str):
    """A model with plain attention everywhere, or a window that no prompt here fills."""
    if family == "gemma3":
        return gemma(512)
    model = tiny_model(family, len(byte_tokenizer(WORDS)))
    if family == "qwen3":
        model.config.layer_types = ["full_attention"] * 2
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict())
        return plain.eval()
    return model


def pair_of(model, **settings) -> tuple[TransformersLM, TransformersLM]:
    """The same model without and with reuse."""
    tokenizer = byte_tokenizer(WORDS)
    return TransformersLM(model, tokenizer), TransformersLM(model, tokenizer, kept_bytes=PLENTY, **settings)


def drawn(lm, prompts, config=GREEDY):
    """Texts and their scores."""
    found = lm.generate(list(prompts), config=config, seed=3)
    scores = [one.sum_logprob for candidates in found for one in candidates]
    return [[one.text for one in candidates] for candidates in found], scores


def alike(got, expected) -> bool:
    """Whether texts are equal, and scores up to rounding."""
    return got[0] == expected[0] and got[1] == pytest.approx(expected[1], abs=1e-4)


@pytest.fixture
def read(monkeypatch):
    """Numbers of tokens, pads included, that any model reads of prompts, one for each forward pass."""
    seen: list[int] = []
    advance = Forward.advance

    def spy(self, batch, ids):
        if ids.shape[1] > 1:
            seen.append(ids.numel())
        advance(self, batch, ids)

    monkeypatch.setattr(Forward, "advance", spy)
    return seen


class TestSameCandidates:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_of_later_turns_and_of_batches(self, family, read):
        plain, reusing = pair_of(model_of(family))
        assert longest_kept(plain.model) >= 511
        for config in (GREEDY, SAMPLED):
            for prompts in ([TURNS[0]], [TURNS[1]], list(OTHERS), list(OTHERS + TURNS)):
                expected = drawn(plain, prompts, config)
                whole = sum(read)
                read.clear()
                assert alike(drawn(reusing, prompts, config), expected)
                if prompts != [TURNS[0]]:
                    assert sum(read) < whole / 2
                read.clear()
        kept, held = reusing.kept_prompts
        # The first turn is the beginning of the second one and has no place of its own.
        assert kept == len(OTHERS) + 1
        assert held > 0

    def test_of_streams(self, read):
        plain, reusing = pair_of(model_of("llama"))
        for config in (GREEDY, SAMPLED):
            for prompt in TURNS:
                expected = plain.generate([prompt], config=config, seed=1)[0][0].text
                assert "".join(reusing.stream(prompt, config=config, seed=1)) == expected
        lengths = [plain.count_tokens(turn) for turn in TURNS]
        assert read[1] == lengths[0] and lengths[1] - lengths[0] in read

    def test_when_there_are_more_candidates_than_rows(self):
        plain, reusing = pair_of(model_of("llama"), batch_size=2)
        for prompt in TURNS:
            assert alike(drawn(reusing, [prompt], SAMPLED), drawn(plain, [prompt], SAMPLED))

    def test_of_chat_messages(self):
        tokenizer = byte_tokenizer(WORDS, chat=True)
        model = tiny_model("llama", len(tokenizer))
        plain = TransformersLM(model, tokenizer)
        reusing = TransformersLM(model, tokenizer, kept_bytes=PLENTY)
        chat = [{"role": "system", "content": START}]
        for text in ("hello there", "who are you", "and who is Bob?"):
            chat.append({"role": "user", "content": text})
            answer = drawn(plain, [chat])
            assert alike(drawn(reusing, [chat]), answer)
            chat.append({"role": "assistant", "content": answer[0][0][0] or "Aye."})

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def test_logits_equal_those_of_the_prompt_alone(self, data):
        forward = self.forward_in_float64()
        starts = [[(7 * i + j) % 50 for j in range(40)] for i in range(2)]
        for _ in range(data.draw(st.integers(1, 4))):
            prompts = [
                starts[data.draw(st.integers(0, 1))][: data.draw(st.integers(1, 40))]
                + data.draw(st.lists(st.integers(0, 2), max_size=25))
                for _ in range(data.draw(st.integers(1, 4)))
            ]
            batch = forward.read(prompts)
            for row, prompt in enumerate(prompts):
                with torch.no_grad():
                    alone = forward.model(torch.tensor([prompt])).logits[0, -1]
                torch.testing.assert_close(batch.logits[row], alone, atol=1e-9, rtol=1e-9)
            assert forward.kept.bytes <= 60_000

    @staticmethod
    def forward_in_float64() -> Forward:
        tokenizer = byte_tokenizer(WORDS)
        model = tiny_model("llama", len(tokenizer)).double()
        # Room for about two prompts, so that others are thrown out.
        return Forward(model, tokenizer, kept_bytes=60_000)


class TestFewerTokens:
    def test_a_later_turn_reads_what_is_new(self, read):
        lm = pair_of(model_of("llama"))[1]
        lm.generate([TURNS[0]], config=GREEDY)
        lm.generate([TURNS[1]], config=GREEDY)
        lengths = [lm.count_tokens(turn) for turn in TURNS]
        assert TURNS[1].startswith(TURNS[0])
        assert read == [lengths[0], lengths[1] - lengths[0]]

    def test_the_common_beginning_of_a_batch_is_read_once(self, read):
        lm = pair_of(model_of("llama"))[1]
        prompts = [f"{START}User: {word}\nBob:" for word in ("who?", "you?", "are?")]
        lm.generate(prompts, config=GREEDY)
        ids = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
        shared = next(i for i in range(len(ids[0])) if len({row[i] for row in ids}) > 1)
        assert read == [shared, sum(map(len, ids)) - 3 * shared]

    def test_a_prompt_that_is_known_reads_its_last_token(self, read):
        lm = pair_of(model_of("llama"))[1]
        lm.generate([TURNS[0]], config=GREEDY)
        read.clear()
        lm.generate([TURNS[0]] * 3, config=GREEDY)
        assert read == []  # only single tokens

    def test_a_token_is_shown_before_the_model_reads_it(self, monkeypatch):
        lm = pair_of(model_of("llama"))[0]
        passes, chosen = [], []
        advance, push = Forward.advance, Decoding._push
        monkeypatch.setattr(Forward, "advance", lambda *args: (passes.append(1), advance(*args)))
        monkeypatch.setattr(Decoding, "_push", lambda *args: (chosen.append(1), push(*args))[1])
        for _ in lm.stream(TURNS[0], config=GREEDY):
            assert len(passes) == len(chosen)
        assert chosen

    def test_nothing_is_kept_unless_asked_for(self, read):
        lm = pair_of(model_of("llama"))[0]
        for _ in range(2):
            lm.generate([TURNS[0]], config=GREEDY)
        assert read == [lm.count_tokens(TURNS[0])] * 2
        assert lm.kept_prompts == (0, 0)


class TestWhereItIsImpossible:
    """Windows that are full, recurrent states, encoders and moving rotary embeddings: read as a whole."""

    @pytest.mark.parametrize("family", ["qwen3", "gemma3"])
    def test_a_prompt_that_fills_the_window_is_not_kept(self, family):
        model = tiny_model("qwen3", len(byte_tokenizer(WORDS))) if family == "qwen3" else gemma(8)
        plain, reusing = pair_of(model)
        assert longest_kept(model) == 7
        for prompts in ([TURNS[0]], [TURNS[1]], list(OTHERS)):
            for config in (GREEDY, SAMPLED):
                assert alike(drawn(reusing, prompts, config), drawn(plain, prompts, config))
        assert reusing.kept_prompts[0] <= 1  # "hi", alone in no batch, would fit

    def test_a_window_may_fill_up_after_the_part_that_is_kept(self, read):
        plain, reusing = pair_of(gemma(32))
        lengths = [plain.count_tokens(turn) for turn in TURNS]
        assert lengths[0] < 32 < lengths[1]
        drawn(reusing, [TURNS[0]])
        assert reusing.kept_prompts[0] == 1
        for turn in (TURNS[1], f"{TURNS[1]} hello there\nUser: who are you?\nBob:"):
            for config in (GREEDY, SAMPLED):
                expected = drawn(plain, [turn], config)
                read.clear()
                assert alike(drawn(reusing, [turn], config), expected)
                assert sum(read) < plain.count_tokens(turn)

    def test_recurrent_states(self):
        config = Lfm2Config(
            vocab_size=len(byte_tokenizer(WORDS)), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, layer_types=["conv", "full_attention"],
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain, reusing = pair_of(Lfm2ForCausalLM(config).eval())
        assert longest_kept(plain.model) == 0
        for prompts in ([TURNS[0]], [TURNS[1]]):
            assert alike(drawn(reusing, prompts), drawn(plain, prompts))
        assert reusing.kept_prompts == (0, 0)

    @pytest.mark.parametrize("kind", ["dynamic", "longrope"])
    def test_rotary_embeddings_that_depend_on_the_length(self, kind):
        rotary = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
        if kind == "longrope":
            rotary |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
            rotary["original_max_position_embeddings"] = 16
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, rope_parameters=rotary,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        assert longest_kept(model) == 0
        config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        assert longest_kept(model) == math.inf

    def test_encoders(self):
        plain = tiny_seq2seq_lm(WORDS)
        reusing = TransformersLM(plain.model, plain.tokenizer, kept_bytes=PLENTY)
        for prompts in ([TURNS[0]], list(OTHERS)):
            assert alike(drawn(reusing, prompts, SAMPLED), drawn(plain, prompts, SAMPLED))
        assert reusing.kept_prompts == (0, 0)


class TestWhatIsKept:
    TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)

    @staticmethod
    def states(tokens):
        """Four bytes for each token, so that it can be seen whose they are."""
        numbers = torch.tensor(tokens, dtype=torch.float32).view(1, -1, 1)
        return [(numbers, numbers[..., :0])]

    @given(st.lists(TOKENS, max_size=12), TOKENS)
    def test_the_longest_common_beginning_is_found(self, prompts, wanted):
        kept = KeptPrompts(10_000)
        for prompt in prompts:
            kept.add(prompt, self.states(prompt))
        common, states = kept.longest(wanted)

        def shared(prompt):
            return next((i for i, (a, b) in enumerate(zip(prompt, wanted, strict=False)) if a != b),
                        min(len(prompt), len(wanted)))  # fmt: skip

        assert common == max(map(shared, prompts), default=0)
        if common:
            assert states[0][0].flatten()[:common].tolist() == wanted[:common]
        # None is the beginning of another.
        distinct = {tuple(prompt) for prompt in prompts}
        whole = [p for p in distinct if not any(q != p and q[: len(p)] == p for q in distinct)]
        assert len(kept) == len(whole)
        assert kept.bytes == sum(4 * len(prompt) for prompt in whole)

    @given(st.lists(TOKENS, max_size=20), st.integers(0, 60))
    def test_never_more_than_the_limit(self, prompts, limit):
        kept = KeptPrompts(limit)
        for prompt in prompts:
            kept.add(prompt, self.states(prompt))
            assert kept.bytes <= limit
            if 4 * len(prompt) <= limit:
                assert kept.longest(prompt)[0] == len(prompt)

    def test_what_was_not_used_for_longest_goes_first(self):
        kept = KeptPrompts(24)
        for prompt in ([1, 1], [2, 2], [3, 3]):
            kept.add(prompt, self.states(prompt))
        assert kept.longest([1, 5])[0] == 1  # a use
        kept.add([4, 4], self.states([4, 4]))
        assert [kept.longest([n, n])[0] for n in (1, 2, 3, 4)] == [2, 0, 2, 2]

    def test_a_new_prompt_too_large_to_keep_pushes_nothing_out(self):
        kept = KeptPrompts(8)
        kept.add([1, 1], self.states([1, 1]))
        kept.add([2, 2, 2], self.states([2, 2, 2]))
        assert (len(kept), kept.bytes, kept.longest([1, 1])[0]) == (1, 8, 2)

    def test_large_token_ids_are_told_apart(self):
        kept = KeptPrompts(100)
        kept.add([256, 3], self.states([256, 3]))
        assert kept.longest([1, 3])[0] == 0
        assert kept.longest([256, 200_000])[0] == 1

    def test_memory_of_a_model_is_bounded_and_exact(self):
        model = model_of("llama")
        tokenizer = byte_tokenizer(WORDS)
        lm = TransformersLM(model, tokenizer, kept_bytes=40_000)
        each = 2 * 2 * 16 * 4  # layers, keys and values, features of the one head, bytes
        lm.generate([TURNS[0]], config=GREEDY)
        assert lm.kept_prompts == (1, each * lm.count_tokens(TURNS[0]))
        lm.generate([f"{word} {START}" for word in WORDS], config=GREEDY)
        assert 1 < lm.kept_prompts[0] < 12
        assert 30_000 < lm.kept_prompts[1] <= 40_000
        stored = [
            part.untyped_storage().nbytes()
            for states in lm._forward.kept._used.values()
            for pair in states
            for part in pair
        ]
        assert sum(stored) == lm.kept_prompts[1]  # no view that holds a whole batch
        lm.forget()
        assert lm.kept_prompts == (0, 0)

    def test_decoding_changes_nothing_of_it(self):
        lm = pair_of(model_of("llama"))[1]
        drawn(lm, [TURNS[0]], SAMPLED)
        before = copy.deepcopy(lm._forward.kept.longest([0])[1])
        drawn(lm, [TURNS[0], *OTHERS], SAMPLED)
        ids = lm.tokenizer(TURNS[0])["input_ids"]
        common, states = lm._forward.kept.longest(ids)
        assert common == len(ids)
        for old, new in zip(before, states, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(old, new, strict=True))

    @pytest.mark.parametrize("change", ["step", "load", "replace"])
    def test_other_weights_make_it_worthless(self, change):
        plain, reusing = pair_of(model_of("llama"))
        first = drawn(reusing, TURNS)
        model = plain.model
        if change == "step":
            optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
            model(torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
            optimizer.step()
        elif change == "load":
            model.load_state_dict(tiny_model("llama", len(plain.tokenizer), seed=1).state_dict())
        else:
            weight = model.model.layers[0].self_attn.v_proj
            weight.weight = torch.nn.Parameter(-3.0 * weight.weight.detach())
        expected = drawn(plain, TURNS)
        assert not alike(expected, first)
        assert alike(drawn(reusing, TURNS), expected)

    def test_half_precision_keeps_nothing_by_default(self, read):
        tokenizer = byte_tokenizer(WORDS)
        model = model_of("llama")
        for dtype, kept in ((torch.float32, 1), (torch.bfloat16, 0), (torch.float64, 1)):
            lm = TransformersLM(model.to(dtype), tokenizer, kept_bytes=None)
            lm.generate([TURNS[0]], config=GREEDY)
            assert lm.kept_prompts[0] == kept
        lm = TransformersLM(model.to(torch.bfloat16), tokenizer, kept_bytes=PLENTY)
        lm.generate([TURNS[0]], config=GREEDY)
        assert lm.kept_prompts[0] == 1

    def test_a_negative_limit_is_refused(self):
        with pytest.raises(ValueError, match="kept_bytes must not be negative, got -1"):
            TransformersLM(model_of("llama"), byte_tokenizer(WORDS), kept_bytes=-1)


class TestThreads:
    def test_replies_are_those_of_one_thread(self):
        plain, reusing = pair_of(model_of("llama"))
        # Little room, so that prompts are thrown out while others are looked for.
        tight = TransformersLM(plain.model, plain.tokenizer, kept_bytes=60_000)
        prompts = [f"{START}User: {word}\nBob:" for word in WORDS[:6]]
        expected = [drawn(plain, [prompt], SAMPLED) for prompt in prompts]
        for lm in (reusing, tight):
            with ThreadPoolExecutor(4) as pool:
                got = list(pool.map(lambda prompt, lm=lm: drawn(lm, [prompt], SAMPLED), prompts * 2))
            assert all(alike(*pair) for pair in zip(got, expected * 2, strict=True))
        assert tight.kept_prompts[1] <= 60_000

    def test_the_tokenizer_is_used_by_one_thread_at_a_time(self, monkeypatch):
        lm = tiny_causal_lm(WORDS)
        inside = threading.Lock()
        clashes = []

        def alone(method):
            def guarded(*args, **kwargs):
                if not inside.acquire(blocking=False):
                    clashes.append(method)
                    return method(*args, **kwargs)
                try:
                    time.sleep(0.002)  # long enough for another thread to come by
                    return method(*args, **kwargs)
                finally:
                    inside.release()

            return guarded

        kind = type(lm.tokenizer)
        monkeypatch.setattr(kind, "_encode_plus", alone(kind._encode_plus))
        monkeypatch.setattr(kind, "_decode", alone(kind._decode))
        encoder = PromptEncoder(lm.tokenizer, "tiny", closed=False, parse_special_tokens=False)

        def work(number):
            return encoder.decode(encoder.encode(f"hello {number}"))

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(12))) == [f"hello {number}" for number in range(12)]
        assert not clashes
