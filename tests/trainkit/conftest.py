"""Fixtures of the trainkit tests: a Hub on the loopback interface and processes that talk to it."""

import re
from collections.abc import Iterator

import pytest

from tests.hub_server import HubClient, HubServer


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A running Hub, shared by all tests: each takes a repository of its own."""
    with HubServer() as server:
        yield server


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """The name of a repository that no other test uses."""
    return (
        "tester/"
        + re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:80]
    )


@pytest.fixture(scope="session")
def owner(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A process of the user who may write."""
    with HubClient(hub, tmp_path_factory.mktemp("owner"), token=hub.token) as client:
        yield client


@pytest.fixture(scope="session")
def stranger(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A process without a token and with a cache of its own."""
    with HubClient(hub, tmp_path_factory.mktemp("stranger")) as client:
        yield client
