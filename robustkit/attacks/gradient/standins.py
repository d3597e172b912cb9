"""Convolutions that stand in for a network's own while it is attacked: the same numbers, sooner on a CPU.

An attack takes hundreds of gradients of one network whose weights stay as they are, so work that each pass
would repeat is done once:

- batch normalization in evaluation mode is an affine map, which goes into the weights of the convolution
  before it: W' = W g / s and b' = (b - m) g / s + c with mean m, standard deviation s, scale g and shift c;
- weights are laid out in `torch.channels_last`, in which oneDNN computes without reordering what it gets;
- a first convolution of few channels gets its gradient by a product of matrices and
  `torch.nn.functional.fold`, since oneDNN's kernel for that case leaves most of a vector register empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AT_ONCE", "standing_in"]

AT_ONCE = 32
"""Images of one pass: activations of more leave the cache, and blocks that large are new memory each time."""
_ROUNDING = 1e-4
"""Largest difference of logits, as a share of the largest logit, that passes for rounding."""


@contextmanager
def standing_in(model: object, inputs: Tensor) -> Iterator[bool]:
    """Puts stand-ins into a model that is in evaluation mode; afterwards it is as it was.

    Only float32 networks with two-dimensional convolutions on a CPU get any, and none that somebody watches
    by hooks. Which batch norm follows which convolution is seen in a pass of one image; where the logits of
    that image are not the same within rounding with the stand-ins, or the network cannot take
    `torch.channels_last` (one that calls ``view``), it stays as it is.

    Args:
        model: What is attacked; anything that is not a module is left alone.
        inputs: ``(n, ...)``, of which the first is shown to the model twice.

    Yields:
        Whether there are stand-ins.
    """
    if not _suits(model, inputs):
        yield False
        return
    assert isinstance(model, nn.Module)
    images = inputs[:1].detach().clone()
    before, followed = _watched(model, images)
    slots = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None
    ]
    others: dict[nn.Module, nn.Module] = {}
    for _, _, child in slots:
        if _is_plain(child):
            assert isinstance(child, nn.Conv2d)
            norm = followed.get(child)
            others[child] = _StandIn(child, norm)
            if norm is not None:
                others[norm] = nn.Identity()
    try:
        for parent, name, child in slots:
            parent._modules[name] = others.get(child, child)
        same = _same(model, images, before)
        if not same:
            _restore(slots)
        yield same
    finally:
        _restore(slots)


class _StandIn(nn.Conv2d):
    """A convolution, and perhaps the batch norm behind it, with weights of its own that nobody trains."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            device="meta",
        )
        weight = conv.weight.detach()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            factor = (norm.running_var + norm.eps).rsqrt()
            if norm.weight is not None:
                factor = factor * norm.weight.detach()
            weight = weight * factor[:, None, None, None]
            bias = (bias - norm.running_mean) * factor
            if norm.bias is not None:
                bias = bias + norm.bias.detach()
        weight = weight.clone(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        # Where it is faster was measured.
        self.narrow = (
            self.out_channels > 8 * self.in_channels and self.groups == 1 and self.dilation == (1, 1)
        )
        self.training = False

    def forward(self, input: Tensor) -> Tensor:
        if self.narrow and input.requires_grad:
            found: Tensor = _Narrow.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.stride, self.padding
            )
            return found
        return super().forward(input)


class _Narrow(torch.autograd.Function):
    """A convolution whose gradient by its input is a product of matrices."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = images.shape[2:], stride, padding
        return nn.functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        taps = weight.contiguous().flatten(1).t().contiguous()
        columns = taps @ gradient.flatten(2)
        found = nn.functional.fold(
            columns, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride
        )
        return found, None, None, None, None


def _suits(model: object, inputs: Tensor) -> bool:
    if not isinstance(model, nn.Module) or inputs.ndim != 4 or inputs.dtype != torch.float32:
        return False
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu") or hasattr(model, "_orig_mod"):
        return False
    modules = list(model.modules())
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or module._compiled_call_impl is not None
        for module in modules
    )  # fmt: skip
    return not hooked and any(_is_plain(module) for module in modules)


def _is_plain(module: nn.Module) -> bool:
    """A convolution that is nothing but one: no subclass, no parametrization, padded with zeros."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def _watched(model: nn.Module, images: Tensor) -> tuple[object, dict[nn.Module, nn.BatchNorm2d]]:
    """The output, and the batch norm behind each convolution that runs once and has one."""
    made: dict[nn.Module, list[tuple[Tensor, int]]] = {}
    read: dict[nn.Module, list[tuple[Tensor, int]]] = {}

    def after_conv(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        made.setdefault(module, []).append((output, output._version))

    def before_norm(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        read.setdefault(module, []).extend((tensor, tensor._version) for tensor in arguments)

    handles = []
    for module in model.modules():
        if _is_plain(module):
            handles.append(module.register_forward_hook(after_conv))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    followed = {}
    for conv, outputs in made.items():
        for norm, arguments in read.items():
            # One call of each, of one tensor in one version: nothing was written into it between the two.
            if len(outputs) == len(arguments) == 1 and arguments[0][0] is outputs[0][0]:
                assert isinstance(norm, nn.BatchNorm2d)
                if arguments[0][1] == outputs[0][1]:
                    followed[conv] = norm
    return output, followed


def _same(model: nn.Module, images: Tensor, before: object) -> bool:
    """Whether the logits of some images are what they were."""
    try:
        with torch.no_grad():
            after = model(images)
    except RuntimeError:  # `view` of a channels_last tensor
        return False
    old, new = getattr(before, "logits", before), getattr(after, "logits", after)
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or old.shape != new.shape:
        return False
    return bool((old - new).abs().max() <= _ROUNDING * old.abs().max())


def _restore(slots: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for parent, name, child in slots:
        parent._modules[name] = child
