"""The asynchronous engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM

from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError


class AsyncLLM:
    """One engine; `received`, `aborted` and `dead` are for tests to read and set."""

    def __init__(self, args: AsyncEngineArgs) -> None:
        self.args = args
        self.received: list[SamplingParams] = []
        self.aborted: list[str] = []
        self.dead = False
        self._model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> Self:
        """Load the weights; blocks until they are there."""
        return cls(engine_args)

    async def generate(
        self, prompt: TokensPrompt, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Any, None]:
        """Yield the tokens so far, or all of them at the end; a generator that is closed early is an abort."""
        given = sampling_params
        self.received.append(given)
        tokens, made = list(prompt["prompt_token_ids"]), []
        draw = torch.Generator().manual_seed(given.seed % 2**63) if given.seed is not None else None
        try:
            while True:
                await asyncio.sleep(0.001)
                if self.dead:
                    raise EngineDeadError("EngineCore encountered an issue.")
                with torch.inference_mode():
                    scores = self._model(torch.tensor([tokens + made])).logits[0, -1]
                if given.temperature < 1e-5:
                    made.append(int(scores.argmax()))
                else:
                    shares = (scores / given.temperature).softmax(-1)
                    made.append(int(torch.multinomial(shares, 1, generator=draw)))
                ended = made[-1] in given.stop_token_ids or len(made) == given.max_tokens
                if ended or given.output_kind == RequestOutputKind.CUMULATIVE:
                    yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(made))], finished=ended)
                if ended:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
