"""Computes the prompts of a batch up to their last tokens; what they begin with in common is computed once.

Rows are divided as `[prefix | rest]`: each distinct prefix of a batch is run once, its keys and values are copied to
every row that begins so, and `generate` goes on from there. Both parts are padded on the left; the attention mask
has the gaps, and positions are counted along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import torch
from transformers import DynamicCache

from rambla_ray.actors.local import cache
from rambla_ray.actors.local.cache import Layers

P = TypeVar("P")
R = TypeVar("R")
Beginning = tuple[
    Sequence[int], Sequence[tuple[torch.Tensor, torch.Tensor]]
]  # Tokens, and their keys and values in one row.
WORTH_SHARING = 16  # Fewer tokens than this are computed again.


@dataclass(frozen=True)
class PrefixGroups:
    """How the rows of a batch are divided.

    Args:
        prefixes: what rows begin with, each once.
        prefix_of: per row, the number of its prefix; its rest, of at least one token, is what follows.
    """

    prefixes: list[list[int]]
    prefix_of: list[int]


def even_shares(rows: Sequence[list[int]], count: int) -> list[list[int]]:
    """The numbers of rows in at most so many shares of about as many tokens; rows with one prefix stay together."""
    groups: dict[int, list[int]] = {}
    for number, prefix in enumerate(group_by_prefix(rows).prefix_of):
        groups.setdefault(prefix, []).append(number)
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for group in sorted(groups.values(), key=lambda group: sum(len(rows[number]) for number in group), reverse=True):
        lightest = tokens.index(min(tokens))
        shares[lightest] += group
        tokens[lightest] += sum(len(rows[number]) for number in group)
    return [share for share in shares if share]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def group_by_prefix(rows: Sequence[list[int]]) -> PrefixGroups:
    """Divide rows: those that have at least half of their tokens in common get one prefix, others have their own."""
    prefixes: list[list[int]] = []
    prefix_of = [0] * len(rows)
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[number]
        if prefixes:
            shared = min(common_length(prefixes[-1], row), len(row) - 1)
            if shared >= WORTH_SHARING and 2 * shared >= len(row):
                prefixes[-1] = prefixes[-1][:shared]
                prefix_of[number] = len(prefixes) - 1
                continue
        prefixes.append(row[:-1])
        prefix_of[number] = len(prefixes) - 1
    return PrefixGroups(prefixes, prefix_of)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and their attention mask: two tensors (rows, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def pad_left(rows: torch.Tensor, count: int, value: int) -> torch.Tensor:
    """`rows` (rows, tokens) with `count` more tokens before them."""
    return torch.nn.functional.pad(rows, (count, 0), value=value)


def forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, past: Any) -> None:
    """Add the keys and values of `ids` (rows, new tokens) to a cache; `mask` (rows, all tokens) has those before."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :]
    model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )


class SharedPrefix:
    """What successive batches begin with: a task's instruction, its solved examples. It is computed once.

    Args:
        model: the loaded model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._layers: Layers = []

    def of(self, rows: Sequence[list[int]]) -> Beginning:
        """What all the rows begin with, at least one token short of each, and its keys and values in one row."""
        first, last = min(rows), max(rows)
        shared = min(common_length(first, last), min(map(len, rows)) - 1)
        if shared < WORTH_SHARING:
            return [], []
        if first[:shared] != self._tokens[:shared]:
            past = DynamicCache(config=self._model.config)
            forward(self._model, torch.tensor([first[:shared]]), torch.ones(1, shared, dtype=torch.long), past)
            self._tokens, self._layers = first[:shared], [(layer.keys, layer.values) for layer in past.layers]
        shared = min(shared, len(self._tokens))
        return self._tokens[:shared], [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in self._layers]


@dataclass(frozen=True)
class Prefilled:
    """What `generate` goes on from.

    Args:
        input_ids: the rows, (rows, tokens), padded.
        attention_mask: 1 where there is no padding.
        past: the cache: keys and values of all but the rows' rests. None if there are none.
        computed: how many positions were and will be computed for prompts, padding included.
        padding: how many of these are padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    past: Any
    computed: int
    padding: int


