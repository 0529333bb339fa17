"""The run directory: what a run leaves behind, written so that it explains, repeats and verifies itself."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from rambla_ray import metrics
from rambla_ray.config import ModelConfig, RunConfig
from rambla_ray.errors import UserError
from rambla_ray.schema import SAMPLE_SCHEMA, Outcome, Role, Sample
from rambla_ray.stats import holm
from rambla_ray.storage import Folder

SPEC_KEY = b"rambla_ray"  # Parquet metadata: how the samples are scored, so that they can be on their own
ROWS_PER_GROUP = 2048
PACKAGES = ("ray", "torch", "transformers", "openai", "datasets", "scikit-learn", "scipy", "numpy", "pyarrow")


def to_json(value: object) -> bytes:
    """Strict JSON with sorted keys. Raises ValueError on NaN."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def scoring_spec(config: RunConfig) -> dict[str, Any]:
    """How a run's samples are scored: what the metrics need beside the samples themselves."""
    return {
        "synthetic": config.synthetic,
        "models": list(config.targets),
        "roles": {str(role): played.config_name for role, played in config.roles.items()},
        "tasks": {
            name: {
                "labels": list(task.answer.label_names),
                "label": task.answer.target,
                "pair_with": task.pair_with,
                "variants": list(task.variants),
            }
            for name, task in config.tasks.items()
        },
    }


class RunDirectory:
    """One run's folder, on a local disk or in a bucket."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._samples = Folder(f"{folder.location}/samples")
        self._earlier: list[dict[str, Any]] = []

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Open the folder of a run, new or to be continued, and check that it can be written.

        Raises:
            UserError: it cannot, or it belongs to another config; the message names the keys that differ.
        """
        run = cls(Folder(f"{config.options.runs_dir.rstrip('/')}/{config.run_id}"))
        run.folder.make_writable("runs_dir")
        try:
            there = OmegaConf.to_container(OmegaConf.create(run.folder.read("config.yaml").decode()))
        except FileNotFoundError:
            there = None
        if isinstance(there, dict):
            differing = _differences(there.get("question", {}), config.question())
            if differing:
                raise UserError(
                    f"run_id={config.run_id} belongs to another config ({run.folder.location}); these keys differ: "
                    f"{', '.join(differing[:8])}; choose another run_id, or none"
                )
        return run

    def begin(self, config: RunConfig, plan: Mapping[str, Any], words: Sequence[str]) -> None:
        """Write what is known before the first call: config.yaml, plan.json, env.json."""
        options = config.options.model_dump(mode="json")
        question = config.question()
        document = {"command": list(words), "run_id": config.run_id, "options": options, "question": question}
        document["pools"] = {
            name: {"pool": model.pool.model_dump(mode="json"), "rate": model.rate.model_dump(mode="json")}
            for name, model in config.targets.items()
        }
        self.folder.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(document)).encode())
        self.folder.write("plan.json", to_json(plan))
        self.write_env({})
        try:
            self._earlier = json.loads(self.folder.read("calls.json"))["invocations"]
        except FileNotFoundError:
            self._earlier = []

    def write_env(self, models: Mapping[str, Any]) -> None:
        """env.json: versions, and what each loaded model says it is (weights, generation parameters, template)."""
        versions: dict[str, str | None] = {}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = None
        self.folder.write(
            "env.json",
            to_json(
                {
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "packages": versions,
                    "models": dict(models),
                }
            ),
        )

    def sample_writer(self, target: str, spec: Mapping[str, Any]) -> SampleWriter:
        """A writer of one target's samples; they replace those of an earlier invocation when it is closed."""
        self._samples.make_writable("runs_dir")
        return SampleWriter(self._samples, target, spec)

    def write_calls(
        self,
        config: RunConfig,
        spent: Sequence[Mapping[str, Any]],
        answered: Mapping[tuple[str, str], int],
        invocation: Mapping[str, Any],
    ) -> None:
        """calls.json: what the run took, over all its invocations.

        Args:
            config: the run.
            spent: per model and role, the ledger's counts of this run (`ledger.Spent`).
            answered: per (model, role), the steps that have an answer; those not paid for were reused.
            invocation: this invocation's start, wall time and calls.
        """
        models = []
        for entry in spent:
            price = _model(config, entry["model"], entry["role"]).price
            models.append(
                {
                    **entry,
                    "reused": max(0, answered.get((entry["model"], entry["role"]), 0) - entry["answered"]),
                    "cost_usd": price.cost(entry["prompt_tokens"], entry["completion_tokens"]) if price else None,
                }
            )
        known = {(entry["model"], entry["role"]) for entry in spent}
        models += [
            {"model": model, "role": role, "calls": 0, "answered": 0, "reused": count}
            for (model, role), count in sorted(answered.items())
            if (model, role) not in known
        ]
        invocations = [*self._earlier, dict(invocation)]
        self.folder.write(
            "calls.json",
            to_json(
                {
                    "models": sorted(models, key=lambda entry: (entry["model"], entry["role"])),
                    "invocations": invocations,
                    "wall_s": sum(one["wall_s"] for one in invocations),
                }
            ),
        )

    def write_errors(self, errors: Sequence[Mapping[str, Any]]) -> None:
        """errors.jsonl: one line per sample that was not scored, by sample_id."""
        lines = sorted(json.dumps(error) for error in errors)
        self.folder.write("errors.jsonl", "".join(line + "\n" for line in lines).encode())

    def score(self) -> dict[str, Any]:
        """metrics.json, from samples/ alone. Raises UserError when there are none."""
        names = self._samples.names(".parquet")
        if not names:
            raise UserError(f"{self.folder.location}: there are no samples; is it a run directory that was finished?")
        cells: dict[tuple[str, str, str], list[metrics.Scored]] = {}
        spec: dict[str, Any] = {}
        for name in names:
            with self._samples.filesystem.open_input_file(self._samples.path(name)) as stream:
                file = pq.ParquetFile(stream)
                spec = json.loads(file.schema_arrow.metadata[SPEC_KEY])
                for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
                    for row in batch.to_pylist():
                        key = (row["model"], row["task"], row["variant"])
                        cells.setdefault(key, []).append(_scored(row, spec))
        return _metrics(cells, spec)

    def write_metrics(self) -> dict[str, Any]:
        """Score the samples and write metrics.json; returns what is in it."""
        scores = self.score()
        self.folder.write("metrics.json", to_json(scores))
        return scores

    def read_json(self, name: str) -> Any:
        """One of the run's JSON files. Raises UserError when it is not there."""
        try:
            return json.loads(self.folder.read(name))
        except FileNotFoundError:
            raise UserError(
                f"{self.folder.location} has no {name}; is it a run directory that was finished?"
            ) from None


