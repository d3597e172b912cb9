"""Chatbots on a Hub that runs on the loopback interface (P10)."""

import json
from collections.abc import Iterator

import pytest

from tests.dialogkit.pdp import hub_clients as clients
from tests.hub_server import ClientError, HubClient, HubServer


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


def test_p10_a_pushed_copy_with_its_models_talks_elsewhere(
    hub: HubServer, owner: HubClient, stranger: HubClient
) -> None:
    commit, said = owner.call(clients.push_bot, "tester/whole", None, True, timeout=300)
    stored = hub.repository("tester/whole").commits[commit].files
    assert {"model/model.safetensors", "retriever/modules.json", "index/index.safetensors"} <= set(stored)
    assert stored["model/model.safetensors"].lfs and "README.md" in stored
    assert stranger.call(clients.talk, "tester/whole", None, timeout=300) == said
    assert stranger.call(clients.talk, "tester/whole", commit, timeout=300) == said


def test_p10_a_pushed_chatbot_keeps_the_models_it_was_made_with(
    hub: HubServer, owner: HubClient, stranger: HubClient
) -> None:
    first = owner.call(clients.push_lm, "tester/lm", 0, timeout=300)
    commit, said = owner.call(clients.push_bot, "tester/named", "tester/lm", False, timeout=300)
    record = json.loads(hub.repository("tester/named").commits[commit].files["chatbot.json"].data)
    assert record["model"] == {"kind": "named", "name": "tester/lm", "revision": first}
    assert record["retriever"]["name"] == "tester/named-retriever"
    # Other weights under the same name change nothing for this chatbot.
    assert owner.call(clients.push_lm, "tester/lm", 1, timeout=300) != first
    assert stranger.call(clients.talk, "tester/named", None, timeout=300) == said


def test_a_folder_of_this_machine_is_refused_before_anything_is_sent(
    hub: HubServer, owner: HubClient
) -> None:
    owner.call(clients.push_bot, "tester/warm-up", None, True, timeout=300)
    seen = len(hub.log)
    with pytest.raises(ClientError, match=r"include_model=True"):
        owner.call(clients.push_local, "tester/local", timeout=300)
    assert len(hub.log) == seen and ("models", "tester/local") not in hub.repositories
