"""Which vector of a text a classification head reads, found by asking the model itself.

Architectures disagree: BERT's head reads the first token, BART's the last ``<eos>``, XLNet's the last token
of the batch (so that it must be padded on the left), GPT-2's the last token that is no padding. Instead of a
table of architectures, `find_reading` differentiates the logits by the last hidden state: only what the head
reads has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Pooling", "Position", "Reading", "find_reading", "hidden_state", "pool", "watched_encoder"]

Position: TypeAlias = Literal["first", "last", "mean"]
"""The first token, the last token that is no padding, the mean over all tokens that are none."""

Pooling: TypeAlias = Literal["auto", "first", "last", "mean", "pooler"] | Callable[[Tensor, Tensor], Tensor]
"""How a vector ``(n, d)`` is taken from hidden states ``(n, T, d)`` and attention mask ``(n, T)``."""


@dataclass(frozen=True)
class Reading:
    """What a head reads.

    Attributes:
        position: Where; None if it is none of the three.
        padding_side: On which side a batch is padded.
        ignores_padding: Whether padding changes nothing. Convolutions (ConvBERT) and Fourier transforms
            (FNet) see it.
    """

    position: Position | None
    padding_side: Literal["left", "right"]
    ignores_padding: bool


@contextmanager
def watched_encoder(model: nn.Module) -> Iterator[list[Any]]:
    """Collect what a classifier's encoder returns while the model runs.

    Args:
        model: A transformers model with a head.

    Yields:
        A list that gets the encoder's output at each run of the model.

    Raises:
        ValueError: The model has no encoder below its head (transformers' ``base_model``).
    """
    encoder = getattr(model, "base_model", model)
    if encoder is model:
        raise ValueError(
            f"{type(model).__name__} has no encoder apart from its head, so no vector can be taken"
        )
    outputs: list[Any] = []
    handle = encoder.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def hidden_state(output: Any, layer: int) -> Tensor:
    """The hidden state ``(n, T, d)`` of a layer in what an encoder returned, the decoder's if there is one.

    Args:
        output: From `watched_encoder`.
        layer: Index into the hidden states: 0 are the embeddings, -1 the last.

    Raises:
        ValueError: There is no such layer.
    """
    if layer == -1:
        last: Tensor = output[0]
        return last
    states = getattr(output, "decoder_hidden_states", None) or output.hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(f"layer is {layer}; the model has hidden states {-len(states)} to {len(states) - 1}")
    state: Tensor = states[layer]
    return state


def find_reading(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    padded: Callable[[Literal["left", "right"]], Mapping[str, Tensor]],
) -> Reading:
    """Find out what a head reads.

    Cost: two or three forward passes of one short text.

    Args:
        model: A transformers sequence classifier in evaluation mode.
        batch: One text of at least three tokens, without padding.
        padded: The same text, padded on a side.

    Raises:
        ValueError: The logits are NaN or infinite, or the model has no encoder.
    """
    found, logits = _look(model, batch)
    at_right, padded_right = _look(model, padded("right"))
    if at_right == found:
        return Reading(found, "right", _alike(logits, padded_right))
    at_left, padded_left = _look(model, padded("left"))
    if at_left == found:
        return Reading(found, "left", _alike(logits, padded_left))
    return Reading(None, "right", _alike(logits, padded_right))


def _alike(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def _look(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Position | None, Tensor]:
    """What the head reads of one text, and its logits."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]  # transformers models have it

    def follow(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        # A model whose weights are frozen has gradients from here on only.
        return output if output.requires_grad else output.detach().requires_grad_()

    handle = embedding.register_forward_hook(follow)
    try:
        with torch.enable_grad(), watched_encoder(model) as outputs:
            logits = model(**batch).logits
            if not logits.isfinite().all():
                raise ValueError(
                    f"{type(model).__name__} gives NaN or infinite numbers; its weights are broken"
                )
            state = hidden_state(outputs[-1], -1)
            weights = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
            (gradient,) = torch.autograd.grad((logits * weights).sum(), state, allow_unused=True)
    finally:
        handle.remove()
    return _position(gradient, batch, model.config.pad_token_id), logits.detach()  # type: ignore[union-attr, arg-type]


def _position(
    gradient: Tensor | None, batch: Mapping[str, Tensor], pad_token_id: int | None
) -> Position | None:
    if gradient is None or gradient.ndim != 3:
        return None
    gradient = gradient[0].float()
    read = set(gradient.abs().amax(dim=1).nonzero().flatten().tolist())
    mask = batch["attention_mask"][0].bool()
    attended = mask.nonzero().flatten().tolist()
    if read == {0} and attended[0] == 0:
        return "first"
    if read == {_last(batch["input_ids"], mask[None], pad_token_id)[0].item()}:
        return "last"
    if read == set(attended):
        rows = gradient[mask]
        if torch.allclose(rows, rows.mean(dim=0, keepdim=True).expand_as(rows), rtol=1e-3, atol=0):
            return "mean"
    return None


def pool(
    state: Tensor, position: Position, attention_mask: Tensor, input_ids: Tensor, pad_token_id: int | None
) -> Tensor:
    """One vector for each text.

    Args:
        state: Hidden states ``(n, T, d)``.
        position: Which token, or the mean.
        attention_mask: 1 for tokens, 0 for padding, ``(n, T)``.
        input_ids: Token ids ``(n, T)``.
        pad_token_id: The model's padding token.

    Returns:
        Vectors ``(n, d)``.

    Raises:
        ValueError: The encoder's sequence is of another length than the tokens', and not its first state is
            asked for.
    """
    if position == "first" and state.shape[1] != attention_mask.shape[1]:
        return state[:, 0]
    if state.shape[1] != attention_mask.shape[1]:
        raise ValueError(
            f"the encoder turns {attention_mask.shape[1]} tokens into {state.shape[1]} states; only "
            "pooling='first' or a function can choose among them"
        )
    mask = attention_mask.bool()
    if position == "mean":
        weights = mask.to(state.dtype)[:, :, None]
        return (state * weights).sum(dim=1) / weights.sum(dim=1)
    chosen = mask.int().argmax(dim=1) if position == "first" else _last(input_ids, mask, pad_token_id)
    return state[torch.arange(len(state), device=state.device), chosen]


def _last(input_ids: Tensor, mask: Tensor, pad_token_id: int | None) -> Tensor:
    """The last token of each row that is no padding, or the first where there is none: ``(n,)``.

    Where a text ends with the token that also pads (GPT-2's <|endoftext|>), heads pass over it, and so does
    this.
    """
    real = mask if pad_token_id is None else mask & (input_ids != pad_token_id)
    return (torch.arange(mask.shape[1], device=mask.device) * real).argmax(dim=1)
