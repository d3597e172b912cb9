"""Square: a random search over square windows that asks for logits only.

Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.attacks.gradient.losses import Loss, margin
from robustkit.attacks.gradient.search import Attack, Rows, Search, check_count, objective_of
from robustkit.attacks.gradient.sets import L2, LInf, PerturbationSet

__all__ = ["Square", "square_pattern", "window_share"]

# Of 10,000 queries, those after which the share of changed pixels is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def window_share(query: int, queries: int, first: float = 0.8) -> float:
    """The share of an image that the window of a query covers.

    Args:
        query: Number of the query, from 0.
        queries: Queries of the attack; the schedule of the paper for 10,000 is stretched to it.
        first: Share at the start.

    Returns:
        The first share, halved up to nine times.
    """
    of_ten_thousand = query * 10_000 // queries
    return float(first / 2 ** sum(of_ten_thousand > bound for bound in _HALVINGS))


def square_pattern(height: int, width: int) -> Tensor:
    """The bump that the l2 attack adds: rings around the middle, 1 / (r + 1)^2 and all rings further out.

    Args:
        height: Rows.
        width: Columns.

    Returns:
        float64 ``(height, width)``, positive, highest in the middle, of Euclidean norm 1.
    """
    rows, columns = torch.arange(height), torch.arange(width)
    ring = torch.maximum((rows - height // 2).abs()[:, None], (columns - width // 2).abs()[None, :])
    weights = 1 / torch.arange(1, int(ring.max()) + 2, dtype=torch.float64).square()
    bump: Tensor = weights.flip(0).cumsum(0).flip(0)[ring]
    unit: Tensor = bump / bump.norm()
    return unit


@dataclass(frozen=True)
class Square(Attack):
    """Random squares of ever smaller size, kept where they raise the loss; no gradient is asked for.

    It finds what gradient attacks miss where a model hides its gradients. Each query is one forward pass;
    images that fool the model leave the batch.

    Args:
        threat: `LInf` or `L2`.
        queries: Most images that are shown for each image.
        loss: What is raised.
        targeted: Whether labels are classes that the model shall say; its loss is then lowered.
        restarts: Runs; each goes on with what does not fool the model yet.
        share: Share of an image's pixels that the first windows cover.

    Shape:
        inputs ``(n, channels, height, width)`` and labels ``(n,)`` to perturbed inputs of the same shape.

    Raises:
        ValueError: Another threat, inputs that are not images, queries or restarts below 1, or a share
            outside (0, 1].

    Example:
        >>> result = Square(LInf(8 / 255), queries=5000).run(classifier, pixels, labels, seed=0)
        >>> result.forwards.float().mean()  # queries an image
    """

    threat: PerturbationSet
    queries: int = 5000
    loss: Loss = margin
    targeted: bool = False
    restarts: int = 1
    share: float = 0.8

    def __post_init__(self) -> None:
        check_count("queries", self.queries)
        check_count("restarts", self.restarts)
        if not isinstance(self.threat, LInf | L2):
            raise ValueError(f"threat is {self.threat!r:.100}; Square knows LInf and L2")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected a share of the pixels in (0, 1]")

    def _search(self, search: Search, generator: torch.Generator) -> None:
        inputs = search.rows().inputs
        if inputs.ndim != 4:
            raise ValueError(f"inputs are {tuple(inputs.shape)}; Square needs (n, channels, height, width)")
        draws = _Draws(inputs, generator)
        for _ in range(self.restarts):
            self._run(search, draws)
            if search.fooled.all():
                return

    def _run(self, search: Search, draws: _Draws) -> None:
        objective = objective_of(self.loss, self.targeted)
        step = _window if isinstance(self.threat, LInf) else _bumps
        start = _stripes if isinstance(self.threat, LInf) else _tiles
        rows = search.left()
        delta = rows.threat.project(start(rows, draws), rows.inputs)
        loss = search.look(delta, rows, objective)
        for query in range(1, self.queries):
            on = ~search.fooled[rows.index]
            if not on.all():
                rows, delta, loss = rows.take(on), delta[on], loss[on]
                if len(delta) == 0:
                    return
            share = window_share(query, self.queries, self.share)
            trial = rows.threat.project(step(delta, rows, draws, share), rows.inputs)
            found = search.look(trial, rows, objective)
            better = found > loss
            delta = torch.where(better[:, None, None, None], trial, delta)
            loss = torch.where(better, found, loss)


class _Draws:
    """Random numbers for all n images, so that those of one do not depend on which others are left."""

    def __init__(self, inputs: Tensor, generator: torch.Generator) -> None:
        self._like = inputs
        self._generator = generator

    def signs(self, rows: Rows, *shape: int) -> Tensor:
        """-1 or 1, ``(m, *shape)``."""
        return self._uniform(rows, *shape).sub(0.5).sign().to(rows.inputs)

    def places(self, rows: Rows, count: int) -> Tensor:
        """Whole numbers from 0 below ``count``, int64 ``(m,)``."""
        return (self._uniform(rows) * count).long().clamp(max=count - 1)

    def _uniform(self, rows: Rows, *shape: int) -> Tensor:
        n, device = len(self._like), self._generator.device
        return torch.rand(n, *shape, generator=self._generator, device=device).to(self._like.device)[
            rows.index
        ]


def _stripes(rows: Rows, draws: _Draws) -> Tensor:
    """Columns of -epsilon or epsilon in each channel."""
    _, channels, height, width = rows.inputs.shape
    return (draws.signs(rows, channels, 1, width) * rows.threat.radius(rows.inputs)).expand(
        -1, -1, height, -1
    )


def _window(delta: Tensor, rows: Rows, draws: _Draws, share: float) -> Tensor:
    """A square of -epsilon or epsilon in each channel at a random place."""
    _, channels, height, width = delta.shape
    side = max(round((share * height * width) ** 0.5), 1)
    side = min(side, height, width)
    inside = _inside(delta, draws.places(rows, height - side + 1), draws.places(rows, width - side + 1), side)
    colours = draws.signs(rows, channels, 1, 1) * rows.threat.radius(delta)
    return torch.where(inside, colours, delta)


def _tiles(rows: Rows, draws: _Draws) -> Tensor:
    """Five by five bumps of random sign in each channel, of norm epsilon together."""
    _, channels, height, width = rows.inputs.shape
    side = max(min(height, width) // 5, 1)
    down, across = -(-height // side), -(-width // side)
    signs = draws.signs(rows, channels, down, across)
    bump = square_pattern(side, side).to(rows.inputs)
    tiles = torch.einsum("ncij,hw->ncihjw", signs, bump).reshape(*signs.shape[:2], down * side, across * side)
    return rows.threat.radius(rows.inputs) * rows.threat.steepest(tiles[..., :height, :width])


def _bumps(delta: Tensor, rows: Rows, draws: _Draws, share: float) -> Tensor:
    """Empties one window and gives what it held, and what is left of epsilon, to a bump in another."""
    _, channels, height, width = delta.shape
    side = max(round((share * height * width) ** 0.5), 3) // 2 * 2 + 1
    side = min(side, height, width)
    top, left = draws.places(rows, height - side + 1), draws.places(rows, width - side + 1)
    here = _inside(delta, top, left, side)
    there = _inside(delta, draws.places(rows, height - side + 1), draws.places(rows, width - side + 1), side)
    half = square_pattern(side // 2, side) if side > 1 else torch.zeros(0, side, dtype=torch.float64)
    pattern = torch.cat([half, -square_pattern(side - side // 2, side)])
    upright = draws.signs(rows, 1, 1, 1) > 0
    bump = torch.where(
        upright, _placed(pattern, top, left, delta), _placed(pattern.T.contiguous(), top, left, delta)
    )
    bump = _of_norm_one(bump) * draws.signs(rows, channels, 1, 1) + _of_norm_one(delta.where(here, 0))
    unused = (rows.threat.radius(delta).square() - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(
        min=0
    )
    held = delta.where(here | there, 0).square().sum(dim=(2, 3), keepdim=True)
    bump = _of_norm_one(bump) * (held + unused / channels).sqrt()
    return delta.where(~(here | there), 0) + bump


def _inside(delta: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Which pixels a window covers, bool ``(m, 1, height, width)``."""
    row = torch.arange(delta.shape[2], device=delta.device)[None, :, None] - top[:, None, None]
    column = torch.arange(delta.shape[3], device=delta.device)[None, None, :] - left[:, None, None]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[:, None]


def _placed(pattern: Tensor, top: Tensor, left: Tensor, delta: Tensor) -> Tensor:
    """A pattern with its corner at the places, 0 elsewhere, ``(m, 1, height, width)``."""
    side = len(pattern)
    row = (torch.arange(delta.shape[2], device=delta.device) - top[:, None]).clamp(0, side - 1)
    column = (torch.arange(delta.shape[3], device=delta.device) - left[:, None]).clamp(0, side - 1)
    values = pattern.to(delta)[row[:, :, None], column[:, None, :]][:, None]
    return values.where(_inside(delta, top, left, side), 0)


def _of_norm_one(images: Tensor) -> Tensor:
    """Each channel divided by its Euclidean norm."""
    size = images.square().sum(dim=(2, 3), keepdim=True).sqrt()
    return images / size.where(size > 0, 1)
