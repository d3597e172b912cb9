"""Behaviours C2, C8, C10, C15 and C17 of training; chunks, processes, and what a model learns."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from dialogkit.dialogues import Example
from dialogkit.exemplar import (
    PRESETS,
    ContextTower,
    ExemplarConfig,
    ExemplarMethod,
    ExemplarModel,
    ExemplarPacker,
    ExemplarPolicy,
    ExemplarSelector,
    JaccardFilter,
    LengthBudget,
    exemplar_loss,
    preset,
    train_exemplar,
)
from dialogkit.generation import TransformersLM
from dialogkit.retrieval import (
    BiEncoder,
    ResponseIndex,
    SentenceTransformerRetriever,
    biencoder_from,
    build_biencoder,
)
from tests.dialogkit.exemplar.toys import (
    WORDS,
    Recorder,
    WordRetriever,
    examples,
    lm,
    response_index,
    response_set,
)
from tests.dialogkit.g2r.test_chatbot import encoder_folder
from tests.dialogkit.tiny import byte_tokenizer
from trainkit import FitConfig, StepContext, fit

ROOT = Path(__file__).resolve().parents[3]
BUDGET = LengthBudget(context=40, exemplar=16, response=24)
CORGE = replace(preset("corge"), k=3, temperature=0.5)


def stepped(
    model: TransformersLM,
    policy: ExemplarPolicy,
    rows: list[Example],
    chunk_size: int = 16,
    tower: ContextTower | None = None,
    selector: ExemplarSelector | None = None,
) -> tuple[Any, dict[str, Tensor], Recorder]:
    """Loss, gradients and the loop's stand-in after one step."""
    packer = ExemplarPacker(model, budget=BUDGET)
    if selector is None:
        selector = ExemplarSelector(WordRetriever(), response_index(), policy, model.tokenizer)
    method = ExemplarMethod(packer, selector, tower=tower, chunk_size=chunk_size)
    module = ExemplarModel(model.model, packer, tower)
    module.zero_grad()
    context = Recorder(len(rows))
    loss = method.step(module, rows, cast(StepContext, context))
    assert sum(context.weights) == len(rows)
    assert context.updates == 1
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return loss, gradients, context


def by_hand(
    model: TransformersLM, policy: ExemplarPolicy, rows: list[Example]
) -> tuple[float, dict[str, Tensor]]:
    """The same step as a plain loop over exemplars, with one backward pass over all of them."""
    packer = ExemplarPacker(model, budget=BUDGET)
    selector = ExemplarSelector(WordRetriever(), response_index(), policy, model.tokenizer)
    chosen = selector.select(rows, torch.Generator().manual_seed(0))
    vectors = selector.vectors(chosen.ids, [row.response for row in rows])
    asked = WordRetriever().encode_context(["\n".join(row.context) for row in rows])
    scores = torch.from_numpy(np.einsum("bd,bkd->bk", asked, vectors))
    columns = []
    for j in range(policy.k):
        packed = [packer.encode(row.context, chosen.texts[i][j], row.response) for i, row in enumerate(rows)]
        columns.append(packer.log_likelihoods(model.model, packer.collate(packed)))
    relevance = scores if policy.weighs else None
    found = exemplar_loss(
        torch.stack(columns, dim=1), relevance, mode=policy.loss, temperature=policy.temperature
    )
    model.model.zero_grad()
    found.per_example.sum().backward()
    gradients = {f"generator.{name}": p.grad.clone() for name, p in model.model.named_parameters()
                 if p.grad is not None}  # fmt: skip
    return found.loss.item(), gradients


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "bart"])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000])
def test_chunks_give_the_gradients_of_a_plain_loop(family: str, chunk_size: int) -> None:
    model, rows = lm(family), examples(3)
    value, expected = by_hand(model, CORGE, rows)
    loss, found, context = stepped(model, CORGE, rows, chunk_size)
    assert float(loss.total) / loss.weight == pytest.approx(value, rel=1e-5)
    assert_same(found, expected)
    # Processes exchange gradients in one backward pass of a step.
    assert context.silent == len(context.weights) - 1


