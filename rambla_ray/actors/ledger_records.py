"""The records of a run on their way into its ledger: durable after a moment, or lost when it cannot be written."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from rambla_ray.display import counted
from rambla_ray.errors import ErrorKind, NotStored, NotWritten
from rambla_ray.ledger.claims import DEATHS, Claimed
from rambla_ray.ledger.commit import GroupCommit
from rambla_ray.ledger.record import Kind, Record, peek
from rambla_ray.ledger.store import Ledger
from rambla_ray.storage import Folder

PART_S = 0.5  # Records are gathered for so long before they become a new part in a bucket.
LATE_S = 0.1  # An answer that is not durable after so long keeps its actor from asking more.
PART_LATE_S = 2.0  # The same, in a bucket.


class Records:
    """What a run writes into its ledger.

    Args:
        folder: the ledger's.
        ledger: the run's.
        run_id: the run.
        stop: stops the run, for a reason in one line, when the ledger cannot be written.

    Attributes:
        late_s: an answer that is not durable after so many seconds is late.
        failures: by request_id, lines of this invocation, in which identical requests share their failure.
        lost: what could not be stored.
    """

    def __init__(self, folder: Folder, ledger: Ledger, run_id: str, stop: Callable[[str], None]) -> None:
        self._folder, self._ledger, self._run_id, self._stop = folder, ledger, run_id, stop
        self._commits = GroupCommit(ledger.commit, 0.0 if folder.is_local else PART_S)
        self.late_s = LATE_S if folder.is_local else PART_LATE_S
        self.failures: dict[str, bytes] = {}
        self.lost = LostRecords()

    def line(self, request_id: str) -> bytes | None:
        """The line of a request that needs no call: its answer, or its failure in this invocation."""
        return self._ledger.line(request_id) or self.failures.get(request_id)

    @contextlib.asynccontextmanager
    async def storing(self, lines: Sequence[bytes]) -> AsyncIterator[None]:
        """Take lines in, which are counted while inside and durable at the end. Raises NotStored: they are lost."""
        is_counted = False
        try:
            with self._writing():
                self._ledger.add(lines)
                is_counted = True
                yield
                await self._commits.wait()
        except NotStored:
            self.lost.add(map(Record.from_line, lines), is_counted=is_counted)
            raise
        for line in lines:
            kind, request_id, _ = peek(line)
            if kind == Kind.FAILURE:
                self.failures[request_id] = line

    async def mark_batch(self, line: bytes) -> None:
        """Take a line about a provider's batch in; returns when it is durable. Raises NotStored."""
        with self._writing():
            self._ledger.add_batch(line)
            await self._commits.wait()

    def mark(self, kind: Kind, requests: Iterable[Claimed]) -> None:
        """Note claims, releases or deaths. Raises NotStored."""
        with self._writing():
            self._ledger.mark(kind, requests)

    def note(self, kind: Kind, requests: Iterable[Claimed]) -> None:
        """As `mark`; where it cannot be written, the run is being stopped."""
        with contextlib.suppress(NotStored):
            self.mark(kind, requests)

    def give_up(self, request_id: str, model: str, role: str) -> bytes:
        """A request is not asked any more, as each process that asked it died; returns the line that says so."""
        error = f"the process that asked it died, {DEATHS} times"
        record = Record(request_id, self._run_id, model, role, error_kind=ErrorKind.DIED, error=error, at=time.time())
        line = self.failures[request_id] = record.to_line()
        with contextlib.suppress(NotStored), self._writing():
            self._ledger.add([line])
        return line

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """While inside, an OSError means that the ledger cannot be written, which stops the run. Raises NotStored."""
        try:
            with self._folder.writing():
                yield
        except NotWritten as error:
            self._ledger.others.leave()
            message = f"the ledger {error}"
            self._stop(message)
            raise NotStored(message) from None


class LostRecords:
    """Answers and failures that could not be stored; their requests are asked again when the run is continued.

    Attributes:
        uncounted_calls: calls that were made for them, and are not in the ledger's counts.
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self.uncounted_calls = 0

    def add(self, records: Iterable[Record], *, is_counted: bool) -> None:
        """These are lost; the ledger has counted their calls, or has not."""
        for record in records:
            self._records.append(record)
            self.uncounted_calls += 0 if is_counted else record.trace.attempts

    def explain(self, message: str) -> str:
        """Why the run was stopped, and what was lost then, if anything."""
        if not self._records:
            return message
        counts = Counter((record.model, record.role) for record in self._records)
        lost = ", ".join(f"{counted(count, 'request')} to {model} ({role})" for (model, role), count in counts.items())
        return f"{message}; what came of {lost} is lost, and asked again"

    def describe(self) -> list[dict[str, str]]:
        """Model, role and request_id of each."""
        return [
            {"model": record.model, "role": record.role, "request_id": record.request_id} for record in self._records
        ]
