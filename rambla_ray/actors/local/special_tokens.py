"""Special tokens as real checkpoints have them: by number or word, and sometimes beyond what the model has learnt."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from rambla_ray.actors.local.job import end_tokens
from rambla_ray.errors import choose_from

BOS, END, PAD = OF_CONFIG = ("bos_token_id", "eos_token_id", "pad_token_id")  # Also keys of a model's config.
LOOKED_UP = ("forced_eos_token_id", "bad_words_ids")  # The score of such a token is looked up at each step.
# Options of generation that hold tokens: numbers, or lists of them.
TOKEN_OPTIONS = (*OF_CONFIG, *LOOKED_UP, "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens")


def numbered(value: Any, tokenizer: Any) -> Any:
    """Tokens, with the number of each that is given as a word. Raises ValueError: a word is not one token."""
    if isinstance(value, list):
        return [numbered(token, tokenizer) for token in value]
    if not isinstance(value, str):
        return value
    vocabulary = tokenizer.get_vocab()
    if value not in vocabulary:
        raise ValueError(f"its tokenizer has no token '{value}'; {choose_from(value, tokenizer.all_special_tokens)}")
    return vocabulary[value]


def numbered_options(options: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Options of generation, with numbers for words. Raises ValueError, which names the option."""
    found = dict(options)
    for name in TOKEN_OPTIONS:
        if name in found:
            try:
                found[name] = numbered(found[name], tokenizer)
            except ValueError as error:
                raise ValueError(f"generation_config.{name}: {error}") from None
    return found


def check_known(generation: Any, known: int) -> None:
    """Raise a ValueError for a token, asked for in an option, that the model cannot write.

    Args:
        generation: transformers' generation config.
        known: how many tokens the model has embeddings of.
    """
    for name in LOOKED_UP:
        unknown = next((token for token in _numbers(getattr(generation, name, None)) if not 0 <= token < known), None)
        if unknown is not None:
            raise ValueError(f"generation_config.{name}: {unknown} is none of its {known} tokens")


def usable(generation: Any, known: int) -> Any:
    """A generation config whose pad and end tokens the model knows; those of many checkpoints lie beyond.

    Padding is masked, so that any token will do; and what is never written ends nothing.
    """
    ends = [token for token in end_tokens(generation.eos_token_id) if 0 <= token < known]
    if ends == end_tokens(generation.eos_token_id) and 0 <= generation.pad_token_id < known:
        return generation
    generation = copy.deepcopy(generation)
    generation.eos_token_id = ends or None
    if not 0 <= generation.pad_token_id < known:
        generation.pad_token_id = next(iter(ends), 0)
    return generation


def known_tokens(model: Any, config: Any) -> int | None:
    """How many tokens a model has embeddings of; None where neither it nor its config says so."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    number = getattr(embeddings, "num_embeddings", None) or getattr(config.get_text_config(), "vocab_size", None)
    return int(number) if number else None


def without_unknown_pad(config: Any) -> Any:
    """A config whose pad token lies beyond the embeddings, without it: torch makes none with such; else None."""
    own = config.get_text_config()
    pad, known = getattr(own, PAD, None), getattr(own, "vocab_size", None)
    if not isinstance(pad, int) or not known or -known <= pad < known:
        return None
    config = copy.deepcopy(config)
    config.get_text_config().pad_token_id = None
    return config


def words_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a checkpoint's config.json names by words, which transformers' configs do not take."""
    named = {END: config.get("eos_token"), **config}
    return {
        name: named[name] for name in OF_CONFIG if any(isinstance(token, str) for token in _leaves(named.get(name)))
    }


def _numbers(value: Any) -> Iterator[int]:
    return (token for token in _leaves(value) if isinstance(token, int))


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)
