"""Artefacts on disk and on the Hugging Face Hub.

An artefact is a folder: safetensors, JSON, text, index files and nested transformers or sentence-transformers
folders, described by a manifest (``trainkit.json``). Writing one is all or nothing, on disk (a temporary
folder, then a rename) and on the Hub (one commit). Nothing here reads or writes pickles.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    from huggingface_hub import HfApi
    from numpy.typing import NDArray

    from trainkit.cards import ModelCard

__all__ = [
    "MANIFEST",
    "AccessDeniedError",
    "ArtefactError",
    "HubError",
    "HubMixin",
    "HubOfflineError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "artefact_path",
    "atomic_directory",
    "fingerprint",
    "push_folder",
    "read_json",
    "resolve",
    "write_bytes",
    "write_json",
]

MANIFEST = "trainkit.json"
"""Name of the file that marks a folder as an artefact and lists its files."""

_FORMAT = 1
_CARD = "README.md"
_CHUNK = 1 << 20
# What the usual readers of these files unpickle.
_PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# Files a person may edit by hand; everything else is compared with the checksum in the manifest.
_EDITABLE = frozenset({".csv", ".jinja", ".json", ".jsonl", ".md", ".txt", ".yaml", ".yml"})
_BOOKKEEPING = (".git/", ".cache/huggingface/")
_REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

_log = logging.getLogger(__name__)


class HubError(OSError):
    """The Hub refused a request or could not be reached."""


class HubOfflineError(HubError):
    """The Hub cannot be reached, and what was asked for is not in the local cache."""


class RepositoryNotFoundError(HubError):
    """No such repository, as far as the given token may see."""


class AccessDeniedError(RepositoryNotFoundError):
    """The repository is private, gated or missing: without a fitting token the Hub does not tell which."""


class RevisionNotFoundError(HubError):
    """The repository exists, the branch, tag or commit does not."""


class ArtefactError(ValueError):
    """A folder is no artefact of the expected kind, is incomplete, or holds what an artefact may not hold."""


# Files ------------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees either the old content or all of the new, also after a crash.

    Args:
        path: File to write; its folder must exist.
        data: The content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, obj: object) -> None:
    """Write an object as indented UTF-8 JSON, atomically.

    Args:
        path: File to write; its folder must exist.
        obj: Anything the ``json`` module can write; keys keep their order.

    Raises:
        TypeError: ``obj`` holds something that has no JSON form.
        ValueError: ``obj`` holds NaN or an infinity, which JSON cannot express, or text that UTF-8 cannot.
    """
    try:
        text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}; JSON knows finite numbers only") from error
    write_bytes(path, f"{text}\n".encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: File to read, UTF-8.

    Returns:
        The decoded value.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8 or not JSON; the message names file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error


def artefact_path(directory: str | Path, name: object) -> Path:
    """The file or folder that a name from outside, such as an entry of a manifest, means inside a folder.

    Args:
        directory: The artefact's folder.
        name: Relative name with forward slashes.

    Returns:
        ``directory / name``; whether it exists is not checked.

    Raises:
        ArtefactError: The name is no plain relative name: absolute, with ``..`` or ``.``, a backslash, a
            drive, an empty part or a control character.
    """
    if not isinstance(name, str):
        raise ArtefactError(f"a file name in {directory} must be text, got {type(name).__name__}")
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts) or re.search(r"[\\:\x00-\x1f\x7f]", name):
        raise ArtefactError(
            f"{directory} names the file {name!r}, which is not a plain name inside that folder"
        )
    return Path(directory).joinpath(*parts)


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that appears under its name only when complete.

    The body of the ``with`` statement writes into a temporary folder beside ``path``. When it ends, the files
    are flushed to disk and the folder is renamed to ``path``; when it raises, the temporary folder is removed
    and ``path`` is as before. A folder that is replaced is exchanged in one step where the system can
    (Linux); elsewhere it is moved aside first, so that a crash between two renames leaves it under a name
    that begins with ``.NAME.``. A killed process leaves its temporary folder, ``.NAME.XXXXXXXX.tmp``, which
    can be deleted.

    Args:
        path: The folder to create. Missing parents are created.
        replace: Replace an existing folder with all that it holds. An empty folder is always replaced.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: ``path`` is a folder that is not empty and ``replace`` is false.
        NotADirectoryError: ``path`` is a file.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    _check_replaceable(target, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in _files(temporary):
            _flush(file)
        # Somebody else may have filled the target meanwhile.
        _check_replaceable(target, replace)
        if not target.is_dir():
            os.rename(temporary, target)
        elif not _exchange(temporary, target):
            aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
            os.rename(target, aside)
            try:
                os.rename(temporary, target)
            except OSError:
                os.rename(aside, target)
                raise
            shutil.rmtree(aside)
    finally:
        # After an exchange this is the old folder.
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(target: Path, replace: bool) -> None:
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; name a folder")
    if not replace and target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not empty; remove it or name another folder")


def _flush(file: Path) -> None:
    # Windows flushes only through a writable handle.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; false where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    at_working_directory, exchange_flag = -100, 2
    return bool(
        rename(
            at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange_flag
        )
        == 0
    )


def _files(directory: Path) -> list[Path]:
    """Every file below a folder, sorted by relative name."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


