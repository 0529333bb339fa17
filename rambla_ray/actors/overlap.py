"""The overlap of two texts' words, as a model: what the models that compare texts are compared with."""

from __future__ import annotations

import time
from typing import ClassVar, Literal

from pydantic import Field

from rambla_ray.actors.model import NO_SIZE, Emit, Model, Size
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response
from rambla_ray.scoring import similarity


class OverlapParams(ModelParams):
    """Which overlap."""

    produces = "score"

    metric: Literal["bleu", "rouge1", "rouge2", "rougeL"] = Field(
        description="bleu: up to 4-grams, no smoothing; rouge*: the F-measure"
    )


class OverlapModel(Model):
    """BLEU or ROUGE of the prompt with its pair as the reference; needs no endpoint and no GPU."""

    Params: ClassVar[type[ModelParams]] = OverlapParams

    def __init__(self, params: OverlapParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self.params = params

    @classmethod
    def identity_of(cls, params: ModelParams) -> dict[str, object]:
        return {"class": "OverlapModel", **params.model_dump(mode="json", include={"metric"})}

    def identity(self) -> dict[str, object]:
        return self.identity_of(self.params)

    def size(self, request: Request) -> Size:
        return NO_SIZE

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        if request.pair is None:
            raise CallError(ErrorKind.BAD_REQUEST, "this model compares two texts; the request has one")
        began = time.monotonic()
        if self.params.metric == "bleu":
            score = similarity.bleu(request.prompt, request.pair)
        else:
            score = similarity.rouge(request.prompt, request.pair, self.params.metric)
        return Response(text=repr(score), latency_s=time.monotonic() - began)