@pytest.mark.parametrize("mode", ["nll", "nll_sum"])
def test_other_losses_in_chunks(mode: Any) -> None:
    policy = replace(CORGE, loss=mode, weighting="uniform")
    model, rows = lm(), examples(2)
    _, expected = by_hand(model, policy, rows)
    assert_same(stepped(model, policy, rows, 2)[1], expected)


def test_dropout_falls_alike_in_both_passes() -> None:
    rows, model = examples(1), lm()
    model.model.train()
    packer = ExemplarPacker(model, budget=BUDGET)
    selector = ExemplarSelector(WordRetriever(), response_index(), CORGE, model.tokenizer)
    torch.manual_seed(5)
    _, found, _ = stepped(model, CORGE, rows, chunk_size=2)
    # The same chunks by hand, read once with gradients: dropout falls as in the pass without gradients.
    chosen = selector.select(rows, torch.Generator().manual_seed(0))
    vectors = selector.vectors(chosen.ids, [rows[0].response])
    asked = WordRetriever().encode_context(["\n".join(rows[0].context)])
    scores = torch.from_numpy(np.einsum("bd,bkd->bk", asked, vectors))
    packed = [packer.encode(rows[0].context, text, rows[0].response) for text in chosen.texts[0]]
    model.model.zero_grad()
    torch.manual_seed(5)
    parts = [packer.log_likelihoods(model.model, packer.collate(part)) for part in (packed[:2], packed[2:])]
    loss = exemplar_loss(torch.cat(parts)[None], scores, temperature=CORGE.temperature)
    loss.per_example.sum().backward()
    expected = {
        f"generator.{name}": p.grad.clone()
        for name, p in model.model.named_parameters()
        if p.grad is not None
    }
    assert_same(found, expected)
    torch.manual_seed(6)
    other = stepped(model, CORGE, rows, chunk_size=2)[1]
    with pytest.raises(AssertionError):
        assert_same(other, expected, 1e-3)  # dropout matters here


def test_a_stopped_run_does_not_go_on_with_another_policy() -> None:
    model = lm()
    packer = ExemplarPacker(model, budget=BUDGET)
    methods = [
        ExemplarMethod(packer, ExemplarSelector(WordRetriever(), response_index(), policy, model.tokenizer))
        for policy in (CORGE, CORGE, preset("rag"))
    ]
    methods[1].load_state_dict(methods[0].state_dict())
    with pytest.raises(ValueError, match="another policy"):
        methods[2].load_state_dict(methods[0].state_dict())


def test_deepspeed_is_refused() -> None:
    model = lm()
    packer = ExemplarPacker(model, budget=BUDGET)
    method = ExemplarMethod(packer)
    context = Recorder(1)
    context.accelerator.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(RuntimeError, match="DeepSpeed"):
        method.step(ExemplarModel(model.model, packer), examples(1), cast(StepContext, context))


def test_c2_corge_with_one_exemplar_of_the_context_is_retnref() -> None:
    rows, model = examples(4), lm()
    corge = ExemplarPolicy(query="context", k=1, filter=None)
    one = stepped(model, corge, rows)
    other = stepped(model, preset("retnref"), rows)
    assert float(one[0].total) == pytest.approx(float(other[0].total), rel=1e-6)
    assert_same(one[1], other[1], 1e-7)


