"""The ledger: every response by request_id, append-only. Cache, resume and audit in one.

A folder of segments, each with one writer. A record is one line, `crc32 kind request_id run json`; a line that is torn
or damaged does not match its checksum, is skipped and counted, and its request is asked again. Five kinds of record:

    a  an answer: served to whoever asks the same again
    f  a failure: kept for the audit, never served as an answer
    c  a claim: somebody is about to ask; one that nothing follows was in flight when its process died
    r  a release: whoever claimed it did not ask after all
    d  a death: the process that was asking died

Loading reads every line once, but parses only those of its own run: a million take seconds. What is kept in memory is
where each answer stands, not the answer.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

from rambla_ray.schema import NO_CALL, TRACE_FIELDS, CallTrace, Response, Try
from rambla_ray.storage import Folder

SUFFIX = ".ledger"
DOWNLOADS = 16  # segments of a bucket that are read at the same time

Kind = Literal["a", "f", "c", "r", "d"]
_HEADER = len(b"cccccccc k ") + 64 + len(b" rrrrrrrr ")  # bytes before the JSON body


@dataclass(frozen=True, slots=True)
class Record:
    """What one request ended in: an answer, or a failure. `at` is Unix time in seconds."""

    request_id: str
    run_id: str
    model: str
    role: str
    response: Response | None = None
    error_kind: str = ""
    error: str = ""
    call_trace: CallTrace = NO_CALL  # of a failure; an answer's stands in its response
    at: float = 0.0

    @property
    def trace(self) -> CallTrace:
        """How the calls went."""
        return self.response.trace if self.response else self.call_trace

    def to_line(self) -> bytes:
        """The stored form, with its checksum and a line break."""
        about: dict[str, Any] = {"run": self.run_id, "model": self.model, "role": self.role, "at": self.at}
        given, trace = self.response, self.trace
        if given is None:
            about |= {"error_kind": self.error_kind, "error": self.error}
            about |= {"attempts": trace.attempts, "waited_s": trace.waited_s, "tries": trace.tries}
            return _line("f", self.request_id, self.run_id, about)
        about |= {name: getattr(given, name) for name in _ANSWER_FIELDS}
        about |= {name: getattr(trace, name) for name in TRACE_FIELDS}
        return _line("a", self.request_id, self.run_id, about)

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """The inverse of `to_line`. Raises ValueError on a torn or damaged line, or one of another kind."""
        kind, request_id = _checked(line)
        about = _body(line)
        trace = {name: about.pop(name) for name in TRACE_FIELDS if name in about}
        trace["tries"] = tuple(Try(*one) for one in trace["tries"])
        call_trace = CallTrace(**trace)
        common = (request_id, about.pop("run"), about.pop("model"), about.pop("role"))
        at = about.pop("at")
        if kind == "a":
            return cls(*common, Response(**about, trace=call_trace), at=at)
        if kind == "f":
            return cls(*common, **about, call_trace=call_trace, at=at)
        raise ValueError(f"a record of kind {kind} has no end")


_ANSWER_FIELDS = tuple(name for name in Response.__annotations__ if name != "trace")


def _line(kind: Kind, request_id: str, run_id: str, about: dict[str, Any]) -> bytes:
    body = json.dumps(about, separators=(",", ":"))
    rest = f"{kind} {request_id} {_run_tag(run_id)} {body}".encode()
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def _run_tag(run_id: str) -> str:
    """Eight hex digits by which most lines of other runs are told without parsing them."""
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _checked(line: bytes) -> tuple[str, str]:
    """A line's kind and request_id. Raises ValueError when it is torn or damaged."""
    if len(line) <= _HEADER or int(line[:8], 16) != zlib.crc32(line[9:].rstrip(b"\n")):
        raise ValueError("damaged record")
    return chr(line[9]), line[11:75].decode()


def _body(line: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(line[_HEADER:])
    return body


@dataclass(slots=True)
class Spent:
    """What calls took: counted per model and role, of one run. Times are seconds, summed over calls.

    `calls` are those whose end is recorded; `failed` are requests of which at least one was made. `repeated` are
    claims that nothing followed: while a run goes on those in flight, after it the ones whose process died; each may
    have been a call, and paid, that nobody heard the end of.
    """

    calls: int = 0
    answered: int = 0
    retried: int = 0
    hedged: int = 0
    failed: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calling_s: float = 0.0
    waited_s: float = 0.0

    def add(self, record: Record) -> None:
        """Count one record. The loser of a hedged call is charged like the answer that won."""
        given, trace = record.response, record.trace
        self.calls += trace.attempts
        self.hedged += trace.hedged
        self.retried += max(0, trace.attempts - trace.hedged - 1)
        self.calling_s += sum(one.took_s for one in trace.tries)
        self.waited_s += trace.waited_s
        if given is None:
            self.failed += trace.attempts > 0
            return
        self.answered += 1
        self.prompt_tokens += given.prompt_tokens * (1 + trace.hedged)
        self.completion_tokens += given.completion_tokens * (1 + trace.hedged)


@dataclass(slots=True)
class _Segment:
    """A segment's bytes on a local disk, mapped, so that reading costs no memory of our own."""

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
    unsent: list[bytes] = field(default_factory=list)  # for the next part of a bucket

    def append(self, data: bytes) -> int:
        """Write at the end; returns the offset."""
        offset, view = self.size, memoryview(data)
        while view:
            view = view[os.write(self.file.fileno(), view) :]
        self.size += len(data)
        return offset

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)


