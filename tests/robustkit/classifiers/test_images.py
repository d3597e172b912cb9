"""Image classifiers: normalization inside, differentiable logits, the head's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from robustkit.classifiers import ImageClassifier
from tests.robustkit.tiny import tiny_classifier

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def pixels(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    labels: dict[str, Any] = {"id2label": {0: "cat", 1: "dog", 2: "cow"}}
    match family:
        case "vit":
            config = ViTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                image_size=16, patch_size=8, initializer_range=0.3, **labels,
            )  # fmt: skip
            return ViTForImageClassification(config).eval()
        case "resnet":
            sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
            return ResNetForImageClassification(ResNetConfig(**sizes, **labels)).eval()
        case "convnext":
            small: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
            return ConvNextForImageClassification(
                ConvNextConfig(**small, **labels, initializer_range=0.3)
            ).eval()
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 14 * 14, 3)
    )
    return net.eval()


def head_of(family: str, model: Any) -> Any:
    return model[-1] if family == "plain" else model.classifier


FAMILIES = ["vit", "resnet", "convnext", "plain"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_on_normalized_pixels(family: str) -> None:
    model = tiny(family)
    c = ImageClassifier(model, mean=MEAN, std=STD)
    normal = (pixels() - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    want = model(normal)
    torch.testing.assert_close(c(pixels()), want if isinstance(want, torch.Tensor) else want.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_differentiable_by_pixels(family: str) -> None:
    c = ImageClassifier(tiny(family), mean=MEAN, std=STD).double()
    x = pixels(2).double().requires_grad_()
    (gradient,) = torch.autograd.grad(c(x)[:, 1].sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        slope = (c(x + 1e-6 * direction) - c(x - 1e-6 * direction))[:, 1].sum() / 2e-6
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_extract_gives_the_heads_input(family: str) -> None:
    model = tiny(family)
    c = ImageClassifier(model, mean=MEAN, std=STD, batch_size=2)
    found = c.extract(pixels(5))
    with torch.no_grad():
        logits = head_of(family, model)[-1] if family == "resnet" else head_of(family, model)
        want = logits(torch.from_numpy(found.values))
    assert found.logits is not None and found.values.ndim == 2
    np.testing.assert_allclose(found.logits, want, atol=1e-5)
    np.testing.assert_allclose(found.logits, c(pixels(5)).detach(), atol=1e-5)
    np.testing.assert_array_equal(found.predictions, c.predict(pixels(5)))
    np.testing.assert_allclose(c.probabilities(pixels(5)).sum(dim=1), np.ones(5), atol=1e-6)
    assert found.source == c.source != ImageClassifier(model).source


class TwoHeads(nn.Module):
    """The mean of two heads, as in distilled vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Flatten()
        self.one, self.other = nn.Linear(768, 3), nn.Linear(768, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.one(self.body(x)) + self.other(self.body(x))) / 2


def test_a_head_that_cannot_be_found_is_named() -> None:
    with pytest.raises(ValueError, match="no linear layer of TwoHeads"):
        ImageClassifier(TwoHeads()).extract(pixels())
    found = ImageClassifier(TwoHeads(), head="one").extract(pixels())
    np.testing.assert_array_equal(found.values, pixels().flatten(1))
    with pytest.raises(ValueError, match="head is 'third'"):
        ImageClassifier(TwoHeads(), head="third")


def test_judging_leaves_mode_and_gradients_alone() -> None:
    c = ImageClassifier(tiny("plain"))
    c.train()
    c.model[0].eval()  # type: ignore[union-attr, index, operator]
    modes = [module.training for module in c.modules()]
    found = c.extract(pixels())
    np.testing.assert_array_equal(found.values, c.extract(pixels()).values)
    assert [module.training for module in c.modules()] == modes
    assert all(parameter.grad is None for parameter in c.parameters())
    # Training mode itself keeps its dropout.
    assert not torch.equal(c(pixels()), c(pixels()))


def test_a_processors_normalization_is_taken_over(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)
    model = tiny("vit")
    c = ImageClassifier(model, processor)
    pictures = [
        image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)) for i in range(2)
    ]
    found = c.pixels(pictures)
    assert found.shape == (2, 3, 16, 16) and found.min() >= 0 and found.max() <= 1
    want = model(processor(pictures, return_tensors="pt")["pixel_values"]).logits
    torch.testing.assert_close(c(found), want, atol=1e-5, rtol=1e-5)
    assert c.labels == ("cat", "dog", "cow")

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(found), c(found))
    assert loaded.fingerprint == c.fingerprint and loaded.name == str(tmp_path)
    with pytest.raises(ValueError, match="not both"):
        ImageClassifier(model, processor, mean=MEAN)
    with pytest.raises(ValueError, match="does not divide pixels by 255"):
        ImageClassifier(model, ViTImageProcessor(rescale_factor=1 / 127.5))
    plain = ImageClassifier(model, ViTImageProcessor(do_normalize=False))
    torch.testing.assert_close(plain(found), model(found).logits)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mean": MEAN}, "give both or neither"),
        ({"mean": MEAN, "std": [1.0, 1.0]}, "per channel"),
        ({"mean": MEAN, "std": [1.0, 0.0, 1.0]}, "positive"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_raise(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ImageClassifier(tiny("plain"), **options)


def test_bad_pixels_raise() -> None:
    c = ImageClassifier(tiny("plain"))
    for wrong in (pixels()[0], (pixels() * 255).byte()):
        with pytest.raises(ValueError, match="expected floats"):
            c(wrong)
    for wrong in (pixels() * 255, pixels() - 0.5, pixels() * torch.nan):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            c.predict(wrong)
    with pytest.raises(ValueError, match="empty"):
        c.extract(pixels(0))
    with pytest.raises(ValueError, match="no processor"):
        c.pixels([])


def test_a_classifier_of_texts_is_refused_in_plain_words(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier("bert", ["a good film", "a bad film"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a bert, of which transformers makes no image classifier"):
        ImageClassifier.from_pretrained(tmp_path)
