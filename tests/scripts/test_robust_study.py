"""The comparisons of robust training, very small: what they measure, resume and write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
from robust_study import comparison, studies, texts  # type: ignore[import-not-found]

from robustkit.attacks.gradient import PGD
from robustkit.classifiers import TextClassifier
from tests.robustkit.tiny import tiny_classifier, toy_sentiment
from trainkit import FitConfig, fit


def test_every_method_gets_the_same_number_of_passes(tmp_path: Path) -> None:
    names = ["natural", "PGD-7 AT"]
    settings: dict[str, Any] = {
        "data": "digits", "methods": names, "attack_steps": 2, "test": 20, "threads": 1, "page": False,
    }  # fmt: skip
    comparison.run(tmp_path, passes=[8, 16], seeds=[0], **settings)
    document = json.loads((tmp_path / "digits-2-20.json").read_text())
    rows = {(row["method"], row["budget"]): row for row in document["results"]}
    assert set(rows) == {(name, budget) for name in names for budget in (8, 16)}
    # 3 units a pass of natural training; 2 * 7 + 3 a step of PGD-7; the passes decide the number of steps.
    assert rows["natural", 16]["units"] == pytest.approx(3, abs=0.1)
    assert rows["PGD-7 AT", 16]["units"] == 17
    for row in rows.values():
        assert 0 <= row["suite"] <= row["clean"] <= 1 and row["pgd"] <= row["clean"] + 1e-6
    text = (tmp_path / "digits.md").read_text()
    assert len(re.findall(r"^\| PGD-7 AT \|", text, flags=re.M)) == 2
    assert "**8 passes of a minibatch**, 1 seed, so no spread" in text
    assert '--passes 8 16 --seeds 0 --attack-steps 2 --test 20 --methods "natural" "PGD-7 AT"`' in text
    assert (tmp_path / "si_hg_digits.svg").read_text().startswith("<?xml")
    # A result that is there is not measured again.
    document["results"][0]["clean"] = 0.125
    (tmp_path / "digits-2-20.json").write_text(json.dumps(document))
    comparison.run(tmp_path, passes=[8], seeds=[0], **settings)
    assert "| 0.125 |" in (tmp_path / "digits.md").read_text()


def test_learning_rates_are_chosen_on_training_images_and_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": "digits", "methods": ["natural", "FGSM-RS"], "attack_steps": 2, "test": 20, "threads": 1,
        "page": False, "passes": [24], "seeds": [0],
    }  # fmt: skip
    comparison.run(tmp_path, rates=[1e-6, 1.0], **settings)
    tried = json.loads((tmp_path / "digits-rates.json").read_text())
    assert len(tried) == 2 * 2 * 2 and {row["seed"] for row in tried} == {100, 101}
    rows = json.loads((tmp_path / "digits-2-20.json").read_text())["results"]
    # With a millionth of its rate a network learns nothing.
    assert {row["method"]: row["share"] for row in rows} == {"natural": 1.0, "FGSM-RS": 1.0}
    text = (tmp_path / "digits.md").read_text()
    assert "--rates 1e-06 1 " in text and "chose its peak learning rate among 1e-06, 1 times" in text
    assert "| natural | 0.1, - |" in text and "| FGSM-RS | 0.1, 0 |" in text
    # What was tried is not tried again, and the choice goes by it.
    for row in tried:
        row["pgd"] = row["clean"] = float(row["share"] < 1)
    (tmp_path / "digits-rates.json").write_text(json.dumps(tried))
    comparison.run(tmp_path, rates=[1e-6, 1.0], **settings)
    rows = json.loads((tmp_path / "digits-2-20.json").read_text())["results"]
    assert [row["share"] for row in rows] == [1.0, 1.0, 1e-6, 1e-6]
    text = (tmp_path / "digits.md").read_text()
    assert "| natural | 1e-07, - |" in text and "| FGSM-RS | 1e-07, 0 |" in text
    # Another budget, another choice.
    others = [{**row, "budget": 16, "pgd": row["share"]} for row in tried]
    (tmp_path / "digits-rates.json").write_text(json.dumps([*tried, *others]))
    comparison.run(tmp_path, rates=[1e-6, 1.0], **{**settings, "passes": [16, 24]})
    parts = (tmp_path / "digits.md").read_text().split("**24 passes")
    assert "| FGSM-RS | 0.1, 0 |" in parts[0] and "| FGSM-RS | 1e-07, 0 |" in parts[1]


def test_rate_and_growth_of_the_ball_are_chosen_together(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": "digits", "methods": ["natural", "FGSM-RS"], "attack_steps": 2, "test": 20, "threads": 1,
        "page": False, "passes": [8], "seeds": [0], "growth": [0.0, 0.5],
    }  # fmt: skip
    file = tmp_path / "digits-rates.json"
    # What an earlier version of the study wrote had no growth and counts as none.
    old = [
        {"method": name, "budget": 8, "share": 1.0, "seed": seed, "clean": 0.5, "pgd": 0.0}
        for name in ("natural", "FGSM-RS")
        for seed in (100, 101)
    ]
    grown = [{**row, "grow": 0.5, "pgd": 0.25} for row in old]
    file.write_text(json.dumps([*old, *grown]))
    comparison.run(tmp_path, **settings)
    assert len(json.loads(file.read_text())) == 8  # nothing was tried again
    rows = json.loads((tmp_path / "digits-2-20.json").read_text())["results"]
    assert {row["method"]: row["grow"] for row in rows} == {"natural": 0.0, "FGSM-RS": 0.5}
    text = (tmp_path / "digits.md").read_text()
    assert "--grow 0 0.5 " in text and "| natural | 0.1, - |" in text and "| FGSM-RS | 0.1, 0.5 |" in text
    # A step of FGSM-RS is two passes: 4 steps, of which 2 have a smaller ball.
    model, _, _ = comparison._trained(
        studies.STUDIES["digits"], studies.STUDIES["digits"].methods()[2], 0, 8,
        comparison.Setting(1.0, 0.5), studies.STUDIES["digits"].load()[0],
    )  # fmt: skip
    other, _, _ = comparison._trained(
        studies.STUDIES["digits"], studies.STUDIES["digits"].methods()[2], 0, 8,
        comparison.Setting(), studies.STUDIES["digits"].load()[0],
    )  # fmt: skip
    assert any((a != b).any() for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_a_bank_is_not_far_behind_fgsm_rs_and_natural_training_is_not_robust() -> None:
    """Specification si_hg.md, section 12: at equal passes, at most 3 points behind; natural below 10 %."""
    study = studies.STUDIES["digits"]
    train, test = study.load()
    robust = {}
    for name in ("natural", "FGSM-RS", "SI-HG gs, bank, α=0.5"):
        (entry,) = (entry for entry in study.methods() if entry.name == name)
        steps = 400 // entry.passes
        config = FitConfig(
            max_steps=steps, batch_size=64, learning_rate=0.1, warmup_ratio=0.2, max_grad_norm=None,
            cpu=True, progress=False, log_every=steps,
        )  # fmt: skip
        model = study.network(0)
        fit(
            model, entry.make(study.threat, len(train), steps), train, config=config,
            optimizer=lambda m: study.optimizer(m, 0.1),
        )  # fmt: skip
        attack = PGD(study.threat, 10, step_size=study.epsilon / 4)
        found = attack.run(model, test.pixels[:200], test.labels[:200])
        robust[name] = 1 - float(found.success.float().mean())
    assert robust["natural"] < 0.1
    assert robust["SI-HG gs, bank, α=0.5"] >= robust["FGSM-RS"] - 0.03
    assert robust["FGSM-RS"] > 0.2


def test_texts_are_trained_from_an_encoder_with_equal_passes(tmp_path: Path) -> None:
    model, tokenizer = tiny_classifier()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = tuple(zip(*toy_sentiment(40), strict=True))
    study = texts.StudyData("toy", ("bad", "good"), 16, 1, rows, rows, rows)
    found: dict[str, TextClassifier] = {}
    for entry in texts.ENTRIES[:2]:
        found[entry.name], seconds = texts.train_one(entry, 0.2, study, rows, str(tmp_path), 4, 0)
        assert seconds > 0 and found[entry.name].labels == ("bad", "good")
        assert 0 <= texts.accuracy(found[entry.name], rows) <= 1
    one, other = (classifier.model.get_input_embeddings().weight for classifier in found.values())
    assert (one - other).abs().max() > 1e-6
    assert texts._drawn(rows, 5) == texts._drawn(rows, 10)[:5]


@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_training_and_test_images_are_apart(name: str) -> None:
    """No test image is trained on, and network, shape and ball fit the images."""
    study = studies.STUDIES[name]
    try:
        train, test = study.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert train.pixels.shape[1:] == test.pixels.shape[1:] == study.shape
    known = {row.numpy().tobytes() for row in train.pixels}
    assert not any(row.numpy().tobytes() in known for row in test.pixels)
    assert study.network(0)(test.pixels[:2]).shape == (2, 10)


def _row(epsilon: float, clean: float, attacked: float) -> texts.Result:
    return texts.Result("FreeLB K=2", epsilon, 0, clean, {"pwws": attacked}, {"pwws": 9.0}, 1.0, "validation")


def test_epsilon_is_not_that_of_a_classifier_that_says_one_thing(tmp_path: Path) -> None:
    """Chosen on validation texts: near the best clean accuracy, then the most robust, then the smallest."""
    plan = texts.Plan("toy", "minilm", 4, (0,), (0.3, 0.1, 0.2, 0.4), ("pwws",), None, 4, None, 4)
    comparison = texts.Comparison.__new__(texts.Comparison)
    comparison.plan, (_, entry, _) = plan, texts.ENTRIES
    comparison.results = [
        _row(0.1, 0.84, 0.2), _row(0.2, 0.86, 0.3), _row(0.3, 0.82, 0.3), _row(0.4, 0.5, 0.5),
    ]  # fmt: skip
    assert comparison.chosen(entry) == 0.2
    assert comparison.chosen(texts.ENTRIES[0]) == 0.0


def test_the_table_has_means_and_spreads() -> None:
    plan = texts.Plan("toy", "minilm", 4, (0, 1), (0.1,), ("pwws",), None, 4, None, 4)
    rows = [
        texts.Result(entry.name, 0.1, seed, 0.5 + 0.2 * seed, {"pwws": 0.25}, {"pwws": 9.0}, 1.0, "test")
        for entry in texts.ENTRIES
        for seed in (0, 1)
    ]
    text = texts.table(rows, [_row(0.1, 0.5, 0.25)], plan)
    assert "| FreeLB K=2 | 0.1 | 0.600 ± 0.141 | 0.250 ± 0.000 | 9 | 1 |" in text
    assert "FreeLB K=2, 0.1: 0.250 (clean 0.500)" in text
