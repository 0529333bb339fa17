"""The preflight: whether a run will find on every node what it needs. Nothing is asked of a model.

Each check is one line that holds or not, with what to do about it.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rambla_ray.audit import Check
from rambla_ray.cluster import cluster
from rambla_ray.config import ModelConfig, RunConfig
from rambla_ray.errors import UserError
from rambla_ray.plan import Cluster, Level, Plan, levels_of, run_together, said, settle_pool, waits_for
from rambla_ray.registry import model_class
from rambla_ray.results import versions
from rambla_ray.storage import Folder

GIB = 1024**3
ROOM_GIB = 1.0  # free on each node, for Ray's objects and logs, and for what a run writes
LOOK_S = 20.0  # how long a node may take to look at itself
LONGEST_LIST = 3  # nodes in one line


@dataclass(frozen=True, slots=True)
class Node:
    """What a node found when it looked at itself."""

    node_id: str
    name: str
    versions: Mapping[str, str | None]
    free_gib: float
    faults: Mapping[str, str]  # by model: why it could not run here


def diagnose(config: RunConfig) -> Iterator[Check]:
    """All eight checks of a run on the connected cluster, as they are made."""
    there = cluster()
    levels = models_of(config)
    nodes, silent = look(levels)
    yield from check_nodes(levels, nodes, silent)
    try:
        plan = Plan(config)
        counts = ", ".join(f"{name} {task['samples']} samples" for name, task in plan.describe()["tasks"].items())
        yield Check(f"data: {counts}{' (synthetic)' if config.synthetic else ''}", True)
    except UserError as error:
        yield Check(f"data: {error}", False)
    yield _output(config)
    yield _endpoints(levels, nodes)
    yield _placement(config, there)


def check_nodes(levels: Mapping[str, Level], nodes: list[Node], silent: Mapping[str, str]) -> Iterator[Check]:
    """What the nodes found: versions, keys, models, room."""
    yield _versions(nodes, silent)
    remote = [name for name, level in levels.items() if not _is_local(level)]
    local = [name for name, level in levels.items() if _is_local(level)]
    yield _found("keys", remote, nodes, "set where calls are made")
    yield _found("models", local, nodes, "there to be loaded")
    short = [f"{node.name} has {node.free_gib:.1f} GiB" for node in nodes if node.free_gib < ROOM_GIB]
    least = min((node.free_gib for node in nodes), default=0.0)
    yield Check(
        f"room: {_some(short)}; free {ROOM_GIB:g} GiB where Ray's temporary files are"
        if short
        else f"room: at least {least:.0f} GiB free on each node",
        not short,
    )


def look(levels: Mapping[str, Level]) -> tuple[list[Node], dict[str, str]]:
    """What each node finds, and why others do not say."""
    configs = {name: level.config for name, level in levels.items()}
    task = ray.remote(_look_around)
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = {
        task.options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node["NodeID"])).remote(
            node["NodeID"], node["NodeManagerAddress"], configs
        ): node["NodeManagerAddress"]
        for node in alive
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)
    nodes, silent = [], {}
    for answer, address in asked.items():
        try:
            nodes.append(ray.get(answer, timeout=0))
        except RayError as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            silent[address] = reason[:160]
    return nodes, silent


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _look_around(node_id: str, address: str, configs: Mapping[str, ModelConfig]) -> Node:
    """Runs on each node."""
    faults = {}
    for name, config in configs.items():
        kind = model_class(config.name, name)
        try:
            kind.preflight(kind.Params.model_validate(config.params), same_machine=True)
        except UserError as error:
            faults[name] = str(error)
    free = shutil.disk_usage(tempfile.gettempdir()).free / GIB
    return Node(node_id, f"{socket.gethostname()} ({address})", versions(), free, faults)


def models_of(config: RunConfig) -> dict[str, Level]:
    """Every model of a run, as the pool it is first used in."""
    return {level.name: level for target in config.targets for level in levels_of(config, target)}


def _is_local(level: Level) -> bool:
    return model_class(level.config.name, level.name).is_local


def _some(parts: list[str]) -> str:
    more = len(parts) - LONGEST_LIST
    return "; ".join(parts[:LONGEST_LIST]) + (f"; and {more} more" if more > 0 else "")


def _versions(nodes: list[Node], silent: Mapping[str, str]) -> Check:
    if silent:
        told = [f"{address} cannot run our code: {reason}" for address, reason in silent.items()]
        return Check(f"versions: {_some(told)}; install the package there, or submit it with --working-dir", False)
    ours = versions()
    differ = [
        f"{node.name} has {package} {node.versions.get(package) or 'not'}, here it is {version or 'not there'}"
        for node in nodes
        for package, version in ours.items()
        if node.versions.get(package) != version
    ]
    if differ:
        return Check(f"versions: {_some(differ)}; install the same on every node", False)
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    return Check(f"versions: Python {ours['python']}, Ray {ours['ray']}, the same packages on {count}", True)


def _found(what: str, names: list[str], nodes: list[Node], where: str) -> Check:
    if not names:
        return Check(f"{what}: none needed", True)
    by_fault: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        for name in names:
            if name in node.faults:
                by_fault.setdefault((name, node.faults[name]), []).append(node.name)
    if not by_fault:
        return Check(f"{what}: of {', '.join(names)} {where}", True)
    told = [f"model {name} on {_some(where)}: {fault}" for (name, fault), where in by_fault.items()]
    return Check(f"{what}: {_some(told)}", False)


def _output(config: RunConfig) -> Check:
    try:
        Folder(config.options.runs_dir).make_writable("runs_dir")
        Folder(config.ledger).make_writable("ledger")
    except UserError as error:
        return Check(f"output: {error}", False)
    return Check(f"output: {config.options.runs_dir} and {config.ledger} can be written", True)


def _endpoints(levels: Mapping[str, Level], nodes: list[Node]) -> Check:
    """One question to each endpoint, from a node where its model could run."""
    answers = {}
    for name, level in levels.items():
        kind = model_class(level.config.name, name)
        endpoint = kind.endpoint(kind.Params.model_validate(level.config.params))
        able = [node for node in nodes if name not in node.faults]
        if endpoint and able and endpoint not in answers:
            ask = ray.remote(_ping).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(able[-1].node_id))
            answers[endpoint] = ask.remote(name, level.config)
    if not answers:
        return Check("endpoints: none to ask", True)
    told = {}
    for endpoint, answer in answers.items():
        try:
            told[endpoint] = ray.get(answer, timeout=LOOK_S)
        except (RayError, TimeoutError) as error:
            told[endpoint] = f"cannot be asked: {type(error).__name__}", False
    words = [f"{endpoint} {said_there}" for endpoint, (said_there, _) in told.items()]
    return Check(f"endpoints: {_some(words)}", all(well for _, well in told.values()))


def _ping(name: str, config: ModelConfig) -> tuple[str, bool]:
    """Runs on a node: what the endpoint says, and whether all is well."""
    kind = model_class(config.name, name)
    try:
        return kind.ping(kind.Params.model_validate(config.params)), True
    except UserError as error:
        return str(error), False


def _placement(config: RunConfig, there: Cluster) -> Check:
    """The arithmetic of CPUs and GPUs."""
    have = f"{len(there.nodes)} nodes with {there.cpus:g} CPUs and {sum(node.gpus for node in there.nodes):g} GPUs"
    told: list[str] = []
    try:
        for target in config.targets:
            levels = [
                Level(one.name, one.config.model_copy(update={"pool": settle_pool(one, there)}), one.roles)
                for one in levels_of(config, target)
            ]
            actors = [f"{level.name} {level.config.pool.min_size} × {said(level.config.pool)}" for level in levels]
            together = len(levels) == 1 or run_together(levels, there)
            told.append(f"{', '.join(actors)}{'' if together else ', one after another'}")
            told += [waiting for level in levels if (waiting := waits_for(level, there))]
    except UserError as error:
        return Check(f"placement: {error} ({have})", False)
    return Check(f"placement: {have} for {'; '.join(dict.fromkeys(told))}", True)