class Ledger:
    """A ledger folder, loaded, with a segment of its own for what is new.

    Args:
        folder: where the segments are.
        run_id: the run whose records are counted in `spent`, and that new records belong to.
    """

    def __init__(self, folder: Folder, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._tag = _run_tag(run_id).encode()
        self._where: dict[bytes, int] = {}  # request_id → segment, offset and length of its answer
        self._failures: dict[str, bytes] = {}  # of this run: request_id → its last line
        self._open: Counter[str] = Counter()  # of this run: request_id → claims that nothing has followed
        self._segments: list[_Segment | _OwnSegment] = []
        self._own: _OwnSegment | None = None
        self._lock = threading.Lock()  # of what the own segment has not sent
        self._name = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:12]}"
        self._parts = 0
        self.spent: dict[tuple[str, str], Spent] = {}  # (model, role) → this run's, over all its invocations
        self.deaths: Counter[str] = Counter()  # of this run: request_id → processes that died asking it
        self.damaged = 0
        self._load()

    def _load(self) -> None:
        for file in self._files():
            segment = _Segment.of(file)
            if segment is None:
                continue
            self._segments.append(segment)
            place = len(self._segments) - 1
            for offset, line in segment.lines():
                try:
                    kind, request_id = _checked(line)
                    self._take(kind, request_id, line, place, offset)
                except (ValueError, KeyError, TypeError):
                    self.damaged += 1

    def _files(self) -> Iterator[BinaryIO]:
        """The segments as local files; those of a bucket are copied here first, without a name."""
        names = self._folder.names(SUFFIX)
        if self._folder.is_local:
            yield from (open(self._folder.path(name), "rb") for name in names)  # noqa: SIM115
            return

        def fetch(name: str) -> BinaryIO:
            copy = tempfile.TemporaryFile()  # noqa: SIM115
            copy.write(self._folder.read(name))
            copy.flush()
            return cast(BinaryIO, copy)

        with ThreadPoolExecutor(DOWNLOADS) as pool:
            yield from pool.map(fetch, names)

    def _take(self, kind: str, request_id: str, line: bytes, place: int, offset: int) -> None:
        if kind == "a":
            self._where.setdefault(bytes.fromhex(request_id), place << 72 | offset << 32 | len(line))
        if line[76:84] != self._tag:
            return
        about = _body(line)
        if about["run"] != self._run_id:
            return
        spent = self.spent.setdefault((str(about["model"]), str(about["role"])), Spent())
        if kind == "c":
            self._open[request_id] += 1
            spent.repeated += 1  # until its end is found
            return
        if kind == "d":
            self.deaths[request_id] += 1
            return
        if self._open[request_id] > 0:
            self._open[request_id] -= 1
            spent.repeated -= 1
        if not self._open[request_id]:
            del self._open[request_id]
        if kind == "r":
            return
        spent.add(Record.from_line(line))
        if kind == "f":
            self._failures[request_id] = line

    def __len__(self) -> int:
        return len(self._where)

    def line(self, request_id: str) -> bytes | None:
        """The stored answer to a request, as its line."""
        where = self._where.get(bytes.fromhex(request_id))
        if where is None:
            return None
        return self._segments[where >> 72].read(where >> 32 & (1 << 40) - 1, where & (1 << 32) - 1)

    def get(self, request_id: str) -> Response | None:
        """The stored answer to a request."""
        line = self.line(request_id)
        return Record.from_line(line).response if line is not None else None

    def add(self, lines: Iterable[bytes]) -> None:
        """Take records in, as lines; they are durable after the next `commit`. One that is there already is left out.

        Raises:
            ValueError: a damaged line.
        """
        new = []
        for line in lines:
            kind, request_id = _checked(line)
            if (self.line(request_id) if kind == "a" else self._failures.get(request_id)) != line:
                new.append((kind, request_id, line))
        self._append(new)

    def mark(self, kind: Literal["c", "r", "d"], requests: Iterable[tuple[str, str, str]]) -> None:
        """Note a claim, a release or a death of requests, as (request_id, model, role).

        Not made durable by itself: it survives the death of every process, not that of the machine.
        """
        self._append([self._mark(kind, *request) for request in requests])

    def _mark(self, kind: Kind, request_id: str, model: str, role: str) -> tuple[str, str, bytes]:
        about: dict[str, Any] = {"run": self._run_id, "model": model, "role": role}
        return kind, request_id, _line(kind, request_id, self._run_id, about)

    def _append(self, records: list[tuple[str, str, bytes]]) -> None:
        if not records:
            return
        own = self._own_segment()
        data = b"".join(line for _, _, line in records)
        offset = own.append(data)
        if not self._folder.is_local:
            with self._lock:
                own.unsent.append(data)
        for kind, request_id, line in records:
            self._take(kind, request_id, line, len(self._segments) - 1, offset)
            offset += len(line)

    def _own_segment(self) -> _OwnSegment:
        if self._own is None:
            if self._folder.is_local:
                file: Any = open(self._folder.path(self._name + SUFFIX), "a+b", buffering=0)  # noqa: SIM115
            else:
                file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._own = _OwnSegment(file)
            self._segments.append(self._own)
        return self._own

    def commit(self) -> None:
        """Make everything added so far durable: fsync on a local disk, a new immutable part in a bucket.

        It may run in a thread of its own, while records are added.
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
            self._folder.write(f"{self._name}-{self._parts:06}{SUFFIX}", b"".join(unsent))
