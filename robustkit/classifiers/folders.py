"""Folders of transformers models: safetensors weights only."""

from __future__ import annotations

import os
from pathlib import Path

from trainkit.hub import fingerprint, resolve

__all__ = ["folder_fingerprint", "model_folder"]

# Copies of the weights in other formats, and weights that can only be read with pickle.
_NOT_NEEDED = ("*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pkl", "*.pt", "*.pth", "onnx/*",
               "openvino/*", "coreml/*", "original/*")  # fmt: skip
# Weights, configuration, and what tokenizers are made of.
_READ = ("*.safetensors", "*.json", "*.txt", "*.model")


def model_folder(folder_or_id: str | Path, revision: str | None = None) -> Path:
    """The local folder behind a folder name or a Hub repository of a transformers model.

    Args:
        folder_or_id: A folder, or a repository.
        revision: Branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: The folder, or its safetensors weights, are missing.
        HubError: See `trainkit.resolve`.
    """
    folder = resolve(folder_or_id, revision=revision, ignore=_NOT_NEEDED)
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{os.fspath(folder_or_id)!r} has no safetensors weights, and others are not read because "
            "loading them may run code; on the Hub look for a conversion (revision='refs/pr/1'), or save the "
            "model anew with save_pretrained"
        )
    return folder


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the weights, configuration and tokenizer that a folder holds, read in pieces.

    Args:
        folder: Such as `model_folder` returns; its name and place do not count.
    """
    files = sorted(file for pattern in _READ for file in folder.glob(pattern) if file.is_file())
    return fingerprint([file.name for file in files], *files)
