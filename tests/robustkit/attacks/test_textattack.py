"""The adapter for TextAttack, checked against TextAttack itself."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.attacks.logs import AttackLog
from robustkit.attacks.textattack import (
    STOP_WORDS,
    as_model_wrapper,
    import_textattack,
    run_attack,
)
from robustkit.classifiers.text import TextClassifier
from tests.robustkit.tiny import SYNONYMS, tiny_classifier, toy_sentiment, trained_bert

needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: pip install --no-deps -r requirements-textattack.txt",
)
TEXTS, LABELS = toy_sentiment(5, seed=9)
EXAMPLES = list(zip(TEXTS, LABELS, strict=True))


@pytest.fixture(scope="module")
def textattack() -> ModuleType:
    return import_textattack(STOP_WORDS)


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return TextClassifier(*trained_bert())


def synonym_attack(model: Any, search: str = "delete", **goal: Any) -> Any:
    """An attack that needs no resource: words from the table of the toy task."""
    ta = import_textattack()

    class Table(ta.transformations.WordSwap):  # type: ignore[misc,name-defined]
        def _get_replacement_words(self, word: str) -> Sequence[str]:
            return SYNONYMS.get(word.lower(), ())

    return ta.Attack(
        ta.goal_functions.UntargetedClassification(model, **goal),
        [ta.constraints.pre_transformation.RepeatModification()],
        Table(),
        ta.search_methods.GreedyWordSwapWIR(wir_method=search),
    )


# Importing --------------------------------------------------------------------------------------------------

IMPORT = """
import logging, os, sys
import sklearn, torch
import robustkit.attacks
assert not any(name.split(".")[0] in ("textattack", "nltk", "torchattacks", "flair") for name in sys.modules)
mine = logging.getLogger("mine")
mine.addHandler(logging.StreamHandler(sys.stdout))
os.environ.pop("TA_CACHE_DIR", None)
before = dict(os.environ)
textattack = robustkit.attacks.import_textattack(["alpha", "beta"])
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert "flair" not in sys.modules and not mine.disabled
import huggingface_hub.constants
assert huggingface_hub.constants.HF_HOME.startswith(os.environ["HOME"]), huggingface_hub.constants.HF_HOME
from textattack.constraints.pre_transformation import StopwordModification
assert StopwordModification().stopwords == {"alpha", "beta"}
assert robustkit.attacks.import_textattack() is textattack
robustkit.attacks.import_textattack(["gamma"])
assert StopwordModification().stopwords == {"gamma"}
from textattack.shared.utils import install
assert install.TEXTATTACK_CACHE_DIR == os.path.expanduser("~/.cache/textattack")
assert not os.path.exists(install.TEXTATTACK_CACHE_DIR)
mine.warning("done")
"""


@needs_textattack
def test_the_import_is_silent_and_leaves_no_trace(tmp_path: Path) -> None:
    clean = {"HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=clean, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_without_textattack_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps -r requirements-textattack") as error:
        import_textattack()
    assert error.value.name == "textattack"


@needs_textattack
def test_what_needs_flair_says_that_it_is_missing(textattack: ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match="flair"):
        textattack.shared.AttackedText("New York").ner_of_word_index(0)
    with pytest.raises(TypeError, match="stopwords is one string"):
        import_textattack("the")


# The wrapper ------------------------------------------------------------------------------------------------


@needs_textattack
@pytest.mark.filterwarnings("ignore:1 of .* texts have more than 64 tokens")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_wrapper_answers_as_textattacks_own_does(family: str, textattack: ModuleType) -> None:
    model, tokenizer = tiny_classifier(family)
    ours = as_model_wrapper(TextClassifier(model, tokenizer))
    theirs = textattack.models.wrappers.HuggingFaceModelWrapper(model, tokenizer)
    texts = [*TEXTS, "film", " ".join(TEXTS)]
    if family == "bert":
        texts.append("")  # GPT-2 reads the last token, which an empty text does not have
    torch.testing.assert_close(ours(texts), theirs(texts), atol=1e-5, rtol=0)
    pairs = list(zip(TEXTS[:3], TEXTS[2:5], strict=True))
    torch.testing.assert_close(ours(pairs), theirs(pairs), atol=1e-5, rtol=0)
    assert ours.tokenize(TEXTS, strip_prefix=True) == theirs.tokenize(TEXTS, strip_prefix=True)


@needs_textattack
def test_the_gradient_is_textattacks_without_dropout(textattack: ModuleType) -> None:
    model, tokenizer = tiny_classifier()
    ours = as_model_wrapper(TextClassifier(model, tokenizer))
    text = TEXTS[0]
    before = [parameter.grad for parameter in model.parameters()]
    found = ours.get_grad(text)
    assert before == [parameter.grad for parameter in model.parameters()] == [None] * len(before)
    assert not model.training
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    expected = textattack.models.wrappers.HuggingFaceModelWrapper(model, tokenizer).get_grad(text)
    n = found["ids"].shape[1]
    assert torch.equal(found["ids"], expected["ids"][:, :n])
    assert found["gradient"].shape == (n, 32) and np.abs(found["gradient"]).max() > 1e-3
    np.testing.assert_allclose(found["gradient"], expected["gradient"][:n], atol=1e-5)
    np.testing.assert_array_equal(ours.get_grad(text)["gradient"], found["gradient"])


# Attacks ----------------------------------------------------------------------------------------------------


def attacker_log(textattack: ModuleType, attack: Any, path: Path) -> AttackLog:
    """What TextAttack's own Attacker writes."""
    arguments = textattack.AttackArgs(
        num_examples=len(EXAMPLES),
        log_to_csv=str(path),
        disable_stdout=True,
        silent=True,
        csv_coloring_style="file",
    )
    textattack.Attacker(attack, textattack.datasets.Dataset(EXAMPLES), arguments).attack_dataset()
    return AttackLog.read_csv(path)


