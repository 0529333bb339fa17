"""Models of several runs against each other: who takes part, on which samples they meet, and in which order they rank.

Samples of two runs are the same where task, variant, item and epoch are, whatever their models; what an item holds is
compared as well, so that two datasets that share their ids are not taken for one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rambla_ray.errors import UserError, choose_from
from rambla_ray.results.directory import RunDirectory
from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.results.score import ScoredTask
from rambla_ray.schema import draw_name
from rambla_ray.scoring import comparison
from rambla_ray.scoring.cells import DrawIds
from rambla_ray.scoring.comparison import Marks, Pair
from rambla_ray.scoring.stats import mean
from rambla_ray.scoring.undefined import explained

SHOWN_IDS = 3  # So many samples are named that one side alone has, and whose items differ.
_COLUMNS = ["root_id", "epoch", "variant", "label", "fields", "steps.list.element.stage"]


class CellName(NamedTuple):
    """A task and a variant of it."""

    task: str
    variant: str

    def sample(self, root_id: str, epoch: int) -> str:
        """What a sample of it is called, whatever its model."""
        return f"{self.task}/{self.variant or '-'}/{draw_name(root_id, epoch)}"

    def samples(self, draws: DrawIds) -> list[str]:
        """What some of its samples are called."""
        return list(map(self.sample, draws.items.to_pylist(), draws.epochs.to_pylist()))


@dataclass(frozen=True)
class Rival:
    """One model of one run.

    Args:
        name: as it is called beside the others.
        model: its config's name in the run.
        directory: the run's.
        spec: how the run is scored.
    """

    name: str
    model: str
    directory: RunDirectory
    spec: Mapping[str, Any]

    @cached_property
    def marks(self) -> dict[CellName, Marks]:
        """How it did, by cell."""
        return {
            CellName(task, variant): Marks.of(cell, how["labels"])
            for task, how in self.spec["tasks"].items()
            for variant, cell in ScoredTask(self.directory.samples, self.model, task, None).cells.items()
        }

    @cached_property
    def items(self) -> dict[str, str]:
        """By sample, a digest of its item: the label, and the fields that no stage wrote an answer into."""
        return {
            CellName(task, row["variant"]).sample(row["root_id"], row["epoch"]): _digest(row)
            for task in self.spec["tasks"]
            for batch in StoredTask(self.directory.samples, self.model, task).batches(_COLUMNS)
            for row in batch.to_pylist()
        }


def _digest(row: Mapping[str, Any]) -> str:
    written = {step["stage"].partition(":")[2] for step in row["steps"]}
    written |= {f"original_{name}" for name in written}
    item = {name: value for name, value in json.loads(row["fields"]).items() if name not in written}
    return hashlib.sha256(json.dumps([row["label"], item], sort_keys=True).encode()).hexdigest()


def rivals_of(directories: Sequence[RunDirectory]) -> list[Rival]:
    """The models of some runs, each under what people call it; where several have one name, under its run as well.

    Raises:
        UserError: a run has no samples, or is of a newer version.
    """
    found = [
        (labels.get(model, model), model, directory, spec)
        for directory in directories
        for labels in [directory.model_labels()]
        for spec in [read_spec(directory.samples)]
        for model in spec["models"]
    ]
    count = Counter(label for label, *_ in found)
    return [
        Rival(label if count[label] == 1 else f"{directory.folder.name}/{model}", model, directory, spec)
        for label, model, directory, spec in found
    ]


@dataclass
class Contest:
    """The comparison of some rivals.

    Args:
        rivals: at least two, in the order in which they were named.
        baseline: the name of the one that all others are compared with; None for the first run's models, each with
            its namesakes in later runs, and where it has none with all that are there.
    """

    rivals: Sequence[Rival]
    baseline: str | None = None

    def pairs(self) -> list[tuple[Rival, Rival]]:
        """Who is compared with whom. Raises UserError where the baseline is none of them."""
        if self.baseline is not None:
            by_name = {rival.name: rival for rival in self.rivals}
            if self.baseline not in by_name:
                raise UserError(f"no model '{self.baseline}' in these runs; {choose_from(self.baseline, by_name)}")
            return [(by_name[self.baseline], rival) for rival in self.rivals if rival.name != self.baseline]
        first = self.rivals[0].directory
        own = [rival for rival in self.rivals if rival.directory is first]
        others = [rival for rival in self.rivals if rival.directory is not first]
        return [
            (rival, other) for other in others for rival in ([one for one in own if one.model == other.model] or own)
        ]

    def check_labels(self) -> None:
        """Refuse runs in which a task has other labels. Raises UserError."""
        for baseline, rival in self.pairs():
            own, others = baseline.spec["tasks"], rival.spec["tasks"]
            for task in (task for task in own if task in others and own[task]["labels"] != others[task]["labels"]):
                raise UserError(
                    f"task {task} has the labels {', '.join(own[task]['labels'])} in {baseline.name} and "
                    f"{', '.join(others[task]['labels'])} in {rival.name}: leave it out of one of the runs"
                )

    def check_items(self) -> None:
        """Refuse runs whose items differ under the same ids. Raises UserError."""
        for baseline, rival in self.pairs():
            common = baseline.items.keys() & rival.items.keys()
            differing = sorted(sample for sample in common if baseline.items[sample] != rival.items[sample])
            if differing:
                raise UserError(
                    f"{len(differing)} of {len(common)} samples of {baseline.name} and {rival.name} have the same id "
                    f"and other items ({', '.join(differing[:SHOWN_IDS])}): they asked other data; --other-data "
                    "compares them all the same"
                )

    def comparisons(self) -> list[dict[str, Any]]:
        """As `comparisons` in metrics.json, each rival against its baseline, which is b.

        Raises:
            UserError: two have no sample in common.
        """
        entries = []
        for baseline, rival in self.pairs():
            pair = Pair(rival.name, baseline.name)
            for name in (name for name in baseline.marks if name in rival.marks):
                pair.add(*name, rival.marks[name], baseline.marks[name])
            entries += pair.entries()
            if entries[-1]["n"] in (0, comparison.GIVES_SCORES):
                raise UserError(f"{baseline.name} and {rival.name} have no scored sample in common")
        return [explained(entry) for entry in comparison.adjusted(entries)]

    def unmatched(self) -> Iterator[str]:
        """For each two that are compared, how many samples one of them alone has, and some of these, as a line."""
        for baseline, rival in self.pairs():
            for one, other in ((baseline, rival), (rival, baseline)):
                if alone := sorted(_samples(one) - _samples(other)):
                    named = ", ".join([*alone[:SHOWN_IDS], *(["…"] if len(alone) > SHOWN_IDS else [])])
                    yield f"{len(alone)} samples of {one.name} are not in {other.name}: {named}"

    def ranking(self) -> list[dict[str, Any]]:
        """The rivals by their accuracy on the samples that all of them have, the best first.

        `n` counts those of them that were scored of the model; `accuracy` has its interval over items.
        """
        common = set.intersection(*map(_samples, self.rivals))
        rows = []
        for rival in self.rivals:
            right, items = [], []
            for name, marks in rival.marks.items():
                columns = (marks.draws.items.to_pylist(), name.samples(marks.draws), marks.scored, marks.right)
                for item, sample, scored, is_right in zip(*columns, strict=True):
                    if scored and not marks.gives_scores and sample in common:
                        right.append(is_right)
                        items.append(item)
            groups = pa.array(items, pa.string()).dictionary_encode().indices.to_numpy()
            estimate = mean(np.array(right, np.float64), groups) if right else None
            value = {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else None
            rows.append({"model": rival.name, "of": len(common), "n": len(right), "accuracy": value})
        return sorted(rows, key=lambda row: -row["accuracy"]["value"] if row["accuracy"] else 1.0)


def _samples(rival: Rival) -> set[str]:
    return {sample for name, marks in rival.marks.items() for sample in name.samples(marks.draws)}
