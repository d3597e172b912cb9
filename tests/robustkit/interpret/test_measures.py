"""Sensitivity curves, completeness, total variation, mass outside a region."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from robustkit.interpret import (
    Gradient,
    IntegratedGradients,
    completeness,
    explain,
    mass_outside,
    sensitivity_curve,
    total_variation,
)

from .nets import cnn, images, mlp
from .test_texts import TEXTS, classifier


def linear() -> nn.Sequential:
    head = nn.Linear(12, 2, dtype=torch.float64)
    with torch.no_grad():
        head.weight[0] = torch.tensor([5.0, 1, 3, 2] * 3)
        head.weight[1] = 0
        head.bias.zero_()
    return nn.Sequential(nn.Flatten(), head).eval()


def test_a_linear_score_falls_by_the_largest_terms_first() -> None:
    x = torch.ones(2, 3, 2, 2, dtype=torch.float64)
    a = explain(linear(), x, Gradient(times_input=True))
    settings: dict[str, Any] = {"fractions": (0, 0.25, 0.5, 0.75, 1), "score": "logit"}
    found = sensitivity_curve(linear(), x, a, **settings)
    assert found["scores"] == pytest.approx([33, 18, 9, 3, 0])  # three channels a pixel
    assert found["area"] == pytest.approx((33 / 2 + 18 + 9 + 3) / 4) and len(found["each"]) == 2
    least = sensitivity_curve(linear(), x, a, first="least", **settings)
    assert least["scores"] == pytest.approx([33, 30, 24, 15, 0])
    insertion = sensitivity_curve(linear(), x, a, mode="insertion", **settings)
    assert insertion["scores"] == pytest.approx([0, 15, 24, 30, 33])
    filled = sensitivity_curve(linear(), x, a, baseline=-1.0, **settings)
    assert filled["scores"][-1] == pytest.approx(-33)


def test_words_go_one_after_the_other_and_the_frame_stays() -> None:
    model = classifier("bert")
    a = explain(model, TEXTS, IntegratedGradients(steps=8), target=1)
    assert a.text is not None
    found = sensitivity_curve(model, TEXTS, a, fractions=(0, 0.4, 1), score="prob", baseline="mask")
    batch = model.encode(TEXTS)
    ids, words = batch["input_ids"].clone(), a.text.mask & ~a.text.special
    first = a.map().masked_fill(~words, -torch.inf)[0].argsort(descending=True)[:2]  # 2 of 5 words
    ids[0, first] = model.tokenizer.mask_token_id
    with torch.no_grad():
        wanted = model.logits_from_embeddings(model.embeddings(ids), **batch).softmax(dim=1)[0, 1]
    assert found["each"][0][1] == pytest.approx(wanted.item(), rel=1e-5)
    ids = torch.where(words, model.tokenizer.mask_token_id, batch["input_ids"])
    with torch.no_grad():
        end = model.logits_from_embeddings(model.embeddings(ids), **batch).softmax(dim=1)[:, 1]
    assert [row[-1] for row in found["each"]] == pytest.approx(end.tolist(), rel=1e-5)


def test_a_better_map_has_a_smaller_area() -> None:
    net, x = cnn(), images(8)
    a = explain(net, x, "integrated_gradients")
    noise = torch.randn(a.values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    areas = [sensitivity_curve(net, x, one, score="logit")["area"] for one in (a, replace(a, values=noise))]
    assert areas[0] < areas[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fractions": (0.5, 0.2)}, "ascending"), ({"fractions": (0.1,)}, "two or more"), 
     ({"mode": "x"}, "mode is 'x'"), ({"first": "x"}, "first is 'x'"), ({"inputs": images(2)}, "inputs are")],
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    net, x = cnn(), images(3)
    with pytest.raises(ValueError, match=message):
        sensitivity_curve(net, **({"inputs": x, "attribution": explain(net, x, "gradient")} | settings))


def test_completeness_is_integrated_gradients_promise_and_no_others() -> None:
    net, x = mlp(5, 16, 3, activation=nn.Tanh), images(4)[:, 0, 0, :5]
    a = explain(net, x, "integrated_gradients", score="logprob", target=1)
    found = completeness(net, x, a)
    assert a.delta is not None and found["gap"] == pytest.approx(a.delta.tolist(), abs=1e-10)
    rise = (net(x).log_softmax(1) - net(torch.zeros_like(x)).log_softmax(1))[:, 1]
    assert found["rise"] == pytest.approx(rise.tolist()) and max(found["relative"]) < 1e-6
    assert max(completeness(net, x, explain(net, x, "gradient"))["relative"]) > 0.1


def test_total_variation_and_mass_by_hand() -> None:
    maps = torch.tensor([[[1.0, 3.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert total_variation(maps).tolist() == [3 + 3 + 2 + 2, 0]
    assert total_variation(maps, relative=True).tolist() == pytest.approx([10 / 6, 0])
    assert torch.allclose(total_variation(7 * maps, relative=True), total_variation(maps, relative=True))
    mask = torch.tensor([[True, False], [False, False]])
    assert mass_outside(maps, mask).tolist() == [5, 0]
    assert mass_outside(maps, mask, relative=True).tolist() == pytest.approx([5 / 6, 0])
    each = torch.stack([mask, ~mask])
    assert mass_outside(maps, each).tolist() == [5, 0] and mass_outside(maps[:1], ~mask).tolist() == [1]
    for bad in (mask.float(), mask[:1]):
        with pytest.raises(ValueError, match="mask is"):
            mass_outside(maps, bad)
