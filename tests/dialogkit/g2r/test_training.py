"""Behaviours G8-G10 and G14-G15: batches, gradient caching, and what a student learns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dialogkit.g2r import G2RConfig, G2RMethod, ScoredContext, g2r_loss, response_set
from dialogkit.g2r.training import draw_batch
from dialogkit.retrieval import build_biencoder
from tests.dialogkit.tiny import byte_tokenizer
from trainkit import FitConfig, StepContext, fit

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = byte_tokenizer(pad=True)
SMALL = G2RConfig(negatives=6, max_candidates=3, score_scale=1.0, alpha=0.5, chunk_size=4)


def examples(count: int = 5, candidates: int = 4) -> list[ScoredContext]:
    """Contexts whose candidates overlap: the last of each is the first of the next."""
    return [
        ScoredContext(
            ("so", f"question {i}" * (1 + i % 3)),
            tuple(f"answer {i * (candidates - 1) + j}" for j in range(candidates)),
            tuple(float(-j * (i + 1)) for j in range(candidates)),
            ("generated",) * candidates,
        )
        for i in range(count)
    ]


def student(dropout: float = 0.0, shared: bool = False) -> Any:
    torch.manual_seed(0)
    model = build_biencoder(
        TOKENIZER,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        dropout=dropout,
        shared=shared,
    )
    return model.train()


class Recorder:
    """Stands in for the loop: keeps gradients and weights, updates nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.accelerator = SimpleNamespace(device=torch.device("cpu"))
        self.weights: list[float] = []
        self.updates = 0

    def backward(self, total: Tensor, weight: float) -> None:
        total.backward()
        self.weights.append(weight)

    def without_communication(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def optimizer_step(self) -> None:
        self.updates += 1


def trained_step(config: G2RConfig, model: Any, rows: Sequence[ScoredContext], seed: int = 0) -> Any:
    method = G2RMethod(TOKENIZER, [*response_set(rows), *(f"other {i}" for i in range(20))], config)
    context = Recorder(seed)
    loss = method.step(model, rows, cast(StepContext, context))
    assert sum(context.weights) == len(rows)
    assert context.updates == 1
    return loss


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def direct(config: G2RConfig, model: Any, rows: Sequence[ScoredContext]) -> tuple[float, dict[str, Tensor]]:
    """The same step without caching: one forward of each side, one backward."""
    pool = [*response_set(rows), *(f"other {i}" for i in range(20))]
    drawn = draw_batch(rows, pool, config, torch.Generator().manual_seed(0))

    def encoded(texts: Sequence[str], task: str) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        batch = TOKENIZER([texts[row] for row in order], padding=True, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        vectors: Tensor = model(inputs, task=task)["sentence_embedding"]
        return torch.empty_like(vectors).index_copy(0, torch.tensor(order), vectors)

    scores = config.score_scale * encoded(drawn.contexts, "query") @ encoded(drawn.texts, "document").T
    loss = g2r_loss(
        scores,
        drawn.positive_mask,
        drawn.negative_mask,
        drawn.teacher_scores,
        alpha=config.alpha,
        in_batch_negatives=config.in_batch_negatives,
    ).loss
    (loss * len(rows)).backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("shared", [False, True])
def test_g10_chunks_change_neither_loss_nor_gradient(chunk_size: int, shared: bool) -> None:
    config = G2RConfig(**{**vars(SMALL), "chunk_size": chunk_size})
    model, reference = student(shared=shared), student(shared=shared)
    loss = trained_step(config, model, examples())
    value, expected = direct(config, reference, examples())
    assert float(loss.total) / loss.weight == pytest.approx(value, abs=1e-6)
    found = gradients(model)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6 * largest, msg=name)


def test_dropout_falls_alike_in_both_passes() -> None:
    config = G2RConfig(**{**vars(SMALL), "chunk_size": 1000})
    model, reference = student(dropout=0.3), student(dropout=0.3)
    torch.manual_seed(7)
    trained_step(config, model, examples())
    after = torch.get_rng_state()
    torch.manual_seed(7)
    _, expected = direct(config, reference, examples())
    assert torch.equal(torch.get_rng_state(), after)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_g8_both_towers_learn(alpha: float) -> None:
    model = student()
    trained_step(G2RConfig(**{**vars(SMALL), "alpha": alpha}), model, examples())
    for side in ("query", "document"):
        parameters = [p for name, p in model.named_parameters() if f".{side}" in name or side in name]
        assert parameters
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), side


