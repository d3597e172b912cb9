"""A small Hugging Face Hub on the loopback interface, for tests that speak to a Hub for real.

`HubServer` answers the Hub's HTTP interface from memory (HTTP/1.1, one thread per connection, standard
library only) and can break or stall connections on purpose. `HubClient` runs functions in a process of their
own whose Hub is that server, because the Hub client reads its settings when it is imported::

    with HubServer() as server, HubClient(server, home=tmp_path, token=server.token) as client:
        commit = client.call(push_something, "tester/model")
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["ClientError", "HubClient", "HubServer", "Request"]

ROOT = Path(__file__).resolve().parents[1]
LFS_SUFFIXES = frozenset(
    {
        ".arrow",
        ".bin",
        ".faiss",
        ".gz",
        ".model",
        ".npy",
        ".npz",
        ".onnx",
        ".parquet",
        ".pt",
        ".safetensors",
        ".zip",
    }
)
LFS_SIZE = 1 << 20
DATE = "2024-01-01T00:00:00.000Z"


# What the Hub stores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """One file of a commit: in the commit itself, or in the large-file store."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores in place of a large file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        ).encode()

    @property
    def oid(self) -> str:
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One revision: all its files, its message and what it follows."""

    oid: str
    title: str
    files: Mapping[str, Blob]
    parent: str | None


@dataclass
class Repository:
    """A repository of any type with its branches and tags."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def add(self, branch: str, title: str, files: Mapping[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        listing = "".join(f"{name} {blob.oid}\n" for name, blob in sorted(files.items()))
        seed = f"{self.id}\n{len(self.commits)}\n{parent}\n{title}\n{listing}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, dict(files), parent)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


@dataclass(frozen=True)
class Request:
    """One answered request; status 0: the connection was broken on purpose."""

    method: str
    path: str
    status: int


