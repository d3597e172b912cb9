from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.trainkit.toys import Points, Sentences, TinyLM, TokenLoss, regressor, squared_error, weights
from trainkit import CheckpointFolder, FitConfig, derive_seed, fit, seed_everything
from trainkit.checkpoints import load_tree, save_tree
from trainkit.seeding import epoch_permutation, preserved_rng, restore_rng_state, rng_state

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES,
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(tree=TREES)
def test_a_tree_of_plain_values_comes_back_equal(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("tree")
    save_tree(directory, "tree", tree)
    back = load_tree(directory, "tree")
    assert back == tree and repr(back) == repr(tree)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool],
)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = (torch.randn(4, 6) * 3).to(dtype)
    tree = {
        0: {"exp_avg": base, "shared": base, "row": base[1], "transposed": base.T, "empty": base[:0]},
        "step": torch.tensor(3.0),
        "groups": [{"params": [0, 1], "betas": (0.9, 0.999)}],
    }
    save_tree(tmp_path, "tree", tree)
    back = load_tree(tmp_path, "tree")
    assert list(back) == [0, "step", "groups"] and back["groups"] == tree["groups"]
    for name, tensor in tree[0].items():  # type: ignore[union-attr]
        assert back[0][name].dtype == dtype and torch.equal(back[0][name], tensor)
    assert back["step"].shape == ()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1, {2}]}, r"tree\['a'\]\[1\]: .*got set"),
        ({"a": nn.Linear(1, 1)}, "got Linear"),
        ({(1, 2): 3}, r"key must be str or int, got \(1, 2\)"),
        ({True: 3}, "key must be str or int, got True"),
        ({"a": np.float32(1)}, "got float32"),
    ],
)
def test_what_cannot_be_written_is_named(tree: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        save_tree(tmp_path, "tree", tree)


def run(directory: Path, *, steps: int = 6, **settings: Any) -> nn.Module:
    model = TinyLM(dropout=0.1)
    config = FitConfig(
        output_dir=directory,
        max_steps=steps,
        batch_size=4,
        save_every=2,
        resume=True,
        **{"keep_checkpoints": None, "schedule": "constant", **settings},
    )
    fit(model, TokenLoss(), Sentences(9), config=config)
    return model


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    files = {file.name for file in (tmp_path / "checkpoints" / "step-00000002").iterdir()}
    assert files == {
        "manifest.json",
        "model.safetensors",
        "optimizer.json",
        "optimizer.safetensors",
        "process-0.json",
        "process-0.safetensors",
        "state.json",
    }


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    trained = run(tmp_path, steps=2)
    stored = load_file(tmp_path / "checkpoints" / "step-00000002" / "model.safetensors")
    assert len({"head.weight", "embedding.weight"} & stored.keys()) == 1
    resumed = run(tmp_path, steps=2)
    assert resumed.head.weight is resumed.embedding.weight
    assert torch.equal(resumed.head.weight, trained.head.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (None, [2, 4, 6])])
def test_old_checkpoints_are_removed(tmp_path: Path, keep: int | None, expected: list[int]) -> None:
    run(tmp_path, keep_checkpoints=keep)
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == expected


