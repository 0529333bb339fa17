"""The pools of a run's streams as plan.json has them: who they are, what they are asked, what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rambla_ray.config.run import RunConfig
from rambla_ray.ledger.look import Look
from rambla_ray.results.earlier_speed import Speed, earlier_speed
from rambla_ray.run.expected import Forecast
from rambla_ray.run.placement import Level
from rambla_ray.run.promised import Samples, promised_calls
from rambla_ray.schema import Role
from rambla_ray.tasks.reader import ReaderStage


def described_streams(
    config: RunConfig,
    streams: Mapping[str, tuple[Sequence[Level], Samples]],
    readers: Mapping[str, ReaderStage | None],
) -> dict[str, list[dict[str, Any]]]:
    """By target, its pools as JSON values; see docs/run_directory.md.

    Args:
        config: the run.
        streams: by target, its pools and its samples.
        readers: by task, what asks the reader; None where nobody does.
    """
    names = {level.name for levels, _ in streams.values() for level in levels}
    look = Look.at(config.ledger, names)
    calls = promised_calls(streams, config.tasks, readers, look)
    speeds: dict[tuple[str, bool], Speed | None] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    for target, (levels, _) in streams.items():
        forecast = Forecast(levels, calls[target], look)
        described[target] = []
        for place, level in enumerate(levels):
            key = level.name, Role.TARGET in level.roles
            if level.config.params.is_local and key not in speeds:
                speeds[key] = earlier_speed(config.options.runs_dir, level.names.key, _stored_params(config, level))
            described[target].append({**_who(level), **forecast.describe(place, speeds.get(key))})
    return described


def _stored_params(config: RunConfig, level: Level) -> Mapping[str, Any]:
    """The params of a pool's model as config.yaml has them."""
    stored = config.stored()
    if Role.TARGET in level.roles:
        return dict(stored["targets"][level.name]["params"])
    role = stored["roles"][level.roles[0]]
    players = (role, *role.get("others", ()))
    return dict(next(player["config"]["params"] for player in players if player["config_name"] == level.name))


def _who(level: Level) -> dict[str, Any]:
    return {
        "model": level.name,
        "label": level.names.label,
        "kind": level.config.name,
        "is_local": level.config.params.is_local,
        "roles": list(level.roles),
        **({"shared_with": [other.names.label for other in level.kin]} if level.kin else {}),
    }
