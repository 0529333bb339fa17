"""The run directory: what a run leaves behind, written so that it explains, repeats and verifies itself."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError
from rambla_ray.results.calls import calls_document
from rambla_ray.results.documents import SHAPES, check_shape, read_plain
from rambla_ray.results.failures import error_lines
from rambla_ray.results.lease import LEASE, HeldFolder, Lease
from rambla_ray.results.sample_writer import DRAFT, SampleWriter
from rambla_ray.results.samples import file_name, refuse_newer
from rambla_ray.results.served import Served
from rambla_ray.results.stored_shapes import StoredConfig
from rambla_ray.results.versions import versions
from rambla_ray.storage import Folder

# The number of this layout, which stands in config.yaml. A change to any file of a run directory that an older reader
# would misread raises it; new keys, columns and files do not.
RUN_FORMAT = 1


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


def scoring_spec(
    config: RunConfig,
    expected: Mapping[tuple[str, str], int],
    calibration: Mapping[str, Any] | None = None,
    until: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How a run's samples are scored: what the metrics need beside the samples themselves. It is stored with them.

    Args:
        config: the run.
        expected: per (task, variant), how many samples each target has.
        until: of a run that may end early, as `settled.until_spec` makes it.
        calibration: how often the judge errs, as `judge_calibration.read_calibration` gives it; None where no
            calibration is given.
    """
    return {
        "synthetic": config.synthetic,
        "models": list(config.targets),
        **({"baseline": config.options.baseline} if config.options.baseline else {}),
        **({"until": until} if until else {}),
        **({"judge_calibration": dict(calibration)} if calibration else {}),
        "roles": {
            str(role): ",".join(member.config_name for member in played.members)
            for role, played in config.roles.items()
        },
        "tasks": {
            name: {
                "labels": list(task.answer.label_names),
                "pair_with": task.pair_with,
                "variants": list(task.variants),
                "expected": {variant: expected.get((name, variant), 0) for variant in task.variants},
                # What most tasks lack is left out, so that samples of earlier versions have the same specification.
                **({"epochs": task.draws} if task.draws > 1 else {}),
                **({"phrasings": True} if task.phrased else {}),
                **({"judge": task.judge} if task.judge else {}),
                **({"scores_against": task.answer.scores_against} if task.answer.scores_against else {}),
                **({"choice_labels": task.answer.choice_labels} if task.answer.by == "likelihood" else {}),
            }
            for name, task in config.tasks.items()
        },
    }


