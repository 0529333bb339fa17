"""Fixtures: real data where it lies, one local Ray cluster for a process's tests, the command line as a function."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray_head import Head

IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if IN_PARALLEL:
    os.environ["OMP_NUM_THREADS"] = "1"  # The workers share the cores; torch reads it when it is imported.
os.environ["RAY_AUTH_MODE"] = "disabled"  # whatever token this machine has: before Ray is imported, which looks once
os.environ |= {"RAY_worker_niceness": "0"}  # Ray's own 15 leaves its workers nothing where other tests use the cores.
# Not the user's own; it stays from one run of the tests to the next.
os.environ.setdefault("RAMBLA_CACHE", f"{tempfile.gettempdir()}/rambla_ray-tests-{os.getuid()}")
REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "jobs"), str(REPO / "tests")]

KEY = "sk-test"


# Each test has one tier: what it needs, from the least to the most. The marker names it where the fixtures do not.
TIERS = ("unit", "cluster", "processes", "real", "vllm")
TIER_OF_FIXTURE = {"head": "processes", "ray_cluster": "cluster"}
STARTS_A_PROCESS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork"})

# Warnings that a unit test may cause; every other one fails it.
ALLOWED_WARNINGS = (
    # A test ends its event loop while the session of its API model still holds connections for the next call.
    *("ignore:unclosed <socket:ResourceWarning", "ignore:unclosed transport:ResourceWarning"),
    *("ignore:Unclosed client session:ResourceWarning", "ignore:Unclosed connector:ResourceWarning"),
    # aiohttp proposes a stream for the body of a million characters that one test sends.
    "ignore:Sending a large body directly:ResourceWarning",
    # Ray Serve declares its settings as pydantic 1 did.
    "ignore:Using extra keyword arguments on `Field`:pydantic.warnings.PydanticDeprecatedSince20",
)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test its tier, in whose order they run; where they share cores, those that take longest go first."""
    if importlib.util.find_spec("vllm") is None:  # It has a virtual environment of its own: make test-vllm.
        left_out = [item for item in items if tier_of(item) == "vllm"]
        items[:] = [item for item in items if tier_of(item) != "vllm"]
        config.hook.pytest_deselected(items=left_out)
    warnings = [pytest.mark.filterwarnings(warning) for warning in ("error", *ALLOWED_WARNINGS)]
    places = {}
    for item in items:
        tier, fixtures = tier_of(item), getattr(item, "fixturenames", ())
        if tier is None:
            tier = next((tier for fixture, tier in TIER_OF_FIXTURE.items() if fixture in fixtures), "unit")
            item.add_marker(tier)
        for warning in warnings if tier == "unit" else ():
            item.add_marker(warning)
        place = TIERS.index(tier)
        places[item] = (-place, "head" not in fixtures) if IN_PARALLEL else (place, False)
    items.sort(key=places.__getitem__)


def tier_of(item: pytest.Item) -> str | None:
    """The tier of a test; None where no marker names it."""
    return next((tier for tier in TIERS if item.get_closest_marker(tier)), None)


started: list[str] = []  # the processes that the current test has started


def note_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: note the start of a process, but for Python's own question for the machine's processor."""
    if event in STARTS_A_PROCESS and arguments[0] != "uname":
        started.append(str(arguments)[:200])


sys.addaudithook(note_processes)


@pytest.fixture(autouse=True)
def _within_its_tier(request: pytest.FixtureRequest) -> Iterator[None]:
    """A unit test starts no process."""
    started.clear()
    yield
    if tier_of(request.node) == "unit" and started:
        pytest.fail(f"a unit test started a process, {started[0]}; mark it `processes`, or `cluster`")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with PubMedQA and SICK, which are not part of this repository."""
    if "RAMBLA_TEST_DATA" not in os.environ:
        pytest.skip("RAMBLA_TEST_DATA is not set: it names a folder with pubmedqa/ and sick/")
    return Path(os.environ["RAMBLA_TEST_DATA"])


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster with two CPUs and two logical GPUs; bench runs in this process join it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["OPENAI_API_KEY"] = KEY  # before the workers start, which inherit it
    import ray

    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["OPENAI_API_KEY"]


@pytest.fixture(scope="session")
def canary() -> str:
    """The API key in the environment of `head`: what nothing else can look like."""
    return f"sk-canary-{secrets.token_hex(16)}"


@pytest.fixture(scope="session")
def deployment() -> str:
    """An engine in the environment of `head`, which no config names but by its variable."""
    return f"deployment-{secrets.token_hex(16)}"


@pytest.fixture(scope="session")
def head(canary: str, deployment: str) -> Iterator[Head]:
    """`ray start --head` with token authentication and a key in its environment, which takes jobs."""
    from ray_head import Head

    with Head(token=True, environment={"OPENAI_API_KEY": canary, "DEPLOYMENT": deployment}) as started:
        yield started


@pytest.fixture(scope="session")
def checkout(canary: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as a user has it: with results, a checkpoint and an env file that holds the key."""
    folder = tmp_path_factory.mktemp("user") / "rambla_ray"
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(".*_cache", ".git", ".venv*", "__pycache__", "runs"))
    for name in (".env", "conf/azure.env", "runs/old/config.yaml", "llama/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"OPENAI_API_KEY={canary}\n")
    return folder


@dataclass(frozen=True)
class Bench:
    """What one command line printed and left behind."""

    status: int
    out: str
    err: str
    runs_dir: Path

    @property
    def run(self) -> Path:
        """The one run directory under runs_dir."""
        (config,) = self.runs_dir.glob("*/config.yaml")
        return config.parent

    def read(self, name: str) -> str:
        """A file of the run."""
        return (self.run / name).read_text()


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[str]], Bench]:
    """jobs/bench.py as a function of its words, in this process; runs go to a folder of this test."""
    import bench as job

    def run(words: Sequence[str]) -> Bench:
        given = dict(word.partition("=")[::2] for word in words)
        runs_dir = Path(given.get("runs_dir", tmp_path / "runs"))
        status = job.main([*words, f"runs_dir={runs_dir}"] if "runs_dir" not in given else list(words))
        printed = capsys.readouterr()
        return Bench(status, printed.out, printed.err, runs_dir)

    return run
