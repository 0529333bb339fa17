"""The estimate before a run: what each stage of a task sends, and the plan as lines for a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rambla_ray.run.expected_lines import pool_lines, total_lines
from rambla_ray.run.pool_calls import CHARS_PER_TOKEN
from rambla_ray.schema import Item, Role
from rambla_ray.tasks.stages import Generate

_PROMPT = np.dtype([("digest", "V16"), ("tokens", np.int64), ("draws", np.int64)])


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What a stage will send, as far as it is known before anything is answered.

    Args:
        stage: the stage, or what asks the reader.
        prompts: for each item that can be asked, the digest of its prompt, about how many tokens that has, and how
            many answers to it are drawn.
        example: the prompt of the first item.
        phrasings: the same in each phrasing, where there are several.
        choices: how many choices are asked for by their likelihood; 0 where a text is.
    """

    stage: Generate
    prompts: NDArray[np.void]
    example: str
    phrasings: Mapping[str, str]
    choices: int

    @classmethod
    def of(
        cls, stage: Generate, items: Sequence[tuple[str, Item]], choices: Sequence[str] = (), draws: int = 1
    ) -> StageLoad:
        """The load of a stage that gets these items, at least one, and asks for a text, or how likely choices are.

        Args:
            stage: the stage.
            items: what it gets, each with its variant of the task.
            choices: those that it asks for the likelihood of, if it does.
            draws: how many answers to each are drawn.
        """
        before = f"{stage.system}\n" if stage.system else ""
        texts = (before + _prompt(stage, variant, item) for variant, item in items if not item.fault)
        asked = f"\n{list(choices)}" if choices else ""  # The same prompt is another call where a text is asked for.
        sizes = ((_digest(text + asked), len(text) // CHARS_PER_TOKEN + 1, draws) for text in texts)
        variants = stage.variants() if stage.templates else ()
        phrasings = {variant: _prompt(stage, variant, items[0][1]) for variant in variants}
        return cls(stage, np.fromiter(sizes, dtype=_PROMPT), _prompt(stage, *items[0]), phrasings, len(choices))

    @property
    def calls(self) -> int:
        """How many prompts it sends."""
        return calls_of(self.prompts)

    @property
    def tokens(self) -> int:
        """About how many tokens they have together."""
        return tokens_of(self.prompts)

    def describe(self) -> dict[str, Any]:
        """The stage and its load as JSON values."""
        return {
            "kind": self.stage.kind,
            "role": self.stage.role,
            "writes": self.stage.output,
            "calls": self.calls,
            "distinct_prompts": calls_of(distinct([self])),
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


def calls_of(prompts: NDArray[np.void]) -> int:
    """How many requests some prompts are: one for each draw."""
    return int(prompts["draws"].sum())


def tokens_of(prompts: NDArray[np.void]) -> int:
    """About how many tokens those requests have together."""
    return int((prompts["tokens"] * prompts["draws"]).sum())


def distinct(loads: Sequence[StageLoad]) -> NDArray[np.void]:
    """The prompts of some stages together, each once, with the most draws that one of them asks for."""
    rows = np.concatenate([load.prompts for load in loads]) if loads else np.empty(0, dtype=_PROMPT)
    rows = rows[np.argsort(-rows["draws"], kind="stable")]
    _, first = np.unique(rows["digest"], return_index=True)
    return rows[first]


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
