"""How each row of a batch chooses its tokens: draws of its own, and processors that look at what the row holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rambla_ray.actors.local.backends import DRAW_OPTIONS
from rambla_ray.actors.local.job import NOT_A_NUMBER, Draw, Prompt
from rambla_ray.errors import CallError, ErrorKind

# The warper of each of DRAW_OPTIONS.
WARPERS: dict[str, Callable[[Any], LogitsProcessor]] = dict(
    zip(
        DRAW_OPTIONS,
        (
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
            MinPLogitsWarper,
            TypicalLogitsWarper,
            EpsilonLogitsWarper,
            EtaLogitsWarper,
        ),
        strict=True,
    )
)
NEUTRAL_DRAW_VALUES = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}  # These need no warper.


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
            ([WARPERS[name](value) for name, value in options if value != NEUTRAL_DRAW_VALUES.get(name)], rows)
            for options, rows in by_options.items()
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for warpers, rows in self._groups:
            warped = scores[rows]
            for warper in warpers:
                warped = warper(input_ids[rows], warped)
            cumulative = warped.float().softmax(-1).cumsum(-1)
            points = [draw.source.random() for number in rows if (draw := self._draws[number]) is not None]
            at = torch.tensor(points, device=cumulative.device).unsqueeze(1) * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, at, right=True).clamp(max=cumulative.shape[1] - 1)
            scores[rows] = warped.scatter(1, chosen, float("inf"))
        return scores


class ScoreCheck(LogitsProcessor):  # type: ignore[misc]
    """Gives up the rows whose first scores are no numbers: what was computed of their prompts is none.

    It looks at the first token of each batch alone, so that it costs nothing. Too narrow a dtype shows in the prompt,
    which is longer than the answer, and whatever is no number there makes all that comes behind it none.

    Args:
        prompts: the rows of the batch.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._unchecked = list(prompts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._unchecked:
            for prompt, is_fault in zip(self._unchecked, scores.isnan().any(-1).tolist(), strict=True):
                if is_fault:
                    prompt.error = CallError(ErrorKind.INTERNAL, NOT_A_NUMBER)
            self._unchecked = []
        return scores


class HistoryProcessors:
    """Generation options that look at the tokens that a row holds. Within `generate` they would see its padding, too.

    Args:
        options: of transformers.GenerationConfig; those in question are taken out of it.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        penalty, size = options.pop("repetition_penalty", None), options.pop("no_repeat_ngram_size", None)
        self._processors: list[LogitsProcessor] = []
        if penalty not in (None, 1.0):
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if size:
            self._processors.append(NoRepeatNGramLogitsProcessor(size))

    def for_batch(self, rows: Sequence[list[int]], width: int) -> list[LogitsProcessor]:
        """The processors of one batch.

        Args:
            rows: the tokens of its prompts.
            width: tokens before the answers, padding included.
        """
        return [_WithoutPadding(self._processors, rows, width)] if self._processors else []


class _WithoutPadding(LogitsProcessor):  # type: ignore[misc]
    """Applies processors row by row, each to the prompt and the answer of that row alone."""

    def __init__(self, processors: Sequence[LogitsProcessor], rows: Sequence[list[int]], width: int) -> None:
        self._processors = processors
        self._rows = rows
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for number, row in enumerate(self._rows):
            held = torch.cat([torch.tensor(row, device=input_ids.device), input_ids[number, self._width :]])
            for processor in self._processors:
                scores[number : number + 1] = processor(held.unsqueeze(0), scores[number : number + 1])
        return scores
