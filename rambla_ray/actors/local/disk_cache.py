"""Folders of files that took long to make, kept on this machine's disk for the next process that needs them.

An entry is written beside its place and renamed, so that nobody sees half of one. It holds the checksums of its files:
one that does not match them is thrown away, and made anew. Who reads an entry may find it gone at any moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rambla_ray.file_modes import Modes
from rambla_ray.inputs import open_regular, parse_json, reason_of

PLACE_VARIABLE, LIMIT_VARIABLE = "RAMBLA_CACHE", "RAMBLA_CACHE_GIB"
OFF = ("", "off")  # Values of PLACE_VARIABLE with which nothing is kept.
DEFAULT_GIB = 32.0
MANIFEST = "entry.json"
PARTIAL = ".partial-"  # What is being written is named so.
ABANDONED_S = 3600  # The writer of what has not changed for so long was killed.


class NotKept(Exception):
    """Why something was not kept, in a few words."""


class DiskCache:
    """Entries of bounded size in all: the one whose last use is longest ago goes first.

    Args:
        root: the folder of the entries, which need not be there yet.
        limit_bytes: the most that they take.
        modes: of the files and folders that are created.
    """

    def __init__(self, root: Path, limit_bytes: float, modes: Modes = Modes()) -> None:  # noqa: B008 - it is frozen
        self.root = root
        self._limit = limit_bytes
        self._modes = modes

    def find(self, name: str) -> Path | None:
        """The folder of an entry that is whole, which counts as used; None without one."""
        entry = self.root / name
        if not os.path.lexists(entry):
            return None
        if not _is_whole(entry):
            self._remove(entry)
            return None
        with contextlib.suppress(OSError):  # Others filled it, and it can only be read.
            os.utime(entry)
        return entry

    def keep(self, name: str, write: Callable[[Path], None], expected_bytes: int = 0) -> None:
        """Keep what `write` puts into an empty folder. Where another process has been faster, its entry stays.

        Args:
            name: of the entry.
            write: gets the folder.
            expected_bytes: about how much that will be.

        Raises:
            NotKept: there is no room for it, or nothing can be written.
        """
        try:
            self._modes.create_folder(self.root)
            self._sweep()
            self._check_room(expected_bytes)
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.root))
            try:
                write(partial)
                self._seal(partial)
                self._place(partial, name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._evict()
        except OSError as error:
            raise NotKept(f"{self.root}: {reason_of(error)}") from None

    def drop(self, name: str) -> None:
        """Throw an entry away."""
        self._remove(self.root / name)

    def _check_room(self, expected_bytes: int) -> None:
        if expected_bytes > self._limit:
            raise NotKept(f"{self.root} takes {self._limit / 2**30:g} GiB ({LIMIT_VARIABLE})")
        if 2 * expected_bytes > shutil.disk_usage(self.root).free:
            raise NotKept(f"{self.root}: that would take more than half of what is free there")

    def _seal(self, folder: Path) -> None:
        """Write the checksums of a folder's files, set the modes, and have the disk hold all of it."""
        manifest = {
            file: {"bytes": os.stat(folder / file).st_size, "sha256": _sha256(folder / file)}
            for file in _files(folder)
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for place in (*folder.rglob("*"), folder):
            mode = self._modes.folders if place.is_dir() else self._modes.files
            if mode is not None:
                os.chmod(place, mode)
            _sync(place)

    def _place(self, partial: Path, name: str) -> None:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            try:
                os.rename(partial, self.root / name)
            except OSError:
                if not (self.root / name).is_dir():
                    raise
                return  # Another process was faster.
            _sync(self.root)

    def _sweep(self) -> None:
        """Remove what processes that were killed have left."""
        for partial in self.root.glob(f"{PARTIAL}*"):
            with contextlib.suppress(OSError):
                newest = max(os.lstat(place).st_mtime for place in (partial, *partial.rglob("*")))
                if time.time() - newest > ABANDONED_S:
                    shutil.rmtree(partial, ignore_errors=True)

    def _evict(self) -> None:
        """Remove the entries that do not fit any more."""
        total = 0
        for entry in sorted(self._entries(), key=_used_at, reverse=True):
            total += _bytes_of(entry)
            if total > self._limit:
                self._remove(entry)

    def _entries(self) -> Iterator[Path]:
        return (path for path in self.root.iterdir() if not path.name.startswith(PARTIAL))

    def _remove(self, entry: Path) -> None:
        """Remove an entry in one step, for whoever looks for it."""
        with contextlib.suppress(OSError):
            aside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.root))
            with contextlib.suppress(OSError):
                os.rename(entry, aside / "removed")
            shutil.rmtree(aside, ignore_errors=True)


def user_cache(purpose: str) -> DiskCache | None:
    """The cache of this user on this machine for one purpose; None where nothing is to be kept, or nowhere."""
    place = os.environ.get(PLACE_VARIABLE)
    if place is not None:
        if place.lower() in OFF:
            return None
        root = Path(place).expanduser()
    else:
        home = os.environ.get("XDG_CACHE_HOME", "")
        try:  # The standard has a relative XDG_CACHE_HOME ignored.
            root = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "rambla_ray"
        except RuntimeError:  # This user has no home.
            return None
    return DiskCache(root / purpose, _limit_gib() * 2**30)


def _limit_gib() -> float:
    try:
        limit = float(os.environ.get(LIMIT_VARIABLE) or DEFAULT_GIB)
    except ValueError:
        return DEFAULT_GIB
    return limit if limit >= 0 else DEFAULT_GIB


def _is_whole(entry: Path) -> bool:
    """Whether a folder holds the very files of its manifest, and nothing beside them."""
    try:
        if entry.is_symlink():
            return False
        with open_regular(entry / MANIFEST) as stream:
            manifest = parse_json(stream.read())
        names = {name for name in _files(entry) if name != MANIFEST}
        return (
            bool(manifest)
            and names == manifest.keys()
            and all(
                os.lstat(entry / name).st_size == facts["bytes"] and _sha256(entry / name) == facts["sha256"]
                for name, facts in manifest.items()
            )
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _files(folder: Path) -> list[str]:
    """The names of all that a folder holds but folders, links included."""
    return sorted(
        str(Path(place, name).relative_to(folder))
        for place, folders, names in os.walk(folder)
        for name in (*names, *(link for link in folders if Path(place, link).is_symlink()))
    )


def _sha256(path: Path) -> str:
    if path.is_symlink():
        raise OSError("it is a link")
    stream: Any
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bytes_of(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(os.lstat(entry / name).st_size for name in _files(entry))
    return 0


def _used_at(entry: Path) -> float:
    try:
        return os.lstat(entry).st_mtime
    except OSError:
        return 0.0


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
