"""One batch through a causal language model: rows share their beginnings, and each draws and ends alone.

Rows are laid out as `[prefix | rest]`: the prefixes that a batch has are run once each, their keys and values handed
to every row that begins so, and `generate` goes on from there. Both parts are padded on the left; the attention mask
has the gaps, and positions are counted along it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LogitsProcessor, StoppingCriteria
from transformers.cache_utils import DynamicLayer
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped"  # the name of our attention
WORTH_SHARING = 16  # tokens; fewer are computed anew

# Options of transformers.GenerationConfig that shape a draw, in the order in which transformers applies them.
WARPERS: dict[str, Callable[[Any], LogitsProcessor]] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
WITHOUT_EFFECT = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}


class Row(Protocol):
    """A row of a batch, as decoding sees it."""

    max_new_tokens: int

    def wrote(self, tokens: Callable[[], list[int]]) -> bool:
        """After each token: `tokens` gives the answer so far. True when this row need not go on."""


class RowEnds(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own limit, or when it says that it need not go on.

    Args:
        rows: of the batch.
        width: tokens before the answers, padding included.
    """

    def __init__(self, rows: Sequence[Row], width: int) -> None:
        self._rows = rows
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        made = input_ids.shape[1] - self._width
        ended = [
            made >= row.max_new_tokens or row.wrote(input_ids[number, self._width :].tolist)
            for number, row in enumerate(self._rows)
        ]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Draw:
    """How one row draws its tokens.

    Args:
        options: names and values of `WARPERS`.
        seed: of this row alone, so that its draws do not depend on its neighbours.
    """

    options: tuple[tuple[str, Any], ...]
    seed: int

    @cached_property
    def source(self) -> random.Random:
        """Of one number in [0, 1) per token."""
        return random.Random(self.seed)


