"""How long a reply asks its caller to wait, read from its headers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

LONGEST_WAIT_S = 300.0  # No wait that an endpoint asks for is longer: it is asked again after this time.

FIRST_MOMENT_S = 1e9  # A larger number of seconds is a Unix time: nobody asks for a wait of 30 years.
FIRST_MOMENT_MS = 1e12  # A larger number is a Unix time in milliseconds.

# A limit's headers: what remains of it, and when it is reset.
LIMITS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)


def requested_wait_s(headers: Mapping[str, str]) -> float | None:
    """How long a reply asks us to wait, in seconds; None if it does not say.

    Read from `retry-after-ms`, `Retry-After`, or the reset of a limit of which nothing remains. Each is a number of
    seconds, a duration (`20ms`, `6m0s`, `26h`), a Unix time in seconds or milliseconds, or a date as HTTP or ISO 8601
    write it.
    """
    milliseconds = _finite_number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    wait = _wait_s(headers.get("retry-after", ""))
    return limit_reset_s(headers) if wait is None else wait


def limit_reset_s(headers: Mapping[str, str]) -> float | None:
    """How long until a limit of which nothing remains is reset, in seconds; None if something remains."""
    longest = None
    for remaining, reset in LIMITS:
        left = headers.get(remaining)
        if left is not None and (_finite_number(left) or 0.0) <= 0.0:
            wait = _wait_s(headers.get(reset, ""))
            if wait is not None:
                longest = max(wait, longest or 0.0)
    return longest


def _wait_s(value: str) -> float | None:
    """The seconds in a header's value, or until the moment that it names; None where it is neither."""
    value = value.strip()
    seconds = _finite_number(value)
    if seconds is None:
        return _duration_s(value) if _DURATION.fullmatch(value) else _until_date_s(value)
    if seconds >= FIRST_MOMENT_MS:
        seconds /= 1000
    return max(0.0, seconds - time.time() if seconds >= FIRST_MOMENT_S else seconds)


def _until_date_s(value: str) -> float | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(value)
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(0.0, date.timestamp() - time.time())
        except (ValueError, OverflowError):
            continue
    return None


_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|ms|[smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def _duration_s(value: str) -> float:
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(value))


def _finite_number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None
