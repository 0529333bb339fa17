"""One batch through a causal language model: rows share their beginnings, and each draws and ends alone.

Rows are laid out as `[prefix | rest]`: the prefixes that a batch has are run once each, their keys and values handed
to every row that begins so, and `generate` goes on from there. Both parts are padded on the left; the attention mask
has the gaps, and positions are counted along it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import torch
from transformers import DynamicCache, LogitsProcessor, StoppingCriteria
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

    @property
    def tokens(self) -> list[int]:
        """The prompt."""

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


class Start:
    """The beginning that successive batches share: a task's instruction, its solved examples. Computed once."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cache(self, model: Any, rows: Sequence[list[int]], copies: int) -> tuple[list[int], Any]:
        """What all the rows begin with, at least one token short of each, and its keys and values `copies` times."""
        ordered = sorted(rows)
        shared = min(common(ordered[0], ordered[-1]), min(map(len, rows)) - 1)
        if shared < WORTH_SHARING:
            return [], DynamicCache(config=model.config)
        if ordered[0][:shared] != self.tokens[:shared]:
            self.tokens = ordered[0][:shared]
            cache = DynamicCache(config=model.config)
            model(
                input_ids=torch.tensor([self.tokens], device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        shared = min(shared, len(self.tokens))
        cache = DynamicCache(config=model.config)
        for number, (keys, values) in enumerate(self._layers):
            cache.update(
                keys[:, :, :shared].expand(copies, -1, -1, -1),
                values[:, :, :shared].expand(copies, -1, -1, -1),
                number,
            )
        return self.tokens[:shared], cache


def can_share(model: Any) -> bool:
    """Whether the model's cache holds keys and values of every position, so that one row's can serve another."""
    cache = DynamicCache(config=model.config)
    return (
        not model.config.is_encoder_decoder
        and bool(cache.layers)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


def begin(
    model: Any, rows: Sequence[list[int]], start: Start, pad: int
) -> tuple[torch.Tensor, torch.Tensor, Any, int]:
    """Run what comes before the rows' rests.

    Returns:
        For `generate`: input_ids and attention_mask, both (rows, tokens), and past_key_values for all but the rests;
        and how many tokens were computed, padding included.
    """
    layout = lay_out(rows)
    shared, cache = start.cache(model, rows, len(layout.prefixes))
    known = len(shared)
    ids, mask = padded([prefix[known:] for prefix in layout.prefixes], pad)
    before = torch.tensor([shared] * len(layout.prefixes), dtype=torch.long)
    ids = torch.cat([before, ids], dim=1)
    mask = torch.cat([torch.ones_like(before), mask], dim=1)
    if ids.shape[1] > known:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        model(
            input_ids=ids[:, known:].to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions[:, known:].to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    computed = ids[:, known:].numel()
    of = torch.tensor(layout.of)
    if len(layout.prefixes) < len(rows) or layout.of != sorted(layout.of):
        cache.batch_select_indices(of.to(model.device))
    rests, rest_mask = padded(
        [row[len(layout.prefixes[number]) :] for row, number in zip(rows, layout.of, strict=True)], pad
    )
    return (
        torch.cat([ids[of], rests], dim=1).to(model.device),
        torch.cat([mask[of], rest_mask], dim=1).to(model.device),
        cache,
        computed + rests.numel(),
    )
