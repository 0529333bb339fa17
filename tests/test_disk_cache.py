"""The cache on disk: whole entries or none, bounded, private, and never needed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rambla_ray.actors.local import disk_cache
from rambla_ray.actors.local.disk_cache import DiskCache, NotKept, user_cache

KIB = 1024


def written(size: int = KIB) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"x" * size)
        (folder / "config.json").write_text("{}")

    return write


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10 * KIB)


def test_what_was_kept_is_found_by_its_owner_alone(cache: DiskCache) -> None:
    cache.keep("a", written())
    entry = cache.find("a")
    assert entry is not None
    assert (entry / "model.bin").read_bytes() == b"x" * KIB
    modes = {stat.S_IMODE(os.stat(place).st_mode) for place in (cache.root, entry)}
    assert modes == {0o700}
    assert {stat.S_IMODE(os.stat(file).st_mode) for file in entry.iterdir()} == {0o600}
    assert cache.find("b") is None


def cut(entry: Path) -> None:
    with (entry / "model.bin").open("r+b") as stream:
        stream.truncate(10)


def flip(entry: Path) -> None:
    (entry / "model.bin").write_bytes(b"y" + b"x" * (KIB - 1))


def link(entry: Path) -> None:
    shutil.move(entry / "model.bin", entry.parent.parent / "elsewhere")
    (entry / "model.bin").symlink_to(entry.parent.parent / "elsewhere")


def pipe(entry: Path) -> None:
    (entry / "model.bin").unlink()
    os.mkfifo(entry / "model.bin")


def pipe_for_manifest(entry: Path) -> None:
    (entry / disk_cache.MANIFEST).unlink()
    os.mkfifo(entry / disk_cache.MANIFEST)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "flipped": flip,
    "linked": link,
    "a pipe": pipe,
    "a pipe for a manifest": pipe_for_manifest,
    "lost": lambda entry: (entry / "config.json").unlink(),
    "one more": lambda entry: (entry / "chat_template.jinja").write_text("x"),
    "no manifest": lambda entry: (entry / disk_cache.MANIFEST).unlink(),
    "garbage in the manifest": lambda entry: (entry / disk_cache.MANIFEST).write_text('{"model.bin": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_thrown_away_and_made_anew(cache: DiskCache, damage: Callable[[Path], None]) -> None:
    cache.keep("a", written())
    damage(cache.root / "a")
    assert cache.find("a") is None
    assert list(cache.root.iterdir()) == []
    cache.keep("a", written())
    assert cache.find("a") is not None


def test_the_entry_whose_use_is_longest_ago_goes_first(cache: DiskCache) -> None:
    for age, name in enumerate("cba"):
        cache.keep(name, written(3 * KIB))
        os.utime(cache.root / name, (1000 - age, 1000 - age))
    cache.find("a")  # It is used, and so the youngest.
    cache.keep("d", written(3 * KIB))
    assert {entry.name for entry in cache.root.iterdir()} == {"a", "d", "c"}
    assert cache.find("b") is None


def test_what_does_not_fit_at_all_is_not_kept(cache: DiskCache) -> None:
    with pytest.raises(NotKept, match=r"takes 9\.53674e-06 GiB"):
        cache.keep("a", written(), expected_bytes=11 * KIB)
    with pytest.raises(NotKept, match="more than half of what is free"):
        DiskCache(cache.root, float("inf")).keep("a", written(), expected_bytes=shutil.disk_usage("/").total)


def test_a_writer_that_fails_leaves_nothing(cache: DiskCache) -> None:
    def fail(folder: Path) -> None:
        written()(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(NotKept, match="No space left on device"):
        cache.keep("a", fail)
    assert list(cache.root.iterdir()) == []


def test_of_two_writers_one_places_its_entry_and_the_other_leaves_it(cache: DiskCache) -> None:
    def while_another_does(folder: Path) -> None:
        written()(folder)
        cache.keep("a", written())

    cache.keep("a", while_another_does)
    assert cache.find("a") is not None
    assert [entry.name for entry in cache.root.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_removed_in_time(cache: DiskCache) -> None:
    cache.keep("a", written())
    for name, age in (("old", 2 * disk_cache.ABANDONED_S), ("new", 0)):
        partial = cache.root / f"{disk_cache.PARTIAL}{name}"
        partial.mkdir()
        at = os.stat(cache.root).st_mtime - age
        os.utime(partial, (at, at))
    cache.keep("b", written())
    assert {entry.name for entry in cache.root.iterdir()} == {"a", "b", f"{disk_cache.PARTIAL}new"}


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_place_that_is_no_folder_is_one_reason(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    place.touch() if kind == "file" else os.mkfifo(place)
    with pytest.raises(NotKept, match=r"File exists|Not a directory"):
        DiskCache(place / "gguf", KIB).keep("a", written())
    assert DiskCache(place / "gguf", KIB).find("a") is None


def root_with(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Path | None:
    for name in ("RAMBLA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/of", **environment}.items():
        monkeypatch.setenv(name, value)
    cache = user_cache("gguf")
    return cache.root if cache else None


def test_it_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert root_with(monkeypatch) == Path("/home/of/.cache/rambla_ray/gguf")
    assert root_with(monkeypatch, XDG_CACHE_HOME="/x") == Path("/x/rambla_ray/gguf")
    assert root_with(monkeypatch, XDG_CACHE_HOME="relative") == Path("/home/of/.cache/rambla_ray/gguf")
    assert root_with(monkeypatch, RAMBLA_CACHE="/mine", XDG_CACHE_HOME="/x") == Path("/mine/gguf")
    assert root_with(monkeypatch, RAMBLA_CACHE="~/c") == Path("/home/of/c/gguf")
    assert root_with(monkeypatch, RAMBLA_CACHE="off") is None