def test_c10_no_exemplars_at_all() -> None:
    rows, model = examples(3), lm()
    packer = ExemplarPacker(model, budget=BUDGET)
    with torch.no_grad():
        plain = packer.log_likelihoods(
            model.model, packer.collate([packer.encode(row.context, None, row.response) for row in rows])
        )
    none = stepped(model, preset("none"), rows)
    assert float(none[0].total) == pytest.approx(-float(plain.sum()), rel=1e-5)
    # An index that holds nothing but the gold response finds nothing.
    lonely = ResponseIndex.build(WordRetriever(), [rows[0].response])
    selector = ExemplarSelector(WordRetriever(), lonely, CORGE, model.tokenizer)
    found = stepped(model, CORGE, rows[:1], selector=selector)
    assert float(found[0].total) == pytest.approx(-float(plain[0]), rel=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in found[1].values())
    method = ExemplarMethod(packer, None)
    loss = method.step(ExemplarModel(model.model, packer), rows, cast(StepContext, Recorder(3)))
    assert float(loss.total) == pytest.approx(-float(plain.sum()), rel=1e-5)


@pytest.fixture(scope="module")
def biencoder(tmp_path_factory: pytest.TempPathFactory) -> BiEncoder:
    torch.manual_seed(0)
    model = build_biencoder(
        byte_tokenizer(WORDS, pad=True),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        dropout=0.3,
        shared=True,
    )
    folder = tmp_path_factory.mktemp("biencoder")
    model.save_pretrained(str(folder), create_model_card=False)
    return BiEncoder(folder)


def test_a_tower_gives_the_retrievers_vectors(biencoder: BiEncoder) -> None:
    tower = ContextTower(biencoder)
    texts = ["red it is", "a", "long " * 60]
    np.testing.assert_allclose(tower.encode_context(texts), biencoder.encode_context(texts), atol=1e-5)
    tower.train()
    # C15: dropout plays no part in retrieval.
    np.testing.assert_array_equal(tower.encode_context(texts), tower.encode_context(texts))
    assert tower.training
    with pytest.raises(TypeError, match="cannot be trained"):
        ContextTower(WordRetriever())


def test_all_that_may_learn_gets_a_gradient(tmp_path: Path) -> None:
    # A parameter without one stalls distributed training: BERT's pooler would be such.
    model = biencoder_from(encoder_folder(tmp_path), normalize=True)
    tower = ContextTower(SentenceTransformerRetriever(model))
    tower(tower.tokenize(["red it is", ""])).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in tower.parameters())
    assert not all(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("chunk_size", [2, 1000])
def test_c8_who_learns(biencoder: BiEncoder, chunk_size: int) -> None:
    rows, model = examples(3), lm()
    index = ResponseIndex.build(biencoder, response_set())
    before = index.vectors(np.arange(len(index)))
    selector = ExemplarSelector(biencoder, index, CORGE, model.tokenizer)
    tower = ContextTower(biencoder)
    tower.eval()
    _, found, _ = stepped(model, CORGE, rows, chunk_size, tower, selector)
    for part in ("generator.", "tower."):
        assert any(g.abs().sum() > 0 for name, g in found.items() if name.startswith(part)), part
    # One exemplar teaches the context side nothing, exactly.
    single = replace(CORGE, k=1)
    selector = ExemplarSelector(biencoder, index, single, model.tokenizer)
    _, found, _ = stepped(model, single, rows, chunk_size, tower, selector)
    assert all(g.abs().max() == 0 for name, g in found.items() if name.startswith("tower."))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1)
    assert np.array_equal(biencoder.encode_response(list(index.responses)), before)
    learned = tower.retriever()
    np.testing.assert_allclose(learned.encode_response(list(index.responses)), before, atol=1e-5)
    assert np.abs(learned.encode_context(["red"]) - biencoder.encode_context(["red"])).max() > 1e-3
    tower.index(index, learned).check(learned)


def test_chunks_with_a_tower(biencoder: BiEncoder) -> None:
    rows, model = examples(3), lm()
    index = ResponseIndex.build(biencoder, response_set())
    found = []
    for chunk_size in (2, 1000):
        selector = ExemplarSelector(biencoder, index, CORGE, model.tokenizer)
        tower = ContextTower(biencoder).eval()
        found.append(stepped(model, CORGE, rows, chunk_size, tower, selector)[1])
    assert_same(found[0], found[1])
    # Its own gradient is small beside the generator's.
    towers = [{name: g for name, g in one.items() if name.startswith("tower.")} for one in found]
    assert_same(towers[0], towers[1], 1e-4)


