"""Who can be talked with, and how a visitor may change them."""

import pytest

from dialogkit.bots import GeneratorChatbot
from dialogkit.generation import GenerationConfig
from dialogkit.pdp import (
    Character,
    DynamicMatcher,
    GoldMatcher,
    PDPChatbot,
    RandomMatcher,
    StaticMatcher,
    UtterancesPrompt,
)
from dialogkit.web.cast import UPLOADED, Cast, Controls
from tests.dialogkit.pdp.helpers import HashRetriever, character, index
from tests.dialogkit.web.people import WholeBot, WordsLM, pdp

TOM = Character("Tom", ("Soup, always soup.",), gold_contexts=("What is for lunch?",))


def played(cast: Cast, who: str, **changes: object) -> PDPChatbot:
    bot = cast.bot(who, **changes)  # type: ignore[arg-type]
    assert isinstance(bot, PDPChatbot)
    return bot


def test_a_page_needs_somebody_to_talk_with() -> None:
    with pytest.raises(ValueError, match="bots is empty"):
        Cast({})


def test_characters_go_by_their_names_others_by_their_keys_and_no_two_alike() -> None:
    plum, _ = pdp()
    plum_too, _ = pdp()
    tom, _ = pdp(who=TOM)
    lm = GeneratorChatbot(WordsLM())
    names = Cast({"a": plum, "b": plum_too, "c": tom, "Tom": lm}).names()
    assert names == {"a": "Mrs Plum (a)", "b": "Mrs Plum (b)", "c": "Tom (c)", "Tom": "Tom (Tom)"}
    assert Cast({"a": plum, "lm": lm}).names() == {"a": "Mrs Plum", "lm": "lm"}


def test_the_controls_are_those_that_do_something() -> None:
    plum, model = pdp()
    tom, _ = pdp(who=TOM)
    lines = PDPChatbot(model, character(), prompt=UtterancesPrompt(), matcher=DynamicMatcher(index()))
    random = PDPChatbot(model, character(), matcher=RandomMatcher(index().pool, HashRetriever()))
    greedy = GeneratorChatbot(model, generation=GenerationConfig(do_sample=False))
    cast = Cast(
        {"plum": plum, "tom": tom, "lines": lines, "random": random, "lm": greedy, "whole": WholeBot()}
    )
    assert cast.controls("plum") == Controls(("dynamic", "static", "random"), "dynamic", 1.0)
    assert cast.controls("tom").matchers == ("dynamic", "static", "random", "gold")
    assert cast.controls(UPLOADED, TOM).matchers == ("dynamic", "static", "random", "gold")
    assert cast.controls("lines").matchers == () and cast.controls("random").matchers == ()
    assert cast.controls("lm") == Controls(temperature=0.0)
    assert cast.controls("whole") == Controls()


@pytest.mark.parametrize(
    ("kind", "made"), [("static", StaticMatcher), ("random", RandomMatcher), ("gold", GoldMatcher)]
)
def test_another_matcher_uses_the_same_models_and_contexts(kind: str, made: type) -> None:
    tom, model = pdp(who=TOM)
    cast = Cast({"tom": tom})
    changed = played(cast, "tom", matcher=kind)
    assert isinstance(changed.matcher, made) and changed.model is model
    assert changed.matcher.max_dialogs == 3
    assert changed.matcher.retriever is tom.matcher.retriever  # type: ignore[union-attr]
    assert played(cast, "tom", matcher=kind).matcher is changed.matcher, "it remembers embeddings"
    assert tom.matcher is not changed.matcher and tom.config.matcher == "dynamic"


def test_a_temperature_changes_nobody_elses_bot() -> None:
    plum, _ = pdp()
    lm = GeneratorChatbot(WordsLM(), generation=GenerationConfig(max_new_tokens=7), name="Lm")
    cast = Cast({"plum": plum, "lm": lm})
    assert played(cast, "plum", temperature=0.3).config.generation.temperature == 0.3
    assert played(cast, "plum", temperature=0).config.generation.do_sample is False
    assert plum.config.generation == GenerationConfig()
    hot = cast.bot("lm", temperature=1.7)
    assert isinstance(hot, GeneratorChatbot) and hot.model is lm.model and hot.name == "Lm"
    assert hot.generation == GenerationConfig(max_new_tokens=7, temperature=1.7)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        cast.bot("plum", temperature=-1)


def test_a_visitors_character_is_played_by_the_models_of_another() -> None:
    plum, model = pdp()
    cast = Cast({"whole": WholeBot(), "plum": plum})
    assert cast.takes_characters and cast.first == "whole"
    tom = played(cast, UPLOADED, character=TOM, matcher="gold")
    assert tom.name == "Tom" and tom.model is model
    with pytest.raises(ValueError, match="no character file"):
        cast.bot(UPLOADED)
    assert not Cast({"whole": WholeBot()}).takes_characters


def test_what_a_browser_may_make_up_is_refused() -> None:
    plum, _ = pdp()
    for who in ("../../etc/passwd", "", "nobody"):
        with pytest.raises(ValueError, match="nobody of that name"):
            Cast({"plum": plum}).bot(who)
    for matcher in ("gold", "psychic"):
        with pytest.raises(ValueError, match="Mrs Plum cannot be matched that way"):
            Cast({"plum": plum}).bot("plum", matcher=matcher)
    with pytest.raises(ValueError, match="nobody of that name"):
        Cast({"whole": WholeBot()}).bot(UPLOADED, TOM)
