"""What a person sees of a run: its tables, its summary and its HTML report, from the run directory alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from rambla_ray.display import one_line
from rambla_ray.results import verdicts
from rambla_ray.results.calibrated import calibration_lines
from rambla_ray.results.cautions import cut_lines, limits_of, served_lines
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.failures import count_failures
from rambla_ray.results.judged import judge_lines, judge_warnings
from rambla_ray.results.phrased import phrasing_lines
from rambla_ray.results.repeated import repeat_lines, times
from rambla_ray.results.settled import ending_lines
from rambla_ray.results.tables import PLAIN_WIDTH, add_row, markdown, markdown_table, plain_table, print_line
from rambla_ray.schema import Outcome, Role

EXAMPLE_CHARS = 60  # An answer in a warning is cut at so many characters.
READERS_DIFFER = 0.02  # The readers may differ on this share of a cell's answers before a warning says so.
COLUMNS = ("model", "task", "n", "accuracy", "95 % interval", "cut", "coverage", "worst to best", "outcomes")
EFFECT_COLUMNS = (
    *("model", "task", "compared with", "pairs", "change, points", "95 % interval"),
    *("right→wrong", "wrong→right", "same answer", "p (Holm)"),
)
CALL_COUNTS = ("calls", "answered", "reused", "retried", "hedged", "repeated", "failed")
CALL_COLUMNS = ("model", "role", *CALL_COUNTS, "tokens in", "tokens out", "cost", "waited")
# Columns of what few endpoints report stand behind these, where any of it is not 0.
RARE_COUNTS = {"tokens in": ("cached", "cached_tokens"), "tokens out": ("reasoning", "reasoning_tokens")}
SYNTHETIC = "SYNTHETIC DEMO DATA: these numbers try out the software, they are not a benchmark result"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _interval(bounds: list[float] | None) -> str:
    return "—" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the score table as text: one for each cell of the run."""
    rows = []
    for cell in scores["cells"]:
        others = {name: count for name, count in cell["outcomes"].items() if count and name != Outcome.SCORED}
        rows.append(
            [
                cell["model"],
                cell["task"] + (f" {cell['variant']}" if cell["variant"] else "") + times(cell),
                str(cell["n"]),
                *_headline(cell),
                _percent(cell["cut"]["share"] if cell.get("cut") else None),
                _percent(cell["coverage"]),
                _interval(cell["accuracy"]["bounds"]),
                ", ".join([_scored(cell), *(f"{count} {outcome}" for outcome, count in others.items())]),
            ]
        )
    return rows


def _scored(cell: Mapping[str, Any]) -> str:
    """How many samples were scored, and how many of their answers a model read and not the rules."""
    by_reader = cell.get("read_by", {}).get("reader")
    return f"{cell['outcomes'][Outcome.SCORED]} scored" + (f" ({by_reader} read by the reader)" if by_reader else "")


def _headline(cell: Mapping[str, Any]) -> tuple[str, str]:
    """The cell's score and its interval: accuracy, or the area under the ROC curve for scores."""
    area = cell["score"]["roc_auc"] if "score" in cell else None
    if area:
        return f"{100 * area['value']:.1f} % AUC", _interval(area["ci95"])
    return _percent(cell["accuracy"]["value"]), _interval(cell["accuracy"]["ci95"])


def partial_line(scores: Mapping[str, Any]) -> str:
    """How many samples of a run that is not complete there are; empty when it is complete."""
    partial = scores["partial"]
    if not partial:
        return ""
    return (
        f"PARTIAL: {partial['samples']} of {partial['expected']} samples; the numbers will change when the same "
        "command has finished the run"
    )


