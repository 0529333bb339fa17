"""One invocation of `bench`: from the words of its command line to its exit status.

What needs Ray, or writes results, is imported where it is used: a wrong word, or a dry run, does not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig, cluster_address
from rambla_ray.config.words import as_typed
from rambla_ray.display import as_typed_in_a_shell, bounded, counted, escaped, one_line, print_error
from rambla_ray.errors import NotWritten, RunStopped, UserError
from rambla_ray.ledger.store import has_records_of
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.interruption import Interruption
from rambla_ray.run.job import SubmittedJob, refuse_relative
from rambla_ray.run.open_files import refuse_too_few
from rambla_ray.run.plan import Plan
from rambla_ray.run.status import ExitStatus
from rambla_ray.run.streams import streams_of
from rambla_ray.storage import Folder, removed_if_empty

if TYPE_CHECKING:
    from rambla_ray.results.directory import RunDirectory
    from rambla_ray.run.pipeline import Run


INTERRUPTED = "interrupted; what was answered is kept."


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What started this process.

    Args:
        words: of the command line, behind the program's.
        program: the words that start the benchmark.
        job: the Ray job that it was submitted as; None outside of one.
    """

    words: Sequence[str]
    program: Sequence[str]
    job: SubmittedJob | None

    @property
    def again(self) -> str:
        """What to type to continue the run on this machine."""
        return as_typed_in_a_shell([*self.program, *self.words])

    def submit_again(self, job: SubmittedJob, dashboard: str) -> str:
        """What to type to continue the run as a job, whose script need not lie where a checkout has it."""
        is_script = self.program[-1].endswith(".py")
        program = [*self.program[:-1], sys.argv[0]] if is_script else self.program
        return job.command([*program, *self.words], dashboard)

    def report(self, run: str) -> str:
        """What to type to see more of a run, in the directory of that name."""
        program = [*self.program[:-1], self.program[-1].replace("bench", "report")]
        return as_typed_in_a_shell([*program, run])


def invoke(words: Sequence[str], program: Sequence[str], interruption: Interruption) -> int:
    """Run the benchmark that the words ask for, or say what it would be; returns the exit status.

    Args:
        words: of the command line, behind the program's.
        program: the words that start the benchmark.
        interruption: what signals do; the run takes them over before it asks anything.

    Raises:
        UserError: nothing has been asked.
    """
    command = CommandLine([as_typed(word) for word in words], program, SubmittedJob.current())
    config = _as_it_was_begun(load(words))
    own_cluster = command.job is None and cluster_address(config.options.address) == "local"
    if not own_cluster and not config.options.dry_run:
        refuse_relative({"runs_dir": config.options.runs_dir, "ledger": config.ledger}, command.job)
    if config.options.doctor:
        return _diagnose(config)
    plan = Plan(config)
    if config.options.dry_run:
        print(*(one_line(line, len(line)) for line in plan_lines(plan.describe())), sep="\n")
        return ExitStatus.DONE
    if command.job is not None:
        command.job.refuse_secrets(config.key_variables)
    plan.preflight(same_machine=own_cluster)
    if own_cluster:
        _refuse_what_this_machine_lacks(plan)
    if command.job is not None:
        command.job.warn()
    with _leased_directory(config, interruption) as directory:
        return _run(plan, directory, command, interruption, own_cluster=own_cluster)


def _refuse_what_this_machine_lacks(plan: Plan) -> None:
    """Refuse, before Ray starts, a pool that its cluster would not hold, and too few open files. Raises UserError."""
    from rambla_ray.run.cluster import own_cluster

    streams_of(plan.config, own_cluster())
    refuse_too_few(level.config for target in plan.config.targets for level in plan.levels(target))


@contextlib.contextmanager
def _leased_directory(config: RunConfig, interruption: Interruption) -> Iterator[RunDirectory]:
    """The run's directory, which this process alone writes while inside. Raises UserError."""
    from rambla_ray.results.damage import refuse_what_cannot_be_replaced, rewritten
    from rambla_ray.results.directory import RunDirectory
    from rambla_ray.results.lease import Lease

    ledger = Folder(config.ledger, config.options.modes)
    with removed_if_empty(Folder(config.directory)) as remove:
        interruption.last_acts.callback(remove)
        directory = RunDirectory.create(config)
        refuse_what_cannot_be_replaced(directory)
        lease = Lease.of(directory.folder, config.run_id)
        interruption.last_acts.callback(lease.give_up)
        # Who is refused because the run goes on does not remove the ledger that it is about to write.
        with lease.take(), removed_if_empty(ledger) as remove_ledger:
            interruption.last_acts.callback(remove_ledger)
            ledger.make_writable("ledger")
            for line in rewritten(directory):
                print_error(f"{line}; it is written anew", "note")
            yield directory.held(lease)


def _as_it_was_begun(config: RunConfig) -> RunConfig:
    """The config of a run under the name that it has in the ledger, where an earlier version began it."""
    is_begun = config.has_earlier_name and has_records_of(Folder(config.ledger), config.earlier_run_id)
    return config.under_its_earlier_name() if is_begun else config


