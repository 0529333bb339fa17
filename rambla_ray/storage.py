"""Where files are: a local path or a bucket, behind one pyarrow filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.file_modes import Modes
from rambla_ray.redaction import holds_credentials
from rambla_ray.schema import well_formed

FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # What a full disk, or quota, says; a bucket has no numbers.
OTHER_PLACE = "keep that in the environment or a credentials file"
PROBE_BYTES = 4096  # Whether a folder can be written is tried with so much: a full disk still takes an empty file.


def reason_of(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0][:200]


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, whatever the locale, without its byte-order mark if it has one.

    Raises:
        ValueError: it is not UTF-8; the message names the first byte that is not, and its line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"byte 0x{byte:02x} in line {line} is not UTF-8; save the file as UTF-8") from None


def open_input(location: str) -> pa.NativeFile:
    """A file on a local disk or in a bucket, to be read. Raises OSError; ValueError for a URI of no known scheme."""
    _refuse_credentials(location)
    if "://" not in location:
        return fs.LocalFileSystem().open_input_file(str(Path(location).expanduser().absolute()))
    filesystem, path = fs.FileSystem.from_uri(location)
    return filesystem.open_input_file(path)


def _refuse_credentials(location: str) -> None:
    """Raise a UserError for a URI with a password or a key in it, which would be stored and shown."""
    if holds_credentials(location):
        raise UserError(f"{location} is a URL with a password in it, or with another key; {OTHER_PLACE}")


class Folder:
    """A folder on any pyarrow filesystem.

    Args:
        location: a local path, or a URI (`s3://bucket/path`, `gs://bucket/path`).
        modes: the rights to all that is created in it on a local disk, and to the folder itself if it is created.

    Raises:
        UserError: the URI is not one that pyarrow can open, or holds a password, or the path is no text.
    """

    def __init__(self, location: str, modes: Modes = Modes()) -> None:  # noqa: B008 - it is a constant
        self.location = location
        self.modes = modes
        self.is_local = "://" not in location
        self.filesystem: fs.FileSystem
        if self.is_local:
            absolute = os.fspath(Path(location).expanduser().absolute())
            self.filesystem = fs.LocalFileSystem()
            self.root = absolute.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
            if well_formed(self.root) != self.root:
                raise UserError(f"{self.root!a}: the bytes of this name are not UTF-8; rename it, or take another")
        else:
            _refuse_credentials(location)
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
            except (ValueError, OSError, ImportError) as error:
                raise UserError(f"{location}: cannot be opened: {str(error)[:200]}") from None
        self._is_on_disk = isinstance(self.filesystem, fs.LocalFileSystem)  # also behind `file://`

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
        self.modes.create_folder(Path(os.fsdecode(self.root.encode("utf-8", "surrogateescape"))))

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
        """A whole file. Raises FileNotFoundError."""
        with self.filesystem.open_input_file(self.path(name)) as stream:
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
