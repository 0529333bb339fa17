"""The doctor: eight lines on a real cluster, each with what to do where it does not hold, and no call to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Bench
from openai_server import OpenAIServer

from rambla_ray.config import load as configs
from rambla_ray.results.directory import versions
from rambla_ray.run import doctor
from rambla_ray.run.placement import Cluster, NodeResources

SUBJECTS = ["versions", "keys", "models", "room", "data", "output", "endpoints", "placement"]
Diagnose = Callable[..., dict[str, tuple[bool, str]]]
MOCK = "model=mock"
HEAD, WORKER = NodeResources(0.0, 0.0), NodeResources(8.0, 1.0)


@pytest.fixture
def diagnose(ray_cluster: None, bench: Callable[[list[str]], Bench]) -> Diagnose:
    """`jobs/bench.py doctor=true`: by subject, whether it holds, and its line."""

    def run(*words: str) -> dict[str, tuple[bool, str]]:
        done = bench([*words, "doctor=true"])
        lines = [line.partition(" ") for line in done.out.splitlines()]
        checks = {line.partition(":")[0]: (mark == "✓", line) for mark, _, line in lines}
        assert list(checks) == SUBJECTS
        assert done.status == (0 if all(holds for holds, _ in checks.values()) else 1)
        assert not list(done.runs_dir.glob("*/config.yaml"))  # no run has begun
        return checks

    return run


def only_fault(checks: Mapping[str, tuple[bool, str]]) -> str:
    """The one line that does not hold."""
    (line,) = (line for holds, line in checks.values() if not holds)
    return line


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as started:
        yield started


def endpoint(server: OpenAIServer, *words: str) -> list[str]:
    return ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}", *words]


def test_all_is_well(diagnose: Diagnose, server: OpenAIServer, tmp_path: Path) -> None:
    checks = diagnose(*endpoint(server))
    assert all(holds for holds, _ in checks.values())
    assert checks["versions"][1].endswith("the same packages on 1 node")
    assert checks["keys"][1] == "keys: OPENAI_API_KEY set on 1 node"
    assert checks["data"][1] == "data: 57 samples for each target (mcqabaseline 57), of the synthetic demo set"
    assert f"{server.base_url} answers, and takes the key in OPENAI_API_KEY" in checks["endpoints"][1]
    assert checks["placement"][1] == "placement: 1 node with 2 CPUs and 2 GPUs, for openai_chat (1 actor, no CPU)"
    assert [request.path for request in server.requests] == ["/v1/models"]  # nothing that costs


def test_what_needs_nothing_says_so(diagnose: Diagnose) -> None:
    checks = diagnose(
        MOCK, "task=all", "roles.rephraser=mock", "roles.judge=mock", "pool.num_cpus=1", "pool.max_size=2"
    )
    assert all(holds for holds, _ in checks.values())
    assert [checks[what][1] for what in ("keys", "models", "endpoints")] == [
        *("keys: none needed", "models: none needed", "endpoints: none to ask")
    ]
    assert "samples for each target in 13 tasks" in checks["data"][1]
    assert "mock (1 to 2 actors, 1 CPU each)" in checks["placement"][1]


def test_a_key_that_is_not_set(diagnose: Diagnose, server: OpenAIServer) -> None:
    checks = diagnose(*endpoint(server, "model.params.api_key_var=MISSING_KEY"))
    assert "needs a key in the environment variable MISSING_KEY, which is not set; set it in" in checks["keys"][1]
    assert not checks["keys"][0]
    assert f"{server.base_url} was not asked: no node has what openai_chat needs" in checks["endpoints"][1]
    assert not checks["endpoints"][0]
    assert not server.requests


def test_a_key_command_that_the_nodes_do_not_allow(diagnose: Diagnose, server: OpenAIServer) -> None:
    checks = diagnose(*endpoint(server, "model.params.api_key_command=[az,account,get-access-token]"))
    assert "az is a program that a config alone may not run" in checks["keys"][1]
    assert checks["keys"][1].endswith("set RAMBLA_ALLOW_KEY_COMMAND=1 in the environment where calls are made")
    assert not server.requests


def test_a_key_that_the_endpoint_rejects(diagnose: Diagnose, server: OpenAIServer) -> None:
    server.key = "sk-another"
    line = only_fault(diagnose(*endpoint(server)))
    assert "turns the key in OPENAI_API_KEY away (HTTP 401); put a valid one where Ray starts" in line
    assert "sk-" not in line


def test_an_endpoint_that_is_not_there(diagnose: Diagnose) -> None:
    where = ("model.params.api_type=openai", "model.params.base_url=http://127.0.0.1:1/v1")
    line = only_fault(diagnose("model=openai_chat", *where))
    assert line.startswith("endpoints: http://127.0.0.1:1/v1 cannot be reached: check params.base_url")


def test_a_role_that_asks_another_endpoint_than_the_target_of_the_same_name(
    diagnose: Diagnose, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")
    line = only_fault(diagnose(*endpoint(server, "task=paraphrase")))
    assert f"{server.base_url} answers" in line
    assert "http://127.0.0.1:1/v1 cannot be reached" in line


def test_a_checkpoint_that_is_not_there(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_FT_PATH", str(tmp_path / "nowhere"))
    line = only_fault(diagnose("model=llama_ft"))
    assert line.startswith("models: model llama_ft on ")
    assert f"there is no folder {tmp_path}/nowhere; put it on every node that may run it" in line


def test_a_place_that_cannot_be_written(diagnose: Diagnose, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = only_fault(diagnose(MOCK, f"runs_dir={tmp_path}/file/runs"))
    assert line.startswith(f"output: runs_dir '{tmp_path}/file/runs' cannot be written")
    assert line.endswith("; choose another place")


def test_a_pool_that_no_node_can_hold(diagnose: Diagnose) -> None:
    line = only_fault(diagnose(MOCK, "pool.num_gpus=3"))
    assert "one actor asks for 3 GPUs, the largest node has 2; set pool.num_gpus=2 or add a node" in line
    assert line.endswith("(there: 1 node with 2 CPUs and 2 GPUs)")


def test_data_that_is_not_there(diagnose: Diagnose) -> None:
    line = only_fault(diagnose(MOCK, "task.dataset.path=/nowhere/pubmedqa.json"))
    assert line.startswith("data: ")
    assert "/nowhere/pubmedqa.json" in line


def node(
    name: str, *, has: NodeResources = WORKER, faults: Mapping[str, str] | None = None, **other: str
) -> doctor.NodeReport:
    return doctor.NodeReport(name, name, has, {**versions(), **other}, 100.0, faults or {})


def checked(
    model: str, cluster: Cluster, *nodes: doctor.NodeReport, silent: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Every line of the nodes' checks, with its mark, by subject."""
    levels = doctor.models_of(configs.load([f"model={model}"]), cluster)
    checks = [str(check) for check in doctor.check_nodes(levels, list(nodes), silent or {})]
    return {check[2:].partition(":")[0]: check for check in checks}


