"""Indexes and chatbots that retrieve on a Hub that runs on the loopback interface."""

import re
from collections.abc import Iterator

import pytest

from tests.dialogkit.g2r import hub_clients as clients
from tests.hub_server import HubClient, HubServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def owner(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    with HubClient(hub, tmp_path_factory.mktemp("owner"), token=hub.token) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    with HubClient(hub, tmp_path_factory.mktemp("stranger")) as client:
        yield client


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_pushed_index_finds_the_same(hub: HubServer, owner: HubClient, kind: str) -> None:
    name = f"tester/index-{kind}"
    commit, found, recall = owner.call(clients.push_index, name, kind, timeout=300)
    stored = hub.repository(name).commits[commit].files
    expected = {"README.md", "embeddings.npy", "index.json", "responses.txt", "trainkit.json"}
    assert expected <= set(stored)
    assert ("index.faiss" in stored) == (kind != "flat")
    assert stored["embeddings.npy"].lfs
    card = stored["README.md"].data.decode()
    assert "Index of 300 responses" in card
    for key, value in recall.items():
        assert re.search(rf"{key}.*{value:.4g}", card), card
    assert bool(recall) == (kind != "flat")
    assert owner.call(clients.search, name, commit, timeout=300) == found


def test_a_pushed_index_can_grow_and_knows_its_encoder(
    hub: HubServer, owner: HubClient, stranger: HubClient
) -> None:
    first, found, _ = owner.call(clients.push_index, "tester/growing", "hnsw", timeout=300)
    second, size = owner.call(clients.grow_index, "tester/growing", timeout=300)
    assert size == 301
    lines = hub.repository("tester/growing").commits[second].files["responses.txt"].data.decode()
    assert lines.splitlines() == [*clients.RESPONSES, "something new"]
    assert owner.call(clients.search, "tester/growing", first, timeout=300) == found
    refused = stranger.call(clients.check_with_other_weights, "tester/growing", timeout=300)
    assert "built with another encoder" in refused


def test_a_pushed_chatbot_says_the_same_elsewhere_and_keeps_its_card(
    hub: HubServer, owner: HubClient, stranger: HubClient
) -> None:
    commit, said = owner.call(clients.push_bot, "tester/ann", timeout=300)
    stored = hub.repository("tester/ann").commits[commit].files
    assert {"chatbot.json", "retriever/modules.json", "index/embeddings.npy", "README.md"} <= set(stored)
    assert stranger.call(clients.talk, "tester/ann", None, timeout=300) == said
    assert stranger.call(clients.talk, "tester/ann", commit, timeout=300) == said
    copy = owner.call(clients.push_again, "tester/ann", "tester/copy", timeout=300)
    for name, revision in (("tester/ann", commit), ("tester/copy", copy)):
        card = hub.repository(name).commits[revision].files["README.md"].data.decode()
        for words in ("G2R, alpha 0.25", "Small Talk", "CC0-1.0", "0.8125", "300 responses", "cc-by-4.0"):
            assert words in card, (name, words)
        assert re.search(r"[Ss]eed\W+7\b", card), card
