"""What pools are expected to take as lines for a reader, of 80 characters where names are short."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rambla_ray.display import counted

_BY = {
    "requests_per_minute": "by its requests per minute",
    "tokens_per_minute": "by its tokens per minute",
    "latency": "by what its calls took",
    "an earlier run": "by its last run's speed",
}


def pool_lines(pool: Mapping[str, Any]) -> Iterator[str]:
    """A pool, from what `described_streams` says of it."""
    shared = f", in the actors of {', '.join(pool['shared_with'])}" if "shared_with" in pool else ""
    yield f"  {pool['label']} as {', '.join(pool['roles'])}{shared}:"
    yield f"    {pool['unique_calls']} unique calls, at most {pool['later_calls_at_most']} that depend on answers"
    most = pool["unique_calls"] + pool["later_calls_at_most"]
    parts = []
    if pool.get("in_ledger"):
        least = "at least " if pool.get("in_ledger_at_least") else ""
        parts.append(f"{least}{pool['in_ledger']} of {most} calls are in the ledger")
    if pool.get("repeated_calls"):
        parts.append(f"{pool['repeated_calls']} are those of another pool")
    if parts:
        yield f"    {', '.join(parts)}"
    if not pool["calls_expected"]:
        return
    about = f"about {pool['prompt_tokens_expected']} prompt tokens, {pool['completion_tokens_expected']} of answers"
    source = "as in the ledger" if pool["lengths_from"] == "ledger" else "of usual length"
    yield f"    {about} {source}"
    if "cost_usd_at_most" in pool:
        yield f"    {_cost(pool)}"
    yield f"    {_time_of(pool)}"


def total_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """The whole run, where it is more than one pool."""
    whole = described["total"]
    if sum(map(len, described["streams"].values())) == 1:
        return
    parts = [f"in all {_calls(whole)}"]
    if "cost_usd_expected" in whole:
        parts.append(_cost(whole))
    if whole.get("seconds_expected"):
        parts.append(f"about {_span(whole['seconds_expected'])}")
    yield "; ".join(parts)


def _calls(whole: Mapping[str, Any]) -> str:
    asked, most = whole["calls_expected"], whole["calls_at_most"]
    return counted(most, "call") if asked == most else f"about {counted(asked, 'call')}, at most {most}"


def _cost(numbers: Mapping[str, Any]) -> str:
    return f"about {_dollars(numbers['cost_usd_expected'])}, at most {_dollars(numbers['cost_usd_at_most'])}"


def _dollars(amount: float) -> str:
    """Dollars to the cent, and small amounts to two digits."""
    if not amount or amount >= 0.1:
        return f"${amount:.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}"


def _time_of(pool: Mapping[str, Any]) -> str:
    if "seconds_expected" in pool:
        return f"about {_span(pool['seconds_expected'])} {_BY[pool['seconds_from']]}"
    if "seconds_at_most" in pool:
        return f"up to {_span(pool['seconds_at_most'])} in batches"
    if pool["is_local"]:
        return "time unknown: no earlier run of it in runs_dir"
    return "time unknown: it has no rate limit, and no answer in the ledger"


def _span(seconds: float) -> str:
    """A time in one unit, such as 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
