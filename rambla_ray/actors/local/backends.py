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
