"""Sanity tests of maps: layers drawn anew, other classes (P1, P2)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from robustkit.interpret import RectGrad, explain, random_logit_test, randomisation_test
from robustkit.interpret.ranking import rank_correlation
from robustkit.interpret.sanity import layers_in_order

from .nets import cnn, images, mlp
from .test_texts import TEXTS, classifier

METHODS = {"gradient": "gradient", "guided": "guided_backprop", "rectgrad": RectGrad(q=80, final="none")}


def vectors(n: int = 12) -> Tensor:
    return torch.randn(n, 1, 6, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def flat(*sizes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *mlp(*sizes)).eval()


def test_p1_the_gradient_forgets_the_network_layer_by_layer() -> None:
    net = flat(60, 60, 60, 60, 4)
    first = net[1]
    assert isinstance(first, nn.Linear)
    # Some pixels matter more than others, and only the first layer knows.
    first.weight.data *= torch.randn(
        60, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).exp()
    before = copy.deepcopy(net.state_dict())
    found = randomisation_test(net, vectors(), METHODS)
    assert found["layers"] == ["7", "5", "3", "1"] and found["kept"] == []
    gradient = found["methods"]["gradient"]
    assert abs(gradient[-1]) < 0.3 and min(gradient[:-1]) > 0.3
    assert {len(curve) for curve in found["methods"].values()} == {4}
    assert found["each"]["gradient"].shape == (4, 12)
    assert found["each"]["gradient"].mean(dim=1).tolist() == pytest.approx(gradient)
    print(found["methods"])  # RectGrad and guided backpropagation are known to keep more
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = randomisation_test(net, vectors(), {"gradient": "gradient"})
    assert again["methods"]["gradient"] == gradient
    some = randomisation_test(net, vectors(), {"gradient": "gradient"}, every=3)
    assert some["steps"] == [3, 4] and some["methods"]["gradient"] == gradient[2:]
    assert randomisation_test(net, vectors(), {"g": "gradient"}, seed=1)["methods"]["g"] != gradient


def test_p1_the_first_step_by_hand() -> None:
    net, x = flat(60, 60, 4), vectors()
    one = randomisation_test(net, x, {"gradient": "gradient"}, mode="independent")
    assert one["layers"] == ["3", "1"]

    class Same(nn.Linear):
        def reset_parameters(self) -> None:
            """Draws nothing: what stays the same correlates by 1."""

    same = Same(60, 4, dtype=torch.float64)
    same.load_state_dict(net[3].state_dict())
    found = randomisation_test(nn.Sequential(*list(net)[:3], same).eval(), x, {"gradient": "gradient"})
    assert found["methods"]["gradient"][0] == pytest.approx(1)


def test_black_pixels_are_alike_whatever_the_weights_unless_they_are_left_out() -> None:
    net, x = flat(60, 60, 4), vectors(6)
    x[:, :, :, 2:] = 0  # the map of gradient times input is 0 there
    method = {"x": "gradient_times_input"}
    plain, left_out = (
        randomisation_test(net, x, method, every=2, skip_zeros=skip)["methods"]["x"][0]
        for skip in (False, True)
    )
    assert plain > 0.9 and left_out < 0.6


def test_weights_outside_layers_are_listed_and_layers_come_in_the_order_of_calls() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 3).double(), nn.Linear(60, 8).double()
            self.shift = nn.Parameter(torch.zeros(8, dtype=torch.float64))
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(torch.relu(self.first(x.flatten(1)) + self.shift))
            return found

    net = Backwards()
    assert layers_in_order(net, vectors()) == ["first", "last"]
    found = randomisation_test(net, vectors(), {"gradient": "gradient"})
    assert found["layers"] == ["last", "first"] and found["kept"] == ["shift"]


def test_texts_are_compared_by_their_tokens() -> None:
    model = classifier("bert")
    found = randomisation_test(model, TEXTS, {"gradient": "gradient"})
    assert found["layers"][0] == "classifier" and -1 <= found["methods"]["gradient"][-1] <= 1


def test_p2_maps_of_another_class() -> None:
    net, x = cnn(), images(6)
    found = random_logit_test(net, x, METHODS)
    assert set(found) == set(METHODS) and found["gradient"] < 0.95
    head = net[6]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[1:] = head.weight[0]  # all classes alike: no map can tell them apart
    assert random_logit_test(net, x, {"g": "gradient"})["g"] == pytest.approx(1)
    two = nn.Sequential(*list(cnn())[:-1], nn.Linear(128, 2).double()).eval()
    score = random_logit_test(two, x, {"g": "gradient"})["g"]
    first, second = (explain(two, x, "gradient", target=c).map("abs_sum").flatten(1) for c in (0, 1))
    assert score == pytest.approx(rank_correlation(first, second).mean().item())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="methods is empty"):
        randomisation_test(cnn(), images(), {})
    with pytest.raises(ValueError, match="mode is 'all'"):
        randomisation_test(cnn(), images(), METHODS, mode="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one class"):
        random_logit_test(flat(60, 8, 1), vectors(), METHODS)
    with pytest.raises(ValueError, match="no layer with reset_parameters"):
        randomisation_test(nn.Flatten().eval(), images(), METHODS)
