"""A model over several nodes: where its GPUs lie, what becomes of them at the end, and what vLLM is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster as Machines

from rambla_ray.actors.local.several_nodes import check_stages, parallelism
from rambla_ray.config.load import load
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, UserError
from rambla_ray.run.capacity import Demand, NodeResources, fit
from rambla_ray.run.placement import Cluster, PooledModel, run_together, settle_pool, waiting_reason
from rambla_ray.run.pool_resources import bundles_of

REPO = Path(__file__).resolve().parent.parent
RUN_S = 120.0
GPUS = 3  # of each node; an actor over two nodes gets two of each.
TWO = Cluster((NodeResources(8, 8),) * 2)
FOUR = Cluster((NodeResources(8, 8),) * 4)
GROWING = Cluster((NodeResources(1, 0),), grows=True)


def model(**pool: Any) -> PooledModel:
    params = {"model_name": "m", "backend": "vllm"}
    return PooledModel("m", ModelConfig.model_validate({"name": "huggingface_llm", "params": params, "pool": pool}))


# What is refused, and when


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"name": "huggingface_llm", "params": {"model_name": "m"}},
            "backend auto runs on one node; set params.backend",
        ),
        (
            {"name": "huggingface_llm", "params": {"model_name": "m", "backend": "transformers"}},
            "huggingface_llm with backend transformers runs on one node; set params.backend: vllm",
        ),
        ({"name": "mock"}, "mock runs on one node; leave pool.nodes out"),
    ],
)
def test_only_vllm_spreads_a_model_over_several_nodes(config: dict[str, Any], reason: str) -> None:
    ModelConfig.model_validate({**config, "pool": {"num_gpus": 4, "nodes": 1}})
    with pytest.raises(UserError, match=reason):
        ModelConfig.model_validate({**config, "pool": {"num_gpus": 4, "nodes": 2}})


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ({"num_gpus": 7, "nodes": 2}, "nodes 2 needs num_gpus that they share equally; num_gpus is 7"),
        ({"nodes": 2}, "num_gpus is 0"),
        ({"num_gpus": 0.5, "nodes": 2}, "num_gpus is 0.5"),
        ({"num_gpus": 2, "nodes": 4}, "num_gpus is 2"),
    ],
)
def test_nodes_share_their_gpus_equally(pool: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Pool(**pool)


def test_a_pool_says_nothing_of_nodes_unless_it_is_given_them() -> None:
    assert "nodes" not in Pool(num_gpus=2).model_dump()
    assert Pool(num_gpus=2, nodes=2).model_dump()["nodes"] == 2


@pytest.mark.parametrize(
    ("pool", "cluster", "reason"),
    [
        ({"num_gpus": 16, "nodes": 4}, TWO, "asks for 4 nodes with 4 GPUs each, of which the cluster has 2"),
        ({"num_gpus": 18, "nodes": 2}, TWO, "asks for 2 nodes with 9 GPUs each, of which the cluster has 0"),
        ({"num_gpus": 8, "nodes": 2}, Cluster((NodeResources(8, 8),)), "of which the cluster has 1; set pool.nodes"),
        ({"num_gpus": 16, "nodes": 2, "min_size": 2}, TWO, "2 actors, each of 2 nodes with 8 GPUs each, do not fit"),
    ],
)
def test_more_than_the_nodes_have_is_refused(pool: dict[str, Any], cluster: Cluster, reason: str) -> None:
    with pytest.raises(UserError, match=f"^model m: .*{reason}") as refused:
        settle_pool(model(**pool), cluster)
    assert "\n" not in str(refused.value)


def test_an_autoscaler_may_bring_the_nodes() -> None:
    settled = model(num_gpus=16, nodes=2).settled(GROWING)
    assert (settled.pool.num_cpus, settled.pool.num_gpus) == (0, 16)
    assert waiting_reason(settled, GROWING) == (
        "model m waits until there is room for 1 actor of 2 nodes with 8 GPUs each: the cluster's autoscaler brings it"
    )


# What fits


@pytest.mark.parametrize(
    ("gpus", "replicas", "nodes", "of_each", "expected"),
    [
        ([8, 8], 1, 2, 8, True),
        ([16], 1, 2, 8, False),  # Two parts of one actor are on two nodes.
        ([8, 4, 4], 2, 2, 4, True),  # One of each is on the first.
        ([12, 4], 2, 2, 4, False),
        ([12, 4, 4], 2, 2, 4, True),
        ([4, 4, 4], 2, 2, 4, False),
    ],
)
def test_actors_over_several_nodes_fit(
    gpus: list[int], replicas: int, nodes: int, of_each: int, expected: bool
) -> None:
    pool = Pool(min_size=replicas, num_gpus=nodes * of_each, nodes=nodes)
    assert Cluster(tuple(NodeResources(1, count) for count in gpus)).holds([pool]) == expected


def test_the_largest_parts_are_placed_first() -> None:
    nodes = [NodeResources(1, 8), NodeResources(1, 8)]
    small, spread = Demand(NodeResources(0, 1), 4), Demand(NodeResources(0, 6), 2, most_on_a_node=1)
    assert fit([small, spread], nodes)
    assert not fit([small, spread, Demand(NodeResources(0, 1), 1)], nodes)


def test_pools_that_do_not_fit_beside_it_run_one_after_another() -> None:
    spread, judge = model(num_gpus=16, nodes=2), model(num_gpus=1)
    assert not run_together([spread, judge], TWO)
    assert run_together([spread, judge], FOUR)


# What vLLM is told


def test_each_gpu_is_a_bundle_that_has_its_share_of_the_cpus() -> None:
    assert bundles_of(Pool(num_gpus=4, nodes=2)) == [{"GPU": 1.0}] * 4
    assert bundles_of(Pool(num_gpus=4, nodes=2, num_cpus=2)) == [{"GPU": 1.0, "CPU": 0.5}] * 4


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ({}, {"tensor_parallel_size": 1, "distributed_executor_backend": None}),
        ({"num_gpus": 0.5}, {"tensor_parallel_size": 1, "distributed_executor_backend": None}),
        ({"num_gpus": 4}, {"tensor_parallel_size": 4, "distributed_executor_backend": "mp"}),
        ({"num_gpus": 4, "nodes": 1}, {"tensor_parallel_size": 4, "distributed_executor_backend": "mp"}),
        (
            {"num_gpus": 16, "nodes": 2},
            {"tensor_parallel_size": 8, "pipeline_parallel_size": 2, "distributed_executor_backend": "ray"},
        ),
    ],
)
def test_layers_are_split_within_a_node_and_shared_out_among_nodes(
    pool: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert parallelism(Pool(**pool)) == expected


@pytest.mark.parametrize(
    ("nodes", "fault"),
    [("aaaabbbb", ""), ("aaaaaaaa", ""), ("aaaabbcc", "its 8 GPUs lie on 3 nodes, with 4, 2, 2: each needs 4")],
)
def test_a_layer_that_would_be_split_over_two_nodes_is_refused(nodes: str, fault: str) -> None:
    pool = Pool(num_gpus=8, nodes=2)
    if not fault:
        check_stages(pool, nodes)
        return
    with pytest.raises(CallError, match=fault):
        check_stages(pool, nodes)


# On a cluster


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head without GPUs, and two nodes with some."""
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray writes the cluster's address there.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "tests")])  # for the nodes' processes
    options = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Machines(initialize_head=True, head_node_args={**options, "num_gpus": 0})
    for _ in range(2):
        cluster.add_node(**options, num_gpus=GPUS)
    yield cluster
    cluster.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture
