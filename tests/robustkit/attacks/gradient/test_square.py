"""Square: schedule, patterns, windows, and a search that asks for logits only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.attacks.gradient import L1, L2, PGD, LInf, Square
from robustkit.attacks.gradient.search import Rows
from robustkit.attacks.gradient.square import _bumps, _Draws, _tiles, _window, square_pattern, window_share
from tests.robustkit.attacks.gradient.nets import convolutions, pixels, says


def rows_of(x: Tensor, ball: Any) -> tuple[Rows, _Draws]:
    index = torch.arange(len(x))
    return Rows(index, x, index, ball), _Draws(x, torch.Generator().manual_seed(0))


def test_the_share_is_halved_after_the_papers_queries_of_ten_thousand() -> None:
    found = [window_share(q, 10_000) for q in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999)]
    assert found == [0.8 / 2**k for k in (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9)]
    assert window_share(6, 5000) == 0.4 and window_share(5, 5000) == 0.8


def test_the_pattern_sums_rings_from_outside() -> None:
    """For 3 x 3: the outer ring holds 1/4, the middle 1/4 + 1."""
    want = torch.full((3, 3), 0.25, dtype=torch.float64)
    want[1, 1] = 1.25
    torch.testing.assert_close(square_pattern(3, 3), want / want.norm())
    for shape in ((1, 1), (2, 5), (6, 6)):
        assert square_pattern(*shape).shape == shape
        assert square_pattern(*shape).norm().item() == pytest.approx(1)


@pytest.mark.parametrize("share", [0.8, 0.1, 0.001])
def test_a_window_of_the_linf_search_is_a_square_of_plus_or_minus_epsilon(share: float) -> None:
    x = pixels(50)
    rows, draws = rows_of(x, LInf(0.1))
    found = _window(torch.zeros_like(x), rows, draws, share)
    side = max(round((share * 64) ** 0.5), 1)
    touched = found != 0
    assert (touched.flatten(2).sum(2) == side * side).all()
    assert torch.equal(found[touched].abs(), torch.full((int(touched.sum()),), 0.1))
    for image in touched[:, 0]:
        assert int(image.any(0).sum()) == int(image.any(1).sum()) == side
    for channel in found.flatten(2).unbind(1):
        assert len(channel[channel != 0].unique()) == 2  # both signs occur, one in each image
    assert len({tuple(image.nonzero()[0].tolist()) for image in touched[:, 0]}) > (1 if share < 0.5 else 0)


@pytest.mark.parametrize("share", [0.8, 0.1, 0.001])
def test_a_move_of_the_l2_search_spends_all_of_epsilon_and_touches_two_windows(share: float) -> None:
    x = pixels(20).double()
    ball = L2(0.7, None)
    rows, draws = rows_of(x, ball)
    start = _tiles(rows, draws)
    torch.testing.assert_close(ball.norm(start), torch.full((20,), 0.7, dtype=torch.float64))
    found = start
    for _ in range(5):
        before, found = found, _bumps(found, rows, draws, share)
        torch.testing.assert_close(ball.norm(found), torch.full((20,), 0.7, dtype=torch.float64))
        side = min(max(round((share * 64) ** 0.5), 3) // 2 * 2 + 1, 8)
        changed = (found != before).any(dim=1).flatten(1).sum(1)
        assert (changed > 0).all() and (changed <= 2 * side * side).all()


@pytest.mark.parametrize("ball", [LInf(0.03), L2(0.5)])
def test_it_fools_without_gradients_and_says_what_the_model_says(ball: Any) -> None:
    model, x = convolutions(), pixels(24)
    y = says(model, x)
    with torch.no_grad():
        blind = lambda inputs: model.eval()(inputs.detach())  # noqa: E731
        found = Square(ball, queries=150).run(blind, x, y)
    assert torch.equal(found.success, says(model, found.perturbed) != y)
    assert found.success.sum() >= 8
    assert (ball.norm(found.perturbed - x) <= ball.epsilon + 1e-6).all()
    assert found.perturbed.min() >= 0 and found.perturbed.max() <= 1
    assert (found.backwards == 0).all() and (found.forwards[~found.success] == 150).all()
    assert (found.forwards[found.success] <= 150).all()


@pytest.mark.parametrize("ball", [LInf(0.01), L2(0.1)])
def test_more_queries_never_lower_the_loss(ball: Any) -> None:
    model, x = convolutions(), pixels(24)
    y = says(model, x)
    first = Square(ball, queries=1).run(model, x, y)
    later = Square(ball, queries=80).run(model, x, y)
    assert (later.success >= first.success).all()
    left = ~later.success
    assert (later.loss[left] >= first.loss[left]).all() and (later.loss[left] > first.loss[left]).any()


def test_a_sample_does_not_depend_on_when_others_are_done() -> None:
    model, x = convolutions(), pixels()
    y = says(model, x)
    wrong = y.clone()
    wrong[1:] = (y[1:] + 1) % 5
    attack = Square(LInf(0.005), queries=30)
    torch.testing.assert_close(attack.perturb(model, x, y)[0], attack.perturb(model, x, wrong)[0])


def test_targets_and_restarts() -> None:
    model, x = convolutions(), pixels(8)
    target = (says(model, x) + 1) % 5
    found = Square(LInf(0.3), queries=100, targeted=True, restarts=2).run(model, x, target)
    assert torch.equal(found.success, says(model, found.perturbed) == target) and found.success.any()


def test_hidden_gradients_do_not_help_against_it() -> None:
    """Quantized inputs have a gradient of zero; PGD learns nothing, random search does."""
    model, x = convolutions(), pixels(24)
    y = says(model, x)
    hidden = lambda inputs: model.eval()((inputs * 64).round() / 64 + 0 * inputs)  # noqa: E731
    keeps = says(model, (x * 64).round() / 64) == y
    pgd = PGD(LInf(0.02), steps=5, random_start=False).run(hidden, x, y)
    assert not pgd.success[keeps].any()
    assert Square(LInf(0.02), queries=100).run(hidden, x, y).success[keeps].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threat": L1(1.0)}, "Square knows LInf and L2"),
        ({"threat": LInf(0.1), "queries": 0}, "queries is 0"),
        ({"threat": LInf(0.1), "share": 0.0}, "share is 0"),
        ({"threat": LInf(0.1), "restarts": 0}, "restarts is 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Square(**settings)


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs \\(n, channels, height, width\\)"):
        Square(LInf(0.1)).perturb(lambda x: x, torch.rand(2, 5), torch.zeros(2, dtype=torch.long))
