"""What came of requests and could not be stored, when the ledger cannot be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rambla_ray.display import counted
from rambla_ray.ledger.record import Record


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