class Draws(LogitsProcessor):  # type: ignore[misc]
    """Makes the largest score that of the token drawn, by inversion of each row's distribution; greedy rows stay.

    Args:
        draws: per row, None for greedy decoding.
    """

    def __init__(self, draws: Sequence[Draw | None]) -> None:
        self._draws = draws
        by_options: dict[tuple[tuple[str, Any], ...], list[int]] = {}
        for number, draw in enumerate(draws):
            if draw is not None:
                by_options.setdefault(draw.options, []).append(number)
        self._groups = [
            ([WARPERS[name](value) for name, value in options if value != WITHOUT_EFFECT.get(name)], rows)
            for options, rows in by_options.items()
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for warpers, rows in self._groups:
            some = scores[rows]
            for warper in warpers:
                some = warper(input_ids[rows], some)
            shares = some.float().softmax(-1).cumsum(-1)
            points = [draw.source.random() for number in rows if (draw := self._draws[number]) is not None]
            at = torch.tensor(points, device=shares.device).unsqueeze(1) * shares[:, -1:]
            chosen = torch.searchsorted(shares, at, right=True).clamp(max=shares.shape[1] - 1)
            scores[rows] = some.scatter(1, chosen, float("inf"))
        return scores


@dataclass(frozen=True)
class Layout:
    """How the rows of a batch are divided.

    Args:
        prefixes: what rows begin with, each once.
        of: per row, the number of its prefix; its rest, of at least one token, is what follows.
    """

    prefixes: list[list[int]]
    of: list[int]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def lay_out(rows: Sequence[list[int]]) -> Layout:
    """Divide rows: those that have at least half of their tokens in common get one prefix, others have their own."""
    prefixes: list[list[int]] = []
    of = [0] * len(rows)
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[number]
        if prefixes:
            shared = min(common(prefixes[-1], row), len(row) - 1)
            if shared >= WORTH_SHARING and 2 * shared >= len(row):
                prefixes[-1] = prefixes[-1][:shared]
                of[number] = len(prefixes) - 1
                continue
        prefixes.append(row[:-1])
        of[number] = len(prefixes) - 1
    return Layout(prefixes, of)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and their attention mask: two tensors (rows, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (rows, heads, tokens, size)


class Start:
    """The beginning that successive batches share: a task's instruction, its solved examples. Computed once."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._layers: Layers = []

    def of(self, model: Any, rows: Sequence[list[int]]) -> tuple[list[int], Layers]:
        """What all the rows begin with, at least one token short of each, and its keys and values in one row."""
        first, last = min(rows), max(rows)
        shared = min(common(first, last), min(map(len, rows)) - 1)
        if shared < WORTH_SHARING:
            return [], []
        if first[:shared] != self.tokens[:shared]:
            cache = DynamicCache(config=model.config)
            _forward(model, torch.tensor([first[:shared]]), torch.ones(1, shared, dtype=torch.long), cache)
            self.tokens, self._layers = first[:shared], [(layer.keys, layer.values) for layer in cache.layers]
        shared = min(shared, len(self.tokens))
        return self.tokens[:shared], [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in self._layers]


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> None:
    """Add the keys and values of `ids` (rows, new tokens) to the cache; `mask` (rows, all tokens) has those before."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :]
    model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _cache(model: Any, layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    cache = DynamicCache(config=model.config)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def can_share(model: Any) -> bool:
    """Whether the model's cache holds keys and values of every position, so that one row's can serve another."""
    cache = DynamicCache(config=model.config)
    return (
        not model.config.is_encoder_decoder
        and bool(cache.layers)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


@dataclass(frozen=True)
class Beginning:
    """What `generate` goes on from.

    Args:
        input_ids: the rows, (rows, tokens), padded.
        attention_mask: 1 where there is no padding.
        cache: keys and values of all but the rows' rests.
        computed: how many positions were and will be computed for prompts, padding included.
        padding: how many of these are padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Any
    computed: int
    padding: int


def begin(model: Any, rows: Sequence[list[int]], start: Start, pad: int, at_once: int) -> Beginning:
    """Run what comes before the rows' rests, at most about `at_once` tokens together.

    A chip computes no faster when more prompts than fill it run together, but a step of the decoding that follows
    costs little more for many rows than for a few: so prompts run in parts, and go on as one batch.
    """
    layout = lay_out(rows)
    shared, layers = start.of(model, rows)
    known = len(shared)
    order = sorted(range(len(layout.prefixes)), key=lambda number: len(layout.prefixes[number]), reverse=True)
    parts = []
    computed = padding = 0
    while order:
        width = max(1, len(layout.prefixes[order[0]]) - known)
        part, order = order[: max(1, at_once // width)], order[max(1, at_once // width) :]
        ids, mask = padded([layout.prefixes[number][known:] for number in part], pad)
        ones = torch.ones(len(part), known, dtype=torch.long)
        computed += mask.numel()
        padding += int((mask == 0).sum())
        mask = torch.cat([ones, mask], dim=1)
        cache = _cache(
            model,
            [(keys.expand(len(part), -1, -1, -1), values.expand(len(part), -1, -1, -1)) for keys, values in layers],
        )
        if ids.shape[1]:
            _forward(model, ids, mask, cache)
        parts.append((part, torch.cat([ones * torch.tensor(shared, dtype=torch.long), ids], dim=1), mask, cache))
    place = {number: at for at, number in enumerate(number for part, *_ in parts for number in part)}
    chosen = torch.tensor([place[number] for number in layout.of])
    width = max(mask.shape[1] for _, _, mask, _ in parts)
    ids = torch.cat([pad_left(ids, width - ids.shape[1], pad) for _, ids, _, _ in parts])[chosen]
    mask = torch.cat([pad_left(mask, width - mask.shape[1], 0) for _, _, mask, _ in parts])[chosen]
    cache = _joined(model, [cache for *_, cache in parts], width, chosen.to(model.device))
    rests, rest_mask = padded(
        [row[len(layout.prefixes[number]) :] for row, number in zip(rows, layout.of, strict=True)], pad
    )
    return Beginning(
        torch.cat([ids, rests], dim=1).to(model.device),
        torch.cat([mask, rest_mask], dim=1).to(model.device),
        cache,
        computed + rests.numel(),
        padding + int((rest_mask == 0).sum()),
    )


def pad_left(rows: torch.Tensor, count: int, value: int) -> torch.Tensor:
    """`rows` (rows, tokens) with `count` more tokens before them."""
    return torch.nn.functional.pad(rows, (count, 0), value=value)


def _joined(model: Any, caches: list[Any], width: int, chosen: torch.Tensor) -> Any:
    """The rows of some caches, padded to `width`, as one, in the order of `chosen`."""
    if not width:  # no row has a beginning
        return caches[0]
    if len(caches) == 1 and chosen.tolist() == list(range(caches[0].layers[0].keys.shape[0])):
        return caches[0]

    def rows(of: str, number: int) -> torch.Tensor:
        each = [getattr(cache.layers[number], of) for cache in caches]
        each = [torch.nn.functional.pad(one, (0, 0, width - one.shape[2], 0)) for one in each]
        return (torch.cat(each) if len(each) > 1 else each[0])[chosen]

    return _cache(model, ((rows("keys", number), rows("values", number)) for number in range(len(caches[0].layers))))


def use_grouped_attention(model: Any) -> None:
    """On a CPU, decode with `grouped_attention`; a model that has an attention of its own keeps it."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' AttentionInterface: with one query a row, matrix products per group of heads.

    PyTorch's kernel for CPUs is made for long queries: with one, it spends ten times as long repeating and packing
    the keys (PyTorch 2.13, bfloat16, 8 rows of 400 tokens: 1.9 ms against 0.17 ms a layer).
    """
    rows, heads, queries, size = query.shape
    if queries > 1 or kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return whole
    grouped = query.view(rows, key.shape[1], -1, size)
    scores = (grouped @ key.transpose(2, 3)).float() * (size**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.reshape(rows, heads, 1, -1).transpose(1, 2).contiguous(), None
