"""What the Hub tests of language models run in processes of their own; arguments and answers are JSON."""

from pathlib import Path

import peft
import torch

from dialogkit.generation import TransformersLM
from tests.dialogkit.tiny import tiny_causal_lm

IDS = torch.tensor([[1, 2, 3]])


def push_base(repo_id: str) -> list[float]:
    """Makes a tiny language model the content of a repository; returns some of its logits."""
    lm = tiny_causal_lm(family="llama")
    lm.tokenizer.push_to_hub(repo_id)
    lm.model.push_to_hub(repo_id)
    return logits(lm)


def push_adapter(repo_id: str, base: str) -> tuple[str, list[float]]:
    """Pushes an adapter of a model on the Hub; returns the commit and the logits with the adapter."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lm = TransformersLM.from_pretrained(base)
    adapted = peft.get_peft_model(lm.model, config).eval()
    commit = adapted.push_to_hub(repo_id)
    with torch.no_grad():
        return str(commit.oid), adapted(IDS).logits[0, -1, :8].tolist()


def push_stray_adapter(repo_id: str, base: str) -> None:
    """Pushes an adapter that names any text as its base."""
    folder = Path("stray")
    lm = tiny_causal_lm(family="llama")
    adapted = peft.get_peft_model(lm.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


def load(repo_id: str, revision: str | None = None) -> list[float]:
    """Logits of what a repository holds."""
    return logits(TransformersLM.from_pretrained(repo_id, revision=revision))


def logits(lm: TransformersLM) -> list[float]:
    with torch.no_grad():
        found: list[float] = lm.model(IDS).logits[0, -1, :8].tolist()
    return found
