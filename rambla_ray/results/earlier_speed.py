"""How fast a local model was in earlier runs, from their config.yaml and calls.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rambla_ray.errors import UserError
from rambla_ray.results.documents import read_plain
from rambla_ray.storage import Folder

MOST_RUNS = 20  # So many runs of a folder are looked at, the latest first.


@dataclass(frozen=True, slots=True)
class Speed:
    """What one actor took in an earlier run: seconds for a request while it was busy, and for loading."""

    request_s: float
    load_s: float


def earlier_speed(runs_dir: str, name: str, params: Mapping[str, Any]) -> Speed | None:
    """The speed of a model in the latest run that computed with it; None where there is none on a local disk.

    Args:
        runs_dir: where runs are kept.
        name: the model config's.
        params: its params, as config.yaml stores them; those of the run are the same.
    """
    for run in _latest(runs_dir):
        try:
            if (speed := _speed_in(run, name, params)) is not None:
                return speed
        except (UserError, LookupError, TypeError, ValueError, AttributeError):  # Its own report says what is damaged.
            continue
    return None


def _latest(runs_dir: str) -> Iterator[Folder]:
    """The latest runs of a folder whose calls were counted."""
    if "://" in runs_dir:
        return
    folder = Folder(runs_dir)
    ended: list[tuple[float, str]] = []
    try:
        with os.scandir(os.fsdecode(folder.local_path(""))) as entries:
            for entry in entries:
                calls = os.path.join(entry.path, "calls.json")
                if entry.is_dir() and os.path.isfile(calls):
                    ended.append((os.stat(calls).st_mtime, entry.name))
    except OSError:
        return
    for _, name in sorted(ended, reverse=True)[:MOST_RUNS]:
        yield Folder(folder.child(name))


def _speed_in(run: Folder, name: str, params: Mapping[str, Any]) -> Speed | None:
    """The speed in the last invocation of a run that computed with the model."""
    calls = read_plain(run, "calls.json") or {}
    worked = [work for one in calls["invocations"] if (work := one.get("local", {}).get(name, {})).get("requests")]
    if not worked or params not in list(_params_of(read_plain(run, "config.yaml") or {}, name)):
        return None
    return Speed(worked[-1]["busy_s"] / worked[-1]["requests"], worked[-1]["load_s"])


def _params_of(config: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The params of that name in a run, as a target or in another role."""
    question = config["question"]
    if name in question["targets"]:
        yield question["targets"][name]["params"]
    for role in question["roles"].values():
        for player in (role, *role.get("others", ())):
            if player["config_name"] == name:
                yield player["config"]["params"]
