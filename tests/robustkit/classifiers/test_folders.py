"""Folders of transformers models: what is read of them, and what identifies them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from robustkit.classifiers.folders import folder_fingerprint, model_folder


def test_the_fingerprint_is_that_of_the_files_that_are_read(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "spiece.model"):
        (one / name).write_text(name)
    shutil.copytree(one, other)
    wanted = folder_fingerprint(one)
    assert folder_fingerprint(other) == wanted
    for name in ("README.md", "pytorch_model.bin"):
        (other / name).write_text("more")
    assert folder_fingerprint(other) == wanted
    found = {wanted}
    for file in sorted(one.iterdir()):
        file.write_text(f"{file.name}!")
        found.add(folder_fingerprint(one))
    (one / "vocab.txt").rename(one / "merges.txt")
    assert len(found | {folder_fingerprint(one)}) == 7


def test_other_weights_than_safetensors_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no safetensors weights.*save the model anew"):
        model_folder(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")
    assert model_folder(str(tmp_path)) == tmp_path
