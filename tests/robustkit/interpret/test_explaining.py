"""`explain` on images: families, targets, bad input, model unchanged (H1, H4, H5, R11, D2, D5, D6, D14)."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.classifiers import ImageClassifier
from robustkit.interpret import METHODS, XRAI, Gradient, IntegratedGradients, RectGrad, SmoothGrad, explain

from .nets import autograd, cnn, images, mlp

PIXEL_FAMILIES = ("resnet", "vit", "convnext", "swin")


def pixels(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tiny(family: str) -> Any:
    from transformers import (
        ConvNextConfig,
        ConvNextForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
        SwinConfig,
        SwinForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    labels: dict[str, Any] = {"id2label": {0: "cat", 1: "dog", 2: "cow"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        match family:
            case "vit":
                return ViTForImageClassification(
                    ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=32,
                              image_size=16, patch_size=8, initializer_range=0.3, **labels)
                ).eval()  # fmt: skip
            case "resnet":
                sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
                return ResNetForImageClassification(
                    ResNetConfig(**sizes, layer_type="basic", **labels)
                ).eval()
            case "convnext":
                small: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
                # Its usual 1e-6 would hide whatever a rule does to the branches.
                small["layer_scale_init_value"] = 1.0
                return ConvNextForImageClassification(
                    ConvNextConfig(**small, initializer_range=0.3, **labels)
                ).eval()
    return SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4,
                   initializer_range=0.3, **labels)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("family", PIXEL_FAMILIES)
def test_h1_every_family_has_its_gradient_and_the_gated_rule(family: str) -> None:
    net, x = tiny(family), pixels()
    leaf = x.clone().requires_grad_()
    logits = net(pixel_values=leaf).logits
    (wanted,) = torch.autograd.grad(logits[:, 2].sum(), leaf)
    found = explain(net, x, "gradient", target="cow")
    assert torch.allclose(found.values, wanted, atol=1e-6) and wanted.abs().max() > 1e-4
    assert torch.allclose(found.output, logits[:, 2].detach(), atol=1e-5) and found.label(0) == "cow"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gated = explain(net, x, RectGrad(rule="gated", q=0, final="none"), target=2)
        some = explain(net, x, RectGrad(rule="gated", q=80, final="none"), target=2)
    assert torch.allclose(gated.values, wanted, atol=1e-5)
    assert gated.activations is not None
    kinds = {"resnet": {"relu"}, "vit": {"gelu"}, "convnext": {"gelu"}, "swin": {"gelu"}}
    assert set(gated.activations.treated) == kinds[family]
    assert not torch.allclose(some.values, wanted, atol=1e-5)
    if family == "resnet":
        assert explain(net, x, "rectgrad").values.abs().sum() > 0
    else:
        with pytest.raises(ValueError, match="defined for ReLU only"):
            explain(net, x, "guided_backprop")


@pytest.mark.parametrize("wrap", ["tensor", "tuple", "dict", "object"])
def test_h4_outputs_of_every_form(wrap: str) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()
            self.eval()

        def forward(self, x: Tensor) -> Any:
            logits = self.net(x)
            from types import SimpleNamespace

            forms = {"tensor": logits, "tuple": (logits, x), "dict": {"logits": logits}}
            return forms.get(wrap, SimpleNamespace(logits=logits))

    assert torch.allclose(explain(Wrapped(), images(), "gradient").values, autograd(cnn(), images()))


def test_an_image_classifiers_product_is_with_what_its_network_sees() -> None:
    net, x = cnn(), images().sigmoid()
    classifier = ImageClassifier(
        net, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], labels=["a", "b", "c"]
    ).eval()
    seen = (x - classifier.mean) / classifier.std
    wanted = autograd(net, seen) * seen
    assert torch.allclose(explain(classifier, x, Gradient(times_input=True)).values, wanted)
    a = explain(classifier, x, IntegratedGradients(rule="right", steps=20), target="b")
    inside = explain(net, seen, IntegratedGradients(rule="right", steps=20), target=1)
    assert torch.allclose(a.values, inside.values) and a.label(1) == "b"


def snapshot(net: nn.Module) -> tuple[Any, ...]:
    return (
        {name: (value.clone(), value.requires_grad) for name, value in net.named_parameters()},
        {name: value.clone() for name, value in net.named_buffers()},
        [
            (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in net.modules()
        ],
        [weight.grad for weight in net.parameters()],
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_r11_the_model_and_the_random_state_are_as_they_were(method: str) -> None:
    net = tiny("vit") if method == "rectgrad_gated" else tiny("resnet")
    settings = XRAI(side=16, steps=2) if method == "xrai" else method
    next(net.parameters()).requires_grad_(False)
    before, relu, random = snapshot(net), torch.relu, torch.get_rng_state()
    x = pixels()
    given = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.no_grad():
            explain(net, x, settings)
        with torch.inference_mode():
            explain(net, x, settings)
    after = snapshot(net)
    for name, (value, needs) in before[0].items():
        assert torch.equal(value, after[0][name][0]) and needs == after[0][name][1], name
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    assert before[2] == after[2] and after[3] == [None] * len(after[3])
    assert torch.relu is relu and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, given) and not x.requires_grad


def test_r11_also_when_it_fails() -> None:
    net = tiny("vit")
    before = snapshot(net)
    with pytest.raises(ValueError, match="ReLU only"):
        explain(net, pixels(), "rectgrad")
    after = snapshot(net)
    assert before[2] == after[2]
    assert [needs for _, needs in before[0].values()] == [needs for _, needs in after[0].values()]


def cosine(first: Tensor, second: Tensor) -> float:
    return torch.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


def test_d2_and_h5_narrow_models_give_float32_maps() -> None:
    x = images(dtype=torch.float32)
    wide, narrow = cnn().float(), cnn().bfloat16()
    for method in (
        Gradient(),
        SmoothGrad(n=4),
        SmoothGrad(n=4, statistic="var"),
        IntegratedGradients(steps=8),
        RectGrad(q=80),
    ):
        wanted = explain(wide, x, method, target=1).values
        for found in (
            explain(narrow, x, method, target=1),
            explain(narrow, x.bfloat16(), method, target=1),
            explain(wide, x, method, target=1, amp=True),
        ):
            assert found.values.dtype == found.output.dtype == torch.float32
            assert cosine(found.values, wanted) > 0.98  # measured: .992 or more


@pytest.mark.parametrize("family", PIXEL_FAMILIES)
def test_h5_every_familys_map_is_the_same_in_bfloat16(family: str) -> None:
    net, x = tiny(family), pixels()
    narrow = copy.deepcopy(net).bfloat16()
    for method in (Gradient(), IntegratedGradients(steps=4)):
        wanted = explain(net, x, method, target=1).values
        assert cosine(explain(narrow, x, method, target=1).values, wanted) > 0.98
        assert cosine(explain(net, x, method, target=1, amp=True).values, wanted) > 0.98


def test_d6_targets_by_number_name_and_for_each() -> None:
    net, x = tiny("resnet"), pixels(3)
    logits = net(x).logits.detach()
    assert explain(net, x, "gradient").target.tolist() == logits.argmax(dim=1).tolist()
    for target, wanted in (
        (0, [0] * 3),
        ("cat", [0] * 3),
        ([2, "dog", 0], [2, 1, 0]),
        (torch.tensor([1, 0, 2]), [1, 0, 2]),
    ):
        for method in (Gradient(), SmoothGrad(n=2)):
            a = explain(net, x, method, target=target)
            assert a.target.tolist() == wanted
            assert torch.allclose(a.output, logits[range(3), wanted], atol=1e-5)
    first, other = explain(net, x, "gradient", target=0), explain(net, x, "gradient", target=1)
    assert not torch.allclose(first.values, other.values)


def test_scores_are_what_they_are_called() -> None:
    net, x = cnn(), images()
    logits = net(x).detach()
    rows = range(4)
    others = torch.stack(
        [logits[:, [1, 2]].amax(1), logits[:, [0, 2]].amax(1), logits[:, [0, 1]].amax(1)], dim=1
    )
    for score, wanted in (
        ("logit", logits[rows, 1]), ("prob", logits.softmax(1)[:, 1]),
        ("logprob", logits.log_softmax(1)[:, 1]),
        ("margin", logits[:, 1] - others[:, 1]), (lambda out, target: out.sum(1), logits.sum(1)),
    ):  # fmt: skip
        a = explain(net, x, "gradient", target=1, score=score)
        assert torch.allclose(a.output, wanted)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(net(leaf), logits.argmax(1), reduction="sum").backward()
    assert leaf.grad is not None
    assert torch.allclose(explain(net, x, "gradient", score="logprob").values, -leaf.grad)


def bad(value: float) -> Tensor:
    x = images()
    x[2, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("inputs", "settings", "error", "message"),
    [
        (images(), {"target": 3}, ValueError, "target is 3; the model has 3 classes"),
        (images(), {"target": 7, "method": "smoothgrad"}, ValueError, "target is 7; the model has 3"),
        (images(), {"target": -1}, ValueError, "target is -1"),
        (images(), {"target": "cat"}, ValueError, "no class of that name"),
        (images(), {"target": [0, 1]}, ValueError, "2 classes for 4 inputs"),
        (images(), {"target": torch.zeros(4)}, ValueError, "expected integers"),
        (images(), {"target": True}, ValueError, "target is True"),
        (images(), {"score": "loss"}, ValueError, "score is 'loss'"),
        (images(), {"score": lambda out, target: out}, ValueError, "one number each"),
        (images(), {"batch_size": 0}, ValueError, "batch_size is 0"),
        (images(), {"method": "lime"}, ValueError, "method is 'lime'; expected one of gradient"),
        (images(), {"method": RectGrad}, TypeError, "a name or settings"),
        (bad(float("nan")), {}, ValueError, "input 2 has NaN"),
        (bad(float("inf")), {}, ValueError, "input 2 has NaN or infinite"),
        (images().long(), {}, ValueError, "expected floats"),
        (images()[:0], {}, ValueError, "expected floats"),
        ([[1.0]], {}, TypeError, "inputs is a list"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    inputs: Any, settings: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explain(cnn(), inputs, **({"method": "gradient"} | settings))


def test_models_that_cannot_be_explained() -> None:
    x = images()
    with pytest.raises(TypeError, match="model is a function"):
        explain(lambda x: x, x)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"in training mode.*call model.eval"):
        explain(cnn().train(), x)
    partly = cnn()
    partly[1].train()
    with pytest.raises(ValueError, match="in training mode"):
        explain(partly, x)
    broken = cnn()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits that are NaN"):
        explain(broken, x)
    with pytest.raises(ValueError, match=r"expected \(n, classes\)"):
        explain(nn.Sequential(cnn(), nn.Flatten(0)).eval(), x)


def test_d14_compiled_and_scripted_models_are_refused() -> None:
    net, x = mlp(6, 8, 3), images()[:, 0, 0, :6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, x)
    for broken in (traced, nn.Sequential(traced).eval()):
        with pytest.raises(ValueError, match="scripted or traced: what it calls inside cannot be seen"):
            explain(broken, x, "rectgrad")
    with pytest.raises(ValueError, match=r"compiled: what it calls inside .*_orig_mod"):
        explain(torch.compile(net), x, "rectgrad")  # type: ignore[arg-type]
    net.compile()
    with pytest.raises(ValueError, match="is compiled"):
        explain(net, x, "guided_backprop")


def test_d7_importing_loads_nothing_heavy() -> None:
    heavy = ("cv2", "pdb", "torchvision", "matplotlib", "captum", "skimage", "transformers.models")
    code = f"import robustkit.interpret.explaining, sys; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    light = "import robustkit.interpret, sys; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", light], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
