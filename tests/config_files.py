"""Config files of a user, and the run configs that words make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError

HUGGINGFACE = """
name: huggingface_llm
params:
  model_name: <path/to/model/>
  loading_params:
    torch_dtype: bfloat16
  generation_config:
    max_new_tokens: 200
    do_sample: false
    top_p: 1.0
  is_finetuned: true
  device_map: auto
"""
OPENAI = """
name: openai_chat
params:
  temperature: 0.0
  engine: gpt-4-32k
  async_calls: false
"""
TASK = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: target, template: "{question}"}
answer: {choices: ["yes", "no"], target: final_decision}
"""


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_VERSION", "OPENAI_API_BASE", "OPENAI_API_KEY", "LLAMA_FT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for group in ("model", "task", "dataset"):
        (tmp_path / group).mkdir()
    (tmp_path / "model" / "hf.yaml").write_text(HUGGINGFACE)
    (tmp_path / "model" / "gpt.yaml").write_text(OPENAI)
    (tmp_path / "task" / "short.yaml").write_text(TASK)
    return tmp_path


def loaded(*words: str) -> RunConfig:
    """The config of `words`, over a model and a task that need nothing."""
    return load(["model=mock", "task=mcqabaseline", *words])


def refusal(*words: str) -> str:
    """What is said about `words`: one line."""
    with pytest.raises(UserError) as refused:
        loaded(*words)
    message = str(refused.value)
    assert "\n" not in message
    return message
