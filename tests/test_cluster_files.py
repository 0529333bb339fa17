"""cluster.yaml, deploy/: they fit the schemas, run what is tested here, begin with no workers and hold no secret."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import bench
import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rambla_ray.config import load as configs
from rambla_ray.redaction import is_secret
from rambla_ray.run.job import ENOUGH_S, STOP_WAIT

REPO = Path(__file__).resolve().parent.parent
FILES = [REPO / name for name in ("cluster.yaml", "deploy/rayjob.yaml", "deploy/Dockerfile")]
# The Python of the nodes is that of `make setup`, whatever Python runs the tests.
(_VERSION,) = re.findall(r"^PYTHON \?= python(\d\.\d+)$", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
PYTHON = f"py{_VERSION.replace('.', '')}"


def version_in_use(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (REPO / "constraints.txt").read_text(), flags=re.MULTILINE)
    return version


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((REPO / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((REPO / "deploy/rayjob.yaml").read_text())


def test_cluster_yaml_is_what_ray_up_takes(cluster):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert "nightly" not in str(prepared["setup_commands"])  # Ray's own default


def test_the_head_runs_no_model_and_pools_begin_with_none(cluster):
    types = cluster["available_node_types"]
    assert types.keys() == {"head", "cpu", "gpu"}
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [types["cpu"], types["gpu"]]
    assert all(0 == node["min_workers"] < node["max_workers"] for node in workers)
    assert sum(node["max_workers"] for node in workers) == cluster["max_workers"]


def test_the_dashboard_listens_on_the_head_alone(cluster):
    (start,) = (line for line in cluster["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert "0.0.0.0" not in (REPO / "cluster.yaml").read_text()


def test_keys_come_from_the_nodes_own_environment(cluster):
    assert "--env-file /etc/rambla.env" in cluster["docker"]["run_options"]
    (fetch,) = cluster["initialization_commands"]
    assert fetch.endswith("/etc/rambla.env")


@pytest.mark.processes
def test_nodes_install_the_wheel_of_this_checkout_with_the_tested_versions(cluster, tmp_path):
    for local in cluster["file_mounts"].values():
        assert (REPO / local).exists() or f"--wheel-dir {local}" in (REPO / "Makefile").read_text()
    install = cluster["setup_commands"][0]
    assert "-c ~/rambla/constraints.txt" in install
    pattern = re.findall(r"dist/(\S+\.whl)", install)[0]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "rambla_ray", "conf"):
        (copy / name).symlink_to(REPO / name)
    subprocess.run([*command, "--wheel-dir", str(tmp_path / "dist"), str(copy)], check=True)
    (wheel,) = (tmp_path / "dist").glob(pattern)
    inside = zipfile.ZipFile(wheel).namelist()
    source = {str(path.relative_to(REPO)) for path in (REPO / "rambla_ray").rglob("*.py")}
    assert source <= set(inside)
    assert [name for name in inside if name.startswith("rambla_ray/data/demo/")]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_kubernetes_job_scales_both_pools_from_none_and_cleans_up(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu"}
    assert all(0 == group["minReplicas"] < group["maxReplicas"] for group in groups.values())
    (gpu,) = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == gpu["resources"]["requests"]["nvidia.com/gpu"] == "1"


def test_every_node_runs_the_versions_that_are_tested(cluster, job):
    image = f"rayproject/ray:{version_in_use('ray')}-{PYTHON}-gpu"
    assert cluster["docker"]["image"] == image
    assert f"\nFROM {image}\n" in (REPO / "deploy/Dockerfile").read_text()
    assert "-c constraints.txt" in (REPO / "deploy/Dockerfile").read_text()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version_in_use("ray")
    assert len({container["image"] for container in containers(job)}) == 1


def test_what_the_image_is_made_of_is_there():
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", (REPO / "deploy/Dockerfile").read_text(), flags=re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    allowed = (REPO / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {"rambla_ray", "jobs", "conf"} <= set(names)
    for name in names:
        assert (REPO / name).exists()
        assert f"!{name}" in allowed
    assert allowed.index("**/*.env") > allowed.index("!conf")  # the last line that matches counts


def test_keys_come_from_kubernetes_secrets_on_every_node(job):
    for container in containers(job):
        variables = {variable["name"]: variable for variable in container["env"]}
        keys = {name for name in variables if is_secret(name)}
        assert "OPENAI_API_KEY" in keys
        assert all(variables[name].keys() == {"name", "valueFrom"} for name in keys)
        assert all("secretKeyRef" in variables[name]["valueFrom"] for name in keys)
        assert variables[STOP_WAIT]["value"] == str(ENOUGH_S)


def test_ray_gives_a_run_time_to_end_in_order(cluster):
    assert f"--env {STOP_WAIT}={ENOUGH_S}" in cluster["docker"]["run_options"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_holds_a_secret(file):
    text = file.read_text()
    assert not re.findall(r"sk-\w{8,}|AKIA\w{8,}|hf_\w{8,}|-----BEGIN", text)
    assigned = re.findall(r"\b([A-Z][A-Z0-9_]+)\s*[=:]\s*([^\s{]+)", text)
    assert not [name for name, value in assigned if is_secret(name) and set(value) - {".", '"', "\\"}]


@pytest.mark.parametrize("file", FILES[:2], ids=lambda file: file.name)
def test_every_number_says_what_it_means(file):
    numbers = [
        line for line in file.read_text().splitlines() if re.search(r"^\s*-?\s*[\w-]+: \"?[\d.]+\"?(\s|$)", line)
    ]
    numbers += [line for line in file.read_text().splitlines() if "Size:" in line]
    assert numbers
    assert [line for line in numbers if "#" not in line and "rayVersion" not in line] == []


def test_the_entrypoint_is_one_that_the_command_line_takes(job, monkeypatch, capsys):
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/opt/rambla_ray/jobs/bench.py")
    loaded = configs.load(words)
    assert loaded.options.runs_dir.startswith("s3://")
    assert not loaded.synthetic
    given = dict(word.split("=", 1) for word in words)
    tried = given | {"model": "mock", "data": "demo", "dry_run": "true"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert bench.main([f"{name}={value}" for name, value in tried.items()]) == 0
    assert "samples" in capsys.readouterr().out


def test_the_pool_of_the_entrypoint_fits_the_gpus(job):
    words = shlex.split(job["spec"]["entrypoint"])
    (gpu,) = (group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert f"pool.max_size={gpu['maxReplicas']}" in words
