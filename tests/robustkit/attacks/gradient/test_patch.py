"""Adversarial patches: only the pasted area changes, targeted success, seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustkit.attacks.gradient import AdversarialPatch
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says


def test_only_the_pasted_area_changes_and_places_follow_the_seed() -> None:
    x, attack = pixels(30), AdversarialPatch(size=3, target=0)
    patch = torch.full((3, 3, 3), 2.0)  # no pixel of the images has this value
    found = attack.apply(patch, x, seed=1)
    touched = (found == 2).all(dim=1)
    assert (touched.flatten(1).sum(1) == 9).all()
    assert all(int(image.any(0).sum()) == int(image.any(1).sum()) == 3 for image in touched)
    assert torch.equal(found[~touched[:, None].expand_as(x)], x[~touched[:, None].expand_as(x)])
    assert torch.equal(found, attack.apply(patch, x, seed=1))
    assert not torch.equal(found, attack.apply(patch, x, seed=2))
    assert len({tuple(image.nonzero()[0].tolist()) for image in touched}) > 10
    corners = (attack.apply(patch, pixels(500)) == 2).all(dim=1)
    assert corners[:, 0, 0].any() and corners[:, 7, 7].any() and corners[:, 0, 7].any()


def test_a_pasted_patch_keeps_its_orientation() -> None:
    patch = torch.arange(12.0).reshape(3, 2, 2) / 20
    found = AdversarialPatch(size=2, target=0).apply(patch, torch.ones(1, 3, 2, 2))
    assert torch.equal(found[0], patch)


def test_training_raises_targeted_success_and_leaves_the_model_alone() -> None:
    model, x = convolutions(), pixels(60)
    y = says(model, x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attack = AdversarialPatch(size=6, target=2, epochs=15, learning_rate=2.0)
    patch = attack.fit(model, [(x[:30], y[:30]), (x[30:], y[30:])])
    assert patch.shape == (3, 6, 6) and patch.min() > 0 and patch.max() < 1
    grey = torch.full((3, 6, 6), 0.5)
    before, after = (attack.success_rate(model, one, x, y) for one in (grey, patch))
    assert after > before + 0.3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and all(weight.grad is None for weight in model.parameters())


def test_one_step_is_sgd_on_the_targets_cross_entropy_through_tanh() -> None:
    """Images as large as the patch have one place, so the gradient is known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x, y = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 3, 0, 1])
    attack = AdversarialPatch(size=2, target=3, epochs=2, learning_rate=0.5, momentum=0.8)
    weights = torch.zeros(3, 2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.5, momentum=0.8)
    for _ in range(2):
        optimizer.zero_grad()
        images = ((1 + weights.tanh()) / 2).expand(4, 3, 2, 2)  # the image of the target class is left out
        nn.functional.cross_entropy(model(images), torch.full((4,), 3)).backward()
        optimizer.step()
    torch.testing.assert_close(attack.fit(model, [(x, y)]), (1 + weights.detach().tanh()) / 2)


def test_images_of_the_target_class_do_not_count() -> None:
    model, x = convolutions(), pixels(10)
    always = lambda images: nn.functional.one_hot(torch.full((len(images),), 2), 5).float()  # noqa: E731
    attack = AdversarialPatch(size=2, target=2)
    labels = torch.tensor([2, 2, 2, 0, 1, 3, 4, 0, 1, 3])
    assert attack.success_rate(always, torch.zeros(3, 2, 2), x, labels) == 1
    with pytest.raises(ValueError, match="all images are of the target class 2"):
        attack.success_rate(always, torch.zeros(3, 2, 2), x[:3], labels[:3])
    with pytest.raises(ValueError, match="no image of another class"):
        attack.fit(model, [(x[:3], labels[:3])])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"target": -1}, "target is -1"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"momentum": 1.0}, "momentum 1"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialPatch(**{"size": 3, "target": 0} | settings)


def test_bad_images_and_targets_are_refused() -> None:
    model, x = convolutions(), pixels(4)
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="the patch needs 9 by 9"):
        AdversarialPatch(size=9, target=1).fit(model, [(x, y)])
    with pytest.raises(ValueError, match="without normalization"):
        AdversarialPatch(size=3, target=1).fit(model, [(x * 2, y)])
    with pytest.raises(ValueError, match="the model has 5 classes"):
        AdversarialPatch(size=3, target=7).fit(model, [(x, y)])
