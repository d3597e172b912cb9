"""Curves as SVG: readable on a light and on a dark page, always the same."""

from __future__ import annotations

import re

import pytest

from robustkit.evaluation import curves_figure


def test_a_picture_is_readable_in_both_schemes_and_always_the_same() -> None:
    curves = {f"detector $x_{i}$": ([0, 0.5, 1], [0, 0.8, 1]) for i in range(10)}
    figure = curves_figure("ROC", curves, x_label="FPR", y_label="TPR", diagonal=True, unit_square=True)
    assert figure == curves_figure(
        "ROC", curves, x_label="FPR", y_label="TPR", diagonal=True, unit_square=True
    )
    for name in (*curves, "FPR", "TPR"):
        assert f">{name}</text>" in figure.svg  # text stays text, mathematics is not typeset
    assert not re.search(r"(fill|stroke): ?(#000000|#ffffff|black|white)", figure.svg)
    colours = {c for c in re.findall(r"stroke: (#[0-9a-f]{6})", figure.svg)}
    for colour in colours:
        assert contrast(colour, "#ffffff") >= 3 and contrast(colour, "#14171b") >= 3, colour


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_two_pictures_on_a_page_do_not_share_names() -> None:
    one = curves_figure("A", {"x": ([0, 1], [0, 1])}, x_label="x", y_label="y")
    two = curves_figure("B", {"x": ([0, 1], [0, 1])}, x_label="x", y_label="y")
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', figure.svg)) for figure in (one, two)]
    assert clips[0] and not clips[0] & clips[1]


def test_a_picture_without_curves_is_refused() -> None:
    with pytest.raises(ValueError, match="no curves"):
        curves_figure("A", {}, x_label="x", y_label="y")