def words(machines: Machines, tmp_path: Path) -> list[str]:
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/spread.yaml").write_text("name: spread_model:Spread\npool: {num_gpus: 4, nodes: 2}\n")
    given = [f"address={machines.address}", f"conf_dir={tmp_path}/conf", f"runs_dir={tmp_path}/runs", "model=spread"]
    return [*given, "task=mcqabaseline", "limit=4"]


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/bench.py", *words]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


AWAIT = """
import sys, time, ray
from ray.util import placement_group_table
ray.init(sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 60
while True:
    states = [group["state"] for group in placement_group_table().values()]
    free = ray.available_resources().get("GPU", 0)
    if (states.count("CREATED"), free) == (int(sys.argv[2]), float(sys.argv[3])):
        break
    assert time.monotonic() < deadline, (states, free)
    time.sleep(0.1)
"""


def await_groups(machines: Machines, count: int) -> None:
    """Wait until there are exactly so many groups of four GPUs each, and all other GPUs are free."""
    free = str(2 * GPUS - 4 * count)
    done = subprocess.run(
        [sys.executable, "-c", AWAIT, machines.address, str(count), free], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_an_actor_gets_as_many_gpus_of_each_node_and_gives_them_back(machines, words, tmp_path):
    run = start(words)
    _, err = run.communicate(timeout=RUN_S)
    assert run.returncode == 0, err
    (file,) = tmp_path.glob("runs/*/samples/*.parquet")
    (told,) = {steps[0]["text"] for steps in pq.read_table(file)["steps"].to_pylist()}
    found = json.loads(told)
    assert sorted(found["gpus"].values()) == [2, 2]
    assert found["own"] in found["gpus"]
    assert found["arguments"]["pipeline_parallel_size"] == 2
    (plan,) = tmp_path.glob("runs/*/plan.json")
    assert json.loads(plan.read_text())["placement"]["spread"]["pools"][0]["nodes"] == 2
    await_groups(machines, 0)


@pytest.mark.processes
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_gpus_come_back_from_a_run_that_is_interrupted_or_killed(machines, words, tmp_path, number, status):
    go_on = tmp_path / "go on"
    run = start([*words, f"model.params.until={go_on}"])
    await_groups(machines, 1)
    run.send_signal(number)
    go_on.touch()
    _, err = run.communicate(timeout=RUN_S)
    assert run.returncode == status, err
    await_groups(machines, 0)


def test_a_plan_of_a_pool_on_several_nodes_names_them(tmp_path: Path) -> None:
    words = ["model=llama_ft", "model.params.model_name=m", "model.params.backend=vllm", "task=mcqabaseline"]
    config = load([*words, "pool.num_gpus=16", "pool.nodes=2"])
    assert config.targets["llama_ft"].pool.node_count == 2
