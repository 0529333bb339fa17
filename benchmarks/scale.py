"""How a run grows: samples/s, memory of the driver, and how long a finished run takes to be repeated.

    python benchmarks/scale.py [--samples 10000,100000,1000000] [--markdown]

The mock answers at once, so that all the time is the pipeline's own: 10,000 made-up items of PubMedQA's size, asked in
as many tasks as it takes. Each run is a process of its own with a cluster of its own. `samples/s` is over the whole
run, less the time it takes to start; memory is the driver's private memory (USS) at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from command import Finished
from rich.console import Console
from rich.table import Table
from workload import Bench, made_up_items

ITEMS = 10_000
MOCK = {"name": "mock", "pool": {"min_size": 2, "max_concurrency": 256}}
LOOK_S = 0.25  # The driver's memory is read this often.
TIMEOUT_S = 3600.0
TEMPLATE = "Question {number} of a series.\n\n{{context}}\n\nQuestion: {{question}}\nReply with one word, Yes or No."
COLUMNS = (
    *("samples", "samples/s", "whole run, s", "until the first call, s", "driver, MB at peak"),
    *("again: whole run, s", "again: calls", "again: driver, MB"),
)


@dataclass(frozen=True)
class Measured:
    """One run: its process, the driver's peak memory in MB, and what calls.json says of it."""

    finished: Finished
    memory_mb: float
    calls: int
    wall_s: float  # The run itself, from the connection to the cluster on.


class Watch:
    """The peak private memory of a child of this process that runs jobs/bench.py."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            for child in psutil.Process(os.getpid()).children():
                try:
                    if any("bench.py" in word for word in child.cmdline()):
                        self.peak_mb = max(self.peak_mb, child.memory_full_info().uss / 2**20)
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue


def prepare(folder: Path, samples: int) -> tuple[Bench, list[str]]:
    """The data and configs of a run of so many samples, and the words that choose them."""
    answer = {"choices": ["yes", "no"], "target": "final_decision"}
    names = [f"task{number:03}" for number in range(max(1, samples // ITEMS))]
    tasks = {
        name: {
            "stages": [{"generate": {"role": "target", "template": TEMPLATE.format(number=number)}}],
            "answer": answer,
        }
        for number, name in enumerate(names)
    }
    bench = Bench(folder, made_up_items(min(ITEMS, samples)), tasks[names[0]], {"scale_mock": MOCK})
    for name, task in tasks.items():
        (folder / "conf" / "task" / f"{name}.yaml").write_text(
            json.dumps({"dataset": "made_up", **task}), encoding="utf-8"
        )
    return bench, ["model=scale_mock", f"task={','.join(names)}"]


def measured(bench: Bench, words: Sequence[str]) -> Measured:
    """Run once. Raises RuntimeError with the run's last words when it fails."""
    with Watch() as watch:
        finished = bench.run(*words, timeout_s=TIMEOUT_S)
    if finished.status != 0:
        raise RuntimeError(finished.fault)
    now = json.loads((bench.folder / "runs/benchmark/calls.json").read_text(encoding="utf-8"))["invocations"][-1]
    return Measured(finished, watch.peak_mb, now["calls"], now["wall_s"])


def row(samples: int) -> list[str]:
    """A line of the table: a run, and the same again."""
    with tempfile.TemporaryDirectory(prefix="rambla_ray-scale-") as folder:
        bench, words = prepare(Path(folder), samples)
        first, again = measured(bench, words), measured(bench, words)
    return [
        f"{samples:,}",
        f"{samples / first.wall_s:,.0f}",
        f"{first.finished.seconds:.1f}",
        f"{first.finished.seconds - first.wall_s:.1f}",
        f"{first.memory_mb:,.0f}",
        f"{again.finished.seconds:.1f}",
        f"{again.calls:,}",
        f"{again.memory_mb:,.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="10000,100000,1000000", help="numbers of samples, separated by commas")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    table = Table(*COLUMNS, title=f"{os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}")
    rows = []
    for samples in map(int, options.samples.split(",")):
        rows.append(row(samples))
        table.add_row(*rows[-1])
    if options.markdown:
        print("| " + " | ".join(COLUMNS) + " |", "|" + " ---: |" * len(COLUMNS), sep="\n")
        for cells in rows:
            print("| " + " | ".join(cells) + " |")
    else:
        Console().print(table)


if __name__ == "__main__":
    main()
