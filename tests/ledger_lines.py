"""Ledgers and their lines, of requests that have names in place of ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.record import Kind, Record
from rambla_ray.ledger.store import Ledger
from rambla_ray.schema import NO_DETAILS, ONE_CALL, CallTrace, ReplyDetails, Response
from rambla_ray.storage import Folder


def rid(name: str) -> str:
    """The request_id of a name."""
    return hashlib.sha256(name.encode()).hexdigest()


def answered(
    name: str,
    run_id: str,
    text: str = "yes",
    tokens: tuple[int, int] = (0, 0),
    *,
    trace: CallTrace = ONE_CALL,
    details: ReplyDetails = NO_DETAILS,
) -> bytes:
    """The line of an answer, of so many tokens in the prompt and in the answer."""
    response = Response(text, "stop", *tokens, trace=trace, details=details)
    return Record(rid(name), run_id, "m", "target", response).to_line()


def failed(name: str, run_id: str, charged: tuple[int, int] = (0, 0)) -> bytes:
    """The line of a failure, of calls that were charged for so many tokens."""
    trace = CallTrace(0.0, 3, 0, (), *charged)
    return Record(rid(name), run_id, "m", "target", None, "server", "HTTP 500", trace).to_line()


def opened(folder: Path, run_id: str, clock: WakingClock | None = None) -> Ledger:
    return Ledger(Folder(str(folder)), run_id, clock)


def claim(ledger: Ledger, *names: str) -> str:
    """Claim what is free, as a service does; returns the names that were granted."""
    assert ledger.others.lock()
    ledger.others.look()
    granted = [name for name in names if rid(name) not in ledger and not ledger.others.are_asking(rid(name))]
    ledger.mark(Kind.CLAIM, ((rid(name), "m", "target") for name in granted))
    ledger.others.unlock()
    return "".join(granted)


def text_of(ledger: Ledger, name: str) -> str | None:
    response = ledger.get(rid(name))
    return response.text if response else None
