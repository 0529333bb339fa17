"""Serve models behind an OpenAI-compatible endpoint, from a checkout; `python jobs/serve.py --help` lists the keys.

It is `rambla-ray serve` for whoever has not installed the package: a Ray job that uploads the checkout, a first try.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.serving.command import serve


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    return serve(words, program=("python", "jobs/serve.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
