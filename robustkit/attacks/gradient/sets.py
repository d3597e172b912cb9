"""What an attack may add to inputs: balls of a norm, intersected with the box of valid values.

All methods work sample by sample: the first dimension of every tensor counts samples, the others are the
sample's own and any number of them will do. Results have dtype and device of the perturbation or gradient.
Nothing here calls a model or waits for a GPU, but for the constructors and `L2` with a box.

Source of projections, steps and the gap: `Kim and Seo 2022 <https://arxiv.org/abs/2202.10523>`_ and the
published code of Wang et al., "On the Convergence and Robustness of Adversarial Training", ICML 2019; the
exact projections on ball and box follow from the conditions of Karush, Kuhn and Tucker.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["L1", "L2", "EmbeddingBall", "LInf", "PerturbationSet"]

Box = tuple[float, float]
PIXELS: Box = (0.0, 1.0)
"""The box of pixels: black and white."""


class PerturbationSet(Protocol):
    """The perturbations that are allowed: all that attacks and training ask of a threat model.

    Shape:
        ``delta``, ``gradient`` and ``inputs`` are ``(n, ...)`` floats of one shape. Inputs lie in the box;
        where they are not given, the box is left out.
    """

    @property
    def box(self) -> Box | None:
        """Lowest and highest value of an input, None for no limit."""

    def radius(self, like: Tensor) -> Tensor:
        """Epsilon in a shape that broadcasts against ``like`` ``(n, ...)``, in its dtype."""

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The point of the set that is nearest to ``delta`` in the Euclidean norm."""

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 with the largest inner product with the gradient; 0 where that is 0."""

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The point of the set with the largest inner product with the gradient."""

    def random(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A point drawn uniformly from the ball, then projected on the box; without inputs' gradient."""

    def norm(self, delta: Tensor) -> Tensor:
        """The norm of each sample's perturbation, ``(n,)``."""

    def fosc(self, delta: Tensor, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """First-order stationarity: max over d in the set of <d - delta, gradient>, ``(n,)``, at least 0."""

    def take(self, rows: Tensor) -> Self:
        """The set of some samples: epsilon of the rows given by an index or a mask, where it has rows."""

    def scaled(self, share: float) -> Self:
        """The set whose radius is a share of this one's."""


@dataclass(frozen=True)
class _Ball:
    epsilon: float | Tensor
    box: Box | None = PIXELS

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon, axes=1)
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ValueError(f"box is {self.box}; expected (lowest, highest) value of an input, or None")

    def radius(self, like: Tensor) -> Tensor:
        return _broadcast(self.epsilon, like)

    def random(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        drawn = self._drawn(inputs.detach(), generator)
        return self.project((self.radius(drawn) * drawn).to(inputs.dtype), inputs.detach())

    def fosc(self, delta: Tensor, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        return _gap(self.linear_max(gradient, inputs), delta, gradient)

    def take(self, rows: Tensor) -> Self:
        return self if isinstance(self.epsilon, float | int) else replace(self, epsilon=self.epsilon[rows])

    def scaled(self, share: float) -> Self:
        # Not by the constructor, which has warned already of an epsilon in the wrong unit.
        found = copy.copy(self)
        object.__setattr__(found, "epsilon", share * self.epsilon)
        return found

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _drawn(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _room(self, inputs: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """How far inputs may go down (at most 0) and up (at least 0) inside the box."""
        if self.box is None or inputs is None:
            return None
        return (self.box[0] - inputs).clamp(max=0), (self.box[1] - inputs).clamp(min=0)


@dataclass(frozen=True)
class LInf(_Ball):
    """Every number of an input changes by at most epsilon.

    Args:
        epsilon: Radius in units of the inputs, for pixels in [0, 1] 8/255 and not 8; at least 0, one number
            or ``(n,)`` for a radius for each sample.
        box: Lowest and highest value that an input may have; None for no limit.

    Raises:
        ValueError: Epsilon is negative, NaN or of another shape; a box that is empty.

    Warns:
        UserWarning: Epsilon is larger than the box, as when 8 is given for 8/255.

    Example:
        >>> ball = LInf(8 / 255)
        >>> delta = ball.project(delta + 2 / 255 * ball.steepest(gradient), inputs)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box is not None and _largest(self.epsilon) > self.box[1] - self.box[0]:
            shown = f"{_largest(self.epsilon):g}"
            warnings.warn(
                f"epsilon is {shown} and inputs lie between {self.box[0]:g} and {self.box[1]:g}, so all is "
                "allowed; pixels are meant in [0, 1]: 8/255, not 8",
                stacklevel=3,
            )

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Clamps to [-epsilon, epsilon] and to the box: the nearest point, as both are boxes."""
        low, high = self._limits(delta, inputs)
        return torch.minimum(torch.maximum(delta, low), high)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient's signs."""
        return gradient.sign()

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """A corner: each number as far as ball and box allow in the direction of the gradient."""
        low, high = self._limits(gradient, inputs)
        return torch.where(gradient > 0, high, torch.where(gradient < 0, low, torch.zeros_like(gradient)))

    def norm(self, delta: Tensor) -> Tensor:
        """The largest absolute value, ``(n,)``."""
        return delta.abs().amax(dim=_own(delta))

    def _limits(self, like: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        epsilon, room = self.radius(like), self._room(inputs)
        if room is None:
            return -epsilon, epsilon
        return torch.maximum(room[0], -epsilon), torch.minimum(room[1], epsilon)

    def _drawn(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        return 2 * _uniform(inputs, generator) - 1


@dataclass(frozen=True)
class L2(_Ball):
    """The Euclidean norm of what is added to an input is at most epsilon.

    Projections on ball and box together are exact up to rounding. They cost some passes over the numbers,
    mostly three to five steps of Newton's method; on a GPU each waits for the one before.

    Args:
        epsilon: Radius in units of the inputs, at least 0: one number or ``(n,)``.
        box: Lowest and highest value that an input may have; None for no limit.

    Raises:
        ValueError: Epsilon is negative, NaN or of another shape; a box that is empty.

    Example:
        >>> ball = L2(0.5)
        >>> ball.norm(ball.random(inputs))
    """

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Shrinks to norm epsilon; with a box, the nearest point of ball and box together."""
        room = self._room(inputs)
        if room is None:
            return delta * _shrink(_euclidean(delta, _own(delta)), self.radius(delta))
        return self._fill(delta, room, once=True)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its norm."""
        return _unit(gradient, _own(gradient))

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Epsilon times the unit gradient; what the box cuts off is spent on the other numbers."""
        room = self._room(inputs)
        if room is None:
            return self.radius(gradient) * self.steepest(gradient)
        return self._fill(gradient, room, once=False)

    def norm(self, delta: Tensor) -> Tensor:
        """The Euclidean norm, ``(n,)``."""
        return _euclidean(delta, _own(delta)).flatten()

    def _fill(self, vector: Tensor, room: tuple[Tensor, Tensor], once: bool) -> Tensor:
        """clip(t * vector, box) with the largest t, at most 1 if ``once``, whose norm is at most epsilon.

        That is the optimality condition of both projection (t <= 1) and linear maximization (t free).
        """
        if vector.numel() == 0:
            return vector
        wide, signs = torch.promote_types(vector.dtype, torch.float32), vector.sign()
        # No number of a vector in the ball is beyond its radius, and a box may have no limit on one side.
        size = vector.abs().to(wide)
        radius = self.radius(size)
        low, high = room[0].to(wide).maximum(-radius), room[1].to(wide).minimum(radius)
        size, space = size.flatten(1), torch.maximum(signs * low, signs * high).flatten(1)
        epsilon = self.radius(size)
        found = size.minimum(space)
        inside = (_euclidean(found, (1,)) <= epsilon) & once
        if not bool(inside.all()):
            clipped = found
            scale = size.amax(dim=1, keepdim=True)
            # Gradients of sure models are below the root of the smallest float; beside larger numbers they
            # are 0.
            size = size / scale.where(scale > 0, 1)
            size = nn.functional.threshold(size, torch.finfo(wide).tiny ** 0.5, 0)
            t = _longest(size, space, epsilon, scale if once else torch.finfo(wide).max)
            found = (t * size).minimum(space)
            found = found * _shrink(_euclidean(found, (1,)), epsilon)  # rounding
            found = torch.where(inside, clipped, found)
        return signs * found.to(vector.dtype).view_as(vector)

    def _drawn(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        return _in_euclidean_ball(inputs, _own(inputs), generator, math.prod(inputs.shape[1:]))


@dataclass(frozen=True)
class L1(_Ball):
    """Absolute values of what is added to an input sum to at most epsilon.

    Projections on ball and box together are exact and cost a sort of each sample's numbers.

    Args:
        epsilon: Radius in units of the inputs, at least 0: one number or ``(n,)``.
        box: Lowest and highest value that an input may have; None for no limit.

    Raises:
        ValueError: Epsilon is negative, NaN or of another shape; a box that is empty.

    Example:
        >>> ball = L1(12.0)
        >>> ball.linear_max(gradient, inputs)
    """

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The nearest point: absolute values lowered by one threshold, then cut at the box.

        Sizes min((|delta| - s)+, room) sum to epsilon for one s; the sum is linear in s between the points
        |delta| - room and |delta|.
        """
        if delta.numel() == 0:
            return delta
        wide = torch.promote_types(delta.dtype, torch.float32)
        size = delta.flatten(1).abs().to(wide)
        space = self._space(delta, inputs).to(wide).minimum(size)
        # The slope of the sum changes by -1 where a number leaves the box, by +1 where it becomes 0.
        points, order = torch.cat([size - space, size], dim=1).sort(dim=1)
        change = torch.cat([-torch.ones_like(size), torch.ones_like(size)], dim=1).gather(1, order)
        slope = change.cumsum(dim=1)
        steps = points.diff(dim=1) * slope[:, :-1]
        sums = space.sum(dim=1, keepdim=True) + torch.cat(
            [torch.zeros_like(points[:, :1]), steps.cumsum(dim=1)], dim=1
        )
        epsilon = self.radius(size)
        last = (sums >= epsilon).sum(dim=1, keepdim=True).clamp(min=1) - 1
        at, above, falls = points.gather(1, last), sums.gather(1, last), -slope.gather(1, last)
        threshold = at + ((above - epsilon) / falls.clamp(min=1)).clamp(min=0)
        inside = space.sum(dim=1, keepdim=True) <= epsilon
        found = torch.where(inside, space, (size - threshold).clamp(min=0).minimum(space))
        found = found * _shrink(found.sum(dim=1, keepdim=True), epsilon)  # rounding
        return delta.sign() * found.to(delta.dtype).view_as(delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient's largest number, 0 elsewhere."""
        flat = gradient.flatten(1)
        top = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).view_as(gradient)

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Epsilon is spent on the largest numbers of the gradient, each as far as the box allows."""
        size, order = gradient.flatten(1).abs().sort(dim=1, descending=True)
        epsilon = self.radius(size)
        space = self._space(gradient, inputs).minimum(epsilon).gather(1, order).where(size > 0, 0)
        spent = (epsilon - (space.cumsum(dim=1) - space)).clamp(min=0).minimum(space)
        return gradient.sign() * torch.empty_like(spent).scatter(1, order, spent).view_as(gradient)

    def norm(self, delta: Tensor) -> Tensor:
        """The sum of absolute values, ``(n,)``."""
        return delta.abs().sum(dim=_own(delta))

    def _space(self, vector: Tensor, inputs: Tensor | None) -> Tensor:
        """How far each number may go in the vector's direction, ``(n, numbers)``."""
        room = self._room(inputs)
        if room is None:
            return torch.full_like(vector.flatten(1), math.inf)
        return torch.where(vector > 0, room[1], -room[0]).flatten(1)

    def _drawn(self, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        # Gaps between sorted uniform numbers, in other words exponentials divided by their sum: the last gap
        # is the distance from the ball's surface.
        waits = -torch.log1p(-_uniform(inputs, generator))
        shape = (len(inputs),) + (1,) * (inputs.ndim - 1)
        rest = -torch.log1p(-_uniform(inputs.new_empty(shape), generator))
        signs = _uniform(inputs, generator).sub(0.5).sign()
        return signs * waits / (waits.sum(dim=_own(waits), keepdim=True) + rest)


@dataclass(frozen=True)
class EmbeddingBall:
    """Euclidean balls around the embeddings of a text: one for each token, or one for the whole text.

    Tokens that the mask leaves out, such as padding and special tokens, are never changed.

    Args:
        epsilon: Radius, at least 0: one number, ``(n,)``, or ``(n, T)`` for tokens. See also `relative_to`.
        per: ``"token"``: the vector of every token changes by at most epsilon. ``"sentence"``: all changes of
            a text together have at most that Frobenius norm, as in FreeLB.
        mask: ``(n, T)``, true where a token may change; None for all. See `for_mask`.

    Raises:
        ValueError: Epsilon is negative, NaN or of another shape; an unknown ``per``; a mask that is not
            ``(n, T)``.

    Shape:
        Perturbations, gradients and embeddings are ``(n, T, d)``.

    Example:
        >>> ball = EmbeddingBall(0.2).relative_to(embeddings).for_mask(attention_mask)
        >>> delta = ball.random(embeddings)
    """

    epsilon: float | Tensor
    per: Literal["token", "sentence"] = "token"
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.per not in ("token", "sentence"):
            raise ValueError(f"per is {self.per!r}; expected 'token' or 'sentence'")
        _check_epsilon(self.epsilon, axes=2 if self.per == "token" else 1)
        if self.mask is not None and self.mask.ndim != 2:
            raise ValueError(f"mask is {tuple(self.mask.shape)}; expected (n, T)")

    def for_mask(self, mask: Tensor) -> EmbeddingBall:
        """The ball for a batch: only tokens where ``mask`` ``(n, T)`` is true or 1 may change."""
        return replace(self, mask=mask.bool())

    def relative_to(self, embeddings: Tensor) -> EmbeddingBall:
        """The ball whose radius is epsilon times the norm of a token's (or the text's) embedding.

        Args:
            embeddings: ``(n, T, d)``. The mask is heeded, so bind it first for ``per="sentence"``.
        """
        sizes = _euclidean(self._masked(embeddings.detach()), self._dims)
        return replace(self, epsilon=self.radius(embeddings).mul(sizes).flatten(1).squeeze(1))

    @property
    def box(self) -> None:
        """None: embeddings have no limits."""
        return None

    @property
    def _dims(self) -> tuple[int, ...]:
        return (-1,) if self.per == "token" else (-2, -1)

    def radius(self, like: Tensor) -> Tensor:
        """Epsilon as ``(n, T, 1)``, ``(n, 1, 1)`` or a number, in the dtype of ``like``."""
        return _broadcast(self.epsilon, like)

    def project(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Shrinks to norm epsilon what is longer; 0 where the mask is."""
        delta = self._masked(delta)
        return delta * _shrink(_euclidean(delta, self._dims), self.radius(delta))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by the norm of its token or text."""
        return _unit(self._masked(gradient), self._dims)

    def linear_max(self, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Epsilon times `steepest`."""
        return self.radius(gradient) * self.steepest(gradient)

    def random(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in each ball; the mask is heeded, so that padding does not shorten what is drawn."""
        inputs = inputs.detach()
        numbers: float | Tensor = float(inputs.shape[-1])
        if self.per == "sentence":
            there = torch.ones_like(inputs[..., 0]) if self.mask is None else self.mask.to(inputs)
            numbers = numbers * there.sum(dim=1).clamp(min=1)[:, None, None].float()
        drawn = _in_euclidean_ball(self._masked(inputs), self._dims, generator, numbers, self._masked)
        return self.project((self.radius(drawn) * drawn).to(inputs.dtype))

    def norm(self, delta: Tensor) -> Tensor:
        """The text's Frobenius norm or the largest norm of its tokens, ``(n,)``."""
        return _euclidean(self._masked(delta), self._dims).flatten(1).amax(dim=1)

    def fosc(self, delta: Tensor, gradient: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The gap of all balls of a text together, ``(n,)``."""
        return _gap(self.linear_max(gradient), self._masked(delta), gradient)

    def take(self, rows: Tensor) -> EmbeddingBall:
        """The balls of some texts."""
        epsilon = self.epsilon if isinstance(self.epsilon, float | int) else self.epsilon[rows]
        return replace(self, epsilon=epsilon, mask=None if self.mask is None else self.mask[rows])

    def scaled(self, share: float) -> EmbeddingBall:
        """The balls whose radii are a share of these."""
        return replace(self, epsilon=share * self.epsilon)

    def _masked(self, vectors: Tensor) -> Tensor:
        if self.mask is None:
            return vectors
        if vectors.shape[:2] != self.mask.shape:
            raise ValueError(f"vectors are {tuple(vectors.shape)}, the mask is {tuple(self.mask.shape)}")
        return vectors.masked_fill(~self.mask.to(vectors.device, torch.bool)[..., None], 0)


# Helpers ----------------------------------------------------------------------------------------------------


def _check_epsilon(epsilon: float | Tensor, axes: int) -> None:
    if isinstance(epsilon, Tensor):
        fits = 1 <= epsilon.ndim <= axes and bool((epsilon >= 0).all())
        shown = f"a tensor {tuple(epsilon.shape)}" + (f" from {epsilon.min():g}" if epsilon.numel() else "")
    else:
        fits, shown = epsilon >= 0, repr(epsilon)
    if not fits:
        shapes = "(n,)" if axes == 1 else "(n,) or (n, T)"
        raise ValueError(f"epsilon is {shown}; expected a number of at least 0, or such numbers {shapes}")


def _largest(epsilon: float | Tensor) -> float:
    return max(epsilon.tolist(), default=0.0) if isinstance(epsilon, Tensor) else epsilon


def _broadcast(epsilon: float | Tensor, like: Tensor) -> Tensor:
    if not isinstance(epsilon, Tensor):
        return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)
    if epsilon.shape[0] != like.shape[0]:
        raise ValueError(f"epsilon is for {len(epsilon)} samples, there are {len(like)}")
    return epsilon.to(like).reshape(epsilon.shape + (1,) * (like.ndim - epsilon.ndim))


def _own(tensor: Tensor) -> tuple[int, ...]:
    """All dimensions but that of the samples."""
    return tuple(range(1, tensor.ndim))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [0, 1), in at least 32 bits, drawn where the generator is."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device, dtype=dtype).to(like.device)


def _in_euclidean_ball(
    like: Tensor, dims: tuple[int, ...], generator: torch.Generator | None, numbers: float | Tensor,
    keep: Callable[[Tensor], Tensor] = lambda vectors: vectors,
) -> Tensor:  # fmt: skip
    """Uniform in the unit balls over ``dims``: a normal direction, a uniform number's root as length."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    device = like.device if generator is None else generator.device
    normal = torch.randn(like.shape, generator=generator, device=device, dtype=dtype).to(like.device)
    direction = _unit(keep(normal), dims)
    lengths: Tensor = _uniform(direction.amax(dim=dims, keepdim=True), generator) ** (1 / numbers)
    return direction * lengths


def _euclidean(vectors: Tensor, dims: tuple[int, ...]) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(vectors, dim=dims, keepdim=True)
    return size


def _longest(size: Tensor, space: Tensor, epsilon: Tensor, limit: Tensor | float) -> Tensor:
    """The largest t, at most ``limit``, for which min(t * size, space) has a norm of at most epsilon.

    Newton's method for u = t^2 on f(u) = sum min(u size^2, space^2) = epsilon^2. f is concave, piecewise
    linear and rising, so that from u = (epsilon / |size|)^2, where f is at most epsilon^2, steps go up and
    never past the solution. With what is missing, r, and the slope m before and after a step, concavity gives
    r' / r + m' / m <= 1, hence r' m' <= r m / 4. Numbers that have met their space stay there, and a step
    after which no other has met it is the last one, in floats too: the loop ends.

    Args:
        size: ``(n, numbers)``, at least 0.
        space: ``(n, numbers)``, at least 0.
        epsilon: ``()`` or ``(n, 1)``.
        limit: ``(n, 1)`` or a number.

    Returns:
        ``(n, 1)``. Where the ball has room for all of the space, some t that fills it.
    """
    slopes, most = size.square(), space.square()
    slope, met = slopes.sum(dim=1, keepdim=True), torch.zeros_like(size[:, :1])
    t = met
    while True:
        ahead = ((epsilon.square() - met).clamp(min=0) / slope.where(slope > 0, 1)).sqrt().clamp(max=limit)
        ahead = ahead.where(slope > 0, t)
        if not bool((ahead > t).any()):
            return t
        t = t.maximum(ahead)
        there = (t * size).sub_(space).sign_().clamp_(min=0)  # comparisons take several times as long
        slope = torch.addcmul(slopes, slopes, there, value=-1).sum(dim=1, keepdim=True)
        met = (most * there).sum(dim=1, keepdim=True)


def _unit(vectors: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Vectors of norm 1, 0 where they are 0; scaled first, because squares of small gradients are 0."""
    scale = vectors.abs().amax(dim=dims, keepdim=True)
    vectors = vectors / scale.where(scale > 0, 1)
    size = _euclidean(vectors, dims)
    return vectors / size.where(size > 0, 1)


def _shrink(size: Tensor, epsilon: Tensor) -> Tensor:
    """The factor, at most 1, that makes sizes epsilon."""
    return (epsilon / size.where(size > 0, 1)).clamp(max=1)


def _gap(best: Tensor, delta: Tensor, gradient: Tensor) -> Tensor:
    return ((best - delta) * gradient).sum(dim=_own(delta)).clamp(min=0)
