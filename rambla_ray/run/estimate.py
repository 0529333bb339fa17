"""The estimate before a run: what each stage of a task sends, and the plan as lines for a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rambla_ray.run.expected_lines import pool_lines, total_lines
from rambla_ray.run.pool_calls import CHARS_PER_TOKEN
from rambla_ray.schema import Item, Role
from rambla_ray.tasks.stages import Generate


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What a stage will send, as far as it is known before anything is answered.

    Args:
        stage: the stage, or what asks the reader.
        calls: how many prompts it sends: each as often as answers to it are drawn.
        distinct: how many of them differ, or are other draws.
        tokens: about how many tokens they have together.
        example: the prompt of the first item.
        phrasings: the same in each phrasing, where there are several.
    """

    stage: Generate
    calls: int
    distinct: int
    tokens: int
    example: str
    phrasings: Mapping[str, str]

    @classmethod
    def of(cls, stage: Generate, items: Sequence[tuple[str, Item]], draws: int = 1) -> Self:
        """The load of a stage that gets these items, at least one.

        Args:
            stage: the stage.
            items: what it gets, each with its variant of the task.
            draws: how many answers to each are drawn.
        """
        before = len(f"{stage.system}\n") if stage.system else 0
        digests, calls, tokens = set(), 0, 0
        for prompt in (_prompt(stage, variant, item) for variant, item in items if not item.fault):
            digests.add(_digest(prompt))
            calls += draws
            tokens += draws * ((before + len(prompt)) // CHARS_PER_TOKEN + 1)
        variants = stage.variants() if stage.templates else ()
        phrasings = {variant: _prompt(stage, variant, items[0][1]) for variant in variants}
        return cls(stage, calls, draws * len(digests), tokens, _prompt(stage, *items[0]), phrasings)

    def describe(self) -> dict[str, Any]:
        """The stage and its load as JSON values."""
        return {
            "kind": self.stage.kind,
            "role": self.stage.role,
            "writes": self.stage.output,
            "calls": self.calls,
            "distinct_prompts": self.distinct,
            "prompt_tokens": self.tokens,
        }


def longest_of(stage: Generate, items: Sequence[tuple[str, Item]]) -> int:
    """The bytes of the longest prompt of a stage, its own system prompt included; see `StageLoad.of`."""
    asked = (_prompt(stage, variant, item) for variant, item in items if not item.fault)
    sizes = (len(prompt.encode(errors="surrogatepass")) for prompt in asked)
    return max(sizes, default=0) + len((stage.system or "").encode())


def _prompt(stage: Generate, variant: str, item: Item) -> str:
    """The prompt of an item; what an earlier stage is still to write is missing in it."""
    phrased = stage.phrased(variant)
    return phrased.render({name: item.fields.get(name, "") for name in phrased.reads()})


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=16).digest()


HOW_ASKED = {
    "side_by_side": "asked side by side",
    "as_the_cluster_allows": "asked beside others where the cluster holds all their pools at once",
    "alone": "asked in a stream of its own, in batches",
}


def plan_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """A plan as lines for a reader, from what `Plan.describe` returns."""
    yield from described["notes"]
    if "until" in described:
        yield "until: what follows is of all items; the run ends once it is settled, which may be earlier"
    if "budget_note" in described:
        yield described["budget_note"]
    for name, task in described["tasks"].items():
        variants = f" in {len(task['variants'])} variants" if task["variants"] else ""
        draws = f", {task['epochs']} draws of each item" if "epochs" in task else ""
        yield f"{name}: {task['samples']} samples{variants}{draws}"
        for stage in task["stages"]:
            if stage["role"] == Role.READER:
                yield f"  {stage['role']} reads what the rules cannot: at most {stage['calls']} requests"
                continue
            who = f"each of {stage['judges']} judges" if "judges" in stage else stage["role"]
            yield (
                f"  {who} writes {stage['writes']}: {stage['calls']} requests, {stage['distinct_prompts']} "
                f"distinct, about {stage['prompt_tokens']} prompt tokens"
            )
        if system := task.get("example_system"):
            yield from (f"  system | {line}" for line in system.split("\n"))
        phrasings = task.get("example_prompts", {})
        if task["example_prompt"] not in phrasings.values():
            yield from (f"  | {line}" for line in task["example_prompt"].split("\n"))
        for name, prompt in phrasings.items():
            yield from (f"  {name} | {line}" for line in prompt.split("\n"))
    labels = {
        target: next(pool["label"] for pool in pools if Role.TARGET in pool["roles"])
        for target, pools in described["streams"].items()
    }
    for kind, how in HOW_ASKED.items():
        asked = [labels[target] for target in described["targets"][kind]]
        if len(labels) > 1 and asked:
            yield f"{how}: {', '.join(asked)}"
    for target, pools in described["streams"].items():
        label = labels[target]
        yield f"{label}: one stream of {described['samples_per_target']} samples"
        for pool in pools:
            yield from pool_lines(pool)
    yield from total_lines(described)
