"""How likely continuations are behind prompts, from one run of each prompt and as little more as there is to know.

What the rows of a job have in common is its stem: the prompt, and what all continuations begin with. A stem is run
once, and its last logits say how likely the next token of every row is: for continuations of one token that is all.
Of longer ones the other tokens run behind the keys and values of the stem. Stems of several jobs run together, padded
on the left, and the tokens with which all of them begin (an instruction, solved examples) are run once for all.

Log-probabilities are over the whole vocabulary and in float32, whatever the type of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rambla_ray.actors.local import cache
from rambla_ray.actors.local.job import Choices
from rambla_ray.actors.local.prefill import Beginning, Prefill, SharedPrefix, common_length, padded, run_side_by_side
from rambla_ray.actors.local.usage import LocalUsage


@dataclass(frozen=True)
class Stem:
    """What some rows begin with.

    Args:
        tokens: at least one token short of each row.
        prompt: how many of them, at the beginning, are not scored.
        ends: what follows in each row.
    """

    tokens: list[int]
    prompt: int
    ends: list[list[int]]

    @property
    def scored(self) -> list[int]:
        """Those tokens that are scored, in every row alike."""
        return self.tokens[self.prompt :]

    @classmethod
    def of(cls, job: Choices) -> Stem:
        """What all rows of a job begin with."""
        rows, prompt = job.rows, len(job.rows[0]) - job.scored[0]
        shared = min(common_length(min(rows), max(rows)), min(map(len, rows)) - 1)
        return cls(rows[0][:shared], prompt, [row[shared:] for row in rows])

    def apart(self) -> list[Stem]:
        """Each row as a stem of its own, of which only the last token follows."""
        return [Stem(self.tokens + end[:-1], self.prompt, [end[-1:]]) for end in self.ends]


@dataclass(frozen=True)
class Scored:
    """The log-probabilities of the rows of some stems, and how many positions were computed for them."""

    logprobs: list[list[float]]
    computed: int
    padding: int


class Likelihood:
    """Sets how likely the continuations of jobs are.

    Args:
        model: the loaded model.
        pad: the pad token.
        usage: where what is computed is counted.
        prefill: of the same model, which says how many parts of a batch run side by side.
        part_tokens: about how many tokens run together at most.
    """

    def __init__(self, model: Any, pad: int, usage: LocalUsage, prefill: Prefill, part_tokens: int) -> None:
        self._model = model
        self._pad = pad
        self._usage = usage
        self._prefill = prefill
        self._part_tokens = part_tokens
        self._keeps_positions = cache.keeps_all_positions(model)
        self._shared = SharedPrefix(model)

    def __call__(self, jobs: Sequence[Choices]) -> None:
        """Set the response, or the error, of each job."""
        stems = [self._stems_of(job) for job in jobs]
        logprobs = iter(self._score([stem for some in stems for stem in some]))
        for job, some in zip(jobs, stems, strict=True):
            job.set_logprobs([logprob for _ in some for logprob in next(logprobs)])

    def _stems_of(self, job: Choices) -> list[Stem]:
        """The stem of a job; one of each row where the model cannot go on from the stem's keys and values."""
        stem = Stem.of(job)
        goes_on = any(len(end) > 1 for end in stem.ends)
        return stem.apart() if goes_on and not self._keeps_positions else [stem]

    def _score(self, stems: Sequence[Stem]) -> list[list[float]]:
        """The log-probabilities of each stem's rows."""
        beginning: Beginning = ((), ())
        if self._keeps_positions:
            beginning = self._shared.of([stem.tokens[: stem.prompt] for stem in stems])
        order = sorted(range(len(stems)), key=lambda number: len(stems[number].tokens), reverse=True)
        workers = self._prefill.parallel_parts(len(order))
        parts = list(self._parts(order, stems, len(beginning[0]), workers))
        run = partial(self._run_part, beginning=beginning)
        outputs = run_side_by_side(run, [[stems[number] for number in part] for part in parts], workers)
        self._usage.computed_tokens += sum(output.computed for output in outputs)
        self._usage.padding_tokens += sum(output.padding for output in outputs)
        logprobs = (logprobs for output in outputs for logprobs in output.logprobs)
        found = dict(zip((number for part in parts for number in part), logprobs, strict=True))
        return [found[number] for number in range(len(stems))]

    def _parts(self, order: list[int], stems: Sequence[Stem], known: int, workers: int) -> Iterable[list[int]]:
        """The numbers of the stems that run together, the longest first."""
        alone = self._model._is_stateful  # What a model keeps of a row in a way of its own bears no padding.
        while order:
            longest = max(1, len(stems[order[0]].tokens) - known)
            count = 1 if alone else max(1, self._part_tokens // workers // longest)
            yield order[:count]
            order = order[count:]

    def _run_part(self, stems: Sequence[Stem], beginning: Beginning) -> Scored:
        """Some stems together, which begin alike."""
        shared, layers = beginning
        ids, mask = padded([stem.tokens[len(shared) :] for stem in stems], self._pad)
        mask = torch.cat([torch.ones(len(stems), len(shared), dtype=torch.long), mask], dim=1)
        goes_on = any(len(end) > 1 for stem in stems for end in stem.ends)
        past = None
        if shared or goes_on:
            size = (len(stems), -1, -1, -1)
            past = cache.cache_of(self._model, [(keys.expand(size), values.expand(size)) for keys, values in layers])
        table = self._logprobs(ids, mask, past, max(len(stem.scored) for stem in stems) + 1)
        logprobs = [_of_next_tokens(stem, rows) for stem, rows in zip(stems, table, strict=True)]
        computed, padding = ids.numel(), int((mask == 0).sum())
        if goes_on:
            more = self._add_ends(stems, mask, past, logprobs)
            computed, padding = computed + more.numel(), padding + int((more == 0).sum())
        return Scored(logprobs, computed, padding)

    def _add_ends(
        self, stems: Sequence[Stem], mask: torch.Tensor, past: Any, logprobs: Sequence[list[float]]
    ) -> torch.Tensor:
        """Add what follows the first token of each end to its log-probability; returns the mask of what was run."""
        places = [(row, at) for row, stem in enumerate(stems) for at, end in enumerate(stem.ends) if len(end) > 1]
        ends = [stems[row].ends[at] for row, at in places]
        ids, own_mask = padded([end[:-1] for end in ends], self._pad)
        rows = torch.tensor([row for row, _ in places], device=self._model.device)
        chosen = cache.cache_of(self._model, [(layer.keys[rows], layer.values[rows]) for layer in past.layers])
        whole = torch.cat([mask[rows.cpu()], own_mask], dim=1)
        table = self._logprobs(ids, whole, chosen, ids.shape[1])
        for (row, at), end, of_row in zip(places, ends, table, strict=True):
            logprobs[row][at] += _sum_at(of_row[1 - len(end) :], end[1:])
        return own_mask

    def _logprobs(self, ids: torch.Tensor, mask: torch.Tensor, past: Any, keep: int) -> torch.Tensor:
        """Log-probabilities behind the last `keep` tokens of each row: (rows, keep, vocabulary).

        Args:
            ids: new tokens, (rows, tokens).
            mask: of all tokens, those in the cache before them.
            past: a cache, to which the tokens are added; None where nothing goes on behind them.
            keep: how many positions, from the end.
        """
        more = {}
        if not self._model._is_stateful:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :]
            device = self._model.device
            more = {"attention_mask": mask.to(device), "position_ids": positions.to(device), "logits_to_keep": keep}
        if past is not None:
            more["past_key_values"] = past
        logits = self._model(input_ids=ids.to(self._model.device), use_cache=past is not None, **more).logits
        return logits[:, -keep:].float().log_softmax(-1)


def _of_next_tokens(stem: Stem, table: torch.Tensor) -> list[float]:
    """For each row of a stem, the log-probability of what is scored up to the first token of its end.

    `table` (positions, vocabulary) ends with what is behind the stem's last token.
    """
    common = _sum_at(table[-1 - len(stem.scored) : -1], stem.scored) if stem.scored else 0.0
    return [common + logprob for logprob in table[-1, [end[0] for end in stem.ends]].tolist()]


def _sum_at(table: torch.Tensor, tokens: Sequence[int]) -> float:
    """The sum of the log-probabilities (positions, vocabulary) of these tokens, one for each position."""
    return float(table[range(len(tokens)), tokens].sum())
