"""The panel that says why a reply is what it is, as HTML.

Every text that somebody wrote goes through :func:`html.escape`; nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import PurePath
from typing import Any

from dialogkit.chat import Reply

__all__ = ["NOTHING_YET", "why_html"]

NOTHING_YET = '<p class="dk-dim">Send a message, then look here for where the reply comes from.</p>'


def why_html(reply: Reply, name: str, asked: str) -> str:
    """What a reply was made from, the most important first.

    Args:
        reply: The reply with its evidence: ``pairs`` (pseudo-dialogues), ``candidates`` (found responses) or
            ``exemplars``, and the ``prompt``. Whatever it holds is shown.
        name: The bot's name.
        asked: The message that was answered.

    Returns:
        HTML.
    """
    evidence = reply.evidence
    parts = [f'<p class="dk-quote">{escape(asked)}</p>']
    if pairs := evidence.get("pairs", ()):
        parts.append(_pairs(list(pairs), name, str(evidence.get("matcher") or "")))
    if found := evidence.get("candidates", ()):
        parts.append(_found(list(found)))
    if exemplars := evidence.get("exemplars", ()):
        parts.append(_exemplars([str(text) for text in exemplars], list(evidence.get("considered", ()))))
    if len(parts) == 1:
        parts.append("<p>The language model answered from the conversation alone; nothing was looked up.</p>")
    parts.append(_facts(reply))
    if prompt := evidence.get("prompt"):
        parts.append(
            "<details><summary>The whole prompt</summary>"
            f'<pre tabindex="0">{escape(_prompt(prompt))}</pre></details>'
        )
    return f'<div class="dk-why">{"".join(parts)}</div>'


def _pairs(pairs: list[Mapping[str, Any]], name: str, matcher: str) -> str:
    shown = pairs[::-1]  # the last pair of a prompt stands next to the message
    least = min(float(pair["order_score"]) for pair in shown)
    span = max(float(pair["order_score"]) for pair in shown) - least
    exchanges = "an invented exchange" if len(shown) == 1 else f"{len(shown)} invented exchanges"
    intro = (
        f"The language model went on from {exchanges} with {escape(name)}, chosen by "
        f"{escape(matcher)} match. The one that fits the message best stood next to it in the prompt."
        if any(pair["context"] for pair in shown)
        else f"The language model had these lines of {escape(name)} in view; the best fitting stood last."
    )
    cards = [
        _card(
            pair["context"],
            pair["utterance"],
            {"fit to the message": pair["order_score"], "match of the pair": pair.get("match_score")},
            bar=(float(pair["order_score"]) - least) / span if span else 1.0,
        )
        for pair in shown
    ]
    return f'<p>{intro}</p><ol class="dk-cards">{"".join(cards)}</ol>'


def _found(rows: list[Mapping[str, Any]]) -> str:
    cards = [
        _card("", row["response"], {"score": row["score"], "rank score": row.get("rank_score")})
        for row in rows
    ]
    return f'<p>The reply is the first of these responses.</p><ol class="dk-cards">{"".join(cards)}</ol>'


def _exemplars(texts: list[str], considered: list[Mapping[str, Any]]) -> str:
    """The exemplars that a reply was written with, and what the others would have given."""
    cards = [_card("", text, {}) for text in texts]
    if considered:
        cards = [
            _card(
                f"Exemplar: {row['exemplar']}" if row["exemplar"] is not None else "Without an exemplar",
                row["reply"],
                {"score": row["score"], "rank score": row["rank_score"]},
            )
            for row in considered
        ]
    intro = "The reply was written with an exemplar in view: the first of these."
    return f'<p>{intro}</p><ol class="dk-cards">{"".join(cards)}</ol>'


def _card(context: str, line: str, scores: Mapping[str, Any], *, bar: float | None = None) -> str:
    parts = [f'<p class="dk-context">{escape(str(context))}</p>'] if context else []
    parts.append(f'<p class="dk-line">{escape(str(line))}</p>')
    told = _scores(scores.items())
    if bar is not None:
        told = f'<span class="dk-bar"><i style="width:{100 * bar:.0f}%"></i></span>{told}'
    if told:
        parts.append(f'<p class="dk-scores">{told}</p>')
    return f"<li>{''.join(parts)}</li>"


def _scores(scores: Iterable[tuple[str, Any]]) -> str:
    return " ".join(
        f"<span>{label} <b>{float(score):.3f}</b></span>" for label, score in scores if score is not None
    )


def _facts(reply: Reply) -> str:
    evidence = reply.evidence
    # The model's name may be a folder of this machine, which is nobody's business.
    facts = [PurePath(str(evidence["model"])).name] if evidence.get("model") else []
    if evidence.get("dropped_turns"):
        facts.append(f"{evidence['dropped_turns']} old turns did not fit")
    if evidence.get("dropped_pairs"):
        facts.append(f"{evidence['dropped_pairs']} exchanges did not fit")
    if evidence.get("shortened_message"):
        facts.append("the message was shortened to fit")
    if "total" in reply.timing:
        facts.append(f"{reply.timing['total']:.1f} s")
    return f'<p class="dk-dim">{escape(" · ".join(facts))}</p>' if facts else ""


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
