"""G2R: a large dialogue generator distilled into a fast retriever."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chatbot import Provenance, RetrievalChatbot, RetrievalConfig
    from .data import ScoredContext, group_by_context, response_set
    from .distillation import Distilled, distil
    from .evaluation import evaluate_hits
    from .loss import G2RLoss, g2r_loss, teacher_distribution
    from .reranking import CrossEncoderReranker, LMReranker, Reranker
    from .scoring import ScoreConfig, TeacherScore, read_scored, score, score_responses
    from .training import G2RConfig, G2RMethod
    from .writing import AugmentConfig, Filters, augment

__all__ = [
    "AugmentConfig",
    "CrossEncoderReranker",
    "Distilled",
    "Filters",
    "G2RConfig",
    "G2RLoss",
    "G2RMethod",
    "LMReranker",
    "Provenance",
    "Reranker",
    "RetrievalChatbot",
    "RetrievalConfig",
    "ScoreConfig",
    "ScoredContext",
    "TeacherScore",
    "augment",
    "distil",
    "evaluate_hits",
    "g2r_loss",
    "group_by_context",
    "read_scored",
    "response_set",
    "score",
    "score_responses",
    "teacher_distribution",
]

_HOMES = {
    "AugmentConfig": "writing",
    "CrossEncoderReranker": "reranking",
    "Distilled": "distillation",
    "Filters": "writing",
    "G2RConfig": "training",
    "G2RLoss": "loss",
    "G2RMethod": "training",
    "LMReranker": "reranking",
    "Provenance": "chatbot",
    "Reranker": "reranking",
    "RetrievalChatbot": "chatbot",
    "RetrievalConfig": "chatbot",
    "ScoreConfig": "scoring",
    "ScoredContext": "data",
    "TeacherScore": "scoring",
    "augment": "writing",
    "distil": "distillation",
    "evaluate_hits": "evaluation",
    "g2r_loss": "loss",
    "group_by_context": "data",
    "read_scored": "scoring",
    "response_set": "data",
    "score": "scoring",
    "score_responses": "scoring",
    "teacher_distribution": "loss",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
