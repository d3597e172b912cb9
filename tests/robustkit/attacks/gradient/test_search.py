"""What all attacks share: models left as they were, precisions and layouts, bad input."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from robustkit.attacks.gradient import APGD, FGSM, L2, PGD, Attack, LInf, Square, dlr, judging
from robustkit.classifiers import ImageClassifier
from tests.robustkit.attacks.gradient.nets import convolutions, linear, pixels, says

BALL = LInf(0.03)
ATTACKS: dict[str, Attack] = {
    "FGSM": FGSM(BALL),
    "PGD": PGD(BALL, steps=3),
    "PGD, l2, all steps": PGD(L2(0.3), steps=3, early_stop=False),
    "APGD": APGD(BALL, steps=4),
    "APGD-DLR": APGD(BALL, steps=4, loss=dlr),
    "APGD-T": APGD(BALL, steps=2, targets=2),
    "Square": Square(BALL, queries=10),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def case(n: int = 6) -> tuple[nn.Sequential, Tensor, Tensor]:
    model, x = convolutions(), pixels(n)
    return model, x, says(model, x)


# The model is left as it was --------------------------------------------------------------------------------


@each_attack
def test_a_model_in_training_mode_is_attacked_in_evaluation_mode_and_nothing_moves(attack: Attack) -> None:
    """Issue 5, item 6: batch normalization in training mode; its statistics never move."""
    model, x, y = case()
    model[1].eval()  # a part that its owner keeps in evaluation mode
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grads = [(weight.requires_grad, weight.grad) for weight in model.parameters()]
    assert any(modes) and not all(modes)
    found = attack.run(model, x, y)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for weight, (wanted, gradient) in zip(model.parameters(), grads, strict=True):
        assert weight.requires_grad is wanted and weight.grad is gradient
    assert not model._forward_hooks and not model._backward_hooks
    # In training mode dropout and batch statistics would have made another attack.
    assert torch.equal(found.perturbed, attack.run(model.eval(), x, y).perturbed)


@each_attack
def test_random_states_are_left_alone(attack: Attack) -> None:
    model, x, y = case()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    want = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    attack.perturb(model, x, y)
    assert (torch.rand(1), np.random.rand(), random.random()) == want


def test_modes_come_back_after_an_error() -> None:
    model, x, y = case()

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        FGSM(BALL).perturb(broken, x, y)
    assert all(module.training for module in broken.modules())


def test_judging_restores_each_module_by_itself() -> None:
    model = convolutions()
    model[1].eval()
    with judging(model):
        assert not any(module.training for module in model.modules()) and torch.is_grad_enabled()
    assert model.training and model[0].training and not model[1].training


@each_attack
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_whatever_the_caller_does(attack: Attack, off: Callable[[], Any]) -> None:
    model, x, y = case()
    want = attack.perturb(model, x, y)
    with off():
        inside = x.clone()
        assert torch.equal(attack.perturb(model, inside, y.clone()), want)


@each_attack
def test_inputs_are_neither_changed_nor_part_of_a_graph(attack: Attack) -> None:
    """Issue 5, item 6: non-leaf inputs, and inputs that want gradients."""
    model, x, y = case()
    want = attack.perturb(model, x, y)
    leaf = x.clone().requires_grad_()
    for given in (leaf, leaf * 1):
        found = attack.perturb(model, given, y)
        assert torch.equal(found, want) and not found.requires_grad
    assert leaf.grad is None and torch.equal(leaf, x)


# Precisions, layouts, outputs -------------------------------------------------------------------------------


@each_attack
def test_results_have_the_inputs_dtype_and_layout(attack: Attack) -> None:
    model, x, y = case()
    last = x.to(memory_format=torch.channels_last)
    found = attack.perturb(model.to(memory_format=torch.channels_last), last, y)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float32
    assert (attack.threat.norm(found - x) <= attack.threat.epsilon + 1e-6).all()  # type: ignore[attr-defined]
    assert found.min() >= 0 and found.max() <= 1


@each_attack
def test_bfloat16_stays_inside_the_set_and_is_judged_as_returned(attack: Attack) -> None:
    """Rounding a pixel near 1 to bfloat16 moves it by up to half of 1/255."""
    model, x, _ = case()
    model, x = model.bfloat16(), x.bfloat16()
    found = attack.run(model, x, says(model, x))
    assert found.perturbed.dtype == torch.bfloat16 and found.loss.dtype == torch.float32
    delta = found.perturbed.float() - x.float()
    assert (attack.threat.norm(delta) <= attack.threat.epsilon + 1e-7).all()  # type: ignore[attr-defined]
    assert found.perturbed.min() >= 0 and found.perturbed.max() <= 1
    assert torch.equal(found.success, says(model, found.perturbed) != says(model, x))


def test_a_half_precision_model_is_attacked_with_perturbations_of_32_bits() -> None:
    """adversarial_training_baselines.md section 10: half-precision model, fp32 attack."""
    model, x, _ = case(16)
    model = model.bfloat16()
    y = says(model, x.bfloat16())
    found = PGD(LInf(0.03)).run(model, x, y)
    assert found.perturbed.dtype == torch.float32 and found.success.any()
    assert (found.perturbed.bfloat16().float() != found.perturbed).any()
    assert torch.equal(found.success, says(model, found.perturbed.bfloat16()) != y)


def test_autocast_and_output_objects_are_understood() -> None:
    model, x, y = case()
    wrapped = lambda inputs: SimpleNamespace(logits=model.eval()(inputs))  # noqa: E731
    assert torch.equal(PGD(BALL).perturb(wrapped, x, y), PGD(BALL).perturb(model, x, y))
    with torch.autocast("cpu", torch.bfloat16):
        found = PGD(BALL).run(model, x, y)
    assert found.perturbed.dtype == torch.float32 and found.loss.dtype == torch.float32


# Transformers' image classifiers ----------------------------------------------------------------------------


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, initializer_range=0.5, num_labels=5,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def test_epsilon_is_in_pixel_units_whatever_the_model_normalizes_by() -> None:
    """si_hg.md section 12: normalised-pixel epsilon equals raw epsilon."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    classifier = ImageClassifier(vit(), mean=mean, std=std)
    x = pixels(8)
    y = classifier.predict(x)
    found = PGD(LInf(8 / 255)).run(classifier, x, y)
    assert found.success.any()
    assert ((found.perturbed - x).abs().amax() - 8 / 255).abs() < 1e-6
    # The same attack on normalized pixels by hand, with a radius for each channel.
    model, scale = vit(), torch.tensor(std)[:, None, None]
    point = ((x - torch.tensor(mean)[:, None, None]) / scale).requires_grad_()
    loss = nn.functional.cross_entropy(model(point).logits, y)
    (gradient,) = torch.autograd.grad(loss, point)
    by_hand = (x + 8 / 255 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(FGSM(LInf(8 / 255)).perturb(classifier, x, y), by_hand)


def test_a_transformers_model_without_processor_is_taken_with_a_warning() -> None:
    model, x = vit(), pixels(4)
    y = model(x).logits.argmax(1)
    with pytest.warns(UserWarning, match=r"ViTForImageClassification .* ImageClassifier\(model, processor\)"):
        found = PGD(LInf(0.1)).perturb(model, x, y)
    assert torch.equal(found, PGD(LInf(0.1)).perturb(ImageClassifier(model), x, y))


# Bad input --------------------------------------------------------------------------------------------------


@each_attack
def test_inputs_outside_the_box_are_refused(attack: Attack) -> None:
    model, x, y = case()
    for bad in (x - 0.5, x * 255, torch.full_like(x, torch.nan)):
        with pytest.raises(ValueError, match="without normalization"):
            attack.perturb(model, bad, y)


@each_attack
def test_labels_that_are_none_are_refused(attack: Attack) -> None:
    model, x, y = case()
    with pytest.raises(ValueError, match="labels go to 5; the model has 5 classes"):
        attack.perturb(model, x, torch.full_like(y, 5))
    with pytest.raises(ValueError, match="labels go from -1"):
        attack.perturb(model, x, y - 1 - y.min())
    for bad in (y[:-1], y[:, None], y.float(), y.bool()):
        with pytest.raises(ValueError, match="labels are"):
            attack.perturb(model, x, bad)


def test_inputs_that_cannot_be_attacked_are_refused() -> None:
    model, x, y = case()
    for bad in ((x * 255).byte(), x[:0], x[:, 0, 0, 0]):
        with pytest.raises(ValueError, match="inputs are"):
            FGSM(BALL).perturb(model, bad, y)
    with pytest.raises(TypeError, match="expected tensors"):
        FGSM(BALL).perturb(model, x, y.tolist())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for 6 samples, there are 3"):
        PGD(LInf(torch.full((6,), 0.1))).perturb(model, x[:3], y[:3])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.flatten(1)[:, :1], r"gives \(6, 1\) for 6 inputs"),
        (lambda x: x, "expected logits"),
        (lambda x: (x, x), "gives tuple for 6 inputs"),
        (lambda x: x.flatten(1) * torch.nan, "NaN or infinite"),
    ],
)
def test_models_that_give_no_logits_are_refused(model: Any, message: str) -> None:
    _, x, y = case()
    with pytest.raises(ValueError, match=message):
        PGD(BALL).perturb(model, x, y * 0)


def test_models_without_gradients_are_refused_with_a_way_out() -> None:
    model, x, y = case()
    blind = lambda inputs: model.eval()(inputs.detach()).detach()  # noqa: E731
    with pytest.raises(ValueError, match="cannot be differentiated by its inputs; take Square"):
        PGD(BALL).perturb(blind, x, y)
    assert Square(BALL, queries=5).perturb(blind, x, y).shape == x.shape


def test_something_that_cannot_be_called_is_refused() -> None:
    _, x, y = case()
    with pytest.raises(TypeError, match="expected a module or a function"):
        PGD(BALL).perturb("resnet", x, y)  # type: ignore[arg-type]


def test_any_shape_of_inputs_will_do() -> None:
    model = linear()
    inputs = torch.rand(5, 12, dtype=torch.float64)
    found = PGD(LInf(0.5)).run(model, inputs, model(inputs).argmax(1))
    assert found.perturbed.dtype == torch.float64 and found.success.any()