def test_g9_candidates_are_no_negatives_and_stand_once() -> None:
    rows = examples()
    pool = response_set(rows)
    config = G2RConfig(negatives=len(pool), max_candidates=10)
    drawn = draw_batch(rows, pool, config, torch.Generator().manual_seed(0))
    assert len(set(drawn.texts)) == len(drawn.texts) == len(pool)
    assert not drawn.negative_mask.any()
    for i, row in enumerate(rows):
        own = [drawn.texts[u] for u in drawn.positive_mask[i].nonzero().flatten()]
        assert sorted(own) == sorted(row.responses)
        for response, score in zip(row.responses, row.scores, strict=True):
            assert drawn.teacher_scores[i, drawn.texts.index(response)] == score
    shared = drawn.texts.index(rows[0].responses[-1])
    assert drawn.positive_mask[:2, shared].all()


def test_g15_seeds_draw_negatives() -> None:
    rows = examples()
    pool = [*response_set(rows), *(f"other {i}" for i in range(5000))]

    def negatives(seed: int) -> list[str]:
        drawn = draw_batch(rows, pool, G2RConfig(negatives=40), torch.Generator().manual_seed(seed))
        return [text for text, negative in zip(drawn.texts, drawn.negative_mask, strict=True) if negative]

    assert negatives(1) == negatives(1)
    assert negatives(1) != negatives(2)
    assert 38 <= len(negatives(1)) <= 40


def test_candidates_and_turns_are_limited() -> None:
    config = G2RConfig(negatives=1, max_candidates=2, max_turns=1)
    drawn = draw_batch(examples(), ["x"], config, torch.Generator().manual_seed(0))
    assert drawn.positive_mask.sum(dim=1).tolist() == [2] * 5
    assert drawn.contexts[0] == "question 0"
    seen = {
        text
        for seed in range(30)
        for text in draw_batch(examples(1), ["x"], config, torch.Generator().manual_seed(seed)).texts
    }
    assert seen == {"x", *examples(1)[0].responses}


def ranked(model: Any, row: ScoredContext) -> list[int]:
    """Candidates from best to worst in the eyes of the student."""
    with torch.no_grad():
        query = model.encode_query("\n".join(row.context), convert_to_tensor=True)
        documents = model.encode_document(list(row.responses), convert_to_tensor=True)
    return list((documents @ query).argsort(descending=True).tolist())


def fitted(alpha: float) -> list[bool]:
    """For eight contexts, whether the student ranks the candidates as the teacher does."""
    draw = torch.Generator().manual_seed(3)
    rows = []
    for i in range(8):
        scores = (4.0 * torch.randperm(3, generator=draw)).tolist()
        answers = tuple(f"{word} {i}" for word in ("red", "green", "blue"))
        rows.append(ScoredContext((f"topic {i}",), answers, tuple(scores), ("generated",) * 3))
    model = student()
    config = G2RConfig(alpha=alpha, negatives=8, score_scale=1.0)
    steps = FitConfig(
        max_steps=150, batch_size=8, learning_rate=3e-3, schedule="constant", cpu=True, progress=False
    )
    fit(model, G2RMethod(TOKENIZER, response_set(rows), config), rows, config=steps)
    by_teacher = [sorted(range(3), key=lambda j: -row.scores[j]) for row in rows]
    return [ranked(model, row) == order for row, order in zip(rows, by_teacher, strict=True)]


def test_g14_a_sharp_teacher_is_imitated_and_an_unheard_one_is_not() -> None:
    assert all(fitted(alpha=1.0))
    assert sum(fitted(alpha=0.0)) < 6


TWO = """
import json, sys
import torch
from tests.dialogkit.g2r.test_training import SMALL, TOKENIZER, examples, student
from dialogkit.g2r import G2RMethod, response_set
from trainkit import Callback, FitConfig, fit

drawn = []
class Spy(G2RMethod):
    def step(self, model, batch, context):
        drawn.append(torch.randint(10**9, (1,), generator=context.generator.clone_state()).item())
        self.processes = context.accelerator.num_processes
        self.rank = context.accelerator.process_index
        return super().step(model, batch, context)

model, rows = student(), examples(6)
method = Spy(TOKENIZER, [*response_set(rows), *(f"other {i}" for i in range(20))], SMALL)
steps = FitConfig(max_steps=3, batch_size=5, learning_rate=1e-2, cpu=True, progress=False)
fit(model, method, rows, config=steps)
total = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
with open(f"{sys.argv[1]}/{method.rank}.json", "w") as file:
    json.dump({"processes": method.processes, "total": total, "drawn": drawn}, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_stay_together_and_draw_apart(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert first["total"] == pytest.approx(second["total"], rel=1e-12)
    assert first["drawn"] != second["drawn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -0.1}, "alpha must be"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be above 0"),
        ({"score_scale": -1.0}, "score_scale must be above 0"),
        ({"negatives": -1}, "negatives must be at least 0"),
        ({"negatives": 0}, "nothing to tell apart"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        G2RConfig(**changes)
    with pytest.raises(ValueError, match="responses is empty"):
        G2RMethod(TOKENIZER, [])
    with pytest.raises(ValueError, match="padding token"):
        G2RMethod(byte_tokenizer(), ["x"])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Leaves torch's random state as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
