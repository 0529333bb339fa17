"""The progress of a run while it goes on, on stderr: a live table on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rambla_ray.results.calls import throughput
from rambla_ray.results.tables import add_row, console_on, plain_table, print_line
from rambla_ray.schema import Role

# Where the output is no terminal, lines come at first at least PLAIN_LINE_S apart, later a twentieth of the time that
# has passed, and never more than SLOWEST_LINE_S.
PLAIN_LINE_S = 5.0
SLOWEST_LINE_S = 60.0
TABLE_S = 0.5  # The live table is updated this often.
LIVE_COLUMNS = ("model", "role", "samples", "answered", "retried", "failed", "tokens in", "tokens out")
LIVE_COUNTS = ("answered", "retried", "failed", "prompt_tokens", "completion_tokens")


class Progress:
    """Shows how far a run is, from a thread of its own, while it is entered.

    Args:
        totals: by target, its samples.
        models: those that take part, by their keys in `counts`.
        counts: returns what `actors.ledger.LedgerService.progress` does. While it raises, nothing is shown: the run
            itself reports why the service cannot be reached.
        labels: by target, what people call it, where that is more than its config's name.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        models: Sequence[str],
        counts: Callable[[], Mapping[str, Any]],
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._totals = totals
        self._ended: Counter[str] = Counter()
        self._models, self._labels = models, labels
        self._counts = counts
        self._outcomes: Counter[str] = Counter()
        self._printed_notes: set[str] = set()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10.0)

    def add(self, target: str, outcome: str, count: int = 1) -> None:
        """Count samples of a target that have ended."""
        self._ended[target] += count
        self._outcomes[outcome] += count

    def _show(self) -> None:
        console = console_on(sys.stderr)
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4, transient=True) as live:
                while not self._over.wait(TABLE_S):
                    with contextlib.suppress(Exception):
                        counts = self._counts()
                        self._print_notes(counts, console)
                        live.update(self._table(counts))
        while not self._over.wait(min(SLOWEST_LINE_S, max(PLAIN_LINE_S, (time.monotonic() - self._began) / 20))):
            with contextlib.suppress(Exception):
                counts = self._counts()
                self._print_notes(counts, console)
                print_line(console, self._line(counts), whole=True)
        with contextlib.suppress(Exception):
            self._print_notes(self._counts(), console)

    def _print_notes(self, counts: Mapping[str, Any], console: Console) -> None:
        """Print the notes that have not been printed."""
        for note in counts["notes"]:
            if note not in self._printed_notes:
                self._printed_notes.add(note)
                print_line(console, f"note: {note}", whole=True)

    def _line(self, counts: Mapping[str, Any]) -> str:
        ended = self._outcomes.total()
        elapsed = time.monotonic() - self._began
        loading = [self._label(key) for key in self._models if key not in counts["models"]]
        if loading and not ended and not counts["calls"]:
            return f"{elapsed:.0f} s: loading {', '.join(loading)}"
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        budget = f", budget {counts['budget']}" if counts["budget"] else ""
        return (
            f"{elapsed:.0f} s: {ended}/{sum(self._totals.values())} samples"
            f"{f' ({outcomes})' if outcomes else ''}{self._of_each()}, "
            f"{counts['calls']} calls, {counts['in_flight']} in flight, {ended / elapsed:.1f} samples/s{budget}"
            f"{''.join(f'; {self._label(key)} {_batches(*it)}' for key, it in sorted(counts['batches'].items()))}"
            f"{''.join(f'; {self._label(key)} {_local_usage(work)}' for key, work in sorted(counts['work'].items()))}"
        )

    def _of_each(self) -> str:
        """How far each target is, where there are several."""
        if len(self._totals) == 1:
            return ""
        parts = (f"{self._labels.get(target, target)} {self._ended[target]}" for target in self._totals)
        return f", of each {max(self._totals.values())}: {', '.join(parts)}"

    def _label(self, key: str) -> str:
        """What people call a model. A role's has the key that is the target's name, where both have that name."""
        label = self._labels.get(key, key)
        return key if label in self._models else label

    def _table(self, counts: Mapping[str, Any]) -> Table:
        table = plain_table(LIVE_COLUMNS, title=self._line(counts))
        spent = {(entry["model"], entry["role"]): entry for entry in counts["spent"]}
        for target, total in self._totals.items():
            entry = spent.pop((target, Role.TARGET), {})
            samples = f"{self._ended[target]}/{total}"
            add_row(table, [self._labels.get(target, target), Role.TARGET, samples, *_live_counts(entry)])
        for (model, role), entry in spent.items():
            add_row(table, [model, role, "", *_live_counts(entry)])
        return table


def _live_counts(entry: Mapping[str, Any]) -> list[str]:
    return [str(entry.get(key, 0)) for key in LIVE_COUNTS]


def _batches(batches: int, done: int, requests: int) -> str:
    """How far a model's batches are."""
    return f"{batches} {'batch' if batches == 1 else 'batches'}, {done:,} of {requests:,} done"


def _local_usage(actors: Sequence[Mapping[str, float]]) -> str:
    """Whether a local model or the stream to it is the bottleneck, in a few words."""
    numbers = throughput(actors)
    if not numbers["prompt_tokens_per_s"]:
        return "loading its weights, or at its first batch"
    return (
        f"{numbers['prompt_tokens_per_s']:.0f} + {numbers['generated_tokens_per_s']:.0f} tokens/s, batches of "
        f"{numbers['requests_per_batch']:.0f}, {numbers['padding_share']:.0%} padding, "
        f"{numbers['waiting_share']:.0%} waiting for work"
    )
