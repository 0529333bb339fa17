"""What a person sees: progress while a run goes on, its table, its summary and its HTML report."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rambla_ray.results import RunDirectory
from rambla_ray.schema import Outcome

PLAIN_LINE_S = 5.0  # at most one line in so many seconds where the output is no terminal
READERS_DIFFER = 0.02  # share of a cell's answers above which a difference of the readers is a warning
SYNTHETIC = "SYNTHETIC DEMO DATA: these numbers try out the software, they are not a benchmark result"


class Progress:
    """Shows how far a run is: a live table on a terminal, else a plain line now and then. To stderr.

    Args:
        total: samples of the run.
        models: the model configs that take part.
        counts: asks the ledger service for its counts.
    """

    def __init__(self, total: int, models: Sequence[str], counts: Callable[[], Mapping[str, Any]]) -> None:
        self._total = total
        self._models = models
        self._counts = counts
        self._outcomes: Counter[str] = Counter()
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

    def add(self, outcome: str) -> None:
        """Count one finished sample."""
        self._outcomes[outcome] += 1

    def _show(self) -> None:
        console = Console(file=sys.stderr)
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4, transient=True) as live:
                while not self._over.wait(0.5):
                    live.update(self._table(self._counts()))
            return
        while not self._over.wait(PLAIN_LINE_S):
            print(self._line(self._counts()), file=sys.stderr, flush=True)

    def _line(self, counts: Mapping[str, Any]) -> str:
        done = self._outcomes.total()
        elapsed = time.monotonic() - self._began
        loading = [name for name in self._models if name not in counts["models"]]
        if loading and not done and not counts["calls"]:
            return f"{elapsed:.0f} s: loading {', '.join(loading)}"
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        return (
            f"{elapsed:.0f} s: {done}/{self._total} samples{f' ({ended})' if ended else ''}, "
            f"{counts['calls']} calls, {counts['in_flight']} in flight, {done / elapsed:.1f} samples/s"
        )

    def _table(self, counts: Mapping[str, Any]) -> Group:
        table = Table(title=self._line(counts), title_justify="left")
        for column in ("model", "role", "answered", "retried", "failed", "tokens in", "tokens out"):
            table.add_column(column, justify="left" if column in ("model", "role") else "right")
        for spent in counts["spent"]:
            table.add_row(
                escape(spent["model"]),
                spent["role"],
                *(str(spent[key]) for key in ("answered", "retried", "failed", "prompt_tokens", "completion_tokens")),
            )
        return Group(table)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _interval(bounds: list[float] | None) -> str:
    return "—" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells as text, one row per cell of the run."""
    rows = []
    for cell in scores["cells"]:
        others = {name: count for name, count in cell["outcomes"].items() if count and name != Outcome.SCORED}
        rows.append(
            [
                cell["model"],
                cell["task"] + (f" {cell['variant']}" if cell["variant"] else ""),
                str(cell["n"]),
                *_headline(cell),
                _percent(cell["coverage"]),
                _interval(cell["accuracy"]["bounds"]),
                ", ".join([f"{cell['outcomes'][Outcome.SCORED]} scored", *(f"{n} {o}" for o, n in others.items())]),
            ]
        )
    return rows


def _headline(cell: Mapping[str, Any]) -> tuple[str, str]:
    """The cell's score and its interval: accuracy, or the area under the ROC curve for scores."""
    area = cell["score"]["roc_auc"] if "score" in cell else None
    if area:
        return f"{100 * area['value']:.1f} % AUC", _interval(area["ci95"])
    return _percent(cell["accuracy"]["value"]), _interval(cell["accuracy"]["ci95"])


