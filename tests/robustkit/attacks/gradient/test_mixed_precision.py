"""A search in bf16 whose verdicts are those of the model's own precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import APGD, FGSM, L2, PGD, LInf, Square, strong_attack
from robustkit.attacks.gradient.search import Search, objective_of
from tests.robustkit.attacks.gradient.nets import convolutions, linear, pixels, says

EIGHT = LInf(8 / 255)


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(EIGHT),
        PGD(EIGHT, 5),
        PGD(EIGHT, 5, early_stop=False, restarts=2),
        PGD(L2(0.3), 5, targeted=True),
        APGD(EIGHT, 8, targets=3),
        Square(EIGHT, queries=20),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_success_is_what_the_model_says_in_its_own_precision(attack: Any) -> None:
    net, inputs = convolutions(), pixels(24)
    labels = says(net, inputs)
    if attack.targeted:
        labels = (labels + 1) % 5
    found = attack.run(net, inputs, labels, mixed_precision="bf16")
    assert torch.equal(found.success, (says(net, found.perturbed) == labels) == attack.targeted)
    assert 0 < found.success.sum() < 24
    assert (attack.threat.norm(found.perturbed - inputs) <= attack.threat.epsilon + 1e-6).all()
    # About as strong as in full precision.
    whole = attack.run(net, inputs, labels)
    assert abs(int(found.success.sum()) - int(whole.success.sum())) <= 4
    assert not torch.equal(found.perturbed, whole.perturbed)


class Close(nn.Module):
    """The second class is ahead by less than bf16 can tell, where the first one then is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.layer.weight = nn.Parameter(torch.tensor([[1.0, 1.0], [1.0, 1.001]]))

    def forward(self, inputs: Tensor) -> Any:
        return self.layer(inputs)


def test_what_only_bf16_takes_for_fooled_is_not_and_what_it_overlooks_is() -> None:
    net, inputs = Close(), torch.full((1, 2), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert says(net, inputs).item() == 0
    assert says(net, inputs).item() == 1
    still = PGD(LInf(0.0), 2, step_size=0.1)
    for label, fooled in ((1, False), (0, True)):
        found = still.run(net, inputs, torch.tensor([label]), mixed_precision="bf16")
        assert bool(found.success) is fooled
        assert torch.equal(found.perturbed, inputs)
    # Three looks in half precision each; what seems to be fooled is asked at once, what is left at the end.
    right = still.run(net, inputs, torch.tensor([1]), mixed_precision="bf16")
    overlooked = still.run(net, inputs, torch.tensor([0]), mixed_precision="bf16")
    assert right.forwards.tolist() == [3 + 3 + 1] and overlooked.forwards.tolist() == [3 + 1]


def test_a_higher_loss_that_full_precision_denies_gives_way_to_the_point_that_was_sure() -> None:
    def model(inputs: Tensor) -> Tensor:
        """Right at 0 and, in its own precision, at 0.3; bf16 sees a wrong class that grows."""
        size = inputs.sum(dim=1)
        sees = size if torch.is_autocast_enabled("cpu") else size.where(size < 0.25, -size)
        return torch.stack([torch.full_like(size, 0.05), sees], dim=1)

    inputs, labels = torch.zeros(2, 1), torch.tensor([0, 0])
    search = Search(model, inputs, labels, LInf(0.5), mixed_precision="bf16")
    objective = objective_of(lambda logits, own: logits[:, 1] - logits[:, 0], False)
    for size in (0.0, 0.1, 0.3):
        search.look(torch.tensor([[size], [0.01]]), search.rows(), objective)
    found = search.result()
    assert found.success.tolist() == [True, False]
    torch.testing.assert_close(found.perturbed, torch.tensor([[0.1], [0.01]]))
    torch.testing.assert_close(found.loss, torch.tensor([0.1 - 0.05, 0.01 - 0.05]))


def test_a_suite_and_functions_take_it_too() -> None:
    net, inputs = convolutions(), pixels(10)
    labels = says(net, inputs)
    suite = strong_attack(EIGHT, 5, steps=4, targets=2, queries=10)
    found = suite.run(net, inputs, labels, mixed_precision="bf16")
    assert torch.equal(found.robust, says(net, found.perturbed) == labels)
    plain = suite.run(net, inputs, labels)
    assert not torch.equal(found.perturbed, plain.perturbed)
    perturbed = suite.perturb(net, inputs, labels, mixed_precision="bf16")
    assert torch.equal(perturbed, found.perturbed)
    assert torch.equal(PGD(EIGHT, 2).perturb(net, inputs, labels, mixed_precision="no"),
                       PGD(EIGHT, 2).perturb(net, inputs, labels))  # fmt: skip


def test_a_model_that_has_16_bits_is_searched_as_it_is() -> None:
    """Under autocast batch norm of such a network would meet two dtypes."""
    net, inputs = convolutions().half(), pixels(6).half()
    labels = says(net, inputs)
    found, plain = (PGD(EIGHT, 3).run(net, inputs, labels, mixed_precision=one) for one in ("bf16", "no"))  # type: ignore[arg-type]
    assert torch.equal(found.perturbed, plain.perturbed) and torch.equal(found.forwards, plain.forwards)


def test_what_cannot_be_is_refused() -> None:
    attack = PGD(LInf(0.1))
    inputs, labels = torch.rand(3, 12), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="mixed_precision is 'fp16'; expected 'no' or 'bf16'"):
        attack.run(linear().float(), inputs, labels, mixed_precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does nothing for inputs of float64"):
        attack.run(linear(), inputs.double(), labels, mixed_precision="bf16")
    suite = strong_attack(LInf(0.1), 4)
    with pytest.raises(ValueError, match="mixed_precision is 'fp8'"):
        suite.run(linear().float(), inputs, labels, mixed_precision="fp8")  # type: ignore[arg-type]
