"""The house: imports point one way, heavy libraries stay in their rooms, help is light, the README tells the truth."""

from __future__ import annotations

import ast
import graphlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rambla_ray.config.run import RunOptions
from rambla_ray.config.served import ServeOptions
from rambla_ray.run.command import BENCH_HELP
from rambla_ray.serving.command import SERVE_HELP

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "rambla_ray"

# Each room may import from itself and from rooms on lines above its own. A room is a folder of the package, or a file
# directly in it.
ORDER = [
    ["shipped"],
    ["file_modes", "redaction", "schema"],
    ["display", "errors"],
    ["inputs", "registry", "tasks"],
    ["storage"],
    ["config", "ledger"],
    ["data", "scoring"],
    ["actors", "results"],
    ["run"],
    ["serving"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

LOCAL_MODELS = ("rambla_ray.actors.local.", "rambla_ray.actors.huggingface", "rambla_ray.actors.judges")

# A heavy library and the modules that may import it (anywhere in the file).
ROOMS = {
    "ray": ("rambla_ray.actors.", "rambla_ray.run.", "rambla_ray.serving."),
    "starlette": ("rambla_ray.serving.gateway", "rambla_ray.serving.guard"),
    "uvicorn": ("rambla_ray.serving.gateway", "rambla_ray.serving.connection"),
    "h11": ("rambla_ray.serving.connection",),
    "omegaconf": ("rambla_ray.config.folder", "rambla_ray.config.parsing", "rambla_ray.config.resolve"),
    "torch": LOCAL_MODELS,
    "transformers": LOCAL_MODELS,
    "sentence_transformers": ("rambla_ray.actors.local.sentence_modules",),
    "vllm": ("rambla_ray.actors.local.vllm_engine",),
    "openai": ("rambla_ray.actors.openai", "rambla_ray.actors.api.openai_package"),
    "httpx2": ("rambla_ray.actors.api.openai_package",),
    "sklearn": ("rambla_ray.scoring.rambla",),
    "scipy": (
        "rambla_ray.scoring.agreement",
        "rambla_ray.scoring.correction",
        "rambla_ray.scoring.stats",
        "rambla_ray.scoring.significance",
        "rambla_ray.scoring.rambla",
        "rambla_ray.scoring.repeats",
        "rambla_ray.scoring.sequential",
    ),
}


@cache
def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            names[".".join(path.relative_to(REPO).with_suffix("").parts)] = path
    return names


@cache
def imports(path: Path) -> set[str]:
    """Everything a file imports: anywhere in it, for types alone, and by name through importlib."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
                found |= {text for inner in ast.walk(node) if isinstance(text := getattr(inner, "value", None), str)}
    return found


def room_of(module: str) -> str:
    """The part of a module's name behind the package's."""
    return module.split(".")[1]


@cache
def imports_by_module() -> dict[str, set[str]]:
    """What each module imports of this package."""
    return {module: imports(path) & modules().keys() for module, path in modules().items()}


def test_every_room_has_its_level():
    assert {room_of(module) for module in modules()} == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_point_to_lower_rooms(room):
    wrong = [
        f"{module} imports {name}"
        for module, names in imports_by_module().items()
        for name in names
        if room_of(module) == room != room_of(name) and LEVEL[room_of(name)] >= LEVEL[room]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    order = graphlib.TopologicalSorter(imports_by_module())
    order.prepare()  # raises CycleError, which names the circle


def test_no_module_imports_what_another_keeps_to_itself():
    private = [
        f"{module} imports {node.module}.{alias.name}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rambla_ray")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert private == []


def reads_by_the_locale(node: ast.AST) -> bool:
    """Whether a call reads or writes text in the encoding of whatever locale it runs in."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
    if "encoding" in keywords:
        return False
    if name == "open":
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)] + [keywords.get("mode")]
        is_method = isinstance(node.func, ast.Attribute)  # Models are opened too, but without a mode.
        return not any("b" in str(mode) for mode in modes if mode) and (not is_method or modes != [None])
    return name in ("read_text", "write_text") or bool(
        keywords.get("text") and name in ("run", "Popen", "check_output")
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode='a')", True),
        ("p.open('r')", True),
        ("p.read_text()", True),
        ("p.write_text(x)", True),
        ("subprocess.run(x, text=True)", True),
        ("open(p, 'rb')", False),
        ("open(p, 'w', encoding='utf-8')", False),
        ("p.open(mode='wb')", False),
        ("model.open()", False),
        ("p.read_text(encoding='utf-8-sig')", False),
        ("subprocess.run(x)", False),
    ],
)
def test_the_check_of_encodings_finds_what_it_looks_for(code, expected):
    assert any(map(reads_by_the_locale, ast.walk(ast.parse(code)))) is expected


def test_every_text_has_an_encoding_that_no_locale_changes():
    files = [*modules().values(), *(REPO / "jobs").glob("*.py"), *(REPO / "benchmarks").glob("*.py")]
    found = [
        f"{path.relative_to(REPO)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if reads_by_the_locale(node)
    ]
    assert found == []


def test_what_is_imported_by_its_name_exists():
    named = {
        text
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module"
        for argument in node.args
        if isinstance(text := getattr(argument, "value", None), str) and text.startswith("rambla_ray.")
    }
    assert named
    assert named - modules().keys() == set()


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


@pytest.mark.processes
@pytest.mark.parametrize("job", ["bench", "reference", "report", "serve"])
def test_help_imports_neither_ray_nor_torch(job):
    loaded = loaded_by(f"import sys; sys.path.insert(0, 'jobs'); import {job}; {job}.main(['--help'])")
    assert not loaded & {"ray", "torch", "openai", "transformers", "pydantic"}


@pytest.mark.processes
@pytest.mark.parametrize(("room", "name"), [("run", "bench"), ("run", "report"), ("serving", "serve")])
def test_help_without_a_checkout_is_as_light_and_names_the_installed_command(room, name):
    code = f"from rambla_ray.{room}.command import {name}; {name}(['--help'])"
    assert not loaded_by(code) & {"ray", "torch", "openai", "transformers", "pydantic"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert f"rambla-ray {name} " in printed.stdout.splitlines()[0]
    assert "jobs/" not in printed.stdout


@pytest.mark.parametrize(("text", "options"), [(BENCH_HELP, RunOptions), (SERVE_HELP, ServeOptions)])
def test_the_help_names_every_key(text, options):
    assert {key for key in [*options.model_fields, "pool", "rate"] if not re.search(rf"\b{key}[=.]", text)} == set()


@pytest.mark.processes
def test_listing_and_configuring_models_imports_neither_torch_nor_openai():
    loaded = loaded_by(
        "from rambla_ray import registry; from rambla_ray.config.load import load; "
        "assert 'mock' in registry.MODEL_MAP; load(['model=mock'])"
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


@pytest.mark.processes
def test_the_readmes_commands_run(tmp_path):
    commands = quickstart()
    assert commands
    for command in commands:
        words = [sys.executable, *shlex.split(command)[1:], f"runs_dir={tmp_path}", "address=local"]
        done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "accuracy" in done.stdout or "samples" in done.stdout
