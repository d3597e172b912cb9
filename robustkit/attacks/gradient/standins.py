"""Convolutions that stand in for a network's own in an attack: the same numbers, sooner on a CPU.

An attack takes hundreds of gradients of one network whose weights stay as they are, so work that each pass
would repeat is done once:

- batch normalization in evaluation mode is an affine map, which goes into the weights of the convolution
  before it: W' = W g / s and b' = (b - m) g / s + c with mean m, standard deviation s, scale g and shift c;
- weights are laid out in `torch.channels_last`, in which oneDNN computes without reordering what it gets;
- a first convolution of few channels gets its gradient by a product of matrices and
  `torch.nn.functional.fold`, since oneDNN's kernel for that case leaves most of a vector register empty.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["AT_ONCE", "standing_in"]

M = TypeVar("M")
AT_ONCE = 32
"""Images of one pass: activations of more leave the cache, and blocks that large are new memory each time."""
_FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, LookupError, AssertionError)
"""What the code of a network raises that is shown two images, or finds other modules than its own: shapes,
`view`, numbers that an identity does not have. A fault of the network itself is met again by the attack."""
_ROUNDING = 1e-4
"""Largest difference of logits, as a share of the largest logit, that passes for rounding."""


def standing_in(model: M, inputs: Tensor) -> M:
    """A model like the given one, in evaluation mode, with stand-ins; or the given one.

    Only float32 networks with two-dimensional convolutions on a CPU get any, and none that somebody watches
    by hooks or that is compiled. The given model is not changed: modules are copied, weights shared where
    they stay as they are, so it must not be trained while the copy is in use. Which batch norm follows which
    convolution is seen in a pass of two images; where that or another with the stand-ins fails (a network
    that calls ``view`` cannot take `torch.channels_last`), or the logits are not the same within rounding,
    the model itself is given back. A network must treat each image by itself: what one does only with other
    numbers of images, or counts of its own, is not seen.

    Args:
        model: What is attacked; anything that is not a module is left alone.
        inputs: ``(n, ...)``, of which the first two are shown to the model twice.

    Returns:
        The copy, or ``model``.
    """
    if not _suits(model, inputs):
        return model
    assert isinstance(model, nn.Module)
    images = inputs[:2].detach().clone()
    twin = _copied(model, {})
    try:
        with torch.no_grad():
            before, followed = _watched(twin, images)
            _install(twin, followed)
            after = twin(images)
    except _FAILURES:
        return model
    return twin if _same(before, after) else model


def _copied(module: nn.Module, known: dict[nn.Module, nn.Module]) -> Any:
    """A module with modules of its own all the way down, and everything else shared."""
    if module not in known:
        known[module] = new = copy.copy(module)
        new._modules = {
            name: None if child is None else _copied(child, known) for name, child in module._modules.items()
        }
        new._forward_hooks, new._forward_pre_hooks = OrderedDict(), OrderedDict()
    return known[module]


def _install(model: nn.Module, followed: dict[nn.Module, nn.BatchNorm2d]) -> None:
    """Makes stand-ins of a copy's plain convolutions, and identities of the batch norms that go into them."""
    modules = list(model.modules())
    for module in modules:
        if _is_plain(module):
            assert isinstance(module, nn.Conv2d)
            _StandIn.take_over(module, followed.get(module))
    folded = set(followed.values())
    for parent in modules:
        for name, child in parent._modules.items():
            if child in folded:
                parent._modules[name] = nn.Identity()


class _StandIn(nn.Conv2d):
    """A convolution, and perhaps the batch norm behind it, with weights of its own that nobody trains."""

    narrow: bool

    @classmethod
    def take_over(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        """Turns a convolution into its stand-in: to build another takes as long as a pass of some images."""
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
        conv._parameters = {
            "weight": nn.Parameter(weight, requires_grad=False),
            "bias": nn.Parameter(bias.clone(), requires_grad=False),
        }
        conv.__class__ = cls
        assert isinstance(conv, cls)
        # Where it is faster was measured.
        conv.narrow = (
            conv.out_channels > 8 * conv.in_channels and conv.groups == 1 and conv.dilation == (1, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        if self.narrow and input.requires_grad and not torch.is_autocast_enabled("cpu"):
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
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    modules = list(model.modules())
    if any(hasattr(module, "_orig_mod") for module in modules):
        return False
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
    output = model(images)
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


def _same(before: object, after: object) -> bool:
    """Whether logits are what they were."""
    old, new = getattr(before, "logits", before), getattr(after, "logits", after)
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or old.shape != new.shape:
        return False
    return bool((old - new).abs().max() <= _ROUNDING * old.abs().max())
