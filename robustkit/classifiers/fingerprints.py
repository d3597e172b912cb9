"""What identifies a model of transformers by its content."""

from __future__ import annotations

import json
from typing import Any

import torch

from trainkit.hub import fingerprint

__all__ = ["model_fingerprint"]


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """SHA-256 over the weights, configuration and vocabulary of a model: its name and place do not count.

    Args:
        model: Any transformers model.
        tokenizer: Its tokenizer.
    """
    weights = model.state_dict()
    numbers = (
        tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        for tensor in weights.values()
    )
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return fingerprint(model.config.to_json_string(), tuple(weights), *numbers, vocabulary)
