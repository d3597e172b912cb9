"""What the Hub tests run in processes of their own, so nothing here imports pytest.

The functions take and return what JSON can carry.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.cards import DataUse, Metric, ModelCard
from trainkit.hub import HubMixin, artefact_path, push_folder, read_json, write_json

CARD = ModelCard(
    title="Notes",
    method="Written by hand",
    summary="For tests.",
    licence="Apache-2.0",
    data=(DataUse("Shakespeare", "public domain"),),
    metrics=(Metric("recall@1", 0.5, "Shakespeare", "held-out", n=10),),
    seed=1,
    versions={"python": "3"},
)


class Notes(HubMixin):
    """A small artefact: some text, an array, and whatever files a test asks for."""

    def __init__(
        self, text: str, vector: np.ndarray | None = None, extra: dict[str, str] | None = None
    ) -> None:
        self.text = text
        self.vector = np.arange(3, dtype=np.float32) if vector is None else vector
        self.extra = extra or {}

    def _save(self, directory: Path) -> None:
        from safetensors.numpy import save_file

        write_json(directory / "notes.json", {"text": self.text})
        save_file({"vector": self.vector}, directory / "vector.safetensors")
        for name, content in self.extra.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(content)

    @classmethod
    def _load(cls, directory: Path) -> Notes:
        from safetensors.numpy import load_file

        return cls(
            read_json(directory / "notes.json")["text"], load_file(directory / "vector.safetensors")["vector"]
        )


def push(
    text: str, repo_id: str, options: dict[str, Any] | None = None, size: int = 3, card: bool = False
) -> str:
    options = dict(options or {})
    notes = Notes(text, np.arange(size, dtype=np.float32), options.pop("extra", None))
    return notes.push_to_hub(repo_id, card=CARD if card else None, **options)


def load(name: str, options: dict[str, Any] | None = None) -> list[Any]:
    notes = Notes.from_pretrained(name, **(options or {}))
    return [notes.text, notes.vector.tolist()]


def load_afresh(name: str) -> list[Any]:
    """Load with an empty cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    shutil.rmtree(HF_HUB_CACHE, ignore_errors=True)
    return load(name)


def do_not_wait() -> None:
    """Leave out the pauses that the Hub client makes between its attempts."""
    time.sleep = lambda seconds: None


def push_plain(folder: str, repo_id: str) -> str:
    return push_folder(folder, repo_id)


class TalkingNotes(HubMixin):
    """Notes with a transformers folder inside."""

    def __init__(self, model: Any, text: str) -> None:
        self.model, self.text = model, text

    def _save(self, directory: Path) -> None:
        self.model.save_pretrained(directory / "lm")
        write_json(directory / "notes.json", {"text": self.text, "model": "lm"})

    @classmethod
    def _load(cls, directory: Path) -> TalkingNotes:
        from transformers import AutoModelForCausalLM

        notes = read_json(directory / "notes.json")
        return cls(
            AutoModelForCausalLM.from_pretrained(artefact_path(directory, notes["model"])), notes["text"]
        )


def tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).bfloat16()


def composite(repo_id: str, folder: str) -> dict[str, bool]:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    TalkingNotes(model, "hi").save_pretrained(folder)
    commit = TalkingNotes(model, "hi").push_to_hub(repo_id, card=CARD)
    local, remote = (
        TalkingNotes.from_pretrained(folder),
        TalkingNotes.from_pretrained(repo_id, revision=commit),
    )
    nested = AutoModelForCausalLM.from_pretrained(repo_id, subfolder="lm")
    push_folder(Path(folder) / "lm", f"{repo_id}-plain")
    plain = AutoModelForCausalLM.from_pretrained(f"{repo_id}-plain")

    def same(other: Any) -> bool:
        mine, theirs = model.state_dict(), other.state_dict()
        return mine.keys() == theirs.keys() and all(
            mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
        )

    return {
        "folder": same(local.model) and local.text == "hi",
        "repository": same(remote.model) and remote.text == "hi",
        "subfolder by name": same(nested),
        "plain by name": same(plain),
        "changed model is noticed": not same(tiny_llama().float()),
    }


