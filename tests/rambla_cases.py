"""The recorded cases of the original RAmBLA in data/rambla_cases, whose README says where they are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "data/rambla_cases"


def recorded(name: str) -> Any:
    """The cases of one file, by its name without the ending."""
    cases = json.loads((FOLDER / f"{name}.json").read_text())
    assert cases
    return cases
