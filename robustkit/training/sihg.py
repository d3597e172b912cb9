"""SI-HG for networks, as step methods: with a table (R1), on all data (R2), and the practical one (R3).

A reconstruction from the published description of `Kim and Seo 2022 <https://arxiv.org/abs/2202.10523>`_,
not the authors' algorithm listing; see `robustkit.training.minimax` for the equations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.attacks.gradient.sets import PerturbationSet
from trainkit.objectives import Loss, StepContext

from .bank import PerturbationBank, TextBank
from .game import DualMode, Game
from .growing import Growing
from .methods import RobustMethod, at_least, carried_over, positive
from .minimax import extrapolated
from .views import FlipCrop

__all__ = ["SIHG", "SIHGFull", "SIHGTable"]

logger = logging.getLogger(__name__)

Gradients = dict[str, Tensor]


class SIHG(RobustMethod):
    """SI-HG for networks (R3): the perturbation steps at the newest weights, then the weights step.

    With a bank every example keeps its perturbation from epoch to epoch, so one step at a time is enough:
    that is what sets the method apart from FGSM-RS (a new random start, no bank) and from Free (a
    perturbation that belongs to a row of the batch). The optimizer is the loop's; its momentum stands for
    the table of R1.

    Two ways to order the moves. ``"gs"`` (Gauss-Seidel): ``ascent`` steps of the perturbation at the current
    weights, each at the cost of a pass to the inputs, then the weights' step; ``(2 ascent + 3) replays``
    units, 5 by default. ``"fused"``: one pass gives both gradients; ``3 replays`` units.

    Extrapolation replaces a gradient g by ``g + eta (g - g_before)``: the weights' in both orders, and the
    perturbation's in the fused one. By default g_before is forgotten at a new batch, so eta needs replays.

    Nothing is proved of this variant (signed steps, momentum, batch norm).

    Args:
        threat: The perturbations that are allowed.
        bank: Where perturbations live with ``init="bank"``; new examples start at a random point.
        init: ``"bank"``, ``"random"`` (new for each batch), ``"carry"`` (over from the last batch, row by
            row) or ``"zero"``.
        order: ``"gs"`` or ``"fused"``, see above.
        alpha: Length of a step as a share of epsilon: 0.25 to 0.5 with a bank, 1 to 1.25 with random starts.
        replays: Steps of the weights on a batch.
        ascent: Steps of the perturbation before each step of the weights, in order ``"gs"``.
        eta: Extrapolation; 0 with a momentum of 0.9 or so, 0.5 to 1 without momentum. It keeps a second copy
            of the gradient.
        reset: Whether g_before is forgotten at a new batch.
        reset_every: Epochs after which the bank starts anew; None for never.
        stop: Samples whose gap of first-order stationarity is at most this do not step; None for all step.
        mode: See `RobustMethod`, as for the rest.
        label_smoothing: See there.
        augmentation: See there; perturbations are kept in the coordinates of the original image.

    Raises:
        ValueError: A number out of its range, an unknown name, ``init="bank"`` without a bank or the reverse.

    Example:
        >>> threat = LInf(8 / 255)
        >>> bank = PerturbationBank(len(train), (3, 32, 32), 8 / 255, dtype="int8")
        >>> fit(model, SIHG(threat, bank), train, config=FitConfig(epochs=15))
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        bank: PerturbationBank | TextBank | None = None,
        *,
        init: Literal["bank", "random", "carry", "zero"] = "bank",
        order: Literal["gs", "fused"] = "gs",
        alpha: float = 0.25,
        replays: int = 1,
        ascent: int = 1,
        eta: float = 0.0,
        reset: bool = True,
        reset_every: int | None = None,
        stop: float | None = None,
        mode: DualMode = "bn_eval",
        label_smoothing: float = 0.0,
        augmentation: FlipCrop | None = None,
    ) -> None:
        super().__init__(threat, mode=mode, label_smoothing=label_smoothing, augmentation=augmentation)
        if init not in ("bank", "random", "carry", "zero"):
            raise ValueError(f"init is {init!r}; expected bank, random, carry or zero")
        if order not in ("gs", "fused"):
            raise ValueError(f"order is {order!r}; expected gs or fused")
        if (bank is None) == (init == "bank"):
            raise ValueError("a bank and init='bank' go together: give both or neither")
        if not eta >= 0:
            raise ValueError(f"eta is {eta}; expected at least 0")
        if reset_every is not None:
            at_least("reset_every", reset_every, 1)
        if eta and reset and replays == 1:
            logger.warning(
                "eta=%g does nothing with replays=1 and reset=True: there is no gradient before", eta
            )
        self.bank, self.init, self.order = bank, init, order
        self.alpha, self.eta, self.stop, self.reset = positive(alpha), eta, stop, reset
        self.replays, self.ascent = at_least("replays", replays, 1), at_least("ascent", ascent, 0)
        self.reset_every = reset_every
        self.carried: Tensor | None = None
        self.before: Gradients | None = None
        self._epoch = 0

    def play(self, game: Game, context: StepContext) -> Loss:
        """Fetches the batch's perturbations, moves them and the weights, and keeps them."""
        self._start_epoch(context.epoch)
        kept = self._kept(game, context)
        seen = kept if game.views is None else game.views.see(kept)
        delta = game.threat.project(seen, game.inputs)
        if self.reset:
            self.before = None
        move = self._gauss_seidel if self.order == "gs" else self._fused
        delta, loss = move(game, delta)
        self._keep(kept, delta, game, context)
        return loss

    def _gauss_seidel(self, game: Game, delta: Tensor) -> tuple[Tensor, Loss]:
        gap = torch.zeros(len(delta), device=delta.device)
        for _ in range(self.replays):
            for _ in range(self.ascent):
                gradient = game.gradient(delta)
                gap = game.threat.fosc(delta, gradient, game.inputs)
                delta = self._ascend(game, delta, gradient, gap)
            losses, logits = game.losses(delta)
            game.backward(losses)
            self._descend(game)
        return delta, game.report(losses, logits, {"fosc": (gap.sum(), len(gap))})

    def _fused(self, game: Game, delta: Tensor) -> tuple[Tensor, Loss]:
        earlier: Tensor | None = None
        for _ in range(self.replays):
            delta = delta.detach().requires_grad_()
            losses, logits = game.losses(delta)
            game.backward(losses)
            gradient = delta.grad
            assert gradient is not None
            direction = gradient if earlier is None else extrapolated(gradient, earlier, self.eta)
            earlier = gradient
            gap = game.threat.fosc(delta.detach(), gradient, game.inputs)
            delta = self._ascend(game, delta, direction, gap)
            self._descend(game)
        return delta, game.report(losses, logits, {"fosc": (gap.sum(), len(gap))})

    def _ascend(self, game: Game, delta: Tensor, gradient: Tensor, gap: Tensor) -> Tensor:
        moved = game.move(delta, gradient, self.alpha)
        if self.stop is None:
            return moved
        there = (gap <= self.stop).view(-1, *(1 for _ in delta.shape[1:]))
        return torch.where(there, delta.detach(), moved)

    def _descend(self, game: Game) -> None:
        """The optimizer's step, against the extrapolated gradient."""
        if self.eta:
            self.before = _extrapolate(game, self.before, self.eta)
        game.context.optimizer_step()

    # Where perturbations come from and go to

    def _start_epoch(self, epoch: int) -> None:
        if self.reset_every is not None and self.bank is not None and epoch != self._epoch:
            if epoch % self.reset_every == 0:
                self.bank.forget()
            self._epoch = epoch

    def _kept(self, game: Game, context: StepContext) -> Tensor:
        """Perturbations of the batch's originals, in their own coordinates."""
        originals = game.originals
        if self.bank is not None:
            delta = game.unpacked(self.bank.get(context.example_ids))
            new = ~self.bank.seen[context.example_ids].to(originals.device)
            if new.any():
                start = game.threat.random(originals, context.generator)
                delta[new] = start[new]
            return delta
        if self.init == "random":
            return game.threat.random(originals, context.generator)
        return carried_over(self.carried if self.init == "carry" else None, originals)

    def _keep(self, kept: Tensor, delta: Tensor, game: Game, context: StepContext) -> None:
        if self.bank is not None:
            whole = delta if game.views is None else game.views.put_back(kept, delta)
            whole = game.threat.project(whole.detach(), game.originals)
            self.bank.put(*context.exchange(game.packed(whole)))
        elif self.init == "carry" and context.real:
            self.carried = delta.detach()

    def state_dict(self) -> Mapping[str, Any]:
        """With bank, carried perturbations and the gradient before."""
        return {
            **super().state_dict(),
            "bank": None if self.bank is None else self.bank.state_dict(),
            "carried": self.carried,
            "before": self.before,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        self.carried, self.before, self._epoch = state["carried"], state["before"], state["epoch"]


class _Theory(RobustMethod):
    """What R1 and R2 share: every example's perturbation in memory, unsigned steps of length s."""

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        size: int,
        s: float,
        eta: float,
        *,
        random_start: bool,
        label_smoothing: float,
    ) -> None:
        super().__init__(threat, label_smoothing=label_smoothing)
        if not s > 0 or not eta >= 0:
            raise ValueError(f"s is {s} and eta is {eta}; expected s above 0 and eta of at least 0")
        self.size, self.s, self.eta = at_least("size", size, 1), s, eta
        self.random_start = random_start
        self.delta: Tensor | None = None
        self.seen = torch.zeros(size, dtype=torch.bool)

    def _own(self, game: Game, context: StepContext) -> Tensor:
        """The perturbations of this process's examples, drawn at their first visit."""
        if self.delta is None:
            self.delta = game.inputs.new_zeros(self.size, *game.inputs.shape[1:])
        self.delta = self.delta.to(game.inputs.device)  # a checkpoint's is on the CPU
        if context.example_ids.max() >= self.size:
            raise ValueError(f"size is {self.size}; the data set has example {context.example_ids.max()}")
        delta = self.delta[context.example_ids]
        if self.random_start and not self.seen[context.example_ids].all():
            new = ~self.seen[context.example_ids]
            delta[new] = game.threat.random(game.inputs, context.generator)[new]
        return delta

    def _ascend(self, game: Game, delta: Tensor) -> Tensor:
        return game.threat.project(delta + self.s * game.gradient(delta), game.inputs)

    def _keep(self, delta: Tensor, context: StepContext) -> Tensor:
        """Stores perturbations everywhere; returns the ids of the whole global batch."""
        ids, everyones = context.exchange(delta)
        assert self.delta is not None
        self.delta[ids] = everyones
        self.seen[ids.cpu()] = True
        return ids

    def state_dict(self) -> Mapping[str, Any]:
        """With all perturbations."""
        return {**super().state_dict(), "delta": self.delta, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.delta, self.seen = state["delta"], state["seen"]


class SIHGFull(_Theory):
    """SI-HG on all data at once (R2): extrapolated descent, then ascent at the new weights.

    ``batch_size`` must be the size of the data set. The step of the weights is the optimizer's: for the
    method as analysed take SGD without momentum and no clipping (``max_grad_norm=None``). Weight decay is the
    optimizer's too, and so explicit. Cost: 5 units an example.

    Args:
        threat: The perturbations that are allowed.
        size: Number of examples of the data set.
        s: Step along a sample's own gradient, which is not normalised.
        eta: Extrapolation; 0 is alternating gradient descent and ascent.
        random_start: Whether perturbations start at random points of the set, or at 0.
        label_smoothing: See `RobustMethod`.

    Raises:
        ValueError: A number out of its range; at a step, a batch that is not the whole data set.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        size: int,
        s: float,
        eta: float = 1.0,
        *,
        random_start: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            threat, size, s, eta, random_start=random_start, label_smoothing=label_smoothing
        )  # fmt: skip
        self.before: Gradients | None = None

    def play(self, game: Game, context: StepContext) -> Loss:
        """One step of both players."""
        if sum(context.shares) != self.size:
            raise ValueError(
                f"a batch has {sum(context.shares)} of {self.size} examples; set batch_size to the whole"
            )
        delta = self._own(game, context)
        losses, logits = game.losses(delta)
        game.backward(losses)
        self.before = _extrapolate(game, self.before, self.eta)
        context.optimizer_step()
        self._keep(self._ascend(game, delta), context)
        return game.report(losses, logits, {})

    def state_dict(self) -> Mapping[str, Any]:
        """With the gradient before."""
        return {**super().state_dict(), "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.before = state["before"]


class SIHGTable(_Theory):
    """SI-HG with a table of every example's last gradient (R1), the generalisation of SPDHG.

    Memory: ``size * number of weights``, so for small models only. The first epoch fills the table while the
    weights stay; then a step moves the weights against ``z_bar``, the examples' perturbations at the new
    weights, and takes their new gradients into the table. With b examples a step, ``z_bar = z + eta *`` (mean
    change over the b), which is SPDHG with b of n blocks. Step of the weights, clipping and decay as for
    `SIHGFull`; on a coupling of norm L steps with ``tau * s * L^2 < 1`` are safe.

    Args:
        threat: The perturbations that are allowed.
        size: Number of examples of the data set.
        s: Step along a sample's own gradient, which is not normalised.
        eta: Extrapolation; 1 is that of SPDHG.
        random_start: Whether perturbations start at random points of the set, or at 0.
        label_smoothing: See `RobustMethod`.

    Raises:
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        threat: PerturbationSet | Growing[PerturbationSet],
        size: int,
        s: float,
        eta: float = 1.0,
        *,
        random_start: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            threat, size, s, eta, random_start=random_start, label_smoothing=label_smoothing
        )  # fmt: skip
        self.table: Tensor | None = None
        self.z: Tensor | None = None
        self.z_bar: Tensor | None = None

    def play(self, game: Game, context: StepContext) -> Loss:
        """One step of the weights and of the batch's perturbations, or a part of the table's filling."""
        delta = self._own(game, context)
        filling = self.z is None
        if not filling:
            self._descend(game)
            delta = self._ascend(game, delta)
        gradients, losses, logits = self._gradients(game, delta)
        if self.table is None:
            self.table = gradients.new_zeros(self.size, gradients.shape[1])
        self.table = self.table.to(gradients.device)
        everyones = context.exchange(gradients)[1]
        ids = self._keep(delta, context)
        changes = everyones - self.table[ids]
        self.table[ids] = everyones
        if not filling:
            assert self.z is not None
            self.z = self.z.to(changes.device) + changes.sum(dim=0) / self.size
            self.z_bar = self.z + self.eta * changes.mean(dim=0)
        elif self.seen.all():
            self.z = self.z_bar = self.table.mean(dim=0)
        return game.report(losses, logits, {})

    def _descend(self, game: Game) -> None:
        """The optimizer's step against z_bar, the same in every process."""
        assert self.z_bar is not None
        start = 0
        for parameter in _trained(game.bare).values():
            end = start + parameter.numel()
            parameter.grad = self.z_bar[start:end].view_as(parameter).to(parameter, copy=True)
            start = end
        game.context.optimizer_step(weight=game.context.accelerator.num_processes)

    def _gradients(self, game: Game, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights' gradient of each example ``(n, weights)``, losses and logits."""
        parameters = list(_trained(game.bare).values())
        rows, losses, logits = [], [], []
        for row in range(len(delta)):
            one = slice(row, row + 1)
            loss, scores = game.single(delta, one)
            found = torch.autograd.grad(loss.sum(), parameters)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
            losses.append(loss.detach())
            logits.append(scores.detach())
        game.count(full_backwards=len(delta))
        return torch.stack(rows), torch.cat(losses), torch.cat(logits)

    def state_dict(self) -> Mapping[str, Any]:
        """With the table and what was made of it."""
        return {**super().state_dict(), "table": self.table, "z": self.z, "z_bar": self.z_bar}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.table, self.z, self.z_bar = state["table"], state["z"], state["z_bar"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _extrapolate(game: Game, before: Gradients | None, eta: float) -> Gradients:
    """Extrapolates the gradients that wait for the optimizer; returns them as they were, as means."""
    context = game.context
    # What waits is a sum over the global batch, divided by the number of processes.
    scale = context.accelerator.num_processes / sum(context.shares)
    now = {}
    for name, parameter in _trained(game.bare).items():
        if parameter.grad is None:
            continue
        now[name] = parameter.grad * scale
        if before is not None:
            parameter.grad.copy_(extrapolated(now[name], before[name].to(now[name]), eta) / scale)
    return now