def sentence_encoder(repo_id: str, folder: str) -> dict[str, Any]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "hello", "there", "general"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    base = Path(folder) / "base"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        base
    )
    config = BertConfig(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    BertModel(config).save_pretrained(base)
    transformer = Transformer(str(base))
    encoder = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    encoder.save_pretrained(str(Path(folder) / "encoder"))
    push_folder(Path(folder) / "encoder", repo_id)
    again = SentenceTransformer(repo_id, device="cpu")
    texts = ["hello there", "general"]
    return {
        "same": bool((encoder.encode(texts) == again.encode(texts)).all()),
        "shape": list(again.encode(texts).shape),
    }


def tour(repo_id: str) -> dict[str, Any]:
    """Most of what the Hub's client can ask, in one go."""
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
        HfFileSystem,
        hf_hub_download,
    )
    from huggingface_hub.hf_api import RepoFile, RepoFolder

    api = HfApi()
    seen: dict[str, Any] = {"user": api.whoami()["name"]}
    api.create_repo(repo_id)
    contents = {"a.txt": b"one", "deep/b.txt": b"two", "deep/er/c.npy": b"x" * 2000}
    api.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in contents.items()],
        commit_message="Add three",
    )
    entries = list(api.list_repo_tree(repo_id, recursive=True))
    seen["files"] = sorted(entry.path for entry in entries if isinstance(entry, RepoFile))
    seen["folders"] = sorted(entry.path for entry in entries if isinstance(entry, RepoFolder))
    seen["top"] = sorted(entry.path for entry in api.list_repo_tree(repo_id))
    infos = [
        entry
        for entry in api.get_paths_info(repo_id, ["a.txt", "deep/er/c.npy", "missing"])
        if isinstance(entry, RepoFile)
    ]
    seen["sizes"] = {info.path: info.size for info in infos}
    seen["large"] = {info.path: info.lfs is not None for info in infos}
    api.create_tag(repo_id, tag="v1")
    api.create_branch(repo_id, branch="draft")
    api.create_commit(repo_id, [CommitOperationDelete(path_in_repo="a.txt")], commit_message="Remove a")
    refs = api.list_repo_refs(repo_id)
    seen["branches"] = sorted(ref.name for ref in refs.branches)
    seen["tags"] = [ref.name for ref in refs.tags]
    seen["titles"] = [commit.title for commit in api.list_repo_commits(repo_id)]
    seen["tagged"] = Path(hf_hub_download(repo_id, "a.txt", revision="v1")).read_text()
    seen["left"] = sorted(api.list_repo_files(repo_id))
    with HfFileSystem(skip_instance_cache=True).open(
        f"{repo_id}/deep/er/c.npy", "rb", block_size=100
    ) as file:
        file.seek(1500)
        seen["part"] = file.read(10).decode()
    seen["exists"] = [api.repo_exists(repo_id)]
    api.delete_tag(repo_id, tag="v1")
    api.delete_branch(repo_id, branch="draft")
    api.delete_repo(repo_id)
    seen["exists"].append(api.repo_exists(repo_id))
    return seen


def upload_text(repo_id: str, kind: str, name: str, text: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, repo_type=kind)
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id=repo_id, repo_type=kind)


def download_text(repo_id: str, kind: str, name: str) -> str:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, name, repo_type=kind)).read_text()


def raw_commit(repo_id: str, path: str) -> list[Any]:
    """A commit that the Hub's client would not send."""
    import base64
    import json
    import os
    import urllib.error
    import urllib.request

    lines: list[dict[str, Any]] = [
        {"key": "header", "value": {"summary": "forged"}},
        {"key": "file", "value": {"path": path, "content": base64.b64encode(b"x").decode()}},
    ]
    request = urllib.request.Request(
        f"{os.environ['HF_ENDPOINT']}/api/models/{repo_id}/commit/main",
        data=b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        headers={"Authorization": f"Bearer {os.environ['HF_TOKEN']}"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return [answer.status, ""]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]


def hang() -> None:
    import threading

    threading.Event().wait()


def fail() -> None:
    import nonsense  # type: ignore[import-not-found]  # noqa: F401
