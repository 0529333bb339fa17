"""The package as it is installed: what a wheel holds, and that it runs from any folder, without the checkout."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from rambla_ray import __main__ as command_line
from rambla_ray import __version__

REPO = Path(__file__).resolve().parent.parent
SITE_PACKAGES = sysconfig.get_path("purelib")
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "rambla_ray", "conf", "jobs", "tests", "benchmarks")


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """The output of a command that does not see this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: Path, source: Path) -> Path:
    """The wheel of a folder or an sdist, built without a network."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", target, source], target)
    (wheel,) = target.glob("rambla_ray-*.whl")
    return wheel


def made_environment(folder: Path, *installed: str | Path) -> Path:
    """A new virtual environment that sees this one's packages behind its own; returns its folder of programs."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(
        f"{SITE_PACKAGES}\n"
    )  # A path in a .pth file comes last, and its own .pth are not read.
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *offline, *installed], folder.parent)
    return python.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in which a build may leave what it likes."""
    folder = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, folder / name)
    (folder / "conf" / "azure.env").write_text("OPENAI_API_KEY=not-for-others\n")
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), source)


@pytest.mark.processes
def test_a_wheel_holds_code_configs_and_demo_data_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {str(path.relative_to(REPO)) for path in (REPO / "rambla_ray").rglob("*.py")}
    configs = {f"rambla_ray/{path.relative_to(REPO)}" for path in (REPO / "conf").rglob("*.yaml")}
    demo = {str(path.relative_to(REPO)) for path in (REPO / "rambla_ray/data/demo").iterdir()}
    assert inside == code | configs | demo | {"rambla_ray/py.typed"}


@pytest.mark.processes
def test_a_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    assert {f"Version: {__version__}", "License-Expression: Apache-2.0", "License-File: LICENSE"} <= set(lines)
    assert archive.read(metadata.replace("METADATA", "licenses/LICENSE")) == (REPO / "LICENSE").read_bytes()


@pytest.mark.processes
def test_an_sdist_builds_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    make = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run([sys.executable, "-c", make], source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert zipfile.ZipFile(build(tmp_path, sdist)).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.processes
def test_a_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    programs = made_environment(tmp_path / "venv", wheel)
    empty = tmp_path / "empty"
    empty.mkdir()
    place = run([programs / "python", "-c", "import rambla_ray; print(rambla_ray.__file__)"], empty)
    assert Path(place.strip()).is_relative_to(tmp_path / "venv")
    assert run([programs / "rambla-ray", "--version"], empty) == f"rambla_ray {__version__}\n"
    out = run([programs / "rambla-ray", "bench", "model=mock", "limit=4", "address=local"], empty)
    assert "accuracy" in out
    assert "4 calls" in out
    more = out.splitlines()[-1].removeprefix("more: ")
    program, *words = shlex.split(more)
    assert program == "rambla-ray"
    assert "accuracy" in run([programs / program, *words], empty)


@pytest.mark.processes
def test_an_editable_install_reads_the_configs_of_its_checkout(source: Path, tmp_path: Path) -> None:
    programs = made_environment(tmp_path / "venv", "--editable", source)
    where = "from rambla_ray.shipped import SHIPPED_CONF; print(SHIPPED_CONF)"
    assert run([programs / "python", "-c", where], tmp_path) == f"{source / 'conf'}\n"


def without_extras(*words: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process that has only what the core of the package declares."""
    extras = ["torch", "transformers", "accelerate", "gguf", "psutil", "jinja2", "starlette", "uvicorn", "vllm"]
    code = f"import sys; sys.modules |= dict.fromkeys({extras}); from rambla_ray.__main__ import main; "
    command = [sys.executable, "-c", f"{code} sys.exit(main({list(words)}))"]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


@pytest.mark.processes
def test_without_the_extras_everything_but_their_models_works() -> None:
    roles = ("roles.judge=mock", "roles.rephraser=mock")
    done = without_extras("bench", "model=mock,openai_chat", "task=all", *roles, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "mcqabaseline: 57 samples" in done.stdout


@pytest.mark.processes
def test_a_model_of_an_extra_that_is_missing_names_it() -> None:
    done = without_extras("bench", "model=mistral_7b_instruct_hf", "dry_run=true")
    assert done.returncode == 1
    assert done.stderr.startswith("error: model mistral_7b_instruct_hf (mistral_7b_instruct_hf.yaml): ")
    assert done.stderr.endswith("which is not installed; pip install 'rambla_ray[hf]' has what local models need\n")


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_says_what_it_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([command, "--help"]) == 0
    assert f"rambla-ray {command}" in capsys.readouterr().out
    assert command_line.main([]) == 0
    assert f"rambla-ray {command}" in capsys.readouterr().out


def test_an_unknown_command_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["bnech", "model=mock"]) == 1
    assert (
        capsys.readouterr().err
        == "error: no command 'bnech'; did you mean 'bench'? there are: bench, compare, report, serve\n"
    )


@pytest.mark.processes
def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from rambla_ray.__main__ import main; main(['bench', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert not {"ray", "torch", "openai", "transformers", "pydantic"} & set(done.stdout.splitlines()[-1].split())


def test_the_workflow_runs_what_a_contributor_runs_on_every_python_that_is_supported() -> None:
    workflow = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(REPO / ".ci/run", os.X_OK)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    supported = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    assert job["strategy"]["matrix"]["python"] == supported
    assert project["requires-python"] == f">={supported[0]}"


def test_the_hooks_are_what_make_check_runs() -> None:
    (local,) = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    recipe = (REPO / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    checks = [line.removeprefix("\t$(BIN)/") for line in recipe.splitlines()[1:]]
    assert [check.replace(" --check", "").split()[:2] for check in checks[:2]] == [hook.split() for hook in hooks[:2]]
    assert checks[2:] == hooks[2:]
