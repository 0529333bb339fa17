"""A look at a ledger before a run: which requests it answers, and how long its answers are.

Nothing is written, and no more is read than a plan can wait for.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from rambla_ray.ledger.index import Index
from rambla_ray.ledger.record import Kind, Record, body_of
from rambla_ray.ledger.segments import SUFFIX, Growing, lines_of
from rambla_ray.schema import Response
from rambla_ray.storage import Folder

LOOKED_AT_BYTES = 2**26  # So much of a ledger is looked at, its newest segments first.
SAMPLED = 500  # Of so many answers of a model in a role the lengths are looked at.
_WHOSE = re.compile(rb'"model":"((?:[^"\\]|\\.)*)","role":"(\w+)"')


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sums over answers: how many, their tokens, those of them that were thought, and seconds of the calls."""

    answers: int = 0
    tokens: int = 0
    reasoning: int = 0
    latency_s: float = 0.0

    def plus(self, response: Response) -> Lengths:
        """These, and one answer more."""
        return Lengths(
            self.answers + 1,
            self.tokens + response.completion_tokens,
            self.reasoning + response.details.reasoning_tokens,
            self.latency_s + response.latency_s,
        )

    @property
    def mean_tokens(self) -> float:
        """Tokens of an answer, thinking included; 0 without any answer."""
        return self.tokens / self.answers if self.answers else 0.0

    @property
    def mean_reasoning(self) -> float:
        """Tokens of an answer that were thought; 0 without any answer."""
        return self.reasoning / self.answers if self.answers else 0.0

    @property
    def mean_latency_s(self) -> float:
        """Seconds of a call; 0 without any answer."""
        return self.latency_s / self.answers if self.answers else 0.0


class Look:
    """What was found in a ledger.

    Args:
        index: where the answers stand.
        lengths: by (model, role), those of some of the answers.
        is_possible: whether the ledger could be looked at.
        is_whole: whether all of it was.
    """

    def __init__(
        self, index: Index, lengths: dict[tuple[str, str], Lengths], *, is_possible: bool, is_whole: bool
    ) -> None:
        self._index, self.lengths = index, lengths
        self.is_possible, self.is_whole = is_possible, is_whole

    @classmethod
    def at(cls, location: str, models: Collection[str], most_bytes: int = LOOKED_AT_BYTES) -> Self:
        """Look at a ledger. One that is not on a local disk, or cannot be read, is not looked at.

        Args:
            location: of the ledger; a bucket is not asked for anything.
            models: the names of the models whose lengths are wanted.
            most_bytes: how much is read, but for the rest of the segment in which that ends.
        """
        index, left = Index(""), most_bytes
        lengths: dict[tuple[str, str], Lengths] = {}
        segments = _newest_first(Folder(location)) if "://" not in location else None
        for path in segments or ():
            if left <= 0:
                break
            left -= _take(path, index, lengths, models)
        return cls(index, lengths, is_possible=segments is not None, is_whole=segments is not None and left > 0)

    def answer(self, request_id: str) -> Response | None:
        """The stored answer to a request; None where none was found."""
        line = self._index.line(request_id)
        return Record.from_line(line).response if line else None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._index


def _newest_first(folder: Folder) -> list[bytes] | None:
    """The segments of a ledger; None where it cannot be looked into."""
    try:
        paths = [folder.local_path(name) for name in folder.names(SUFFIX)]
        return sorted(paths, key=lambda path: os.stat(path).st_mtime, reverse=True)
    except OSError:
        return None


def _take(path: bytes, index: Index, lengths: dict[tuple[str, str], Lengths], models: Collection[str]) -> int:
    """Take in a segment, as far as it can be read; returns how many bytes that were."""
    number, size = index.put(Growing(path)), 0  # Its writer may take lines back, so that it is not mapped.
    with contextlib.suppress(OSError):
        for offset, line in lines_of(path):
            size = offset + len(line)
            head = index.take(number, offset, line)
            if head is not None and head[0] == Kind.ANSWER:
                _sample(line, lengths, models)
    return size


def _sample(line: bytes, lengths: dict[tuple[str, str], Lengths], models: Collection[str]) -> None:
    """Add the lengths of an answer to those of its model and role, unless there are enough of them."""
    if (found := _WHOSE.search(line)) is None:
        return
    key = found[1].decode(errors="replace"), found[2].decode()
    seen = lengths.get(key, Lengths())
    if key[0] not in models or seen.answers >= SAMPLED:
        return
    try:
        response = Record.from_body(Kind.ANSWER, "", body_of(line)).response
    except (ValueError, KeyError, TypeError):
        return
    if response is not None:
        lengths[key] = seen.plus(response)
