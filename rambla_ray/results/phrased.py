"""What several phrasings of a task's prompt say, as people read it: a line for each model and task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def phrasing_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """For each task that was asked in several phrasings: its mean, how far the phrasings are apart, and how often the
    answer is the same under all of them."""
    for effect in scores.get("effects", ()):
        found = effect.get("phrasings")
        if not found or not found["accuracy"]:
            continue
        low, high = (100 * bound for bound in found["accuracy"]["ci95"])
        mean, sd, same = (
            100 * share for share in (found["accuracy"]["value"], found["sd"], found["same_answer"]["value"])
        )
        lowest, highest = (
            f"{100 * one['value']:.1f} ({one['variant']})" for one in (found["lowest"], found["highest"])
        )
        where, interval = f"{effect['model']} {effect['task']}", f"{low:.1f} to {high:.1f}"
        yield (
            f"{where}: {mean:.1f} % ({interval}) over {found['of']} phrasings, "
            f"{lowest} to {highest}, standard deviation {sd:.1f}; the same answer to {same:.1f} % of the {found['n']} "
            "that were scored under all"
        )
