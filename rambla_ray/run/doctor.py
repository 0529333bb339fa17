"""The doctor: whether a run will find on every node what it needs. No model is asked anything.

Each check is one line that holds or not, with what to do about it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rambla_ray.config.key_command import LONGEST_S
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.run import RunConfig
from rambla_ray.display import Check, counted
from rambla_ray.errors import UserError
from rambla_ray.results.versions import versions
from rambla_ray.run.capacity import NodeResources
from rambla_ray.run.cluster import connected_cluster, node_resources
from rambla_ray.run.placement import (
    Cluster,
    Level,
    levels_of,
    waiting_reason,
)
from rambla_ray.run.plan import Plan
from rambla_ray.run.pool_resources import actor_resources, describe_resources
from rambla_ray.run.streams import streams_of
from rambla_ray.storage import Folder

GIB = 1024**3
ROOM_GIB = 1.0  # So much is to be free on each node, for Ray's objects and logs, and for what a run writes.
LOOK_S = LONGEST_S + 20.0  # A node may take so long to look at itself, where a command may have to give a key.
LONGEST_LIST = 3  # A line names so many nodes.


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node found when it looked at itself."""

    node_id: str
    name: str
    has: NodeResources
    versions: Mapping[str, str | None]
    free_gib: float
    faults: Mapping[str, str]  # By model, the reason why it could not run on this node.


def diagnose(config: RunConfig) -> Iterator[Check]:
    """All eight checks of a run on the connected cluster, as they are made."""
    cluster = connected_cluster()
    models = models_of(config, cluster)
    nodes, silent = look(models)
    yield from check_nodes(models, nodes, silent)
    yield _data(config)
    yield _output(config)
    yield _endpoints(models, nodes)
    yield placement(config, cluster)


def faulty_nodes(config: RunConfig) -> list[Check]:
    """The checks of the nodes that do not hold, on the connected cluster."""
    models = models_of(config, connected_cluster())
    return [check for check in check_nodes(models, *look(models)) if not check.holds]


def check_nodes(models: Mapping[str, Level], nodes: list[NodeReport], silent: Mapping[str, str]) -> Iterator[Check]:
    """The checks of what the nodes found: versions, keys, models, room."""
    yield _versions(nodes, silent)
    yield _keys([level for level in models.values() if not level.config.params.is_local], nodes)
    yield _models([level for level in models.values() if level.config.params.is_local], nodes)
    short = [f"{node.name} has {node.free_gib:.1f} GiB" for node in nodes if node.free_gib < ROOM_GIB]
    least = min((node.free_gib for node in nodes), default=0.0)
    yield Check(
        f"room: {_some(short)}; free {ROOM_GIB:g} GiB where Ray's temporary files are"
        if short
        else f"room: at least {least:.0f} GiB free on each node",
        not short,
    )


def look(models: Mapping[str, Level]) -> tuple[list[NodeReport], dict[str, str]]:
    """What each node finds, and by address why others send no report."""
    configs = {name: level.config for name, level in models.items()}
    task = ray.remote(_look_around)
    reports = {
        task.options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node_id)).remote(
            node_id, node["NodeManagerAddress"], node_resources(node["Resources"]), configs
        ): (node_id, node["NodeManagerAddress"])
        for node_id, node in _alive().items()
    }
    ray.wait(list(reports), num_returns=len(reports), timeout=LOOK_S)
    nodes, silent, alive = [], {}, _alive()
    for report, (node_id, address) in reports.items():
        try:
            nodes.append(ray.get(report, timeout=0))
        except RayError as error:
            if node_id not in alive:  # The node had died, which Ray notices some seconds later.
                continue
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            silent[address] = reason[:160]
    return nodes, silent


