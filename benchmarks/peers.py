"""The virtual environment of the peers that are no dependencies of the project."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from command import REPOSITORY

PEERS = ("lm_eval[api]",)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Failed(Exception):
    """A runner did not do its job; the message says why in a line."""


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' virtual environment, which is made on first use. Raises Failed."""
    constraints = REPOSITORY / "constraints.txt"
    wanted = hashlib.sha256(f"{PEERS} {constraints.read_text(encoding='utf-8')}".encode()).hexdigest()[:16]
    python, installed = folder / "bin" / "python", folder / f"installed-{wanted}"
    if installed.exists():
        return python
    print(f"installing {', '.join(PEERS)} into {folder}, once", flush=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints, *PEERS],
    ):
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
        if done.returncode:
            raise Failed(f"the peers cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1][:160]}")
    installed.touch()
    return python


def default_peers() -> Path:
    """Where the peers are installed unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "rambla_ray" / "peers"
