"""The ledger: every response by request_id, append-only. Cache, resume and audit in one.

A folder of segments, each with one writer. A record is one line, `crc32 json`; a line that is torn or damaged does
not match its checksum, is skipped and counted, and its request is asked again. Failures are recorded, for the audit,
and never served as answers.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rambla_ray.schema import Response
from rambla_ray.storage import Folder

SUFFIX = ".ledger"


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
    attempts: int = 0
    at: float = 0.0

    def to_line(self) -> bytes:
        """The stored form, with its checksum and a line break."""
        body = json.dumps(asdict(self), separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(body), body)

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """The inverse of `to_line`. Raises ValueError on a torn or damaged line."""
        checksum, _, body = line.rstrip(b"\n").partition(b" ")
        if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(body):
            raise ValueError("damaged record")
        value = json.loads(body)
        if value["response"] is not None:
            value["response"] = Response(**value["response"])
        return cls(**value)


@dataclass(slots=True)
class Spent:
    """What calls took: counted per model and role. Times are seconds, summed over calls."""

    calls: int = 0
    answered: int = 0
    retried: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calling_s: float = 0.0
    waited_s: float = 0.0

    def add(self, record: Record) -> None:
        """Count one record."""
        attempts = record.response.attempts if record.response else record.attempts
        self.calls += attempts
        self.retried += max(0, attempts - 1)
        if record.response is None:
            self.failed += 1
            return
        self.answered += 1
        self.prompt_tokens += record.response.prompt_tokens
        self.completion_tokens += record.response.completion_tokens
        self.calling_s += record.response.latency_s
        self.waited_s += record.response.waited_s


class Ledger:
    """A ledger folder, loaded, with a segment of its own for what is new.

    Args:
        folder: where the segments are.
        run_id: the run whose records are counted in `spent`, and that new records belong to.
    """

    def __init__(self, folder: Folder, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._answers: dict[str, bytes] = {}  # request_id → its line, parsed when asked for
        self._pending: list[bytes] = []
        self._segment = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:12]}"
        self._parts = 0
        self._file: Any = None
        self.spent: dict[tuple[str, str], Spent] = {}  # (model, role) → this run's, over all its invocations
        self.damaged = 0
        self._load()

    def _load(self) -> None:
        for name in self._folder.names(SUFFIX):
            for line in self._folder.read(name).splitlines(keepends=True):
                try:
                    record = Record.from_line(line)
                except (ValueError, KeyError, TypeError):
                    self.damaged += 1
                    continue
                self._take(record, line)

    def _take(self, record: Record, line: bytes) -> None:
        if record.response is not None:
            self._answers.setdefault(record.request_id, line)
        if record.run_id == self._run_id:
            self.spent.setdefault((record.model, record.role), Spent()).add(record)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request_id: str) -> Response | None:
        """The stored answer to a request."""
        line = self._answers.get(request_id)
        return Record.from_line(line).response if line is not None else None

    def add(self, records: Iterable[Record]) -> None:
        """Take records in; they are durable after the next `commit`."""
        for record in records:
            line = record.to_line()
            self._take(record, line)
            self._pending.append(line)

    def commit(self) -> None:
        """Make everything added so far durable: fsync on a local disk, a new immutable part in a bucket."""
        if not self._pending:
            return
        data, self._pending = b"".join(self._pending), []
        if not self._folder.is_local:
            self._folder.write(f"{self._segment}-{self._parts:06}{SUFFIX}", data)
            self._parts += 1
            return
        if self._file is None:
            self._file = open(self._folder.path(self._segment + SUFFIX), "ab", buffering=0)  # noqa: SIM115
        self._file.write(data)
        os.fsync(self._file.fileno())
