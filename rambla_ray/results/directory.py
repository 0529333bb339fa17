"""The run directory: what a run leaves behind, written so that it explains, repeats and verifies itself."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from rambla_ray.config.model import ModelConfig
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError
from rambla_ray.ledger.spent import Spent
from rambla_ray.results.samples import SampleWriter, error_lines, file_name
from rambla_ray.schema import Role
from rambla_ray.storage import Folder

COUNTED = tuple(field.name for field in fields(Spent))  # of each model and role, in calls.json
PACKAGES = ("ray", "torch", "transformers", "openai", "datasets", "scikit-learn", "scipy", "numpy", "pyarrow")


def versions() -> dict[str, str | None]:
    """The versions here of Python and of the packages that results may depend on; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def to_json(value: object) -> bytes:
    """Strict JSON with sorted keys. Raises ValueError on NaN."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def scoring_spec(config: RunConfig, expected: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """How a run's samples are scored: what the metrics need beside the samples themselves.

    Args:
        config: the run.
        expected: per (task, variant), how many samples each target has.
    """
    return {
        "synthetic": config.synthetic,
        "models": list(config.targets),
        "roles": {str(role): played.config_name for role, played in config.roles.items()},
        "tasks": {
            name: {
                "labels": list(task.answer.label_names),
                "pair_with": task.pair_with,
                "variants": list(task.variants),
                "expected": {variant: expected.get((name, variant), 0) for variant in task.variants},
            }
            for name, task in config.tasks.items()
        },
    }


class RunDirectory:
    """One run's folder, on a local disk or in a bucket."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.samples = Folder(f"{folder.location}/samples")
        self._earlier: list[dict[str, Any]] = []

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Open the folder of a run, new or to be continued, and check that it can be written.

        Raises:
            UserError: it cannot, or it belongs to another config; the message names the keys that differ. Or the names
                of two targets and tasks come to the same file.
        """
        files = Counter(file_name(target, task) for target in config.targets for task in config.tasks)
        for name, count in files.items():
            if count > 1:
                raise UserError(f"two targets and tasks would share the file {name}: rename a model or task config")
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
        packages = versions()
        python = packages.pop("python")
        env = {"python": python, "platform": platform.platform(), "packages": packages, "models": dict(models)}
        self.folder.write("env.json", to_json(env))

    def sample_writer(self, target: str, spec: Mapping[str, Any]) -> SampleWriter:
        """A writer of one target's samples; they replace those of an earlier invocation when it is closed."""
        self.samples.make_writable("runs_dir")
        return SampleWriter(self.samples, target, spec)

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
            spent: per model and role, the ledger's counts of this run over all invocations: `model`, `role` and what
                `ledger.Spent` has.
            answered: per (model, role), the steps that have an answer; those not paid for were reused.
            invocation: this invocation's start, wall time and calls.
        """
        entries = {(model, role): {"model": model, "role": role} for model, role in answered}
        entries |= {(entry["model"], entry["role"]): dict(entry) for entry in spent}
        models = []
        for (model, role), entry in sorted(entries.items()):
            counts: dict[str, Any] = {**dict.fromkeys(COUNTED, 0), **entry}
            price = _model(config, model, role).price
            counts["reused"] = max(0, answered.get((model, role), 0) - counts["answered"])
            counts["cost_usd"] = price.cost(counts["prompt_tokens"], counts["completion_tokens"]) if price else None
            models.append(counts)
        invocations = [*self._earlier, dict(invocation)]
        self.folder.write(
            "calls.json",
            to_json(
                {
                    "models": models,
                    "invocations": invocations,
                    "wall_s": sum(one["wall_s"] for one in invocations),
                }
            ),
        )

    def write_errors(self) -> None:
        """errors.jsonl, from samples/: one line per sample that was not scored, by target and task."""
        draft = "errors.jsonl.draft"
        with self.folder.filesystem.open_output_stream(self.folder.path(draft)) as stream:
            for line in error_lines(self.samples):
                stream.write(line)
        self.folder.publish(draft, "errors.jsonl")

    def score(self) -> dict[str, Any]:
        """What metrics.json holds, from samples/ alone. Raises UserError when there are none."""
        from rambla_ray.results.score import score

        return score(self.samples)

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

    def read_calls(self) -> dict[str, Any] | None:
        """calls.json, or None when there is none: the run ended with nobody left to count."""
        try:
            calls: dict[str, Any] = json.loads(self.folder.read("calls.json"))
        except FileNotFoundError:
            return None
        return calls


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


def throughput(actors: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the actors of a local model have done together, from what each says of itself; see `actors.base.Work`.

    Tokens per second are those of one actor while it is busy, padding and what rows share not counted.
    """
    total = {key: sum(actor[key] for actor in actors) for key in actors[0]}
    computed, busy, idle = total["computed_tokens"], total["busy_s"], total["idle_s"]
    return {
        "actors": len(actors),
        "batches": total["batches"],
        "requests": total["requests"],
        "requests_per_batch": _ratio(total["requests"], total["batches"]),
        "prompt_tokens_per_s": _ratio(total["prompt_tokens"], busy),
        "generated_tokens_per_s": _ratio(total["completion_tokens"], busy),
        "padding_share": _ratio(total["padding_tokens"], computed),
        "shared_share": _ratio(total["prompt_tokens"] - computed + total["padding_tokens"], total["prompt_tokens"]),
        "waiting_share": _ratio(idle, busy + idle),
        "out_of_memory": total["out_of_memory"],
        "busy_s": round(busy, 3),
        "load_s": round(max(actor["load_s"] for actor in actors), 3),
        **{
            f"{what}_gib": round(max(actor[f"{what}_bytes"] for actor in actors) / 2**30, 3)
            for what in ("weights", "free", "peak")
        },
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def invocation(
    started: float, calls: int, work: Mapping[str, Sequence[Mapping[str, float]]], *, finished: bool
) -> dict[str, Any]:
    """One line of calls.json's `invocations`: `started` is Unix time, `wall_s` seconds until now.

    `work` is, by model, what each actor of a local model has done.
    """
    local = {model: throughput(actors) for model, actors in sorted(work.items())}
    return {
        **({"local": local} if local else {}),
        "started": started,
        "wall_s": round(time.time() - started, 3),
        "calls": calls,
        "finished": finished,
    }