def _diagnose(config: RunConfig) -> int:
    """Check every node and endpoint, and print a line for each check."""
    from rambla_ray.run.cluster import connect

    _warn(connect(config.options.address, verbose=config.options.verbose))
    from rambla_ray.run import doctor

    all_hold = True
    for check in doctor.diagnose(config):
        all_hold &= check.holds
        print(bounded(str(check)), flush=True)
    return ExitStatus.DONE if all_hold else ExitStatus.REFUSED


def _run(
    plan: Plan, directory: RunDirectory, command: CommandLine, interruption: Interruption, *, own_cluster: bool
) -> int:
    """Run a plan on the cluster that its config names, and print what came of it."""
    interruption.line = escaped(f"{INTERRUPTED} Continue with: {command.again}")
    again = command.again
    run: Run | None = None
    scores: dict[str, Any] | None = None
    is_written = True
    try:
        run, again = _start(plan, directory, command, own_cluster=own_cluster)
        if run is None:
            return ExitStatus.REFUSED
        interruption.hand_over()
        scores = run()
    except RunStopped as stopped:
        if run is None or not run.calls:
            print_error(str(stopped))
            return ExitStatus.REFUSED
        status = ExitStatus.STOPPED
        ending = f"{bounded(f'stopped: {stopped}')}\n{run.calls} calls were made; what was answered is kept."
        is_written = not isinstance(stopped, NotWritten)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
        ending = INTERRUPTED
    if run is not None and is_written and (reason := _show(directory)):
        status, scores = ExitStatus.STOPPED, None
        ending = f"{bounded(f'stopped: {reason}')}\nThe summary is missing; what was answered is kept."
    if scores is None:
        print(f"{ending} Continue with: {again}", file=sys.stderr)
        return status
    print(f"more: {command.report(directory.folder.location)}")
    try:
        return _status(plan.config, scores, directory)
    except UserError as error:  # The samples are gone, or damaged, since they were scored.
        print(f"{bounded(f'stopped: {error}')} Continue with: {again}", file=sys.stderr)
        return ExitStatus.STOPPED


def _start(plan: Plan, directory: RunDirectory, command: CommandLine, *, own_cluster: bool) -> tuple[Run | None, str]:
    """Connect, and start a run's actors; returns it, and what to type to continue it.

    There is no run where the nodes lack what it needs, which has been printed. Raises RunStopped.
    """
    from rambla_ray.run.cluster import configure_logging, connect, dashboard

    threading.Thread(target=_import_while_the_cluster_starts, daemon=True).start()
    job, verbose = command.job, plan.config.options.verbose
    warnings = connect(plan.config.options.address, verbose=verbose)
    again = command.again if job is None else command.submit_again(job, dashboard())
    from rambla_ray.run import pipeline

    configure_logging(verbose=verbose)
    if not own_cluster and not _nodes_are_ready(plan.config):
        return None, again
    drain_s = pipeline.DRAIN_S if job is None else min(pipeline.DRAIN_S, job.stop_wait_s / 2)
    run = pipeline.Run.start(plan, directory, command.words, drain_s=drain_s)
    _warn(warnings)
    return run, again


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print_error(warning, "warning")


def _show(directory: RunDirectory) -> str:
    """Write a run's summary and print its table; returns why that could not be done, empty if it was."""
    from rambla_ray.results import report
    from rambla_ray.results.tables import console_on

    reasons = []
    for show in (report.write_summary, lambda run: report.print_run(run, console_on(sys.stdout))):
        try:
            show(directory)
        except (NotWritten, UserError) as error:
            reasons.append(str(error))
    return "; ".join(dict.fromkeys(reasons))


def _import_while_the_cluster_starts() -> None:
    """Import what takes seconds and is needed later; whoever imports one of them meanwhile waits for it."""
    with contextlib.suppress(Exception):  # Either the process ends, or whoever needs the module gets the same error.
        importlib.import_module("rambla_ray.run.pipeline")
        importlib.import_module("rambla_ray.results.score")


def _nodes_are_ready(config: RunConfig) -> bool:
    """The short form of the doctor, on a cluster that others have started; prints what is wrong."""
    from rambla_ray.run import doctor

    faults = doctor.faulty_nodes(config)
    for fault in faults:
        print_error(fault.line)
    return not faults


def _status(config: RunConfig, scores: Mapping[str, Any], directory: RunDirectory) -> int:
    """The exit status of a finished run; prints the reason where it is not 0."""
    from rambla_ray.results.failures import count_failures

    gates = config.options.fail_if
    failures = count_failures(directory.samples, scores)
    if failures.share > gates.failed_above:
        reason = f"{failures} (above fail_if.failed_above={gates.failed_above:g}); the same command asks again"
        print_error(reason, "failed")
        return ExitStatus.CELL_FAILED
    failed = [cell for cell in scores["cells"] if cell["outcomes"]["scored"] == 0]
    if failed:
        first = failed[0]
        where = " ".join(filter(None, (config.label(first["model"]), first["task"], first["variant"])))
        print_error(f"no sample was scored in {counted(len(failed), 'cell')}, for example {where}", "failed")
        return ExitStatus.CELL_FAILED
    least = gates.coverage_below
    if least is not None and any(cell["coverage"] < least for cell in scores["cells"]):
        print_error(f"a cell's coverage is below {least:g}", "gate failed")
        return ExitStatus.GATE_FAILED
    return ExitStatus.DONE
