"""A chatbot that writes with exemplars, on a Hub that runs on the loopback interface."""

import pytest

from tests.dialogkit.exemplar import hub_clients as clients
from tests.hub_server import HubClient, HubServer

pytestmark = pytest.mark.slow


def test_a_pushed_chatbot_says_the_same_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    with HubServer() as hub:
        with HubClient(hub, tmp_path_factory.mktemp("owner"), token=hub.token) as owner:
            commit, said = owner.call(clients.push_bot, "tester/ann", timeout=300)
        stored = hub.repository("tester/ann").commits[commit].files
        assert not [name for name in stored if name.endswith((".bin", ".pt", ".pkl"))]
        card = stored["README.md"].data.decode()
        for words in ("CORGE", "Colours", "CC0-1.0", "24 responses"):
            assert words in card, words
        with HubClient(hub, tmp_path_factory.mktemp("stranger")) as stranger:
            for revision in (None, commit):
                assert stranger.call(clients.talk, "tester/ann", revision, timeout=300) == said