@pytest.mark.parametrize(
    "damage", ["no manifest", "broken manifest", "missing file", "short file", "partial"]
)
def test_an_incomplete_checkpoint_is_ignored_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = weights(run(tmp_path / "whole"))
    run(tmp_path / "run", steps=4)
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    newest = folder.directory(4)
    match damage:
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "broken manifest":
            (newest / "manifest.json").write_text('{"step": 4, "fi')
        case "missing file":
            (newest / "optimizer.safetensors").unlink()
        case "short file":
            model = newest / "model.safetensors"
            model.write_bytes(model.read_bytes()[:-10])
        case "partial":
            newest.rename(folder.partial(4))
    assert folder.steps() == [2]
    assert folder.latest() == folder.directory(2)
    assert "ignoring the" in caplog.text and "step-00000004" in caplog.text
    # The run goes on from the older checkpoint and ends where it would have ended.
    resumed = weights(run(tmp_path / "run"))
    assert folder.steps() == [2, 4, 6]
    assert not list(folder.path.glob(".*"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_without_any_complete_checkpoint_the_run_starts_anew(tmp_path: Path) -> None:
    whole = weights(run(tmp_path / "whole"))
    run(tmp_path / "run", steps=2)
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").unlink()
    resumed = weights(run(tmp_path / "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=1)
    assert folder.latest() is None and folder.steps() == []
    rubbish = folder.begin(3)
    (rubbish / "old").write_text("left by a killed process")
    partial = folder.begin(3)
    assert list(partial.iterdir()) == []
    (partial / "file").write_text("new")
    assert folder.steps() == []
    folder.begin(2)
    assert folder.commit(3) == folder.directory(3) == folder.latest()
    assert sorted(file.name for file in folder.directory(3).iterdir()) == ["file", "manifest.json"]
    assert not list(folder.path.glob(".*"))
    (folder.begin(3) / "file").write_text("rewritten")
    folder.commit(3)
    assert (folder.directory(3) / "file").read_text() == "rewritten"
    folder.begin(5)
    folder.commit(5)
    assert folder.steps() == [5]
    with pytest.raises(ValueError, match="keep must be at least 1 or None, got 0"):
        CheckpointFolder(tmp_path, keep=0)


# What a run refuses to continue


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "batch_size was 4, now it is 5"),
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"drop_last": True}, "drop_last was False, now it is True"),
        ({"max_steps": 2}, "beyond the run's 2 steps"),
        ({"resume": False}, "holds checkpoints of an earlier run"),
    ],
)
def test_another_run_cannot_be_resumed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first = {"output_dir": tmp_path, "max_steps": 3, "batch_size": 4}
    fit(regressor(), squared_error, Points(10), config=FitConfig(**first))
    model = regressor()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, squared_error, Points(10), config=FitConfig(**{**first, "resume": True, **changes}))
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_another_data_set_cannot_be_resumed(tmp_path: Path) -> None:
    config = FitConfig(output_dir=tmp_path, max_steps=3, batch_size=4, resume=True)
    fit(regressor(), squared_error, Points(10), config=config)
    with pytest.raises(ValueError, match="train_length was 10, now it is 11"):
        fit(regressor(), squared_error, Points(11), config=config)


def test_changed_settings_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="trainkit")
    first = {"output_dir": tmp_path, "max_steps": 3, "batch_size": 4, "resume": True}
    fit(regressor(), squared_error, Points(10), config=FitConfig(**first))
    assert caplog.text == ""
    changes = {"max_steps": 5, "learning_rate": 0.5, "log_every": 1}
    result = fit(regressor(), squared_error, Points(10), config=FitConfig(**{**first, **changes}))
    assert (result.resumed_from, result.steps) == (3, 5)
    assert "max_steps from 3 to 5, learning_rate from 0.001 to 0.5 (" in caplog.text
    assert result.history[-1]["learning_rate"] == pytest.approx(0.5 * (1 - 4 / 5))


def test_state_json_says_what_was_run(tmp_path: Path) -> None:
    run(tmp_path, steps=2, learning_rate=0.25)
    state = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["step"] == 2 and state["processes"] == 1
    assert state["config"]["learning_rate"] == 0.25


# Random numbers


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


def test_the_state_of_all_generators_survives_json_and_safetensors(tmp_path: Path) -> None:
    seed_everything(5)
    draws()
    save_tree(tmp_path, "rng", rng_state())
    expected = draws() + draws()
    seed_everything(6)
    restore_rng_state(load_tree(tmp_path, "rng"))
    assert draws() + draws() == expected


def test_a_preserved_block_leaves_no_trace() -> None:
    seed_everything(5)
    expected = draws()
    seed_everything(5)
    with pytest.raises(KeyError), preserved_rng():
        draws()
        raise KeyError
    assert draws() == expected
    seed_everything(2**63 - 1)
    assert draws() != expected


def test_derived_seeds_differ_wherever_their_parts_do() -> None:
    parts = [(1, 23), (12, 3), ("1", 23), (1, "23"), (123,), ("a", 1), ("a", 2)]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive_seed(*part) for part in parts]


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = [epoch_permutation(50, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_permutation(50, seed=0, epoch=0).tolist()
