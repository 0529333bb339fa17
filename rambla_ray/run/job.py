"""The Ray job that this process was submitted as, as far as `ray job submit` describes it in the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rambla_ray.display import as_typed_in_a_shell, print_error
from rambla_ray.errors import UserError
from rambla_ray.inputs import absolute, expanded, parse_json
from rambla_ray.redaction import is_secret

CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's variable of this name holds the job's runtime_env and metadata.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # The variable with the seconds from `ray job stop` until the job is killed.
RAYS_STOP_WAIT_S = 3  # Ray waits so long where the variable is not set.
ENOUGH_S = 60  # Half of it is for the calls in flight, the other half to score and write what was answered.
UPLOADED = "gcs://"  # Ray keeps a working directory that was uploaded at an address that begins so.


@dataclass(frozen=True)
class SubmittedJob:
    """A submitted job.

    Args:
        runtime_env: as it was submitted.
        stop_wait_s: how long this process lives on after `ray job stop`, in seconds.
    """

    runtime_env: Mapping[str, Any]
    stop_wait_s: int

    @classmethod
    def current(cls) -> Self | None:
        """The job of this process; None outside of one."""
        job_config = os.environ.get(CONFIG)
        if job_config is None:
            return None
        wait = os.environ.get(STOP_WAIT, "")
        return cls(_runtime_env(job_config), int(wait) if re.fullmatch("[0-9]{1,9}", wait) else RAYS_STOP_WAIT_S)

    @property
    def _variables(self) -> dict[str, str]:
        return dict(self.runtime_env.get("env_vars") or {})

    def refuse_secrets(self, variables: Collection[str]) -> None:
        """Raise a UserError when a key, in one of these variables or one named so, was submitted with the job."""
        for name in self._variables:
            if name in variables or is_secret(name):
                raise UserError(
                    f"{name} came in the job's runtime_env, which Ray shows to whoever asks: withdraw that key, and "
                    "put a new one into the environment of the nodes"
                )

    def warn(self) -> None:
        """Print a note on stderr when the job would have too little time to end in order."""
        if self.stop_wait_s < ENOUGH_S:
            print_error(
                f"ray job stop kills this job after {self.stop_wait_s} s: a call that takes longer is lost, and "
                f"asked again; {STOP_WAIT}={ENOUGH_S} where ray starts, or in the job's env_vars, gives it time",
                "note",
            )

    def command(self, words: Sequence[str], dashboard: str) -> str:
        """What to type to submit the same again, with enough time to be stopped in order.

        Args:
            words: the job's command: what started this process, and its words.
            dashboard: host and port; empty when there is none.
        """
        variables = self._variables
        if self.stop_wait_s < ENOUGH_S:
            variables[STOP_WAIT] = str(ENOUGH_S)
        env = {key: value for key, value in self.runtime_env.items() if key not in ("working_dir", "env_vars")}
        env |= {"env_vars": variables} if variables else {}
        folder = self.runtime_env.get("working_dir")
        return as_typed_in_a_shell(
            [
                *("ray", "job", "submit"),
                *(["--address", f"http://{dashboard}"] if dashboard else ()),
                *(["--working-dir", "." if folder.startswith(UPLOADED) else folder] if folder else ()),
                *(["--runtime-env-json", json.dumps(env)] if env else ()),
                *("--", *words),
            ]
        )


def _runtime_env(job_config: str) -> Mapping[str, Any]:
    """The runtime_env of a job, from what Ray puts into its environment. Raises UserError where that is damaged."""
    try:
        env = parse_json(job_config).get("runtime_env") or {}
        dict(env.get("env_vars") or {})
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{CONFIG} in the environment is not what Ray puts there for a job; unset it") from None
    return dict(env)


def refuse_relative(places: Mapping[str, str], job: SubmittedJob | None) -> None:
    """Refuse results in a relative place where it does not mean the folder that the command was typed in.

    Args:
        places: by config key, a path or a URI.
        job: the job of this process; None for a process that joins a cluster which is already running.

    Raises:
        UserError: a place is relative; the message names the key and a place that would do.
    """
    for key, place in places.items():
        if "://" in place or expanded(place).is_absolute():
            continue
        if job is None:
            why, way_out = (
                "a cluster that is already running has another working directory",
                str(absolute(place)),
            )
        else:
            why, way_out = "a job's working directory is a copy that is thrown away", f"s3://BUCKET/{Path(place).name}"
        raise UserError(f"{key}={place} is relative, and {why}; give a bucket or an absolute path: {key}={way_out}")
