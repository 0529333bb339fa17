"""Benchmark models: python jobs/bench.py model=NAME[,NAME] task=NAME[,NAME]|all [key=value ...]

  model=a,b            model configs to test, from conf/model
  task=x,y|all         tasks, from conf/task
  data=demo|full       the shipped synthetic demo sets (default), or the datasets' own path
  limit=N              the first N items of each dataset
  seed=N               for shuffles and draws that set no seed of their own
  roles.judge=NAME     who plays a role other than the target (also roles.rephraser)
  run_id=NAME          name of the run; made from the config when not given, so that the same command continues it
  runs_dir=PATH        where runs are kept (default: runs)
  ledger=PATH          where answers are kept (default: <runs_dir>/ledger)
  address=auto|local|HOST:PORT   (default: the cluster that RAY_ADDRESS names, else a local one)
  conf_dir=PATH        a folder with your own model/, task/ and dataset/, searched before conf/
  dry_run=true         print the plan and ask nothing
  verbose=true         let Ray's own log lines through
  fail_if.coverage_below=0.95
  budget.usd=N         what the run may spend in all; also budget.tokens
  chaos.http429=0.05   faults to inject into calls, to see that nothing is lost (also http500, reset, garbage:
                       shares of the calls; kill_actor_every: calls after which an actor kills itself)
  model.params.KEY=V  pool.KEY=V  rate.KEY=V  task.KEY=V  task.dataset.path=FILE   override a key of the configs

Exit status: 0 done, 1 refused before any call, 2 a cell has no scored sample, 3 a gate failed,
4 stopped but resumable, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LONGEST_REASON = 500  # characters of why a run stopped
DONE, REFUSED, CELL_FAILED, GATE_FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__)
        return DONE
    from rambla_ray.errors import UserError

    try:
        return _bench(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


def _bench(words: Sequence[str]) -> int:
    from rambla_ray import config as configs
    from rambla_ray.plan import Plan
    from rambla_ray.results import RunDirectory
    from rambla_ray.storage import Folder

    config = configs.load(words)
    options = config.options
    plan = Plan(config)
    if options.dry_run:
        _print_plan(plan)
        return DONE
    plan.preflight(same_machine=(options.address or os.environ.get("RAY_ADDRESS") or "local") == "local")
    directory = RunDirectory.create(config)
    Folder(config.ledger).make_writable("ledger")
    return _run(plan, directory, words)


def _run(plan: Any, directory: Any, words: Sequence[str]) -> int:
    from rambla_ray.cluster import connect
    from rambla_ray.display import one_line
    from rambla_ray.errors import RunStopped

    importing = threading.Thread(target=importlib.import_module, args=("rambla_ray.pipeline",))
    importing.start()  # a second's work, while the cluster starts

    again = f"python jobs/bench.py {shlex.join(words)}".rstrip()
    run = None
    try:
        connect(plan.config.options.address, verbose=plan.config.options.verbose)
        importing.join()
        from rambla_ray import pipeline

        run = pipeline.Run(plan, directory, words)
        scores = run()
    except RunStopped as stopped:
        if run is None or not run.calls:
            print(f"error: {one_line(str(stopped), LONGEST_REASON)}", file=sys.stderr)
            return REFUSED
        _print_results(directory)
        print(f"stopped: {one_line(str(stopped), LONGEST_REASON)}", file=sys.stderr)
        print(f"{run.calls} calls were made; what was answered is kept. Continue with: {again}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        if run is not None:
            _print_results(directory)
        print(f"interrupted; what was answered is kept. Continue with: {again}", file=sys.stderr)
        return INTERRUPTED
    _print_results(directory)
    print(f"more: python jobs/report.py {shlex.quote(directory.folder.location)}")
    return _status(plan, scores)


def _print_results(directory: Any) -> None:
    from rich.console import Console

    from rambla_ray import report

    report.write_summary(directory)
    report.print_run(directory, Console(width=None if sys.stdout.isatty() else 150))


def _status(plan: Any, scores: dict[str, Any]) -> int:
    if any(cell["outcomes"]["scored"] == 0 for cell in scores["cells"]):
        return CELL_FAILED
    gate = plan.config.options.fail_if.coverage_below
    if gate is not None and any(cell["coverage"] < gate for cell in scores["cells"]):
        print(f"gate failed: a cell's coverage is below {gate:g}", file=sys.stderr)
        return GATE_FAILED
    return DONE


def _print_plan(plan: Any) -> None:
    described = plan.describe()
    for name, task in described["tasks"].items():
        variants = f" in {len(task['variants'])} variants" if task["variants"] else ""
        print(f"{name}: {task['samples']} samples{variants}")
        for stage in task["stages"]:
            print(
                f"  {stage['role']} writes {stage['writes']}: {stage['calls']} requests, {stage['distinct_prompts']} "
                f"distinct as far as known, about {stage['prompt_tokens']} prompt tokens"
            )
        print("  | " + task["example_prompt"].replace("\n", "\n  | "))
    for target, pools in described["streams"].items():
        print(f"{target}: one stream of {described['samples_per_target']} samples")
        for pool in pools:
            cost = f", at most ${pool['cost_usd_at_most']:.4f}" if "cost_usd_at_most" in pool else ""
            calls = (
                f"{pool['unique_calls']} unique calls, at most {pool['later_calls_at_most']} that depend on answers"
            )
            tokens = f"about {pool['prompt_tokens']} prompt tokens"
            print(f"  {pool['model']} as {', '.join(pool['roles'])}: {calls}, {tokens}{cost}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
