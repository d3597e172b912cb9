"""Twenty candidates for a prompt: `TransformersLM.generate` against transformers' own ways to the same.

    python benchmarks/generate_candidates.py [--model FOLDER] [--prompts 6] [--repeats 3]

Every side draws n candidates for the same prompts from the same model with the same sampling settings; the
default model never ends by itself, so all candidates are of the same length. Ours also scores each candidate
under the unfiltered distribution, as sample-and-rank needs it; the last peer is the only other one that does.
CPU seconds are reported beside wall-clock seconds: they mean more on a machine that does other work too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline

from dialogkit.generation import GenerationConfig, TransformersLM

TOPICS = [
    "the sea",
    "your old ship",
    "rain",
    "music",
    "a good breakfast",
    "what you fear",
    "home",
    "the moon",
]
TOP_K = 20


def default_model() -> TransformersLM:
    """Random weights in the size of the embedded model, with a token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
    )
    return TransformersLM(LlamaForCausalLM(config), wrapped, name="random Llama, 4 layers, 256 dimensions")


def prompts(number: int) -> list[str]:
    """Prompts in the layout of Pseudo Dialog Prompting, of different lengths."""
    made = []
    for index in range(number):
        pairs = "".join(
            f"User: Tell me about {TOPICS[(index + k) % len(TOPICS)]}.\nBob: Aye.\n"
            for k in range(4 + index % 3)
        )
        made.append(f"This is conversation between User and Bob.\n{pairs}User: Why?\nBob:")
    return made


def sides(lm: TransformersLM, texts: list[str], new: int, count: int) -> dict[str, Callable[[], int]]:
    """For each side a function that does the work and returns the number of candidates."""
    model, tokenizer = lm.model, lm.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    settings = {
        "do_sample": True,
        "top_k": TOP_K,
        "max_new_tokens": new,
        "num_return_sequences": count,
        "pad_token_id": tokenizer.pad_token_id,
    }
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def ours() -> int:
        config = GenerationConfig(max_new_tokens=new, top_k=TOP_K, num_candidates=count)
        return sum(map(len, lm.generate(texts, config=config, seed=0)))

    def with_pipeline() -> int:
        return sum(len(pipe(text, return_full_text=False, **settings)) for text in texts)

    def generate(group: list[str], scored: bool) -> int:
        inputs = tokenizer(group, return_tensors="pt", padding=True, return_token_type_ids=False)
        output = model.generate(**inputs, **settings, output_logits=scored, return_dict_in_generate=True)
        drawn = output.sequences[:, inputs["input_ids"].shape[1] :]
        if scored:
            for step, logits in enumerate(output.logits):
                logits.log_softmax(dim=-1).gather(-1, drawn[:, step : step + 1])
        return len(tokenizer.batch_decode(drawn, skip_special_tokens=True))

    def in_groups(size: int, scored: bool) -> Callable[[], int]:
        return lambda: sum(generate(texts[at : at + size], scored) for at in range(0, len(texts), size))

    together = max(1, lm.batch_size // count)
    return {
        "ours": ours,
        "pipeline, a prompt at a time": with_pipeline,
        "generate, a prompt at a time": in_groups(1, False),
        f"generate, {together} prompts at a time": in_groups(together, False),
        f"generate, {together} prompts at a time, scored": in_groups(together, True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a causal model; default: random weights")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/generate_candidates.json"))
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    lm = TransformersLM.from_pretrained(arguments.model) if arguments.model else default_model()
    texts = prompts(arguments.prompts)
    work = sides(lm, texts, arguments.new_tokens, arguments.candidates)
    wall: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(arguments.repeats + 1):  # the first round warms up
        for name, do in work.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            made = do()
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
            if made != arguments.prompts * arguments.candidates:
                raise RuntimeError(f"{name} made {made} candidates")
    measured = {
        name: {
            "seconds": statistics.median(wall[name][1:]),
            "cpu_seconds": statistics.median(cpu[name][1:]),
        }
        for name in work
    }
    for values in measured.values():
        for unit in ("seconds", "cpu_seconds"):
            values[f"ratio_{unit}"] = values[unit] / measured["ours"][unit]
    print("seconds  ratio   CPU s  ratio")
    for name, values in measured.items():
        print(
            "{seconds:7.2f} {ratio_seconds:6.2f} {cpu_seconds:7.2f} {ratio_cpu_seconds:6.2f}".format(
                **values
            ),
            name,
        )
    result = {
        "benchmark": "generate_candidates",
        "model": lm.name,
        "prompts": arguments.prompts,
        "prompt_tokens": [lm.count_tokens(text) for text in texts],
        "candidates": arguments.candidates,
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
        "medians": measured,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(lm.device),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
