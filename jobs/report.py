"""Show a run again, from its directory alone: python jobs/report.py RUN_DIRECTORY [--recompute] [--audit]

--recompute   score samples/ anew and say whether metrics.json holds the same
--audit       check that every sample is there once, every answer is what its text says, and the calls add up
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 not a run, 2 the numbers differ or do not add up."""
    flags, places = [w for w in words if w.startswith("-")], [w for w in words if not w.startswith("-")]
    if len(places) != 1 or any(flag not in ("-h", "--help", "--recompute", "--audit") for flag in flags):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(flags) else 1
    from rambla_ray.errors import UserError
    from rambla_ray.results import report
    from rambla_ray.results.audit import audit
    from rambla_ray.results.directory import RunDirectory, to_json
    from rambla_ray.storage import Folder

    directory = RunDirectory(Folder(places[0]))
    try:
        report.print_run(directory, report.console_on(sys.stdout), details=True)
        holds = True
        if "--recompute" in flags:
            same = to_json(directory.score()) == directory.folder.read("metrics.json")
            print(f"metrics.json {'equals' if same else 'DIFFERS FROM'} what samples/ give")
            holds = holds and same
        if "--audit" in flags:
            checks = audit(directory)
            print(*checks, sep="\n")
            holds = holds and all(check.holds for check in checks)
        return 0 if holds else 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