def warnings(scores: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers should know first: one line for each."""
    lines = [partial_line(scores)] if scores["partial"] else []
    tested = {cell.get("config", cell["model"]) for cell in scores["cells"]}
    lines += [
        f"the judge, {judge}, is also a model under test: it may judge itself kindly"
        for judge in scores["roles"].get(Role.JUDGE, "").split(",")
        if judge in tested
    ]
    for cell in scores["cells"]:
        readers = cell.get("readers")
        if readers and readers["differ"] > READERS_DIFFER * cell["n"]:
            examples = "; ".join(
                f"'{one_line(example['text'], EXAMPLE_CHARS)}' is {example['robust'] or 'nothing'}, RAmBLA's reader "
                f"has {example['rambla'] or 'nothing'}"
                for example in readers["examples"]
            )
            where = f"{cell['model']} {cell['task']} {cell['variant']}".rstrip()
            by_model = cell.get("read_by", {}).get("reader", 0)
            of_model = f" ({by_model} were read by {scores['roles']['reader']}, no rules)" if by_model else ""
            differ = f"the readers differ on {readers['differ']} of {cell['n']} answers{of_model}"
            lines.append(f"{where}: {differ}: {examples}")
    limits = scores.get("limits", {})
    return [
        *lines,
        *cut_lines(scores, limits),
        *served_lines(scores),
        *verdicts.warnings(scores),
        *judge_warnings(scores),
    ]


def _failure_lines(directory: RunDirectory, scores: Mapping[str, Any]) -> list[str]:
    """Why samples failed, in one line; none where none did."""
    failures = count_failures(directory.samples, scores)
    return [str(failures)] if failures.failed else []


def effects_table(scores: Mapping[str, Any]) -> Table | None:
    """How each cell differs from the cell it is paired with; None when no cell has a pair."""
    table = plain_table(EFFECT_COLUMNS, title="Against the clean answers to the same items")
    for cell in scores["cells"]:
        paired = cell["paired"]
        if paired and paired["n"]:
            change = paired["difference"]
            row = [
                cell["model"],
                f"{cell['task']} {cell['variant']}".rstrip(),
                paired["with"],
                str(paired["n"]),
                f"{100 * change['value']:+.1f}",
                _interval(change["ci95"]),
                str(paired["right_to_wrong"]),
                str(paired["wrong_to_right"]),
                _percent(paired["consistency"]),
                "—" if paired["mcnemar_p_holm"] is None else f"{paired['mcnemar_p_holm']:.3g}",
            ]
            add_row(table, row)
    return table if table.row_count else None


def effect_lines(scores: Mapping[str, Any]) -> list[str]:
    """Slopes, label biases and calibration: one line for each."""
    lines = [*calibration_lines(scores)]
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


def read_labelled(directory: RunDirectory) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What metrics.json and calls.json hold, each target under the name that people call it by; beside the former the
    limits of its models' answers."""
    labels, scores, calls = directory.model_labels(), directory.read_metrics(), directory.read_calls()
    scores["limits"] = limits_of((directory.read_config() or {}).get("question", {}))
    for entry in [*scores["cells"], *scores["effects"]]:
        entry["config"], entry["model"] = entry["model"], labels.get(entry["model"], entry["model"])
    until = scores.get("until") or {}
    for entry in (*verdicts.leave_out_earlier(scores), *until.get("verdicts", ()), *until.get("wide", ())):
        entry |= {side: labels.get(entry[side], entry[side]) for side in ("a", "b", "model") if side in entry}
    for entry in calls["models"] if calls else ():
        if entry["role"] == Role.TARGET:
            entry["model"] = labels.get(entry["model"], entry["model"])
    return scores, calls


def score_table(scores: Mapping[str, Any]) -> Table:
    """The table of a run: one row per cell."""
    synthetic = SYNTHETIC if scores["synthetic"] else ""
    table = plain_table(COLUMNS, title=partial_line(scores), caption=synthetic, style="bold reverse")
    for row in _rows(scores):
        add_row(table, row)
    return table


def calls_table(calls: Mapping[str, Any]) -> Table:
    """What the run took over all its invocations: one row per model and role."""
    rows = [_calls_row(entry) for entry in calls["models"]]
    rare = [name for name, _ in RARE_COUNTS.values()]
    columns = [name for name in _calls_columns() if name not in rare or any(row[name] != "0" for row in rows)]
    table = plain_table(columns, title="What it took")
    for row in rows:
        add_row(table, [row[name] for name in columns])
    return table


def _calls_columns() -> list[str]:
    """All columns that the table of calls may have, in order."""
    return [column for name in CALL_COLUMNS for column in (name, *RARE_COUNTS.get(name, ())[:1])]


def _calls_row(entry: Mapping[str, Any]) -> dict[str, str]:
    """What calls.json holds of one model in one role, by the columns of the table."""
    counts = {name: entry[name] for name in CALL_COUNTS}
    counts |= {"tokens in": entry["prompt_tokens"], "tokens out": entry["completion_tokens"]}
    counts |= {name: entry.get(key, 0) for name, key in RARE_COUNTS.values()}
    cost = "—" if entry["cost_usd"] is None else f"${entry['cost_usd']:.4f}"
    words = {"model": entry["model"], "role": entry["role"], "cost": cost, "waited": f"{entry['waited_s']:.1f} s"}
    return words | {name: str(count) for name, count in counts.items()}


def calls_line(calls: Mapping[str, Any] | None) -> str:
    """One line: the calls of the last invocation and of the whole run. `calls` is None where calls.json is missing."""
    if calls is None:
        return "what the run asked is not known: the cluster was gone before it could be written"
    last = calls["invocations"][-1]
    total = sum(model["calls"] for model in calls["models"])
    reused = sum(model["reused"] for model in calls["models"])
    failed = sum(model["failed"] for model in calls["models"])
    if last["calls"]:
        asked = f"{last['calls']} calls in {last['wall_s']:.1f} s"
    else:  # In one that was interrupted, calls may be under way: those of a batch go on.
        none = "no calls, every answer came from the ledger" if last["finished"] else "no calls ended"
        asked = f"{none} ({last['wall_s']:.1f} s)"
    cost = sum(model["cost_usd"] or 0.0 for model in calls["models"])
    return (
        f"{asked}; the run in all: {total} calls, {reused} answers reused, {failed} failed, "
        f"{calls['wall_s']:.1f} s{f', ${cost:.4f}' if cost else ''}"
    )


def _findings(scores: Mapping[str, Any], calls: Mapping[str, Any] | None) -> Iterator[str]:
    """What the numbers of a run come to, as lines."""
    yield from ending_lines(scores, calls)
    yield from phrasing_lines(scores)
    yield from verdicts.lines(scores)
    yield from repeat_lines(scores)
    yield from judge_lines(scores)


def print_run(directory: RunDirectory, console: Console, *, details: bool = False) -> None:
    """Print a run from its directory alone; `details` adds what changed against the clean answers, and all calls."""
    scores, calls = read_labelled(directory)
    console.print(score_table(scores))
    if compared := verdicts.comparisons_table(scores):
        console.print(compared)
    for line in _findings(scores, calls):
        print_line(console, line)
    if details:
        effects = effects_table(scores)
        if effects:
            console.print(effects)
        for line in effect_lines(scores):
            print_line(console, line)
        if calls:
            console.print(calls_table(calls))
    for line in (*directory.read_notes(), *verdicts.notes(scores)):
        print_line(console, f"note: {line}")
    for line in (*warnings(scores), *_failure_lines(directory, scores)):
        print_line(console, f"warning: {line}")
    print_line(console, calls_line(calls))
    print_line(console, f"run: {directory.folder.location}", whole=True)


def write_summary(directory: RunDirectory) -> None:
    """Write summary.md and report.html from the run directory alone. Raises NotWritten."""
    scores, calls = read_labelled(directory)
    lines = [f"# {markdown(directory.folder.name)}", ""]
    lines += [f"**{line}.**\n" for line in (partial_line(scores), SYNTHETIC if scores["synthetic"] else "") if line]
    lines += markdown_table(COLUMNS, _rows(scores))
    if compared := verdicts.rows(scores):
        lines += ["", *markdown_table(verdicts.COLUMNS, compared)]
    lines += [
        "",
        *(f"- {markdown(line)}" for line in (*_findings(scores, calls), *effect_lines(scores))),
    ]
    lines += ["", *(f"- Note: {markdown(line)}" for line in (*directory.read_notes(), *verdicts.notes(scores)))]
    warned = (*warnings(scores), *_failure_lines(directory, scores))
    lines += ["", *(f"- **Warning:** {markdown(line)}" for line in warned)]
    lines += ["", f"{markdown(calls_line(calls))}.", ""]
    directory.write("summary.md", "\n".join(lines).encode())
    console = Console(file=io.StringIO(), record=True, width=PLAIN_WIDTH, force_terminal=False)
    print_run(directory, console, details=True)
    directory.write("report.html", console.export_html().encode())
