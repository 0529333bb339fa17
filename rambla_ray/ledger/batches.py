"""The provider's batches that a ledger knows of: which requests each holds, and which of those have not ended.

A batch is written down before it is sent for, under a tag of its own, and again with what became known since: where
its input is, the provider's name of it, how it ended. So a run that died at any moment finds its batches again. A
request is in the last batch that was written down with it, until it has an answer or a failure.

Its lines have the tag of no run, as it serves every run that asks one of its requests. So versions that do not know of
batches pass over them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rambla_ray.ledger.record import Kind, stored_line

NO_RUN = ""


@dataclass(frozen=True, slots=True)
class BatchMark:
    """What is known of a batch. Times are Unix time in seconds.

    Args:
        tag: 64 hex digits, which the batch has here, and at a provider that takes such a name.
        run_id: the run that sends it.
        model: the model config.
        request_ids: the requests in it; of a mark from the ledger, those that have not ended.
        count: how many requests are in it.
        at: when it was first written down.
        input_file: the provider's name of its input; empty before it is uploaded, or where there is no such file.
        batch: the provider's name of it; empty before it is created.
        created: when it was created; 0 before.
        ended: how it ended, by the provider's word; empty while it has not, or is still of use.
    """

    tag: str
    run_id: str
    model: str
    request_ids: tuple[str, ...]
    count: int
    at: float
    input_file: str = ""
    batch: str = ""
    created: float = 0.0
    ended: str = ""

    @classmethod
    def new(cls, run_id: str, model: str, request_ids: Iterable[str], at: float) -> BatchMark:
        """A batch that is about to be sent for."""
        ids = tuple(request_ids)
        return cls(secrets.token_hex(32), run_id, model, ids, len(ids), at)

    def first_line(self) -> bytes:
        """The line that is stored before the batch is sent for."""
        members = {"model": self.model, "at": self.at, "request_ids": self.request_ids}
        return self._line(members)

    def line_of(self, *names: str) -> bytes:
        """A later line: what became known since."""
        return self._line({name: getattr(self, name) for name in names})

    def _line(self, members: dict[str, Any]) -> bytes:
        return stored_line(Kind.BATCH, self.tag, NO_RUN, {"run": self.run_id, **members})


@dataclass(slots=True)
class Batches:
    """The batches in the lines that were read so far."""

    _marks: dict[str, BatchMark] = field(default_factory=dict)  # by tag, those with requests that have not ended
    _tag_of: dict[str, str] = field(default_factory=dict)  # request_id → its batch, until it has ended
    _left: dict[str, int] = field(default_factory=dict)  # tag → how many of its requests have not ended

    def __bool__(self) -> bool:
        return bool(self._tag_of)

    def __contains__(self, request_id: object) -> bool:
        """Whether a request is in a batch, and has not ended."""
        return request_id in self._tag_of

    def among(self, request_ids: Iterable[str]) -> list[BatchMark]:
        """The batches that any of these requests are in, with those of their requests that have not ended."""
        tags = dict.fromkeys(self._tag_of[request_id] for request_id in request_ids if request_id in self._tag_of)
        return [self._open(self._marks[tag]) for tag in tags]

    def _open(self, mark: BatchMark) -> BatchMark:
        left = tuple(request_id for request_id in mark.request_ids if self._tag_of.get(request_id) == mark.tag)
        return replace(mark, request_ids=left)

    def take(self, tag: str, body: dict[str, Any]) -> None:
        """Take in a line. Raises KeyError, TypeError or ValueError: its body is not what it should be."""
        if "request_ids" in body:
            ids = tuple(map(str, body["request_ids"]))
            self._marks[tag] = BatchMark(tag, str(body["run"]), str(body["model"]), ids, len(ids), float(body["at"]))
            self._left[tag] = 0
            for request_id in dict.fromkeys(ids):
                self.end(request_id)  # It may be in an earlier batch, which was never created.
                self._tag_of[request_id] = tag
                self._left[tag] += 1
        elif tag in self._marks:
            self._marks[tag] = replace(self._marks[tag], **_news(body))
            if self._marks[tag].ended:
                for request_id in self._open(self._marks[tag]).request_ids:
                    self.end(request_id)

    def end(self, request_id: str) -> None:
        """A request has an answer or a failure."""
        tag = self._tag_of.pop(request_id, None)
        if tag is None:
            return
        self._left[tag] -= 1
        if not self._left[tag]:
            del self._left[tag], self._marks[tag]


def _news(body: dict[str, Any]) -> dict[str, Any]:
    news: dict[str, Any] = {name: str(body[name]) for name in ("input_file", "batch", "ended") if name in body}
    return {**news, "created": float(body["created"])} if "created" in body else news
