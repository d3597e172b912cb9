"""Adapters on a Hub that runs on the loopback interface."""

import pytest

pytest.importorskip("peft")

from tests.dialogkit.generation import hub_clients as clients
from tests.hub_server import ClientError, HubClient, HubServer

pytestmark = pytest.mark.slow


def test_an_adapter_is_loaded_from_the_hub_with_its_base(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("stranger")
    with HubServer() as hub:
        with HubClient(hub, tmp_path_factory.mktemp("owner"), token=hub.token) as owner:
            plain = owner.call(clients.push_base, "tester/base", timeout=300)
            commit, adapted = owner.call(clients.push_adapter, "tester/ann", "tester/base", timeout=300)
            owner.call(clients.push_stray_adapter, "tester/stray", "/home/ann/model", timeout=300)
            owner.call(clients.push_stray_adapter, "tester/orphan", "tester/nothing", timeout=300)
        assert commit in hub.repository("tester/ann").commits
        with HubClient(hub, home) as stranger:
            assert stranger.call(clients.load, "tester/base", timeout=300) == pytest.approx(plain)
            for revision in (None, commit):
                found = stranger.call(clients.load, "tester/ann", revision, timeout=300)
                assert found == pytest.approx(adapted, abs=1e-5) != pytest.approx(plain, abs=1e-5)
            for repo_id, told in (
                ("tester/stray", "'/home/ann/model', which is a folder"),
                ("tester/orphan", "the model that the adapter tester/orphan belongs to: 'tester/nothing'"),
                ("tester/nobody", "'tester/nobody' is neither a folder nor a model"),
            ):
                with pytest.raises(ClientError) as caught:
                    stranger.call(clients.load, repo_id, timeout=300)
                assert told in str(caught.value)
    # The Hub is gone, and the client knows that it is offline.
    with HubClient(hub.url, home, environment={"HF_HUB_OFFLINE": "1"}) as offline:
        assert offline.call(clients.load, "tester/ann", timeout=300) == pytest.approx(adapted, abs=1e-5)
        with pytest.raises(ClientError, match="neither a folder nor a model that the Hub gives out"):
            offline.call(clients.load, "tester/other", timeout=300)
