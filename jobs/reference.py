"""Write docs/models.md of a checkout anew, from what the code says of every key of a model config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from rambla_ray.run.status import ExitStatus

PAGE = REPO / "docs" / "models.md"
HELP = """\
Write docs/models.md anew: python jobs/reference.py

What stands above the mark in it stays; the tables below come from the params of every kind of model.
"""


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    if words:
        print(HELP)
        return ExitStatus.DONE if set(words) <= {"-h", "--help", "help"} else ExitStatus.REFUSED
    from rambla_ray.run.reference import renewed

    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