@needs_textattack
@pytest.mark.parametrize("search", ["delete", "weighted-saliency"])
def test_a_log_is_that_of_textattacks_attacker(
    search: str, textattack: ModuleType, classifier: TextClassifier, tmp_path: Path
) -> None:
    theirs = textattack.models.wrappers.HuggingFaceModelWrapper(classifier.model, classifier.tokenizer)
    expected = attacker_log(textattack, synonym_attack(theirs, search), tmp_path / "log.csv")
    found = run_attack(synonym_attack(as_model_wrapper(classifier), search), classifier, EXAMPLES)
    assert {record.result_type for record in found} >= {"Successful"}
    for ours, record in zip(found, expected, strict=True):
        for name in ("original_text", "perturbed_text", "num_queries", "result_type", "original_output"):
            assert getattr(ours, name) == getattr(record, name)
        assert ours.original_score == pytest.approx(record.original_score, abs=1e-5)
        assert ours.perturbed_score == pytest.approx(record.perturbed_score, abs=1e-5)
        assert ours.outcome == record.outcome == ours.result_type


@needs_textattack
def test_gradient_order_runs(classifier: TextClassifier) -> None:
    attack = synonym_attack(as_model_wrapper(classifier), "gradient")
    assert run_attack(attack, classifier, EXAMPLES).summary().successful > 0


@needs_textattack
def test_a_recipe_runs_by_its_class_with_a_seed(textattack: ModuleType, classifier: TextClassifier) -> None:
    recipe = textattack.attack_recipes.DeepWordBugGao2018
    random.seed(5)
    expected = random.random()
    random.seed(5)
    log = run_attack(recipe, classifier, EXAMPLES, seed=1)
    assert random.random() == expected, "the global generator is left alone"
    assert log.name == "DeepWordBugGao2018" and log.model == classifier.name and len(log) == len(EXAMPLES)
    assert log.settings["textattack"] == "0.3.11"
    assert run_attack(recipe, classifier, EXAMPLES, seed=1) == log
    assert [r.perturbed_text for r in run_attack(recipe, classifier, EXAMPLES, seed=2)] != [
        r.perturbed_text for r in log
    ]


@needs_textattack
def test_a_query_budget_holds_for_one_run(classifier: TextClassifier) -> None:
    attack = synonym_attack(as_model_wrapper(classifier))
    free = run_attack(attack, classifier, EXAMPLES)
    limited = run_attack(attack, classifier, EXAMPLES, query_budget=5)
    assert max(r.num_queries for r in limited) == 5 < max(r.num_queries for r in free)
    assert run_attack(attack, classifier, EXAMPLES) == free


