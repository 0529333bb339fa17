"""Compare the models of runs, from a checkout; `python jobs/compare.py --help` lists the flags.

It is `rambla-ray compare` for whoever has not installed the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.run.comparing import compare


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    return compare(words, program=("python", "jobs/compare.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
