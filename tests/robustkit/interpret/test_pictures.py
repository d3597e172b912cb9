"""Maps, PNG files and pages (V1, V2)."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch

from robustkit.interpret import Attribution, explain, heatmap_grid, html_grid
from robustkit.interpret.pictures import articles, clipped

from .nets import cnn, images
from .test_texts import word_pieces

pytest.importorskip("matplotlib")


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_maps_reduce_channels() -> None:
    a = explain(cnn(), images(2), "gradient")
    assert torch.equal(a.map(), a.values.sum(1)) and torch.equal(a.map("abs_sum"), a.values.abs().sum(1))
    assert torch.equal(a.map("max_abs"), a.values.abs().amax(1)) and torch.allclose(
        a.map("l2"), a.values.norm(dim=1)
    )
    with pytest.raises(ValueError, match="reduce is 'mean'"):
        a.map("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no texts"):
        _ = a.tokens


def test_clipping_by_percentiles() -> None:
    values = torch.arange(-50.0, 51.0).view(1, 1, 101)
    found = clipped(values, 10, 90)
    assert found.min() == -40 and found.max() == 40
    assert clipped(values + 50, 10, 90)[0, 0, :10].eq(0).all()  # below a positive percentile is 0


def test_v1_the_same_maps_give_the_same_picture(tmp_path: Path) -> None:
    a = explain(cnn(), images(3), "gradient")
    for name in ("one", "two"):
        a.heatmap(tmp_path / f"{name}.png", columns=2)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    other = explain(cnn(seed=1), images(3, seed=1), "rectgrad")
    other.heatmap(tmp_path / "other.png", columns=2)
    assert size(tmp_path / "other.png") == size(tmp_path / "one.png")
    heatmap_grid(tmp_path / "grid.png", [a, other], rows=2)
    assert size(tmp_path / "grid.png")[0] != size(tmp_path / "one.png")[0]
    with pytest.raises(ValueError, match="different inputs"):
        heatmap_grid(tmp_path / "no.png", [a, explain(cnn(), images(2), "gradient")])
    assert not (tmp_path / "no.png").exists()


def page(attribution: Attribution, folder: Path) -> str:
    attribution.to_html(folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_v2_texts_are_escaped_and_written_as_they_were(tmp_path: Path) -> None:
    text = "<script>alert(1)</script> a Film & b"
    html = page(explain(word_pieces(), [text], "integrated_gradients"), tmp_path)
    assert "<script" not in html.lower() and 'src="http' not in html
    body = re.sub(r"<[^>]*>", "", html.split("<article>")[1].split("</p>")[1])
    assert body == "&lt;script&gt;alert(1)&lt;/script&gt; a Film &amp; b"
    assert re.search(r'title="[+-][\d.e-]+">Film</span>', html)


def test_a_page_of_images_carries_its_picture(tmp_path: Path) -> None:
    assert 'src="data:image/png;base64,' in page(explain(cnn(), images(2), "gradient"), tmp_path)


def test_rows_of_an_attribution_are_those_of_its_inputs() -> None:
    a = explain(cnn(), images(4), "integrated_gradients")
    part = a[1:3]
    assert a.delta is not None and part.delta is not None
    assert torch.equal(part.values, a.values[1:3]) and torch.equal(part.delta, a.delta[1:3])
    assert len(part) == 2 and part.label(0) == a.label(1)
    texts = explain(word_pieces(), ["a film", "a film , a film", "unforgettable"], "gradient")
    assert texts[1:].word_scores() == texts.word_scores()[1:] and texts[2:].tokens == texts.tokens[2:]


def test_one_page_shows_methods_side_by_side(tmp_path: Path) -> None:
    model, texts = word_pieces(), ["a <b>film</b>", "unforgettable"]
    html_grid(tmp_path / "texts.html", [explain(model, texts, name) for name in ("gradient", "smoothgrad")])
    html = (tmp_path / "texts.html").read_text(encoding="utf-8")
    assert html.count("<article>") == 2 and html.count(">SmoothGrad, LABEL_") == 2
    assert "<b>film" not in html and "&lt;" in html
    with pytest.raises(ValueError, match="different inputs"):
        html_grid(
            tmp_path / "no.html",
            [explain(model, ["a film"], "gradient"), explain(model, ["a a"], "gradient")],
        )
    net = cnn()
    own = [explain(net, images(2), name) for name in ("gradient", "rectgrad")]
    parts = articles(own, names=["<i>.png", "b.png"])
    assert len(parts) == 2 and "&lt;i&gt;.png" in parts[0] and "data:image/png;base64," in parts[1]
