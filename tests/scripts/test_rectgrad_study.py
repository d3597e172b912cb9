"""The confounds of the RectGrad comparison, each switched, on maps written by hand."""

from __future__ import annotations

import torch

from robustkit.interpret import Attribution
from scripts.interpret_study.rectgrad import RECTGRAD, UNPADDED, Switches, level, measured


def maps() -> dict[str, Attribution]:
    inputs = torch.full((1, 1, 10, 10), 2.0)
    inputs[..., 0, 0] = -1.0
    values = torch.arange(100.0).view(1, 1, 10, 10) - 50

    def one(values: torch.Tensor) -> Attribution:
        zero = torch.zeros(1)
        return Attribution(values, zero.long(), zero, "Gradient", {"score": "logit"}, inputs)

    return {
        RECTGRAD: one(values),
        UNPADDED: one(-values),
        "Gradient": one(values),
        "Gradient × input": one(values),
    }


def test_each_switch_does_what_it_says() -> None:
    found, reference = maps(), torch.ones(1)
    raw = torch.arange(100.0).view(1, 10, 10) - 50
    product = raw * (found["Gradient"].inputs[:, 0] - 1)
    published = level(found, reference, Switches())
    assert set(published) == {RECTGRAD, "Gradient", "Gradient × input"}
    assert torch.equal(published[RECTGRAD], product.clamp(min=0))
    assert (published["Gradient"] > 0).sum() == 5  # what lies above the 95th percentile
    assert torch.equal(level(found, reference, Switches(padding="none"))[RECTGRAD], (-product).clamp(min=0))
    same = level(found, reference, Switches(sparsity="same"))
    assert all((own != 0).sum() == 5 for own in same.values())
    assert same[RECTGRAD][0, 0, 0] == product[0, 0, 0] == 100 and same["Gradient"][0, 0, 0] == 0
    multiplied = level(found, reference, Switches(product="all", sparsity="same"))
    assert torch.equal(multiplied["Gradient"], same[RECTGRAD])
    assert torch.equal(multiplied["Gradient × input"], same["Gradient × input"])  # it is a product already


def test_shares_do_not_depend_on_a_maps_scale() -> None:
    one = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    both = {"a": one, "b": 100 * one}
    sums, shares = (measured(both, Switches(scale=scale)) for scale in ("sums", "shares"))  # type: ignore[arg-type]
    for key in ("total_variation", "mass_in_frame"):
        assert abs(sums["b"][key] / sums["a"][key] - 100) < 1e-3
        assert abs(shares["b"][key] - shares["a"][key]) < 1e-5
    assert 0.5 < shares["a"]["mass_in_frame"] < 1  # 128 of 144 pixels