def test_nodes_whose_versions_differ_are_named() -> None:
    cluster = Cluster((WORKER, WORKER))
    line = checked("mock", cluster, node("one"), node("two", ray="2.59.0"))["versions"]
    assert line == f"✗ versions: two has ray 2.59.0, here it is {versions()['ray']}; install the same on every node"


def test_a_node_that_cannot_run_our_code_is_named() -> None:
    why = {"10.0.0.2": "ModuleNotFoundError: No module named 'rambla_ray'"}
    line = checked("mock", Cluster((WORKER,)), node("one"), silent=why)["versions"]
    assert line.startswith("✗ versions: 10.0.0.2 cannot run our code: ModuleNotFoundError")
    assert line.endswith("install the package there, or submit it with --working-dir")


def test_a_checkpoint_is_looked_for_where_the_model_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FT_PATH", "/weights")
    missing = {"llama_ft": "there is no folder /weights"}
    head = node("head", has=HEAD, faults=missing)
    cluster = Cluster((HEAD, WORKER))
    assert checked("llama_ft", cluster, head, node("worker"))["models"] == "✓ models: llama_ft can be loaded"
    wrong = checked("llama_ft", cluster, head, node("worker", faults=missing))["models"]
    assert wrong.startswith("✗ models: model llama_ft on worker: there is no folder /weights")
    later = checked("llama_ft", Cluster((HEAD,), grows=True), head)["models"]
    assert later == "✓ models: llama_ft not looked for, as no node that could run it is there yet"


def test_a_pool_that_waits_for_the_autoscaler_is_no_fault() -> None:
    config = configs.load([MOCK, "pool.num_gpus=1"])
    check = doctor.placement(config, Cluster((HEAD,), grows=True))
    assert str(check) == (
        "✓ placement: 1 node with 0 CPUs and 0 GPUs, and an autoscaler, for mock (1 actor, 1 GPU); "
        "model mock waits until there is room for 1 actor of 1 GPU: the cluster's autoscaler brings it"
    )
