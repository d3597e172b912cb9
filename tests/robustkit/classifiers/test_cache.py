"""Caches of results, in memory and on disk, and digests of weights."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.classifiers.cache import DiskCache, MemoryCache, ResultCache, WeightsDigest, open_cache


def row(value: float) -> np.ndarray:
    return np.array([value, -value], dtype=np.float32)


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ResultCache:
    return MemoryCache(10_000) if request.param == "memory" else DiskCache(tmp_path / "a" / "b")


def test_what_was_put_comes_back(cache: ResultCache) -> None:
    assert cache.get([b"a"]) == {}
    cache.put({b"a": row(1.5), b"b": row(np.pi)})
    cache.put({b"b": row(3.0), b"c": row(-0.0)})
    found = cache.get([b"c", b"x", b"b", b"a"])
    assert set(found) == {b"a", b"b", b"c"}
    np.testing.assert_array_equal(
        np.stack([found[k] for k in (b"a", b"b", b"c")]), [row(1.5), row(3), row(0)]
    )
    assert all(r.dtype == np.float32 for r in found.values())


def test_many_keys_at_once(cache: ResultCache) -> None:
    keys = [i.to_bytes(32, "big") for i in range(1234)]
    cache.put({key: row(i) for i, key in enumerate(keys)})
    found = cache.get(keys)
    assert [found[key][0] for key in keys] == list(range(1234))
    assert cache.get([]) == {}


def test_memory_forgets_what_was_used_longest_ago() -> None:
    cache = MemoryCache(2)
    cache.put({b"a": row(1), b"b": row(2)})
    cache.get([b"a"])
    cache.put({b"c": row(3)})
    assert set(cache.get([b"a", b"b", b"c"])) == {b"a", b"c"}


def test_memory_does_not_keep_the_batch_alive() -> None:
    """A row is a view of its batch; keeping the view would keep the whole batch."""
    cache = MemoryCache(2)
    batch = np.zeros((1000, 2), np.float32)
    cache.put({b"a": batch[0]})
    assert cache.get([b"a"])[b"a"].base is None
    batch[0] = 7
    np.testing.assert_array_equal(cache.get([b"a"])[b"a"], [0, 0])


def test_disk_outlives_the_object(tmp_path: Path) -> None:
    DiskCache(tmp_path).put({b"a": row(1)})
    np.testing.assert_array_equal(DiskCache(tmp_path).get([b"a"])[b"a"], row(1))


def fill(folder: Path, start: int) -> None:
    cache = DiskCache(folder)
    for i in range(start, start + 40):
        cache.put({f"{i}-{j}".encode(): row(i) for j in range(5)})


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(tmp_path, start)) for start in (0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    keys = {f"{i}-{j}".encode(): i for i in range(60) for j in range(5)}
    found = DiskCache(tmp_path).get(list(keys))
    assert {key: int(value[0]) for key, value in found.items()} == keys


def test_a_put_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    with pytest.raises(AttributeError):
        cache.put({b"a": row(1), b"b": None})  # type: ignore[dict-item]
    assert cache.get([b"a"]) == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.sqlite").write_text("this is no database" * 100)
    with pytest.raises(OSError, match=r"results\.sqlite cannot be used .*delete it"):
        DiskCache(tmp_path)


def test_the_file_is_plain_sqlite(tmp_path: Path) -> None:
    DiskCache(tmp_path).put({b"a": row(2)})
    connection = sqlite3.connect(tmp_path / "results.sqlite")
    assert connection.execute("SELECT key, row FROM results").fetchall() == [(b"a", row(2).tobytes())]
    connection.close()


def test_open_cache(tmp_path: Path) -> None:
    assert open_cache(None) is None
    assert isinstance(open_cache(5), MemoryCache)
    assert isinstance(open_cache(tmp_path / "x"), DiskCache) and isinstance(
        open_cache(str(tmp_path)), DiskCache
    )
    with pytest.raises(ValueError, match="cache is -1"):
        open_cache(-1)
    for wrong in (True, 1.5):
        with pytest.raises(TypeError, match="cache is"):
            open_cache(wrong)  # type: ignore[arg-type]


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)


def test_equal_weights_have_equal_digests() -> None:
    digest = WeightsDigest(model())
    assert digest() == digest() == WeightsDigest(model())()
    assert len({WeightsDigest(model(d))() for d in (torch.float32, torch.bfloat16, torch.float16)}) == 3


def test_every_way_to_change_weights_changes_the_digest() -> None:
    net = model()
    digest = WeightsDigest(net)
    seen = {digest()}
    with torch.no_grad():
        net[0].weight[0, 0] += 1  # type: ignore[union-attr, index, operator]
    seen.add(digest())
    net[1].running_mean += 1  # type: ignore[union-attr, operator]
    seen.add(digest())
    net[0].bias = nn.Parameter(torch.ones(2))
    seen.add(digest())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    seen.add(digest())
    net.to(torch.float64)
    seen.add(digest())
    net.load_state_dict({key: value * 2 for key, value in net.state_dict().items()})
    seen.add(digest())
    assert len(seen) == 7
