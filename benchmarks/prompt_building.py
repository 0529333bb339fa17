"""How long it takes to build every prompt of every task: python benchmarks/prompt_building.py [task.dataset.path=FILE]

Builds the plan of `task=all` for the mock, and renders each sample's first prompt; nothing is asked.
"""

from __future__ import annotations

import sys
import time

from rambla_ray.config import load as config
from rambla_ray.run.plan import Plan


def main() -> None:
    """Print a table: stage of the work, seconds."""
    words = ["model=mock", "task=all", "roles.judge=mock", "roles.rephraser=mock", *sys.argv[1:]]
    began = time.perf_counter()
    loaded = config.load(words)
    configured = time.perf_counter()
    plan = Plan(loaded)
    planned = time.perf_counter()
    count = characters = 0
    for sample in plan.samples("mock"):
        stage = loaded.tasks[sample.task].generates[0]
        count += 1
        characters += len(stage.render({n: sample.fields.get(n, "") for n in stage.reads()}))
    rendered = time.perf_counter()
    print(f"{'config':<28}{configured - began:8.2f} s")
    print(f"{'items, mutations, examples':<28}{planned - configured:8.2f} s")
    print(f"{'prompts':<28}{rendered - planned:8.2f} s   {count} prompts, {characters / 1e6:.1f} million characters")
    print(f"{'all':<28}{rendered - began:8.2f} s")


if __name__ == "__main__":
    main()
