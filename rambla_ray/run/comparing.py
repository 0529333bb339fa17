"""The command line that compares models of several runs, offline, from their samples alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rambla_ray.display import SHOWN_CHARACTERS, one_line, print_error, unfailing_output
from rambla_ray.run.command import HELP_WORDS, status_of
from rambla_ray.run.status import ExitStatus

if TYPE_CHECKING:
    from rambla_ray.results.rivals import Rival

COMPARE_HELP = """\
Compare the models of runs, from their directories alone: {program} RUN RUN [RUN ...] [flags]

Each model of the first run is compared with its namesakes in the others, or where it has none with all their models,
on the samples that were scored of both (same task, variant and item).

--baseline MODEL   compare all others with this one: a model's name, or RUN/MODEL where several runs have it
--gate GATE        what must hold of each comparison, as a change in shares against the baseline; may come several
                   times: accuracy>=-0.02  accuracy.low>-0.05  coverage>=-0.01  p<0.05  negation:accuracy>=0
--other-data       compare runs although items of the same id differ

Exit status: 0 done, 1 nothing to compare (one line says why), 3 a gate is not met.
"""
_VALUED = ("--baseline", "--gate")
_PLAIN = ("--other-data",)


@dataclass(frozen=True, slots=True)
class _Words:
    """What stands behind the program's name, sorted out."""

    places: tuple[str, ...]
    baseline: str | None
    gates: tuple[str, ...]
    other_data: bool

    @classmethod
    def read(cls, words: Sequence[str]) -> _Words:
        """Raises UserError."""
        from rambla_ray.errors import UserError, choose_from

        places: list[str] = []
        flags: list[tuple[str, str]] = []
        left = list(words)
        while left:
            word, equals, value = left.pop(0).partition("=") if left[0].startswith("--") else (left.pop(0), "", "")
            if not word.startswith("-"):
                places.append(word)
                continue
            if word not in (*_VALUED, *_PLAIN):
                shown = one_line(word, SHOWN_CHARACTERS)
                raise UserError(f"no flag '{shown}'; {choose_from(word, (*_VALUED, *_PLAIN))}")
            if word in _VALUED and not equals:
                if not left:
                    raise UserError(f"{word} needs a value; see --help")
                value = left.pop(0)
            flags.append((word, value))
        if len(places) < 2:
            raise UserError(f"a comparison is of two runs or more, and not of {len(places)}; see --help")
        baselines = [value for flag, value in flags if flag == "--baseline"]
        gates = tuple(value for flag, value in flags if flag == "--gate")
        return cls(tuple(places), baselines[-1] if baselines else None, gates, ("--other-data", "") in flags)


@unfailing_output()
def compare(words: Sequence[str], program: Sequence[str] = ("rambla-ray", "compare")) -> int:
    """Run the command line of a comparison; returns the exit status, which `COMPARE_HELP` explains.

    Args:
        words: what stands behind the program's name: run directories and flags.
        program: the words that start this command, for the help.
    """
    if any(word in HELP_WORDS for word in words):
        print(COMPARE_HELP.format(program=" ".join(program)))
        return ExitStatus.DONE
    from rambla_ray.run.interruption import Interruption

    with Interruption("interrupted") as interruption:
        return status_of(lambda: _compare(_Words.read(words)), interruption)


def _compare(words: _Words) -> int:
    """Print the comparisons, the ranking, and what the gates say. Raises UserError."""
    from rambla_ray.results import verdicts
    from rambla_ray.results.gates import Gate
    from rambla_ray.results.rivals import Contest
    from rambla_ray.results.settled import ending_notes
    from rambla_ray.results.tables import console_on, print_line

    gates = [Gate.parse(text) for text in words.gates]
    contest = Contest(_rivals(words.places), words.baseline)
    contest.check_labels()
    if not words.other_data:
        contest.check_items()
    scores = {"comparisons": contest.comparisons()}
    failures = [line for gate in gates for line in gate.failures(scores["comparisons"])]
    console = console_on(sys.stdout)
    if table := verdicts.comparisons_table(scores):
        console.print(table)
    for line in verdicts.lines(scores):
        print_line(console, line)
    console.print(verdicts.ranking_table(contest.ranking()))
    specs = {rival.directory.folder.name: rival.spec for rival in contest.rivals}
    for line in ending_notes(specs):
        print_line(console, f"note: {line}")
    for line in (*contest.unmatched(), *verdicts.warnings(scores)):
        print_line(console, f"warning: {line}")
    for line in failures:
        print_error(line)
    return ExitStatus.GATE_FAILED if failures else ExitStatus.DONE


def _rivals(places: Sequence[str]) -> list[Rival]:
    from rambla_ray.config.words import as_typed
    from rambla_ray.errors import UserError
    from rambla_ray.results.directory import RunDirectory
    from rambla_ray.results.rivals import rivals_of
    from rambla_ray.storage import Folder

    directories = [RunDirectory(Folder(as_typed(place))) for place in places]
    locations = Counter(directory.folder.location for directory in directories)
    if twice := [location for location, count in locations.items() if count > 1]:
        raise UserError(f"{twice[0]} is named {locations[twice[0]]} times; name each run once")
    return rivals_of(directories)
