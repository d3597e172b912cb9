"""Watching a forward pass for activations and giving them another backward rule; the model is not changed.

Activations are caught where they are called, as functions, not where a model keeps modules: a ReLU written as
``F.relu``, in place, or used several times, counts like any other.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .rules import redistribute, zero_border

__all__ = ["ActivationRule", "ActivationSummary", "Interception", "Unit"]

# Activations by the name of the function that computes them. Sigmoid is not among them: it is a gate more
# often.
_SMOOTH = frozenset(
    {"celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu6", "selu", "silu",
     "softplus", "tanh"}
)  # fmt: skip
# What the summary lists if a rule does not touch it.
_NONLINEAR = frozenset(
    {"adaptive_max_pool2d", "clamp", "erf", "exp", "group_norm", "hardsigmoid", "hardtanh", "layer_norm",
     "log_softmax", "max_pool2d", "maximum", "minimum", "rms_norm", "rsqrt", "scaled_dot_product_attention",
     "sigmoid", "softmax", "tanh"}
)  # fmt: skip
_PRODUCTS = frozenset({"mul", "__mul__", "__rmul__"})
_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_CONVOLUTION = ("input", "weight", "bias", "stride")


@dataclass(frozen=True)
class Unit:
    """One activation of a forward pass, as a rule sees it on the way back.

    Attributes:
        name: Such as ``relu``.
        z: What it read, ``(n, ...)``; of a ReLU its output instead, which has the same derivative and is
            the same wherever that is not 0, so that less is kept. Not so of a clamp at 0, whose
            derivative there is 1, though its name is ``relu``, too.
        output: What it gave.
        derivative: R to ``act'(z) R``.
        valid: bool, of z's shape: False where a token is padding. None where there is none.
    """

    name: str
    z: Tensor
    output: Tensor
    derivative: Callable[[Tensor], Tensor]
    valid: Tensor | None


class ActivationRule(Protocol):
    """A backward rule.

    Attributes:
        any_activation: Whether it makes sense for others than ReLU.
    """

    @property
    def any_activation(self) -> bool:
        """See the class."""

    def propagate(self, relevance: Tensor, unit: Unit) -> Tensor:
        """R above the activation to R below it."""


@dataclass(frozen=True)
class ActivationSummary:
    """What a backward rule did to a network.

    Attributes:
        treated: How many activations had the rule, by name.
        left_alone: Non-linear functions that kept their derivative, by name. ``product`` is one of an
            activation with something else, as in gated linear units.
    """

    treated: Mapping[str, int]
    left_alone: Mapping[str, int]


class Interception(TorchFunctionMode):
    """A context in which activations that are called get a backward rule; to be left before going back.

    Args:
        rule: The rule.
        rows: Samples in the batch: the first axis of every activation.
        redistribute_pools: Whether max-pools pass relevance on by `redistribute`.
        zero_borders: Whether `zero_border` is applied above convolutions that keep the size.
        valid: bool ``(rows, T)``: which tokens are no padding. None for images.

    Attributes:
        treated: See `ActivationSummary`.
        left_alone: See `ActivationSummary`.

    Raises:
        ValueError: Inside: an activation that the rule is not made for, or one whose first axis is not the
            sample; a pool that cannot be redistributed.
    """

    def __init__(
        self,
        rule: ActivationRule,
        rows: int,
        *,
        redistribute_pools: bool = False,
        zero_borders: bool = False,
        valid: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.treated: Counter[str] = Counter()
        self.left_alone: Counter[str] = Counter()
        self._rule = rule
        self._rows = rows
        self._pools = redistribute_pools
        self._borders = zero_borders
        self._valid = valid
        self._suspended = 0
        self._last: Tensor | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Enter the context for a forward pass of the model.

        transformers computes some activations from elementary functions. These are caught as modules, by
        hooks that are removed afterwards.
        """
        with ExitStack() as stack:
            for module in model.modules():
                if (
                    type(module).__module__ == "transformers.activations"
                    and "Linear" not in type(module).__name__
                ):
                    stack.enter_context(self._as_module(module))
            with self:
                yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        written = getattr(func, "__name__", "")
        # Names are those of functions, methods and operators alike; an underscore at the end means in place.
        name = written if written.startswith("__") else written.removesuffix("_")
        first = args[0] if args else kwargs.get("input")
        if self._suspended or not isinstance(first, Tensor) or not first.requires_grad:
            return func(*args, **kwargs)
        if name == "relu" or _clamps_at_zero(name, args, kwargs):
            return self._activation("relu", func, written, first, args, kwargs)
        if name in _SMOOTH and (self._rule.any_activation or name != "tanh"):
            return self._activation(name, func, written, first, args, kwargs)
        if name == "max_pool2d" and self._pools:
            return self._pool(func, first, args, kwargs)
        if name in _NONLINEAR:
            self.left_alone[name] += 1
        elif name in _PRODUCTS and any(one is self._last for one in args):
            self.left_alone["product"] += 1
        output = func(*args, **kwargs)
        if name == "conv2d" and self._borders and _keeps_size(first, output, args, kwargs):
            if min(output.shape[-2:]) > 2:
                output.register_hook(zero_border)
            else:
                warnings.warn(
                    f"border='zero' leaves maps of {tuple(output.shape[-2:])} as they are: all is border",
                    stacklevel=2,
                )
        return output

    def _activation(
        self, name: str, func: Callable[..., Any], written: str, z: Tensor, args: Any, kwargs: Any
    ) -> Tensor:
        rest, options = (
            args[1:],
            {key: value for key, value in kwargs.items() if key not in ("input", "inplace")},
        )
        in_place = kwargs.get("inplace", False) or written.endswith("_")
        pure = func
        if in_place and written.endswith("_"):
            plain = written.removesuffix("_")
            pure = getattr(torch, plain, None) or getattr(nn.functional, plain)
        elif in_place and rest and isinstance(rest[-1], bool):
            rest = rest[:-1]

        def compute(z: Tensor) -> Tensor:
            found: Tensor = pure(z, *rest, **options)
            return found

        # A clamp at zero has the name of a ReLU, but another derivative at 0.
        of_output = written.removesuffix("_") == "relu"
        output = self._with_rule(name, z.clone() if in_place else z, compute, compute, of_output)
        # Whoever reads z again must see the new values, and go back through the rule.
        return z.copy_(output) if in_place else output

    def _with_rule(
        self,
        name: str,
        z: Tensor,
        compute: Callable[[Tensor], Tensor],
        again: Callable[[Tensor], Tensor],
        of_output: bool = False,
    ) -> Tensor:
        if name != "relu" and not self._rule.any_activation:
            raise ValueError(
                f"the network has the activation {name}, and this rule is defined for ReLU only; "
                "RectGrad(rule='gated') takes any activation, but is no published method"
            )
        if z.ndim < 2 or z.shape[0] != self._rows:
            raise ValueError(
                f"an activation {name} reads {tuple(z.shape)} for {self._rows} inputs; its first axis must "
                "be the input, or a percentile would mix several"
            )
        self.treated[name] += 1
        valid = self._valid
        if valid is not None:
            valid = (
                valid.view(*valid.shape, *[1] * (z.ndim - 2)).expand_as(z) if _per_token(z, valid) else None
            )
        output: Tensor = _WithRule.apply(  # type: ignore[no-untyped-call]
            z, compute, again, of_output, self._rule, name, valid
        )
        self._last = output
        return output

    def _pool(self, func: Callable[..., Any], h: Tensor, args: Any, kwargs: Any) -> Tensor:
        given = dict(zip(_POOL, args, strict=False)) | kwargs
        if given.get("return_indices") or given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
            raise ValueError("a max-pool with dilation or indices cannot be redistributed; use prr=False")
        if bool((h < 0).any()):
            raise ValueError("a max-pool reads negative numbers; redistribution presumes a ReLU before it")
        self.treated["max_pool2d"] += 1
        geometry = (given["kernel_size"], given.get("stride"), given.get("padding", 0))
        ceil_mode = given.get("ceil_mode", False)
        pooled: Tensor = _Redistributed.apply(h, func, geometry, ceil_mode)  # type: ignore[no-untyped-call]
        return pooled

    @contextmanager
    def _as_module(self, module: nn.Module) -> Iterator[None]:
        name = type(module).__name__.removesuffix("Activation").lower()

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._suspended += 1

        def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            self._suspended -= 1
            z = arguments[0]
            if self._suspended or not z.requires_grad:
                return None
            found = output.detach()
            return self._with_rule(name, z, lambda z: found, module.forward)

        handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _WithRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, compute: Any, again: Any, of_output: bool, rule: Any, name: str, valid: Any
    ) -> Tensor:
        output: Tensor = compute(z)
        ctx.save_for_backward(output if of_output else z, output)
        ctx.again, ctx.rule, ctx.name, ctx.valid = again, rule, name, valid
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (relevance,) = gradients
        z, output = ctx.saved_tensors

        def derivative(relevance: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                found: Tensor = torch.autograd.grad(ctx.again(leaf), leaf, relevance)[0]
                return found

        unit = Unit(ctx.name, z, output, derivative, ctx.valid)
        return ctx.rule.propagate(relevance, unit), None, None, None, None, None, None


class _Redistributed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, func: Any, geometry: Any, ceil_mode: bool) -> Tensor:
        ctx.save_for_backward(h)
        ctx.geometry, ctx.ceil_mode = geometry, ceil_mode
        kernel, stride, padding = geometry
        pooled: Tensor = func(h, kernel, stride, padding, ceil_mode=ceil_mode)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (h,) = ctx.saved_tensors
        kernel, stride, padding = ctx.geometry
        return redistribute(gradients[0], h, kernel, stride, padding, ctx.ceil_mode), None, None, None


def _clamps_at_zero(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if name not in ("clamp", "clamp_min", "clip"):
        return False
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return not isinstance(low, Tensor) and low == 0 and high is None


def _keeps_size(read: Tensor, given: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a convolution is padded like TensorFlow's 'SAME': the side by the stride, rounded up."""
    stride = (dict(zip(_CONVOLUTION, args, strict=False)) | dict(kwargs)).get("stride", 1)
    strides = (stride, stride) if isinstance(stride, int) else tuple(stride) * (2 // len(stride))
    sides = zip(read.shape[-2:], given.shape[-2:], strides, strict=True)
    return all(-(-before // step) == after for before, after, step in sides)


def _per_token(z: Tensor, valid: Tensor) -> bool:
    return z.ndim > 2 and z.shape[1] == valid.shape[1]
