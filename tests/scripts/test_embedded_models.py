"""The corpus, the invented voices and the measuring code behind the embedded models."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from embedded_models import corpus as corpora
from embedded_models.corpus import Corpus, Exchange, WindowSampler, context_pool, ending, shorten, tidy
from embedded_models.language_model import LMSettings, PackedWindows, train_tokenizer
from embedded_models.retriever import bm25_scores, recall_table
from embedded_models.style import StyleStudy, copied, questions
from embedded_models.voices import Voice, random_name, random_voice
from hypothesis import given
from hypothesis import strategies as st

from dialogkit.embedded import character_names, character_path
from trainkit.datafiles import data_file

ROOT = Path(__file__).parents[2]
EVERYDAY = tuple(
    Exchange(f"What do you think about {thing}?", f"I like {thing}, but not every day.")
    for thing in (
        "rain",
        "tea",
        "bread",
        "work",
        "music",
        "dogs",
        "trains",
        "books",
        "snow",
        "apples",
        "cards",
    )
)
SMALL = Corpus(
    topical=(tuple(f"Turn number {i} is here." for i in range(9)),),
    plays={"A": EVERYDAY},
    matched={"A": EVERYDAY},
    personas={"b": EVERYDAY},
    everyday=EVERYDAY,
    brief=EVERYDAY,
)


def needs_data() -> None:
    try:
        data_file("dialogue/shakespeare.jsonl.gz")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@given(st.integers(0, 10_000))
def test_an_invented_voice_is_one_line_and_repeatable(seed: int) -> None:
    def spoken() -> list[str]:
        rng = Random(seed)
        voice = random_voice(rng)
        return [voice.apply("I am fine, thank you. How are you today?", rng) for _ in range(3)]

    lines = spoken()
    assert lines == spoken()
    assert all(line.strip() and "\n" not in line for line in lines)


def test_habits_do_what_they_say() -> None:
    rng = Random(0)
    always = {"opener": 1.0, "closer": 1.0, "address": 1.0, "sentence": 1.0, "filler": 1.0}
    text = "The walking bear is here. I see it."
    assert Voice(openers=("Arrgh",), rates=always).apply(text, rng).startswith("Arrgh, the walking")
    assert Voice(closers=("indeed",), rates=always).apply(text, rng).endswith("I see it, indeed.")
    assert Voice(sentences=("So be it.",), rates=always).apply(text, rng).count("So be it.") == 1
    assert Voice(short=True).apply(text, rng) == "The walking bear is here."
    assert Voice(drop_g=True).apply(text, rng).startswith("The walkin' bear")
    assert Voice(casing="upper").apply(text, rng) == text.upper()
    assert Voice(ending="!").apply(text, rng) == "The walking bear is here! I see it!"
    assert (
        Voice(lexicon={"bear": "wee bear", "i": "we"}).apply(text, rng)
        == "The walking wee bear is here. we see it."
    )
    assert Voice().apply(text, rng) == text


def test_names_fit_the_prompt_format() -> None:
    rng = Random(1)
    assert all(name.replace(" ", "").isalpha() for name in (random_name(rng) for _ in range(200)))


def test_text_is_cut_at_clauses() -> None:
    assert tidy("  so’s  it  “now” ") == 'So\'s it "now"'
    assert tidy("Aside to HAMLET Good my lord") == "Good my lord"
    assert shorten("One two. Three four; five six.", 4) == "One two. Three four."
    assert shorten("one two three four five", 4) == ""
    assert ending("One two. Three four; five six.", 2) == "Five six."


def test_segments_spell_what_the_whole_window_spells() -> None:
    settings = LMSettings(vocab_size=400, length=48)
    tokenizer = train_tokenizer(SMALL, settings, windows=200)
    sampler, rng = WindowSampler(SMALL), Random(4)
    for _ in range(50):
        window = sampler.window(rng)
        pieces = tokenizer([part.text for part in window], add_special_tokens=False)["input_ids"]
        whole = tokenizer("".join(part.text for part in window), add_special_tokens=False)["input_ids"]
        assert [token for piece in pieces for token in piece] == whole
        assert window[0].text.startswith("This is conversation between User and ")
        assert len(window) % 3 == 1


def test_packed_rows_depend_on_seed_and_index_alone() -> None:
    settings = LMSettings(vocab_size=400)
    tokenizer = train_tokenizer(SMALL, settings, windows=200)
    rows = [
        PackedWindows(WindowSampler(SMALL), tokenizer, rows=9, length=48, seed=seed) for seed in (1, 1, 2)
    ]
    assert rows[0][3]["input_ids"].shape == (49,)
    assert rows[0][3]["input_ids"].equal(rows[1][3]["input_ids"])
    assert not rows[0][3]["input_ids"].equal(rows[2][3]["input_ids"])


def test_recall_counts_ties_as_half_and_finds_the_true_reply() -> None:
    pairs = [Exchange(f"c{i}", f"r{i}") for i in range(20)]

    def exact(contexts, candidates):
        return np.array([[float(c[1:] == r[1:]) for r in candidates] for c in contexts])

    def blind(contexts, candidates):
        return np.zeros((len(contexts), len(candidates)))

    rows = recall_table(pairs, [], {"exact": exact, "blind": blind}, sizes=(10,), queries=10, draws=2)
    assert [row["recall@1"] for row in rows] == [1.0, 0.0]
    assert rows[1]["recall@10"] == 1.0


def test_bm25_prefers_the_shared_word() -> None:
    pytest.importorskip("bm25s")
    scores = bm25_scores(["where is the lamp"], ["a cat sleeps", "the lamp stands there", "bread and butter"])
    assert scores.shape == (1, 3)
    assert scores[0].argmax() == 1


def test_copying_means_five_words_in_a_row() -> None:
    shown = ["The sea is wide and the wind is free."]
    assert copied("I say the sea is wide and so on", shown)
    assert not copied("I say the sea is narrow and so on", shown)
    assert copied("the wind", shown)


def test_study_table_averages_and_pairs_its_differences() -> None:
    means = {"zero-shot": 0.1, "utterances only": 0.2, "PDP static": 0.5}
    probs = {name: np.full((3, 4, 2), mean) for name, mean in means.items()}
    replies = [{"method": name, "reply": "a b c", "copied": False} for name in probs]
    study = StyleStudy(probs, replies, accuracy=1.0)
    assert [row["StyleProb"] for row in study.table(resamples=50)] == pytest.approx([0.1, 0.2, 0.5])
    gaps = {row["difference"]: row for row in study.differences(resamples=50)}
    assert gaps["PDP static − utterances only"]["mean"] == pytest.approx(0.3)
    assert gaps["PDP static − zero-shot"]["low"] == pytest.approx(0.4)


def test_study_lines_are_apart_from_prompts_and_training_text() -> None:
    study = json.loads((ROOT / "scripts/data/style_eval.json").read_text(encoding="utf-8"))
    training = {
        text.lower()
        for path in (ROOT / "scripts/data").glob("smalltalk_*.jsonl")
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        for text in (row["context"], row["response"])
    }
    assert set(study["speakers"]) == set(character_names())
    for name, entry in study["speakers"].items():
        shown = json.loads(character_path(name).read_text(encoding="utf-8"))["utterances"]
        assert 8 <= len(shown) <= 20
        assert not {line.lower() for line in entry["lines"]} & {line.lower() for line in shown}
        assert not {line.lower() for line in [*shown, *entry["lines"]]} & training
    assert len(questions("questions")) == len(set(questions("questions"))) == 50
    assert not set(questions("questions")) & set(questions("dev_questions"))
    assert not {text.lower() for text in context_pool()} & corpora.reserved_questions()


def test_nothing_held_out_is_trained_on() -> None:
    needs_data()
    train, heldout = corpora.load_corpus("train"), corpora.load_corpus("heldout")

    def replies(corpus: Corpus) -> set[str]:
        groups = [*corpus.plays.values(), *corpus.personas.values()]
        return {item.response for group in groups for item in group if len(item.response.split()) > 4}

    assert not set(corpora.HELD_OUT_SPEAKERS) & set(train.plays)
    assert set(corpora.HELD_OUT_SPEAKERS) <= set(heldout.plays)
    assert not {item.response for lines in train.personas.values() for item in lines} & {
        item.response for lines in heldout.personas.values() for item in lines
    }
    shared = replies(train) & replies(heldout)
    assert len(shared) < 5, shared
    assert not {item.context for item in train.everyday} & {item.context for item in heldout.everyday}
    assert not {item.context.lower() for item in train.everyday} & corpora.reserved_questions()


def test_a_wrong_part_is_refused() -> None:
    with pytest.raises(ValueError, match="part must be"):
        corpora.load_corpus("test")