# Fingerprints -----------------------------------------------------------------------------------------------


def fingerprint(*parts: bytes | str | int | float | bool | NDArray[Any] | Path | Sequence[str]) -> str:
    """SHA-256 over typed parts: equal exactly when the parts are equal.

    Each part is hashed with its type and length, so ``("a", "bc")`` and ``("ab", "c")`` differ. A ``Path``
    stands for the content of its file, or for the relative names and contents of all files below its folder;
    the path itself does not count. Arrays count with dtype (in little-endian order) and shape. Files and
    arrays are read in chunks, so memory stays bounded; the cost is one pass over the data.

    Args:
        *parts: What to hash, in order.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: A part is of another type, or an array holds Python objects.
        FileNotFoundError: A path does not exist.
    """
    digest = hashlib.sha256()
    for part in parts:
        _digest_part(digest, part)
    return digest.hexdigest()


def _digest_part(digest: hashlib._Hash, part: object) -> None:
    if isinstance(part, bytes):
        _digest_bytes(digest, b"bytes", part)
    elif isinstance(part, str):
        _digest_bytes(digest, b"str", part.encode("utf-8", "surrogatepass"))
    elif isinstance(part, bool | int | float):
        _digest_bytes(digest, type(part).__name__.encode(), repr(part).encode())
    elif isinstance(part, Path):
        _digest_path(digest, part)
    elif hasattr(part, "__array_interface__"):
        import numpy as np

        _digest_array(digest, np.asarray(part))
    elif isinstance(part, Sequence) and not isinstance(part, bytearray | memoryview):
        digest.update(b"list:%d:" % len(part))
        for item in part:
            _digest_part(digest, item)
    else:
        raise TypeError(
            "a fingerprint is taken of bytes, str, numbers, numpy arrays, paths and sequences of these, "
            f"got {type(part).__name__}"
        )


def _digest_bytes(digest: hashlib._Hash, kind: bytes, data: bytes) -> None:
    digest.update(b"%s:%d:" % (kind, len(data)))
    digest.update(data)


def _digest_array(digest: hashlib._Hash, array: np.ndarray[Any, np.dtype[Any]]) -> None:
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no fingerprint; give it a numeric or string dtype")
    dtype = array.dtype.newbyteorder("<")
    digest.update(f"array:{dtype.str}:{array.shape}:".encode())
    flat = array.reshape(1) if array.ndim == 0 else array
    row_bytes = max(1, flat[:1].nbytes)
    step = max(1, _CHUNK // row_bytes)
    for start in range(0, len(flat), step):
        digest.update(flat[start : start + step].astype(dtype, order="C", copy=False).tobytes())


def _digest_path(digest: hashlib._Hash, path: Path) -> None:
    if path.is_dir():
        files = _files(path)
        digest.update(b"folder:%d:" % len(files))
        for file in files:
            _digest_bytes(digest, b"str", file.relative_to(path).as_posix().encode("utf-8", "surrogatepass"))
            _digest_path(digest, file)
        return
    with open(path, "rb") as opened:
        digest.update(b"file:%d:" % os.fstat(opened.fileno()).st_size)
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)


