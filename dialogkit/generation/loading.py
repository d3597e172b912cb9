"""Reading a model folder or a Hub repository, with errors that say which file is missing or damaged."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

__all__ = ["load", "parse_dtype"]

_EXPECTED = "config.json, model.safetensors (or its shards with an index) and tokenizer.json"
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model*.safetensors"
_HUB_ID = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?")
_DTYPES = {
    "float64": torch.float64,
    "fp64": torch.float64,
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """The dtype to load weights in.

    Args:
        dtype: A torch dtype, its usual names, ``"auto"``, or None.
        device: Where the model goes: None means float32 on the CPU, where half precision is slow on many
            processors, and ``"auto"`` elsewhere.

    Returns:
        A torch dtype, or ``"auto"``.

    Raises:
        ValueError: If the name is not known.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {sorted(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


def load(
    path_or_id: str | Path,
    *,
    revision: str | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    quantization_config: Any = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal or encoder-decoder model and its tokenizer, or a PEFT adapter with its base model.

    Args:
        path_or_id: Folder or Hub id of a model or of an adapter.
        revision: Branch, tag or commit on the Hub.
        device: Where to put the model; None takes the first GPU if there is one, else the CPU.
        dtype: See `parse_dtype`.
        quantization_config: One of transformers' configurations, handed on to it.

    Returns:
        Model on its device, and tokenizer. An adapter is merged into the weights, unless they are quantised.

    Raises:
        FileNotFoundError: If the folder, the model or a file is missing.
        ImportError: An adapter needs the extra ``peft``, a quantisation its own package.
        ValueError: If a file is damaged or does not fit the others.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = parse_dtype(dtype, place)
    folder = Path(path_or_id)
    local = folder.is_dir()
    name = str(path_or_id)
    if not local:
        _check_name(path_or_id)
    adapter = folder if local else _adapter_on_hub(name, revision)
    if adapter is not None and (adapter / _ADAPTER).is_file():
        return _load_adapter(name, adapter, place, precision, quantization_config)
    return _load_whole(name, revision, place, precision, quantization_config)


def _check_name(path_or_id: str | Path) -> None:
    """Refuses what is neither a folder nor looks like a Hub id."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return
    if isinstance(path_or_id, Path) or folder.exists() or not _HUB_ID.fullmatch(path_or_id):
        raise FileNotFoundError(f"no such model folder: {path_or_id} (expected a folder with {_EXPECTED})")


def _load_whole(
    name: str, revision: str | None, place: torch.device, precision: torch.dtype | str, quantization: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = Path(name)
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    try:
        with _bars_for_terminals_only():
            # Left open, a terminal is asked whether to run what the repository brings along.
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            loaded: Any = kind.from_pretrained(
                name,
                config=config,
                revision=revision,
                dtype=precision,
                quantization_config=quantization,
                # Quantised weights are put where they belong as they are read.
                device_map=None if quantization is None else {"": place},
                trust_remote_code=False,
                # Other weight files are pickles, which may run code when they are read.
                use_safetensors=True,
                # Both are reported and refused below, by name.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except OSError as error:
        if local:
            raise ValueError(f"cannot load the model folder {folder}: {error}") from error
        raise _not_given_out(name, error) from error
    model: PreTrainedModel
    model, report = loaded
    unfit = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if unfit:
        raise ValueError(
            f"the weights of {name!r} do not fit its config.json: {len(unfit)} tensors are missing or of "
            f"another shape ({', '.join(unfit[:3])}{', ...' if len(unfit) > 3 else ''})"
        )
    if quantization is None:
        model.to(place)  # type: ignore[arg-type]  # its wrapper is annotated without the device
    return model, tokenizer


def _not_given_out(name: str, error: OSError) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name!r} is neither a folder nor a model that the Hub gives out (or the Hub is out of reach, "
        f"or the model has no safetensors weights): {error}"
    )


def _is_adapter(path_or_id: str, revision: str | None) -> bool:
    try:
        return find_adapter_config_file(path_or_id, revision=revision) is not None
    except OSError as error:
        raise _not_given_out(path_or_id, error) from error


def _adapter_on_hub(name: str, revision: str | None) -> Path | None:
    """Downloads the adapter that a Hub repository holds; None where it holds a whole model."""
    from huggingface_hub import snapshot_download

    if not _is_adapter(name, revision):
        return None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[_ADAPTER, _ADAPTER_WEIGHTS]))
    except OSError as error:
        raise _not_given_out(name, error) from error


def _load_adapter(
    name: str, folder: Path, place: torch.device, precision: torch.dtype | str, quantization: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(
            f"{name} holds an adapter, which needs peft: pip install 'dialogkit-robustkit[peft]'"
        ) from error
    if not list(folder.glob(_ADAPTER_WEIGHTS)):
        raise FileNotFoundError(
            f"{name} holds no adapter_model.safetensors, or only a part of it is in the Hub's cache "
            "(other formats are not read: they may run code)"
        )
    config = PeftConfig.from_pretrained(os.fspath(folder))
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"the adapter {name} does not say which model it belongs to")
    if config.is_prompt_learning:
        raise ValueError(
            f"the adapter {name} is a learned prompt ({config.peft_type}), which no model absorbs"
        )
    from_hub = folder != Path(name)
    if from_hub and (not _HUB_ID.fullmatch(base) or Path(base).exists()):
        raise ValueError(
            f"the adapter {name} belongs to {base!r}, which is a folder, of this machine or another; "
            "adapters of the Hub are loaded with models of the Hub only"
        )
    try:
        _check_name(base)
        # transformers would go on from one to the next, wherever they point.
        if _is_adapter(base, config.revision):
            raise ValueError(f"the adapter {name} belongs to another adapter, {base!r}; merge that one first")
        model, tokenizer = _load_whole(base, config.revision, place, precision, quantization)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the model that the adapter {name} belongs to: {error}") from error
    # The adapter's layers are put into the model itself.
    adapted = PeftModel.from_pretrained(model, os.fspath(folder))
    merged: PreTrainedModel = model if quantization is not None else adapted.merge_and_unload(safe_merge=True)
    return merged, tokenizer


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json (expected a folder with {_EXPECTED})")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")]
        also = f"; {', '.join(sorted(pickled))} is not read, because pickles may run code" if pickled else ""
        raise FileNotFoundError(f"{folder} holds no weights (expected a folder with {_EXPECTED}){also}")
    for file in weights:
        try:
            with safetensors.safe_open(os.fspath(file), framework="pt"):
                pass
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is not a valid safetensors file: {error}") from error


@contextmanager
def _bars_for_terminals_only() -> Iterator[None]:
    """Keep transformers from drawing its loading bar where nobody watches it."""
    shown = transformers_logging.is_progress_bar_enabled()
    if not shown or sys.stderr.isatty():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