class Prefill:
    """Runs the prefixes of batches.

    A chip computes no faster when more prompts than fill it run together, but a step of the decoding that follows
    costs little more for many rows than for a few: so prompts run in parts, and go on as one batch.

    Args:
        model: the loaded model, whose cache keeps all positions.
        pad: the pad token.
        part_tokens: about how many tokens run together at most.
    """

    def __init__(self, model: Any, pad: int, part_tokens: int) -> None:
        self._model = model
        self._pad = pad
        self._part_tokens = part_tokens
        self._shared = SharedPrefix(model)
        self._runs_side_by_side = (
            model.device.type == "cpu"
            and type(model).__module__.startswith("transformers.")
            and not _rope_depends_on_length(model)
        )

    def begin(self, rows: Sequence[list[int]]) -> Beginning:
        """Run what all these rows begin with, where that is worth it. To be called in one thread."""
        return self._shared.of(rows)

    def __call__(self, rows: Sequence[list[int]], headroom: int, beginning: Beginning = ((), ())) -> Prefilled:
        """Run what comes before the rests of these rows.

        Args:
            rows: the tokens of the prompts.
            headroom: about how many tokens are expected behind them.
            beginning: what they, and perhaps others, begin with.
        """
        groups = group_by_prefix(rows)
        shared, layers = beginning
        order = sorted(range(len(groups.prefixes)), key=lambda number: len(groups.prefixes[number]), reverse=True)
        workers = self.parallel_parts(len(order))
        parts = []
        while order:
            longest = max(1, len(groups.prefixes[order[0]]) - len(shared))
            count = max(1, self._part_tokens // workers // longest)
            parts.append(order[:count])
            order = order[count:]

        def run(part: list[int]) -> tuple[torch.Tensor, torch.Tensor, Any]:
            return self._run_part([groups.prefixes[number] for number in part], shared, layers)

        outputs = run_side_by_side(run, parts, workers)
        place = {number: at for at, number in enumerate(number for part in parts for number in part)}
        chosen = torch.tensor([place[number] for number in groups.prefix_of])
        return self._join(rows, groups, len(shared), outputs, chosen, headroom)

    def parallel_parts(self, prompts: int, least: int = 2) -> int:
        """How many parts of a batch run side by side: on a CPU one per thread, with so many prompts each at least."""
        if not self._runs_side_by_side:
            return 1
        threads = torch.get_num_threads()
        even_divisors = (count for count in range(1, threads + 1) if threads % count == 0)
        return max(count for count in even_divisors if count == 1 or least * count <= prompts)

    def _run_part(
        self, prefixes: Sequence[list[int]], shared: Sequence[int], layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The padded tokens, the mask and the cache of some prefixes, which begin with `shared`."""
        ids, mask = padded([prefix[len(shared) :] for prefix in prefixes], self._pad)
        before = torch.tensor([list(shared)] * len(prefixes), dtype=torch.long)
        mask = torch.cat([torch.ones_like(before), mask], dim=1)
        size = (len(prefixes), -1, -1, -1)
        past = cache.cache_of(self._model, [(keys.expand(size), values.expand(size)) for keys, values in layers])
        if ids.shape[1]:
            forward(self._model, ids, mask, past)
        return torch.cat([before, ids], dim=1), mask, past

    def _join(
        self,
        rows: Sequence[list[int]],
        groups: PrefixGroups,
        known: int,
        outputs: Sequence[tuple[torch.Tensor, torch.Tensor, Any]],
        chosen: torch.Tensor,
        headroom: int,
    ) -> Prefilled:
        """The parts as one batch: for each row its prefix, out of the parts, and its rest.

        Args:
            known: tokens that all rows have in common, which were not computed in the parts.
            outputs: of the parts.
            chosen: per row, the place of its prefix among those of all parts.
        """
        model, pad = self._model, self._pad
        width = max(mask.shape[1] for _, mask, _ in outputs)
        ids = torch.cat([pad_left(ids, width - ids.shape[1], pad) for ids, _, _ in outputs])[chosen]
        mask = torch.cat([pad_left(mask, width - mask.shape[1], 0) for _, mask, _ in outputs])[chosen]
        rests, rest_mask = padded(
            [row[len(groups.prefixes[number]) :] for row, number in zip(rows, groups.prefix_of, strict=True)], pad
        )
        past = None
        if width:
            headroom = min(headroom, cache.GROWTH) + rests.shape[1]
            past = cache.joined(model, [past for *_, past in outputs], width, chosen.to(model.device), headroom)
        return Prefilled(
            torch.cat([ids, rests], dim=1).to(model.device),
            torch.cat([mask, rest_mask], dim=1).to(model.device),
            past,
            sum(mask[:, known:].numel() for _, mask, _ in outputs) + rests.numel(),
            sum(int((mask == 0).sum()) for mask in (*(mask for _, mask, _ in outputs), rest_mask)),
        )


def _rope_depends_on_length(model: Any) -> bool:
    """Whether position embeddings are recomputed for the longest prompt, so that threads would disturb each other."""
    return any(
        rope in str(getattr(module, "rope_type", "")) for module in model.modules() for rope in ("dynamic", "longrope")
    )


def run_side_by_side(run: Callable[[P], R], parts: Sequence[P], workers: int) -> list[R]:
    """Run the parts in as many threads as there are workers; each gets an equal share of this thread's own threads.

    Threads that compute one product together wait for each other at its end, and so for any other process that gets
    a core for a moment. Threads with a part each do not.
    """
    if workers == 1:
        return [run(part) for part in parts]
    threads = torch.get_num_threads()

    def run_in_worker(part: P) -> R:
        torch.set_num_threads(threads // workers)  # This sets the number for this thread alone.
        with torch.inference_mode():
            return run(part)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run_in_worker, parts))
    finally:
        torch.set_num_threads(threads)  # This thread's number is also that of threads which start later.
