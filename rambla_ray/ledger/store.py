"""The ledger: every response by request_id, append-only. Cache, resume and audit in one.

A folder of segments, each with one writer, whose lines are records (see `record`). A line that is torn or damaged is
skipped and counted, and its request is asked again.

Loading reads every line once, but parses only those of its own run: a million take seconds. What others append to a
folder on a disk while it is in use is taken in, too (see `others`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rambla_ray.ledger.batches import Batches
from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.index import Index
from rambla_ray.ledger.others import Others
from rambla_ray.ledger.presence import new_segment
from rambla_ray.ledger.record import Kind, Record, check, mark_line, peek, run_tag
from rambla_ray.ledger.segments import SUFFIX, Complete, Copies, Own, lines_of
from rambla_ray.ledger.spent import Spent
from rambla_ray.schema import Response
from rambla_ray.storage import Folder


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
        clock: tells how long other writers have been silent.
        segment: the name of the one for what is new, which an earlier life of the same service may have begun.

    Attributes:
        others: what other processes write into the folder, and the lock under which they claim.
    """

    def __init__(
        self, folder: Folder, run_id: str, clock: WakingClock | None = None, segment: str | None = None
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._index = Index(run_id)
        self._own: Own | None = None
        self._own_number = -1
        self._lock = threading.Lock()  # held while the own segment's unsent lines change
        self._name = segment or new_segment()
        self._parts = 0
        self.others = Others(folder, self._name + SUFFIX, self._index, clock or WakingClock())
        self._load()

    @property
    def spent(self) -> Mapping[tuple[str, str], Spent]:
        """By (model, role), what this run has spent over all its invocations. The mapping changes as records come."""
        return self._index.tally.spent

    @property
    def deaths(self) -> Mapping[str, int]:
        """By request_id, how many processes of this run died asking it; only those that any died of."""
        return self._index.tally.deaths

    @property
    def damaged(self) -> int:
        """Lines that were skipped because they are torn or damaged."""
        return self._index.damaged

    @property
    def newer(self) -> Counter[str]:
        """By the number of a newer format, lines that were skipped for it."""
        return self._index.newer

    def _load(self) -> None:
        if not self._folder.is_local:
            self._load_copies()
            return
        growing = self.others.meet()
        for name in self._folder.names(SUFFIX):
            if name not in growing:
                path = self._folder.local_path(name)
                number = self._index.put(Complete.of(path))
                for offset, line in lines_of(path):
                    self._index.take(number, offset, line)
        self.others.look()

    def _load_copies(self) -> None:
        copies = Copies(self._folder)
        number = self._index.put(copies)
        for offset, line in copies.fetch():
            self._index.take(number, offset, line)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._index

    def line(self, request_id: str) -> bytes | None:
        """The stored answer to a request, as its line."""
        return self._index.line(request_id)

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
            stored = self.line(request_id) if kind == Kind.ANSWER else self._index.tally.failures.get(request_id)
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
            self._index.take_checked(*peek(line), line, self._own_number, offset)
            offset += len(line)

    def add_batch(self, line: bytes) -> None:
        """Take a line about a provider's batch in; it is durable after the next `commit`. Raises OSError."""
        self._append([line])

    @property
    def batches(self) -> Batches:
        """The provider's batches, of any run, that hold requests without an end."""
        return self._index.batches

    def join(self) -> None:
        """Be seen by those who write into the folder, too, before there is anything to write."""
        if self._own is None and self._folder.is_local:
            with contextlib.suppress(OSError):  # The first append says what is wrong.
                self._own_segment()

    def _own_segment(self) -> Own:
        if self._own is None:
            if self._folder.is_local:
                file: Any = self._folder.open_appending(self._name + SUFFIX)
                self.others.enter(file)
            else:
                file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._own = Own.continued(file)
            self._own_number = self._index.put(self._own)
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
