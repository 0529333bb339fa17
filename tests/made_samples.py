"""Samples made up for tests, and the run directories they stand in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rambla_ray.results.directory import RunDirectory
from rambla_ray.schema import NO_DETAILS, Outcome, ReplyDetails, Sample, Step, draw_name, to_table
from rambla_ray.storage import Folder

YES_NO = ("yes", "no")
ENDS = [outcome.value for outcome in Outcome]


def sample(
    root_id: str,
    answer: str = "yes",
    target: str = "yes",
    *,
    model: str = "m",
    task: str = "t",
    variant: str = "",
    outcome: str = "scored",
    text: str = "Yes.",
    error: str = "",
    rambla_answer: str | None = None,
    label: str | None = None,
    tokens: tuple[int, int] = (7, 2),
    finish_reason: str = "stop",
    details: ReplyDetails = NO_DETAILS,
    epoch: int = 0,
) -> Sample:
    """A sample with one step of the target's; without an answer unless it was scored."""
    read = answer if outcome == "scored" else ""
    failed = outcome in ("failed", "too_long")
    step = Step(
        stage="generate:response",
        role="target",
        model=model,
        request_id="0" * 64,
        prompt=f"Is {root_id} so?",
        text="" if failed else text,
        finish_reason="" if failed else finish_reason,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        error_kind="server" if failed else "",
        error=error if failed else "",
        details=NO_DETAILS if failed else details,
    )
    return Sample(
        sample_id=f"{model}/{task}/{variant or '-'}/{draw_name(root_id, epoch)}",
        root_id=root_id,
        model=model,
        task=task,
        variant=variant,
        target=target,
        label=target if label is None else label,
        fields={"question": f"Is {root_id} so?"},
        steps=[step],
        answer=read,
        rambla_answer=read if rambla_answer is None else rambla_answer,
        outcome=outcome,
        epoch=epoch,
    )


def task_spec(
    expected: Mapping[str, int], pair_with: str | None = None, labels: Sequence[str] = YES_NO
) -> dict[str, Any]:
    """How one task is scored, `expected` being its samples by variant."""
    return {
        "labels": list(labels),
        "pair_with": pair_with,
        "variants": list(expected),
        "expected": dict(expected),
    }


def spec(tasks: Mapping[str, Mapping[str, Any]], models: Sequence[str] = ("m",)) -> dict[str, Any]:
    """How a run is scored."""
    return {"synthetic": False, "models": list(models), "roles": {}, "tasks": dict(tasks)}


def blocks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples in lists of at most `size`."""
    left = iter(samples)
    while block := list(islice(left, size)):
        yield block


def store(
    location: object, how: Mapping[str, Any], samples: Iterable[Sample], *, model: str = "m", block: int = 64
) -> RunDirectory:
    """A run directory with the samples of one target."""
    directory = RunDirectory(Folder(str(location)))
    writer = directory.sample_writer(model, how)
    for some in blocks(samples, block):
        writer.add(to_table(some))
    writer.close()
    return directory


def many(tasks: Mapping[str, Sequence[str]], items: int, seed: int = 3) -> list[Sample]:
    """Samples of the same items in every variant of every task, answered at random, some of them not at all."""
    draw = random.Random(seed)
    found = []
    for task, variants in tasks.items():
        for variant in variants:
            for item in range(items):
                outcome = "scored" if draw.random() < 0.9 else draw.choice(ENDS)
                target = draw.choice(YES_NO)
                right = draw.random() < 0.8
                answer = target if right else draw.choice(YES_NO)
                found.append(
                    sample(
                        f"item-{item}",
                        answer,
                        target,
                        task=task,
                        variant=variant,
                        outcome=outcome,
                        text=f"{answer} {item}",
                        label=draw.choice(YES_NO),
                        rambla_answer=None if draw.random() < 0.97 else "",
                        tokens=(draw.randrange(50), draw.randrange(4)),
                    )
                )
    return found


TASKS = {"clean": ("",), "spelling": ("n=0", "n=3", "n=10"), "wrong-way": ("",)}


def planned(items: int) -> dict[str, Any]:
    """The scoring of `TASKS`, each with so many items."""
    return spec(
        {
            "clean": task_spec({"": items}),
            "spelling": task_spec(dict.fromkeys(TASKS["spelling"], items), "spelling/n=0"),
            "wrong-way": task_spec({"": items}, "clean"),
        }
    )
