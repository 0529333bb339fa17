"""The plan: which samples a run is made of, which pools they pass, and whether the cluster can hold those at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from rambla_ray.config.dataset import Selection
from rambla_ray.config.run import RunConfig
from rambla_ray.config.task import TaskConfig, sample_of
from rambla_ray.config.workload import Workload
from rambla_ray.display import print_error
from rambla_ray.errors import UserError
from rambla_ray.run.askable import check_askable
from rambla_ray.run.blocks import blocks_of, ordered_blocks
from rambla_ray.run.described import described_streams
from rambla_ray.run.estimate import StageLoad, longest_of
from rambla_ray.run.expected import budget_note, total
from rambla_ray.run.items import by_variant, in_order_of, labelled, selections_of
from rambla_ray.run.placement import Level, levels_of
from rambla_ray.run.repeated_asking import check_draw_names, repeat_notes
from rambla_ray.run.streams import describe_streams
from rambla_ray.schema import SCORE, Item, Role, Sample
from rambla_ray.scoring.order import Cells, in_order
from rambla_ray.tasks.stages import Generate

# The column `fields` holds each item's fields as a JSON string.
ITEM_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("root_id", "fields", "fault")])


class Plan:
    """A run's samples and streams, before anything is asked.

    Args:
        config: the run.

    Raises:
        UserError: data that cannot be read, labels that cannot be answered, too few items, a missing key or file, a
            calibration of another judge.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._selections = selections_of(config)
        loaded = {
            name: labelled(name, task, self._selections[task.dataset].items) for name, task in config.tasks.items()
        }
        self._items = {
            (name, variant): items
            for name, task in config.tasks.items()
            for variant, items in by_variant(name, task, loaded[name], config.options.seed).items()
        }
        if config.options.until is not None:
            self._items = in_order_of(config.options.seed, self._items)
        for (name, _), items in self._items.items():
            check_draw_names(name, config.tasks[name].draws, items)
        for target in config.targets:
            for level in self.levels(target):
                check_askable(level, config.tasks)
        self.calibration: Mapping[str, Any] | None = None
        if config.options.judge_calibration is not None:
            from rambla_ray.results.judge_calibration import read_calibration  # It loads scipy, which takes a second.

            self.calibration = read_calibration(config, config.options.judge_calibration)

    @property
    def notes(self) -> list[str]:
        """What a user should know: each name that stands twice, dataset that `keep` took from, and pair of nothing."""
        found = {name: selection.describe() for name, selection in self._selections.items()}
        of_datasets = [f"dataset {name}: {line}" for name, line in found.items() if line]
        return [*self.config.options.repeated, *of_datasets, *self._unpaired(), *repeat_notes(self.config)]

    def _unpaired(self) -> Iterator[str]:
        """A line for each task that shares no item with the one that it is compared with, such as by a low limit."""
        for name, task in self.config.tasks.items():
            other, _, variant = (task.pair_with or "").partition("/")
            keys = (name, task.variants[0]), (other, variant)
            own, others = ({item.root_id for item in self._items.get(key, ())} for key in keys)
            if others and not own & others:
                yield f"task {name} is compared with {task.pair_with}, and they have no item in common"

    @property
    def samples_per_target(self) -> int:
        """How many samples one target's stream holds."""
        return sum(self.expected.values())

    def levels(self, target: str) -> tuple[Level, ...]:
        """The pools of a target's stream, in the order in which samples pass them."""
        return levels_of(self.config, target)

    @property
    def expected(self) -> dict[tuple[str, str], int]:
        """How many samples each (task, variant) has, for one target."""
        return {key: len(items) * self.config.tasks[key[0]].draws for key, items in self._items.items()}

    @cached_property
    def cells(self) -> Cells:
        """What each target is asked, cell by cell."""
        tasks = self.config.tasks
        return Cells(
            {cell: [item.root_id for item in items] for cell, items in self._items.items()},
            {name: task.draws for name, task in tasks.items()},
            {name: task.answer.label_names for name, task in tasks.items()},
        )

    def samples(self, target: str) -> Iterator[Sample]:
        """A target's samples, by task, epoch and item."""
        for (name, variant), items in self._items.items():
            task = self.config.tasks[name]
            for epoch in range(task.draws):
                for item in items:
                    yield sample_of(target, name, task, variant, item, epoch)

    def tables(self) -> Iterator[tuple[list[tuple[str, str]], pa.Table]]:
        """The items as tables of `ITEM_SCHEMA`, each with the (task, variant) pairs that it is for.

        Tasks that change nothing in a dataset share its table.
        """
        users: dict[int, list[tuple[str, str]]] = {}
        for key, items in self._items.items():
            users.setdefault(id(items), []).append(key)
        for keys in users.values():
            items = self._items[keys[0]]
            columns = [[item.root_id for item in items], [json.dumps(item.fields) for item in items]]
            yield keys, pa.table([*columns, [item.fault for item in items]], schema=ITEM_SCHEMA)

    def blocks(self, levels: Sequence[Level]) -> list[dict[str, Any]]:
        """The samples of one target of a stream, whose pools are settled, as blocks; see `blocks_of`."""
        if self.config.options.until is not None:
            order = in_order((item for own in self.cells.items.values() for item in own), self.config.options.seed)
            return ordered_blocks(self.cells, order, levels[0].config)
        in_batches = any(level.config.batch for level in levels)
        items = {key: len(own) for key, own in self._items.items()}
        return blocks_of(self.expected, levels[0].config, items=items, in_batches=in_batches)

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: per task its samples and stages, per target its pools and what it will be asked.

        Tokens are estimated at four characters each. What a later stage is sent depends on what earlier ones answer:
        its calls are an upper bound, its tokens an estimate from the item's own texts.
        """
        return dict(self._described)

    @cached_property
    def _described(self) -> Mapping[str, Any]:
        loads = {
            name: [
                StageLoad.of(stage, self._items_of(name), 1 if stage.role == Role.REPHRASER else task.draws)
                for stage in self._asking(task)
            ]
            for name, task in self.config.tasks.items()
        }
        streams = described_streams(
            self.config,
            {target: (self.levels(target), self.samples(target)) for target in self.config.targets},
            {name: self.config.reader if self._is_read(task) else None for name, task in self.config.tasks.items()},
        )
        whole = total(streams.values())
        note = budget_note(self.config, whole)
        return {
            "synthetic": self.config.synthetic,
            "samples_per_target": self.samples_per_target,
            **({"until": until.model_dump(mode="json")} if (until := self.config.options.until) else {}),
            "datasets": {name: _describe_selection(selection) for name, selection in self._selections.items()},
            "notes": self.notes,
            **({"budget_note": note} if note else {}),
            "tasks": {name: self._describe_task(name, loads[name]) for name in loads},
            "streams": streams,
            "targets": describe_streams(self.config),
            "total": whole,
        }

    def workload(self, level: Level) -> Workload:
        """What the model of a level, and those that share its actors, will be asked in the stream where that is most.

        It depends on nothing but the plan: not on what the ledger holds already.
        """
        return max(self._workload_in(stream[0], level) for stream in self.config.streams)

    def _workload_in(self, target: str, level: Level) -> Workload:
        calls = tokens = 0
        for other, pool in zip(self.levels(target), self._described["streams"][target], strict=True):
            if (other.name, other.config.params) == (level.name, level.config.params):
                calls += len(other.family) * (pool["unique_calls"] + pool["later_calls_at_most"])
                tokens += len(other.family) * pool["prompt_tokens"]
        return Workload(calls, tokens)

    def longest_prompt(self, level: Level) -> int | None:
        """The bytes of the longest prompt that a level will be sent, with system prompt and choice, if any.

        None where prompts of the level hold what earlier stages are still to write.
        """
        longest = 0
        for name, task in self.config.tasks.items():
            written: set[str] = set()
            for stage in self._asking(task):
                if stage.role in level.roles:
                    if not written.isdisjoint(stage.reads()) or stage.role == Role.READER:
                        return None
                    longest = max(longest, longest_of(stage, self._items_of(name)) + _longest_choice(task))
                written.add(stage.output)
        return longest

    def _items_of(self, name: str) -> list[tuple[str, Item]]:
        """The items of a task, each with its variant, those of its variants one after another."""
        return [(variant, item) for variant in self.config.tasks[name].variants for item in self._items[name, variant]]

    def _describe_task(self, name: str, loads: Sequence[StageLoad]) -> dict[str, Any]:
        task, items = self.config.tasks[name], self._items_of(name)
        return {
            "samples": len(items) * task.draws,
            **({"epochs": task.draws} if task.draws > 1 else {}),
            "variants": [variant for variant in task.variants if variant],
            "dataset": task.dataset,
            "labels": dict(sorted(Counter(item.fields[task.answer.target] for _, item in items).items())),
            "not_asked": sum(bool(item.fault) for _, item in items),
            "stages": [
                load.describe()
                | ({"judges": task.judges} if task.judges > 1 and load.stage.role == Role.JUDGE else {})
                for load in loads
            ],
            **({"example_system": system} if (system := loads[0].stage.system) else {}),
            "example_prompt": loads[0].example,
            **next(({"example_prompts": load.phrasings} for load in loads if load.phrasings), {}),
        }

    def _asking(self, task: TaskConfig) -> tuple[Generate, ...]:
        """What asks somebody in a task: its stages, and what asks the reader, if it does."""
        reader = self.config.reader
        return (*task.generates, reader) if reader is not None and self._is_read(task) else task.generates

    def _is_read(self, task: TaskConfig) -> bool:
        """Whether the reader may be asked about a task's answers: not where they are likelihoods, scores or votes."""
        last = task.generates[-1].role
        players = self.config.roles[last].members if last != Role.TARGET else ()
        models = [player.config for player in players] or self.config.targets.values()
        if task.answer.by == "likelihood" or task.judges > 1:
            return False
        return not all(model.params.produces == SCORE for model in models)

    def preflight(self, *, same_machine: bool) -> None:
        """Check every model that will be used, and print on stderr what there is to remark.

        Raises:
            UserError: naming the model, its role and the way out; nothing has been printed.
        """
        levels = {(level.name, level.roles): level for target in self.config.targets for level in self.levels(target)}
        if self.config.options.budget.usd is not None:
            _refuse_unpriced(list(levels.values()))
        for level in levels.values():
            try:
                level.config.preflight(same_machine=same_machine)
            except UserError as error:
                raise UserError(f"model {level.name}: {error}{self._way_out(level)}") from None
        remarks = [remark for level in levels.values() for remark in level.config.params.remarks]
        if self.config.options.budget.is_set:
            remarks.append(self._described.get("budget_note", ""))
        for remark in dict.fromkeys(filter(None, remarks)):
            print_error(remark, "note")

    def _way_out(self, level: Level) -> str:
        if Role.TARGET in level.roles:
            return ""
        role = level.roles[0]
        if role == Role.READER:
            return "; it is the reader, choose another with roles.reader=<model>, or leave roles.reader out"
        tasks = [name for name, task in self.config.tasks.items() if any(s.role == role for s in task.generates)]
        return f"; it is the {role} of task {', '.join(tasks)}, choose another with roles.{role}=<model>"


def _refuse_unpriced(levels: Sequence[Level]) -> None:
    """Refuse a budget in dollars that binds nothing, or not all that is charged. Raises UserError."""
    unpriced = [level for level in levels if level.config.params.is_charged and not level.config.price]
    if unpriced or not any(level.config.price and level.config.price.most(1, 1) for level in levels):
        models = ", ".join(dict.fromkeys(level.name for level in unpriced or levels))
        raise UserError(
            f"budget.usd needs to know what model {models} charges: give it a price "
            "(price: {input_per_million: ..., output_per_million: ...}), or use budget.tokens"
        )


def _longest_choice(task: TaskConfig) -> int:
    """The bytes of the longest choice, where each is put behind the prompt."""
    return max((len(choice.encode()) for choice in task.answer.choices), default=0) + 1


def _describe_selection(selection: Selection) -> dict[str, Any]:
    return {
        "read": selection.read,
        "items": len(selection.items),
        "left_out": {field: dict(sorted(values.items())) for field, values in selection.left_out.items()},
    }
