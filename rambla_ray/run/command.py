"""The command lines of a run and of its report, as functions over their words.

Importing this module imports nothing of weight, so that help comes at once, also where packages are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rambla_ray.display import SHOWN_CHARACTERS, one_line, print_error, unfailing_output
from rambla_ray.run.status import ExitStatus

if TYPE_CHECKING:
    from rambla_ray.run.interruption import Interruption

HELP_WORDS = ("-h", "--help", "help")
REPORT_FLAGS = ("--recompute", "--audit")
DIFFERS = 2  # The exit status of a report whose numbers differ or do not add up.

BENCH_HELP = """\
Benchmark models: {program} model=NAME[,NAME] task=NAME[,NAME]|all [key=value ...]

  model=a,b            model configs to test, from conf/model
  task=x,y|all         tasks, from conf/task
  data=demo|full       the shipped synthetic demo sets (default), or the datasets' own path
  limit=N              the first N items of each dataset
  epochs=N             how many independent answers to each item are drawn (default: 1; a task's own epochs win)
  until={{ci_width: 0.06}}   end once each accuracy is known so closely; until={{decided: 0.05}}: once it is known
                       which of each two models is better, at this error, or, with equivalent: 0.03, that they differ
                       by less
  seed=N               for shuffles and draws that set no seed of their own
  roles.judge=NAME     who plays a role other than the target (also roles.rephraser); several judges, separated by
                       commas, each have a vote, and the majority is the answer
  judge_calibration=PATH   a run in which the judges were the models of a similarity task, or a table with the columns
                       verdict and label (csv, jsonl, json, parquet): scores are corrected for the judge's errors
  roles.reader=NAME    a model that reads the answers which the rules cannot read (default: nobody does); what it is
                       asked is reader.template
  run_id=NAME          name of the run; made from the config when not given, so that the same command continues it
  runs_dir=PATH        where runs are kept (default: runs)
  ledger=PATH          where answers are kept (default: <runs_dir>/ledger)
  files_mode=private|group|umask|0640   who may read what is created there (default: private, the owner alone)
  address=auto|local|HOST:PORT   (default: the cluster that RAY_ADDRESS names, else a local one)
  conf_dir=PATH        a folder with your own model/, task/ and dataset/, searched before conf/
  dry_run=true         print the plan, with what it is likely to cost and take, and ask nothing
  doctor=true          check every node and endpoint for what the run needs, and ask nothing
  verbose=true         let Ray's own log lines through
  baseline=NAME        the model that the others are compared with (default: each two are)
  fail_if.coverage_below=0.95   exit with 3 when a cell has fewer scored samples; fail_if.failed_above=0.05 (default):
                       with 2 when more of the run's samples failed (1: never)
  budget.usd=N         what the run may spend in all, over all its invocations; also budget.tokens
  chaos.http429=0.05   faults to inject into calls, to see that nothing is lost (also http500, reset, garbage:
                       shares of the calls; kill_actor_every: calls after which an actor kills itself)
  model.params.KEY=V  pool.KEY=V  rate.KEY=V  task.KEY=V  task.dataset.KEY=V   override a key of the configs
  task.dataset.path=FILE   your own data: for the tasks whose format the file is in; once for each format

Exit status: 0 done, 1 refused before any call, 2 a cell has no scored sample or too many samples failed,
3 a gate failed, 4 stopped but resumable, 130 interrupted.
"""

REPORT_HELP = """\
Show a run again, from its directory alone: {program} RUN_DIRECTORY [--recompute] [--audit]
Of a folder with run directories in it, list them: {program} runs/

--recompute   score samples/ anew and say whether metrics.json holds the same
--audit       check that every sample is there once, every answer is what its text says, and the calls add up

Exit status: 0 done, 1 no run, or one of its files is damaged (one line names each), 2 --recompute found other numbers,
or --audit a fault.
"""


@unfailing_output()
def bench(words: Sequence[str], program: Sequence[str] = ("rambla-ray", "bench")) -> int:
    """Run the command line of a benchmark; returns the exit status, which `BENCH_HELP` explains.

    Args:
        words: what stands behind the program's name: `key=value`, or a request for help.
        program: the words that start this command, for the help and for the commands that the user is shown.
    """
    if any(word in HELP_WORDS for word in words):
        print(BENCH_HELP.format(program=" ".join(program)))
        return ExitStatus.DONE
    from rambla_ray.run.interruption import Interruption

    with Interruption("interrupted before anything was asked") as interruption:
        return status_of(lambda: _bench(words, program, interruption), interruption)


def _bench(words: Sequence[str], program: Sequence[str], interruption: Interruption) -> int:
    from rambla_ray.run.invocation import invoke

    return invoke(words, program, interruption)


def status_of(command: Callable[[], int], interruption: Interruption) -> int:
    """The exit status of a command, or of what is printed in its place: one line that says why it could not be run."""
    try:
        from rambla_ray.errors import UserError
    except ModuleNotFoundError as error:
        where = "activate the environment that has it (for a job: where ray starts)"
        print_error(f"{sys.executable} has no module {error.name}; {where}")
        return ExitStatus.REFUSED
    try:
        return command()
    except UserError as error:
        print_error(str(error))
        return ExitStatus.REFUSED
    except KeyboardInterrupt:  # It came after `hand_over`, and not while anything was asked.
        print(interruption.line, file=sys.stderr)
        return ExitStatus.INTERRUPTED


@unfailing_output()
def report(words: Sequence[str], program: Sequence[str] = ("rambla-ray", "report")) -> int:
    """Run the command line of a report; returns the exit status, which `REPORT_HELP` explains.

    Args:
        words: what stands behind the program's name: a run directory and flags.
        program: the words that start this command, for the help.
    """
    if any(word in HELP_WORDS for word in words):
        print(REPORT_HELP.format(program=" ".join(program)))
        return ExitStatus.DONE
    flags, places = [w for w in words if w.startswith("-")], [w for w in words if not w.startswith("-")]
    if fault := _fault_of_report(flags, places):
        print(REPORT_HELP.format(program=" ".join(program)))
        print_error(fault)
        return ExitStatus.REFUSED
    from rambla_ray.run.interruption import Interruption

    with Interruption("interrupted") as interruption:
        return status_of(lambda: _report(places[0], flags), interruption)


def _report(place: str, flags: Sequence[str]) -> int:
    """Print a run, check what the flags ask for, and name what is damaged. Raises UserError."""
    from rambla_ray.config.words import as_typed
    from rambla_ray.results import report
    from rambla_ray.results.audit import audit, recompute
    from rambla_ray.results.damage import faults, missing
    from rambla_ray.results.directory import RunDirectory
    from rambla_ray.results.listing import runs_in, table_of
    from rambla_ray.results.tables import console_on
    from rambla_ray.storage import Folder

    directory = RunDirectory(Folder(as_typed(place)))
    if not flags and not directory.folder.has("config.yaml") and (runs := runs_in(directory.folder)):
        console_on(sys.stdout).print(table_of(runs))
        return ExitStatus.DONE
    report.print_run(directory, console_on(sys.stdout), details=True)
    holds = True
    if "--recompute" in flags:
        check = recompute(directory)
        print(check.line)
        holds = holds and check.holds
    if "--audit" in flags:
        checks = audit(directory)
        print(*checks, sep="\n")
        holds = holds and all(check.holds for check in checks)
    if lacking := missing(directory):
        print_error(f"{directory.folder.location} has no {', '.join(lacking)}", "note")
    damaged = list(faults(directory))
    for line in damaged:
        print_error(line)
    return DIFFERS if not holds else ExitStatus.REFUSED if damaged else ExitStatus.DONE


def _fault_of_report(flags: Sequence[str], places: Sequence[str]) -> str:
    """What is wrong with the words of a report; empty where nothing is."""
    unknown = next((flag for flag in flags if flag not in REPORT_FLAGS), None)
    if unknown is not None:
        from rambla_ray.errors import choose_from

        return f"no flag '{one_line(unknown, SHOWN_CHARACTERS)}'; {choose_from(unknown, REPORT_FLAGS)}"
    return "" if len(places) == 1 else f"a report is of one run directory, and not of {len(places)}"
