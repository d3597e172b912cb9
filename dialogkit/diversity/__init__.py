"""Diversity of responses: lexical metrics, semantic clusters and Sem-Ent, DRESS training.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clusters import (
        DifferentClustersError,
        SemanticClusters,
        principal_components,
    )
    from .encoders import (
        CausalLMEncoder,
        ResponseEncoder,
        SentenceTransformerEncoder,
        load_encoder,
    )
    from .lexical import (
        TokenTable,
        distinct_n,
        entropy_n,
        low_frequency,
        mean_length,
        self_bleu,
        token_counts,
    )
    from .semantic import (
        SemEnt,
        SemEntScore,
        bootstrap_interval,
        quantized_mauve,
        sem_ent,
        vendi_score,
    )

__all__ = [
    "CausalLMEncoder",
    "DifferentClustersError",
    "ResponseEncoder",
    "SemEnt",
    "SemEntScore",
    "SemanticClusters",
    "SentenceTransformerEncoder",
    "TokenTable",
    "bootstrap_interval",
    "distinct_n",
    "entropy_n",
    "load_encoder",
    "low_frequency",
    "mean_length",
    "principal_components",
    "quantized_mauve",
    "self_bleu",
    "sem_ent",
    "token_counts",
    "vendi_score",
]

_HOMES = {
    "CausalLMEncoder": "encoders",
    "DifferentClustersError": "clusters",
    "ResponseEncoder": "encoders",
    "SemEnt": "semantic",
    "SemEntScore": "semantic",
    "SemanticClusters": "clusters",
    "SentenceTransformerEncoder": "encoders",
    "TokenTable": "lexical",
    "bootstrap_interval": "semantic",
    "distinct_n": "lexical",
    "entropy_n": "lexical",
    "load_encoder": "encoders",
    "low_frequency": "lexical",
    "mean_length": "lexical",
    "principal_components": "clusters",
    "quantized_mauve": "semantic",
    "self_bleu": "lexical",
    "sem_ent": "semantic",
    "token_counts": "lexical",
    "vendi_score": "semantic",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
