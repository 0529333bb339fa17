"""Configs, checkpoints and data from others run no code here, and name no file outside of their folders.

Each trap is sprung once on purpose, so that a test that sees it unsprung has seen something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf.basecontainer import BaseContainer

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.config.folder import ConfigFolder
from rambla_ray.config.load import load
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import CallError, UserError

if TYPE_CHECKING:
    from rambla_ray.actors.huggingface import HuggingFaceLLM

TASK = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: target, template: "TEMPLATE"}
answer: {choices: ["yes", "no"], target: final_decision}
"""


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._folder),)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The folder that is there when code has run."""
    return tmp_path / "sprung"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for group in ("model", "task", "dataset"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path / "conf"


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as refused:
        load(["model=mock", *words])
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_the_resolvers_are_those_that_were_looked_at():
    ConfigFolder(None)
    harmless = {"oc.coerce", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.select"}
    assert set(BaseContainer._resolvers) == {*harmless, "oc.env", "package_dir"}  # env: tests/test_secrets.py


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_yaml_makes_no_objects(conf: Path, sprung: Path, tag: str):
    (conf / "model/trap.yaml").write_text(f"name: mock\nparams:\n  answer: {tag} [{sprung}]\n")
    assert "not valid YAML" in refusal(f"conf_dir={conf}", "model=trap")
    assert "cannot be read as a value" in refusal(f"task.dataset.fields=[{tag} [{sprung}]]")
    word = f"{tag} [{sprung}]"
    assert load(["model=mock", f"model.params.answer={word}"]).targets["mock"].params.model_dump()["answer"] == word
    assert not sprung.exists()


def test_looking_for_a_package_imports_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sprung: Path):
    (tmp_path / "trap_package").mkdir()
    (tmp_path / "trap_package/__init__.py").write_text(f"import os; os.mkdir({str(sprung)!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load(["model=mock", "model.params.answer=${package_dir:trap_package}"])
    assert "'trap_package.x' is not the name of a package" in refusal(
        "model.params.answer=${package_dir:trap_package.x}"
    )
    assert not sprung.exists()
    assert importlib.util.find_spec("trap_package.x") is None
    assert sprung.exists()


@pytest.mark.parametrize("field", ["question.__class__", "question[0]", "question!r:{context}", "0", ""])
def test_a_template_reaches_no_further_than_its_fields(conf: Path, field: str):
    (conf / "task/trap.yaml").write_text(TASK.replace("TEMPLATE", f"{{{field}}}"))
    assert "stage 1: generate.template" in refusal(f"conf_dir={conf}", "task=trap")


@pytest.mark.parametrize("place", ["../../outside.txt", "/etc/passwd", "../task/../../outside.txt"])
def test_a_template_file_stands_in_the_config_folder(conf: Path, place: str):
    (conf.parent / "outside.txt").write_text("{question}")
    (conf / "prompts").mkdir()
    (conf / "prompts/inside.txt").write_text("{question}")
    given = TASK.replace('template: "TEMPLATE"', "template_file: PLACEHOLDER")
    (conf / "task/trap.yaml").write_text(given.replace("PLACEHOLDER", place))
    (conf / "task/fine.yaml").write_text(given.replace("PLACEHOLDER", "../prompts/inside.txt"))
    assert f"is outside of {conf}; copy it there" in refusal(f"conf_dir={conf}", "task=trap")
    assert load(["model=mock", f"conf_dir={conf}", "task=fine"])
    assert load(["model=mock", f"conf_dir={os.path.relpath(conf)}", "task=fine"])


@pytest.mark.parametrize("name", ["../../x.json", "/etc/passwd", ".."])
def test_a_demo_file_stands_in_the_demo_folder(name: str):
    assert "demo: String should match pattern" in refusal(f"task.dataset.demo={name}")


def test_objects_in_a_parquet_file_are_not_unpickled(tmp_path: Path, sprung: Path):
    import ray.data  # noqa: F401 - registers the type that unpickles what is read
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    trap = ArrowPythonObjectArray.from_objects([Trap(sprung)])
    for name, column in (("plain", trap), ("nested", pa.StructArray.from_arrays([trap], names=["inner"]))):
        pq.write_table(pa.table({"id": ["1"], "question": column}), tmp_path / f"{name}.parquet")
        config = DatasetConfig(format="table", path=str(tmp_path / f"{name}.parquet"), demo="x", fields=("question",))
        with pytest.raises(UserError, match="column 'question' holds Python objects, which are not read"):
            load_dataset(config, "trap", demo=False)
    assert not sprung.exists()
    pq.read_table(tmp_path / "plain.parquet").to_pylist()
    assert sprung.exists()


def test_a_dataset_script_is_not_run(tmp_path: Path, sprung: Path):
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "trap.py").write_text(f"import os; os.mkdir({str(sprung)!r})")
    config = DatasetConfig(format="table", path=str(folder), demo="x", fields=("question",))
    with pytest.raises(UserError, match="load_dataset failed"):
        load_dataset(config, "trap", demo=False)
    assert not sprung.exists()


# Checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import build

    return build(tmp_path_factory.mktemp("checkpoint"))


def load_model(folder: Path, **params: object) -> HuggingFaceLLM:
    from rambla_ray.actors.huggingface import HuggingFaceLLM, HuggingFaceParams
    from rambla_ray.config.sections import Pool

    given = HuggingFaceParams.model_validate({"model_name": str(folder), **params})
    model = HuggingFaceLLM(given, Pool(num_cpus=1), None)
    model.open()
    return model


def test_weights_are_not_unpickled(tiny: Path, sprung: Path):
    import torch

    (tiny / "model.safetensors").rename(tiny / "kept")
    torch.save({"model.norm.weight": Trap(sprung)}, tiny / "pytorch_model.bin")
    try:
        with pytest.raises(CallError, match="UnpicklingError"):
            load_model(tiny)
        assert not sprung.exists()
        torch.load(tiny / "pytorch_model.bin", weights_only=False)
        assert sprung.exists()
    finally:
        (tiny / "pytorch_model.bin").unlink()
        (tiny / "kept").rename(tiny / "model.safetensors")
    load_model(tiny)


def test_code_in_a_checkpoint_runs_only_when_the_config_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sprung: Path
):
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "trap.py").write_text(f"import os; os.mkdir({str(sprung)!r})")
    own = {
        "AutoConfig": "trap.Config",
        "AutoModelForCausalLM": "trap.Model",
        "AutoTokenizer": ["trap.Tokenizer", None],
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "trap", "auto_map": own}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    with pytest.raises(CallError, match="cannot be loaded"):
        load_model(folder)
    assert not sprung.exists()
    with pytest.raises(CallError, match="cannot be loaded"):  # it has no weights
        load_model(folder, trust_remote_code=True)
    assert sprung.exists()


@pytest.mark.parametrize(
    "loading",
    [
        {"weights_only": False},
        {"use_kernels": True},
        {"allow_all_kernels": True},
        {"kernel_config": {}},
        {"attn_implementation": "somebody/attention"},
    ],
)
def test_a_way_of_loading_that_runs_code_needs_the_same_word(loading: dict[str, object]):
    from rambla_ray.actors.huggingface import HuggingFaceParams

    (key,) = loading
    with pytest.raises(ValueError, match=rf"loading_params\.{key} can run code of others"):
        HuggingFaceParams.model_validate({"model_name": "x", "loading_params": loading})
    assert HuggingFaceParams.model_validate({"model_name": "x", "loading_params": loading, "trust_remote_code": True})


def test_a_chat_template_is_kept_in_its_sandbox(tiny: Path, tmp_path: Path, sprung: Path):
    import jinja2

    folder = tmp_path / "trap"
    shutil.copytree(tiny, folder)
    template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(sprung) + "') }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CallError, match="unsafe"):
        load_model(folder, is_finetuned=True)
    assert not sprung.exists()
    jinja2.Template(template).render()
    assert sprung.exists()


def test_the_trap_is_one(sprung: Path):
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()
