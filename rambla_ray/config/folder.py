"""`conf/`: the YAML files of models, tasks and datasets, as plain values."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf.errors import OmegaConfBaseException

from rambla_ray.config.parsing import parse_yaml
from rambla_ray.display import SHOWN_CHARACTERS, folded, one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.inputs import expanded, read_whole, reason_of
from rambla_ray.shipped import SHIPPED_CONF

LARGEST = 2**20  # A config file has at most so many bytes: it would take more seconds to read than anybody waits.


class ConfigFolder:
    """`conf/`: the user's folder first, if there is one, then the shipped one."""

    def __init__(self, conf_dir: str | None) -> None:
        own = [expanded(conf_dir)] if conf_dir else []
        if not all(map(os.path.isdir, own)):  # It is False, too, where a name is too long or holds a NUL.
            raise UserError(f"conf_dir={conf_dir}: there is no such folder")
        self._folders = [*own, SHIPPED_CONF]

    def names(self, group: str) -> list[str]:
        """The configs of a group (model, task, dataset), sorted."""
        return sorted({path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")})

    def read_config(self, group: str, name: str) -> tuple[dict[str, Any], Path]:
        """One config and its file. Raises UserError when there is none, or it cannot be read."""
        for folder in self._folders:
            path = folder / group / f"{name}.yaml"
            if os.path.lexists(path) and path.parent == folder / group:
                return _read_yaml(path), path
        raise UserError(f"no {group} '{one_line(name, SHOWN_CHARACTERS)}'; {choose_from(name, self.names(group))}")

    def root(self) -> dict[str, Any]:
        """`config.yaml`: the defaults, the user's over the shipped."""
        merged: dict[str, Any] = {}
        for folder in reversed(self._folders):
            if os.path.lexists(folder / "config.yaml"):
                merged |= _read_yaml(folder / "config.yaml")
        return merged


def package_dir(package: str) -> str:
    """Resolver `${package_dir:NAME}`: the folder of an installed package, without importing it."""
    if not package.isidentifier():
        # To look for a dotted name, Python would import the outer package.
        raise ValueError(f"'{package}' is not the name of a package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ValueError(f"package {package} is not installed: pip install --no-deps {distribution}")
    return str(spec.submodule_search_locations[0])


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(read_whole(path, LARGEST))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {folded(str(error), 200)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values")
    return cast(dict[str, Any], value)