def _sha256(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# The Hub ----------------------------------------------------------------------------------------------------


def resolve(
    dir_or_repo: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    ignore: Sequence[str] = (),
) -> Path:
    """The local folder behind a folder name or a Hub repository.

    An existing folder always wins over a repository of the same name. Anything else that is spelled like a
    repository (``name`` or ``owner/name``) is downloaded to the Hub cache; in offline mode
    (``HF_HUB_OFFLINE=1``) only the cache is asked.

    Args:
        dir_or_repo: A folder, or a repository such as ``"owner/name"``. A ``Path`` is never a repository.
        revision: Branch, tag or commit of the repository; default ``main``.
        token: Access token; default: the one the machine is logged in with, ``False``: none.
        ignore: File patterns of the repository that are not downloaded.

    Returns:
        The folder: the given one, or a snapshot in the Hub cache (read it, never write into it).

    Raises:
        FileNotFoundError: A missing folder.
        NotADirectoryError: A file, not a folder.
        ValueError: ``revision`` with a local folder, which has no revisions.
        AccessDeniedError: The repository is private, gated or missing, and no fitting token was given.
        RepositoryNotFoundError: No such repository.
        RevisionNotFoundError: No such branch, tag or commit.
        HubOfflineError: The Hub cannot be reached and the cache does not hold the repository.
        HubError: Any other refusal of the Hub, or a connection that broke.
    """
    name = os.fspath(dir_or_repo)
    if not name:
        raise ValueError("dir_or_repo is empty; expected a folder or a repository such as 'owner/name'")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{name!r} is a local folder, and a folder has no revision {revision!r}; "
                "leave revision out, or rename the folder if you mean the repository"
            )
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{name!r} is a file; give the folder that holds it")
    if isinstance(dir_or_repo, Path) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"there is no folder {name!r} (looked from {Path.cwd()}); "
            "check the spelling, or give a Hub repository as 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    with _plain_errors(name, revision):
        return Path(
            snapshot_download(name, revision=revision, token=token, ignore_patterns=list(ignore) or None)
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload artefact",
) -> str:
    """Make a folder the content of a Hub repository, in one commit.

    The repository, and the branch where ``revision`` names a new one, are created when missing. Files are
    uploaded first and become visible with the commit that ends the upload, all or none: an interrupted upload
    leaves the branch as it was, and pushing again sends only what is missing. Files that an earlier artefact
    in that branch lists in its manifest and this folder lacks are deleted by the same commit; files that
    others put there stay. A push that changes nothing makes no commit. If somebody else commits meanwhile,
    the push is refused.

    Args:
        folder: What to upload, with all folders below. Plain transformers and sentence-transformers folders
            too.
        repo_id: ``"owner/name"``.
        private: Whether the repository is to be private; ``None``: the owner's default for a new one.
        token: Access token with write permission; default: the one the machine is logged in with.
        revision: Branch or pull request (``refs/pr/1``) to commit to; default ``main``.
        commit_message: First line of the commit.

    Returns:
        The commit's id, 40 hexadecimal digits: of the new commit, or of the branch's head if nothing changed.

    Raises:
        ArtefactError: The folder holds pickles or links.
        FileNotFoundError: The folder is missing or empty.
        ValueError: ``repo_id`` is no repository name, ``revision`` is a commit, or an existing repository's
            visibility is not what ``private`` asks for.
        HubError: See `resolve`; also when somebody else committed meanwhile.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} to push")
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(
            f"repo_id is {repo_id!r}; expected 'owner/name' of letters, digits, '-', '_' and '.'"
        )
    if revision is not None and _COMMIT.fullmatch(revision):
        raise ValueError(f"revision is the commit {revision}; a push needs a branch")
    _refuse_unsafe(folder)
    local = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    # What git and the Hub client keep beside the files is theirs.
    local = {name: file for name, file in local.items() if not name.startswith(_BOOKKEEPING)}
    if not local:
        raise FileNotFoundError(f"the folder {str(folder)!r} is empty: nothing to push")

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with _plain_errors(repo_id, revision):
        api = HfApi(token=token)
        # The whole name with its owner: a bare name means the user's own repository.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        seen = api.model_info(repo_id)
        if private is not None and seen.private is not None and seen.private != private:
            raise ValueError(
                f"private={private}, but the repository {repo_id!r} exists and is "
                f"{'private' if seen.private else 'public'}; change it in the repository's settings first"
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if revision is not None:
            seen = api.model_info(repo_id, revision=revision)
        stale = _listed_on_hub(
            api, repo_id, seen.sha, {file.rfilename for file in seen.siblings or ()}
        ) - set(local)
        # Not upload_folder, which may split a folder into several commits.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale)),
                *(
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
                    for name, file in local.items()
                ),
            ],
            commit_message=commit_message,
            revision=revision,
            parent_commit=seen.sha,
        )
    return commit.oid


def _listed_on_hub(api: HfApi, repo_id: str, commit: str | None, present: set[str]) -> set[str]:
    """The files in a repository that the manifest there claims."""
    if MANIFEST not in present:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(api.hf_hub_download(repo_id, MANIFEST, revision=commit, local_dir=folder))
        try:
            listed = _manifest_files(manifest.parent, read_json(manifest))
        except ValueError as error:
            _log.warning("the manifest in %s is unreadable, so old files stay there: %s", repo_id, error)
            return set()
    # The card stays: people edit it on the Hub.
    return ({*listed, MANIFEST} - {_CARD}) & present


@contextmanager
def _plain_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Say in plain words why the Hub refused."""
    from huggingface_hub import errors

    # The HTTP library behind the Hub client has changed its name; this one stays.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except errors.GatedRepoError as error:
        raise AccessDeniedError(
            f"the repository {repo_id!r} is gated: ask for access on its page, "
            "then pass the token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise AccessDeniedError(
                f"there is no folder and no public repository {repo_id!r}; if it is private, pass token=... "
                "of an account that may read it, or run 'hf auth login'"
            ) from error
        raise RepositoryNotFoundError(
            f"there is no folder and no repository {repo_id!r} that this token may read; check the spelling"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RevisionNotFoundError(
            f"the repository {repo_id!r} has no branch, tag or commit {revision or 'main'!r}"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubOfflineError(
            f"there is no folder {repo_id!r}, and the Hub cannot be asked for {repo_id!r} "
            f"(revision {revision or 'main'!r}): it is unreachable or offline mode is on, and the "
            "cache does not hold it; unset HF_HUB_OFFLINE, check the connection, or give a folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise AccessDeniedError(
                f"the Hub denies access to {repo_id!r} ({status}): pass token=... of an account "
                "with the permission"
            ) from error
        if status == 412:
            raise HubError(
                f"somebody else committed to {repo_id!r} during this push; nothing was changed, push again"
            ) from error
        raise HubError(f"the Hub answered {status} for {repo_id!r}: {error}") from error
    except RuntimeError as error:
        # So the client wraps whatever went wrong with a large file.
        if not isinstance(error.__cause__, httpx.HTTPError):
            raise
        raise HubError(
            f"the connection to the Hub broke while working on {repo_id!r}: {error.__cause__}"
        ) from error
    except httpx.HTTPError as error:
        raise HubError(f"the connection to the Hub broke while working on {repo_id!r}: {error}") from error


# Artefacts --------------------------------------------------------------------------------------------------


class HubMixin(ABC):
    """Gives a class ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a composite artefact.

    A subclass writes its files in `_save` and reads them in `_load`; it may nest folders that transformers or
    sentence-transformers wrote, and offer a default model card in `_card`. Everything else is done here:
    atomic folders, the manifest with checksums, the model card, the Hub.

    Attributes:
        hub_kind: Name in the manifest by which `from_pretrained` recognises the folder; default: the class
            name. Set it when a class is renamed or when a subclass reads its parent's folders.

    Example:
        >>> class Scale(HubMixin):
        ...     def __init__(self, factor: float) -> None:
        ...         self.factor = factor
        ...
        ...     def _save(self, directory: Path) -> None:
        ...         write_json(directory / "scale.json", {"factor": self.factor})
        ...
        ...     @classmethod
        ...     def _load(cls, directory: Path) -> "Scale":
        ...         return cls(read_json(directory / "scale.json")["factor"])
    """

    hub_kind: ClassVar[str] = ""

    @abstractmethod
    def _save(self, directory: Path) -> None:
        """Write all files into an existing, empty folder."""

    @classmethod
    @abstractmethod
    def _load(cls, directory: Path) -> Self:
        """Build an object from a folder that `_save` filled; it may be read-only."""

    def _card(self) -> ModelCard | None:
        """The model card used when the caller gives none."""
        return None

    def save_pretrained(
        self, directory: str | Path, *, card: ModelCard | None = None, overwrite: bool = False
    ) -> None:
        """Write the artefact into a folder, all or nothing.

        A folder that holds nothing but an earlier artefact is replaced in one step (see `atomic_directory`).

        Args:
            directory: The folder; it and missing parents are created.
            card: Model card, written to ``README.md``; default: the class's own, if it has one.
            overwrite: Also replace a folder with other content, which is lost.

        Raises:
            FileExistsError: The folder holds files that no artefact put there, and ``overwrite`` is false.
            ArtefactError: The artefact contains pickles or links.
        """
        target = Path(directory).expanduser()
        if not overwrite:
            _refuse_foreign(target)
        with atomic_directory(target, replace=True) as temporary:
            self._save(temporary)
            card = card if card is not None else self._card()
            if card is not None:
                write_bytes(temporary / _CARD, card.render().encode())
            _refuse_unsafe(temporary)
            _write_manifest(temporary, self._kind())

    @classmethod
    def from_pretrained(
        cls, dir_or_repo: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> Self:
        """Read an artefact from a folder or from the Hub.

        Files other than JSON and text are compared with the manifest's checksums (one pass over them); JSON
        and text may be edited by hand.

        Args:
            dir_or_repo: A folder, which wins, or a Hub repository ``"owner/name"``.
            revision: Branch, tag or commit of the repository; default ``main``.
            token: Access token for a private repository.

        Returns:
            The object.

        Raises:
            ArtefactError: The folder is no artefact of this class, lacks a file, or a file is damaged.
            OSError: See `resolve`.
        """
        folder = resolve(
            dir_or_repo, revision=revision, token=token, ignore=[f"*{suffix}" for suffix in sorted(_PICKLES)]
        )
        _check_artefact(folder, cls._kind())
        return cls._load(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        card: ModelCard | None = None,
    ) -> str:
        """Save the artefact and make it the content of a Hub repository, in one commit (see `push_folder`).

        Args:
            repo_id: ``"owner/name"``; created when missing.
            private: Whether the repository is to be private; ``None``: the owner's default for a new one.
            token: Access token with write permission.
            revision: Branch to commit to, created when missing; default ``main``.
            commit_message: First line of the commit; default: ``"Upload"`` and the class name.
            card: Model card; default: the class's own, if it has one.

        Returns:
            The commit's id, 40 hexadecimal digits.

        Raises:
            ArtefactError: The artefact contains pickles or links.
            ValueError: See `push_folder`.
            HubError: See `push_folder`.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "artefact"
            self.save_pretrained(folder, card=card)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message or f"Upload {type(self).__name__}",
            )

    @classmethod
    def _kind(cls) -> str:
        return cls.hub_kind or cls.__name__


def _refuse_unsafe(folder: Path) -> None:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ArtefactError(f"{folder} holds the link {name!r}; an artefact holds plain files only")
        if path.suffix.lower() in _PICKLES and path.is_file():
            raise ArtefactError(
                f"{folder} holds {name!r}: files of this type can be pickles, which run code when "
                "they are read; write safetensors, JSON or .npy instead"
            )


def _refuse_foreign(target: Path) -> None:
    """Refuse to replace a folder unless all it holds came from an artefact."""
    if not target.is_dir() or not any(target.iterdir()):
        return
    advice = "name another folder, or pass overwrite=True to replace everything in it"
    if not (target / MANIFEST).is_file():
        raise FileExistsError(f"{target} exists and was not written by save_pretrained; {advice}")
    try:
        listed = _manifest_files(target, read_json(target / MANIFEST))
    except ValueError as error:
        raise FileExistsError(f"{target} exists and its manifest is damaged ({error}); {advice}") from error
    foreign = sorted({f.relative_to(target).as_posix() for f in _files(target)} - {*listed, MANIFEST, _CARD})
    if foreign:
        raise FileExistsError(
            f"{target} also holds {foreign[0]!r}, which is not part of the artefact; {advice}"
        )


def _write_manifest(folder: Path, kind: str) -> None:
    files = {file.relative_to(folder).as_posix(): _sha256(file) for file in _files(folder)}
    if MANIFEST in files:
        raise ArtefactError(
            f"{MANIFEST!r} is the name of the manifest; the artefact must not write that file"
        )
    write_json(folder / MANIFEST, {"format": _FORMAT, "kind": kind, "files": files})


def _manifest_files(folder: Path, manifest: object) -> Mapping[str, str]:
    """The names and checksums in a manifest, every name checked."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise ArtefactError(f"{folder / MANIFEST} is damaged: no table of files")
    for name in files:
        artefact_path(folder, name)
    return files


def _check_artefact(folder: Path, kind: str) -> None:
    if not (folder / MANIFEST).is_file():
        raise ArtefactError(f"{folder} holds no {MANIFEST}: it was not written by {kind}.save_pretrained")
    manifest = read_json(folder / MANIFEST)
    files = _manifest_files(folder, manifest)
    if manifest.get("format") != _FORMAT:
        raise ArtefactError(
            f"{folder / MANIFEST} has format {manifest.get('format')!r}, this version reads {_FORMAT}"
        )
    if manifest.get("kind") != kind:
        raise ArtefactError(f"{folder} holds a {manifest.get('kind')}, not a {kind}")
    for name, checksum in files.items():
        path = artefact_path(folder, name)
        if not path.is_file():
            if name == _CARD:
                continue
            raise ArtefactError(f"{folder} is incomplete: {name!r} is missing")
        if PurePosixPath(name).suffix.lower() not in _EDITABLE and _sha256(path) != checksum:
            raise ArtefactError(f"{folder}: {name!r} is damaged: its checksum is not the manifest's")
