"""Settings of Pseudo Dialog Prompting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dialogkit.generation.types import GenerationConfig

from .matching import DrawnPer, Order

__all__ = ["MatcherKind", "PDPConfig", "PromptKind", "Selection", "embedded_config"]

MatcherKind = Literal["static", "dynamic", "random", "gold"]
PromptKind = Literal["auto", "dialog", "chat", "utterances", "zero-shot"]
Selection = Literal["logprob", "ranker", "random", "first"]


@dataclass(frozen=True)
class PDPConfig:
    """Settings of Pseudo Dialog Prompting.

    Defaults follow the paper and the authors' README except where noted.

    Attributes:
        matcher: Where contexts come from: ``"dynamic"``, ``"static"``, ``"random"`` or ``"gold"``.
        prompt: Layout: ``"dialog"`` (the paper's), ``"chat"`` (messages for an instruction-tuned model,
            ours), the baselines ``"utterances"`` and ``"zero-shot"``, or ``"auto"``: ``"chat"`` where the
            model takes chat messages, otherwise ``"dialog"``.
        selection: Which candidate becomes the reply: ``"logprob"`` the highest mean log-probability per token
            (the authors' README; they do not say how the score is normalised), ``"ranker"`` the highest
            ``e_ctx(x) . e_resp(candidate)`` (default of their command line), ``"random"``, or ``"first"``.
        max_dialogs: Most pairs in a prompt; None for all. The paper shows 8.
        order: ``"ascending"`` puts the utterance that fits the input best last.
        input_weight: Dynamic match: weight of the similarity to the input, without unit.
        exclude_input: Dynamic match: never choose a context equal to the input (not in the authors' code).
        random_seed: Random match: seed of the draw.
        random_per: Random match: draw once per ``"session"`` (the authors: once per run) or every ``"turn"``.
        fallback_context: Context for an empty pool; None makes an empty pool an error. The authors' code
            uses ``"Hello."``.
        max_message_share: If a prompt is too long for the model, the last message may keep at most this share
            of the room, in (0, 1], before pairs are dropped (ours).
        generation: How candidates are drawn. The defaults are not from the paper, whose settings are unknown.

    Raises:
        ValueError: A value is out of its range.
    """

    matcher: MatcherKind = "dynamic"
    prompt: PromptKind = "auto"
    selection: Selection = "logprob"
    max_dialogs: int | None = None
    order: Order = "ascending"
    input_weight: float = 1.0
    exclude_input: bool = True
    random_seed: int = 777
    random_per: DrawnPer = "session"
    fallback_context: str | None = None
    max_message_share: float = 0.5
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("matcher", get_args(MatcherKind)),
            ("prompt", get_args(PromptKind)),
            ("selection", get_args(Selection)),
            ("order", get_args(Order)),
            ("random_per", get_args(DrawnPer)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.max_dialogs is not None and self.max_dialogs < 1:
            raise ValueError(f"max_dialogs must be at least 1, or None for all, got {self.max_dialogs}")
        if not 0 < self.max_message_share <= 1:
            raise ValueError(f"max_message_share must be in (0, 1], got {self.max_message_share}")


def embedded_config() -> PDPConfig:
    """Settings for the small language model that ships with the package (ours, not the paper's).

    Eight pairs, the number it was trained around, and temperature 0.7: at 1.0 a model of its size draws too
    many words that fit nothing. Chosen by reading replies to the study's development questions.
    """
    return PDPConfig(max_dialogs=8, generation=GenerationConfig(temperature=0.7))
