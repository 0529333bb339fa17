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
  doctor=true          check every node and endpoint for what the run needs, and ask nothing
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

import contextlib
import importlib
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LONGEST_REASON = 500  # characters of why a run stopped
LONGEST_LINE = 1000  # characters of a check
DONE, REFUSED, CELL_FAILED, GATE_FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__)
        return DONE
    try:
        from rambla_ray.errors import UserError
    except ModuleNotFoundError as error:
        where = "activate the environment that has it (for a job: where ray starts)"
        print(f"error: {sys.executable} has no module {error.name}; {where}", file=sys.stderr)
        return REFUSED
    try:
        return _bench(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


def _bench(words: Sequence[str]) -> int:
    from rambla_ray.config import load as configs
    from rambla_ray.config.run import cluster_address
    from rambla_ray.results.directory import RunDirectory
    from rambla_ray.run.job import SubmittedJob
    from rambla_ray.run.plan import Plan
    from rambla_ray.storage import Folder

    job = SubmittedJob.current()
    config = configs.load(words)
    options = config.options
    own_cluster = job is None and cluster_address(options.address) == "local"
    if not own_cluster and not options.dry_run:
        _check_places(config, job)
    if options.doctor:
        return _doctor(config)
    plan = Plan(config)
    if options.dry_run:
        _print_plan(plan)
        return DONE
    if job is not None:
        job.refuse_secrets(config.key_variables)
        job.warn()
    plan.preflight(same_machine=own_cluster)
    directory = RunDirectory.create(config)
    Folder(config.ledger).make_writable("ledger")
    return _run(plan, directory, words, job, own_cluster=own_cluster)


def _doctor(config: Any) -> int:
    """Check every node and endpoint; prints a line each."""
    from rambla_ray.display import one_line
    from rambla_ray.run.cluster import connect

    connect(config.options.address, verbose=config.options.verbose)
    from rambla_ray.run import doctor

    well = True
    for check in doctor.diagnose(config):
        well &= check.holds
        print(one_line(str(check), LONGEST_LINE), flush=True)
    return DONE if well else REFUSED


def _nodes_are_ready(config: Any) -> bool:
    """The short form of the doctor, on a cluster that others have made; prints what is wrong."""
    from rambla_ray.display import one_line
    from rambla_ray.run import doctor
    from rambla_ray.run.cluster import cluster

    models = doctor.models_of(config, cluster())
    wrong = [check for check in doctor.check_nodes(models, *doctor.look(models)) if not check.holds]
    for check in wrong:
        print(one_line(f"error: {check.line}", LONGEST_LINE), file=sys.stderr)
    return not wrong


def _check_places(config: Any, job: Any) -> None:
    """Refuse results in a relative place where it does not mean the folder that the command was typed in."""
    from rambla_ray.errors import UserError

    for key, place in (("runs_dir", config.options.runs_dir), ("ledger", config.ledger)):
        if "://" in place or Path(place).expanduser().is_absolute():
            continue
        if job is None:
            why, way_out = "a cluster that is already running has another working directory", Path(place).absolute()
        else:
            why, way_out = "a job's working directory is a copy that is thrown away", f"s3://BUCKET/{Path(place).name}"
        raise UserError(f"{key}={place} is relative, and {why}; give a bucket or an absolute path: {key}={way_out}")


def _run(plan: Any, directory: Any, words: Sequence[str], job: Any, *, own_cluster: bool) -> int:
    from rambla_ray.display import one_line
    from rambla_ray.errors import RunStopped
    from rambla_ray.run.cluster import connect, dashboard, settle_logging

    threading.Thread(target=_import_what_is_needed_later, daemon=True).start()

    again = f"python jobs/bench.py {shlex.join(words)}".rstrip()
    run = None
    try:
        connect(plan.config.options.address, verbose=plan.config.options.verbose)
        if job is not None:
            again = job.command([sys.argv[0], *words], dashboard())
        from rambla_ray.run import pipeline

        settle_logging(verbose=plan.config.options.verbose)
        if not own_cluster and not _nodes_are_ready(plan.config):
            return REFUSED
        drain_s = pipeline.DRAIN_S if job is None else min(pipeline.DRAIN_S, job.stop_wait_s / 2)
        run = pipeline.Run(plan, directory, words, drain_s=drain_s)
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


def _import_what_is_needed_later() -> None:
    """Seconds of work, done while the cluster starts. Who imports one of them meanwhile waits for it."""
    with contextlib.suppress(Exception):  # the process ends meanwhile, or whoever needs it sees the same error
        for module in ("rambla_ray.pipeline", "rambla_ray.scoring"):  # later, it would hold up the stream
            importlib.import_module(module)


def _print_results(directory: Any) -> None:
    from rambla_ray.results import report

    report.write_summary(directory)
    report.print_run(directory, report.console_on(sys.stdout))


def _status(plan: Any, scores: dict[str, Any]) -> int:
    failed = [cell for cell in scores["cells"] if cell["outcomes"]["scored"] == 0]
    if failed:
        where = " ".join(filter(None, (failed[0][key] for key in ("model", "task", "variant"))))
        print(f"failed: {len(failed)} cells have no scored sample, for example {where}", file=sys.stderr)
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
