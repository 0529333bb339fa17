"""Where a run and its answers are kept: a folder on a local disk or in a bucket, behind one pyarrow filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.file_modes import Modes
from rambla_ray.inputs import absolute, open_regular, reason_of, refuse_credentials
from rambla_ray.schema import well_formed

FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # What a full disk, or quota, says; a bucket has no numbers.
PROBE_BYTES = 4096  # Whether a folder can be written is tried with so much: a full disk still takes an empty file.


def joined(location: str, name: str) -> str:
    """The location of what lies in a folder: behind the path of a URI, and before its query."""
    path, query = _split(location)
    return f"{path.rstrip('/')}/{name}{query}"


def name_of(location: str) -> str:
    """The name of what lies at a location, without where it lies."""
    return _split(location)[0].rstrip("/").rpartition("/")[2]


def beyond_scheme(location: str) -> str:
    """What a URI names behind `://`, a bucket first, without its query; nothing where it names none."""
    return _split(location)[0].partition("://")[2].strip("/")


def _split(location: str) -> tuple[str, str]:
    """A location up to its path, and what stands behind that."""
    end = min((place for mark in "?#" if (place := location.find(mark)) >= 0), default=len(location))
    end = end if "://" in location else len(location)  # In a local path these marks are characters like others.
    return location[:end], location[end:]


@contextlib.contextmanager
def removed_if_empty(folder: Folder) -> Iterator[Callable[[], None]]:
    """On leaving, the folder and those it lies in go, if they were made inside and are empty: nothing was begun.

    It gives what does so, for whoever ends the process inside.
    """
    missing = folder.missing

    def remove() -> None:
        for path in missing:
            with contextlib.suppress(OSError):  # It was not made after all, or something has been put into it.
                path.rmdir()

    try:
        yield remove
    finally:
        remove()


class Folder:
    """A folder on any pyarrow filesystem.

    Args:
        location: a local path, or a URI (`s3://bucket/path`, `gs://bucket/path`).
        modes: the rights to all that is created in it on a local disk, and to the folder itself if it is created.

    Raises:
        UserError: the URI is not one that pyarrow can open, or the path is none.
    """

    def __init__(self, location: str, modes: Modes = Modes()) -> None:  # noqa: B008 - it is a constant
        self.location = location
        self.modes = modes
        self.is_local = "://" not in location
        self.filesystem: fs.FileSystem
        if self.is_local:
            if "\0" in location:
                raise UserError(f"{location!a}: a path has no NUL; give another")
            root = os.fspath(absolute(location))
            self.filesystem = fs.LocalFileSystem()
            self.root = root.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
            if well_formed(self.root) != self.root:
                raise UserError(f"{self.root!a}: the bytes of this name are not UTF-8; rename it, or take another")
        else:
            refuse_credentials(location)
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
            except (ValueError, OSError, ImportError) as error:
                raise UserError(f"{location}: cannot be opened: {str(error)[:200]}") from None
            if not self.root:
                raise UserError(f"{location}: it names no bucket; give one behind ://")
        self._is_on_disk = isinstance(self.filesystem, fs.LocalFileSystem)  # also behind `file://`

    @property
    def name(self) -> str:
        """The folder's own name, without where it lies."""
        return self.root.rstrip("/").rpartition("/")[2]

    def child(self, name: str) -> str:
        """The location of a file or folder in this folder."""
        return joined(self.location, name)

    def path(self, name: str) -> str:
        """The path of a file in this folder, as the filesystem takes it."""
        return f"{self.root}/{name}"

    def local_path(self, name: str) -> bytes:
        """The path of a file in this folder on a local disk, as Python takes it; no locale changes it."""
        return self.path(name).encode("utf-8", "surrogateescape")

    def make_writable(self, what: str) -> None:
        """Create the folder and try to write to it.

        Args:
            what: what the folder is for, as the message names it.

        Raises:
            UserError: it cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.create()
            self.write(probe, bytes(PROBE_BYTES))
            self.filesystem.delete_file(self.path(probe))
        except OSError as error:
            raise UserError(f"{what} '{self.location}' cannot be written: {reason_of(error)}") from None

    def create(self) -> None:
        """Create the folder, and those it lies in; what is there already keeps its rights. Raises OSError."""
        if not self._is_on_disk:
            self.filesystem.create_dir(self.root, recursive=True)
            return
        self.modes.create_folder(self._on_disk)

    @property
    def missing(self) -> list[Path]:
        """The folders on a local disk that do not exist and would have to be made for this one, the inmost first."""
        path = self._on_disk
        return [folder for folder in (path, *path.parents) if not os.path.exists(folder)] if self._is_on_disk else []

    @property
    def _on_disk(self) -> Path:
        """The folder on a local disk, as Python takes it; no locale changes it."""
        return Path(os.fsdecode(self.root.encode("utf-8", "surrogateescape")))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While inside, an OSError means that this folder cannot be written any more. Raises NotWritten."""
        try:
            yield
        except OSError as error:
            way_out = "make room there" if error.errno in FULL else "put that right"
            reason = f"{reason_of(error)}; {way_out}, and run the same command again"
            raise NotWritten(f"'{self.location}' cannot be written: {reason}") from None

    def names(self, suffix: str) -> list[str]:
        """Files directly in the folder that end in `suffix`, sorted; none when the folder does not exist."""
        entries = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(info.base_name for info in entries if info.is_file and info.base_name.endswith(suffix))

    def has(self, name: str) -> bool:
        """Whether there is such a file; not where the folder cannot be looked into."""
        try:
            return bool(self.filesystem.get_file_info(self.path(name)).is_file)
        except OSError:
            return False

    def read(self, name: str) -> bytes:
        """A whole file. Raises OSError: FileNotFoundError where there is none."""
        opened = (
            open_regular(self.local_path(name)) if self.is_local else self.filesystem.open_input_file(self.path(name))
        )
        with opened as stream:
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file; on a local disk a reader sees the old one or the new one, never a part."""
        if not self._is_on_disk:
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(data)
            return
        draft = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(self.local_path(draft), "xb", opener=self.modes.create_file) as file:
                file.write(data)
            os.replace(self.local_path(draft), self.local_path(name))
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.local_path(draft))
            raise

    def open_new(self, name: str) -> BinaryIO:
        """A new file on a local disk, to be appended to, unbuffered, and to be read meanwhile.

        Raises:
            OSError: it cannot be created, or there is one.
        """
        return open(self.local_path(name), "a+b", buffering=0, opener=self.modes.create_file)

    def open_appending(self, name: str) -> BinaryIO:
        """As `open_new`, but where there is such a file, that one is gone on with. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            return open(self.local_path(name), "a+b", buffering=0, opener=self.modes.open_or_create_file)
        return self.open_appending(name)  # Another process was faster.

    def open_descriptor(self, name: str) -> int:
        """The same, as a descriptor for the caller to close. Raises OSError."""
        with self.open_appending(name) as file:
            return os.dup(file.fileno())

    def open_stream(self, name: str) -> pa.NativeFile:
        """A file that is written from its beginning, in the place of an older one. Raises OSError."""
        if self._is_on_disk:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.local_path(name))
            self.open_new(name).close()  # pyarrow itself would create it with the rights of the umask.
        return self.filesystem.open_output_stream(self.path(name))

    def publish(self, draft: str, name: str) -> None:
        """Rename a file that is complete from the name of its draft to its own, replacing an older one."""
        self.filesystem.move(self.path(draft), self.path(name))
