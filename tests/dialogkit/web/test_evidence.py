"""The panel that says where a reply comes from."""

from html.parser import HTMLParser

import pytest

from dialogkit.chat import Reply
from dialogkit.web.evidence import why_html
from tests.dialogkit.web.people import pdp

HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;</p><script>${1}</script>{{user}}"


class Parsed(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_pairs_of_a_reply_stand_there_with_both_scores_the_best_first() -> None:
    bot, _ = pdp()
    reply = bot.reply("Will it rain?")
    pairs = reply.evidence["pairs"]
    shown = Parsed(why_html(reply, bot.name, "Will it rain?")).text
    assert len(pairs) == 3 and "3 invented exchanges with Mrs Plum, chosen by dynamic match" in shown
    for pair in pairs:
        assert pair["context"] in shown and pair["utterance"] in shown
        assert f"{pair['match_score']:.3f}" in shown and f"{pair['order_score']:.3f}" in shown
    places = [shown.index(f"{pair['order_score']:.3f}") for pair in pairs]
    assert places == sorted(places, reverse=True)
    assert str(reply.evidence["prompt"]) in shown
    assert "words · 0." in shown and "/folder/of/this/machine" not in shown


@pytest.mark.parametrize(
    "evidence",
    [
        {"pairs": [{"context": HOSTILE, "utterance": HOSTILE, "match_score": None, "order_score": 1.0}]},
        {"candidates": [{"response": HOSTILE, "score": 0.5, "rank_score": 2.0}]},
        {"exemplars": [HOSTILE]},
        {
            "exemplars": [HOSTILE],
            "considered": [{"exemplar": HOSTILE, "reply": HOSTILE, "score": 1, "rank_score": 1}],
        },
        {"prompt": HOSTILE},
        {"prompt": [{"role": HOSTILE, "content": HOSTILE}]},
        {"model": HOSTILE.replace("/", ""), "matcher": HOSTILE},
        {},
    ],
)
def test_no_text_becomes_markup(evidence: dict[str, object]) -> None:
    parsed = Parsed(why_html(Reply("x", evidence=evidence), HOSTILE, HOSTILE))
    assert parsed.tags <= {"div", "p", "ol", "li", "span", "i", "b", "details", "summary", "pre"}
    assert not parsed.open and HOSTILE in parsed.text


def test_found_responses_and_exemplars_are_shown() -> None:
    rows = [{"response": "Tea.", "score": 0.5, "rank_score": 2.0}, {"response": "Soup.", "score": 0.75}]
    shown = Parsed(why_html(Reply("Tea.", evidence={"candidates": rows}), "Ann", "Lunch?")).text
    assert shown.index("Tea.") < shown.index("Soup.")
    assert "score 0.500" in shown and "rank score 2.000" in shown and "score 0.750" in shown
    shown = Parsed(why_html(Reply("Tea.", evidence={"exemplars": ["Cake."]}), "Ann", "Lunch?")).text
    assert "Cake." in shown and "exemplar in view" in shown


def test_an_exemplars_rivals_are_shown_with_their_replies() -> None:
    considered = [
        {"exemplar": "Cake.", "reply": "Cake, dear.", "score": 0.5, "rank_score": -1.25},
        {"exemplar": None, "reply": "", "score": None, "rank_score": None},
    ]
    evidence = {"exemplars": ["Cake."], "considered": considered}
    shown = Parsed(why_html(Reply("Cake, dear.", evidence=evidence), "Ann", "Lunch?")).text
    assert shown.index("Exemplar: Cake.") < shown.index("Cake, dear.") < shown.index("Without an exemplar")
    assert "score 0.500" in shown and "rank score -1.250" in shown


def test_what_did_not_fit_is_said() -> None:
    evidence = {"dropped_turns": 4, "dropped_pairs": 2, "shortened_message": True}
    shown = Parsed(why_html(Reply("Tea.", evidence=evidence), "Ann", "Lunch?")).text
    assert "nothing was looked up" in shown
    assert "4 old turns did not fit · 2 exchanges did not fit · the message was shortened" in shown
