"""The commands with backend vllm, on the real engine: a run, a run whose engine dies, serving and a served engine that
dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import vllm_models
from conftest import KEY, REPO
from huggingface_models import load, texts
from tiny_lora import add_lora
from vllm_models import THOUGHT, add_leap, engine_processes, own_names, shared_memory
from waiting import wait_until

__all__ = ["own_names"]  # A fixture.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW = 4
ENDED_S = 60.0  # The guard of an engine ends it within this.


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of configs whose models' contexts are larger than any prompt of the demo set.

    `tiny` is random. `thinking` has an adapter that answers no, and one that thinks without end.
    """
    folder = tmp_path_factory.mktemp("conf")
    tiny = vllm_models.build_tiny(folder / "llama", max_position_embeddings=131_072)
    thinking = vllm_models.build_thinking(folder / "thinking")
    adapters = {
        "no": add_leap(folder / "no", thinking, "</think>", "maybe"),
        "endless": add_leap(folder / "endless", thinking, THOUGHT.split()[-1], "<think>"),
    }
    more = {"adapters": {name: str(place) for name, place in adapters.items()}}
    (folder / "model").mkdir()
    for name, checkpoint, new, given in (("tiny", tiny, NEW, {}), ("thinking", thinking, 8, more)):
        params = {
            "model_name": str(checkpoint),
            "backend": "vllm",
            "loading_params": {"torch_dtype": "float32"},
            "generation_config": {"max_new_tokens": new},
            "is_finetuned": True,
            **given,
        }
        (folder / f"model/{name}.yaml").write_text(json.dumps({"name": "huggingface_llm", "params": params}))
    return folder


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What a command's engines had is given back by the time it has ended, or soon."""
    before = engine_processes(), shared_memory()
    yield
    wait_until(lambda: (engine_processes(), shared_memory()) == before, "the end of all engines", ENDED_S)


def start(program: str, config: Path, *words: str, model: str = "tiny") -> subprocess.Popen[str]:
    command = [sys.executable, f"jobs/{program}.py", "address=local", f"model={model}", f"conf_dir={config}", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPO, env={**os.environ, "SERVE_API_KEY": KEY}, **pipes)


def test_a_run_says_what_it_took(nothing_left: None, config: Path, tmp_path: Path) -> None:
    """Two actors on a core each, which answer the demo set with an adapter."""
    adapter = add_lora(tmp_path / "adapter", config / "llama", seed=1)
    words = (f"model.params.adapter={adapter}", "limit=12", f"runs_dir={tmp_path}")
    process = start("bench", config, *words, "pool.min_size=2", "pool.num_cpus=1")
    out, err = process.communicate(timeout=600)
    assert process.returncode in (0, 2), err  # A random model need not answer yes or no.
    assert "Traceback" not in out + err
    (run,) = (file.parent for file in tmp_path.glob("*/config.yaml"))
    (cell,) = json.loads((run / "metrics.json").read_text())["cells"]
    assert cell["n"] == sum(cell["outcomes"].values()) == 12
    assert cell["outcomes"].get("too_long", 0) == cell["outcomes"].get("failed", 0) == 0
    (samples,) = (run / "samples").glob("*.parquet")
    steps = [step for steps in pq.read_table(samples)["steps"].to_pylist() for step in steps]
    assert {step["completion_tokens"] for step in steps} <= set(range(1, NEW + 1))
    assert all(step["prompt_tokens"] > 100 for step in steps)
    plain = load(config / "llama", adapter=str(adapter), is_finetuned=True, generation_config={"max_new_tokens": NEW})
    assert [step["text"] for step in steps] == texts(plain, *(step["prompt"] for step in steps))
    environment = json.loads((run / "env.json").read_text())
    assert environment["packages"]["vllm"].startswith("0.")
    assert environment["models"]["tiny"]["identity"]["backend"] == "vllm"
    (invocation,) = json.loads((run / "calls.json").read_text())["invocations"]
    did = invocation["local"]["tiny"]
    assert (did["requests"], did["actors"]) == (12, 2)
    assert did["batches"] >= NEW
    assert did["peak_gib"] > did["weights_gib"] > 0


def test_adapters_of_a_model_that_thinks_answer_on_one_engine(
    nothing_left: None, config: Path, tmp_path: Path
) -> None:
    """One closes its thought and answers; what the other thinks is cut, and no answer."""
    process = start("bench", config, "limit=12", f"runs_dir={tmp_path}", model="thinking")
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in out + err
    assert process.returncode == 2, err  # Nothing that one of them says is scored.
    (run,) = (file.parent for file in tmp_path.glob("*/config.yaml"))
    cells = {cell["model"]: cell for cell in json.loads((run / "metrics.json").read_text())["cells"]}
    outcomes = {
        name: {outcome: count for outcome, count in cell["outcomes"].items() if count} for name, cell in cells.items()
    }
    assert outcomes == {"thinking-no": {"scored": 12}, "thinking-endless": {"truncated": 12}}
    answers = {
        (sample["model"], step["text"], step["reasoning"], step["finish_reason"], sample["answer"])
        for file in (run / "samples").glob("*.parquet")
        for sample in pq.read_table(file).to_pylist()
        for step in sample["steps"]
    }
    assert answers == {
        ("thinking-no", "no", THOUGHT, "stop", "no"),
        ("thinking-endless", "", " ".join([THOUGHT] * 4), "length", ""),
    }
    (invocation,) = json.loads((run / "calls.json").read_text())["invocations"]
    assert {did["actors"] for did in invocation["local"].values()} == {1}


def started(before: list[int]) -> list[int]:
    """The two processes of the one engine that has been started since, once it has answered something."""
    wait_until(lambda: len(set(engine_processes()) - set(before)) == 2, "an engine", 300)
    return sorted(set(engine_processes()) - set(before))


def test_a_run_whose_engine_dies_ends_in_one_line(nothing_left: None, config: Path, tmp_path: Path) -> None:
    before = engine_processes()
    long = "model.params.generation_config.max_new_tokens=300"
    process = start("bench", config, "limit=50", f"runs_dir={tmp_path}", long, "pool.max_concurrency=1")
    core, _ = started(before)
    wait_until(
        lambda: any(b'"text"' in file.read_bytes() for file in tmp_path.glob("ledger/*.ledger")), "an answer", 300
    )
    os.kill(core, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 4, err
    assert "vllm's engine has died: its process was ended by signal 9" in err
    assert "Traceback" not in out + err


def test_a_served_model_streams_and_is_replaced_when_its_engine_dies(nothing_left: None, config: Path) -> None:
    before = engine_processes()
    process = start("serve", config, "port=0")
    assert process.stdout
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
        assert url, process.communicate(timeout=60)[1]
        client = openai.OpenAI(base_url=url[0], api_key=KEY, max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "prompt": "Is it?", "max_tokens": 8}
        whole = client.completions.create(**asked).choices[0].text
        pieces = [piece.choices[0].text for piece in client.completions.create(**asked, stream=True)]
        assert "".join(pieces) == whole
        assert len([piece for piece in pieces if piece]) > 1
        with pytest.raises(openai.BadRequestError, match="top_p"):
            client.completions.create(**asked, temperature=0.5, top_p=0.0)
        dead = started(before)
        os.kill(dead[0], signal.SIGKILL)

        def answered() -> bool:
            try:
                return client.completions.create(**asked).choices[0].text == whole
            except openai.InternalServerError:
                return False

        wait_until(lambda: set(engine_processes()).isdisjoint(dead), "the end of the replica", 120)
        wait_until(answered, "an answer of the replica that takes its place", 300)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    finally:
        process.kill()
