"""The ways to generate with a local model, and the generation options that each of them honours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

Backend = Literal["transformers", "transformers_continuous", "vllm"]

# Generation options that a batch of independent answers cannot honour, and what to do instead.
REFUSED_OPTIONS = {
    "max_time": "set max_new_tokens",
    "min_length": "set min_new_tokens: prompts differ in length",
    "stop_strings": "end tokens are eos_token_id",
    "num_return_sequences": "one prompt has one answer",
    "return_dict_in_generate": "only the text is kept",
    "prompt_lookup_num_tokens": "it works on one prompt at a time",
}

# Generation options that shape a draw, in the order in which transformers applies them. Greedy decoding ignores them.
DRAW_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")

# Values with which an option changes nothing, so that every backend honours them.
NEUTRAL_VALUES = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
    "min_p": 0.0,
}

# The values, from and to, that generation options with numbers may have; where both are whole, so is the option.
BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("max_new_tokens", "max_length"), (1, 10**8)),
    **dict.fromkeys(("min_new_tokens", "min_length"), (0, 10**8)),
    **dict.fromkeys(("num_beams", "num_return_sequences"), (1, 10**4)),
    "top_k": (-1, 10**9),  # vLLM takes -1 for all.
    "no_repeat_ngram_size": (0, 10**6),
    "temperature": (0.0, 1e3),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), (0.0, 1.0)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (1e-3, 1e3)),
    **dict.fromkeys(("length_penalty", "diversity_penalty", "guidance_scale"), (-1e3, 1e3)),
}
TRUTHS = frozenset({"do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"})

_HONOURED_EVERYWHERE = frozenset(
    {"max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id"}
    | {"bos_token_id"}
)
# The generation options that each backend honours; None for all that are not refused.
HONOURED_OPTIONS: dict[Backend, Collection[str] | None] = {
    "transformers": None,
    "transformers_continuous": _HONOURED_EVERYWHERE,
    "vllm": _HONOURED_EVERYWHERE | {"repetition_penalty", "min_new_tokens"},
}


def fault_of_option(option: str, value: Any) -> str:
    """Why an option of generation cannot have a value; empty where it can, or where others check it."""
    if value is None:
        return ""
    if option in TRUTHS and not isinstance(value, bool):
        return "Input should be true or false"
    if option not in BOUNDS:
        return ""
    least, most = BOUNDS[option]
    kind, name = (int, "a whole number") if isinstance(most, int) else (int | float, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        return f"Input should be {name}"
    return "" if least <= value <= most else f"Input should be {name} from {least:g} to {most:g}"


def unsupported_option(generation_config: Mapping[str, Any], backend: Backend) -> str | None:
    """The first generation option that a backend cannot honour, if any."""
    honoured = HONOURED_OPTIONS[backend]
    if honoured is None:
        return None
    ignored = set() if generation_config.get("do_sample") else set(DRAW_OPTIONS)
    return next(
        (
            key
            for key, value in generation_config.items()
            if key not in honoured and key not in ignored and value is not None and value != NEUTRAL_VALUES.get(key)
        ),
        None,
    )
