"""How long several targets take side by side, beside one alone.

    python benchmarks/several_targets.py                                     # one and two targets of 600 samples
    python benchmarks/several_targets.py --targets 1,2,5 --repeat 3          # the medians

Each target is a model config of kind openai_chat behind the fake endpoint of benchmarks/endpoint.py, which answers
each call after the same time, without limits. What is timed is the whole of jobs/bench.py, from its start to its exit,
and from the first request to the last answer. The ratio is to one target: 1 where the others cost nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from endpoint import Endpoint
from peers import Failed
from workload import Bench, made_up_items

TASK = {
    "stages": [{"generate": {"role": "target", "template": "{context}\n\n{question} Answer yes or no."}}],
    "answer": {"choices": ["yes", "no"], "target": "final_decision"},
}
TIMEOUT_S = 600.0


def measure(folder: Path, targets: int, given: argparse.Namespace) -> tuple[float, float]:
    """The seconds of one run as a whole, and of its calls. Raises Failed."""
    with Endpoint(given.latency) as endpoint:
        params = {"base_url": f"{endpoint.url}/v1", "api_type": "openai", "temperature": 0.0, "max_tokens": 8}
        models = {
            f"target-{number}": {
                "name": "openai_chat",
                "params": {**params, "engine": f"engine-{number}"},
                "pool": {"max_concurrency": given.in_flight},
            }
            for number in range(targets)
        }
        bench = Bench(folder, made_up_items(given.samples), TASK, models)
        done = bench.run(f"model={','.join(models)}", timeout_s=TIMEOUT_S)
        stats = endpoint.stats()
    if done.fault:
        raise Failed(done.fault)
    if stats["answered"] != targets * given.samples:
        raise Failed(f"{stats['answered']} answers, and not {targets * given.samples}")
    return done.seconds, stats["last_reply"] - stats["first_request"]


def main() -> None:
    """Run, and print a line for each number of targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", default="1,2", help="how many; the first is what the others are compared with")
    parser.add_argument("--samples", type=int, default=600, help="of each target")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds until the endpoint answers")
    parser.add_argument("--in-flight", type=int, default=16, help="calls of each target")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each")
    given = parser.parse_args()
    counts = [int(number) for number in given.targets.split(",")]
    seconds: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="several_targets_") as scratch:
        for repeat in range(given.repeat):
            for count in counts:
                folder = Path(scratch) / f"{count}-{repeat}"
                folder.mkdir()
                try:
                    seconds[count].append(measure(folder, count, given))
                except Failed as error:
                    sys.exit(f"{count} targets: {error}")
    wholes, calls = (
        {count: statistics.median(s[part] for s in seconds[count]) for count in counts} for part in (0, 1)
    )
    print(f"{given.samples} samples a target, {given.latency:g} s an answer, {given.in_flight} in flight a target")
    for count in counts:
        print(
            f"{count} {'target' if count == 1 else 'targets'}: {wholes[count]:.1f} s, "
            f"{wholes[count] / wholes[counts[0]]:.2f} of the first; "
            f"calls {calls[count]:.1f} s, {calls[count] / calls[counts[0]]:.2f}"
        )


if __name__ == "__main__":
    main()
