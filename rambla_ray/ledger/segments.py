"""The segments of a ledger: one that is complete, one that another process writes, one that this process writes.

Each is read by the place of a line. Only the one that this process writes keeps a file open: a folder has thousands.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, Self, cast

import pyarrow as pa

from rambla_ray.ledger.record import check
from rambla_ray.storage import Folder

SUFFIX = ".ledger"
DOWNLOADS = 16  # Segments of a bucket that are read at the same time.


class Segment(Protocol):
    """What a line can be read from."""

    def read(self, offset: int, length: int) -> bytes:
        """The line at a place; empty where it is no more."""
        ...


@dataclass(frozen=True, slots=True)
class Complete:
    """A segment on a local disk whose writer has ended: mapped, so that it takes neither memory nor an open file."""

    data: pa.Buffer

    @classmethod
    def of(cls, path: bytes) -> Self:
        """The file at a path. Raises OSError."""
        with pa.memory_map(path) as file:  # Python's own mmap keeps a file open until 3.13.
            return cls(file.read_buffer())

    def read(self, offset: int, length: int) -> bytes:
        return cast(bytes, self.data.slice(offset, length).to_pybytes())


@dataclass(frozen=True, slots=True)
class Growing:
    """A segment that another process is writing.

    It is opened for each line. A line may be gone: its writer takes back what it could not write as a whole.
    """

    path: bytes

    def read(self, offset: int, length: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                line = os.pread(file.fileno(), length, offset)
            check(line)
        except (OSError, ValueError):
            return b""
        return line


@dataclass(slots=True)
class Own:
    """What this process writes: the segment itself, or, for a bucket, a copy to read from."""

    file: BinaryIO
    size: int = 0
    unsent: list[bytes] = field(default_factory=list)  # Lines of the next part in a bucket

    @classmethod
    def continued(cls, file: BinaryIO) -> Self:
        """A file that may hold lines of a writer that died, of which the last may be torn. Raises OSError."""
        own = cls(file, os.fstat(file.fileno()).st_size)
        if own.size and own.read(own.size - 1, 1) != b"\n":
            own.append(b"\n")
        return own

    def append(self, data: bytes) -> int:
        """Write at the end, all or nothing; returns the offset. Raises OSError."""
        offset, view = self.size, memoryview(data)
        try:
            while view:
                view = view[os.write(self.file.fileno(), view) :]
        except OSError:
            os.ftruncate(self.file.fileno(), offset)  # The next line must not be joined to a part of this one.
            raise
        self.size += len(data)
        return offset

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)

    def __del__(self) -> None:
        self.file.close()


def lines_of(path: bytes) -> Iterator[tuple[int, bytes]]:
    """Every line of a file with its offset; the last may be torn. Raises OSError."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


class Copies:
    """The segments of a bucket, one behind the other in one file without a name."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._file = Own(cast(BinaryIO, file))
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def fetch(self) -> Iterator[tuple[int, bytes]]:
        """Copy all; every line with its offset here, of which the last of each segment may be torn. Raises OSError."""
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            for start, size in pool.map(self._copy, self._folder.names(SUFFIX)):
                offset = start
                for line in self.read(start, size).splitlines(keepends=True):
                    yield offset, line
                    offset += len(line)

    def _copy(self, name: str) -> tuple[int, int]:
        data = self._folder.read(name)
        with self._lock:
            return self._file.append(data), len(data)
