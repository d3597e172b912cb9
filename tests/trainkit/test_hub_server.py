"""The loopback Hub answers the Hub's own client, beyond what `trainkit.hub` asks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.hub_server import Blob, ClientError, HubClient, HubServer
from tests.trainkit import hub_clients as clients


def test_branches_tags_listings_and_deletions(hub: HubServer, owner: HubClient, repo_id: str) -> None:
    seen = owner.call(clients.tour, repo_id)
    assert seen["user"] == "tester"
    assert seen["files"] == ["a.txt", "deep/b.txt", "deep/er/c.npy"]
    assert seen["folders"] == ["deep", "deep/er"]
    assert seen["top"] == ["a.txt", "deep"]
    assert seen["sizes"] == {"a.txt": 3, "deep/er/c.npy": 2000}
    assert seen["large"] == {"a.txt": False, "deep/er/c.npy": True}
    assert seen["branches"] == ["draft", "main"] and seen["tags"] == ["v1"]
    assert seen["titles"] == ["Remove a", "Add three", "initial commit"]
    assert seen["tagged"] == "one", "the tag must still hold what was deleted from main"
    assert seen["left"] == ["deep/b.txt", "deep/er/c.npy"]
    assert seen["part"] == "xx" * 5, "a range was asked for"
    assert seen["exists"] == [True, False]
    assert ("models", repo_id) not in hub.repositories


def test_a_data_set_repository_is_apart_from_a_model_of_the_same_name(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "model", repo_id)
    owner.call(clients.upload_text, repo_id, "dataset", "rows.jsonl", '{"a": 1}\n')
    assert set(hub.head(repo_id, kind="datasets").files) == {"rows.jsonl"}
    assert stranger.call(clients.download_text, repo_id, "dataset", "rows.jsonl") == '{"a": 1}\n'
    assert stranger.call(clients.load, repo_id)[0] == "model"


def test_a_file_has_the_names_that_git_gives_it() -> None:
    assert Blob(b"hello\n", lfs=False).oid == "ce013625030ba8dba906f756967f9e9ca394464a"
    large = Blob(b"hello\n", lfs=True)
    assert large.etag == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert large.pointer.decode().splitlines() == [
        "version https://git-lfs.github.com/spec/v1",
        f"oid sha256:{large.etag}",
        "size 6",
    ]
    assert large.oid == Blob(large.pointer, lfs=False).oid


def test_a_path_that_leads_out_of_the_repository_is_refused(
    hub: HubServer, owner: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "one", repo_id)
    status, message = owner.call(clients.raw_commit, repo_id, "../outside.txt")
    assert status == 400 and "invalid path" in message
    assert len(hub.repository(repo_id).commits) == 2


def test_a_fault_ends_with_its_block(hub: HubServer, owner: HubClient, repo_id: str) -> None:
    with hub.breaking(rf"GET /api/models/{repo_id}"), pytest.raises(ClientError):
        owner.call(clients.push, "one", repo_id)
    assert [request.status for request in hub.requests(rf"GET /api/models/{repo_id}$")] == [0]
    owner.call(clients.push, "one", repo_id)
    assert hub.requests(rf"GET /api/models/{repo_id}$")[-1].status == 200


def test_a_client_that_never_answers_is_ended(hub: HubServer, tmp_path: Path) -> None:
    with HubClient(hub, tmp_path) as client:
        client.call(clients.do_not_wait)
        with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
            client.call(clients.hang, timeout=0.2)
        with pytest.raises(ClientError, match="No module named 'nonsense'") as caught:
            client.call(clients.fail)
        assert caught.value.kinds[:2] == ["ModuleNotFoundError", "ImportError"]


def test_the_server_reports_its_own_crash() -> None:
    with pytest.raises(AssertionError, match="the Hub server crashed"), HubServer() as server:
        crash = ValueError("a mistake in the server")
        ended = threading.Event()

        def handle() -> None:
            try:
                raise crash
            except ValueError:
                server._server.handle_error(None, None)
            ended.set()

        thread = threading.Thread(target=handle)
        thread.start()
        thread.join()
        assert ended.is_set()
