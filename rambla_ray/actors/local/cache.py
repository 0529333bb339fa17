"""The keys and values of a batch, in layers that have room for the tokens to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from rambla_ray.actors.local.cpu_attention import uses_grouped_attention

GROWTH = 256  # The most tokens of headroom behind the prompts, and the number by which a full layer grows.

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # Keys and values of each layer: (rows, heads, tokens, size).


def keeps_all_positions(model: Any) -> bool:
    """Whether the model's cache holds keys and values of every position, so that one row's can serve another."""
    cache = DynamicCache(config=model.config)
    return (
        not (model.config.is_encoder_decoder or model._is_stateful)
        and bool(cache.layers)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


def only_attends(config: Any) -> bool:
    """Whether a model of this config keeps keys and values in all its layers, and no state."""
    layers = DynamicCache(config=config).layers
    has_heads = isinstance(getattr(config.get_text_config(), "num_attention_heads", None), int)
    return has_heads and not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def sees_neighbours(model: Any) -> bool:
    """Whether the rows of a batch, or their padding, change each other's answers, so that each must run alone.

    That is so where a model keeps a state in a way of its own (RWKV, xLSTM in transformers 5.23). What transformers'
    cache keeps for it (Mamba) stays as it is where the attention mask has a gap.
    """
    layers = DynamicCache(config=model.config).layers
    return model._is_stateful and not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """What the cache takes in memory.

    Args:
        row: for each prompt, however long it is.
        token: for each token of it.
    """

    row: int
    token: int

    @classmethod
    def of(cls, model: Any) -> Self:
        """As the model's config says: a key and a value in each layer. Where it names no heads, as is measured."""
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            short, longer = (_measured_bytes(model, tokens) for tokens in (1, 2))
            return cls(row=max(0, 2 * short - longer), token=max(0, longer - short))
        groups = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(row=0, token=int(2 * config.num_hidden_layers * groups * size * model.dtype.itemsize))


def _measured_bytes(model: Any, tokens: int) -> int:
    """What the model keeps of a prompt of so many tokens."""
    with torch.inference_mode():
        out = model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=True)
    return sum(_tensor_bytes(value) for name, value in out.items() if name != "logits")


def _tensor_bytes(value: Any) -> int:
    """The bytes of all the tensors in what a model returns: in lists and dicts, and in transformers' caches."""
    if isinstance(value, torch.Tensor):
        return int(value.nbytes)
    if isinstance(value, (Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin)):
        return _tensor_bytes(vars(value))
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def cache_of(model: Any, layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A cache that holds these keys and values."""
    cache = DynamicCache(config=model.config)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


class GrowableLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values with headroom: new ones are written into it, and not joined to a copy.

    Args:
        like: keys (rows, heads, tokens, size), for their other dimensions and type.
        rows: how many there will be.
        tokens: of each row, those that are put in at once.
        headroom: positions for so many more; the layer grows when there are more than that.
        whole: return the unused positions to attention, too, which the mask hides. It is for `grouped_attention`,
            whose products would copy a part of the layer.
    """

    def __init__(self, like: torch.Tensor, rows: int, tokens: int, headroom: int, whole: bool) -> None:
        super().__init__()
        self.lazy_initialization(like, like)
        _, heads, _, size = like.shape
        # Zeros, because a mask hides what is not set yet, but not NaN.
        self.keys = like.new_zeros(rows, heads, tokens + headroom, size)
        self.values = torch.zeros_like(self.keys)
        self._held = tokens
        self._whole = whole

    def put(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fill some rows from the right."""
        start = self._held - keys.shape[2]
        self.keys[rows, :, start : self._held] = keys
        self.values[rows, :, start : self._held] = values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        growth = self._capacity_with(key_states.shape[2]) - self.keys.shape[2]
        if growth:
            self.keys, self.values = (
                torch.nn.functional.pad(states, (0, 0, 0, growth)) for states in (self.keys, self.values)
            )
        start, self._held = self._held, self._held + key_states.shape[2]
        self.keys[:, :, start : self._held] = key_states
        self.values[:, :, start : self._held] = value_states
        if self._whole:
            return self.keys, self.values
        return self.keys[:, :, : self._held], self.values[:, :, : self._held]

    def get_seq_length(self) -> int:
        return self._held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._capacity_with(query_length) if self._whole else self._held + query_length, 0

    def _capacity_with(self, new: int) -> int:
        """The layer's positions once so many new tokens are in it."""
        capacity = self.keys.shape[2]
        return capacity if self._held + new <= capacity else self._held + new + GROWTH


def joined(model: Any, caches: Sequence[Any], width: int, chosen: torch.Tensor, headroom: int) -> Any:
    """One growable cache with the rows of several caches, padded to `width`.

    Args:
        model: whose caches they are.
        caches: their rows are numbered from the first cache to the last.
        width: tokens of the longest cache.
        chosen: the numbers of the rows that the new cache has, in this order.
        headroom: positions for tokens to come.
    """
    cache = DynamicCache(config=model.config)
    whole = uses_grouped_attention(model)
    placements = []  # For each cache, the rows of the new one that it fills, and which of its own rows go there.
    first = 0
    for source in caches:
        last = first + source.layers[0].keys.shape[0]
        targets = ((chosen >= first) & (chosen < last)).nonzero().squeeze(1)
        placements.append((targets, chosen[targets] - first))
        first = last
    for number in range(len(caches[0].layers)):
        layer = GrowableLayer(caches[0].layers[number].keys, len(chosen), width, headroom, whole)
        for source, (targets, sources) in zip(caches, placements, strict=True):
            part = source.layers[number]
            layer.put(targets, part.keys[sources], part.values[sources])
        cache.layers[number] = layer
    return cache