def test_c15_hits_in_training_do_not_change(biencoder: BiEncoder) -> None:
    rows = examples(3)
    index = ResponseIndex.build(biencoder, response_set())
    for policy in (CORGE, replace(CORGE, query="context")):
        selector = ExemplarSelector(biencoder, index, policy, lm().tokenizer)
        tower = ContextTower(biencoder).train()
        packer = ExemplarPacker(lm(), budget=BUDGET)
        method = ExemplarMethod(packer, selector, tower=tower)
        picked = [method._select(rows, cast(StepContext, Recorder(3))) for _ in range(3)]
        assert all(one is not None and picked[0] is not None for one in picked)
        assert all(one.texts == picked[0].texts for one in picked if one is not None and picked[0])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    model = lm()
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    steps = FitConfig(max_steps=2, batch_size=3, learning_rate=1e-3, cpu=True, progress=False)
    done = train_exemplar(
        model,
        examples(5),
        WordRetriever(),
        response_index(),
        training=steps,
        config=ExemplarConfig(policy=preset(name), budget=BUDGET, train_retriever=False),
        valid=examples(3),
        cache=tmp_path / "hits",
    )
    assert done.result.steps == 2
    assert any(not torch.equal(before[key], value) for key, value in model.model.state_dict().items())
    evaluated = [line for line in done.result.history if "perplexity" in line]
    assert evaluated
    assert (tmp_path / "hits" / "hits.npy").exists() == (preset(name).k > 0)


def test_training_the_context_side(biencoder: BiEncoder) -> None:
    model = lm()
    index = ResponseIndex.build(biencoder, response_set())
    steps = FitConfig(max_steps=2, batch_size=3, learning_rate=1e-2, cpu=True, progress=False)
    for query in ("gold", "context"):
        policy = replace(CORGE, query=query)  # type: ignore[arg-type]
        config = ExemplarConfig(policy=policy, budget=BUDGET)
        done = train_exemplar(model, examples(5), biencoder, index, training=steps, config=config,
                              valid=examples(2))  # fmt: skip
        assert done.retriever is not None
        assert done.index is not None
        done.index.check(done.retriever)
        texts = ["tell me of red"]
        change = done.retriever.encode_context(texts) - biencoder.encode_context(texts)
        assert np.abs(change).max() > 1e-4
        assert np.array_equal(done.index.vectors(np.arange(24)), index.vectors(np.arange(24)))


def test_a_saturated_softmax_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cold = replace(CORGE, temperature=1e-4)
    model, rows = lm(), examples(3)
    packer = ExemplarPacker(model, budget=BUDGET)
    for policy, said in ((cold, 1), (CORGE, 0)):
        selector = ExemplarSelector(WordRetriever(), response_index(), policy, model.tokenizer)
        method = ExemplarMethod(packer, selector)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                method.step(ExemplarModel(model.model, packer), rows, cast(StepContext, Recorder(3)))
        assert sum("raise the policy's temperature" in record.message for record in caplog.records) == said


def test_bad_settings(biencoder: BiEncoder) -> None:
    steps = FitConfig(max_steps=1, cpu=True, progress=False)
    model = lm()
    with pytest.raises(ValueError, match="examples is empty"):
        train_exemplar(model, [], training=steps)
    with pytest.raises(ValueError, match="needs a retriever and an index"):
        train_exemplar(model, examples(1), training=steps)
    with pytest.raises(TypeError, match="cannot be trained"):
        train_exemplar(model, examples(1), WordRetriever(), response_index(), training=steps)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ExemplarConfig(chunk_size=0)
    packer = ExemplarPacker(model)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ExemplarMethod(packer, chunk_size=0)
    index = ResponseIndex.build(biencoder, response_set())
    rag = ExemplarSelector(biencoder, index, preset("rag"), model.tokenizer)
    tower = ContextTower(biencoder)
    with pytest.raises(ValueError, match="go stale"):
        ExemplarMethod(packer, rag, tower=tower, hits=np.zeros((1, 6), dtype=np.int64))
    plain = ExemplarSelector(biencoder, index, preset("retnref"), model.tokenizer)
    with pytest.raises(ValueError, match="nothing to learn"):
        ExemplarMethod(packer, plain, tower=tower)