@needs_textattack
@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_run_goes_on_without_loss(
    after: int,
    textattack: ModuleType,
    classifier: TextClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, path = textattack.attack_recipes.DeepWordBugGao2018, tmp_path / "log.csv"
    whole = run_attack(recipe, classifier, EXAMPLES)
    attacked: list[int] = []
    real = textattack.Attack.attack

    def counting(self: Any, example: Any, label: int) -> Any:
        if len(attacked) == after:
            raise KeyboardInterrupt
        attacked.append(label)
        return real(self, example, label)

    with monkeypatch.context() as patch:
        patch.setattr(textattack.Attack, "attack", counting)
        with pytest.raises(KeyboardInterrupt):
            run_attack(recipe, classifier, EXAMPLES, path=path)
        assert list(AttackLog.read_csv(path)) == list(whole[:after])
        left = len(EXAMPLES) - after
        attacked.clear()
        after = left + 1
        assert run_attack(recipe, classifier, EXAMPLES, path=path) == whole
        assert len(attacked) == left
    assert AttackLog.read_csv(path) == whole
    with pytest.raises(ValueError, match="belongs to another run"):
        run_attack(recipe, classifier, EXAMPLES, path=path, seed=3)
    with pytest.raises(ValueError, match="belongs to another run"):
        run_attack(recipe, classifier, EXAMPLES[:-1], path=path)


# Records ----------------------------------------------------------------------------------------------------


@needs_textattack
def test_columns_are_marked_as_textattack_marks_them(
    textattack: ModuleType, classifier: TextClassifier
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": {"first": TEXTS[i], "second": TEXTS[i + 1]}, "label": LABELS[i]} for i in range(0, 4, 2)
    ]
    attack = synonym_attack(as_model_wrapper(classifier))
    found = run_attack(attack, classifier, rows)
    assert any(record.result_type == "Successful" for record in found)
    for row, record in zip(rows, found, strict=True):
        result = attack.attack(OrderedDict(row["text"]), row["label"])
        assert (record.original_text, record.perturbed_text) == result.diff_color("file")


@needs_textattack
def test_deleted_words_and_a_search_without_a_goal(
    textattack: ModuleType, classifier: TextClassifier
) -> None:
    log = run_attack(textattack.attack_recipes.InputReductionFeng2018, classifier, EXAMPLES[:2])
    for record in log:
        assert record.result_type == record.outcome != "Successful"
        if record.result_type == "Failed":
            assert "[[" in record.original_text and "[[" not in record.perturbed_text
            assert 0 < record.perturbed_word_rate() < 1


@needs_textattack
@pytest.mark.parametrize("text", ["", "123 !!", "?", "今天天气"])
def test_texts_without_a_language_are_attacked_too(text: str, classifier: TextClassifier) -> None:
    attack = synonym_attack(as_model_wrapper(classifier))
    for label in (0, 1):
        record = run_attack(attack, classifier, [(text, label)])[0]
        assert record.original_text == record.perturbed_text == text
        assert record.result_type in ("Failed", "Skipped")


@needs_textattack
def test_a_goal_score_beyond_the_boundary_is_kept_apart_from_the_outcome(classifier: TextClassifier) -> None:
    attack = synonym_attack(as_model_wrapper(classifier), target_max_score=0.001)
    log = run_attack(attack, classifier, EXAMPLES)
    assert any(r.outcome == "Successful" and r.result_type == "Failed" for r in log)
    assert all(r.perturbed_score > 0.999 for r in log if r.result_type == "Successful")


# Bad input --------------------------------------------------------------------------------------------------


@needs_textattack
def test_bad_arguments_are_refused(textattack: ModuleType, classifier: TextClassifier) -> None:
    attack = synonym_attack(as_model_wrapper(classifier))
    with pytest.raises(ValueError, match="query_budget is 0"):
        run_attack(attack, classifier, EXAMPLES, query_budget=0)
    with pytest.raises(ValueError, match="label of example 0 is 2"):
        run_attack(attack, classifier, [("film", 2)])
    with pytest.raises(TypeError, match="example 0"):
        run_attack(attack, classifier, ["film"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a textattack"):
        run_attack(lambda model: model, classifier, EXAMPLES)
    other = TextClassifier(*tiny_classifier())
    with pytest.raises(ValueError, match="asks another model"):
        run_attack(attack, other, EXAMPLES)


@needs_textattack
def test_a_goal_that_is_not_about_classes_is_refused(
    textattack: ModuleType, classifier: TextClassifier
) -> None:
    class Goal(textattack.goal_functions.GoalFunction):  # type: ignore[misc,name-defined]
        def _is_goal_complete(self, *_: object) -> bool:
            return False

        def _get_score(self, *_: object) -> float:
            return 0.0

        def _goal_function_result_type(self) -> None: ...

        def _process_model_outputs(self, *_: object) -> None: ...

    attack = synonym_attack(as_model_wrapper(classifier))
    attack.goal_function = Goal(as_model_wrapper(classifier))
    with pytest.raises(ValueError, match="goal is Goal"):
        run_attack(attack, classifier, EXAMPLES)