@dataclass
class Fault:
    """What goes wrong with requests whose ``"METHOD /path"`` matches."""

    pattern: re.Pattern[str]
    kind: Literal["break", "stall", "hold", "swallow"]
    after: int  # bytes of the body that are read before a break or a stall
    met: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class HubError(Exception):
    """An error answer: status, message, the Hub's error code, the commit or address it speaks of."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "", url: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit, self.url = status, message, code, commit, url


class Broken(ConnectionError):
    """The connection is to be cut now."""


# The server -------------------------------------------------------------------------------------------------


class HubServer:
    """A Hub with one user, who may write with `token` and read private repositories with `read_token`.

    Attributes:
        url: Address, to be used as ``HF_ENDPOINT``.
        repositories: What is stored, by type (``models``, ``datasets``, ``spaces``) and id.
        objects: Large files by sha256.
        log: The requests answered so far.
    """

    def __init__(self, *, user: str = "tester", token: str = "hf_write", read_token: str = "hf_read") -> None:
        self.user, self.token, self.read_token = user, token, read_token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self._crashes: list[BaseException] = []
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._crashes and exc_info[0] is None:
            raise AssertionError(f"the Hub server crashed: {self._crashes[0]!r}") from self._crashes[0]

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        """A stored repository."""
        return self.repositories[kind, repo_id]

    def head(self, repo_id: str, branch: str = "main", kind: str = "models") -> Commit:
        """The newest commit of a branch."""
        repository = self.repository(repo_id, kind)
        return repository.commits[repository.branches[branch]]

    def requests(self, pattern: str) -> list[Request]:
        """The logged requests whose ``"METHOD /path"`` matches somewhere."""
        return [
            request for request in list(self.log) if re.search(pattern, f"{request.method} {request.path}")
        ]

    @contextlib.contextmanager
    def breaking(self, pattern: str, *, after: int = 0) -> Iterator[threading.Event]:
        """Cut the connection of matching requests when ``after`` bytes of the body are read."""
        with self._fault(Fault(re.compile(pattern), "break", after)) as met:
            yield met

    @contextlib.contextmanager
    def stalling(self, pattern: str, *, after: int = 0) -> Iterator[threading.Event]:
        """Read ``after`` bytes of matching requests, wait until the ``with`` block ends, then cut them."""
        with self._fault(Fault(re.compile(pattern), "stall", after)) as met:
            yield met

    @contextlib.contextmanager
    def holding(self, pattern: str) -> Iterator[threading.Event]:
        """Carry out and answer matching requests only when the ``with`` block has ended."""
        with self._fault(Fault(re.compile(pattern), "hold", 0)) as met:
            yield met

    @contextlib.contextmanager
    def swallowing(self, pattern: str) -> Iterator[threading.Event]:
        """Carry out matching requests, but cut the connection instead of answering."""
        with self._fault(Fault(re.compile(pattern), "swallow", 0)) as met:
            yield met

    @contextlib.contextmanager
    def _fault(self, fault: Fault) -> Iterator[threading.Event]:
        self.faults.append(fault)
        try:
            yield fault.met
        finally:
            self.faults.remove(fault)
            fault.over.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        # A client that goes away is no fault of the server.
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self.hub._crashes.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        target = urlsplit(self.path)
        self.query = parse_qs(target.query, keep_blank_values=True)
        line = f"{self.command} {target.path}"
        fault = next((fault for fault in self.hub.faults if fault.pattern.search(line)), None)
        try:
            body = self._body(fault)
            if fault is not None and fault.kind in {"stall", "hold"}:
                fault.met.set()
                fault.over.wait()
            if fault is not None and fault.kind in {"break", "stall"}:
                raise Broken
            try:
                status, headers, answer = self._route(target.path, body)
            except HubError as error:
                status, answer = error.status, json.dumps({"error": error.message, "url": error.url}).encode()
                headers = {"Content-Type": "application/json", "X-Error-Message": error.message}
                if error.code:
                    headers["X-Error-Code"] = error.code
                if error.commit:
                    headers["X-Repo-Commit"] = error.commit
            if fault is not None and fault.kind == "swallow":
                raise Broken
        except Broken:
            self.hub.log.append(Request(self.command, target.path, 0))
            if fault is not None:
                fault.met.set()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.hub.log.append(Request(self.command, target.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _body(self, fault: Fault | None) -> bytes:
        limit = fault.after if fault is not None and fault.kind in {"break", "stall"} else None
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts: list[bytes] = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if limit is not None and sum(map(len, parts)) >= limit:
                    return b"".join(parts)
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(length, limit))

    # Who may do what

    def _may(self) -> str:
        """``"write"``, ``"read"`` or, without a token, nothing."""
        header = self.headers.get("Authorization", "")
        if not header:
            return ""
        token = header.removeprefix("Bearer ")
        if token == self.hub.token:
            return "write"
        if token == self.hub.read_token:
            return "read"
        raise HubError(401, "Invalid credentials in Authorization header")

    def _require_write(self) -> None:
        may = self._may()
        if not may:
            raise HubError(401, "Invalid username or password.")
        if may != "write":
            raise HubError(403, "You need a token with write permission")

    def _repository(self, kind: str, repo_id: str) -> Repository:
        may = self._may()
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not may):
            # To strangers, a private repository and a missing one look alike.
            raise HubError(404 if may else 401, "Repository not found", "RepoNotFound")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Routes

    def _route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.hub.lock:
            if self.command in {"GET", "HEAD"} and (
                match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            ):
                kind, repo_id, revision, name = match.groups()
                return self._file(kind or "models", repo_id, unquote(revision), unquote(name))
            if match := re.fullmatch(r"/(?:(datasets|spaces)/)?(.+)\.git/info/lfs/objects/batch", path):
                self._require_write()
                self._repository(match[1] or "models", match[2])
                answer = self._lfs_batch(json.loads(body))
                return 200, {"Content-Type": "application/vnd.git-lfs+json"}, json.dumps(answer).encode()
            if self.command == "PUT" and (match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path)):
                if hashlib.sha256(body).hexdigest() != match[1]:
                    raise HubError(400, "the content does not have the announced checksum")
                self.hub.objects[match[1]] = body
                return 200, {}, b""
            return 200, {"Content-Type": "application/json"}, json.dumps(self._api(path, body)).encode()

    def _api(self, path: str, body: bytes) -> object:
        if path == "/lfs/verify":
            asked = json.loads(body)
            if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
                raise HubError(404, "no such object")
            return {}
        if path == "/api/whoami-v2":
            may = self._may()
            if not may:
                raise HubError(401, "Invalid username or password.")
            return {
                "type": "user",
                "name": self.hub.user,
                "fullname": self.hub.user,
                "email": "tester@example.org",
                "emailVerified": True,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": may}},
            }
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path in {"/api/repos/create", "/api/repos/delete"}:
            self._require_write()
            return (
                self._create(json.loads(body)) if path.endswith("create") else self._delete(json.loads(body))
            )
        match = re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?", path
        )
        if match is None:
            raise HubError(404, f"no route {path}")
        kind, repo_id, verb, revision, rest = match.groups()
        if self.command != "GET" and verb != "paths-info":
            self._require_write()
        repository = self._repository(kind, repo_id)
        revision, rest = unquote(revision or "main"), unquote(rest or "")
        match self.command, verb:
            case "GET", None | "revision":
                return self._info(repository, self._commit(repository, revision))
            case "GET", "tree":
                return self._tree(self._commit(repository, revision), rest)
            case "GET", "refs":
                return {
                    "branches": _refs("heads", repository.branches),
                    "tags": _refs("tags", repository.tags),
                    "converts": [],
                }
            case "GET", "commits":
                return list(self._history(repository, self._commit(repository, revision)))
            case "POST", "paths-info":
                form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
                paths = parse_qs(body.decode())["paths"] if form else json.loads(body)["paths"]
                files = self._commit(repository, revision).files
                return [_entry(name, files[name]) for name in paths if name in files]
            case "POST", "preupload":
                files = self._commit(repository, revision).files
                return {"files": [_upload_mode(asked, files) for asked in json.loads(body)["files"]]}
            case "POST", "commit":
                return self._add_commit(repository, revision, body)
            case "POST", "branch":
                if revision in repository.branches:
                    raise HubError(409, f"Reference already exists: {revision}")
                start = json.loads(body or b"{}").get("startingPoint") or "main"
                repository.branches[revision] = self._commit(repository, start).oid
                return {}
            case "POST", "tag":
                name = json.loads(body)["tag"]
                if name in repository.tags:
                    raise HubError(409, f"Tag already exists: {name}")
                repository.tags[name] = self._commit(repository, revision).oid
                return {}
            case "DELETE", "branch" | "tag":
                if (repository.branches if verb == "branch" else repository.tags).pop(revision, None) is None:
                    raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
                return {}
            case "PUT", "settings":
                asked = json.loads(body)
                repository.private = bool(asked.get("private", asked.get("visibility") == "private"))
                return {}
        raise HubError(404, f"no route {self.command} {path}")

    def _create(self, asked: Mapping[str, Any]) -> object:
        kind = f"{asked.get('type') or 'model'}s"
        repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise HubError(409, "You already created this repository", url=url)
        repository = Repository(repo_id, private)
        repository.add("main", "initial commit", {})
        self.hub.repositories[kind, repo_id] = repository
        return {"url": url, "name": repo_id, "id": repo_id, "private": private}

    def _delete(self, asked: Mapping[str, Any]) -> object:
        kind = f"{asked.get('type') or 'model'}s"
        repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self._repository(kind, repo_id)
        del self.hub.repositories[kind, repo_id]
        return {}

    def _info(self, repository: Repository, commit: Commit) -> object:
        siblings: list[dict[str, object]] = [{"rfilename": name} for name in sorted(commit.files)]
        if "blobs" in self.query:
            for sibling, (_, blob) in zip(siblings, sorted(commit.files.items()), strict=True):
                sibling |= {"size": len(blob.data), "blobId": blob.oid}
        return {
            "_id": commit.oid[:24],
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.id.split("/")[0],
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "lastModified": DATE,
            "createdAt": DATE,
        }

    def _tree(self, commit: Commit, folder: str) -> object:
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        inside = {name: blob for name, blob in commit.files.items() if name.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound", commit.oid)
        deep = self.query.get("recursive", ["false"])[0].lower() in {"true", "1"}
        folders, entries = set(), []
        for name, blob in sorted(inside.items()):
            parts = name.removeprefix(prefix).split("/")
            folders |= {
                prefix + "/".join(parts[:depth])
                for depth in range(1, len(parts) if deep else min(len(parts), 2))
            }
            if deep or len(parts) == 1:
                entries.append(_entry(name, blob))
        listed: list[dict[str, object]] = [
            {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name in sorted(folders)
        ]
        return listed + entries

    def _history(self, repository: Repository, commit: Commit | None) -> Iterator[object]:
        while commit is not None:
            yield {
                "id": commit.oid,
                "title": commit.title,
                "message": "",
                "authors": [{"user": self.hub.user}],
                "date": DATE,
            }
            commit = repository.commits.get(commit.parent or "")

    def _lfs_batch(self, asked: Mapping[str, Any]) -> object:
        answers = []
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}},
                }
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def _add_commit(self, repository: Repository, branch: str, body: bytes) -> object:
        if branch not in repository.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repository.commits[repository.branches[branch]]
        files, title = dict(head.files), ""
        for line in filter(None, body.split(b"\n")):
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in {None, head.oid}:
                    raise HubError(412, "The branch has moved on since its parent commit")
                continue
            name = value["path"]
            if any(part in {"", ".", ".."} for part in name.rstrip("/").split("/")):
                raise HubError(400, f"invalid path {name!r}")
            match entry["key"]:
                case "file":
                    files[name] = Blob(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise HubError(400, f"the large file {value['oid']} was not uploaded")
                    files[name] = Blob(self.hub.objects[value["oid"]], lfs=True)
                case "deletedFile":
                    if files.pop(name, None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound", head.oid)
                case "deletedFolder":
                    files = {
                        key: blob for key, blob in files.items() if not key.startswith(f"{name.rstrip('/')}/")
                    }
                case key:
                    raise HubError(400, f"unknown operation {key!r}")
        commit = repository.add(branch, title, files)
        return {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{self.hub.url}/{repository.id}/commit/{commit.oid}",
            "hookOutput": "",
        }

    def _file(self, kind: str, repo_id: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        commit = self._commit(self._repository(kind, repo_id), revision)
        blob = commit.files.get(name)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{blob.etag}"',
            "Accept-Ranges": "bytes",
        }
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, headers, blob.data
        start, end = int(asked[1]), min(int(asked[2] or len(blob.data)), len(blob.data) - 1)
        if start > end:
            raise HubError(416, "Range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(blob.data)}"
        return 206, headers, blob.data[start : end + 1]


def _refs(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]


def _entry(name: str, blob: Blob) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(blob.data), "oid": blob.oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return entry


def _upload_mode(asked: Mapping[str, Any], files: Mapping[str, Blob]) -> dict[str, object]:
    large = asked["size"] > LFS_SIZE or Path(asked["path"]).suffix in LFS_SUFFIXES
    present = files.get(asked["path"])
    return {
        "path": asked["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
        # The client compares a large file by its checksum, not by its pointer.
        "oid": present.etag if present is not None else None,
    }


# The client -------------------------------------------------------------------------------------------------


class ClientError(Exception):
    """What a function raised in its process.

    Attributes:
        kind: Name of the exception's class.
        kinds: Names of that class and of those it derives from.
        message: Its text.
    """

    def __init__(self, kinds: list[str], message: str, output: str) -> None:
        super().__init__(f"{kinds[0]}: {message}\n{output}")
        self.kind, self.kinds, self.message = kinds[0], kinds, message


# One call a line comes in, one answer a line goes out, on a pipe of its own so that prints do no harm.
_WORKER = """
import importlib, json, os, sys, traceback
answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
for line in sys.stdin:
    call = json.loads(line)
    try:
        function = getattr(importlib.import_module(call["module"]), call["name"])
        answer = {"value": function(*call["args"])}
    except BaseException as error:
        answer = {
            "kinds": [kind.__name__ for kind in type(error).__mro__],
            "message": str(error),
            "trace": traceback.format_exc(),
        }
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
"""


class HubClient:
    """A process that talks to a `HubServer` and runs functions of test modules.

    The process starts with the first call and ends with the ``with`` block; calls share it and its cache.

    Args:
        server: The Hub, or its address.
        home: Folder for the Hub's cache; two clients with two homes share nothing.
        token: Access token, in the process's environment.
        environment: Further environment variables.
    """

    def __init__(
        self,
        server: HubServer | str,
        home: Path,
        *,
        token: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = {
            **inherited,
            "HF_ENDPOINT": server if isinstance(server, str) else server.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **({"HF_TOKEN": token} if token is not None else {}),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> Any:
        """Run a module-level function in the process; arguments and answer travel as JSON.

        Raises:
            ClientError: The function raised.
            TimeoutError: No answer came in ``timeout`` seconds; the process is killed.
        """
        self.start(function, *args)
        return self.answer(timeout=timeout)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin a call; `answer` ends it."""
        if self._process is None:
            self.home.mkdir(parents=True, exist_ok=True)
            self._answers, written = os.pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(written)],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.PIPE,
                pass_fds=[written],
            )
            os.close(written)
        assert self._process.stdin is not None
        call = {"module": function.__module__, "name": function.__name__, "args": args}
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, *, timeout: float = 120) -> Any:
        """What the call that was started returned, or its error as `ClientError`."""
        received, deadline = b"", time.monotonic() + timeout
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._answers, 1 << 16) if ready else b""
            if not chunk:
                self.kill()
                raise EOFError("the process died") if ready else TimeoutError(f"no answer in {timeout} s")
            received += chunk
        outcome = json.loads(received)
        if "kinds" in outcome:
            raise ClientError(outcome["kinds"], outcome["message"], outcome["trace"])
        return outcome["value"]

    def kill(self) -> None:
        """End the process without warning, also in the middle of a call. A later call starts a new one."""
        if self._process is not None:
            self._process.kill()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            os.close(self._answers)
            self._process = None
