"""The run directory: what a run leaves behind, written so that it explains, repeats and verifies itself."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from rambla_ray.config.parsing import parse_resolved
from rambla_ray.config.run import RunConfig
from rambla_ray.display import one_line
from rambla_ray.errors import UserError
from rambla_ray.results.calls import calls_document
from rambla_ray.results.failures import error_lines
from rambla_ray.results.samples import SampleWriter, file_name, refuse_newer
from rambla_ray.storage import Folder, reason_of

# The number of this layout, which stands in config.yaml. A change to any file of a run directory that an older reader
# would misread raises it; new keys, columns and files do not.
RUN_FORMAT = 1

PACKAGES = ("ray", "torch", "transformers", "openai", "datasets", "scikit-learn", "scipy", "numpy", "pyarrow")


def versions() -> dict[str, str | None]:
    """The versions on this machine of Python and of the packages that results may depend on.

    The version of a package that is not installed is None.
    """
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def to_json(value: object) -> bytes:
    """Strict JSON with sorted keys. Raises ValueError on NaN."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML that every version reads alike: a text like 1e3, which some parsers take for a number, is in quotes."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _to_yaml(value: object) -> bytes:
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text.encode()


def scoring_spec(config: RunConfig, expected: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """How a run's samples are scored: what the metrics need beside the samples themselves. It is stored with them.

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
                # What most tasks lack is left out, so that samples of earlier versions have the same specification.
                **({"judge": task.judge} if task.judge else {}),
                **({"scores_against": task.answer.scores_against} if task.answer.scores_against else {}),
            }
            for name, task in config.tasks.items()
        },
    }


class RunDirectory:
    """One run's folder, on a local disk or in a bucket.

    Whatever reads a file of it raises UserError when a newer version of this package wrote it in a format that this
    one does not know.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.samples = Folder(f"{folder.location}/samples")
        self._earlier_invocations: list[dict[str, Any]] = []
        self._format_is_known = False

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Open the folder of a run, new or to be continued, and check that it can be written.

        Raises:
            UserError: it cannot, or it belongs to another config; the message names the keys that differ. Or two
                targets and tasks would share a file.
        """
        files = Counter(file_name(target, task) for target in config.targets for task in config.tasks)
        for name, count in files.items():
            if count > 1:
                raise UserError(f"two targets and tasks would share the file {name}: rename a model or task config")
        run = cls(Folder(config.directory))
        run.folder.make_writable("runs_dir")
        stored = run.read_config()
        if stored is not None:
            differing = _differences(stored.get("question", {}), config.question())
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
        document = {
            "format": RUN_FORMAT,
            "command": list(words),
            "run_id": config.run_id,
            "model_labels": {target: config.label(target) for target in config.targets},
            "options": options,
            "question": question,
            "pools": {
                name: {"pool": model.pool.model_dump(mode="json"), "rate": model.rate.model_dump(mode="json")}
                for name, model in config.targets.items()
            },
        }
        self.write("config.yaml", _to_yaml(document))
        self.write("plan.json", to_json(plan))
        self.write_env({})
        calls = self.read_calls()
        self._earlier_invocations = calls["invocations"] if calls else []

    def write_env(self, models: Mapping[str, Any]) -> None:
        """Write env.json: versions, and the identity of each loaded model (weights, parameters, template)."""
        packages = versions()
        python = packages.pop("python")
        env = {"python": python, "platform": platform.platform(), "packages": packages, "models": dict(models)}
        self.write("env.json", to_json(env))

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run. Raises NotWritten."""
        with self.folder.writing():
            self.folder.write(name, data)

    def sample_writer(self, target: str, spec: Mapping[str, Any]) -> SampleWriter:
        """A writer of one target's samples; they replace those of an earlier invocation when it is closed.

        It raises NotWritten, as this does, where they cannot be written.
        """
        with self.samples.writing():
            self.samples.filesystem.create_dir(self.samples.root, recursive=True)
        return SampleWriter(self.samples, target, spec)

    def write_calls(
        self,
        config: RunConfig,
        spent: Sequence[Mapping[str, Any]],
        answered: Mapping[tuple[str, str], int],
        invocation: Mapping[str, Any],
    ) -> None:
        """Write calls.json: what the run took, over all its invocations.

        Args:
            config: the run.
            spent: as `calls_document` takes it.
            answered: as `calls_document` takes it.
            invocation: the present one, as `results.calls.invocation` makes it.
        """
        invocations = [*self._earlier_invocations, invocation]
        self.write("calls.json", to_json(calls_document(config, spent, answered, invocations)))

    def write_errors(self) -> None:
        """Write errors.jsonl, from samples/: one line per sample that was not scored, by target and task."""
        draft = "errors.jsonl.draft"
        with self.folder.writing():
            with self.folder.filesystem.open_output_stream(self.folder.path(draft)) as stream:
                for line in error_lines(self.samples):
                    stream.write(line)
            self.folder.publish(draft, "errors.jsonl")

    def score(self) -> dict[str, Any]:
        """What metrics.json holds, from samples/ alone. Raises UserError when there are none."""
        from rambla_ray.results.score import score  # It loads scipy and scikit-learn, which takes a second.

        self._check_format()
        return score(self.samples)

    def write_metrics(self) -> dict[str, Any]:
        """Score the samples and write metrics.json; returns what is in it."""
        scores = self.score()
        self.write("metrics.json", to_json(scores))
        return scores

    def read_config(self) -> dict[str, Any] | None:
        """What config.yaml holds, None when there is none."""
        config = self._parsed("config.yaml", parse_resolved)
        if not isinstance(config, dict):
            return None
        document = {str(key): value for key, value in config.items()}
        refuse_newer("run directory", document.get("format", 1), RUN_FORMAT, self.folder.location)
        self._format_is_known = True
        return document

    def model_labels(self) -> dict[str, str]:
        """By target, what people call it; empty in a run that an earlier version wrote."""
        labels = (self.read_config() or {}).get("model_labels")
        return {str(target): str(label) for target, label in labels.items()} if isinstance(labels, dict) else {}

    def read_json(self, name: str) -> Any:
        """What one of the run's JSON files holds. Raises UserError when there is no such file."""
        self._check_format()
        value = self._parsed(name, json.loads)
        if value is None:
            raise UserError(f"{self.folder.location} has no {name}; is it a run directory that was finished?")
        return value

    def read_notes(self) -> list[str]:
        """What plan.json says about the datasets, as lines; none where an older version wrote it."""
        self._check_format()
        plan = self._parsed("plan.json", json.loads)
        return [str(note) for note in (plan or {}).get("notes", ())]

    def read_calls(self) -> dict[str, Any] | None:
        """What calls.json holds, None when there is none: at the run's end its calls could not be counted any more."""
        self._check_format()
        calls: dict[str, Any] | None = self._parsed("calls.json", json.loads)
        return calls

    def _parsed(self, name: str, parse: Callable[[bytes], Any]) -> Any:
        """What a file of the run holds, None when there is no such file. Raises UserError when it is damaged."""
        try:
            return parse(self.folder.read(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.folder.location}/{name} cannot be read: {reason_of(error)}") from None
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            reason = one_line(str(error).partition("\n")[0])
            raise UserError(f"{self.folder.location}/{name} is damaged: {reason}") from None

    def _check_format(self) -> None:
        if not self._format_is_known:
            self.read_config()
            self._format_is_known = True


def _differences(stored: Any, wanted: Any, where: str = "") -> list[str]:
    """The dotted keys at which two plain values differ, sorted."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        differing = []
        for key in sorted({*stored, *wanted}, key=str):
            inner = f"{where}.{key}" if where else str(key)
            differing += _differences(stored.get(key), wanted.get(key), inner)
        return differing
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        return [
            key
            for place, (one, other) in enumerate(zip(stored, wanted, strict=True))
            for key in _differences(one, other, f"{where}[{place}]")
        ]
    return [] if stored == wanted else [where]
