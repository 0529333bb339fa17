"""Where each answer of a ledger stands, and what its lines add up to for one run."""

from __future__ import annotations

from collections import Counter

from rambla_ray.ledger.batches import Batches
from rambla_ray.ledger.record import Kind, NewerFormat, body_of, check, peek
from rambla_ray.ledger.segments import Segment
from rambla_ray.ledger.spent import Tally

_ENDS = (Kind.ANSWER, Kind.FAILURE)


class Index:
    """The lines of a ledger that were read so far. What is kept of an answer is its place, not the answer.

    Args:
        run_id: the run whose lines are counted in `tally`.
    """

    def __init__(self, run_id: str) -> None:
        self.batches = Batches()
        self.tally = Tally(run_id, self.batches)
        self.damaged = 0  # lines that were skipped because they are torn or damaged
        self.newer: Counter[str] = Counter()  # number of a newer format → lines that were skipped for it
        self._where: dict[bytes, int] = {}  # request_id → the place of its answer, packed; see `_packed`
        self._segments: list[Segment] = []

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, request_id: str) -> bool:
        return bytes.fromhex(request_id) in self._where

    def put(self, segment: Segment) -> int:
        """Take a segment in, without its lines; returns its number."""
        self._segments.append(segment)
        return len(self._segments) - 1

    def replace(self, number: int, segment: Segment) -> None:
        """Read the lines of a segment from here on in another way; they stand where they stood."""
        self._segments[number] = segment

    def take(self, segment: int, offset: int, line: bytes) -> tuple[str, str] | None:
        """Take in a line that may be anything; returns its kind and request_id, None where it was skipped."""
        try:
            head = check(line)
            self.take_checked(*head, line, segment, offset)
        except NewerFormat as error:
            self.newer[error.number] += 1
        except (ValueError, KeyError, TypeError):
            self.damaged += 1
        else:
            return head[:2]
        return None

    def take_checked(self, kind: str, request_id: str, tag: bytes, line: bytes, segment: int, offset: int) -> None:
        """Remember where an answer stands, and count what is this run's."""
        if kind == Kind.BATCH:
            self.batches.take(request_id, body_of(line))
            return
        if self.batches and kind in _ENDS:
            self.batches.end(request_id)
        if tag == self.tally.tag:
            self.tally.add(kind, request_id, line)
        if kind == Kind.ANSWER:
            self._where.setdefault(bytes.fromhex(request_id), _packed(segment, offset, len(line)))

    def line(self, request_id: str) -> bytes | None:
        """The stored answer to a request, as its line."""
        key = bytes.fromhex(request_id)
        where = self._where.get(key)
        if where is None:
            return None
        segment, offset, length = _unpacked(where)
        line = self._segments[segment].read(offset, length)
        if line and peek(line)[1] == request_id:
            return line
        del self._where[key]  # Its writer took it back.
        return None


def _packed(segment: int, offset: int, length: int) -> int:
    """The place of a line as one number, a quarter of a tuple's memory: 40 bits of offset, 32 of length."""
    return segment << 72 | offset << 32 | length


def _unpacked(place: int) -> tuple[int, int, int]:
    return place >> 72, place >> 32 & (1 << 40) - 1, place & (1 << 32) - 1
