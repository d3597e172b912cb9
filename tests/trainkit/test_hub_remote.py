"""Artefacts on a Hub that runs on the loopback interface; the clients are processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Blob, ClientError, HubClient, HubServer
from tests.trainkit import hub_clients as clients
from trainkit.hub import MANIFEST

VECTOR = [0.0, 1.0, 2.0]
FILES = {"notes.json", "vector.safetensors", MANIFEST}


def refusal(client: HubClient, function: Callable[..., Any], *args: Any) -> ClientError:
    """The error that a call must end with."""
    with pytest.raises(ClientError) as caught:
        client.call(function, *args)
    assert "HubError" in caught.value.kinds or caught.value.kind == "ValueError", caught.value
    return caught.value


def commits(hub: HubServer, repo_id: str) -> list[str]:
    """The commits of a repository, oldest first, without the empty one that it begins with."""
    return list(hub.repository(repo_id).commits)[1:]


def test_create_upload_and_download_at_a_revision(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    first = owner.call(clients.push, "one", repo_id, {"extra": {"nested/old.txt": "1"}}, 3, True)
    second = owner.call(clients.push, "two", repo_id, {"commit_message": "Second"})
    assert commits(hub, repo_id) == [first, second]
    stored = hub.repository(repo_id).commits
    assert stored[second].title == "Second"
    assert stored[first].files["vector.safetensors"].lfs
    assert not stored[first].files["notes.json"].lfs
    assert stored[first].files["README.md"].data.decode() == clients.CARD.render()
    assert set(stored[first].files) == {*FILES, "README.md", "nested/old.txt"}
    # What the new artefact lacks is gone; the card, which people edit on the Hub, stays.
    assert set(stored[second].files) == {*FILES, "README.md"}

    assert stranger.call(clients.load, repo_id) == ["two", VECTOR]
    assert stranger.call(clients.load, repo_id, {"revision": first}) == ["one", VECTOR]
    assert stranger.call(clients.load, repo_id, {"revision": second}) == ["two", VECTOR]
    error = refusal(stranger, clients.load, repo_id, {"revision": "no-such-branch"})
    assert error.kind == "RevisionNotFoundError" and "'no-such-branch'" in error.message


def test_a_push_that_changes_nothing_makes_no_commit(hub: HubServer, owner: HubClient, repo_id: str) -> None:
    first = owner.call(clients.push, "one", repo_id, {"extra": {"nested/a.txt": "1"}}, 3, True)
    seen = len(hub.log)
    assert owner.call(clients.push, "one", repo_id, {"extra": {"nested/a.txt": "1"}}, 3, True) == first
    assert commits(hub, repo_id) == [first]
    assert not [
        request for request in hub.log[seen:] if request.method == "PUT" or "/commit/" in request.path
    ]


def test_a_missing_and_a_private_repository_look_alike_to_a_stranger(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "secret", repo_id, {"private": True})
    assert hub.repository(repo_id).private
    for name in (repo_id, f"{repo_id}-missing"):
        error = refusal(stranger, clients.load, name)
        assert error.kind == "AccessDeniedError"
        assert f"no folder and no public repository '{name}'; if it is private, pass token=" in error.message
    assert refusal(stranger, clients.load, repo_id, {"token": "hf_wrong"}).kind == "AccessDeniedError"
    assert stranger.call(clients.load, repo_id, {"token": hub.read_token})[0] == "secret"
    assert refusal(owner, clients.load, f"{repo_id}-missing").kind == "RepositoryNotFoundError"


def test_only_a_token_with_permission_pushes(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    made = owner.call(clients.push, "mine", repo_id)
    assert refusal(stranger, clients.push, "theirs", repo_id).kind == "AccessDeniedError"
    error = refusal(stranger, clients.push, "theirs", repo_id, {"token": hub.read_token})
    assert error.kind == "AccessDeniedError" and "permission" in error.message
    assert refusal(stranger, clients.push, "new", f"{repo_id}-new").kind == "AccessDeniedError"
    assert commits(hub, repo_id) == [made]
    assert ("models", f"{repo_id}-new") not in hub.repositories


@pytest.mark.parametrize("private", [True, False])
def test_a_push_never_changes_who_can_read(
    hub: HubServer, owner: HubClient, repo_id: str, private: bool
) -> None:
    made = owner.call(clients.push, "one", repo_id, {"private": not private})
    error = refusal(owner, clients.push, "two", repo_id, {"private": private})
    assert error.kind == "ValueError" and f"is {'public' if private else 'private'}" in error.message
    assert commits(hub, repo_id) == [made]
    assert owner.call(clients.push, "two", repo_id) != made


def test_the_cache_answers_offline_and_says_so_when_it_cannot(
    hub: HubServer, owner: HubClient, repo_id: str, tmp_path: Path
) -> None:
    first = owner.call(clients.push, "one", repo_id)
    with HubClient(hub, tmp_path) as online:
        online.call(clients.load, repo_id)
    seen = len(hub.log)
    with HubClient(hub, tmp_path, environment={"HF_HUB_OFFLINE": "1"}) as offline:
        assert offline.call(clients.load, repo_id) == ["one", VECTOR]
        assert offline.call(clients.load, repo_id, {"revision": first}) == ["one", VECTOR]
        error = refusal(offline, clients.load, repo_id, {"revision": "v9"})
        assert error.kind == "HubOfflineError" and "'v9'" in error.message
        assert refusal(offline, clients.push, "two", repo_id).kind == "HubOfflineError"
    assert len(hub.log) == seen


def test_a_hub_out_of_reach_is_said_plainly(tmp_path: Path) -> None:
    with HubServer() as gone:
        url = gone.url
    with HubClient(url, tmp_path, token="hf_x") as client:
        client.call(clients.do_not_wait)
        error = refusal(client, clients.load, "tester/notes")
        assert error.kind == "HubOfflineError" and "check the connection" in error.message
        error = refusal(client, clients.push, "one", "tester/notes")
        assert error.kind == "HubError" and "connection to the Hub broke" in error.message


def test_a_branch_is_created_and_main_stays(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    main = owner.call(clients.push, "one", repo_id)
    drafts = [owner.call(clients.push, text, repo_id, {"revision": "draft/2"}) for text in ("two", "three")]
    assert hub.head(repo_id).oid == main
    assert hub.head(repo_id, "draft/2").oid == drafts[-1]
    assert stranger.call(clients.load, repo_id)[0] == "one"
    assert stranger.call(clients.load, repo_id, {"revision": "draft/2"})[0] == "three"


def test_a_push_onto_a_commit_made_meanwhile_is_refused(
    hub: HubServer, owner: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "one", repo_id)
    with hub.holding(rf"POST /api/models/{repo_id}/preupload/main") as waiting:
        owner.start(clients.push, "two", repo_id)
        assert waiting.wait(60)
        meanwhile = hub.repository(repo_id).add("main", "meanwhile", hub.head(repo_id).files)
    with pytest.raises(ClientError, match="somebody else committed"):
        owner.answer()
    assert hub.head(repo_id).oid == meanwhile.oid


def test_files_of_others_stay_and_files_of_the_artefact_go(
    hub: HubServer, owner: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "one", repo_id, {"extra": {"gone.txt": "1"}})
    files = {**hub.head(repo_id).files, "logo.txt": Blob(b"logo", lfs=False)}
    hub.repository(repo_id).add("main", "by hand", files)
    owner.call(clients.push, "two", repo_id)
    assert set(hub.head(repo_id).files) == {*FILES, "logo.txt"}


def test_a_manifest_on_the_hub_cannot_delete_files_of_others(
    hub: HubServer, owner: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "one", repo_id)
    forged = Blob(b'{"format": 1, "kind": "Notes", "files": {"../other": ""}}', lfs=False)
    hub.repository(repo_id).add("main", "forged", {**hub.head(repo_id).files, MANIFEST: forged})
    assert refusal_kind(owner, clients.load, repo_id) == "ArtefactError"
    owner.call(clients.push, "two", repo_id)
    assert set(hub.head(repo_id).files) == FILES


def refusal_kind(client: HubClient, function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ClientError) as caught:
        client.call(function, *args)
    return caught.value.kind


def test_a_plain_folder_is_pushed_and_a_bare_name_is_the_users_own(
    hub: HubServer, owner: HubClient, tmp_path: Path, repo_id: str
) -> None:
    (tmp_path / "plain" / "deep").mkdir(parents=True)
    (tmp_path / "plain" / "deep" / "a").write_text("1")
    for theirs in (".git", ".cache/huggingface"):
        (tmp_path / "plain" / theirs).mkdir(parents=True)
        (tmp_path / "plain" / theirs / "b").write_text("bookkeeping")
    made = owner.call(clients.push_plain, str(tmp_path / "plain"), repo_id.removeprefix("tester/"))
    assert hub.head(repo_id).oid == made
    assert {name: blob.data for name, blob in hub.head(repo_id).files.items()} == {"deep/a": b"1"}


# Interrupted uploads ----------------------------------------------------------------------------------------

# Every request of a push that carries content, and how much of it arrives before the connection is cut.
PLACES = {
    "listing": (r"POST /api/models/{}/preupload/", 10),
    "large file": (r"PUT /lfs/", 2000),
    "verification": (r"POST /lfs/verify", 0),
    "commit": (r"POST /api/models/{}/commit/main", 100),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_upload_leaves_no_half_written_revision(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str, place: str
) -> None:
    old = owner.call(clients.push, "old", repo_id)
    pattern, after = PLACES[place]
    # Different for each place, for the large file must not be on the Hub already.
    size = 5000 + list(PLACES).index(place)
    new_push = (clients.push, "new", repo_id, {"extra": {"more.txt": "x"}}, size)
    owner.call(clients.do_not_wait)
    with hub.breaking(pattern.format(repo_id), after=after) as met:
        error = refusal(owner, *new_push)
    assert met.is_set(), "the push never came that far"
    assert error.kind == "HubError" and "connection to the Hub broke" in error.message
    assert commits(hub, repo_id) == [old]
    assert stranger.call(clients.load_afresh, repo_id) == ["old", VECTOR]

    # The same push, now undisturbed, brings everything.
    new = owner.call(*new_push)
    assert commits(hub, repo_id) == [old, new]
    assert stranger.call(clients.load_afresh, repo_id) == ["new", list(range(size))]


def test_an_upload_whose_process_is_killed_leaves_no_half_written_revision(
    hub: HubServer, stranger: HubClient, repo_id: str, tmp_path: Path
) -> None:
    with HubClient(hub, tmp_path, token=hub.token) as doomed:
        old = doomed.call(clients.push, "old", repo_id)
        with hub.stalling(r"PUT /lfs/", after=2000) as met:
            doomed.start(clients.push, "new", repo_id, {}, 6000)
            assert met.wait(60), "the push never came that far"
            doomed.kill()
    assert commits(hub, repo_id) == [old]
    assert stranger.call(clients.load_afresh, repo_id) == ["old", VECTOR]


def test_a_commit_whose_answer_is_lost_is_complete_and_not_made_twice(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    with hub.swallowing(rf"POST /api/models/{repo_id}/commit/main"):
        assert "connection to the Hub broke" in refusal(owner, clients.push, "new", repo_id).message
    (made,) = commits(hub, repo_id)
    assert owner.call(clients.push, "new", repo_id) == made
    assert stranger.call(clients.load, repo_id) == ["new", VECTOR]


def test_a_download_that_breaks_is_an_error_and_can_be_repeated(
    hub: HubServer, owner: HubClient, stranger: HubClient, repo_id: str
) -> None:
    owner.call(clients.push, "one", repo_id)
    stranger.call(clients.do_not_wait)
    with hub.breaking(rf"GET /{repo_id}/resolve/.*/notes\.json"):
        assert "HubError" in refusal(stranger, clients.load, repo_id).kinds
    assert stranger.call(clients.load, repo_id) == ["one", VECTOR]


# Models that other people's tools load ----------------------------------------------------------------------


def test_a_composite_artefact_with_a_nested_model_round_trips_bit_identically(
    hub: HubServer, owner: HubClient, tmp_path: Path, repo_id: str
) -> None:
    outcome = owner.call(clients.composite, repo_id, str(tmp_path / "local"), timeout=300)
    assert outcome == dict.fromkeys(outcome, True)
    assert len(outcome) == 5
    local = {
        path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    uploaded = {name: blob.data for name, blob in hub.head(repo_id).files.items()}
    assert {name: uploaded[name] for name in local} == local
    assert set(uploaded) - set(local) == {MANIFEST, "README.md"}
    assert "lm/model.safetensors" in local


def test_a_sentence_transformer_loads_by_name(
    hub: HubServer, owner: HubClient, tmp_path: Path, repo_id: str
) -> None:
    pytest.importorskip("sentence_transformers")
    assert owner.call(clients.sentence_encoder, repo_id, str(tmp_path), timeout=300) == {
        "same": True,
        "shape": [2, 32],
    }
    assert "modules.json" in hub.head(repo_id).files
