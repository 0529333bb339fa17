"""Where files are: a local path or a bucket, behind one pyarrow filesystem."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.schema import well_formed

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


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON, or nested so deeply that the parser gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def expanded(path: str) -> Path:
    """A local path with the home folder in the place of `~`. Raises UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{path}: there is no home folder {home}; give the whole path") from None


def absolute(path: str) -> Path:
    """A local path from the root on. Raises UserError as `expanded`, and where there is no working folder any more."""
    try:
        return expanded(path).absolute()
    except FileNotFoundError:
        raise UserError(
            f"{path} is relative, and the folder that this was started in is gone; cd to another"
        ) from None


def open_input(location: str) -> pa.NativeFile:
    """A file on a local disk or in a bucket, to be read.

    Raises:
        OSError: it cannot be.
        ValueError: a URI of no known scheme, or a path with a NUL.
        UserError: the home folder of nobody, or a relative path where the working folder is gone.
    """
    if "://" not in location:
        return fs.LocalFileSystem().open_input_file(str(absolute(location)))
    filesystem, path = fs.FileSystem.from_uri(location)
    return filesystem.open_input_file(path)


@contextlib.contextmanager
def removed_when_refused(folders: Iterable[Folder]) -> Iterator[None]:
    """While inside, a UserError means that nothing was begun: what was made of these folders, and is empty, goes."""
    made = [path for folder in folders for path in folder.missing]
    try:
        yield
    except UserError:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # It was not made after all, or another run has put something into it.
                path.rmdir()
        raise


class Folder:
    """A folder on any pyarrow filesystem.

    Args:
        location: a local path, or a URI (`s3://bucket/path`, `gs://bucket/path`).

    Raises:
        UserError: the URI is not one that pyarrow can open, or the path is none.
    """

    def __init__(self, location: str) -> None:
        self.location = location
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
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
            except (ValueError, OSError, ImportError) as error:
                raise UserError(f"{location}: cannot be opened: {str(error)[:200]}") from None

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
            self.filesystem.create_dir(self.root, recursive=True)
            self.write(probe, bytes(PROBE_BYTES))
            self.filesystem.delete_file(self.path(probe))
        except OSError as error:
            raise UserError(f"{what} '{self.location}' cannot be written: {reason_of(error)}") from None

    @property
    def missing(self) -> list[Path]:
        """The folders on a local disk that do not exist and would have to be made for this one, the inmost first."""
        path = Path(os.fsdecode(self.root.encode("utf-8", "surrogateescape")))
        return [folder for folder in (path, *path.parents) if not os.path.exists(folder)] if self.is_local else []

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While inside, an OSError means that this folder cannot be written any more. Raises NotWritten."""
        try:
            yield
        except OSError as error:
            reason = f"{reason_of(error)}; make room there, and run the same command again"
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
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(data)
            return
        draft = self.local_path(f"{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(draft, "wb") as file:
                file.write(data)
            os.replace(draft, self.local_path(name))
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise

    def publish(self, draft: str, name: str) -> None:
        """Rename a file that is complete from the name of its draft to its own, replacing an older one."""
        self.filesystem.move(self.path(draft), self.path(name))
