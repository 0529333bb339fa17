"""A run on a cluster that has no workers when it starts: they come for it, one after another, and go after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoscaling import AutoscalingCluster

REPO = Path(__file__).resolve().parent.parent
WORKERS = 3
RUN_S = 240.0
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def growing() -> Iterator[AutoscalingCluster]:
    """A head without CPUs, and up to three workers with one each, which find the models of these tests."""
    with (
        pytest.MonkeyPatch.context() as environment,
        tempfile.TemporaryDirectory(prefix="grow-", ignore_cleanup_errors=True) as folder,
    ):
        environment.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests")]))
        with AutoscalingCluster(Path(folder), {"cpu": ({"CPU": 1}, WORKERS)}) as cluster:
            yield cluster


def start(cluster: AutoscalingCluster, runs_dir: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/bench.py", f"address={cluster.address}", f"runs_dir={runs_dir}"]
    words = words if any(word.startswith("model=") for word in words) else ("model=mock", *words)
    return subprocess.Popen(
        [*command, *words], cwd=REPO, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_nodes_come_for_a_run_grow_with_its_pool_and_go(growing, tmp_path):
    words = ["task=mcqabaseline,spelling_robustness", "model.params.latency_s=0.6"]  # 60 s of one actor's time
    run = start(growing, tmp_path, *words, "pool.num_cpus=1", f"pool.max_size={WORKERS}", "pool.max_concurrency=4")
    most, deadline = 0, time.monotonic() + RUN_S
    while run.poll() is None:
        most = max(most, growing.nodes())
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.2)
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert "model mock waits until there is room for 1 actor of 1 CPU: the cluster's autoscaler brings it" in err
    assert 2 <= most <= WORKERS
    (env,) = tmp_path.glob("*/env.json")
    assert len({actor["pid"] for actor in json.loads(env.read_text())["models"]["mock"]["actors"]}) >= 2
    growing.wait_for(0, 60)


def test_what_no_kind_of_node_has_ends_the_run(growing, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/spread.yaml").write_text("name: spread_model:Spread\npool: {num_gpus: 4, nodes: 2}\n")
    one = start(growing, tmp_path, "pool.num_gpus=1")
    spread = start(growing, tmp_path, "model=spread", f"conf_dir={tmp_path}/conf")
    for run, reason in (
        (one, "error: model mock: the cluster's autoscaler has no kind of node with 1 GPU"),
        (spread, "error: model spread: the cluster's autoscaler has no kinds of nodes for 2 nodes with 2 GPUs each"),
    ):
        _, err = run.communicate(timeout=RUN_S)
        assert run.returncode == 1
        assert err.splitlines()[-1].startswith(reason)
