"""The model configs that are shipped, and those that the documentation shows, load as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import config_files
import pytest
import yaml

from rambla_ray.config.load import load
from rambla_ray.config.model import ModelConfig
from rambla_ray.registry import MODEL_MAP
from rambla_ray.shipped import SHIPPED_CONF

no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.
conf = config_files.conf

REPO = Path(__file__).resolve().parent.parent
SHIPPED = sorted((SHIPPED_CONF / "model").glob("*.yaml"))
PAGES = sorted([REPO / "README.md", *(REPO / "docs").glob("*.md")])
VARIABLE = re.compile(r"\$\{oc\.env:(\w+)")
KEY = "key-of-the-test"

# A kind for the snippets that show params alone, or another section alone.
ANY_MODEL: dict[str, Any] = {"name": "mock"}
ANY_ENGINE: dict[str, Any] = {"name": "openai_chat", "params": {"engine": "any"}}


def model(config_name: str, *words: str) -> ModelConfig:
    """A model config as a run loads it."""
    return load([f"model={config_name}", "task=mcqabaseline", *words]).targets[config_name]


def set_variables(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a config takes from the environment."""
    for name in VARIABLE.findall(text):
        monkeypatch.setenv(name, "value-of-the-test")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_needs_no_more_than_its_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(path.read_text(encoding="utf-8"), monkeypatch)
    params = model(path.stem).params
    if not params.endpoint:
        return  # Whether the files of a local model are there is not this test's question.
    if params.key_variable:
        monkeypatch.setenv(params.key_variable, KEY)
    params.preflight(same_machine=True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_says_what_it_is_and_what_key_it_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text(encoding="utf-8")
    set_variables(text, monkeypatch)
    head = text.partition("\nname:")[0]
    assert head.startswith("# ")
    variable = model(path.stem).params.key_variable
    assert variable is None or f"eeds {variable}" in " ".join(head.replace("#", " ").split())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_price_has_a_date_and_where_the_present_one_stands(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    before, price, _ = text.partition("\nprice:")
    if price:
        comment = re.search(r"(?:\n#.*)+\Z", before)
        assert comment, "a price wants a comment above it"
        assert re.search(r"20\d\d-\d\d", comment[0])
        assert "https://" in comment[0]


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("gemini", "generativelanguage.googleapis.com"),
        ("bedrock", "amazonaws.com"),
        ("openrouter", "openrouter.ai"),
        ("vllm", "127.0.0.1:8000"),
        ("sglang", "127.0.0.1:30000"),
        ("ollama", "127.0.0.1:11434"),
        ("llama_cpp", "127.0.0.1:8080"),
    ],
)
def test_a_provider_is_asked_where_it_is_whatever_openais_variables_say(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    monkeypatch.setenv("OPENAI_API_BASE", "https://mine.openai.azure.com")
    params = model(name).params
    assert host in params.endpoint
    assert params.key_variable != "OPENAI_API_KEY"  # nobody else gets that key


def yaml_blocks() -> list[Any]:
    """The YAML blocks of the pages, each with the name of its page and its place there."""
    return [
        pytest.param(text, id=f"{path.stem}-{number}")
        for path in PAGES
        for number, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE), 1
        )
    ]


def is_of_a_model(block: object) -> bool:
    """Whether a block is a model config, or sections of one."""
    return isinstance(block, dict) and bool(block) and block.keys() <= ModelConfig.model_fields.keys()


@pytest.mark.parametrize("text", yaml_blocks())
def test_a_yaml_block_in_the_documentation_is_yaml_and_a_model_config_loads(
    text: str, conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = yaml.safe_load(text)
    if not is_of_a_model(block) or ":" in block.get("name", ""):
        return  # A class of somebody's own is made by the how-to, which has a test of its own.
    set_variables(text, monkeypatch)
    if "name" not in block:
        added = ANY_ENGINE if "params" in block else ANY_MODEL
        block = {**added, **block, "params": {**added.get("params", {}), **block.get("params", {})}}
        text = yaml.safe_dump(block)
    (conf / "model" / "shown.yaml").write_text(text, encoding="utf-8")
    assert model("shown", f"conf_dir={conf}").name == block["name"]


def test_the_documentation_shows_model_configs() -> None:
    shown = {name for block in yaml_blocks() for name in re.findall(r"^name: (\w+)", block.values[0], re.MULTILINE)}
    assert {"openai_chat", "huggingface_llm"} <= shown


def test_the_readme_names_every_shipped_config_and_every_kind() -> None:
    cells = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| .*", (REPO / "README.md").read_text(), re.MULTILINE)))
    assert {path.stem for path in SHIPPED} - set(cells) == set()
    assert MODEL_MAP.keys() - set(cells) == set()
