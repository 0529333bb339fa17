"""The ledger: every response by request_id, append-only. Cache, resume and audit in one.

A folder of segments, each with one writer, whose lines are records (see `record`). A line that is torn or damaged is
skipped and counted, and its request is asked again.

Loading reads every line once, but parses only those of its own run: a million take seconds. What is kept in memory is
where each answer stands, not the answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from rambla_ray.ledger.record import Kind, NewerFormat, Record, check, mark_line, peek, run_tag
from rambla_ray.ledger.spent import Spent, Tally
from rambla_ray.schema import Response
from rambla_ray.storage import Folder

SUFFIX = ".ledger"
DOWNLOADS = 16  # Segments of a bucket that are read at the same time.


@dataclass(slots=True)
class _Segment:
    """A segment's bytes on a local disk, mapped, so that reading takes none of this process's own memory."""

    data: mmap.mmap

    @classmethod
    def of(cls, file: BinaryIO) -> _Segment | None:
        """A file's content; None when it is empty."""
        with file:
            if not os.fstat(file.fileno()).st_size:
                return None
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its offset; the last may be torn."""
        start, size = 0, len(self.data)
        while start < size:
            end = self.data.find(b"\n", start) + 1 or size
            yield start, self.data[start:end]
            start = end

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass(slots=True)
class _OwnSegment:
    """What this process writes: the segment itself, or, for a bucket, a copy to read from."""

    file: BinaryIO
    size: int = 0
    unsent: list[bytes] = field(default_factory=list)  # Lines of the next part in a bucket

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


def has_records_of(folder: Folder, run_id: str) -> bool:
    """Whether a run has written into a ledger on a local disk; False for any other, whose parts are too many to see.

    A segment has one writer, of one run, so that its first line says whose it is. What cannot be read is no record:
    why it cannot is for whoever opens the ledger to say.
    """
    if not folder.is_local:
        return False
    tag = run_tag(run_id).encode()
    with contextlib.suppress(OSError):
        for name in folder.names(SUFFIX):
            with open(folder.path(name), "rb") as file, contextlib.suppress(ValueError, KeyError, TypeError):
                if check(file.readline())[2] == tag:
                    return True
    return False


class Ledger:
    """A ledger folder, loaded, with a segment of its own for what is new.

    Args:
        folder: where the segments are.
        run_id: the run whose records are counted in `spent`, and that new records belong to.
    """

    def __init__(self, folder: Folder, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._tally = Tally(run_id)
        self._where: dict[bytes, int] = {}  # request_id → the place of its answer, packed; see `_packed`
        self._segments: list[_Segment | _OwnSegment] = []
        self._own: _OwnSegment | None = None
        self._lock = threading.Lock()  # held while the own segment's unsent lines change
        self._name = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:12]}"
        self._parts = 0
        self.damaged = 0  # lines that were skipped because they are torn or damaged
        self.newer: Counter[str] = Counter()  # number of a newer format → lines that were skipped for it
        self._load()

    @property
    def spent(self) -> Mapping[tuple[str, str], Spent]:
        """By (model, role), what this run has spent over all its invocations. The mapping changes as records come."""
        return self._tally.spent

    @property
    def deaths(self) -> Mapping[str, int]:
        """By request_id, how many processes of this run died asking it; only those that any died of."""
        return self._tally.deaths

    def _load(self) -> None:
        for file in self._files():
            segment = _Segment.of(file)
            if segment is None:
                continue
            self._segments.append(segment)
            number = len(self._segments) - 1
            for offset, line in segment.lines():
                try:
                    self._take(*check(line), line, number, offset)
                except NewerFormat as error:
                    self.newer[error.number] += 1
                except (ValueError, KeyError, TypeError):
                    self.damaged += 1

    def _files(self) -> Iterator[BinaryIO]:
        """The segments as local files; those of a bucket are copied here first, without a name."""
        names = self._folder.names(SUFFIX)
        if self._folder.is_local:
            yield from (open(self._folder.local_path(name), "rb") for name in names)  # noqa: SIM115
            return

        def fetch(name: str) -> BinaryIO:
            copy = tempfile.TemporaryFile()  # noqa: SIM115
            copy.write(self._folder.read(name))
            copy.flush()
            return cast(BinaryIO, copy)

        with ThreadPoolExecutor(DOWNLOADS) as pool:
            yield from pool.map(fetch, names)

    def _take(self, kind: str, request_id: str, tag: bytes, line: bytes, segment: int, offset: int) -> None:
        """Remember where an answer stands, and count what is this run's."""
        if tag == self._tally.tag:
            self._tally.add(kind, request_id, line)
        if kind == Kind.ANSWER:
            self._where.setdefault(bytes.fromhex(request_id), _packed(segment, offset, len(line)))

    def __len__(self) -> int:
        return len(self._where)

    def line(self, request_id: str) -> bytes | None:
        """The stored answer to a request, as its line."""
        where = self._where.get(bytes.fromhex(request_id))
        if where is None:
            return None
        segment, offset, length = _unpacked(where)
        return self._segments[segment].read(offset, length)

    def get(self, request_id: str) -> Response | None:
        """The stored answer to a request."""
        line = self.line(request_id)
        return Record.from_line(line).response if line is not None else None

    def add(self, lines: Iterable[bytes]) -> None:
        """Take records in, as lines; they are durable after the next `commit`. One that is there already is left out.

        Raises:
            ValueError: a damaged line, or one of a newer format.
            OSError: they cannot be written; none of them is taken in.
        """
        new = []
        for line in lines:
            kind, request_id, _ = check(line)
            stored = self.line(request_id) if kind == Kind.ANSWER else self._tally.failures.get(request_id)
            if stored != line:
                new.append(line)
        self._append(new)

    def mark(self, kind: Kind, requests: Iterable[tuple[str, str, str]]) -> None:
        """Note a claim, a release or a death of requests, as (request_id, model, role).

        Not made durable by itself: it survives the death of every process, not that of the machine. Raises OSError.
        """
        self._append([mark_line(kind, request_id, self._run_id, model, role) for request_id, model, role in requests])

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        own = self._own_segment()
        data = b"".join(lines)
        offset = own.append(data)
        if not self._folder.is_local:
            with self._lock:
                own.unsent.append(data)
        for line in lines:
            self._take(*peek(line), line, len(self._segments) - 1, offset)
            offset += len(line)

    def _own_segment(self) -> _OwnSegment:
        if self._own is None:
            if self._folder.is_local:
                file: Any = self._folder.open_new(self._name + SUFFIX)
            else:
                file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._own = _OwnSegment(file)
            self._segments.append(self._own)
        return self._own

    def commit(self) -> None:
        """Make everything added so far durable: fsync on a local disk, a new immutable part in a bucket.

        It may run in a thread of its own, while records are added.

        Raises:
            OSError: it cannot be done. What goes to a bucket is tried again with the next commit.
        """
        if self._own is None:
            return
        if self._folder.is_local:
            os.fsync(self._own.file.fileno())
            return
        with self._lock:
            unsent, self._own.unsent = self._own.unsent, []
        if unsent:
            self._parts += 1
            try:
                self._folder.write(f"{self._name}-{self._parts:06}{SUFFIX}", b"".join(unsent))
            except OSError:
                with self._lock:
                    self._own.unsent[:0] = unsent
                raise


def _packed(segment: int, offset: int, length: int) -> int:
    """The place of a line as one number, a quarter of a tuple's memory: 40 bits of offset, 32 of length."""
    return segment << 72 | offset << 32 | length


def _unpacked(place: int) -> tuple[int, int, int]:
    return place >> 72, place >> 32 & (1 << 40) - 1, place & (1 << 32) - 1
