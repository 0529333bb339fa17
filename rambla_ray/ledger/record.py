"""One line of the ledger: a record, the format that it is written in, and that format's number.

A record is one line, `crc32 kind request_id run json`, where `run` is a tag made from the run's id. The checksum
covers everything behind it, so that a line that is torn or damaged is recognised.

The number of the format stands in the JSON body, as its first member: `{"v":2,...`. A body without it, which is what
this version writes, is of format 1. A reader ignores members that it does not know, so that adding one needs no new
number; what an older reader would misunderstand needs one. A line of a newer format raises `NewerFormat`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rambla_ray.schema import DETAIL_FIELDS, NO_CALL, NO_DETAILS, TRACE_FIELDS, CallTrace, ReplyDetails, Response, Try

FORMAT = 1  # The number of the format that is written, and the highest that is read.

DEEP, DEEP_BYTES = 200, 1000  # A line of fewer brackets, or bytes, can be parsed, however they are nested.

_KIND = len(b"cccccccc ")
_REQUEST_ID = slice(_KIND + len(b"k "), _KIND + len(b"k ") + 64)
_RUN_TAG = slice(_REQUEST_ID.stop + 1, _REQUEST_ID.stop + 1 + 8)
_BODY = _RUN_TAG.stop + 1
_FORMAT_KEY = "v"
_NUMBERED = f'{{"{_FORMAT_KEY}":'.encode()  # How a body begins that has a number.
_ANSWER_FIELDS = tuple(name for name in Response.__annotations__ if name not in ("trace", "details"))
# Most lines do without these, and a reply's details, which stand in a line only where they are not 0 or empty.
_RARE_FIELDS = tuple(name for name in TRACE_FIELDS if name.startswith("failed_"))
_USUAL_FIELDS = tuple(name for name in TRACE_FIELDS if name not in _RARE_FIELDS)


class NewerFormat(ValueError):
    """A line that is whole, but of a format that this version does not read; `number` is that of its format."""

    def __init__(self, number: str) -> None:
        super().__init__(f"a record of format {number}; this version reads up to {FORMAT}")
        self.number = number


class Kind(StrEnum):
    """What a line records about its request."""

    ANSWER = "a"  # served to whoever asks the same again
    FAILURE = "f"  # kept for the audit, never served as an answer
    CLAIM = "c"  # somebody is about to ask; one that nothing follows was in flight when its process died
    RELEASE = "r"  # whoever claimed the request did not ask after all
    DEATH = "d"  # the process that was asking died
    BATCH = "b"  # what is known of a provider's batch; the batch's tag is in the place of a request_id


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
        body: dict[str, Any] = {"run": self.run_id, "model": self.model, "role": self.role, "at": self.at}
        response, trace = self.response, self.trace
        rare = {name: value for name in _RARE_FIELDS if (value := getattr(trace, name))}
        if response is None:
            body |= {"error_kind": self.error_kind, "error": self.error}
            body |= {"attempts": trace.attempts, "waited_s": trace.waited_s, "tries": trace.tries, **rare}
            return stored_line(Kind.FAILURE, self.request_id, self.run_id, body)
        body |= {name: getattr(response, name) for name in _ANSWER_FIELDS}
        body |= {name: getattr(trace, name) for name in _USUAL_FIELDS} | rare
        if response.details is not NO_DETAILS:
            body |= {name: value for name in DETAIL_FIELDS if (value := getattr(response.details, name))}
        return stored_line(Kind.ANSWER, self.request_id, self.run_id, body)

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """The inverse of `to_line`. Raises ValueError on a torn or damaged line, or one of another kind."""
        kind, request_id, _ = check(line)
        return cls.from_body(kind, request_id, body_of(line))

    @classmethod
    def from_body(cls, kind: str, request_id: str, body: dict[str, Any]) -> Record:
        """The record of a line that has been checked and parsed. Raises ValueError when its kind is none of an end."""
        trace = {name: body[name] for name in TRACE_FIELDS if name in body}
        trace["tries"] = tuple(Try(*row) for row in trace["tries"])
        call_trace = CallTrace(**trace)
        common = (request_id, body["run"], body["model"], body["role"])
        if kind == Kind.ANSWER:
            fields = {name: body[name] for name in _ANSWER_FIELDS if name in body}
            details = ReplyDetails.of({name: body[name] for name in DETAIL_FIELDS if name in body})
            response = Response(**fields, trace=call_trace, details=details)
            return cls(*common, response, at=body["at"])
        if kind == Kind.FAILURE:
            return cls(*common, None, body["error_kind"], body["error"], call_trace, body["at"])
        raise ValueError(f"a record of kind {kind} has no end")


def mark_line(kind: Kind, request_id: str, run_id: str, model: str, role: str) -> bytes:
    """The stored form of a claim, a release or a death of a request."""
    return stored_line(kind, request_id, run_id, {"run": run_id, "model": model, "role": role})


def stored_line(kind: Kind, request_id: str, run_id: str, body: dict[str, Any]) -> bytes:
    """A line with its checksum and a line break."""
    text = json.dumps(body, separators=(",", ":"))
    rest = f"{kind} {request_id} {run_tag(run_id)} {text}".encode()
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def run_tag(run_id: str) -> str:
    """Eight hex digits that tell most lines of other runs apart without parsing them."""
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def peek(line: bytes) -> tuple[str, str, bytes]:
    """The kind, request_id and run tag of a line that was checked before; the body is not parsed."""
    return chr(line[_KIND]), line[_REQUEST_ID].decode(), line[_RUN_TAG]


def check(line: bytes) -> tuple[str, str, bytes]:
    """What `peek` returns, of a line that may be anything; the body is parsed only when it has a format's number, or
    so many brackets that it could be nested too deeply to be parsed when its turn comes.

    Raises:
        ValueError: it is torn or damaged, or nested too deeply.
        NewerFormat: it is whole, and of a newer format.
    """
    if len(line) <= _BODY or int(line[: _KIND - 1], 16) != zlib.crc32(line[_KIND:].rstrip(b"\n")):
        raise ValueError("damaged record")
    if line.startswith(_NUMBERED, _BODY):
        number = body_of(line)[_FORMAT_KEY]
        if not isinstance(number, int) or number > FORMAT:
            raise NewerFormat(str(number))
    elif len(line) > DEEP_BYTES and line.count(b"[") + line.count(b"{") > DEEP:
        body_of(line)
    return peek(line)


def body_of(line: bytes) -> dict[str, Any]:
    """The JSON body of a line that was checked before. Raises ValueError when it is none."""
    try:
        body: dict[str, Any] = json.loads(line[_BODY:])
    except RecursionError:
        raise ValueError("a body that is nested too deeply") from None
    return body
