"""Show a run again, from its directory alone, from a checkout; `python jobs/report.py --help` lists the flags.

It is `rambla-ray report` for whoever has not installed the package: a Ray job that uploads the checkout, a first try.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.run.command import report


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    return report(words, program=("python", "jobs/report.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
