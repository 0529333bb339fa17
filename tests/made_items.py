"""Items made up for tests, in the format of PubMedQA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def item(question: str, decision: str = "yes", context: str = "A finding.") -> dict[str, object]:
    return {
        "QUESTION": question,
        "CONTEXTS": [context],
        "LABELS": ["RESULTS"],
        "MESHES": [],
        "final_decision": decision,
        "LONG_ANSWER": "So it is.",
    }


def write_items(folder: Path, items: Mapping[str, Mapping[str, object]]) -> str:
    """Write a file of items, by id; returns the word of a command line that names it."""
    path = folder / "items.json"
    path.write_text(json.dumps(items))
    return f"task.dataset.path={path}"