class RunDirectory:
    """One run's folder, on a local disk or in a bucket.

    Args:
        folder: where it is.
        lease: the run's, if this process holds it.

    Whatever reads a file of it raises UserError when a newer version of this package wrote it in a format that this
    one does not know.
    """

    def __init__(self, folder: Folder, lease: Lease | None = None) -> None:
        self.folder = folder
        self.samples = Folder(folder.child("samples"), folder.modes)
        self._lease = lease
        if lease is not None:
            self.folder, self.samples = HeldFolder(self.folder, lease), HeldFolder(self.samples, lease)
        self._earlier_invocations: list[dict[str, Any]] = []
        self._format_is_known = False

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Open the folder of a run, new or to be continued, and check that it can be written.

        Raises:
            UserError: it cannot, or it belongs to another config; the message names the keys that differ. Or what
                it holds of earlier invocations is damaged, or two targets and tasks would share a file.
        """
        files = Counter(file_name(target, task) for target in config.targets for task in config.tasks)
        for name, count in files.items():
            if count > 1:
                raise UserError(f"two targets and tasks would share the file {name}: rename a model or task config")
        run = cls(Folder(config.directory, config.options.modes))
        run.folder.make_writable("runs_dir")
        stored = run.read_config()
        if stored is not None:
            differing = differences(stored.get("question", {}), config.question())
            if differing:
                raise UserError(
                    f"run_id={config.run_id} belongs to another config ({run.folder.location}); these keys differ: "
                    f"{', '.join(differing[:8])}; choose another run_id, or none"
                )
        run.read_calls()  # What it counts of earlier invocations stands nowhere else.
        return run

    def held(self, lease: Lease) -> RunDirectory:
        """The same for the holder of the run's lease, which writes nothing more when it has lost it."""
        return RunDirectory(self.folder, lease)

    @property
    def taken_over(self) -> str:
        """Why nothing more is written, as another invocation of the run has begun; empty while this one goes on."""
        return self._lease.lost if self._lease else ""

    def begin(self, config: RunConfig, plan: Mapping[str, Any], words: Sequence[str]) -> None:
        """Write what is known before the first call: config.yaml, plan.json, env.json."""
        stored = config.stored()
        question = config.question()
        document = {
            "format": RUN_FORMAT,
            "command": list(words),
            "run_id": config.run_id,
            "model_labels": {target: config.label(target) for target in config.targets},
            "options": stored["options"],
            "question": question,
            "pools": {
                name: {"pool": target["pool"], "rate": target["rate"]} for name, target in stored["targets"].items()
            },
        }
        self._remove_drafts()
        self.write("config.yaml", _to_yaml(document))
        self.write("plan.json", to_json(plan))
        self.write_env({})
        calls = self.read_calls()
        self._earlier_invocations = calls["invocations"] if calls else []

    def _remove_drafts(self) -> None:
        """Remove what an invocation that was killed had not finished writing. Raises NotWritten."""
        with self.folder.writing():
            for name in [*self.folder.names(".tmp"), *self.folder.names(DRAFT)]:
                if not name.startswith((".", LEASE)):  # Those are being written while another start is refused.
                    self.folder.filesystem.delete_file(self.folder.path(name))

    def write_env(self, models: Mapping[str, Any]) -> None:
        """Write env.json: versions, and the identity of each loaded model (weights, parameters, template)."""
        with self.folder.writing():  # Where no more files can be opened, their versions cannot be read either.
            packages = dict(versions())
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
            self.samples.create()
            for draft in self.samples.names(DRAFT):  # of an invocation that was killed
                self.samples.filesystem.delete_file(self.samples.path(draft))
        return SampleWriter(self.samples, target, spec)

    def write_calls(
        self,
        config: RunConfig,
        spent: Sequence[Mapping[str, Any]],
        answered: Mapping[tuple[str, str], int],
        invocation: Mapping[str, Any],
        served: Mapping[Served, int] | None = None,
        until: Mapping[str, int] | None = None,
    ) -> None:
        """Write calls.json: what the run took, over all its invocations.

        Args:
            config: the run.
            spent: as `calls_document` takes it.
            answered: as `calls_document` takes it.
            invocation: the present one, as `results.calls.invocation` makes it.
            served: as `calls_document` takes it; None where no reply named anything.
            until: as `calls_document` takes it.
        """
        invocations = [*self._earlier_invocations, invocation]
        self.write("calls.json", to_json(calls_document(config, spent, answered, invocations, served or {}, until)))

    def write_errors(self) -> None:
        """Write errors.jsonl, from samples/: one line per sample that was not scored, by target and task."""
        draft = "errors.jsonl.draft"
        with self.folder.writing():
            with self.folder.open_stream(draft) as stream:
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
        document = read_plain(self.folder, "config.yaml")
        if document is None:
            return None
        refuse_newer("run directory", document.get("format", 1), RUN_FORMAT, self.folder.location)
        self._format_is_known = True
        check_shape(document, StoredConfig, self.folder.child("config.yaml"))
        return document

    def model_labels(self) -> dict[str, str]:
        """By target, what people call it; empty in a run that an earlier version wrote."""
        return dict((self.read_config() or {}).get("model_labels", {}))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What one of the run's JSON files holds, None when there is no such file. Raises UserError."""
        self._check_format()
        document = read_plain(self.folder, name)
        if document is not None:
            check_shape(document, SHAPES[name], self.folder.child(name))
        return document

    def read_document(self, name: str) -> dict[str, Any] | None:
        """What config.yaml or a JSON file holds, None when there is no such file. Raises UserError."""
        return self.read_config() if name == "config.yaml" else self.read_json(name)

    def read_metrics(self) -> dict[str, Any]:
        """What metrics.json holds. Raises UserError when there is none."""
        metrics = self.read_json("metrics.json")
        if metrics is None:
            raise UserError(f"{self.folder.location} has no metrics.json; is it a run directory that was finished?")
        return metrics

    def read_notes(self) -> list[str]:
        """What plan.json says about the datasets, as lines; none where an older version wrote it."""
        return list((self.read_json("plan.json") or {}).get("notes", ()))

    def read_calls(self) -> dict[str, Any] | None:
        """What calls.json holds, None when there is none: at the run's end its calls could not be counted any more."""
        return self.read_json("calls.json")

    def _check_format(self) -> None:
        if not self._format_is_known:
            self.read_config()
            self._format_is_known = True


def differences(stored: Any, wanted: Any, where: str = "") -> list[str]:
    """The dotted keys at which two plain values differ, sorted."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        differing = []
        for key in sorted({*stored, *wanted}, key=str):
            inner = f"{where}.{key}" if where else str(key)
            differing += differences(stored.get(key), wanted.get(key), inner)
        return differing
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        return [
            key
            for place, (one, other) in enumerate(zip(stored, wanted, strict=True))
            for key in differences(one, other, f"{where}[{place}]")
        ]
    return [] if stored == wanted else [where]
