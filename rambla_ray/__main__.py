"""rambla_ray: how far a language model can be relied on as a biomedical assistant.

  rambla-ray bench  [key=value ...]   benchmark models
  rambla-ray report RUN_DIRECTORY     show a run again
  rambla-ray compare RUN RUN [...]    compare the models of runs
  rambla-ray serve  [key=value ...]   serve models behind an OpenAI-compatible endpoint
  rambla-ray --version

`rambla-ray COMMAND --help` lists what a command takes. `python -m rambla_ray` is the same as `rambla-ray`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import rambla_ray
from rambla_ray.display import SHOWN_CHARACTERS, one_line, print_error, unfailing_output
from rambla_ray.errors import choose_from
from rambla_ray.run.command import bench, report
from rambla_ray.run.comparing import compare
from rambla_ray.run.status import ExitStatus
from rambla_ray.serving.command import serve

COMMANDS: Mapping[str, Callable[[Sequence[str], Sequence[str]], int]] = {
    "bench": bench,
    "report": report,
    "compare": compare,
    "serve": serve,
}


@unfailing_output()
def main(words: Sequence[str] | None = None, program: Sequence[str] = ("rambla-ray",)) -> int:
    """Run the command line; returns the exit status.

    Args:
        words: the command and its words; those of this process when None.
        program: the words that start this program, for the help and for the commands that the user is shown.
    """
    command, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(__doc__)
        return ExitStatus.DONE
    if command == "--version":
        print(f"rambla_ray {rambla_ray.__version__}")
        return ExitStatus.DONE
    if command not in COMMANDS:
        print_error(f"no command '{one_line(command, SHOWN_CHARACTERS)}'; {choose_from(command, COMMANDS)}")
        return ExitStatus.REFUSED
    return COMMANDS[command](rest, (*program, command))


if __name__ == "__main__":
    sys.exit(main(program=("python", "-m", "rambla_ray")))
