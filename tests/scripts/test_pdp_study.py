"""The PDP comparison: draws that share a prompt, figures of replies, verdicts, the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pdp_study import replies as study
from pdp_study import report
from pdp_study.material import Speaker
from pdp_study.measure import FIGURES, Measured, difference, estimate, measure

from dialogkit.evaluation import EvaluationCase
from dialogkit.evaluation.replies import Answer, Collected
from dialogkit.generation import GenerationConfig
from dialogkit.generation.types import Candidate, Prompt
from dialogkit.pdp import Character, PDPChatbot, PDPConfig
from trainkit.report import Estimate

LINES = ("Kettle's on, love.", "Mind the third step, it bites.")
ANN = Speaker("ann", Character("Ann", LINES, gold_contexts=("Tea?", "Stairs?")), ("Scones, love.",))
BOB = Speaker("bob", Character("Bob", ("Beep.", "Boop."), gold_contexts=("Hm?", "Ha?")), ("Bip.",))
CASES = [EvaluationCase((text,)) for text in ("Hello there.", "Is it raining?", "My cat ran away.")]


class Counting:
    """A language model whose candidates are numbered; the odd ones are likelier."""

    name, max_length, supports_chat = "counting", None, False
    calls = 0

    def generate(
        self, prompts: Sequence[Prompt], *, config: GenerationConfig, seed: int | None = None
    ) -> list[list[Candidate]]:
        self.calls += 1
        return [
            [
                Candidate(f"{len(str(p))}-{i}", -1.0 / (1 + i % 2), -1.0, 1, "stop")
                for i in range(config.num_candidates)
            ]
            for p in prompts
        ]

    def stream(self, prompt: Prompt, *, config: GenerationConfig, seed: int | None = None) -> None: ...

    def count_tokens(self, prompt: Prompt) -> int: ...

    def log_likelihood(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> None: ...


def test_draws_of_several_seeds_come_from_one_call() -> None:
    model = Counting()
    config = PDPConfig(prompt="zero-shot", generation=GenerationConfig(num_candidates=2))
    drawn = study.Draws(PDPChatbot(model, ANN.character, config=config), seeds=3, each=2)
    asked = ["Hello.", "Who are you?"]
    texts = [[reply.text.split("-")[1] for reply in drawn.reply_batch(asked, seed=s)] for s in range(3)]
    assert texts == [["1", "1"], ["3", "3"], ["5", "5"]] and model.calls == 1
    assert [reply.text.split("-")[1] for reply in drawn.reply_batch(["Else."], seed=1)] == ["3"]
    assert model.calls == 2


class Judge:
    labels = ("bob", "ann")

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        own = np.array([0.9 if "love" in text else 0.2 for text in texts])
        return np.stack([1 - own, own], axis=1)


class ByWord:
    """One direction for each input, found again in replies by its first letter."""

    dim, symmetric, fingerprint = 3, True, "by word"

    def encode_context(self, texts: Sequence[str]) -> np.ndarray:
        return 2 * np.eye(3, dtype=np.float32)[["HIM".index(text[0]) for text in texts]]

    def encode_response(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([np.eye(3)["HIM".index(t[0])] if t else np.zeros(3) for t in texts], dtype=np.float32)


def test_figures_of_replies(tmp_path: Path) -> None:
    said = {"ann": ["Hello love", "Mind the third step", ""], "bob": ["Hm", "Hm", "My"]}
    found = {
        (row, voice, seed): Collected(row, "", tuple(Answer(text) for text in texts), None)
        for row in study.ROWS
        for voice, texts in said.items()
        for seed in (0, 1)
    }
    rows = measure(found, (ANN, BOB), CASES, (0, 1), judge=Judge(), encoder=ByWord(), folder=tmp_path)
    values = rows["static"].values
    assert set(values) == set(FIGURES) and all(each.shape == (2, 3, 2) for each in values.values())
    assert np.allclose(values["StyleProb"][:, :, 0], [[0.9, 0.2, 0], [0.8, 0.8, 0.8]])
    assert np.allclose(values["style accuracy"][:, :, 1], [[1, 0, 0], [1, 1, 1]])
    # "Hm" answers the first input and no other; a reply is compared with its own input.
    assert np.allclose(values["relevance"][:, :, 0], [[1, 0, 0], [1, 0, 1]])
    assert np.allclose(values["lift"][:, :, 0], [[2 / 3, -1 / 3, 0], [2 / 3, -1 / 3, 2 / 3]])
    assert np.allclose(values["copied"][:, :, 0], [[0, 1, 0], [0, 0, 0]])
    assert np.allclose(values["length"][:, :, 0], [[2, 4, 0], [1, 1, 1]])
    # hello love mind the third step hm hm my
    assert rows["static"].distinct["distinct-1"].value == pytest.approx(8 / 9)
    for path in tmp_path.glob("*.npz"):
        assert np.load(path)["StyleProb"].shape == (2, 3, 2)
    again = measure(found, (ANN, BOB), CASES, (0, 1), judge=Judge(), encoder=ByWord(), folder=tmp_path)
    assert np.array_equal(again["gold"].values["lift"], rows["gold"].values["lift"])


def test_an_estimate_has_the_mean_its_interval_and_the_spread_of_seeds() -> None:
    values = np.random.default_rng(0).random((10, 40, 2)) + np.array([0.0, 1.0])
    one = estimate(values)
    assert one.value == pytest.approx(values.mean()) and one.low < one.value < one.high  # type: ignore[operator]
    assert one.sd == pytest.approx(np.std(values.mean(axis=(0, 1)), ddof=1))
    same = difference(values, values - 0.25)
    assert (same.value, same.low, same.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("published", "low", "high", "verdict"),
    [
        (0.1, 0.1, 0.3, "agrees"),
        (-0.1, 0.1, 0.3, "disagrees"),
        (-0.2, -0.3, -0.1, "agrees"),
        (0.2, -0.1, 0.3, "undecided"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(
    published: float, low: float, high: float, verdict: str
) -> None:
    assert report._verdict(published, Estimate((low + high) / 2, low=low, high=high)) == verdict


def test_the_report_fills_its_page_and_draws_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(1).random((2, 5, 2)) / 100
    found = {
        row: Measured(
            {name: noise + place / 10 for name in FIGURES},
            {f"distinct-{n}": Estimate(0.5, low=0.4, high=0.6) for n in (1, 2)},
        )
        for place, row in enumerate(study.ROWS)
    }
    names = ("setting", "table", "summary", "relations", "orders", "speakers")
    page = tmp_path / "page.md"
    page.write_text("".join(f"Before {n}.\n<!-- {n} -->\nSTALE\n<!-- end {n} -->\n" for n in names))
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FIGURE", tmp_path / "img" / "figure.svg")
    latency = {row: {"p50": 0.05} for row in study.ROWS}
    for _ in range(2):
        report.write_report(found, latency, head="HEAD", voices=(ANN, BOB), folder=tmp_path, page=True)
    text = page.read_text()
    assert (
        text.count("HEAD") == 1 and "STALE" not in text and all(f"Before {name}." in text for name in names)
    )
    assert "| static | 0.2" in text and "| static has more style than utterances only | +0.1" in text
    # Rows grow by 0.1 in the order of ROWS, in which random stands above dynamic.
    assert "| dynamic − random | +0.002 | -0.1" in text and "disagrees" in text
    # Ranks 6 5 4 3 2 1 against 6 5 4 1 2 3: the squares of the steps sum to 8. 15 pairs, of which dynamic
    # stands below random and gold, and random below gold, against the paper.
    assert "Spearman's rank correlation +0.77; of 15 pairs 12 agree, 3 disagree, 0 cannot" in text
    assert (tmp_path / "img" / "figure.svg").read_text().count("<svg") == 1
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for 'setting'"):
        report.write_report(found, latency, head="", voices=(ANN, BOB), folder=tmp_path, page=True)


def test_the_rows_are_the_papers_and_one_more() -> None:
    assert set(study.PUBLISHED) == set(study.ROWS) - {"retrieval"}
