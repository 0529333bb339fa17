"""The house: imports point one way, heavy libraries stay in their rooms, help is light, the README tells the truth."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "rambla_ray"

# Each module may import only from those on lines above its own.
ORDER = [
    [
        *("rambla_ray.prompts", "rambla_ray.schema", "rambla_ray.stats", "rambla_ray.parsing"),
        *("rambla_ray.mutation", "rambla_ray.rambla", "rambla_ray.similarity", "rambla_ray.display"),
    ],
    ["rambla_ray.errors"],
    [
        *("rambla_ray.storage", "rambla_ray.stages", "rambla_ray.metrics", "rambla_ray.secrets"),
        "rambla_ray.protocol",
    ],
    [
        *("rambla_ray.ledger", "rambla_ray.samples", "rambla_ray.datasets", "rambla_ray.registry", "rambla_ray.job"),
        "rambla_ray.gateway",
    ],
    ["rambla_ray.config", "rambla_ray.scoring"],
    ["rambla_ray.outcomes", "rambla_ray.results", "rambla_ray.actors.adaptive", "rambla_ray.actors.http"],
    ["rambla_ray.report", "rambla_ray.audit", "rambla_ray.plan", "rambla_ray.actors.governor"],
    ["rambla_ray.actors.gate", "rambla_ray.actors.retry", "rambla_ray.actors.ledger"],
    ["rambla_ray.actors.base", "rambla_ray.actors.decoding", "rambla_ray.actors.weights"],
    ["rambla_ray.actors.checkpoint", "rambla_ray.actors.continuous", "rambla_ray.actors.vllm"],
    [
        "rambla_ray.actors.mock",
        "rambla_ray.actors.overlap",
        "rambla_ray.actors.openai",
        "rambla_ray.actors.huggingface",
        "rambla_ray.actors.judges",
        "rambla_ray.actors.pool",
    ],
    ["rambla_ray.cluster"],
    ["rambla_ray.pipeline", "rambla_ray.doctor", "rambla_ray.serving"],
]
LEVEL = {module: level for level, modules in enumerate(ORDER) for module in modules}

LOCAL_MODELS = (
    *("rambla_ray.actors.checkpoint", "rambla_ray.actors.decoding"),
    *("rambla_ray.actors.huggingface", "rambla_ray.actors.judges", "rambla_ray.actors.continuous"),
)

# A heavy library and the modules that may import it (anywhere in the file).
ROOMS = {
    "ray": (
        *("rambla_ray.actors.", "rambla_ray.cluster", "rambla_ray.pipeline", "rambla_ray.doctor"),
        "rambla_ray.serving",
    ),
    "starlette": ("rambla_ray.gateway",),
    "uvicorn": ("rambla_ray.gateway",),
    "torch": LOCAL_MODELS,
    "transformers": LOCAL_MODELS,
    "vllm": ("rambla_ray.actors.vllm",),
    "openai": ("rambla_ray.actors.openai",),
    "sklearn": ("rambla_ray.rambla",),
    "scipy": ("rambla_ray.stats", "rambla_ray.rambla"),
}


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            names[".".join(path.relative_to(REPO).with_suffix("").parts)] = path
    return names


def imports(path: Path) -> set[str]:
    """Everything a file imports outside of `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_level():
    assert set(modules()) == set(LEVEL)


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_point_to_lower_levels(module):
    wrong = [name for name in imports(modules()[module]) if name in LEVEL and LEVEL[name] >= LEVEL[module]]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_a_heavy_library_is_imported_only_in_its_room(library):
    users = [
        name
        for name, path in modules().items()
        if any(imported.partition(".")[0] == library for imported in imports(path))
    ]
    assert users
    assert [user for user in users if not user.startswith(ROOMS[library])] == []


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("job", ["bench", "serve"])
def test_help_imports_neither_ray_nor_torch(job):
    loaded = loaded_by(f"import sys; sys.path.insert(0, 'jobs'); import {job}; {job}.main(['--help'])")
    assert not loaded & {"ray", "torch", "openai", "transformers", "pydantic"}


def test_listing_and_configuring_models_imports_neither_torch_nor_openai():
    loaded = loaded_by(
        "from rambla_ray import config, registry; assert 'mock' in registry.MODEL_MAP; config.load(['model=mock'])"
    )
    assert not loaded & {"torch", "openai", "transformers"}


def test_the_readme_shows_the_tree_and_commands_that_exist():
    readme = (REPO / "README.md").read_text()
    named = set(re.findall(r"^\s*(?:[│├└─ ]+)?([\w/]+\.(?:py|yaml|md|toml))\b", readme, flags=re.MULTILINE))
    files = {path.name for path in REPO.rglob("*") if ".venv" not in path.parts}
    assert named, "the README has no tree"
    assert {name for name in named if Path(name).name not in files} == set()
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def quickstart() -> list[str]:
    """The commands of the README's blocks marked `bash`, less those that set up, test, or need a cluster or a key."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python ") and "model=mock" in line]


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path):
    commands = quickstart()
    assert commands
    for command in commands:
        words = [sys.executable, *shlex.split(command)[1:], f"runs_dir={tmp_path}", "address=local"]
        done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "accuracy" in done.stdout or "samples" in done.stdout
