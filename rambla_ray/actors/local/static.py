"""Static batches with transformers' `generate`: a batch is computed together, and each row draws and ends alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from rambla_ray.actors.local import cache
from rambla_ray.actors.local.backends import DRAW_OPTIONS
from rambla_ray.actors.local.batching import BatchingEngine, ModelContext
from rambla_ray.actors.local.cpu_attention import use_grouped_attention
from rambla_ray.actors.local.cpu_products import pack_weights
from rambla_ray.actors.local.job import Choices, LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.likelihood import Likelihood
from rambla_ray.actors.local.prefill import Prefill, Prefilled, even_shares, padded, run_side_by_side
from rambla_ray.actors.local.sampling import Draws, HistoryProcessors, ScoreCheck

PROMPT_TOKENS = {"cpu": 2048, "cuda": 16384}  # Prompts run together up to this many tokens: more fill no chip better.
DECODED_TOKENS = {"cpu": 24576, "cuda": 1_000_000}  # Rows are decoded together up to this many: more gain nothing.
ROWS_ALONE = 16  # So many rows a thread are computed apart: fewer read the weights too often.
CACHE_SHARE = 0.3  # The part of the free memory that their cache may take: prompts need memory, too.


class RowEnds(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own limit, or when its prompt needs no more tokens, or has failed.

    Args:
        prompts: the rows of the batch.
        width: tokens before the answers, padding included.
    """

    def __init__(self, prompts: Sequence[Prompt], width: int) -> None:
        self._prompts = prompts
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        generated = input_ids.shape[1] - self._width
        ended = [
            prompt.error is not None
            or generated >= prompt.max_new_tokens
            or prompt.on_token(input_ids[number, self._width :].tolist)
            for number, prompt in enumerate(self._prompts)
        ]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class Static(BatchingEngine[LanguageJob]):
    """Static batches. Rows share the computation of what they begin with; beams are searched without that.

    Args:
        model: the loaded model.
        generation: what it does, resolved: a transformers.GenerationConfig.
        context: of the model's actor.
        free_bytes: memory that is free for caches.
    """

    def __init__(self, model: Any, generation: GenerationConfig, context: ModelContext, free_bytes: int) -> None:
        super().__init__(context)
        self._model = model
        self._generation = generation
        self._pad = generation.pad_token_id
        self._end_tokens = end_tokens(generation.eos_token_id)
        self._searches_beams = (generation.num_beams or 1) != 1
        options = {key: value for key, value in generation.to_dict().items() if value is not None}
        for name in ("do_sample", *DRAW_OPTIONS):
            options.pop(name, None)
        self._history = HistoryProcessors({} if self._searches_beams else options)
        # Draws are made by a processor, so `generate` itself is greedy.
        self._greedy = GenerationConfig(**options, do_sample=False)
        self._shares_prefixes = not self._searches_beams and cache.keeps_all_positions(model)
        free_bytes -= pack_weights(model, free_bytes)
        if context.pool.batch_size == "auto":
            decoded = (DECODED_TOKENS if self._shares_prefixes else PROMPT_TOKENS)[context.chip]
            taken, room = cache.CacheBytes.of(model), CACHE_SHARE * free_bytes
            self.batch_size = _at_most(self.batch_size, room, taken.row)
            self.batch_tokens = _at_most(decoded, room, taken.token)
        if cache.sees_neighbours(model):
            self.batch_size = 1
        use_grouped_attention(model)
        self._prefill = Prefill(model, self._pad, PROMPT_TOKENS[context.chip])
        self._likelihood = Likelihood(model, self._pad, self._usage, self._prefill, PROMPT_TOKENS[context.chip])

    def run(self, jobs: list[LanguageJob]) -> None:
        self._model.generation_config = self._greedy  # Another engine may have used the model meanwhile.
        prompts = [job for job in jobs if isinstance(job, Prompt)]
        choices = [job for job in jobs if isinstance(job, Choices)]
        with torch.inference_mode():
            if prompts:
                self._run_prompts(prompts)
            if choices:
                self._likelihood(choices)

    def _run_prompts(self, prompts: list[Prompt]) -> None:
        if not self._searches_beams:
            self._run_rows(prompts)
            return
        for limit in {prompt.max_new_tokens for prompt in prompts}:
            self._run_beams([prompt for prompt in prompts if prompt.max_new_tokens == limit], limit)

    def _run_rows(self, prompts: list[Prompt]) -> None:
        rows = [prompt.tokens for prompt in prompts]
        if not self._shares_prefixes:
            self._finish(prompts, *self._generate(prompts, self._pad_rows(rows)))
            return
        beginning = self._prefill.begin(rows)

        def run(share: list[Prompt]) -> tuple[torch.Tensor, Prefilled]:
            longest_answer = max(prompt.max_new_tokens for prompt in share)
            return self._generate(share, self._prefill([prompt.tokens for prompt in share], longest_answer, beginning))

        workers = self._prefill.parallel_parts(len(rows), least=ROWS_ALONE)
        shares = [[prompts[number] for number in share] for share in even_shares(rows, workers)]
        for share, (out, batch) in zip(shares, run_side_by_side(run, shares, len(shares)), strict=True):
            self._finish(share, out, batch)

    def _generate(self, prompts: Sequence[Prompt], batch: Prefilled) -> tuple[torch.Tensor, Prefilled]:
        """The rows of a batch and their answers, and the batch."""
        width = batch.input_ids.shape[1]
        draws = [prompt.draw for prompt in prompts]
        history = self._history.for_batch([prompt.tokens for prompt in prompts], width)
        processors = [ScoreCheck(prompts), *history, *([Draws(draws)] if any(draws) else [])]
        out = self._model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            past_key_values=batch.past,
            generation_config=self._greedy,
            max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
            stopping_criteria=StoppingCriteriaList([RowEnds(prompts, width)]),
            logits_processor=LogitsProcessorList(processors),
        )
        return out, batch

    def _run_beams(self, prompts: list[Prompt], limit: int) -> None:
        batch = self._pad_rows([prompt.tokens for prompt in prompts])
        out = self._model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=self._generation,
            max_new_tokens=limit,
        )
        self._finish(prompts, out, batch)

    def _pad_rows(self, rows: Sequence[list[int]]) -> Prefilled:
        """Rows of which nothing is computed yet."""
        ids, mask = (tensor.to(self._model.device) for tensor in padded(rows, self._pad))
        return Prefilled(ids, mask, None, ids.numel(), int((mask == 0).sum()))

    def _finish(self, prompts: Sequence[Prompt], out: torch.Tensor, batch: Prefilled) -> None:
        for prompt, row in zip(prompts, out[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            if prompt.error is None:
                prompt.set_response(row, self._end_tokens)
        self._usage.computed_tokens += batch.computed
        self._usage.padding_tokens += batch.padding


def _at_most(most: int, room: float, bytes_each: int) -> int:
    """As many as fit into so many bytes, and at most so many; one in any case."""
    return max(1, min(most, int(room / bytes_each))) if bytes_each else most
