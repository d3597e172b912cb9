"""The default optimizer and the course of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from trainkit.config import FitConfig, Schedule

__all__ = ["default_optimizer", "schedule_factor"]


def schedule_factor(step: int, total: int, *, schedule: Schedule, warmup: int) -> float:
    """The learning rate of a step as a multiple of the peak.

    The warm-up rises linearly: step ``s`` (from 0) uses ``(s + 1) / warmup``. After it, with
    ``p = (s - warmup) / (total - warmup)``, the factor is ``1 - p`` (linear), ``(1 + cos(pi p)) / 2``
    (cosine) or 1 (constant): the peak is reached, and no step is wasted on a rate of zero.
    ``one_cycle`` follows ``torch.optim.lr_scheduler.OneCycleLR`` with its defaults: a cosine rise from 1/25
    during the warm-up (30 % of the steps if ``warmup`` is 0), then a cosine fall to 1/250,000.

    Args:
        step: Steps done before this one.
        total: Steps of the whole run.
        schedule: One of the four names.
        warmup: Steps of the warm-up.

    Returns:
        A factor in ``[0, 1]``. It depends on the arguments alone, so a resumed run needs no other state.
    """
    if schedule == "one_cycle":
        start, end = 1 / 25, 1 / 25 / 1e4
        peak, last = (warmup or 0.3 * total) - 1, total - 1
        if step <= peak:
            return _cosine(start, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, end, (step - peak) / (last - peak))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (total - warmup)
    return 1 - progress if schedule == "linear" else _cosine(1.0, 0.0, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def default_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW whose weight decay spares biases, normalisation weights and (by default) embeddings.

    Args:
        model: The model; parameters that need no gradient are left out.
        config: Learning rate, betas, weight decay and ``decay_embeddings``.

    Returns:
        The optimizer, with up to two parameter groups: with and without decay.

    Raises:
        ValueError: No parameter needs a gradient.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_spared = parameter.ndim < 2 or (id(parameter) in embeddings and not config.decay_embeddings)
        (spared if is_spared else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if parameters
    ]
    if not groups:
        raise ValueError("model has no parameter that needs a gradient")
    # One pass over memory instead of a dozen; the other devices of torch do not all have it.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in (*decayed, *spared))
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
