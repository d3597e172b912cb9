"""A chat with a character: keys and values of earlier prompts used again, against reading everything anew.

    python benchmarks/pdp_latency.py [--models embedded 30m] [--conversations 3]

Three sides answer the same scripted conversations, static match with eight pairs:

- naive: our own plain version of what the authors' released script does. Every turn encodes all utterances
  again (in one call, the gentlest reading), every candidate reads the whole prompt again, one reply at a
  time. A reply keeps its own key-value cache while it is being written.
- anew: `PDPChatbot` that keeps nothing between calls; candidates share a prompt that is read once.
- reuse: `PDPChatbot` that keeps keys and values of earlier prompts (`kept_bytes=None`).

Time to first token is the time until `stream` yields its first piece, for the naive side until the first
token is known. In a batch it is the time until every conversation has its first token; the naive side reads
the prompts one after the other, and no conversation waits for another one's reply. Pairs come in the order of
the utterances (`order="given"`) or in the paper's order by the input (`order="ascending"`), which changes the
beginning of the prompt at every turn. Sides take turns; figures are medians. "anew" and "reuse" must give the
same replies, and all sides the same prompts, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dialogkit import embedded
from dialogkit.dialogues import Turn
from dialogkit.generation import GenerationConfig, TransformersLM
from dialogkit.pdp import Character, ContextIndex, ContextPool, DialogPrompt, PDPChatbot, PseudoDialog
from dialogkit.pdp.matching import Order, StaticMatcher, order_scores, select_and_order, static_scores
from dialogkit.retrieval import load_retriever

CHAT = (
    ("Good morning! Did you sleep well?", "Well enough, the wind kept me company."),
    ("What will you do today?", "First some tea, then we shall see."),
    ("I would like to go to the harbour with you.", "Then put on a warm coat."),
    ("Is it far from here?", "Down the hill and past the mill."),
    ("My friend says that a storm is coming.", "Your friend is right, look at the clouds."),
    ("Should we stay at home then?", "Yes, and light a fire."),
)
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
NEW_TOKENS = 32
CANDIDATES = 20
GREEDY = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False)
SAMPLED = GenerationConfig(max_new_tokens=NEW_TOKENS, num_candidates=CANDIDATES)


def thirty_million() -> TransformersLM:
    """Random weights with the embedded model's tokenizer; its replies hardly ever end by themselves."""
    own = TransformersLM.from_pretrained(embedded.lm_path())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(own.tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return TransformersLM(LlamaForCausalLM(config), own.tokenizer, name="random Llama, 8 layers, 512 dims")


class Naive:
    """The loop that keeps nothing."""

    def __init__(self, lm: TransformersLM, character: Character, index: ContextIndex, order: Order) -> None:
        self.lm, self.character, self.index, self.order = lm, character, index, order

    def prompt(self, history: Sequence[Turn]) -> str:
        """Encodes the utterances, matches them and lays the prompt out."""
        retriever, lines = self.index.retriever, self.character.utterances
        utterances = retriever.encode_response(lines)
        best = static_scores(self.index.embeddings, utterances).argmax(axis=1).tolist()
        fit = order_scores(retriever.encode_context([history[-1].text])[0], utterances)
        chosen = select_and_order(fit, None, self.order)
        pairs = [PseudoDialog(self.index.pool[best[i]], lines[i]) for i in chosen]
        return DialogPrompt().build(self.character, pairs, history)

    def first_token(self, history: Sequence[Turn]) -> None:
        """Reads the whole prompt."""
        ids = self.lm.tokenizer(self.prompt(history), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            self.lm.model(input_ids=ids, logits_to_keep=1).logits[0, -1].argmax().item()

    def replies(self, history: Sequence[Turn], config: GenerationConfig) -> int:
        """Candidates one at a time, each from the whole prompt."""
        prompt, single = self.prompt(history), replace(config, num_candidates=1)
        for seed in range(config.num_candidates):
            self.lm.generate([prompt], config=single, seed=seed)
        return config.num_candidates


def measure(
    sides: dict[str, Callable[[], object]], wall: dict[str, list[float]], cpu: dict[str, list[float]]
):
    """One round in which each side does its work."""
    for name, work in sides.items():
        begin, begin_cpu = time.perf_counter(), time.process_time()
        work()
        wall.setdefault(name, []).append(time.perf_counter() - begin)
        cpu.setdefault(name, []).append(time.process_time() - begin_cpu)


def summary(wall: dict[str, list[float]], cpu: dict[str, list[float]], count: int = 1) -> dict[str, Any]:
    """Medians of each side, its replies per second, and the naive side's time as a multiple of it."""
    rows = {}
    for name in wall:
        seconds = statistics.median(wall[name])
        rows[name] = {
            "seconds": seconds,
            "per_second": count / seconds,
            "ratio": statistics.median(wall["naive"]) / seconds,
            "ratio_cpu": statistics.median(cpu["naive"]) / statistics.median(cpu[name]),
        }
    return rows


class Bench:
    """One model, one character, one order of pairs."""

    def __init__(self, base: TransformersLM, character: Character, index: ContextIndex, order: Order) -> None:
        anew = TransformersLM(base.model, base.tokenizer, name=base.name)
        self.kept = TransformersLM(base.model, base.tokenizer, name=base.name, kept_bytes=None)
        matcher = StaticMatcher(index, order=order)
        self.naive = Naive(anew, character, index, order)
        self.bots = {
            name: PDPChatbot(lm, character, matcher=matcher, generation=SAMPLED)
            for name, lm in (("anew", anew), ("reuse", self.kept))
        }
        for bot in self.bots.values():
            history = self.history(0, 2)
            if bot.reply(history, seed=0).evidence["prompt"] != self.naive.prompt(history):
                raise SystemExit("the naive loop has another prompt")

    def history(self, number: int, turns: int) -> list[Turn]:
        """The scripted conversation up to the user's given turn, made its own by the number."""
        said = [Turn("User", f"I am {NAMES[number % len(NAMES)]}, guest number {number}.")]
        for question, answer in CHAT[:turns]:
            said += [Turn("User", question), Turn(self.naive.character.name, answer)]
        return said[:-1]

    def with_settings(self, config: GenerationConfig) -> dict[str, PDPChatbot]:
        """The chatbots with other settings of generation."""
        return {
            name: PDPChatbot(
                bot.model,
                bot.character,
                matcher=bot.matcher,
                config=replace(bot.config, generation=config, selection="first"),
            )
            for name, bot in self.bots.items()
        }

    def check(self, histories: Sequence[Sequence[Turn]]) -> None:
        """With and without reuse the replies are the same."""
        for config in (GREEDY, replace(SAMPLED, num_candidates=2)):
            bots = self.with_settings(config)
            texts = [
                [[one.text for one in reply.candidates] for reply in bot.reply_batch(histories, seed=1)]
                for bot in bots.values()
            ]
            if texts[0] != texts[1]:
                raise SystemExit("replies with and without reuse differ")

    def first_tokens(self, conversations: int) -> dict[str, Any]:
        """Time to first token, for the first turn of a conversation and for later ones."""
        bots = self.with_settings(GREEDY)
        times: dict[str, tuple[dict[str, list[float]], dict[str, list[float]]]]
        times = {"first": ({}, {}), "later": ({}, {})}
        for number in range(conversations):
            self.kept.forget()
            for turns in range(1, len(CHAT) + 1):
                history = self.history(number, turns)
                sides: dict[str, Callable[[], object]] = {
                    "naive": lambda history=history: self.naive.first_token(history)
                }
                for name, bot in bots.items():
                    sides[name] = lambda bot=bot, history=history: next(bot.stream(history), None)
                measure(sides, *times["first" if turns == 1 else "later"])
        return {name: summary(*pair) for name, pair in times.items()}

    def twenty(self, conversations: int) -> dict[str, Any]:
        """Replies per second when a turn asks for twenty candidates, at later turns of a conversation."""
        times: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for number in range(conversations):
            self.kept.forget()
            self.kept.generate([self.naive.prompt(self.history(number, 2))], config=GREEDY)
            history = self.history(number, 3)
            sides: dict[str, Callable[[], object]] = {
                "naive": lambda history=history: self.naive.replies(history, SAMPLED)
            }
            for name, bot in self.bots.items():
                sides[name] = lambda bot=bot, history=history: bot.reply(history, seed=0)
            measure(sides, *times)
        return summary(*times, count=CANDIDATES)

    def batches(self, size: int, rounds: int) -> dict[str, Any]:
        """The third turn of several conversations at once: first tokens, and whole replies."""
        one = replace(SAMPLED, num_candidates=1)
        first: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        whole: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for number in range(rounds):
            numbers = [100 * number + i for i in range(size)]
            before = [self.naive.prompt(self.history(i, 2)) for i in numbers]
            now = [self.history(i, 3) for i in numbers]
            for config, times in ((replace(GREEDY, max_new_tokens=1), first), (one, whole)):
                self.kept.forget()
                self.kept.generate(before, config=replace(GREEDY, max_new_tokens=1))
                bots = self.with_settings(config)
                work = self.naive.first_token if times is first else self.one_reply
                sides: dict[str, Callable[[], object]] = {
                    "naive": lambda work=work, now=now: list(map(work, now))
                }
                for name, bot in bots.items():
                    sides[name] = lambda bot=bot, now=now: bot.reply_batch(now, seed=0)
                measure(sides, *times)
            if number == 0:
                self.check(now[:4])
        return {"first_token": summary(*first), "replies": summary(*whole, count=size)}

    def one_reply(self, history: Sequence[Turn]) -> int:
        """The naive loop's only reply to a conversation."""
        return self.naive.replies(history, replace(SAMPLED, num_candidates=1))


def show(title: str, rows: dict[str, Any]) -> None:
    """One line for each measurement."""
    parts = [
        f"{name} {1000 * row['seconds']:.0f} ms"
        + (f" ({row['ratio']:.1f}x, {row['ratio_cpu']:.1f}x CPU)" if name != "naive" else "")
        for name, row in rows.items()
    ]
    print(f"  {title:<34} " + ", ".join(parts), flush=True)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("embedded", "30m"), default=["embedded", "30m"])
    parser.add_argument("--character", default="captain")
    parser.add_argument("--conversations", type=int, default=3, help="conversations of six turns each")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each batch")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--output", type=Path, default=Path("runs/bench/pdp_latency.json"))
    arguments = parser.parse_args()

    whole = Character.from_json(embedded.character_path(arguments.character))
    character = Character(whole.name, whole.utterances[:8])
    retriever = load_retriever("embedded")
    index = ContextIndex(retriever, ContextPool.from_lines(embedded.contexts_path()))
    results: dict[str, Any] = {}
    for model in arguments.models:
        lm = thirty_million() if model == "30m" else TransformersLM.from_pretrained(embedded.lm_path())
        weights = sum(part.numel() for part in lm.model.parameters())
        print(f"{model}: {lm.model.config.model_type}, {weights / 1e6:.1f} million parameters", flush=True)
        results[model] = {"parameters": weights}
        for order in ("given", "ascending"):
            bench = Bench(lm, character, index, order)  # type: ignore[arg-type]
            for turns in (1, 2, 4):
                bench.check([bench.history(0, turns)])
            prompts = [bench.naive.prompt(bench.history(0, n)) for n in range(1, len(CHAT) + 1)]
            found = results[model][order] = {"prompt_tokens": [lm.count_tokens(text) for text in prompts]}
            print(f" order {order!r}, prompts of {found['prompt_tokens']} tokens", flush=True)
            found["first_token"] = bench.first_tokens(arguments.conversations)
            show("first token, first turn", found["first_token"]["first"])
            show("first token, later turns", found["first_token"]["later"])
            if order == "ascending":
                continue  # replies per second are measured where the prompts begin alike
            found["twenty"] = bench.twenty(arguments.conversations)
            show(f"{CANDIDATES} candidates", found["twenty"])
            for size in arguments.batches:
                found[f"batch_{size}"] = batch = bench.batches(size, arguments.rounds)
                show(f"batch {size}: first tokens", batch["first_token"])
                show(f"batch {size}: replies", batch["replies"])
            found["kept"] = bench.kept.kept_prompts
    result = {
        "benchmark": "pdp_latency",
        "retriever": "embedded",
        "new_tokens": NEW_TOKENS,
        "candidates": CANDIDATES,
        "models": results,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
