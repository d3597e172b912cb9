"""Batches, queues, streams in turn, and what a cancelled or failed request leaves behind."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from dialogkit.bots import GeneratorChatbot
from dialogkit.chat import Reply
from dialogkit.dialogues import Turn
from dialogkit.generation import Candidate, GenerationConfig, PromptError
from dialogkit.generation.prompting import DialoguePrompt
from dialogkit.pdp import PDPChatbot
from dialogkit.pdp.prompts import ZeroShotPrompt
from dialogkit.serving import Answer, Busy, Choice, Engine, FailedError
from dialogkit.serving.engine import _chosen, adjusted, own_generation, takes_instruction
from tests.dialogkit.pdp.helpers import character
from tests.dialogkit.serving.helpers import PATIENCE, Scripted
from tests.dialogkit.tiny import tiny_causal_lm


def said(text: str) -> tuple[Turn, ...]:
    return (Turn("User", text),)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def settle(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_what_waits_is_answered_together() -> None:
    async def work() -> None:
        sizes: list[int] = []
        bot, engine = Scripted(), Engine(batch_size=3, on_batch=sizes.append)
        bot.gate.clear()
        first = asyncio.create_task(engine.reply(bot, said("0")))
        await settle(lambda: bot.batches)
        rest = [asyncio.create_task(engine.reply(bot, said(str(i)))) for i in range(1, 6)]
        await settle(lambda: engine.waiting == 5)
        assert engine.active == 6
        bot.gate.set()
        answers = [await task for task in (first, *rest)]
        assert [answer.reply.text for answer in answers] == [f"You said {i}" for i in range(6)]
        assert bot.batches == [["0"], ["1", "2", "3"], ["4", "5"]] and sizes == [1, 3, 2]
        assert engine.active == engine.waiting == 0

    run(work())


def test_only_like_requests_share_a_call() -> None:
    async def work() -> None:
        bot, other, engine = Scripted(), Scripted(), Engine()
        bot.gate.clear()
        tasks = [asyncio.create_task(engine.reply(bot, said("first")))]
        await settle(lambda: bot.batches)
        for text, seed in (("a", 1), ("b", 2), ("c", 1)):
            tasks.append(asyncio.create_task(engine.reply(bot, said(text), seed=seed)))
        await settle(lambda: engine.waiting == 3)
        # Another model has a thread of its own, and need not wait.
        assert (await engine.reply(other, said("d"))).reply.text == "You said d"
        bot.gate.set()
        await asyncio.gather(*tasks)
        assert bot.batches == [["first"], ["a", "c"], ["b"]] and bot.seeds == [None, 1, 2]

    run(work())


def test_a_batch_is_as_large_as_its_candidates_allow() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine(batch_size=5)
        bot.generation = GenerationConfig(num_candidates=2)  # type: ignore[attr-defined]
        bot.gate.clear()
        tasks = [asyncio.create_task(engine.reply(bot, said("0")))]
        await settle(lambda: bot.batches)
        greedy = GenerationConfig(num_candidates=2, do_sample=False)
        many = GenerationConfig(num_candidates=9)
        for text, config in zip("123abc45", [None] * 3 + [greedy] * 3 + [many] * 2, strict=True):
            tasks.append(asyncio.create_task(engine.reply(bot, said(text), generation=config)))
        await settle(lambda: engine.waiting == 8)
        bot.gate.set()
        await asyncio.gather(*tasks)
        assert bot.batches == [["0"], ["1", "2"], ["3"], ["a", "b", "c"], ["4"], ["5"]]

    run(work())


def test_one_that_cannot_be_answered_does_not_harm_the_others() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        bot.gate.clear()
        first = asyncio.create_task(engine.reply(bot, said("first")))
        await settle(lambda: bot.batches)
        texts = ("a", "refuse me", "bad value", "b")
        tasks = [asyncio.create_task(engine.reply(bot, said(text))) for text in texts]
        await settle(lambda: engine.waiting == 4)
        bot.gate.set()
        await first
        a, refused, failed, b = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(a, Answer) and a.reply.text == "You said a"
        assert isinstance(b, Answer) and b.reply.text == "You said b"
        assert isinstance(refused, PromptError) and str(refused) == "I will not answer that"
        assert isinstance(failed, FailedError) and isinstance(failed.__cause__, ValueError)

    run(work())


@pytest.mark.parametrize("text", ["break", "bad value"])
def test_an_inner_error_reaches_its_caller_and_the_log_and_the_engine_goes_on(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        with pytest.raises(FailedError) as whole:
            await engine.reply(bot, said(text))
        with pytest.raises(FailedError) as streamed:
            [step async for step in engine.stream(bot, said(text))]
        for caught in (whole, streamed):
            assert "inside" not in str(caught.value) and "inside" in str(caught.value.__cause__)
        assert engine.active == 0
        assert (await engine.reply(bot, said("hello"))).reply.text == "You said hello"

    run(work())
    logged = [record for record in caplog.records if record.name == "dialogkit.serving.engine"]
    assert len(logged) == 2
    for record in logged:
        assert record.levelname == "ERROR" and record.exc_info is not None
        assert "secret of the inside" in str(record.exc_info[1]) and record.exc_info[2] is not None


def test_a_refusal_reaches_its_caller_and_not_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        with pytest.raises(PromptError, match="I will not answer that"):
            await engine.reply(bot, said("refuse me"))
        with pytest.raises(PromptError, match="I will not answer that"):
            [step async for step in engine.stream(bot, said("refuse me"))]

    run(work())
    assert not [record for record in caplog.records if record.name.startswith("dialogkit")]


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        bot.gate.clear()
        running = asyncio.create_task(engine.reply(bot, said("running")))
        await settle(lambda: bot.batches)
        waiting = asyncio.create_task(engine.reply(bot, said("waiting")))
        await settle(lambda: engine.waiting == 1)
        for task in (waiting, running):
            task.cancel()
            await asyncio.wait([task])
        assert engine.active == engine.waiting == 0
        bot.gate.set()
        assert (await engine.reply(bot, said("next"))).reply.text == "You said next"
        assert bot.batches == [["running"], ["next"]]

    run(work())


def test_one_too_many_is_refused_and_room_comes_back() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine(max_requests=2)
        bot.gate.clear()
        reply = asyncio.create_task(engine.reply(bot, said("a")))
        await settle(lambda: bot.batches)
        async with aclosing(engine.stream(Scripted(), said("b"))) as stream:
            assert await anext(stream) == "You "
            with pytest.raises(Busy):
                await engine.reply(bot, said("c"))
            with pytest.raises(Busy):
                await anext(engine.stream(bot, said("c")))
        assert engine.active == 1
        bot.gate.set()
        await reply
        assert (await engine.reply(bot, said("c"))).reply.text == "You said c"

    run(work())


def test_a_stream_ends_with_its_answer() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        *pieces, answer = [step async for step in engine.stream(bot, said("hello"), seed=5)]
        assert pieces == ["You ", "said ", "hello"] and bot.seeds == [5]
        assert isinstance(answer, Answer) and answer.choices == (Choice("You said hello", "stop"),)
        assert engine.active == 0

    run(work())


class Whole(Scripted):
    """Cannot stream, and says so before or while it is asked."""

    def __init__(self, begins: bool) -> None:
        super().__init__()
        self.begins = begins

    def stream(self, history: Any, *, seed: int | None = None) -> Any:
        def piecewise() -> Any:
            yield "You "
            raise NotImplementedError

        if self.begins:
            return piecewise()
        raise NotImplementedError


def test_a_chatbot_that_cannot_stream_says_its_reply_in_one_piece() -> None:
    async def work() -> None:
        bot, engine = Whole(begins=False), Engine()
        *pieces, answer = [step async for step in engine.stream(bot, said("hello"), seed=5)]
        assert pieces == ["You said hello"] and bot.seeds == [5]
        assert answer.reply.text == "You said hello" and engine.active == 0
        with pytest.raises(FailedError):  # half a reply has been said already
            [step async for step in engine.stream(Whole(begins=True), said("hello"))]

    run(work())


def test_a_closed_stream_closes_the_chatbots() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        async with aclosing(engine.stream(bot, said("for ever"))) as stream:
            for _ in range(5):
                await anext(stream)
            assert not bot.closed.is_set()
        assert await asyncio.to_thread(bot.closed.wait, PATIENCE)
        assert engine.active == 0

    run(work())


def test_streams_and_replies_take_turns() -> None:
    async def work() -> None:
        bot, engine = Scripted(), Engine()
        async with aclosing(engine.stream(bot, said("for ever"))) as stream:
            reply = asyncio.create_task(engine.reply(bot, said("hello")))
            pieces = 0
            while not reply.done():
                await anext(stream)
                pieces += 1
                # The stream has no end, so the reply comes in between or never.
                assert pieces < 1000
            assert (await reply).reply.text == "You said hello"

    run(work())


def test_a_stream_gets_as_much_time_as_a_batch() -> None:
    class Slow(Scripted):
        def reply_batch(self, *arguments: Any, **named: Any) -> list[Reply]:
            time.sleep(0.3)
            return super().reply_batch(*arguments, **named)

    async def work() -> None:
        bot, engine = Slow(), Engine()
        between = 0
        async with aclosing(engine.stream(bot, said("for ever"))) as stream:
            tasks = [asyncio.create_task(engine.reply(bot, said("a"), seed=seed)) for seed in range(2)]
            while not tasks[1].done():
                await anext(stream)
                between += len(bot.batches) == 1
        # In strict turn it would be one piece, or two: a piece takes 10 ms, a batch 300.
        assert between > 3

    run(work())


def test_one_model_has_one_thread() -> None:
    class Watched(Scripted):
        def __init__(self, model: object) -> None:
            super().__init__()
            self.model = model
            self.threads: set[str] = set()

        def _last(self, history: Any) -> str:
            self.threads.add(threading.current_thread().name)
            return super()._last(history)

    async def work() -> None:
        model, engine = object(), Engine()
        one, two, other = Watched(model), Watched(model), Watched(object())
        asked = [engine.reply(bot, said(str(i))) for i in range(4) for bot in (one, two, other)]
        await asyncio.gather(*asked)
        assert one.threads == two.threads and len(one.threads) == 1

    run(work())


# Chatbots with other settings -------------------------------------------------------------------------------


def test_settings_are_changed_in_a_copy() -> None:
    lm = tiny_causal_lm()
    wanted = GenerationConfig(max_new_tokens=3, do_sample=False)
    plain = GeneratorChatbot(lm, prompt=DialoguePrompt(instruction="Talk."))
    pdp = PDPChatbot(lm, character(), prompt=ZeroShotPrompt())
    assert takes_instruction(plain) and not takes_instruction(pdp)
    for bot in (plain, pdp):
        own = own_generation(bot)
        view = adjusted(bot, wanted, "Be kind.")
        assert own_generation(view) == wanted and own_generation(bot) == own != wanted
        assert view.model is lm  # type: ignore[attr-defined]
        assert view.reply("Hello.").evidence["prompt"].startswith("Talk. Be kind.\n") == (bot is plain)
    assert plain.prompt.instruction == "Talk."
    assert own_generation(Scripted()) is None and not takes_instruction(Scripted())


def candidate(text: str, logprob: float) -> Candidate:
    return Candidate(text, logprob, logprob, 1, "length")


def test_choices_are_the_reply_and_then_the_best() -> None:
    nan = float("nan")
    drawn = (candidate("c", -3), candidate("a", -1), candidate("", 0), candidate("b", -2), candidate("c", -4))
    texts = [text for text, _ in _chosen(Reply("c", drawn), 9)]
    assert texts == ["c", "a", "b", "c"]
    assert [text for text, _ in _chosen(Reply("c", drawn), 2)] == ["c", "a"]
    unscored = tuple(candidate(text, nan) for text in "cab")
    assert [text for text, _ in _chosen(Reply("a", unscored), 3)] == ["a", "c", "b"]
    assert _chosen(Reply("said"), 3) == [("said", None)]


def test_tokens_are_counted_and_a_reply_that_was_cut_off_says_so() -> None:
    async def work() -> None:
        lm = tiny_causal_lm(["hello"], chat=True)
        bot, engine = GeneratorChatbot(lm), Engine()
        config = GenerationConfig(max_new_tokens=4, num_candidates=2)
        answer = await engine.reply(bot, said("hello"), generation=config, n=2, seed=1)
        assert answer.prompt_tokens == lm.count_tokens([{"role": "user", "content": "hello"}])
        reasons = {one.text: one.finish_reason for one in answer.reply.candidates}
        assert [choice.finish_reason == "length" for choice in answer.choices] == [
            reasons[choice.text] == "length" for choice in answer.choices
        ]
        assert answer.completion_tokens == sum(one.num_tokens for one in answer.reply.candidates)

    run(work())


def test_memory_is_given_back_after_replies_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    bot, engine = Scripted(), Engine()
    monkeypatch.setattr(engine._tidy, "_trim", trimmed.append)

    async def replied() -> int:
        await engine.reply(bot, said("hello"))
        await engine._lane(bot).call(lambda: None)  # behind what was asked of the thread
        return len(trimmed)

    async def work() -> None:
        assert await replied() == 1
        engine._tidy._next += 1000  # a moment that does not come
        assert await replied() == 1
        engine._tidy._next = 0.0
        assert [step async for step in engine.stream(bot, said("hello"))]
        await engine._lane(bot).call(lambda: None)
        assert trimmed == [0, 0]

    run(work())
