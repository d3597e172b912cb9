"""The modules for Hugging Face `evaluate` load from their folders and give the plain functions' figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dialogkit
from dialogkit.diversity import SemanticClusters, SemEnt, distinct_n, entropy_n, load_encoder, self_bleu

MODULES = Path(dialogkit.__file__).parent / "diversity" / "evaluate_modules"
TEXTS = [
    f"{start} {end}"
    for start in ("i like", "we saw", "where is", "give me")
    for end in ("it", "a cat", "you")
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec("evaluate") is None:
        pytest.skip("evaluate is not installed")
    import evaluate

    cache = str(tmp_path_factory.mktemp("evaluate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", cache)
        yield lambda name: evaluate.load(str(MODULES / name), cache_dir=cache)


def test_every_folder_has_the_layout_of_a_space() -> None:
    folders = sorted(path for path in MODULES.iterdir() if (path / "README.md").is_file())
    assert [folder.name for folder in folders] == ["lexical_diversity", "sem_ent"]
    for folder in folders:
        assert (folder / f"{folder.name}.py").is_file()
        assert "dialogkit-robustkit" in (folder / "requirements.txt").read_text()
        front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
        assert {"evaluate", "metric"} <= set(front["tags"]) and front["sdk"] == "static"


def test_lexical_diversity(load: Any) -> None:
    found = load("lexical_diversity").compute(predictions=["Hello", "Hello World", "World Hi"], n=2)
    assert found["distinct_1"] == pytest.approx(0.6)
    assert found["entropy_1"] == pytest.approx(1.521928, abs=1e-6)
    assert (found["distinct_2"], found["entropy_2"], found["low_frequency"]) == (1.0, 1.0, 1.0)
    assert found["mean_length"] == pytest.approx(5 / 3)
    metric = load("lexical_diversity")
    metric.add_batch(predictions=TEXTS[:6])
    metric.add_batch(predictions=TEXTS[6:])
    found = metric.compute(denominator="tokens")
    assert found["distinct_2"] == pytest.approx(distinct_n(TEXTS, 2, denominator="tokens"))
    assert found["entropy_3"] == pytest.approx(entropy_n(TEXTS, 3))
    assert found["self_bleu"] == pytest.approx(self_bleu(TEXTS))
    assert load("lexical_diversity").compute(predictions=["one"])["self_bleu"] is None


def test_sem_ent(load: Any, tmp_path: Path) -> None:
    clusters = SemanticClusters.fit(TEXTS, load_encoder("embedded"), k=3)
    clusters.save_pretrained(tmp_path / "clusters")
    folder = str(tmp_path / "clusters")
    found = load("sem_ent").compute(predictions=TEXTS[:5], references=TEXTS[5:10], clusters=folder)
    expected = SemEnt(clusters).compute(TEXTS[:5], TEXTS[5:10])
    assert found["sem_ent"] == pytest.approx(expected.sem_ent)
    assert found["mauve"] == pytest.approx(expected.mauve)
    assert (found["k"], found["n"], found["clusters"]) == (3, 5, clusters.fingerprint)
    alone = load("sem_ent").compute(predictions=TEXTS[:5], clusters=folder, encoder="embedded")
    assert alone["sem_ent"] == pytest.approx(expected.sem_ent) and alone["mauve"] is None
    metric = load("sem_ent")
    metric.add_batch(predictions=TEXTS[:5])
    assert metric.compute(clusters=folder)["sem_ent"] == pytest.approx(expected.sem_ent)
    with pytest.raises(ValueError, match="clusters is missing"):
        load("sem_ent").compute(predictions=TEXTS)