def first_words(model: TransformersLM, exemplars: list[str]) -> Tensor:
    """How likely each token is to begin a reply, by exemplar: ``[exemplars, vocabulary]``."""
    packer = ExemplarPacker(model, budget=BUDGET, marker="=")
    rows = [packer.encode(("so",), exemplar, "x") for exemplar in exemplars]
    batch = packer.collate(rows)
    with torch.no_grad():
        logits = model.model(**batch["inputs"]).logits
    begins = (batch["labels"] != -100).int().argmax(dim=1)
    return logits[torch.arange(len(rows)), begins].softmax(dim=1)


def test_c17_another_exemplar_changes_a_corge_model_more_than_one_of_random_exemplars() -> None:
    from scipy.stats import wilcoxon

    # The context says nothing of the response; responses with a common word are neighbours.
    texts = [f"{one} it is {other}" for one in WORDS[:6] for other in WORDS[6:]]
    index = ResponseIndex.build(WordRetriever(), texts)
    rows = [Example(("so",), text) for text in texts]
    changes = []
    for threshold in (0.9, 0.0):
        rule = JaccardFilter(threshold)  # 0 replaces every exemplar by a random one
        policy = replace(preset("corge"), k=2, filter=rule, temperature=1.0)
        model = lm(seed=1)
        packer = ExemplarPacker(model, budget=BUDGET, marker="=")
        selector = ExemplarSelector(WordRetriever(), index, policy, model.tokenizer)
        steps = FitConfig(
            max_steps=120, batch_size=12, learning_rate=1e-2, schedule="constant", cpu=True, progress=False
        )
        hits = selector.cached_hits(rows)
        method = ExemplarMethod(packer, selector, hits=hits, chunk_size=64)
        fit(ExemplarModel(model.model, packer), method, rows, config=steps)
        found = first_words(model, texts)
        # The exemplar that stands next in the list begins with another word.
        changes.append((found - found.roll(len(WORDS[6:]), dims=0)).abs().sum(dim=1) / 2)
    corge, blind = changes
    assert float(corge.mean()) > float(blind.mean())
    assert wilcoxon(corge.numpy(), blind.numpy(), alternative="greater").pvalue < 1e-3


TWO = """
import json, sys
import torch
from pathlib import Path
from dialogkit.exemplar import ExemplarConfig, preset, train_exemplar
from dialogkit.retrieval import BiEncoder, ResponseIndex
from tests.dialogkit.exemplar.test_training import BUDGET, CORGE, examples, lm, response_set
from trainkit import FitConfig

out = Path(sys.argv[1])
retriever = BiEncoder(sys.argv[2])
index = ResponseIndex.build(retriever, response_set())
totals = {}
for chunk in (2, 100):
    model = lm()
    steps = FitConfig(max_steps=2, batch_size=5, learning_rate=1e-3, cpu=True, progress=False)
    config = ExemplarConfig(policy=CORGE, budget=BUDGET, chunk_size=chunk)
    done = train_exemplar(
        model, examples(6), retriever, index, training=steps, config=config, cache=out / "hits"
    )
    context = float(done.retriever.encode_context(["tell me of red"]).sum())
    totals[chunk] = [sum(float(p.detach().double().abs().sum()) for p in model.model.parameters()), context]
rank = torch.distributed.get_rank()
assert done.result.num_processes == 2
(out / f"{rank}.json").write_text(json.dumps(totals))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_stay_together(tmp_path: Path, biencoder: BiEncoder) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path), str(biencoder.path)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for chunk in ("2", "100"):
        assert first[chunk] == pytest.approx(second[chunk], rel=1e-12)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Leaves torch's random state as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
