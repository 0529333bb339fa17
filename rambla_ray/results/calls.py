"""calls.json: what a run took, over all its invocations. docs/run_directory.md says what each number counts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rambla_ray.config.model import ModelConfig
from rambla_ray.config.run import RunConfig
from rambla_ray.config.sections import Price
from rambla_ray.ledger.spent import Spent
from rambla_ray.results.served import NOBODY, Served, listed
from rambla_ray.schema import Role

COUNTED = tuple(field.name for field in fields(Spent))  # What is counted for each model and role.


def calls_document(
    config: RunConfig,
    spent: Sequence[Mapping[str, Any]],
    answered: Mapping[tuple[str, str], int],
    invocations: Sequence[Mapping[str, Any]],
    served: Mapping[Served, int],
    until: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What calls.json holds.

    Args:
        config: the run.
        spent: per model and role, the ledger's counts of this run over all invocations: `model`, `role` and what
            `ledger.spent.Spent` has.
        answered: per (model, role), the steps that have an answer; those that were not paid for were reused.
        invocations: all of the run, as `invocation` makes them; the last one is the present one.
        served: by who served them, the answered steps whose replies named it.
        until: of a run that may end early, what it saved.
    """
    entries = {(model, role): {"model": model, "role": role} for model, role in answered}
    entries |= {(entry["model"], entry["role"]): dict(entry) for entry in spent}
    models = []
    for (model, role), entry in sorted(entries.items()):
        counts: dict[str, Any] = {**dict.fromkeys(COUNTED, 0), **entry}
        price = _config_of(config, model, role).price
        counts["reused"] = max(0, answered.get((model, role), 0) - counts["answered"])
        counts["cost_usd"] = _cost(price, counts) if price else None
        counts["served"] = _served(model, role, answered, served)
        models.append(counts)
    return {
        "models": models,
        **({"until": dict(until)} if until else {}),
        "invocations": list(invocations),
        "wall_s": sum(invocation["wall_s"] for invocation in invocations),
    }


def _cost(price: Price, counts: Mapping[str, Any]) -> float:
    """US dollars for what was counted."""
    spent = Spent(**{name: counts[name] for name in COUNTED})
    return price.total(spent.tokens_outside_batches, spent.tokens_in_batches)


def _served(
    model: str, role: str, answered: Mapping[tuple[str, str], int], served: Mapping[Served, int]
) -> list[dict[str, Any]]:
    """Who served a model's answers in a role: those of which nobody was named, too, where others were."""
    counts = [(by.names, count) for by, count in served.items() if (by.config, by.role) == (model, role)]
    unnamed = answered.get((model, role), 0) - sum(count for _, count in counts)
    return listed([*counts, (NOBODY, unnamed)] if unnamed > 0 else counts)


def _config_of(config: RunConfig, name: str, role: str) -> ModelConfig:
    """The config of a model that takes part in a role."""
    if role == Role.TARGET:
        return config.targets[name]
    return next(player.config for player in config.roles[Role(role)].members if player.config_name == name)


def invocation(
    started: float,
    calls: int,
    local_usage: Mapping[str, Sequence[Mapping[str, float]]],
    lost: Sequence[Mapping[str, str]] = (),
    *,
    finished: bool,
) -> dict[str, Any]:
    """The entry of one invocation among calls.json's `invocations`; its wall time ends now.

    Args:
        started: Unix time in seconds.
        calls: how many were sent.
        local_usage: by local model, what each of its actors has done, as `throughput` takes it.
        lost: model, role and request_id of what was asked while the ledger could not be written.
        finished: whether the run is complete.
    """
    local = {model: throughput(actors) for model, actors in sorted(local_usage.items())}
    return {
        **({"local": local} if local else {}),
        **({"lost": list(lost)} if lost else {}),
        "started": started,
        "wall_s": round(time.time() - started, 3),
        "calls": calls,
        "finished": finished,
    }


def throughput(actors: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the actors of a local model have done together.

    Tokens per second are those of one actor while it is busy; padding and what rows share are not counted.

    Args:
        actors: at least one; of each the fields of `actors.local.usage.LocalUsage`.
    """
    total = {key: sum(actor[key] for actor in actors) for key in actors[0]}
    computed, busy, idle = total["computed_tokens"], total["busy_s"], total["idle_s"]
    return {
        "actors": len(actors),
        "batches": total["batches"],
        "requests": total["requests"],
        "requests_per_batch": _ratio(total["requests"], total["batches"]),
        "prompt_tokens_per_s": _ratio(total["prompt_tokens"], busy),
        "generated_tokens_per_s": _ratio(total["completion_tokens"], busy),
        "padding_share": _ratio(total["padding_tokens"], computed),
        "shared_share": _ratio(total["prompt_tokens"] - computed + total["padding_tokens"], total["prompt_tokens"]),
        "waiting_share": _ratio(idle, busy + idle),
        "out_of_memory": total["out_of_memory"],
        "busy_s": round(busy, 3),
        "load_s": round(max(actor["load_s"] for actor in actors), 3),
        **{
            f"{memory}_gib": round(max(actor[f"{memory}_bytes"] for actor in actors) / 2**30, 3)
            for memory in ("weights", "free", "peak")
        },
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
