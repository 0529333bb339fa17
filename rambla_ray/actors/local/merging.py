"""An adapter's weights merged into those of its base, with peft."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rambla_ray.display import folded

PREFIX = "base_model.model."  # What peft puts before the names of the base's modules.
LONGEST_REASON = 300  # What peft says is cut to so many characters.
Keep = Callable[[Any, Any], None]  # Gets a parameter of the base, and the tensor that it had.


class Misfit(ValueError):
    """An adapter and a base do not belong together; a predicate in one line."""


def merge(model: Any, folder: Path, tokens: int | None, keep: Keep | None = None) -> None:
    """Merge an adapter into a model of transformers, which computes as if it had been saved so.

    Args:
        model: the base; its modules may be others afterwards.
        folder: with the adapter's files.
        tokens: of the tokenizer beside the adapter; None without one.
        keep: called with each parameter of the base that gets another tensor, and its own; None to forget those.

    Raises:
        Misfit: the adapter does not fit the base, is broken, or cannot be merged; a predicate in one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What peft warns of is checked here, or is of training.
            _merge(model, folder, tokens, keep)
    except Misfit:
        raise
    except Exception as error:  # noqa: BLE001 - peft, safetensors and torch, each with errors of its own
        shapes = re.search(r"size mismatch for (\S+): copying a param with shape (.+?) from checkpoint", str(error))
        reason = f"{shapes[1].removeprefix(PREFIX)} has shape {shapes[2]} in it" if shapes else folded(str(error))
        raise Misfit(f"cannot be merged into its base: {reason[:LONGEST_REASON]}") from None


def _merge(model: Any, folder: Path, tokens: int | None, keep: Keep | None) -> None:
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights = load_peft_weights(str(folder), device="cpu")
    _fit_vocabulary(model, weights, tokens)
    own = {parameter: parameter.data for parameter in model.parameters()} if keep else {}
    written = {name.replace(".base_layer", "") for name in weights}
    for name, parameter in model.named_parameters():
        if PREFIX + name in written:  # Loading the adapter writes into it.
            parameter.data = parameter.data.clone()
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    wrapped = PeftModel(model, config)
    loaded = set_peft_model_state_dict(wrapped, weights)
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        raise Misfit(_mismatch(missing, loaded.unexpected_keys))
    for module in wrapped.modules():
        if keep and isinstance(module, BaseTunerLayer):
            for parameter in module.get_base_layer().parameters(recurse=False):
                keep(parameter, own.pop(parameter))
    for parameter, tensor in own.items():
        if keep and parameter.data is not tensor:
            keep(parameter, tensor)
    own.clear()
    wrapped.merge_and_unload(safe_merge=True)  # It puts other tensors into the place of the base's.
    model.eval()


def _mismatch(missing: list[str], unexpected: list[str]) -> str:
    what, names = ("lacks", missing) if missing else ("is for another base: it has", unexpected)
    return f"{what} {len(names)} weights, for example {min(names).removeprefix(PREFIX)}"


def _fit_vocabulary(model: Any, weights: Mapping[str, Any], tokens: int | None) -> None:
    """Give the base as many embeddings as the adapter brings, whose training added tokens. Raises Misfit."""
    embeddings = model.get_input_embeddings()
    has = embeddings.weight.shape[0]
    name = next(name for name, module in model.named_modules() if module is embeddings)
    brought = [
        tensor.shape[0]
        for key, tensor in weights.items()
        if re.fullmatch(rf"(.*\.)?{re.escape(name)}(\.modules_to_save)?\.weight", key)
    ]
    if brought and brought[0] != has:
        model.resize_token_embeddings(brought[0], mean_resizing=False)
    elif tokens is not None and tokens > has and not brought:
        raise Misfit(
            f"cannot be merged into its base: its tokenizer has {tokens} tokens, the base has embeddings for {has}, "
            "and the adapter brings none"
        )