class SampleWriter:
    """Streams finished samples of one target to Parquet, and to errors.jsonl those without an answer."""

    def __init__(self, folder: Folder, target: str, spec: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name, self._draft = f"{target}.parquet", f"{target}.parquet.draft"
        schema = SAMPLE_SCHEMA.with_metadata({SPEC_KEY: json.dumps(spec, sort_keys=True).encode()})
        self._schema = schema
        self._stream = folder.filesystem.open_output_stream(folder.path(self._draft))
        self._parquet = pq.ParquetWriter(self._stream, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.answered: Counter[tuple[str, str]] = Counter()

    def add(self, sample: Sample) -> None:
        """Take one finished sample."""
        self._rows.append(sample.to_record())
        self.answered.update((step.model, step.role) for step in sample.steps if not step.failed)
        if sample.outcome != Outcome.SCORED:
            self.errors.append(_error_line(sample))
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Finish the file and put it in its place."""
        self._flush()
        self._parquet.close()
        self._stream.close()
        self._folder.publish(self._draft, self._name)

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def _error_line(sample: Sample) -> dict[str, Any]:
    last = sample.steps[-1]
    return {
        "sample_id": sample.sample_id,
        "outcome": sample.outcome,
        "stage": last.stage,
        "role": last.role,
        "error_kind": last.error_kind,
        "error": last.error or f"no answer read from: {last.text[:200]!r}",
    }


def _model(config: RunConfig, name: str, role: str) -> ModelConfig:
    return config.targets[name] if role == Role.TARGET else config.roles[Role(role)].config


def _differences(there: Any, here: Any, where: str = "") -> list[str]:
    """The dotted keys at which two plain values differ, sorted."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted({*there, *here}, key=str):
            inner = f"{where}.{key}" if where else str(key)
            found += _differences(there.get(key), here.get(key), inner)
        return found
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [
            key
            for place, (one, other) in enumerate(zip(there, here, strict=True))
            for key in _differences(one, other, f"{where}[{place}]")
        ]
    return [] if there == here else [where]


def _scored(row: Mapping[str, Any], spec: Mapping[str, Any]) -> metrics.Scored:
    label = spec["tasks"][row["task"]]["label"]
    own = [step for step in row["steps"] if step["role"] == Role.TARGET]
    return metrics.Scored(
        root_id=row["root_id"],
        target=row["target"],
        label=json.loads(row["fields"])[label],
        answer=row["answer"],
        rambla_answer=row["rambla_answer"],
        outcome=Outcome(row["outcome"]),
        text=row["steps"][-1]["text"],
        prompt_tokens=sum(step["prompt_tokens"] for step in own),
        completion_tokens=sum(step["completion_tokens"] for step in own),
    )


def _metrics(cells: Mapping[tuple[str, str, str], list[metrics.Scored]], spec: Mapping[str, Any]) -> dict[str, Any]:
    """metrics.json: every cell in the plan's order, what varies inside a task, and Holm's p over the run."""

    def place(key: tuple[str, str, str]) -> tuple[int, int, int]:
        model, task, variant = key
        variants = spec["tasks"][task]["variants"]
        return spec["models"].index(model), list(spec["tasks"]).index(task), variants.index(variant)

    ordered = {key: sorted(cells[key], key=lambda sample: sample.root_id) for key in sorted(cells, key=place)}
    scored = [_cell(key, ordered, spec) for key in ordered]
    for model in spec["models"]:
        pairs = {
            str(number): cell["paired"]
            for number, cell in enumerate(scored)
            if cell["model"] == model and cell["paired"] and cell["paired"]["mcnemar_p"] is not None
        }
        for number, adjusted in holm({number: pair["mcnemar_p"] for number, pair in pairs.items()}).items():
            pairs[number]["mcnemar_p_holm"] = adjusted
    effects = []
    for model in spec["models"]:
        for task, how in spec["tasks"].items():
            variants = {name: ordered[model, task, name] for name in how["variants"] if (model, task, name) in ordered}
            if len(variants) > 1:
                reasons: dict[str, str] = {}
                found = metrics.without_nan(metrics.variant_effects(variants), "", reasons)
                effects.append({"model": model, "task": task, **found, "null_reasons": reasons})
    return {"synthetic": spec["synthetic"], "roles": spec["roles"], "cells": scored, "effects": effects}


def _cell(
    key: tuple[str, str, str], cells: Mapping[tuple[str, str, str], list[metrics.Scored]], spec: Mapping[str, Any]
) -> dict[str, Any]:
    model, task, variant = key
    how = spec["tasks"][task]
    cell: dict[str, Any] = metrics.cell_metrics(cells[key], how["labels"])
    cell |= {"model": model, "task": task, "variant": variant, "paired": None}
    reasons: dict[str, str] = {}
    if cell["accuracy"]["value"] is None:
        reasons["accuracy.value"] = (
            "the model gives scores, not answers" if "score" in cell else "no sample was scored"
        )
    if how["pair_with"] and how["pair_with"] != f"{task}/{variant}":
        other, _, at = how["pair_with"].partition("/")
        clean = cells.get((model, other, at))
        if clean is None:
            reasons["paired"] = f"task {how['pair_with']} is not in this run"
        else:
            cell["paired"] = {"with": how["pair_with"], **metrics.paired_metrics(cells[key], clean)}
    cell = metrics.without_nan(cell, "", reasons)
    cell["null_reasons"] = reasons
    return cell


def invocation(started: float, calls: int, *, finished: bool) -> dict[str, Any]:
    """One line of calls.json's `invocations`: `started` is Unix time, `wall_s` seconds until now."""
    return {
        "started": started,
        "wall_s": round(time.time() - started, 3),
        "calls": calls,
        "finished": finished,
    }