def warnings(scores: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers should know first, a line each."""
    found = []
    for role, played_by in scores["roles"].items():
        if role == "judge" and played_by in {cell["model"] for cell in scores["cells"]}:
            found.append(f"the judge, {played_by}, is also a model under test: it may judge itself kindly")
    for cell in scores["cells"]:
        readers = cell.get("readers")
        if readers and readers["differ"] > READERS_DIFFER * cell["n"]:
            shown = "; ".join(
                f"{example['text'][:60]!r} is {example['robust'] or 'nothing'}, RAmBLA's reader has "
                f"{example['rambla'] or 'nothing'}"
                for example in readers["examples"]
            )
            where = f"{cell['model']} {cell['task']} {cell['variant']}".rstrip()
            found.append(f"{where}: the readers differ on {readers['differ']} of {cell['n']} answers: {shown}")
    return found


def effects_table(scores: Mapping[str, Any]) -> Table | None:
    """What changes inside tasks that have variants, or from their pair; None when there is neither."""
    table = Table(title="Against the clean answers to the same items", title_justify="left")
    for column in EFFECT_COLUMNS:
        left = column in ("model", "task", "compared with")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for cell in scores["cells"]:
        paired = cell["paired"]
        if paired and paired["n"]:
            change = paired["difference"]
            table.add_row(
                escape(cell["model"]),
                escape(f"{cell['task']} {cell['variant']}".rstrip()),
                escape(paired["with"]),
                str(paired["n"]),
                f"{100 * change['value']:+.1f}",
                _interval(change["ci95"]),
                str(paired["right_to_wrong"]),
                str(paired["wrong_to_right"]),
                _percent(paired["consistency"]),
                f"{paired['mcnemar_p_holm']:.3g}",
            )
    return table if table.row_count else None


def effect_lines(scores: Mapping[str, Any]) -> list[str]:
    """Slopes and label biases, a line each."""
    lines = []
    for effect in scores["effects"]:
        slope = effect.get("slope")
        if slope:
            per_ten = [f"{1000 * bound:+.2f}" for bound in slope["ci95"] or ()]
            lines.append(
                f"{effect['model']} {effect['task']}: {1000 * slope['value']:+.2f} points per ten mutations "
                f"({' to '.join(per_ten) or '—'})"
            )
    for cell in scores["cells"]:
        if cell["variant"].startswith("order="):
            for label, bias in (cell.get("label_bias") or {}).items():
                if bias:
                    surplus = f"{100 * bias['value']:+.1f} points more often than it is right"
                    where = f"{cell['model']} {cell['task']} {cell['variant']}"
                    lines.append(f"{where}: says {label} {surplus} ({_interval(bias['ci95'])})")
    return lines


EFFECT_COLUMNS = (
    *("model", "task", "compared with", "pairs", "change, points", "95 % interval"),
    *("right→wrong", "wrong→right", "same answer", "p (Holm)"),
)
COLUMNS = ("model", "task", "n", "accuracy", "95 % interval", "coverage", "worst to best", "outcomes")


def score_table(scores: Mapping[str, Any]) -> Table:
    """The table of a run: one row per cell."""
    table = Table(caption=SYNTHETIC if scores["synthetic"] else None, caption_justify="left")
    for column in COLUMNS:
        left = column in ("model", "task", "outcomes")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in _rows(scores):
        table.add_row(*map(escape, row))
    return table


def calls_line(calls: Mapping[str, Any]) -> str:
    """One line: what the run asked in this invocation, and in all."""
    now = calls["invocations"][-1]
    total = sum(model["calls"] for model in calls["models"])
    reused = sum(model["reused"] for model in calls["models"])
    failed = sum(model.get("failed", 0) for model in calls["models"])
    asked = (
        f"{now['calls']} calls in {now['wall_s']:.1f} s"
        if now["calls"]
        else f"no calls, every answer came from the ledger ({now['wall_s']:.1f} s)"
    )
    cost = sum(model.get("cost_usd") or 0.0 for model in calls["models"])
    return (
        f"{asked}; the run in all: {total} calls, {reused} answers reused, {failed} failed, "
        f"{calls['wall_s']:.1f} s{f', ${cost:.4f}' if cost else ''}"
    )


def print_run(directory: RunDirectory, console: Console, *, details: bool = False) -> None:
    """Print a finished run from its directory alone; `details` adds what changed against the clean answers."""
    scores = directory.read_json("metrics.json")
    console.print(score_table(scores))
    if details:
        effects = effects_table(scores)
        if effects:
            console.print(effects)
        for line in effect_lines(scores):
            console.print(Text(line))
    for line in warnings(scores):
        console.print(Text(f"warning: {line}"))
    console.print(Text(calls_line(directory.read_json("calls.json"))))
    console.print(Text(f"run: {directory.folder.location}"), soft_wrap=True)


def write_summary(directory: RunDirectory) -> None:
    """Write summary.md and report.html from the run directory alone."""
    scores, calls = directory.read_json("metrics.json"), directory.read_json("calls.json")
    lines = [f"# {directory.folder.location.rsplit('/', 1)[-1]}", ""]
    if scores["synthetic"]:
        lines += [f"**{SYNTHETIC}.**", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in _rows(scores)]
    lines += ["", *(f"- {line}" for line in effect_lines(scores))]
    lines += ["", *(f"- **Warning:** {line}" for line in warnings(scores))]
    lines += ["", f"{calls_line(calls)}.", ""]
    directory.folder.write("summary.md", "\n".join(lines).encode())
    console = Console(file=io.StringIO(), record=True, width=150, force_terminal=False)
    print_run(directory, console, details=True)
    directory.folder.write("report.html", console.export_html().encode())
