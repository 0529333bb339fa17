"""How much of an endpoint's rate limit a run uses, and how often it is told to slow down.

    python benchmarks/rate_limit.py                  # 600 requests a minute, then 60,000 tokens a minute
    python benchmarks/rate_limit.py --only tokens --latency 2 --max-tokens 800   # answers shorter than they may be

Two model configs, a target and a judge, share one key of the fake endpoint of benchmarks/endpoint.py, which enforces
its limit with a bucket that holds one second of budget. jobs/bench.py is told the limit (`rate:` in both configs) and
gets a task whose every answer of the target is judged, so that two pools ask at the same time. What counts:

  used    what the endpoint let in, as a share of the budget, in the whole seconds from the tenth after the first
          request until less than a second's worth of work is left
  429s    what it turned away, as a share of all requests of the run
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from endpoint import ANSWER_TOKENS, Endpoint, openai_chat
from rich.console import Console
from rich.table import Table
from workload import Bench, made_up_items

PROMPT = """\
Read this abstract and answer the question about it.

Abstract:
{context}

Question: {question}
"""
TASK = {
    "stages": [
        {
            "generate": {
                "role": "target",
                "writes": "conclusion",
                "template": f"{PROMPT}Reply with one word, Yes or No.",
            }
        },
        {
            "generate": {
                "role": "judge",
                "template": f"{PROMPT}Somebody says: {{conclusion}}\nIs that right? Reply with one word, Yes or No.",
            }
        },
    ],
    "answer": {"choices": ["yes", "no"], "target": "final_decision"},
}
ROLES = ("target", "judge")
WARM_UP_S = 10
LEAST_USED, MOST_REJECTED = 0.97, 0.01


@dataclass(frozen=True)
class Limit:
    """What is limited: `unit` is what GET /stats calls it."""

    unit: str
    per_minute: int
    rate_key: str
    option: str

    @property
    def per_second(self) -> float:
        return self.per_minute / 60

    def items_for(self, seconds: float) -> int:
        """How many items, each asked about twice, keep the endpoint busy so long."""
        return max(1, round(seconds * self.per_second / (len(ROLES) * self._cost())))

    def _cost(self) -> float:
        if self.unit == "answered":
            return 1
        return len(PROMPT.format_map(made_up_items(1)[0])) / 4 + ANSWER_TOKENS


LIMITS = {
    "requests": Limit("answered", 600, "requests_per_minute", "rpm"),
    "tokens": Limit("tokens", 60_000, "tokens_per_minute", "tpm"),
}


@dataclass(frozen=True)
class Use:
    """What became of a budget. Shares are of 1; `until` is the second in which the tail begins."""

    used: float
    until: int
    together: float  # The share of those seconds in which requests of both pools were let in.
    at_first: float  # The share of the budget that was used in the warm-up.
    rejected: float
    requests: int
    seconds: float


def use_of(limit: Limit, stats: dict[str, Any]) -> Use:
    """Work out the shares from the endpoint's counts. Raises ValueError for a run that was over too soon."""
    seconds = stats["seconds"]
    done = [second[limit.unit] for second in seconds]
    left = [sum(done) - so_far for so_far in accumulate(done)]
    until = next(second for second, amount in enumerate(left) if amount < limit.per_second)
    if until <= WARM_UP_S:
        raise ValueError(f"work was left for {until} seconds only; nothing can be said of those after {WARM_UP_S}")
    window = range(WARM_UP_S, until)
    return Use(
        used=sum(done[second] for second in window) / (len(window) * limit.per_second),
        until=until,
        together=sum(len(seconds[second]["models"]) == len(ROLES) for second in window) / len(window),
        at_first=sum(done[:WARM_UP_S]) / (WARM_UP_S * limit.per_second),
        rejected=stats["rejected"] / stats["requests"],
        requests=stats["requests"],
        seconds=stats["last_reply"] - stats["first_request"],
    )


def measure(limit: Limit, seconds: float, latency: float, max_tokens: int, folder: Path) -> Use:
    """One run against one limit. Raises ValueError when it did not get everything answered."""
    items = made_up_items(limit.items_for(seconds))
    rate = {limit.rate_key: limit.per_minute}
    with Endpoint(latency, **{limit.option: limit.per_minute}) as endpoint:
        models = {role: openai_chat(endpoint, f"fake-{role}", max_tokens, rate=rate) for role in ROLES}
        bench = Bench(folder, items, TASK, models)
        done = bench.run("model=target", "roles.judge=judge", timeout_s=4 * seconds + 120)
        stats = endpoint.stats()
    if done.fault:
        raise ValueError(done.fault)
    if stats["prompts"] != len(ROLES) * len(items):
        raise ValueError(f"asked {stats['prompts']} prompts in place of {len(ROLES) * len(items)}")
    return use_of(limit, stats)


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(LIMITS), help="the one limit to try")
    parser.add_argument("--seconds", type=float, default=65.0, help="how long the work of each run lasts at the limit")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until the endpoint answers")
    parser.add_argument("--max-tokens", type=int, default=8, help="what each request says its answer may have")
    given = parser.parse_args()
    columns = (
        "limit",
        "used",
        f"≥ {LEAST_USED:.0%}",
        "429s",
        f"< {MOST_REJECTED:.0%}",
        "requests",
        "seconds",
        "counted from, to s",
        f"first {WARM_UP_S} s",
        "both pools",
    )
    table = Table(title="of the budget, by the endpoint's counts")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "limit" else "right")
    failed = False
    for name in [given.only] if given.only else LIMITS:
        limit = LIMITS[name]
        label = f"{limit.per_minute:,} {name}/min"
        print(f"{label}: about {given.seconds:.0f} s of work", flush=True)
        with tempfile.TemporaryDirectory(prefix="rate_limit_") as scratch:
            try:
                use = measure(limit, given.seconds, given.latency, given.max_tokens, Path(scratch))
            except (ValueError, OSError) as error:
                print(f"{label}: failed: {error}", flush=True)
                failed = True
                continue
        table.add_row(
            label,
            f"{use.used:.1%}",
            "yes" if use.used >= LEAST_USED else "no",
            f"{use.rejected:.2%}",
            "yes" if use.rejected < MOST_REJECTED else "no",
            str(use.requests),
            f"{use.seconds:.1f}",
            f"{WARM_UP_S}, {use.until}",
            f"{use.at_first:.1%}",
            f"{use.together:.0%} of the time",
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