def _alive() -> dict[str, Any]:
    """What Ray says of each node that it believes alive."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _look_around(node_id: str, address: str, has: NodeResources, configs: Mapping[str, ModelConfig]) -> NodeReport:
    """Runs on each node."""
    faults = {}
    for name, config in configs.items():
        try:
            config.preflight(same_machine=True)
        except UserError as error:
            faults[name] = str(error)
    free = shutil.disk_usage(tempfile.gettempdir()).free / GIB
    return NodeReport(node_id, f"{socket.gethostname()} ({address})", has, versions(), free, faults)


def models_of(config: RunConfig, cluster: Cluster) -> dict[str, Level]:
    """Every model config of a run by its name, settled where the cluster can hold its pool.

    One that was overridden for the target is not that of the same name in a role: the second is named with its role.
    """
    models: dict[str, Level] = {}
    for level in (level for target in config.targets for level in levels_of(config, target)):
        with contextlib.suppress(UserError):  # The check of the placement reports it.
            level = level.settled(cluster)
        if any(level.config == other.config for other in models.values()):
            continue
        name = f"{level.name} as {', '.join(level.roles)}" if level.name in models else level.name
        models[name] = replace(level, name=name)
    return models


def _some(parts: list[str]) -> str:
    more = len(parts) - LONGEST_LIST
    return "; ".join(parts[:LONGEST_LIST]) + (f"; and {more} more" if more > 0 else "")


def _versions(nodes: list[NodeReport], silent: Mapping[str, str]) -> Check:
    if silent:
        unable = [f"{address} cannot run our code: {reason}" for address, reason in silent.items()]
        return Check(f"versions: {_some(unable)}; install the package there, or submit it with --working-dir", False)
    ours = versions()
    differ = [
        f"{node.name} has {package} {node.versions.get(package) or 'not'}, here it is {version or 'not there'}"
        for node in nodes
        for package, version in ours.items()
        if node.versions.get(package) != version
    ]
    if differ:
        return Check(f"versions: {_some(differ)}; install the same on every node", False)
    where = counted(len(nodes), "node")
    return Check(f"versions: Python {ours['python']}, Ray {ours['ray']}, the same packages on {where}", True)


def _keys(levels: list[Level], nodes: list[NodeReport]) -> Check:
    """The keys of models behind endpoints, which may be called from any node."""
    commands = [level for level in levels if level.config.params.has_key_command]
    if fault := _faults([level for level in levels if level not in commands], nodes):
        return Check(f"keys: {fault}; set it in the environment that Ray is started in on that node", False)
    if fault := _faults(commands, nodes):
        return Check(f"keys: {fault}", False)
    where = counted(len(nodes), "node")
    variables = sorted({variable for level in levels if (variable := level.config.params.key_variable)})
    parts = [f"{', '.join(variables)} set on {where}"] if variables else []
    parts += [f"api_key_command gives {level.name} a token on {where}" for level in commands]
    return Check(f"keys: {_some(parts) or 'none needed'}", True)


def _models(levels: list[Level], nodes: list[NodeReport]) -> Check:
    """The files of local models, on the nodes that have what an actor takes."""
    if not levels:
        return Check("models: none needed", True)
    faults, later = [], []
    for level in levels:
        able = [node for node in nodes if node.has.holds(actor_resources(level.pool))]
        if fault := _faults([level], able):
            faults.append(fault)
        if not able:
            later.append(level.name)
    if faults:
        return Check(f"models: {_some(faults)}; put it on every node that may run it", False)
    loadable = [level.name for level in levels if level.name not in later]
    parts = [f"{', '.join(loadable)} can be loaded"] if loadable else []
    parts += [f"{', '.join(later)} not looked for, as no node that could run it is there yet"] if later else []
    return Check(f"models: {'; '.join(parts)}", True)


def _faults(levels: list[Level], nodes: list[NodeReport]) -> str:
    """Why models could not run on nodes, and on which; empty when all could."""
    by_fault: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        for level in levels:
            if level.name in node.faults:
                by_fault.setdefault((level.name, node.faults[level.name]), []).append(node.name)
    return _some([f"model {name} on {_some(where)}: {fault}" for (name, fault), where in by_fault.items()])


def _data(config: RunConfig) -> Check:
    """The samples of the run, which are read here as the run reads them."""
    try:
        plan = Plan(config)
    except UserError as error:
        return Check(f"data: {error}", False)
    counts: Counter[str] = Counter()
    for (task, _), samples in plan.expected.items():
        counts[task] += samples
    tasks = [f"{task} {samples}" for task, samples in counts.items()]
    listed = f" in {len(tasks)} tasks" if len(tasks) > LONGEST_LIST else f" ({', '.join(tasks)})"
    source = ", of the synthetic demo set" if config.synthetic else ""
    return Check(f"data: {counted(counts.total(), 'sample')} for each target{listed}{source}", True)


def _output(config: RunConfig) -> Check:
    try:
        Folder(config.options.runs_dir, config.options.modes).make_writable("runs_dir")
        Folder(config.ledger, config.options.modes).make_writable("ledger")
    except UserError as error:
        return Check(f"output: {error}; choose another place", False)
    return Check(f"output: {config.options.runs_dir} and {config.ledger} can be written", True)


def _endpoints(models: Mapping[str, Level], nodes: list[NodeReport]) -> Check:
    """One question to each endpoint, from a node where its model could run."""
    pings, unasked = {}, []
    for name, level in models.items():
        endpoint = level.config.params.endpoint
        able = [node for node in nodes if name not in node.faults]
        if not endpoint or endpoint in pings:
            continue
        if not able:
            unasked.append(f"{endpoint} was not asked: no node has what {name} needs")
            continue
        ping = ray.remote(_ping).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(able[-1].node_id))
        pings[endpoint] = ping.remote(level.config)
    if not pings and not unasked:
        return Check("endpoints: none to ask", True)
    answers, all_answer = [], True
    for endpoint, ping in pings.items():
        try:
            answer, is_good = ray.get(ping, timeout=LOOK_S)
        except (RayError, TimeoutError) as error:
            answer, is_good = f"cannot be asked: {type(error).__name__}", False
        answers.append(f"{endpoint} {answer}")
        all_answer &= is_good
    return Check(f"endpoints: {_some(answers + unasked)}", not unasked and all_answer)


def _ping(config: ModelConfig) -> tuple[str, bool]:
    """Runs on a node: the endpoint's answer in words, and whether a model could use it."""
    try:
        return config.params.ping(), True
    except UserError as error:
        return str(error), False


def placement(config: RunConfig, cluster: Cluster) -> Check:
    """The arithmetic of CPUs and GPUs."""
    have = f"{counted(len(cluster.nodes), 'node')} with {counted(cluster.cpus, 'CPU')} and "
    have += f"{counted(cluster.gpus, 'GPU')}{', and an autoscaler' if cluster.grows else ''}"
    streams: list[str] = []
    try:
        for placed in streams_of(config, cluster):
            actors = ", ".join(dict.fromkeys(map(_actors, placed.levels)))
            actors += " side by side" if len(placed.branches) > 1 else ""
            streams.append(actors if placed.together else f"{actors}, one after another")
            streams += [waiting for level in placed.levels if (waiting := waiting_reason(level, cluster))]
    except UserError as error:
        return Check(f"placement: {error} (there: {have})", False)
    return Check(f"placement: {have}, for {'; '.join(dict.fromkeys(streams))}", True)


def _actors(level: Level) -> str:
    """How many actors a settled level has, and what one takes."""
    pool = level.pool
    least = f"{pool.min_size} to " if pool.largest > pool.min_size else ""
    each = " each" if pool.largest > 1 else ""
    return f"{level.name} ({least}{counted(pool.largest, 'actor')}, {describe_resources(pool)}{each})"
