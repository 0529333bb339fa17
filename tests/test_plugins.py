"""Models from outside this repository: by import path, by entry point; each fault in one line."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import ray
from conftest import Bench

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.registry import model_class

PLUGIN = """
from rambla_ray.actors.base import Model, ModelParams
from rambla_ray.schema import Response


class ParrotParams(ModelParams):
    word: str = "Yes."


class Parrot(Model):
    Params = ParrotParams

    def identity(self):
        return {"class": "parrot", "word": self.params.word}

    def __init__(self, params, pool, rate):
        super().__init__(params, pool, rate)
        self.params = params

    async def generate(self, request, emit=None):
        return Response(text=self.params.word)


class Alien:
    Params = dict
    generate = None


class Unfinished(Model):
    Params = ParrotParams


class Bare(Model):
    pass


number = 3
"""


class Plugins:
    """Modules in a folder on sys.path, each under a name that no other test has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str) -> str:
        """A module with this code; returns its name."""
        name = f"plugin_{uuid.uuid4().hex}"
        (self.folder / f"{name}.py").write_text(code)
        return name

    def declare(self, name: str, value: str) -> None:
        """What installing a package `parrots` with one entry point leaves behind."""
        info = self.folder / "parrots-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrots\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[rambla_ray.models]\n{name} = {value}\n")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Plugins(folder)


def refusal(name: str) -> str:
    """What is said of a model config with this name: one line."""
    with pytest.raises(UserError) as refused:
        load(["model=mock", f"model.name={name}", "model.params={}"])
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("model mock (mock.yaml): name ")
    return message.partition("name ")[2]


def test_a_class_is_found_by_its_path(plugins: Plugins) -> None:
    name = plugins.write(PLUGIN)
    config = load(["model=mock", f"model.name={name}:Parrot", "model.params={word: No.}"]).targets["mock"]
    assert config.kind is sys.modules[name].Parrot
    assert config.params == sys.modules[name].ParrotParams(word="No.")


def test_a_class_is_found_by_its_entry_point(plugins: Plugins) -> None:
    name = plugins.write(PLUGIN)
    plugins.declare("parrot", f"{name}:Parrot")
    assert model_class("parrot") is sys.modules[name].Parrot
    assert load(["model=mock", "model.name=parrot", "model.params={}"]).targets["mock"].params.word == "Yes."
    assert "'parot' is not a kind of model; did you mean 'parrot'?" in refusal("parot")


def test_an_entry_point_does_not_take_the_place_of_a_model_of_ours(plugins: Plugins) -> None:
    plugins.declare("mock", f"{plugins.write(PLUGIN)}:Parrot")
    assert model_class("mock").__module__ == "rambla_ray.actors.mock"


def test_an_entry_point_that_is_broken_is_named_with_its_package(plugins: Plugins) -> None:
    plugins.declare("parrot", "no_such_module:Parrot")
    assert refusal("parrot").startswith(
        "'parrot' (parrots declares no_such_module:Parrot): there is no module no_such_module; install it on every"
    )


@pytest.mark.parametrize(
    ("attribute", "fragment"),
    [
        ("Parot", "has no Parot; did you mean 'Parrot'?"),
        ("number", "number in module {module} is not a class"),
        ("ParrotParams", "class ParrotParams lacks Params, generate; a model extends rambla_ray.actors.base.Model"),
        ("Unfinished", "class Unfinished lacks generate, identity; a model extends"),
        ("Bare", "class Bare lacks Params, generate, identity; a model extends"),
        ("Alien", "its Params is not a subclass of rambla_ray.actors.base.ModelParams"),
        ("a b", "is not of the form package.module:Class"),
        ("", "is not of the form package.module:Class"),
    ],
)
def test_what_is_no_model_class_is_refused_in_one_line(attribute: str, fragment: str, plugins: Plugins) -> None:
    name = plugins.write(PLUGIN)
    assert fragment.format(module=name) in refusal(f"'{name}:{attribute}'")


@pytest.mark.parametrize(
    ("code", "fragment"),
    [
        ("def f(:\n", "cannot be imported: SyntaxError: invalid syntax ({module}.py, line 1)"),
        ('raise RuntimeError("first\\nsecond")\n', "cannot be imported: RuntimeError: first\\nsecond"),
        ("import no_such_library\n", "module {module} needs no_such_library, which is not installed"),
    ],
    ids=["syntax", "raises", "needs another"],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(code: str, fragment: str, plugins: Plugins) -> None:
    name = plugins.write(code)
    assert fragment.format(module=name) in refusal(f"'{name}:Model'")


@pytest.mark.parametrize("module", ["no_such_package.models", "no_such_package"])
def test_a_module_that_is_not_there_is_named_with_what_to_do(module: str) -> None:
    assert refusal(f"{module}:Model") == (
        f"'{module}:Model': there is no module no_such_package; install it on every node, or put its folder on "
        "PYTHONPATH here and into the working directory that a job is submitted with"
    )


def test_a_node_without_the_module_is_named_before_a_run(
    ray_cluster: None, plugins: Plugins, bench: Callable[[Sequence[str]], Bench]
) -> None:
    name = plugins.write(PLUGIN)  # The nodes' processes do not look into this folder.
    words = ["model=mock", f"model.name={name}:Parrot", "model.params={}", "pool.num_cpus=1"]
    (node,) = ray.nodes()
    fault = (
        f"versions: {node['NodeManagerAddress']} cannot run our code: ModuleNotFoundError: No module named '{name}'; "
        "install the package there, or submit it with --working-dir"
    )
    assert bench([*words, "doctor=true"]).out.splitlines()[0] == f"✗ {fault}"
    done = bench([*words, f"address={ray.get_runtime_context().gcs_address}"])
    assert (done.status, done.err) == (1, f"error: {fault}\n")
