"""Diversity of responses: lexical metrics, semantic clusters and Sem-Ent, DRESS training.

Nothing heavy is imported here: a name is looked up in its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import (
        EDFConfig,
        LikelihoodObjective,
        MMIReranker,
        NegativeTraining,
        NegativeTrainingConfig,
        edf_filter,
        pair_entropies,
        unlikelihood_loss,
    )
    from .clusters import DifferentClustersError, SemanticClusters, principal_components
    from .dress import (
        DressConfig,
        DressMethod,
        DressRow,
        dress_loss,
        dress_terms,
        dress_weights,
        human_perplexity,
        train_dress,
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
    from .mining import (
        Mined,
        MiningConfig,
        NegativeMiner,
        ReplyClusters,
        head_clusters,
    )
    from .pairs import PairEncoder
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
    "DressConfig",
    "DressMethod",
    "DressRow",
    "EDFConfig",
    "LikelihoodObjective",
    "MMIReranker",
    "Mined",
    "MiningConfig",
    "NegativeMiner",
    "NegativeTraining",
    "NegativeTrainingConfig",
    "PairEncoder",
    "ReplyClusters",
    "ResponseEncoder",
    "SemEnt",
    "SemEntScore",
    "SemanticClusters",
    "SentenceTransformerEncoder",
    "TokenTable",
    "bootstrap_interval",
    "distinct_n",
    "dress_loss",
    "dress_terms",
    "dress_weights",
    "edf_filter",
    "entropy_n",
    "head_clusters",
    "human_perplexity",
    "load_encoder",
    "low_frequency",
    "mean_length",
    "pair_entropies",
    "principal_components",
    "quantized_mauve",
    "self_bleu",
    "sem_ent",
    "token_counts",
    "train_dress",
    "unlikelihood_loss",
    "vendi_score",
]

_HOMES = {
    "CausalLMEncoder": "encoders",
    "DifferentClustersError": "clusters",
    "DressConfig": "dress",
    "DressMethod": "dress",
    "DressRow": "dress",
    "EDFConfig": "baselines",
    "LikelihoodObjective": "baselines",
    "MMIReranker": "baselines",
    "Mined": "mining",
    "MiningConfig": "mining",
    "NegativeMiner": "mining",
    "NegativeTraining": "baselines",
    "NegativeTrainingConfig": "baselines",
    "PairEncoder": "pairs",
    "ReplyClusters": "mining",
    "ResponseEncoder": "encoders",
    "SemEnt": "semantic",
    "SemEntScore": "semantic",
    "SemanticClusters": "clusters",
    "SentenceTransformerEncoder": "encoders",
    "TokenTable": "lexical",
    "bootstrap_interval": "semantic",
    "distinct_n": "lexical",
    "dress_loss": "dress",
    "dress_terms": "dress",
    "dress_weights": "dress",
    "edf_filter": "baselines",
    "entropy_n": "lexical",
    "head_clusters": "mining",
    "human_perplexity": "dress",
    "load_encoder": "encoders",
    "low_frequency": "lexical",
    "mean_length": "lexical",
    "pair_entropies": "baselines",
    "principal_components": "clusters",
    "quantized_mauve": "semantic",
    "self_bleu": "lexical",
    "sem_ent": "semantic",
    "token_counts": "lexical",
    "train_dress": "dress",
    "unlikelihood_loss": "baselines",
    "vendi_score": "semantic",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
