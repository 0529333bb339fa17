"""The estimate before a run: calls, distinct prompts and tokens of each stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rambla_ray.schema import Item
from rambla_ray.tasks import prompts
from rambla_ray.tasks.stages import Generate


def known_fields(stage: Generate, item: Item) -> dict[str, str]:
    """The fields a stage reads, as far as they are known before anything is answered."""
    return {name: item.fields.get(name, "") for name in stage.reads()}


_PROMPT = np.dtype([("digest", "V16"), ("tokens", np.int64)])


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What a stage will send: for each prompt a digest to tell it from others, and about how long it is in tokens."""

    digests: NDArray[np.void]

    @classmethod
    def of(cls, stage: Generate, items: Sequence[Item]) -> StageLoad:
        """As far as it is known before anything is answered, for each item that can be asked."""
        prompt_of = (prompts.render(stage.template, known_fields(stage, item)) for item in items if not item.fault)
        return cls(
            np.fromiter(
                ((_digest(prompt), len(prompt) // 4 + 1) for prompt in prompt_of),
                dtype=_PROMPT,
            )
        )

    @property
    def calls(self) -> int:
        return len(self.digests)

    @property
    def tokens(self) -> int:
        return int(self.digests["tokens"].sum())


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=16).digest()


def distinct(digests: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """The rows of some arrays, each digest once."""
    rows = np.concatenate(digests) if digests else np.empty(0, dtype=_PROMPT)
    _, first = np.unique(rows["digest"], return_index=True)
    return rows[first]
