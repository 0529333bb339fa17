"""How fast the same prompts get through an endpoint with rambla_ray and with others, in one run.

    python benchmarks/api_throughput.py                                     # 8,000 prompts, 64 and 512 in flight
    python benchmarks/api_throughput.py --repeat 3 --markdown               # the medians, as a Markdown table
    python benchmarks/api_throughput.py --only ours,lm_eval --concurrency 64

Every runner is a fresh process that asks the fake endpoint of benchmarks/endpoint.py (50 ms an answer, no limits) the
same made-up prompts of PubMedQA's size, each once; the endpoint checks that it did. What is timed:

  requests/s   the endpoint's view: answers over the time from the first request to the last answer
  whole run    from the start of the process to its exit: imports, reading, asking, scoring, writing

  ours          jobs/bench.py with a model config of kind openai_chat: one actor at 64 in flight, two at 512
  bare          a loop around AsyncOpenAI with a semaphore: no retries, no cache, nothing scored; the floor for the
                openai package
  lm_eval       lm-evaluation-harness, local-chat-completions with num_concurrent
  ray_data_llm  ray.data.llm's HttpRequestProcessor

Peers that are not dependencies of the project get a virtual environment of their own on first use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from api_runners import RUNNERS, TEMPLATE, Job
from endpoint import Endpoint
from endpoint_counts import checksum
from peers import Failed, default_peers
from rich.console import Console
from rich.table import Table
from workload import Bench, made_up_items


@dataclass(frozen=True)
class Measured:
    """One run of one runner."""

    per_second: float  # Answers per second while requests were sent.
    whole_s: float
    results_s: float  # From the start of the process until its results were written.
    startup_s: float  # From the start of the process to its first request.
    answered: int
    rejected: int
    most_in_flight: int
    endpoint_busy: float  # The endpoint's share of one CPU while requests were sent.


def measure(runner: str, job: Job) -> Measured:
    """Run one runner. Raises Failed when it did not get every prompt answered."""
    job.endpoint.reset()
    done = RUNNERS[runner](job)
    stats = job.endpoint.stats()
    if done.fault:
        raise Failed(done.fault)
    with job.prompts.open() as lines:
        expected = checksum(json.loads(line)["prompt"] for line in lines)
    if stats["prompts"] != len(job.items) or stats["checksum"] != expected:
        raise Failed(f"asked {stats['prompts']} prompts, and not the {len(job.items)} that it was given")
    sending_s = stats["last_reply"] - stats["first_request"]
    metrics = job.folder / Bench.METRICS
    return Measured(
        per_second=stats["answered"] / sending_s,
        whole_s=done.seconds,
        results_s=metrics.stat().st_mtime - done.began_at if runner == "ours" else done.seconds,
        startup_s=stats["first_request"] - done.began,
        answered=stats["answered"],
        rejected=stats["rejected"],
        most_in_flight=stats["most_in_flight"],
        endpoint_busy=stats["cpu_s"] / sending_s,
    )


Results = dict[tuple[int, str], list[Measured]]


def measure_all(given: argparse.Namespace, folder: Path) -> Results:
    """All runs, runner after runner and then again, so that what else the machine does strikes all alike."""
    items = made_up_items(given.prompts)
    prompts = folder / "prompts.jsonl"
    with prompts.open("w", encoding="utf-8") as file:
        for item in items:
            row = {"prompt": TEMPLATE.format_map(item), "answer": item["final_decision"]}
            file.write(json.dumps(row) + "\n")
    results: Results = {(concurrency, runner): [] for concurrency in given.concurrency for runner in given.only}
    for repeat in range(1, given.repeat + 1):
        for concurrency, runner in results:
            own = folder / f"{runner}-{concurrency}-{repeat}"
            own.mkdir()
            with Endpoint(given.latency) as endpoint:
                job = Job(own, items, prompts, endpoint, concurrency, given.peers_venv, given.timeout)
                try:
                    measured = measure(runner, job)
                except (Failed, OSError) as error:
                    print(f"{runner} at {concurrency}: failed: {error}", flush=True)
                    continue
            results[concurrency, runner].append(measured)
            print(
                f"{runner} at {concurrency}: {measured.per_second:.0f} requests/s, whole run {measured.whole_s:.1f} s",
                flush=True,
            )
    return results


HEADINGS = (
    "in flight",
    "runner",
    "requests/s",
    "ours ×",
    "whole run, s",
    "ours ×",
    "first request, s",
    "results, s",
    "answered",
    "429s",
    "most in flight",
    "endpoint busy",
)
LEGEND = (
    "ours ×: how many times as fast ours is, while sending and over the whole run. Seconds count from the start of "
    "the process: to its exit, to the first request, and until its results are written. Most in flight, and the share "
    "of a CPU that the endpoint took, are the endpoint's view."
)


def rows(results: Results, repeats: int) -> Iterator[tuple[str, ...]]:
    """The table: medians over the repeats that did not fail, and ratios of medians."""

    def median(measured: Sequence[Measured], what: str) -> float:
        return float(statistics.median(getattr(one, what) for one in measured))

    for (concurrency, runner), measured in results.items():
        if not measured:
            yield (str(concurrency), runner, "failed", *[""] * (len(HEADINGS) - 3))
            continue
        ours_measured = results.get((concurrency, "ours"))
        rate, whole = median(measured, "per_second"), median(measured, "whole_s")
        faster = shorter = "–"
        if ours_measured and runner != "ours":
            faster = f"{median(ours_measured, 'per_second') / rate:.2f}"
            shorter = f"{whole / median(ours_measured, 'whole_s'):.2f}"
        yield (
            str(concurrency),
            runner if len(measured) == repeats else f"{runner} ({len(measured)} of {repeats})",
            f"{rate:,.0f}",
            faster,
            f"{whole:.1f}",
            shorter,
            f"{median(measured, 'startup_s'):.1f}",
            f"{median(measured, 'results_s'):.1f}",
            f"{median(measured, 'answered'):,.0f}",
            f"{median(measured, 'rejected'):,.0f}",
            f"{median(measured, 'most_in_flight'):.0f}",
            f"{median(measured, 'endpoint_busy'):.0%}",
        )


def versions(peers: Path) -> str:
    """What was compared."""
    found = {name: metadata.version(name) for name in ("openai", "ray")}
    for path in peers.glob("lib/python*/site-packages/lm_eval-*.dist-info"):
        found["lm_eval"] = path.stem.removeprefix("lm_eval-")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def print_table(given: argparse.Namespace, results: Results) -> None:
    """The results, for a terminal or as Markdown."""
    title = f"{given.prompts:,} prompts, {1000 * given.latency:.0f} ms an answer, median of {given.repeat}; "
    title += f"{versions(given.peers_venv)}, {os.cpu_count()} CPUs"
    lines = list(rows(results, given.repeat))
    if given.markdown:
        print(f"\n{title}\n\n| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
        for line in lines:
            print(f"| {' | '.join(line)} |")
        print(f"\n{LEGEND}")
        return
    table = Table(title=title, caption=LEGEND, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "runner" else "right", no_wrap=heading == "runner")
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def arguments() -> argparse.Namespace:
    """The command line."""

    def names(word: str) -> list[str]:
        chosen = word.split(",")
        strange = [name for name in chosen if name not in RUNNERS]
        if strange:
            raise argparse.ArgumentTypeError(f"no runner {strange[0]!r}; there are {', '.join(RUNNERS)}")
        return chosen

    def numbers(word: str) -> list[int]:
        return [int(number) for number in word.split(",")]

    def folder(word: str) -> Path:
        return Path(word).expanduser().resolve()

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--concurrency", type=numbers, default=[64, 512], help="requests in flight: 64,512")
    parser.add_argument("--only", type=names, default=list(RUNNERS), help=",".join(RUNNERS))
    parser.add_argument("--repeat", type=int, default=1, help="runs of each runner")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until the endpoint answers")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a run is given up")
    parser.add_argument("--peers-venv", type=folder, default=default_peers(), help="made on first use: %(default)s")
    parser.add_argument(
        "--keep", type=folder, help="an empty folder for what the runs write; thrown away if not given"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def main() -> None:
    """Run, and print the table."""
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="api_throughput_") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"--keep {folder}: there is something in it; what a run left behind would be taken up again")
        results = measure_all(given, folder)
    print_table(given, results)


if __name__ == "__main__":
    main()
