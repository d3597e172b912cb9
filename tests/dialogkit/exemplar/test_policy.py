"""The family as settings of one object."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dialogkit.exemplar import PRESETS, ExemplarPolicy, JaccardFilter, preset


def differences(one: str, other: str) -> set[str]:
    first, second = preset(one), preset(other)
    return {
        field.name
        for field in fields(ExemplarPolicy)
        if getattr(first, field.name) != getattr(second, field.name)
    }


def test_the_family() -> None:
    corge = preset("corge")
    assert corge == ExemplarPolicy()
    assert (corge.query, corge.k, corge.weighting, corge.loss) == ("gold", 5, "relevance", "marginal")
    assert corge.filter == JaccardFilter(0.6, "random")
    assert preset("none").k == 0
    retnref = preset("retnref")
    assert (retnref.query, retnref.filter, retnref.weighting, retnref.k) == ("context", None, "uniform", 1)
    assert preset("retnref-alpha").alpha_blend == 0.5
    assert (preset("rag").query, preset("rag").filter, preset("rag").loss) == ("context", None, "marginal")


@pytest.mark.parametrize(
    ("name", "part"), [("corge-no-kne", "query"), ("corge-no-jf", "filter"), ("corge-no-rs", "weighting")]
)
def test_an_ablation_changes_one_setting(name: str, part: str) -> None:
    assert differences("corge", name) == {part}
    assert differences("retnref", "retnref-alpha") == {"alpha_blend"}


def test_released_behaviour_differs_where_the_specification_says() -> None:
    released = preset("corge-released")
    assert released.filter is not None
    assert released.filter.count_end
    assert not released.exclude_gold
    assert preset("retnref-released").loss == "nll_sum"
    assert preset("retnref-released").query == "gold"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "both"}, "query must be"),
        ({"weighting": "some"}, "weighting must be"),
        ({"loss": "mean"}, "loss must be"),
        ({"k": -1}, "k must be at least 0, got -1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"alpha_blend": 1.5}, "alpha_blend must be in"),
    ],
)
def test_bad_policies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExemplarPolicy(**changes)


def test_bad_filters_and_names() -> None:
    for changes, message in (
        ({"threshold": -0.1}, "threshold must be"),
        ({"on_filtered": "drop"}, "on_filtered must be"),
        ({"depth": 0}, "depth must be"),
    ):
        with pytest.raises(ValueError, match=message):
            JaccardFilter(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'corge'"):
        preset("corgi")
    with pytest.raises(TypeError):
        PRESETS["mine"] = ExemplarPolicy()  # type: ignore[index]


def test_depth_of_search() -> None:
    assert preset("corge").depth == 6
    assert preset("corge-released").depth == 5
    assert ExemplarPolicy(filter=JaccardFilter(on_filtered="next", depth=30)).depth == 30
    assert ExemplarPolicy(k=40, filter=JaccardFilter(on_filtered="next", depth=30)).depth == 41
