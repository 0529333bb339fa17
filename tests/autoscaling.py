"""A cluster on this machine whose autoscaler starts and ends nodes, by the provider that Ray ships for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import ray
import ray.util
from ray_head import free_ports

HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # the provider's own
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
MAPPINGS = ("auth", "docker", "file_mounts")  # Ray's autoscaler reads them, though there is nothing to set up
COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
IDLE_MINUTES = 0.05  # after which a node goes


class AutoscalingCluster:
    """A head without CPUs, and workers that come when something asks for them.

    Args:
        folder: for Ray's session; its path must be short.
        workers: per node type the resources of a node, and at most how many nodes.
    """

    def __init__(self, folder: Path, workers: Mapping[str, tuple[Mapping[str, float], int]]) -> None:
        self._folder = folder
        self._port, self._agent_port = free_ports(2)
        self.address = f"{ray.util.get_node_ip_address()}:{self._port}"
        types: dict[str, Any] = {
            name: {"resources": dict(resources), "node_config": {}, "min_workers": 0, "max_workers": most}
            for name, (resources, most) in workers.items()
        }
        types[HEAD_TYPE] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        self._config = folder / "autoscaling.yaml"
        config = {
            "cluster_name": "test",
            "max_workers": sum(most for _, most in workers.values()),
            "idle_timeout_minutes": IDLE_MINUTES,
            "upscaling_speed": 100.0,
            "provider": {
                "type": "external",
                "module": PROVIDER,
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
            },
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            **{key: {} for key in MAPPINGS},
            **{key: [] for key in COMMANDS},
        }
        self._config.write_text(json.dumps(config))  # JSON is YAML

    def __enter__(self) -> Self:
        env = {
            **os.environ,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        command = [Path(sys.executable).parent / "ray", "start", "--head", f"--port={self._port}"]
        command += ["--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"]
        command += [f"--temp-dir={self._folder / 'ray'}", f"--autoscaling-config={self._config}"]
        command += [f"--dashboard-agent-listen-port={self._agent_port}", "--object-store-memory=100000000"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ours = self._processes()
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=20)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self._folder) in word or self.address in word for word in words) and process.pid != os.getpid():
                found.append(process)
        return found

    def nodes(self) -> int:
        """How many workers there are: raylets beside the head's."""
        raylets = [p for p in self._processes() if "raylet" in Path((p.info["cmdline"] or [""])[0]).name]
        return len(raylets) - 1

    def wait_for(self, nodes: int, seconds: float) -> None:
        """Wait until there are exactly so many workers."""
        deadline = time.monotonic() + seconds
        while self.nodes() != nodes:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.nodes()} nodes, not {nodes}, after {seconds:g} s")
            time.sleep(0.2)
