"""Passes through a network that keep no more than the gradient by the inputs needs; the model is not changed.

What autograd keeps of a network is meant for the gradients of its weights, too. Where these take none, much
of it is not needed:

- of what a convolution or a pool read, the way back needs the shape alone;
- batch normalization in evaluation mode has one derivative for each channel;
- of a ReLU's output the way back needs which units were active: one byte in place of four.

The forward pass is the same to the last bit, so that no unit near zero is active in one and not in the other.
The way back is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["WORTHWHILE", "Frugal", "gradient_by_phases"]

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
WORTHWHILE = 1 << 17
"""Numbers that a function must read at least; with fewer, the time it takes is worth more than the memory."""


def gradient_by_phases(
    gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """The gradient of a strided convolution by what it reads.

    What it reads at places y with one remainder of y + padding by the stride meets one part of the kernel.
    So the gradient is one convolution of its own, without stride, whose channels are the remainders, and
    whose output is interleaved. On a CPU it is faster than torch's where few channels were read, since a
    vector register holds several channels of an output.

    Args:
        gradient: By the convolution's output, ``(n, O, y', x')``.
        weight: ``(O, C, k, k')``.
        size: y and x.
        stride: In both directions.
        padding: With zeros, in each direction.

    Returns:
        ``(n, C, y, x)``.
    """
    given, read, *kernel = weight.shape
    down, right = (-(-side // stride) for side in kernel)
    whole = F.pad(weight, (0, right * stride - kernel[1], 0, down * stride - kernel[0]))
    parts = whole.view(given, read, down, stride, right, stride).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    phases = F.conv2d(
        gradient, parts.reshape(-1, given, down, right), padding=(down - 1, right - 1)
    )  # (n, C * stride^2, y' + down - 1, x' + right - 1)
    padded = F.pixel_shuffle(phases, stride)
    (top, left), (height, width) = padding, size
    ends = (width + left - padded.shape[3], height + top - padded.shape[2])
    return F.pad(padded, (-left, ends[0], -top, ends[1]))


class Frugal(TorchFunctionMode):
    """A context in which passes through a network keep little.

    It holds for the thread that enters it. Left alone are calls of which anything but the first argument
    takes a gradient, and all that happens under the transforms of `torch.func`, in forward-mode
    differentiation, or where somebody else has a say in what is kept, as in a network with checkpoints.
    Before torch 2.8 nobody can ask for the latter; all is left alone there.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        thrifty = _THRIFTY.get(func)
        if thrifty is None or not args or not _alone_takes_gradient(*args, *kwargs.values()):
            return func(*args, **kwargs)
        return thrifty(func, args, kwargs)


def _alone_takes_gradient(first: Any, *others: Any) -> bool:
    takes = [isinstance(one, Tensor) and one.requires_grad for one in (first, *others)]
    return (
        takes[0]
        and not any(takes[1:])
        and torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not _kept_by_others()
    )


def _kept_by_others() -> bool:
    asked = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return asked is None or asked(False) is not None


def _shaped(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function whose way back reads of its input the shape alone."""
    # Elsewhere a pool may read its input on the way back.
    if args[0].numel() < WORTHWHILE or args[0].device.type not in ("cpu", "cuda"):
        return func(*args, **kwargs)
    # Not the tensor itself, which lives as long as a function that names it.
    place, size = args[0].data_ptr(), args[0].shape
    if any(isinstance(one, Tensor) and one.data_ptr() == place for one in (*args[1:], *kwargs.values())):
        return func(*args, **kwargs)  # what is kept could be either
    pools = "pool" in func.__name__

    def pack(kept: Tensor) -> Any:
        if kept.data_ptr() != place or kept.shape != size:
            return kept
        return kept.shape, kept.stride(), kept.dtype, kept.device

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        shape, stride, dtype, device = kept
        if pools:
            return torch.empty(1, dtype=dtype, device=device).expand(shape)
        # A convolution would copy that together; here nobody writes.
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return func(*args, **kwargs)


def _convolved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = dict(zip(_CONVOLUTION, args, strict=False)) | kwargs
    read, weight, padding = given["input"], given["weight"], given.get("padding", 0)
    strides, dilations = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    by_phases = (
        len(weight) > 8 * weight.shape[1]
        and strides[0] == strides[1] > 1
        and dilations == (1, 1)
        and given.get("groups", 1) == 1
        and not isinstance(padding, str)
        and read.ndim == 4
        and read.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
    if not by_phases:
        return _shaped(func, args, kwargs)
    return _ByPhases.apply(  # type: ignore[no-untyped-call]
        read, lambda z: func(z, *args[1:], **kwargs), weight, strides[0], _pair(padding)
    )


def _normalized(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = dict(zip(_NORM, args, strict=False)) | kwargs
    variance, weight = given["running_var"], given.get("weight")
    if given.get("training", False) or variance is None or args[0].numel() < WORTHWHILE:
        return func(*args, **kwargs)
    wide = variance.to(torch.promote_types(variance.dtype, torch.float32))
    factor = (wide + given.get("eps", 1e-5)).rsqrt()
    if weight is not None:
        factor = factor * weight
    return _Scaled.apply(args[0], lambda z: func(z, *args[1:], **kwargs), factor)  # type: ignore[no-untyped-call]


def _rectified(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    in_place = func.__name__ == "relu_" or args[1:] == (True,) or kwargs.get("inplace", False)
    # What is written into a view goes back through what it is a view of.
    if args[0].numel() < WORTHWHILE or (in_place and args[0]._is_view()):
        return func(*args, **kwargs)
    return _Gated.apply(args[0], in_place)  # type: ignore[no-untyped-call]


# Not torch.batch_norm, whose arguments have another order.
_THRIFTY: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _shaped,
    torch.conv2d: _convolved,
    torch.conv3d: _shaped,
    torch.max_pool2d: _shaped,
    F.max_pool2d: _shaped,
    F.avg_pool2d: _shaped,
    F.batch_norm: _normalized,
    F.relu: _rectified,
    torch.relu: _rectified,
    torch.relu_: _rectified,
    Tensor.relu: _rectified,
    Tensor.relu_: _rectified,
}
"""How functions are called instead."""


class _ByPhases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, compute: Any, weight: Tensor, stride: int, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = z.shape[2:], stride, padding
        output: Tensor = compute(z)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,) = ctx.saved_tensors
        found = gradient_by_phases(gradients[0], weight, ctx.size, ctx.stride, ctx.padding)
        return found, None, None, None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, compute: Any, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        output: Tensor = compute(z)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ((gradient,), (factor,)) = gradients, ctx.saved_tensors
        wide = factor.view(-1, *[1] * (gradient.ndim - 2))
        if not _writable(gradient):
            return (gradient * wide).to(gradient.dtype), None, None
        return torch.mul(gradient, wide, out=_buffer(gradient)), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, in_place: bool) -> Tensor:
        output = z.relu_() if in_place else torch.clamp_min(z, 0, out=_buffer(z))
        if in_place:
            ctx.mark_dirty(z)
        ctx.save_for_backward(output != 0)  # not > 0: NaN is active, as in torch
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ((gradient,), (active,)) = gradients, ctx.saved_tensors
        # Zero where inactive, even if the gradient is no finite number. Several times as fast as torch.where.
        back = torch.ops.aten.threshold_backward
        if not _writable(gradient):
            return back(gradient, active.to(gradient.dtype), 0), None
        found = _buffer(gradient).copy_(active)
        return back.grad_input(gradient, found, 0, grad_input=found), None


def _writable(gradient: Tensor) -> bool:
    """Whether what is computed of a gradient may be written into given memory."""
    asked = torch._C._functorch
    # Of several gradients at once, torch.autograd.grad makes batches of the older kind.
    batched = asked.is_functorch_wrapped_tensor(gradient) or asked.is_legacy_batchedtensor(gradient)
    return not torch.is_grad_enabled() and not batched


def _buffer(like: Tensor) -> Tensor:
    """Memory for a tensor.

    torch asks for aligned blocks, and glibc finds no place for one in a hole of the same size; so the blocks
    of a pass lie scattered over twice the memory that they need. numpy's blocks fit.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32 or not like.is_contiguous():
        return torch.empty_like(like)
    return torch.from_numpy(np.empty(like.shape, dtype=np.float32))


def _pair(value: Any) -> tuple[Any, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
